"""Several rewards at once: normalised within the group, then summed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autotelic.errors import UserError
from autotelic.rewards.formulas import Normalize, normalized
from autotelic.rewards.groups import Row, gather_groups, prompt_key
from autotelic.rewards.label_free_reward import Context
from autotelic.tasks.conversations import Completion, Prompt


class MixedReward:
    """A weighted sum of rewards, each normalised within its group first, so that no scale drowns another.

    Works on any functions of TRL's protocol. A component that is the same for a whole group (a masked prompt, say) adds
    nothing to that group. Labels reach only a component that asks for them, such as `VerifierReward`.

    Args:
        components: Pairs of a reward function and its weight.
        normalize: "std", "range" or "none".
        num_generations: G; taken from the trainer, or from neighbouring equal prompts, where ``None``.
    """

    __name__ = "mixed"

    def __init__(
        self,
        components: Sequence[tuple[Callable[..., list[float]], float]],
        normalize: Normalize = "std",
        num_generations: int | None = None,
    ) -> None:
        if not components:
            raise UserError("a mixed reward needs at least one component")
        if normalize not in ("std", "range", "none"):
            raise UserError(f"unknown normalisation {normalize!r}: use 'std', 'range' or 'none'")
        self.components, self.num_generations = list(components), num_generations
        self.normalize: Normalize = normalize

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], completion_ids: Any = None, **kwargs: Any
    ) -> list[float]:
        """Return the weighted sums of this process's rows (TRL's protocol)."""
        columns = [
            component(prompts=prompts, completions=completions, completion_ids=completion_ids, **kwargs)
            for component, _ in self.components
        ]
        rows = [
            Row(prompt_key(prompt), "", None, {str(k): float(column[i] or 0.0) for k, column in enumerate(columns)})
            for i, prompt in enumerate(prompts)
        ]
        groups, places = gather_groups(rows, self.num_generations or Context.take(kwargs).num_generations)
        totals = []
        for group in groups:
            values = torch.tensor(
                [[r.stats[str(k)] for r in group.rows] for k in range(len(columns))], dtype=torch.float64
            )
            weights = torch.tensor([float(weight) for _, weight in self.components], dtype=torch.float64)
            totals.append((weights.unsqueeze(-1) * normalized(values, self.normalize)).sum(0))
        return [float(totals[g][i]) for g, i in places]
