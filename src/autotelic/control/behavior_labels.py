"""Policy labels of segments in continuous control: the behaviour's mean and log std at every step, cached once.

    known          as recorded with the episodes
    estimated      a network cloned from each policy id's own episodes
    pooled         one network cloned from all episodes
    deterministic  certain of the action taken (PPL-d): no parameters, the divergence is -log pi(a)
    shuffled       clones, with policy ids permuted over episodes: a control that must hurt
    wrong          clones, every episode under the next policy id: likewise

Reference: arXiv:2505.06273.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from autotelic.control.episodes import Episode
from autotelic.control.networks import GaussianPolicy, regress_mean
from autotelic.errors import UserError, one_of

LabelKind = Literal["known", "estimated", "deterministic", "pooled", "shuffled", "wrong"]
UPDATES = 1500


@dataclass(frozen=True)
class PolicyLabels:
    """The policies of a data set, and under which of them each episode's segments are compared.

    Attributes:
        home: policy that produced each episode, 0 .. K - 1.
        owner: policy that is its label: `home`, unless labels are wrong on purpose.
        label: mean and log std of u under the label, at every step of each episode; None for `deterministic`.
        own: the same under the policy that produced the episode.
    """

    home: Int[np.ndarray, " E"]
    owner: Int[np.ndarray, " E"]
    label: tuple[list[np.ndarray], list[np.ndarray]] | None
    own: tuple[list[np.ndarray], list[np.ndarray]] | None

    @property
    def stochastic(self) -> bool:
        """Whether actions are random: then one recorded future is a biased look-ahead."""
        return self.own is None or any(float(log_std.max()) > -10 for log_std in self.own[1])

    def at(
        self, segments: tuple[Int[np.ndarray, "N S"], Int[np.ndarray, "N S"]]
    ) -> tuple[Float[Tensor, "N S A"], Float[Tensor, "N S A"]] | None:
        """Return the label's mean and log std at every step of every segment (its episode and its step)."""
        return None if self.label is None else (_gather(self.label[0], segments), _gather(self.label[1], segments))


def policy_labels(kind: str, episodes: Sequence[Episode], seed: int, source: Path | str = "the data") -> PolicyLabels:
    """Return the policy labels of a data set.

    Args:
        kind: one of `LabelKind`.
        episodes: recorded ones.
        seed: of the clones and of the permutation.
        source: where the data lies, for the error.
    """
    if kind not in get_args(LabelKind):
        raise UserError(f"unknown policy label {kind!r}{one_of(kind, get_args(LabelKind))}")
    ids = np.array([e.policy for e in episodes])
    names = np.unique(ids)
    home = np.searchsorted(names, ids)
    if kind == "deterministic":
        return PolicyLabels(home, home, None, None)
    if kind == "known":
        missing = [i for i, e in enumerate(episodes) if e.mean is None or e.log_std is None]
        if missing:
            raise UserError(
                f"{source}, episode {missing[0]}: behaviour parameters are missing (behavior_mean, behavior_log_std), "
                "and known policy labels need them. Record them, or use --labels estimated or deterministic."
            )
        means, stds = ([getattr(e, name) for e in episodes] for name in ("mean", "log_std"))
        return PolicyLabels(home, home, (means, stds), (means, stds))
    if kind in ("shuffled", "wrong") and len(names) < 2:
        raise UserError(f"{kind} policy labels need two policy ids or more; this data has {len(names)}.")
    if kind == "pooled":
        home = np.zeros_like(home)
    clones = [
        fit_clone([e for e, h in zip(episodes, home.tolist(), strict=True) if h == k], seed + k)
        for k in range(int(home.max()) + 1)
    ]
    owner = home
    if kind == "shuffled":
        owner = np.random.default_rng([seed, 5]).permutation(home)
    elif kind == "wrong":
        owner = (home + 1) % len(names)
    own = _parameters(clones, home, episodes)
    return PolicyLabels(home, owner, own if owner is home else _parameters(clones, owner, episodes), own)


def _parameters(
    clones: "Sequence[ClonedPolicy]", policy: np.ndarray, episodes: Sequence[Episode]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    found = [clones[k].parameters_at(e.observations[:-1]) for k, e in zip(policy.tolist(), episodes, strict=True)]
    return [f[0] for f in found], [f[1] for f in found]


def _gather(rows: Sequence[np.ndarray], where: tuple[np.ndarray, np.ndarray]) -> Tensor:
    offset = np.concatenate([[0], np.cumsum([len(r) for r in rows])[:-1]])
    return torch.from_numpy(np.concatenate(rows)[offset[where[0]] + where[1]])


def fit_clone(episodes: Sequence[Episode], seed: int, hidden: Sequence[int] = (128, 128)) -> "ClonedPolicy":
    """Behaviour cloning of u: the mean by least squares, then one std per dimension from the residuals."""
    observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
    actions = torch.from_numpy(np.concatenate([e.actions for e in episodes]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = ClonedPolicy(observations.shape[1], actions.shape[1], hidden)
    for _ in regress_mean(policy, observations, actions, UPDATES, seed, decay=True):
        pass
    with torch.no_grad():
        residual = actions - policy.eval()(observations)[0]
        policy.log_stds.copy_(residual.std(0).clamp(min=1e-3).log())
    return policy


class ClonedPolicy(GaussianPolicy):
    """A Gaussian policy whose std is one number per action dimension."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        """Start with a std of 1."""
        super().__init__(observation_dim, action_dim, hidden, std=1.0)
        self.log_stds: Tensor
        self.register_buffer("log_stds", torch.zeros(action_dim))

    def forward(
        self, observations: Float[Tensor, "*batch O"]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch A"]]:
        """Return mean and log std of u."""
        mean, _ = super().forward(observations)
        return mean, self.log_stds.expand_as(mean)
