"""Co-rewarding: the vote that judges a response comes from another view than the response itself.

    I:   question q and its rephrasing q' judge each other:  r_i(q) = 1[answer_i = majority(q')], and the reverse
    II:  a slowly moving (EMA) teacher samples its own answers:  r_i(q) = 1[answer_i = majority of the teacher]

Reference: Zhang et al. 2025, arXiv:2508.00410.
Deviations: a prompt whose other view has no majority (nothing parseable, or a tie) is masked: a pseudo-label would
be an accident of order there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic.answers import cluster_group, extract
from autotelic.errors import UserError
from autotelic.rewards.groups import Group
from autotelic.rewards.label_free_reward import Batch, LabelFreeReward, RewardResult


def majority_answer(answers: Sequence[str | None], equivalence: Any = None, question: str = "") -> str | None:
    """Return an answer of the one largest cluster; ``None`` where there is none, or several are as large."""
    clusters = cluster_group(list(answers), equivalence=equivalence, question=question).clusters
    sizes = Counter(c for c in clusters if c >= 0).most_common(2)
    if not sizes or (len(sizes) == 2 and sizes[0][1] == sizes[1][1]):
        return None
    return answers[clusters.index(sizes[0][0])]


@dataclass(kw_only=True)
class _OtherView(LabelFreeReward):
    """A reward whose vote comes from elsewhere."""

    def votes(self, batch: Batch) -> list[str | None]:
        """Return the other view's majority answer for each prompt."""
        raise NotImplementedError  # abstract

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return whether each answer is the other view's majority answer."""
        out = torch.zeros(batch.clusters.shape, dtype=torch.float64)
        for p, (group, vote) in enumerate(zip(batch.groups, self.votes(batch), strict=True)):
            if vote is None:
                continue
            answers = [vote, *(row.answer for row in group.rows)]
            labels = cluster_group(answers, equivalence=self.equivalence, question=group.question).clusters
            out[p] = torch.tensor([float(label == labels[0]) for label in labels[1:]], dtype=torch.float64)
        return out

    def prompt_mask(self, batch: Batch) -> Bool[Tensor, " P"]:
        """Return the prompts whose other view has a majority."""
        return torch.tensor([vote is not None for vote in self.votes(batch)], dtype=torch.bool)


@dataclass(kw_only=True)
class CoRewardingI(_OtherView):
    """Rephrased questions judge each other; both groups must be in the same batch.

    Attributes:
        rephrased: Each prompt's partner: a map from prompt text to prompt text, in one direction or both.
    """

    name: ClassVar[str] = "co_rewarding_i"
    title: ClassVar[str] = "Co-rewarding-I"
    purpose: ClassVar[str] = "reward agreement with the majority on a rephrased question"
    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2508.00410"
    whole_batch: ClassVar[bool] = True
    rephrased: Mapping[str, str] = field(default_factory=dict)
    _votes: dict[str, str | None] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        """Make the map work in both directions."""
        super().__post_init__()
        self._partner = {**{v: k for k, v in self.rephrased.items()}, **dict(self.rephrased)}

    def score(
        self, groups: Sequence[Group], *, step: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> RewardResult:
        """Vote in every group first, then let the partners judge."""
        self._votes = {
            g.prompt: majority_answer([r.answer for r in g.rows], self.equivalence, g.question) for g in groups
        }
        return super().score(groups, step=step, progress=progress)

    def votes(self, batch: Batch) -> list[str | None]:
        """Return the partner's vote."""
        partners = [self._partner.get(group.prompt) for group in batch.groups]
        missing = [g.prompt for g, q in zip(batch.groups, partners, strict=True) if q is None or q not in self._votes]
        if missing:
            raise UserError(
                f"co_rewarding_i finds no partner in the batch for the prompt {missing[0][:60]!r}: map it in "
                "`rephrased` and keep both prompts in one batch"
            )
        return [self._votes[q] for q in partners if q is not None]


@dataclass(kw_only=True)
class CoRewardingII(_OtherView):
    """A teacher's majority answer is the pseudo-label.

    Attributes:
        teacher: Samples the EMA teacher: from prompts to a list of responses for each.
    """

    name: ClassVar[str] = "co_rewarding_ii"
    title: ClassVar[str] = "Co-rewarding-II"
    purpose: ClassVar[str] = "reward agreement with the majority of a slowly moving teacher"
    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2508.00410"
    teacher: Callable[[list[str]], Sequence[Sequence[str]]] | None = None
    _votes: dict[str, str | None] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        """Refuse a missing teacher."""
        super().__post_init__()
        if self.teacher is None:
            raise UserError("co_rewarding_ii needs a teacher: a function from prompts to sampled responses of each")

    def score(
        self, groups: Sequence[Group], *, step: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> RewardResult:
        """Sample the teacher once for the prompts of this batch."""
        prompts = list(dict.fromkeys(group.prompt for group in groups))
        assert self.teacher is not None
        samples = self.teacher(prompts) if prompts else []
        answers = [[extract(text) for text in texts] for texts in samples]
        questions = {group.prompt: group.question for group in groups}
        self._votes = {
            q: majority_answer(a, self.equivalence, questions[q]) for q, a in zip(prompts, answers, strict=True)
        }
        return super().score(groups, step=step, progress=progress)

    def votes(self, batch: Batch) -> list[str | None]:
        """Return the teacher's vote."""
        return [self._votes[group.prompt] for group in batch.groups]


@torch.no_grad()
def update_ema(teacher: torch.nn.Module, student: torch.nn.Module, decay: float) -> None:
    """Move the teacher: theta' <- decay theta' + (1 - decay) theta, parameter by parameter; buffers are copied."""
    if not 0 <= decay <= 1:
        raise UserError(f"decay must lie in [0, 1], got {decay}")
    for target, source in zip(teacher.parameters(), student.parameters(), strict=True):
        target.lerp_(source.to(target), 1 - decay)
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        target.copy_(source)
