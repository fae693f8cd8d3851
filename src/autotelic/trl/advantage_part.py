"""Other advantage estimators on the same trainer: they take the place of TRL's, before anything else reads them.

    grpo                     TRL's own, by its `scale_rewards`
    rloo                     A = n/(n-1) (r - mean)
    max_rl                   A = (r - mean) / mean;  rewards must not be negative
    reinforce_pp             A = r, whitened over the response tokens of the rollout
    reinforce_pp_baseline    A = r - mean, whitened likewise

The equations and their sources are in `autotelic.functional.advantages`; mean and n are those of a prompt's responses,
the rollout is that of all ranks. The loss stays TRL's, with its clip and its token-level ratio.
"""

from typing import TypeVar

from autotelic import functional as F
from autotelic.errors import UserError, one_of
from autotelic.runs import training_methods
from autotelic.trl.seam import ROW_IDS, Part, Rollout, response_mask, with_parts

ESTIMATORS = ("grpo", *training_methods.ESTIMATORS)

TrainerT = TypeVar("TrainerT")


class Advantages(Part):
    """Replaces TRL's advantages.

    Args:
        estimator: one of `ESTIMATORS`.
    """

    order = -1

    def __init__(self, estimator: str):
        if estimator not in ESTIMATORS:
            raise UserError(f"unknown advantage {estimator!r}{one_of(estimator, ESTIMATORS)}")
        self.estimator = estimator

    def check(self) -> None:
        """Refuse a trainer that has no groups, or normalises each reward by itself."""
        if not hasattr(self.trainer, "loss_type"):
            raise UserError(f"advantage={self.estimator} is for GRPOTrainer: RLOOTrainer has an estimator of its own")
        if getattr(self.trainer, "multi_objective_aggregation", "") == "normalize_then_sum":
            raise UserError(
                f"advantage={self.estimator} is taken from the sum of the rewards: set "
                "multi_objective_aggregation='sum_then_normalize'"
            )
        if self.estimator != "grpo" and getattr(self.trainer, "scale_rewards", "group") == "batch":
            raise UserError(f"scale_rewards='batch' is of advantage=grpo: {self.estimator} scales in its own way")

    def on_rollout(self, rollout: Rollout) -> None:
        """Write the advantages of this rank's rows."""
        if self.estimator == "grpo" or rollout.rewards is None:
            return
        trainer, output = self.trainer, rollout.output
        total = (rollout.rewards * trainer.reward_weights.to(rollout.rewards.device)).nansum(dim=1)
        groups = total.view(-1, trainer.num_generations if rollout.training else trainer.num_generations_eval)
        if self.estimator == "max_rl":
            found = F.group_advantages(groups, scale="mean").flatten()
        elif self.estimator == "rloo":
            found = F.group_advantages(groups, scale="none", baseline="leave_one_out").flatten()
        else:
            baseline = groups.mean(1, keepdim=True) if self.estimator == "reinforce_pp_baseline" else 0.0
            found = (groups - baseline).flatten()
        own = found.to(output["advantages"].device)[output[ROW_IDS]]
        if self.estimator.startswith("reinforce_pp"):
            own = F.whitened_advantages(own, response_mask(output), across_ranks=True)
        output["advantages"] = own.to(output["advantages"].dtype)


def advantage_parts(advantage: str = "grpo") -> list[Part]:
    """Return the part of another estimator; none for TRL's own."""
    return [] if advantage == "grpo" else [Advantages(advantage)]


def with_advantages(trainer_class: type[TrainerT], **settings: str) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer that takes `advantage=`, one of `ESTIMATORS`."""
    return with_parts(trainer_class, advantage_parts, **settings)
