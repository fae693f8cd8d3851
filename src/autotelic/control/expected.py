"""The expected look-ahead for networks: per behaviour, a regression of discounted futures on (state, action).

    Dbar(s, a; mu) = E_mu sum_{l>=1} gamma^l d(s_l),   d(s) = KL(mu(.|s) || pi(.|s))  of the *present* policy pi

Least squares with features phi and eligibility traces z (LSTD(lambda)) is linear in d, so that it can be done before
training and serve every pi:

    Dbar(s, a) = phi(s, a)' B(pi),   B(pi) = sum_j c_j d(s_j),   c_j = gamma A^-1 z_{j-1},
    A = sum_t z_t (phi_t - gamma phi_{t+1})',   z_t = phi_t + gamma lambda z_{t-1}

over the recorded states s_j of the behaviour's episodes; an episode that the clock ends is continued by phi' B. For
`weights="tail"` the features are those of the state after the segment, and the sum begins there.

Each update reads a sample of the recorded states. Drawn evenly, 2048 of them gave B an error as large as the margins
that it decides; a running mean over updates hid that, and followed the policy too late, so that training swung. So
states are drawn in proportion to their effect on the segments, and a sample's coefficients are shifted by least squares
until its B is exact for every d that is linear in features of the state (calibration weights). What is left is the
sampling error of the rest of d. The samples are made before training; each update takes one at random.

Needs: episodes with policy ids, and the label's parameters at every step (`known`, or a clone). Costs, an update: one
more pass over `SAMPLED` states per behaviour (at most `SAMPLED_IN_ALL`); before training, one least squares each.

References: arXiv:2505.06273, Fig. 1 (the expectation); Boyan 2002, "Technical update: least-squares temporal difference
learning" (LSTD(lambda)); Deville and Sarndal 1992, "Calibration estimators in survey sampling". Deviations: derived
here; the paper does not say how it computes the expectation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from autotelic.control.episodes import Episode
from autotelic.control.segments import Preferences
from autotelic.errors import UserError

Number = float | int
TRACE = 0.9  # lambda: 0 trusts the features most, 1 the recorded futures
RIDGE = 1e-4  # of A, in units of the features' mean square
QUADRATIC_UP_TO = 12  # dimensions of (state, action) whose products are all taken; beyond, random ReLU features
RANDOM_FEATURES = 256
STORED = 50_000  # recorded states of a behaviour that stand for all of them
SAMPLED, SAMPLED_IN_ALL = 2048, 4096  # recorded states per update
SAMPLES = 16  # prepared ones
CALIBRATION_RIDGE = 1e-8  # of the features' mean square: some may be constant
Divergence = Callable[[Int[Tensor, " J"]], Float[Tensor, " J"]]
Sample = tuple[Int[Tensor, " J"], Float[Tensor, "J F"]]  # rows of one behaviour, and the coefficients they stand in for


class Features:
    """1, x and products of x (few dimensions), or random ReLU features; x is standardised and bounded."""

    def __init__(self, rows: Float[Tensor, "M D"], seed: int = 0) -> None:
        """Take the scale from data."""
        spread = rows.std(0)
        self.center, self.scale = rows.mean(0), torch.where(spread > 1e-4, spread, torch.ones_like(spread))
        generator, size = torch.Generator().manual_seed(seed), rows.shape[1]
        self.products = torch.triu_indices(size, size) if size <= QUADRATIC_UP_TO else None
        self.directions = torch.randn(size, RANDOM_FEATURES, generator=generator) / size**0.5
        self.offsets = torch.randn(RANDOM_FEATURES, generator=generator)

    def __call__(self, rows: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Evaluate."""
        x = ((rows - self.center) / self.scale).clamp(-10, 10)
        more = (
            torch.relu(x @ self.directions + self.offsets)
            if self.products is None
            else x[..., self.products[0]] * x[..., self.products[1]]
        )
        return torch.cat([torch.ones_like(x[..., :1]), x, more], -1)


def least_squares(
    features: Sequence[Float[Tensor, "_ F"]], gamma: Number, after: bool, trace: Number = TRACE
) -> tuple[list[Float[Tensor, "_ F"]], Float[Tensor, "F F"]]:
    """Return the coefficients c_j of each episode's states (`B = sum_j c_j d(s_j)`), and the inverse that they hold.

    Args:
        features: phi at every recorded step, per episode.
        gamma: discount.
        after: the sum begins at the next state (features of state and action); else at the state itself.
        trace: lambda.
    """
    size = features[0].shape[-1]
    matrix, square = torch.zeros(size, size, dtype=torch.float64), 0.0
    traces: list[Tensor] = []
    for together in _of_equal_length(features):
        phi = torch.stack(list(together)).double()
        trail = phi.clone()
        for step in range(1, phi.shape[1]):
            trail[:, step] += gamma * trace * trail[:, step - 1]
        change = phi[:, :-1] - gamma * phi[:, 1:]
        matrix += trail[:, :-1].flatten(0, 1).T @ change.flatten(0, 1)
        square += float(phi.square().sum())
        traces += trail[:, :-1].float().unbind(0)
    inverse = torch.linalg.inv(matrix + RIDGE * square / size * torch.eye(size, dtype=torch.float64))
    none = torch.zeros(1, size)
    rows = []
    for trail in traces:
        found = (trail.double() @ inverse.T).float()
        rows.append(torch.cat([none, gamma * found] if after else [found, none]))
    return rows, inverse


def _of_equal_length(features: Sequence[Tensor], most: int = 64) -> Iterator[Sequence[Tensor]]:
    """Split into runs of episodes of equal length, at most so many at once."""
    begin = 0
    for end in range(1, len(features) + 1):
        if end == len(features) or len(features[end]) != len(features[begin]) or end - begin == most:
            yield features[begin:end]
            begin = end


@dataclass
class ExpectedLookahead:
    """The regression, its states, and the segments that it is asked about; `K` behaviours, `M` recorded states in all.

    Attributes:
        observations: recorded states, behaviour after behaviour.
        actions: u taken there (for a deterministic label).
        label_mean: of the label at those states, or None.
        label_log_std: likewise.
        coefficients: c_j.
        bounds: rows of behaviour k are bounds[k] .. bounds[k + 1].
        scale: recorded states of each behaviour over stored ones.
        segments: phi summed over the steps of each segment, or that of the state after it, times gamma^n.
        owner: label of each segment.
        samples: of states, each with a part per behaviour; empty before `draw`.
    """

    observations: Float[Tensor, "M O"]
    actions: Float[Tensor, "M A"]
    label_mean: Float[Tensor, "M A"] | None
    label_log_std: Float[Tensor, "M A"] | None
    coefficients: Float[Tensor, "M F"]
    bounds: list[int]
    scale: list[float]
    segments: Float[Tensor, "N F"]
    owner: Int[Tensor, " N"]
    samples: Sequence[Sequence[Sample]] = ()

    def vectors(self, divergence: Divergence, sample: Sequence[Sample]) -> Float[Tensor, "K F"]:
        """Estimate B of every behaviour from a sample of its rows."""
        found = divergence(torch.cat([rows for rows, _ in sample])).split([len(rows) for rows, _ in sample])
        return torch.stack([d @ coefficients for d, (_, coefficients) in zip(found, sample, strict=True)])

    def draw(self, seed: int = 0) -> "ExpectedLookahead":
        """Prepare the samples of states."""
        features, generator = Features(self.observations, seed), torch.Generator().manual_seed(seed)
        parts = [self._samples(k, features, generator) for k in range(len(self.scale))]
        return replace(self, samples=list(zip(*parts, strict=True)))

    def _samples(self, k: int, features: Features, generator: torch.Generator) -> list[Sample]:
        low, high = self.bounds[k], self.bounds[k + 1]
        count = min(SAMPLED, max(1, SAMPLED_IN_ALL // len(self.scale)))
        whole = self.coefficients[low:high] * self.scale[k]
        if high - low <= count:
            return [(torch.arange(low, high), whole)] * SAMPLES
        own = self.segments[self.owner == k] if (self.owner == k).any() else self.segments
        spread = own - own.mean(0)
        effect = ((whole @ (spread.T @ spread)) * whole).sum(-1).clamp(min=0).sqrt()
        chance = 0.5 / len(effect) + 0.5 * effect / effect.sum()
        seen = features(self.observations[low:high])
        drawn = [calibrated(whole, seen, chance, count, generator) for _ in range(SAMPLES)]
        return [(rows + low, coefficients) for rows, coefficients in drawn]

    @torch.no_grad()
    def complete(self, divergence: Divergence, chunk: int = 8192) -> Float[Tensor, "K F"]:
        """B of every behaviour from all stored states, without gradient."""
        total = torch.zeros(len(self.scale), self.coefficients.shape[1])
        for k, scale in enumerate(self.scale):
            for rows in torch.arange(self.bounds[k], self.bounds[k + 1]).split(chunk):
                total[k] += scale * (self.coefficients[rows] * divergence(rows)[:, None]).sum(0)
        return total

    def of(self, vectors: Float[Tensor, "K F"], segments: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Look-ahead of some segments, summed over their steps."""
        return (self.segments[segments] * vectors[self.owner[segments]]).sum(-1)

    def ahead(
        self, divergence: Divergence, segments: Int[Tensor, " B"], generator: torch.Generator
    ) -> Float[Tensor, " B"]:
        """Look-ahead of some segments, with gradient, from one of the samples."""
        which = int(torch.randint(len(self.samples), (), generator=generator))
        return self.of(self.vectors(divergence, self.samples[which]), segments)


def calibrated(
    coefficients: Float[Tensor, "M F"],
    features: Float[Tensor, "M D"],
    chance: Float[Tensor, " M"],
    count: int,
    generator: torch.Generator,
) -> Sample:
    """Draw rows, and coefficients with which they give the sum over all M rows, exactly for d linear in `features`.

        c'_j = c_j / (n p_j) + x_j' (sum_i x_i x_i')^-1 (sum_all x c' - sum_i x_i c_i' / (n p_i))

    Args:
        coefficients: c of every row.
        features: x of every row.
        chance: p, to be drawn; sums to 1.
        count: n, with replacement.
        generator: of the draw.
    """
    rows = torch.multinomial(chance, count, True, generator=generator)
    seen, drawn = features[rows].double(), coefficients[rows].double() / (count * chance[rows, None])
    square = seen.T @ seen
    square += CALIBRATION_RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    missing = features.T.double() @ coefficients.double() - seen.T @ drawn
    return rows, (drawn + seen @ torch.linalg.solve(square, missing)).float()


def fit_expected(
    episodes: Sequence[Episode],
    home: Int[ndarray, " E"],
    owner: Int[ndarray, " E"],
    label: tuple[Sequence[ndarray], Sequence[ndarray]] | None,
    preferences: Preferences,
    gamma: Number,
    tail: bool,
    seed: int = 0,
) -> ExpectedLookahead:
    """Regress the futures of every behaviour, and evaluate the features of every segment.

    Args:
        episodes: recorded ones.
        home: behaviour that produced each, 0 .. K - 1.
        owner: behaviour under which its segments look ahead: `home`, or another where labels are wrong.
        label: mean and log std of each episode's own behaviour at its steps; None for a deterministic label.
        preferences: segments.
        gamma: discount.
        tail: `weights="tail"`.
        seed: of the features and of the states that are stored.
    """
    short = [i for i, e in enumerate(episodes) if len(e) < 2]
    if short:
        raise UserError(
            f"episode {short[0]} has {len(episodes[short[0]])} step: a future needs 2 or more. Leave it out."
        )
    seen = [torch.from_numpy(e.observations) for e in episodes]
    done = [torch.from_numpy(e.actions) for e in episodes]
    inputs = [s if tail else torch.cat([s[:-1], a], -1) for s, a in zip(seen, done, strict=True)]
    features, generator = Features(torch.cat(inputs), seed), torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = []
    for k in range(int(home.max()) + 1):
        own = np.flatnonzero(home == k).tolist()
        found, _ = least_squares([features(inputs[i][: len(done[i])]) for i in own], gamma, not tail)
        rows = [torch.cat(found), torch.cat([seen[i][:-1] for i in own]), torch.cat([done[i] for i in own])]
        rows += [torch.from_numpy(np.concatenate([part[i] for i in own])) for part in label or ()]
        kept = torch.randperm(len(rows[0]), generator=generator)[:STORED] if len(rows[0]) > STORED else slice(None)
        parts.append([row[kept] for row in rows] + [torch.tensor(len(rows[0]))])
    stored = [len(part[0]) for part in parts]
    columns = [torch.cat([part[i] for part in parts]) for i in range(len(parts[0]) - 1)]
    return ExpectedLookahead(
        observations=columns[1],
        actions=columns[2],
        label_mean=columns[3] if label else None,
        label_log_std=columns[4] if label else None,
        coefficients=columns[0],
        bounds=[0, *np.cumsum(stored).tolist()],
        scale=[float(part[-1]) / size for part, size in zip(parts, stored, strict=True)],
        segments=_segment_features(features, inputs, preferences, gamma, tail),
        owner=torch.from_numpy(owner[preferences.episode]),
    ).draw(seed)


def _segment_features(
    features: Features, inputs: Sequence[Tensor], preferences: Preferences, gamma: Number, tail: bool
) -> Float[Tensor, "N F"]:
    rows = []
    for episode, start, length in zip(preferences.episode, preferences.start, preferences.length, strict=True):
        steps = inputs[episode][start + length] if tail else inputs[episode][start : start + length]
        rows.append(features(steps) * gamma**length if tail else features(steps).sum(0))
    return torch.stack(rows)
