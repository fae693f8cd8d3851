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
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.trl.control_part import check_entropy_gradient
from autotelic.trl.entropy_guard import EntropyGuard
from autotelic.trl.fast_passes import fast_passes
from autotelic.trl.seam import LossInputs, Micro, Part, Rollout, forward_inputs, response_mask, with_parts

TrainerT = TypeVar("TrainerT")


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
        guard: end the run, with the weights from before, where one update divides the entropy by more than this; 0:
            never (`autotelic.trl.entropy_guard`).
    """

    coef: float = 1.0
    reduction: str = "token_mean"
    floor: float = 0.0
    positions: str = "all"
    position_fraction: float = 1.0
    compat: str = "none"
    guard: float = 10.0

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
            raise UserError("compat official is one loss only: leave out reduction, positions and floor")
        if self.floor < 0:
            raise UserError(f"floor must not be negative, got {self.floor}: entropy is never below zero")
        if self.guard != 0 and self.guard <= 1:
            raise UserError(f"guard must be above 1, or 0 for none, got {self.guard}: it divides the entropy")

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


class EntropyTerm(Part):
    """Adds the entropy term to a GRPOTrainer's loss.

    With a reward that never differs within a group, such as `autotelic.rewards.constant`, the term is the whole loss.
    """

    def __init__(self, minimization: EntropyMinimization):
        self.minimization = minimization

    def check(self) -> None:
        """Refuse a trainer whose loss is scaled in another way; guard the others."""
        if not hasattr(self.trainer, "loss_type"):
            raise UserError("entropy minimisation works on trl.GRPOTrainer and its subclasses only")
        if self.minimization.guard:
            self.trainer.add_callback(EntropyGuard(self.trainer, self.minimization.guard))

    only_our_head = "entropies near zero keep their relative precision in it"

    @property
    def split_matters(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the loss is the official script's, a mean of micro-batch means."""
        return self.minimization.compat == "official"

    def on_rollout(self, rollout: Rollout) -> None:
        """Count the tokens of an evaluation batch, which is not split."""
        if not rollout.training:
            self._count([rollout.output])

    def on_generation(self, micro_batches: list[Micro]) -> list[Micro]:
        """Count the tokens that the term runs over, on all ranks, after every row has left that will leave."""
        self._count(micro_batches)
        return micro_batches

    def _count(self, micro_batches: list[Micro]) -> None:
        counts = [self.minimization.position_counts(response_mask(micro)).sum() for micro in micro_batches]
        total = self.trainer.accelerator.gather(torch.stack(counts).sum()).sum()
        for micro in micro_batches:
            micro["num_em_tokens"] = total

    def loss_term(self, loss: LossInputs) -> Tensor:
        """Return this micro-batch's part of the term, from TRL's forward pass."""
        official = self.minimization.compat == "official"
        return self.minimization.coef * (self._official(loss) if official else self._entropy(loss))

    def _official(self, loss: LossInputs) -> Tensor:
        """Return this micro-batch's part of the official script's loss: a mean of micro-batch means."""
        ids, attention, _ = forward_inputs(loss.micro)
        found = F.entropy_minimization_official(
            loss.model(input_ids=ids, attention_mask=attention).logits,
            ids,
            loss.micro["prompt_mask"].sum(-1),
            pad_id=self.trainer.processing_class.pad_token_id,
            temperature=self.trainer.temperature,
        )
        self._log(found, loss.training)
        return found / (self.trainer.current_gradient_accumulation_steps if loss.training else 1)

    def _entropy(self, loss: LossInputs) -> Tensor:
        settings, entropy, mask, trainer = self.minimization, loss.entropies, loss.mask, self.trainer
        check_entropy_gradient(entropy)
        accumulation = trainer.current_gradient_accumulation_steps if loss.training else 1
        found = F.reduce_entropy(
            entropy,
            settings.position_mask(entropy, mask),
            settings.reduction,
            floor=settings.floor,
            tokens=loss.micro["num_em_tokens"].clamp(min=1)
            / trainer.accelerator.num_processes
            * (accumulation / trainer.args.steps_per_generation if loss.training else 1.0),
            responses=mask.shape[0] * accumulation,
            num_processes=trainer.accelerator.num_processes,
        )
        self._log(found * accumulation, loss.training)
        return found

    def _log(self, value: Tensor, training: bool) -> None:
        """Record the mean over processes, which is how data parallelism takes it."""
        mean = F.global_sum(value.detach()) / self.trainer.accelerator.num_processes
        self.trainer._metrics["train" if training else "eval"]["train/em_loss"].append(float(mean))


def minimization_parts(entropy_minimization: EntropyMinimization | None = None) -> list[Part]:
    """Return the part of entropy minimisation; none without settings."""
    return [] if entropy_minimization is None else [EntropyTerm(entropy_minimization)]


def with_entropy_minimization(trainer_class: type[TrainerT], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer that takes `entropy_minimization=`.

    It also takes `fused_head` and `shared_prefix` (see `autotelic.trl.fast_passes`); without settings it trains as the
    base class does.

    Args:
        trainer_class: TRL's class or a subclass.
        settings: values of these keywords; the class that is returned then has the base class's signature.
    """
    return with_parts(trainer_class, minimization_parts, fast_passes, **settings)
