"""Controls: rewards that know nothing. A gain that `RandomReward` also gives is not a gain of the method."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.answers import extract
from autotelic.errors import UserError
from autotelic.rewards.label_free_reward import Batch, LabelFreeReward
from autotelic.runs.method_settings import setting


@dataclass(kw_only=True)
class RandomReward(LabelFreeReward):
    """1 with probability p, whatever the response says.

    The draw is a hash of the seed, the step, the prompt and the response's place in its group and in the batch: it is
    reproducible, and does not depend on how many processes share the batch.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "random reward"
    purpose: ClassVar[str] = "a control run: reward at random"
    p: float | int = setting(0.5, "probability of a reward of 1")
    seed: int = setting(0, "another seed gives another, independent sequence")

    def __post_init__(self) -> None:
        """Refuse what is not a probability."""
        super().__post_init__()
        if not 0 <= self.p <= 1:
            raise UserError(f"p must be a probability in [0, 1], got {self.p}")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return independent draws."""
        return torch.tensor(
            [
                [float(self._uniform(batch.step, g.prompt, g.first + i) < self.p) for i in range(len(g.rows))]
                for g in batch.groups
            ],
            dtype=torch.float64,
        )

    def _uniform(self, step: int, prompt: str, place: int) -> float:
        digest = hashlib.sha256(f"{self.seed}\0{step}\0{place}\0{prompt}".encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") / 2.0**64


@dataclass(kw_only=True)
class ConstantReward(LabelFreeReward):
    """The same reward for every response: no advantage, the weakest control."""

    name: ClassVar[str] = "constant"
    title: ClassVar[str] = "constant reward"
    purpose: ClassVar[str] = "a control run: every response gets the same reward"
    value: float | int = setting(0.0, "the reward")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the constant."""
        return torch.full(batch.clusters.shape, float(self.value), dtype=torch.float64)


@dataclass(kw_only=True)
class FormatReward(LabelFreeReward):
    r"""1 where the response states its answer in the required form, right or wrong."""

    name: ClassVar[str] = "format"
    title: ClassVar[str] = "format reward"
    purpose: ClassVar[str] = "a control run: reward an answer in the required form, right or wrong"
    form: tuple[str, ...] = setting(("boxed",), "ways to state an answer, any of which will do")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return whether an answer was found in the required form."""
        return torch.tensor(
            [[float(extract(row.text, methods=self.form) is not None) for row in g.rows] for g in batch.groups],
            dtype=torch.float64,
        )
