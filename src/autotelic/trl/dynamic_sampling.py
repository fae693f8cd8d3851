"""Dynamic sampling: groups without signal are replaced by other prompts until the rollout is full.

    while some group has no advantage but zero, and the rollout may be refilled once more:
        sample as many further prompts as there are such groups;  put groups with signal in their places

Every slot of the rollout then teaches something, for the price of more sampling, which `sampling/extra_share` shows.
The choice is made on the rows of all processes: which prompts are drawn, and which group goes where, does not depend on
the number of processes.

Reference: Yu et al. 2025, arXiv:2503.14476 (DAPO), Sec. 3.2; verl-recipe, commit 48ea0a7, dapo_ray_trainer.py.
Deviations: only the missing groups are sampled again, where the code samples a whole batch; where the bound is reached,
the rest of the groups stays as it is, where the code stops with an error.
"""

from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from autotelic.errors import UserError
from autotelic.rewards.label_free_reward import LabelFreeReward
from autotelic.trl.seam import Micro, Part, Rollout, response_mask, with_parts

PADDED_LEFT = ("prompt_ids", "prompt_mask")
TrainerT = TypeVar("TrainerT")


class DynamicSampling(Part):
    """Refills a rollout; see the module.

    Args:
        max_generation_batches: how often prompts are sampled for one rollout, the first time included; DAPO's code
            takes 10.
    """

    order = 1

    def __init__(self, max_generation_batches: int = 10):
        if max_generation_batches < 1:
            raise UserError(f"max_generation_batches must be at least 1, got {max_generation_batches}")
        self.rounds = max_generation_batches

    def check(self) -> None:
        """Refuse what mixes the groups of a rollout: a refill would then change the others."""
        trainer = self.trainer
        mixing = {
            "scale_rewards='batch'": getattr(trainer, "scale_rewards", "") == "batch",
            "normalize_advantages": bool(getattr(trainer, "normalize_advantages", False)),
            "multi_objective_aggregation='normalize_then_sum'": getattr(trainer, "multi_objective_aggregation", "")
            == "normalize_then_sum",
        }
        for reward in trainer.reward_funcs:
            if isinstance(reward, LabelFreeReward):
                mixing[f"the reward {reward.name}"] = reward.whole_batch or reward.prompt_fraction < 1
        for name, found in mixing.items():
            if found:
                raise UserError(f"dynamic sampling replaces groups one by one, and {name} reads all of them: leave it")
        if not hasattr(trainer.train_dataset, "__getitem__"):
            raise UserError("dynamic sampling draws further prompts from the data set, which a stream does not allow")

    def on_rollout(self, rollout: Rollout) -> None:
        """Replace the groups that have no signal."""
        if not rollout.training:
            return
        if "pixel_values" in rollout.output:
            raise UserError("dynamic sampling is for text-only prompts: images are not stored row by row")
        group, gather = self.trainer.num_generations, self.trainer.accelerator.gather
        signal = with_signal(gather(rollout.output["advantages"]), group)
        number, total, used, sampled = len(signal), int((~signal).sum()), 1, 0
        while not bool(signal.all()) and used < self.rounds:
            slots = (~signal).nonzero().flatten()
            count = divisible(len(slots), group, self.trainer.accelerator.num_processes)
            rows = self._rows(count, used)
            share = len(rows) * group // self.trainer.accelerator.num_processes
            first = self.trainer.accelerator.process_index * share
            own = [row for row in rows for _ in range(group)][first : first + share]
            extra = self.trainer.roll_out(own, [part for part in self.trainer.parts if part.order < self.order])
            self._fill(rollout, extra, slots, rows)
            used, sampled = used + 1, sampled + count
            signal = with_signal(gather(rollout.output["advantages"]), group)
        missing = int((~signal).sum())
        self.record(
            {
                "sampling/extra_share": sampled / number,
                "sampling/refilled": float(total - missing),
                "sampling/without_signal": missing / number,
            }
        )

    def _rows(self, count: int, attempt: int) -> list[dict[str, Any]]:
        """Return further prompts, the same ones on every process."""
        data, state = self.trainer.train_dataset, self.trainer.state
        generator = torch.Generator().manual_seed(hash((self.trainer.args.seed, state.global_step, attempt)) % 2**63)
        drawn = torch.randperm(len(data), generator=generator)[:count].tolist()
        return [data[i] for i in (drawn * (-(-count // len(drawn))))[:count]]

    def _fill(self, rollout: Rollout, extra: Rollout, slots: Tensor, rows: list[dict[str, Any]]) -> None:
        """Put groups of `extra` that have signal into empty slots, in order; each process keeps its own rows."""
        accelerator, group = self.trainer.accelerator, self.trainer.num_generations
        found = everywhere(accelerator, extra.output)
        good = with_signal(found["advantages"], group).nonzero().flatten()[: len(slots)]
        own = len(rollout.output["completion_ids"])
        rollout.output |= {name: rollout.output[name].clone() for name in per_row(rollout.output)}
        first = accelerator.process_index * own
        for slot, source in zip(slots[: len(good)].tolist(), good.tolist(), strict=True):
            for i in range(group):
                target, row = slot * group + i, source * group + i
                if rollout.rewards is not None and extra.rewards is not None:
                    rollout.rewards[target] = extra.rewards[row]
                if first <= target < first + own:
                    put(rollout.output, target - first, found, row)
                    rollout.rows[target - first] = rows[source]
        if "num_items_in_batch" in rollout.output:
            tokens = response_mask(rollout.output).sum()
            rollout.output["num_items_in_batch"] = accelerator.gather(tokens).sum()


def with_signal(advantages: Tensor, group: int) -> Bool[Tensor, " P"]:
    """Return the groups of which some response has an advantage other than zero."""
    return (advantages.view(-1, group, *advantages.shape[1:]) != 0).flatten(1).any(1)


def divisible(count: int, group: int, processes: int) -> int:
    """Return the smallest number of groups, `count` or more, whose rows the processes can share equally."""
    return next(number for number in range(count, count + processes + 1) if number * group % processes == 0)


def per_row(output: Micro) -> list[str]:
    """Return the names of the tensors that have a row for each response."""
    rows = len(output["completion_ids"])
    return [name for name, x in output.items() if isinstance(x, Tensor) and x.dim() and x.shape[0] == rows]


def everywhere(accelerator: Any, output: Micro) -> Micro:
    """Return the rows of all processes, padded to one width."""
    found = {}
    for name in per_row(output):
        x = output[name]
        if x.dim() > 1:
            x = accelerator.pad_across_processes(x, dim=1, pad_first=name in PADDED_LEFT)
        found[name] = accelerator.gather(x)
    return found


def put(output: Micro, target: int, found: Micro, row: int) -> None:
    """Overwrite a row by one of another rollout; the narrower of the two is padded."""
    for name in per_row(output):
        if name == "row_ids":  # the slot's own
            continue
        if name not in found:  # what is only sometimes known, as the share of right responses
            output[name][target] = torch.nan
            continue
        value = found[name][row]
        if value.dim():
            left, missing = name in PADDED_LEFT, len(value) - output[name].shape[1]
            output[name] = widened(output[name], max(missing, 0), left)
            value = widened(value, max(-missing, 0), left)
        output[name][target] = value


def widened(x: Tensor, columns: int, left: bool) -> Tensor:
    """Return a tensor with further columns of zeros, which no mask takes in."""
    return torch.nn.functional.pad(x, (columns, 0) if left else (0, columns)) if columns else x


def dynamic_parts(max_generation_batches: int = 1) -> list[Part]:
    """Return the part that refills rollouts; none where prompts are sampled once."""
    return [DynamicSampling(max_generation_batches)] if max_generation_batches != 1 else []


def with_dynamic_sampling(trainer_class: type[TrainerT], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer or RLOOTrainer that takes `max_generation_batches=`."""
    return with_parts(trainer_class, dynamic_parts, **settings)
