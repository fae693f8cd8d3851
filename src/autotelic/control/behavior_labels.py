"""Policy labels of segments in continuous control: the behaviour's mean and log std at every step, cached once.

    known          as recorded with the episodes
    estimated      a network cloned from each policy id's own episodes
    pooled         one network cloned from all episodes
    deterministic  certain of the action taken (PPL-d): no parameters, the divergence is -log pi(a)
    shuffled       clones, with policy ids permuted over episodes: a control that must hurt
    wrong          clones, every episode under the next policy id: likewise

Reference: arXiv:2505.06273. Deviations: none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from autotelic.control.episodes import Episode
from autotelic.control.networks import GaussianPolicy
from autotelic.errors import UserError, closest

LabelKind = Literal["known", "estimated", "deterministic", "pooled", "shuffled", "wrong"]
UPDATES = 1500


def label_parameters(
    kind: str,
    episodes: Sequence[Episode],
    segments: tuple[Int[np.ndarray, "N S"], Int[np.ndarray, "N S"]],
    seed: int,
    source: Path | str = "the data",
) -> tuple[Float[Tensor, "N S A"], Float[Tensor, "N S A"]] | None:
    """Return the label's mean and log std of u at every step of every segment, or None for `deterministic`.

    Args:
        kind: one of `LabelKind`.
        episodes: recorded ones.
        segments: episode and step of every step of every segment.
        seed: of the clones and of the permutation.
        source: where the data lies, for the error.
    """
    if kind not in get_args(LabelKind):
        raise UserError(f"unknown policy label {kind!r}{closest(kind, get_args(LabelKind))}: {get_args(LabelKind)}.")
    if kind == "deterministic":
        return None
    if kind == "known":
        missing = [i for i, e in enumerate(episodes) if e.mean is None or e.log_std is None]
        if missing:
            raise UserError(
                f"{source}, episode {missing[0]}: behaviour parameters are missing (behavior_mean, behavior_log_std), "
                "and known policy labels need them. Record them, or use --labels estimated or deterministic."
            )
        means, stds = ([getattr(e, name) for e in episodes] for name in ("mean", "log_std"))
    else:
        means, stds = _cloned(kind, episodes, seed)
    return _gather(means, segments), _gather(stds, segments)


def _gather(rows: Sequence[np.ndarray], where: tuple[np.ndarray, np.ndarray]) -> Tensor:
    offset = np.concatenate([[0], np.cumsum([len(r) for r in rows])[:-1]])
    return torch.from_numpy(np.concatenate(rows)[offset[where[0]] + where[1]])


def _cloned(kind: str, episodes: Sequence[Episode], seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    ids = np.array([e.policy for e in episodes])
    names = np.unique(ids)
    if kind in ("shuffled", "wrong") and len(names) < 2:
        raise UserError(f"{kind} policy labels need two policy ids or more; this data has {len(names)}.")
    own = np.searchsorted(names, ids)
    if kind == "pooled":
        clones, own = [fit_clone(episodes, seed)], np.zeros_like(own)
    else:
        clones = [fit_clone([e for e in episodes if e.policy == n], seed + int(n)) for n in names]
    if kind == "shuffled":
        own = np.random.default_rng([seed, 5]).permutation(own)
    elif kind == "wrong":
        own = (own + 1) % len(names)
    results = [clones[k].parameters_at(e.observations[:-1]) for k, e in zip(own.tolist(), episodes, strict=True)]
    return [r[0] for r in results], [r[1] for r in results]


def fit_clone(episodes: Sequence[Episode], seed: int, hidden: Sequence[int] = (128, 128)) -> "ClonedPolicy":
    """Behaviour cloning of u: the mean by least squares, then one std per dimension from the residuals."""
    observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
    actions = torch.from_numpy(np.concatenate([e.actions for e in episodes]))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = ClonedPolicy(observations.shape[1], actions.shape[1], hidden)
    policy.inputs.fit(observations)
    optimizer = torch.optim.Adam(policy.body.parameters(), lr=1e-3)
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.9 * update / UPDATES)
        rows = torch.randint(len(actions), (256,), generator=generator)
        loss = mse_loss(policy(observations[rows])[0], actions[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
