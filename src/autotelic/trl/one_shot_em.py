"""One-shot entropy minimisation on TRL: the entropy of the model's own samples is the loss, and the only one.

    L = 1/|I| sum_{t in I} max(H_t, floor),   I = generated tokens, the first end token included, padding excluded

Sampling, log-probabilities and their entropies (with gradient, at the sampling temperature) are TRL's. The denominator
belongs to the whole update, on all ranks, so the gradient does not depend on how the batch is split.

Reference: Gao et al. 2025, arXiv:2505.20282; `token_sum` is EM-FT of Agarwal et al. 2025, arXiv:2505.15134.
Deviations: from the official script: aligned logits, the end token counts, a step is an optimizer update, every rank
draws its own rollouts, no repetition penalty, no top-p or top-k. See docs/papers/one_shot_em.md.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.runs.processes import stop_if_not_finite
from autotelic.trl.mixin import check_entropy_gradient, response_mask
from autotelic.trl.passes import FusedHeadMixin


@dataclass(frozen=True)
class EntropyMinimization:
    """Settings of the entropy term; as the only term of the loss it is one-shot EM.

    Args:
        coef: multiplies the term; 1 in the paper. Negative values maximise entropy.
        reduction: `token_mean`: over all tokens of the update; `sequence_mean`: the mean over responses of their token
            means; `token_sum`: the plain sum (EM-FT).
        floor: nats; tokens whose entropy is below it are left alone.
        positions: which tokens of each response count: `all`, the `last` share, or the share of `top_entropy`.
        position_fraction: that share, in (0, 1].
        compat: `official` takes the official script's positions, `ln(p + 1e-12)` and mean of micro-batch means, bug for
            bug (a second forward pass); for comparisons only.
    """

    coef: float = 1.0
    reduction: str = "token_mean"
    floor: float = 0.0
    positions: str = "all"
    position_fraction: float = 1.0
    compat: str = "none"

    def __post_init__(self) -> None:
        if self.reduction not in ("token_mean", "sequence_mean", "token_sum"):
            raise UserError(f"unknown reduction {self.reduction!r}: use token_mean, sequence_mean or token_sum")
        if self.positions not in ("all", "last", "top_entropy"):
            raise UserError(f"unknown positions {self.positions!r}: use all, last or top_entropy")
        if not 0 < self.position_fraction <= 1:
            raise UserError(
                f"position_fraction must be in (0, 1], got {self.position_fraction}: it is a share of tokens"
            )
        if self.compat not in ("none", "official"):
            raise UserError(f"unknown compat {self.compat!r}: use none or official")
        if self.compat == "official" and (self.reduction, self.positions, self.floor) != ("token_mean", "all", 0):
            raise UserError("compat official is one loss only: leave out em_reduction, em_positions and em_floor")
        if self.floor < 0:
            raise UserError(f"floor must not be negative, got {self.floor}: entropy is never below zero")

    def position_counts(self, mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
        """Return how many tokens of each response count; at least one of a response that has any."""
        lengths = mask.sum(-1)
        return lengths if self.positions == "all" else (lengths * self.position_fraction).ceil().long()

    def position_mask(self, entropy: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Return the tokens that count. The choice is made within each response, so it ignores the batch's split."""
        if self.positions == "all":
            return mask
        by_position = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
        score = by_position if self.positions == "last" else entropy.detach().float()
        order = score.masked_fill(~mask, -math.inf).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        return mask & (rank < self.position_counts(mask).unsqueeze(-1))


class EntropyMinimizationMixin(FusedHeadMixin):
    """Adds the entropy term to a GRPOTrainer's loss (`with_entropy_minimization`).

    With a reward that never differs within a group, such as `autotelic.rewards.constant`, the term is the whole loss.

    Keyword Args:
        entropy_minimization: an `EntropyMinimization`, or None to train as the base class does.
        fused_head, shared_prefix: auto, on or off; see `autotelic.trl.passes`.
    """

    def __init__(self, *args: Any, entropy_minimization: EntropyMinimization | None = None, **kwargs: Any):
        self.entropy_minimization: Any = entropy_minimization
        self._captured: Tensor | None = None
        self._capturing = False
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Count the tokens that the term runs over, on all ranks, before anything is split."""
        output = super()._generate_and_score_completions(inputs)
        if self.entropy_minimization is not None:
            count = self.entropy_minimization.position_counts(response_mask(output)).sum()
            output["num_em_tokens"] = self.accelerator.gather(count).sum()
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return TRL's loss plus the entropy term, from the same forward pass."""
        if self.entropy_minimization is None:
            return super()._compute_loss(model, inputs)
        if self.entropy_minimization.compat == "official":
            term = self._official_loss(model, inputs)
            loss = super()._compute_loss(model, inputs)
        else:
            self._capturing, self._captured = True, None
            try:
                loss = super()._compute_loss(model, inputs)
            finally:
                self._capturing = False
            term = self._entropy_loss(inputs)
        loss = loss + self.entropy_minimization.coef * term
        stop_if_not_finite(self, "loss", loss, inputs["prompt_ids"])
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Keep the entropies of the pass that computes the loss."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._capturing and self._captured is None:
            self._captured = result[1]
        return result

    def _split_matters(self) -> bool:
        """Also in the official script's loss, a mean of micro-batch means."""
        official = self.entropy_minimization is not None and self.entropy_minimization.compat == "official"
        return official or super()._split_matters()

    def _official_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return this micro-batch's part of the official script's loss: a mean of micro-batch means."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        loss = F.entropy_minimization_official(
            model(input_ids=ids, attention_mask=attention).logits,
            ids,
            inputs["prompt_mask"].sum(-1),
            pad_id=self.processing_class.pad_token_id,
            temperature=self.temperature,
        )
        self._log_loss(loss)
        return loss / (self.current_gradient_accumulation_steps if self.model.training else 1)

    def _entropy_loss(self, inputs: dict[str, Any]) -> Tensor:
        settings, entropy, mask = self.entropy_minimization, self._captured, response_mask(inputs)
        self._captured = None
        check_entropy_gradient(entropy)
        assert entropy is not None
        chosen = settings.position_mask(entropy, mask)
        floored = entropy.clamp(min=settings.floor) if settings.floor else entropy
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        loss = reduce_entropy(
            floored,
            chosen,
            settings.reduction,
            tokens=inputs["num_em_tokens"].clamp(min=1)
            / self.accelerator.num_processes
            * (accumulation / self.args.steps_per_generation if self.model.training else 1.0),
            responses=mask.shape[0] * accumulation,
            num_processes=self.accelerator.num_processes,
        )
        self._log_loss(loss * accumulation)
        return loss

    def _log_loss(self, loss: Tensor) -> None:
        """Record the mean over processes, which is how data parallelism takes it."""
        mode = "train" if self.model.training else "eval"
        mean = F.global_sum(loss.detach()) / self.accelerator.num_processes
        self._metrics[mode]["train/em_loss"].append(float(mean))


def reduce_entropy(
    entropy: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    reduction: str,
    *,
    tokens: Tensor | float,
    responses: int,
    num_processes: int,
) -> Float[Tensor, ""]:
    """Return one micro-batch's part of the loss; the parts of an update add up to the reduction over all of it.

    Args:
        entropy: nats per token.
        mask: the tokens that count.
        reduction: see `EntropyMinimization`.
        tokens: tokens of the update, per rank.
        responses: responses of the update on this rank.
        num_processes: ranks; gradients are averaged over them, which `token_sum` must undo.
    """
    if reduction == "token_mean":
        return F.reduce_tokens(entropy, mask, denominator=tokens)
    if reduction == "sequence_mean":
        return F.sequence_means(entropy, mask).sum() / responses
    return F.masked_sum(entropy, mask) * num_processes


def with_entropy_minimization(trainer_class: type) -> type:
    """Return a subclass of `trainer_class` (GRPOTrainer or a subclass) that takes `entropy_minimization=`."""
    if issubclass(trainer_class, EntropyMinimizationMixin):
        return trainer_class
    return type(f"EntropyMinimizing{trainer_class.__name__}", (EntropyMinimizationMixin, trainer_class), {})
