"""Our policy losses, as verl calls them: one micro-batch at a time, with a plan that was made for the mini-batch.

    L_t = -min(r_t A'_t, clip(r_t) A'_t),   A' = the control's rewrite of A,   r = exp(logprobs - old_logprobs)
    one_shot_em:  L_t = coef max(H_t, floor)

The plan (which tokens, which advantages) is made in `autotelic.verl.engine`, before verl splits the mini-batch. The sum
over tokens and its denominator are verl's ``agg_loss``, over the mini-batch of all ranks.

Reference: as the control's; Schulman et al. 2017, arXiv:1707.06347 for the surrogate.
Deviations: clip_cov and kl_cov have no dual clip, as in the paper; the other controls keep verl's (``clip_ratio_c``),
except those that take the place of PPO's clip.
Log-ratios are held in [-20, 20]; beyond, the gradient is zero.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan
from autotelic.errors import UserError
from autotelic.functional.gradient_weights import OUT_OF_REACH, gradient_weights
from autotelic.functional.masking import fill_outside
from autotelic.functional.surrogate import log_ratio as bounded_log_ratio
from autotelic.verl import PREFIX
from autotelic.verl.loss_methods import EntropyMinimization, Method, method_names

NO_DUAL_CLIP = ("clip_cov", "kl_cov")


@dataclass(frozen=True)
class MicroBatch:
    """What the engine knows of the micro-batch whose loss is being computed.

    Attributes:
        method: the control, or entropy minimisation.
        plan: this micro-batch's part of the plan; None for entropy minimisation.
        entropy: of the present policy with gradient, nats per token, where the method needs it.
        entropy_coef: of a term on the entropy: of the selected tokens (KL-Cov with one update per rollout), or of the
            plan's `term_tokens` (an entropy band).
        metrics: of the whole mini-batch, to be logged with it.
    """

    method: Method
    plan: Plan | None
    entropy: Tensor | None
    entropy_coef: float
    metrics: dict[str, float]


_CURRENT: ContextVar[MicroBatch | None] = ContextVar("autotelic_micro_batch", default=None)


@contextmanager
def planned(micro_batch: MicroBatch) -> Iterator[None]:
    """Make a micro-batch the one that the policy loss works on."""
    token = _CURRENT.set(micro_batch)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def policy_loss(name: str) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Return the loss that verl finds under ``autotelic_<name>``."""

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        current = _CURRENT.get()
        if current is None:
            raise UserError(
                f"{PREFIX}{name} has no plan for this mini-batch: this verl's engine was not prepared by the plug-in, "
                "so tokens could only be chosen per micro-batch, as verl's own clip_cov and kl_cov do. Run "
                "`autotelic doctor`"
            )
        from verl.trainer.ppo.core_algos import agg_loss

        mask = response_mask.bool()

        def reduce(per_token: Tensor) -> Tensor:
            return agg_loss(
                loss_mat=fill_outside(per_token, mask),
                loss_mask=mask,
                loss_agg_mode=loss_agg_mode,
                **config.global_batch_info,
            )

        if isinstance(current.method, EntropyMinimization):
            return entropy_minimization(current, current.method, reduce)
        per_token, metrics = surrogate(
            current.method,
            current.plan,
            log_prob,
            old_log_prob,
            advantages,
            mask,
            config,
            rollout_is_weights,
            current.entropy,
        )
        total = reduce(per_token)
        if current.entropy_coef:
            assert current.plan is not None and current.entropy is not None
            tokens = current.plan.selected if current.plan.term_tokens is None else current.plan.term_tokens
            total = total - current.entropy_coef * reduce(fill_outside(current.entropy, tokens))
        return total, metrics | current.metrics

    loss.__name__ = f"{PREFIX}{name}"
    return loss


def surrogate(
    control: EntropyControl,
    plan: Plan | None,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: Any,
    weights: Tensor | None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of every token on rewritten advantages, and verl's own metrics of a policy loss."""
    assert plan is not None
    low, high = (OUT_OF_REACH, OUT_OF_REACH) if control.replaces_clip else clip_bounds(config)
    drift = fill_outside(logprobs.detach(), mask) - fill_outside(old_logprobs, mask)
    bounded = drift.float().clamp(-20, 20)
    plan = replace(
        plan,
        weights=gradient_weights(bounded, "grpo", clip_low=low, clip_high=high),
        logprobs=fill_outside(logprobs.detach(), mask).float(),
        entropy=None if entropy is None else fill_outside(entropy.detach(), mask).float(),
    )
    rewritten = control.rewrite(fill_outside(advantages, mask).float(), drift.float(), plan)
    per_token = F.clipped_surrogate(
        logprobs,
        old_logprobs,
        rewritten,
        clip_low=low,
        clip_high=high,
        mask=mask,
        dual_clip=None if control.name in NO_DUAL_CLIP or control.replaces_clip else config.get("clip_ratio_c", 3.0),
    )
    if weights is not None:
        per_token = per_token * fill_outside(weights, mask)
    ratio = bounded_log_ratio(logprobs.detach(), old_logprobs, mask).exp()
    clipped = -ratio.clamp(1 - low, 1 + high) * rewritten > -ratio * rewritten
    return per_token, {
        "actor/pg_clipfrac": F.masked_mean(clipped.float(), mask).item(),
        "actor/ppo_kl": F.masked_mean(-drift, mask).item(),
    }


def entropy_minimization(
    current: MicroBatch, settings: EntropyMinimization, reduce: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the entropy of the policy on its own samples; advantages play no part."""
    assert current.entropy is not None
    if not current.entropy.requires_grad:
        raise UserError("this verl engine gives entropies without a gradient, so entropy minimisation cannot train")
    entropy = current.entropy.clamp(min=settings.floor) if settings.floor else current.entropy
    return settings.coef * reduce(entropy), dict(current.metrics)


def clip_bounds(config: Any) -> tuple[float, float]:
    """Return how far below and above 1 the ratio counts."""
    both = config.clip_ratio
    low = both if config.clip_ratio_low is None else config.clip_ratio_low
    return low, both if config.clip_ratio_high is None else config.clip_ratio_high


def policy_losses() -> dict[str, Callable[..., tuple[Tensor, dict[str, Any]]]]:
    """Return every loss under the name that loss_mode takes."""
    return {PREFIX + name: policy_loss(name) for name in method_names()}
