"""Entropy control in one line for any GRPOTrainer or RLOOTrainer.

    trainer = with_entropy_control(GRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3))

The control chooses tokens once for each update, over all micro-batches and ranks. How a choice then reaches the
gradient depends on TRL's ratio:

    one ratio per token      the rewritten advantages, (B, T), take the place of TRL's
    one ratio per response   a silenced token is detached in the ratio; the advantages stay, and so does the gradient
    (GSPO, RLOO)             of the reference KL. Controls that weigh single tokens are refused

`docs/papers/entropy_mechanism.md` says for each loss of TRL what is exact, and a test holds it against float64.

While a control is active, values outside the response mask are never read, and log-ratios are held in [-20, 20] at the
token level (beyond, the gradient is zero), so that neither padding nor an overflowing ratio can spoil the gradient.
"""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_change import EntropyChange
from autotelic.controls.entropy_control import EntropyControl, EntropyControlWarning, Plan, UpdateBatch
from autotelic.controls.metrics import control_metrics, drift_metrics, drift_sums, jaccard
from autotelic.errors import UserError, warn_user
from autotelic.functional.gradient_weights import CLIPPED, OUT_OF_REACH, GradientWeights, gradient_weights
from autotelic.functional.masking import fill_outside
from autotelic.functional.surrogate import MAX_LOG_RATIO, ratio_clipped
from autotelic.lm.token_pass import TokenStatistics, token_pass
from autotelic.trl.async_seam import with_async_entropy_control
from autotelic.trl.fast_passes import fast_passes, fused_statistics
from autotelic.trl.label_free import IN_LOSS, POLICY_SCALE, TOKEN_LOSSES
from autotelic.trl.seam import (
    ROW_IDS,
    LossInputs,
    Micro,
    Part,
    Rollout,
    Update,
    forward_extras,
    forward_inputs,
    is_whole,
    per_token,
    response_mask,
    score,
    updates_per_rollout,
    with_parts,
)

VOCABULARY = ("logprobs", "entropy", "discriminator", "expected_discriminator")
PER_TOKEN_KEYS = (
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
ROLLOUT_KEYS = {name: f"rollout_{name}" for name in ("logprobs", "entropy", "expected", "proxy")}
MEASURED = {"logprobs": "logprobs", "entropy": "entropy", "expected": "expected_discriminator"}

TrainerT = TypeVar("TrainerT")


class Control(Part):
    """Chooses tokens before each update, and rewrites what TRL computes its loss from.

    Args:
        control: a `ClipCov`, a `KLCov` or another of `autotelic.controls`.
        entropy_change_rows: follow the entropy of so many responses of each update and rank to the next update, and log
            its change beside the predicted one; 0 is off (`autotelic.controls.entropy_change` says what it costs).
    """

    def __init__(self, control: EntropyControl, entropy_change_rows: int = 0):
        self.control, self.state = control, {}
        self.entropy_change = EntropyChange(entropy_change_rows, self.statistics) if entropy_change_rows else None
        self._drift: Any = None
        self._entropy: Any = None
        self._warned = False

    def check(self) -> None:
        """Refuse what this control cannot do under the trainer's loss and schedule."""
        trainer, control = self.trainer, self.control
        if not is_whole(trainer.args):
            raise UserError(
                f"entropy control needs steps_per_generation ({trainer.args.steps_per_generation}) to be a multiple of "
                f"gradient_accumulation_steps ({trainer.args.gradient_accumulation_steps}): tokens are chosen over the "
                "whole update, so its rollouts must all exist when it begins."
            )
        self.sequence = getattr(trainer, "importance_sampling_level", "sequence") == "sequence"
        self.loss_type = getattr(trainer, "loss_type", "rloo")
        clipped = self.loss_type in CLIPPED and not control.replaces_clip
        control.check(updates_per_rollout(trainer.args), "sequence" if self.sequence else "token", clipped=clipped)
        if control.replaces_clip:
            trainer.epsilon_low = trainer.epsilon_high = OUT_OF_REACH
        if control.name == "kl_cov":
            for name, value in (("delta", trainer.args.delta), ("off_policy_mask_threshold", self._threshold())):
                if value is not None:
                    raise UserError(
                        f"kl_cov cannot be used with {name}={value:g}: TRL would drop its penalty together with the "
                        f"advantage. Leave {name} out, or use clip_cov"
                    )

    def _threshold(self) -> float | None:
        return getattr(self.trainer, "off_policy_mask_threshold", None)

    @property
    def wants_entropies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the control decides on entropies of the rollout."""
        return "entropy" in self.control.needs and self.trainer.model.training

    @property
    def only_our_head(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Why only our head serves the control: rows without a gradient, or sums over the vocabulary."""
        name, share = self.control.name, self.control.silent_share
        if share >= 0.5:
            return f"{name} leaves {share:.0%} of the tokens without a gradient, and it skips them"
        return f"{name} reads sums over the vocabulary" if "expected" in self.control.needs else None

    @property
    def split_matters(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the control chooses per micro-batch, or the first micro-batch is followed."""
        return self.control.per_micro_batch or self.entropy_change is not None

    def on_rollout(self, rollout: Rollout) -> None:
        """Store what the control decides on beside the rollout: it is shuffled and split with it."""
        output = rollout.output
        output |= group_facts(self.trainer, rollout)
        if not rollout.training:
            return
        self._score(rollout)
        prepared = self.control.at_rollout(self.batch(output, refresh=False)) if self._prepares() else None
        if prepared is not None:
            output["prepared"] = prepared

    def _prepares(self) -> bool:
        return type(self.control).at_rollout is not EntropyControl.at_rollout

    def _score(self, rollout: Rollout) -> None:
        """Keep log-probabilities and what else the control needs beside the rollout."""
        output = rollout.output
        needs, logprobs = self.control.needs, None if rollout.scored is None else rollout.scored[0]
        ours = logprobs is not None and logprobs is output.get("old_per_token_logps")
        if "old_logps" in output and logprobs is not None:  # RLOO keeps the sum over each response only
            output["rollout_logprobs"], ours = logprobs, True
        if not needs:
            return
        if ours and needs == {"entropy"} and rollout.scored is not None and rollout.scored[1] is not None:
            output["rollout_entropy"] = rollout.scored[1]  # TRL made this pass for the old log-probabilities
        else:
            output |= {ROLLOUT_KEYS[key]: value for key, value in self.measure(output, needs).items()}

    def on_update(self, update: Update) -> None:
        """Choose the tokens of the whole optimizer step."""
        control, micro_batches = self.control, update.micro_batches
        batches = [self.batch(micro) for micro in micro_batches]
        whole = UpdateBatch.join(batches)
        if control.per_micro_batch:
            plans = [control.plan(batch) for batch in batches]
        else:
            plans = control.plan(whole).split([batch.mask.shape[0] for batch in batches])
        chosen = Plan.join(plans, per_micro_batch=control.per_micro_batch)
        self.state = dict(chosen.state)
        metrics = control_metrics(chosen, whole)
        if control.refresh:
            stale = UpdateBatch.join([self.batch(micro, refresh=False) for micro in micro_batches])
            metrics["selected/jaccard"] = jaccard(chosen.selected, control.plan(stale).selected)
        if self.entropy_change is not None:
            first = batches[0]
            metrics |= self.entropy_change.observe(micro_batches[0], first.advantages, plans[0].covariance, first.mask)
        self.record(metrics)
        self._warn_if_empty(chosen, whole)
        for micro, plan in zip(micro_batches, plans, strict=True):
            micro["plan"] = plan

    def batch(self, micro: Micro, refresh: bool | None = None) -> UpdateBatch:
        """Return a micro-batch as a control sees it; rows that have left the loss are outside its mask."""
        control, mask = self.control, response_mask(micro)
        refresh = control.refresh if refresh is None else refresh
        old = self.rollout_logprobs(micro)
        known = {"logprobs": old} | {key: micro.get(name) for key, name in ROLLOUT_KEYS.items() if name in micro}
        if refresh or known["logprobs"] is None:  # on-policy, TRL keeps no log-probabilities: one forward pass
            known |= self.measure(micro, control.needs if refresh else frozenset())
        assert known["logprobs"] is not None
        logprobs, sampled = known["logprobs"].float(), micro.get("sampling_per_token_logps")
        advantages = per_token(micro["advantages"], mask)
        mask = mask & logprobs.isfinite()  # a sampler may give no log-probability for a token: it cannot be ranked
        mask = mask & micro[IN_LOSS].unsqueeze(1) if IN_LOSS in micro else mask
        clipped = None
        if refresh and old is not None and self.loss_type in CLIPPED:
            bounds = {"clip_low": self.trainer.epsilon_low, "clip_high": self.trainer.epsilon_high}
            clipped = ratio_clipped(logprobs, old.float(), advantages, mask, **bounds)
        return UpdateBatch(
            logprobs=logprobs,
            advantages=advantages,
            mask=mask,
            row_ids=micro[ROW_IDS],
            step=self.trainer.state.global_step,
            seed=control.seed,
            across_ranks=not control.per_micro_batch,
            old_logprobs=None if old is None else old.float(),
            entropy=known.get("entropy"),
            expected=known.get("expected"),
            clipped=clipped,
            accuracy=micro.get("accuracy"),
            flat=micro.get("flat"),
            state=self.state,
            total_steps=self.trainer.state.max_steps,
            group_size=self.trainer.num_generations,
            sampler_logprobs=None if sampled is None else sampled.float(),
            precision=precision_of(self.trainer, known["logprobs"]),
            by_response=self.loss_type not in (*TOKEN_LOSSES, "bnpo"),
            prepared=micro.get("prepared"),
            proxy=known.get("proxy"),
        )

    def rollout_logprobs(self, micro: Micro) -> Float[Tensor, "B T"] | None:
        """Return ln pi_old as TRL recomputed it, else the sampler's own (vLLM), else None."""
        for name in ("old_per_token_logps", "rollout_logprobs"):
            if name in micro:
                return micro[name]
        found = micro.get("sampling_per_token_logps")
        if found is not None and not self.control.refresh:
            warn_if_truncated(self.trainer)
        return found

    def measure(self, micro: Micro, needs: frozenset[str]) -> dict[str, Tensor]:
        """Return log-probabilities under the present policy, and what else is needed, from one forward pass."""
        if "expected" in needs:
            found = self.statistics(micro)
            return {key: found[name] for key, name in MEASURED.items()}
        if "proxy" in needs:
            kappa = self.control.kappa  # pyright: ignore[reportAttributeAccessIssue]
            return self.statistics(micro, ("logprobs", "proxy"), kappa)
        logprobs, entropy = score(self.trainer, micro, entropy="entropy" in needs)
        return {"logprobs": logprobs} | ({} if entropy is None else {"entropy": entropy})

    def statistics(
        self, micro: Micro, names: Sequence[str] = VOCABULARY, kappa: float | None = None
    ) -> TokenStatistics:
        """Return what the whole vocabulary says of each response token, under the present policy."""
        return token_pass(
            self.trainer.model,
            *forward_inputs(micro),
            names,
            temperature=self.trainer.temperature,
            batch_size=self.trainer.args.per_device_train_batch_size,
            fused=fused_statistics(self.trainer) and kappa is None,
            kappa=kappa,
            **forward_extras(micro),
        )

    def on_token_stats(self, loss: LossInputs) -> None:
        """Write the choice into TRL's inputs."""
        plan = loss.micro.pop("plan", None)
        if plan is None:  # evaluation
            return
        micro, mask = loss.micro, loss.mask
        for key in PER_TOKEN_KEYS:
            if key in micro and micro[key].shape == mask.shape:
                micro[key] = fill_outside(micro[key], mask)
        logprobs = fill_outside(loss.logprobs, mask)
        loss.entropies = loss.entropies if loss.entropies is None else fill_outside(loss.entropies, mask)
        old = micro.get("old_per_token_logps")
        if old is None and "old_logps" in micro:
            old = fill_outside(micro["rollout_logprobs"], mask)
        log_ratio = torch.zeros_like(logprobs) if old is None else logprobs.detach() - old
        self._follow_drift(loss, logprobs.detach(), log_ratio)
        self._entropy = None if loss.entropies is None else loss.entropies.detach().float()
        loss.logprobs = (
            self._silence(micro, plan, logprobs)
            if self.sequence
            else self._rewrite(micro, plan, logprobs, old, log_ratio, mask)
        )
        self._plan = plan

    def _silence(self, micro: Micro, plan: Plan, logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return log-probabilities for the ratio without a gradient on selected tokens; the reference KL keeps its own.

        TRL takes the KL from `ref - logprobs` as well: what the ratio's log-probabilities lose, the reference's carry.
        """
        if self.control.whole_responses and plan.advantages is not None:
            micro["advantages"] = plan.advantages
            return logprobs
        held = torch.where(plan.selected, logprobs.detach(), logprobs)
        reference = micro.get("ref_per_token_logps")
        if reference is not None:
            corrected = getattr(self.trainer.args, "use_bias_correction_kl", False)
            micro["ref_per_token_logps"] = carrying(reference, logprobs, held, response_mask(micro), corrected)
        return held

    def _rewrite(
        self,
        micro: Micro,
        plan: Plan,
        logprobs: Float[Tensor, "B T"],
        old: Float[Tensor, "B T"] | None,
        log_ratio: Float[Tensor, "B T"],
        mask: Tensor,
    ) -> Float[Tensor, "B T"]:
        """Replace the advantages; return log-probabilities whose ratio is bounded."""
        bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        weights = self.weights(micro, bounded.float(), mask)
        advantages = per_token(micro["advantages"], mask)
        now = replace(plan, weights=weights, logprobs=logprobs.detach().float(), entropy=self._entropy)
        micro["advantages"] = self.control.rewrite(advantages, log_ratio.float(), now)
        if old is None:
            return logprobs
        return torch.where(log_ratio.abs() > MAX_LOG_RATIO, old + bounded, logprobs)

    def weights(self, micro: Micro, log_ratio: Float[Tensor, "B T"], mask: Tensor) -> GradientWeights:
        """Return what TRL's loss multiplies an advantage with, in the gradient."""
        trainer, args = self.trainer, self.trainer.args
        if self.loss_type == "vespo":
            given: dict[str, Any] = {"log_ratio_per_token": log_ratio, "mask": mask}
            given["importance_sampling_ratio"] = micro.get("importance_sampling_ratio")
            given |= {name: getattr(args, f"vespo_{name}") for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")}
            ones = torch.ones_like(log_ratio[:, :1])
            signs = [trainer.get_gamma_weights(advantages=sign, **given) for sign in (ones, -ones)]
            return GradientWeights(*(phi.expand(mask.shape) for phi in signs))
        return gradient_weights(
            log_ratio,
            self.loss_type,
            clip_low=trainer.epsilon_low,
            clip_high=trainer.epsilon_high,
            temperatures=(getattr(args, "sapo_temperature_pos", 1.0), getattr(args, "sapo_temperature_neg", 1.0)),
        )

    def _follow_drift(self, loss: LossInputs, logprobs: Tensor, log_ratio: Tensor) -> None:
        """Record the drift of the whole update with its last micro-batch."""
        entropies = None if loss.entropies is None else loss.entropies.detach()
        sums = drift_sums(logprobs, log_ratio, entropies, loss.mask)
        self._drift = sums if self._drift is None else self._drift + sums
        if loss.is_last:
            self.record(drift_metrics(self._drift))
            self._drift = None

    def loss_term(self, loss: LossInputs) -> Tensor | None:
        """Return the entropy of the selected positions, negated: the on-policy form of a control, where it has one."""
        if not loss.training:
            return None
        penalty = self._vocabulary_term(loss)
        coef = self.control.entropy_coef(updates_per_rollout(self.trainer.args)) or self._plan.term_coef
        if not coef:
            return penalty
        check_entropy_gradient(loss.entropies)
        tokens = self._plan.selected if self._plan.term_tokens is None else self._plan.term_tokens
        term = -coef * self._token_mean(loss, loss.entropies, tokens)
        return term if penalty is None else penalty + term

    def _token_mean(self, loss: LossInputs, values: Float[Tensor, "B T"], tokens: Tensor) -> Tensor:
        """Return the sum over some tokens, divided by all response tokens of the update, as TRL's `dapo` loss does."""
        share = self.trainer.current_gradient_accumulation_steps / self.trainer.args.steps_per_generation
        total = loss.micro["num_items_in_batch"].clamp(min=1.0) / self.trainer.accelerator.num_processes * share
        return loss.micro.get(POLICY_SCALE, 1.0) * F.reduce_tokens(values, tokens, denominator=total)

    def _vocabulary_term(self, loss: LossInputs) -> Tensor | None:
        """Return the control's term on whole distributions: a forward pass of its own, over this micro-batch."""
        if not self.control.has_vocabulary_term:
            return None
        ids, attention, width = forward_inputs(loss.micro)
        logits = loss.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
        chosen = self._plan.selected
        values = torch.zeros(chosen.shape, device=logits.device)
        found = self.control.vocabulary_term(logits[chosen].float(), self.trainer.temperature)
        values = values.masked_scatter(chosen, found) + 0.0 * logits.sum()  # every rank takes part in the backward pass
        return self._token_mean(loss, values, chosen)

    def _warn_if_empty(self, plan: Plan, batch: UpdateBatch) -> None:
        """Say once that the control does nothing, if its quota is below one token though there are tokens."""
        if plan.requested != 0 or self._warned or not bool(batch.mask.any()):
            return
        self._warned = True
        fraction = self.control.fraction  # pyright: ignore[reportAttributeAccessIssue]
        warn_user(
            f"{self.control.name}: fraction={fraction:g} of this update's response tokens is less than one, so "
            "nothing is selected and training runs as without a control. Take more tokens per update (at least "
            f"{math.ceil(1 / fraction)}), or a larger fraction.",
            EntropyControlWarning,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the control remembers."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.state = state


def carrying(
    reference: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    held: Float[Tensor, "B T"],
    mask: Tensor,
    ratio: bool,
) -> Float[Tensor, "B T"]:
    """Return the reference's log-probabilities with the gradient that the KL loses by `held`; their values stay.

    The KL is k(x) = e^x - x - 1 of x = reference - logprobs. TRL can multiply it by the ratio s of the response, which
    loses k(x) s times the mean of the detached gradients: dx = k(x) / k'(x) of that mean gives it back.

    Args:
        reference: ln pi_ref.
        logprobs: ln pi.
        held: the same values, detached on some tokens.
        mask: response tokens.
        ratio: TRL multiplies the KL by the response's ratio (`use_bias_correction_kl`).
    """
    lost = logprobs - held  # 0, with the gradient of the detached tokens
    if not ratio:
        return reference - lost
    x = (reference - logprobs).detach().double()
    share = torch.where(x == 0, 0.0, (x.expm1() - x) / x.expm1()).to(lost)
    mean = lost.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return reference - lost + share * mean


def control_parts(entropy_control: EntropyControl | None = None, entropy_change_rows: int = 0) -> list[Part]:
    """Return the part of an entropy control; none without one."""
    if entropy_control is not None:
        return [Control(entropy_control, entropy_change_rows)]
    if entropy_change_rows:
        raise UserError("entropy_change_rows needs an entropy control; without one, take Observe()")
    return []


def with_entropy_control(trainer_class: type[TrainerT], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer or RLOOTrainer that takes `entropy_control=`.

    An AsyncGRPOTrainer gets its own seam (`autotelic.trl.async_seam`). The others also take `entropy_change_rows` (see
    `Control`), `fused_head` and `shared_prefix` (see `autotelic.trl.fast_passes`); without a control they train as the
    base class does.

    Args:
        trainer_class: TRL's class or a subclass.
        settings: values of these keywords; the class that is returned then has the base class's signature.

    Raises:
        UserError: another class.
    """
    if any(base.__name__ == "AsyncGRPOTrainer" for base in trainer_class.__mro__) and not settings:
        return with_async_entropy_control(trainer_class)
    return with_parts(trainer_class, control_parts, fast_passes, **settings)


def group_facts(trainer: Any, rollout: Rollout) -> dict[str, Tensor]:
    """Return, for each row, whether its prompt's rewards are all equal, and their mean where all are 0 or 1."""
    if rollout.rewards is None:
        return {}
    total = (rollout.rewards * trainer.reward_weights.to(rollout.rewards.device).unsqueeze(0)).nansum(dim=1)
    group = trainer.num_generations if rollout.training else trainer.num_generations_eval
    if total.numel() % group:
        return {}
    groups, ids = total.view(-1, group), rollout.output[ROW_IDS]

    def by_row(values: Tensor) -> Tensor:
        return values.repeat_interleave(group).to(ids.device)[ids]

    found = {"flat": by_row(groups.amax(1) == groups.amin(1))}
    if bool(((total == 0) | (total == 1)).all()):
        found["accuracy"] = by_row(groups.mean(1).float())
    return found


def precision_of(trainer: Any, logprobs: Tensor) -> torch.dtype:
    """Return in which precision log-probabilities were computed: their own, or that of a lower autocast or model."""
    if logprobs.dtype not in (torch.float32, torch.float64):
        return logprobs.dtype
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(trainer.accelerator.mixed_precision))
    model = getattr(trainer.model, "dtype", torch.float32)
    return mixed or (model if model in (torch.bfloat16, torch.float16) else logprobs.dtype)


@functools.cache
def warn_once(message: str) -> None:
    """Log a message the first time it is given."""
    logging.getLogger(__name__).warning(message)


def warn_if_truncated(trainer: Any) -> None:
    """Say once that the sampler's log-probabilities are not those of the policy, where sampling cuts its tail off."""
    found = {name: getattr(trainer, name, None) for name in ("top_p", "top_k", "min_p")}
    cut = [
        name
        for name, off in (("top_p", (None, 1.0)), ("top_k", (None, 0)), ("min_p", (None, 0.0)))
        if found[name] not in off
    ]
    if cut:
        given = ", ".join(f"{name}={found[name]:g}" for name in cut)
        warn_once(
            f"{given}: the sampler's log-probabilities are those of the truncated distribution, so covariances read "
            "from them are biased; set refresh=True, or sample without truncation"
        )


def check_entropy_gradient(entropy: Tensor | None) -> None:
    """Refuse to train on entropies that TRL gives without a gradient."""
    if entropy is None or (torch.is_grad_enabled() and not entropy.requires_grad):
        raise UserError("this TRL gives entropies without a gradient, so an entropy term cannot train; use TRL >= 1.16")
