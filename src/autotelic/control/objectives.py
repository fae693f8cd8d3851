"""The objectives of `autotelic control train` on batches of segment pairs: CPL, PPL, PPL-d, DPO and their score.

    loss = -log sigma(alpha [S(zeta+) - bias S(zeta-)]) + bc_coef BC,   S = sum_t log pi - coef look-ahead

For lambda != 1 (`bias`), terms of the score that do not depend on the policy shift every margin: with 64 steps of four
actions by several units, so that the logistic loss is linear and never satisfied. `constants="drop"` leaves them out:
log pi becomes -|u - mean|^2 / (2 std^2), as in CPL's code, and the KL the distance of the means.

Everything that does not depend on the policy being trained (observations, actions, label parameters, look-ahead
weights, reference log-probabilities, the regression of `expected`) is cached in `PairData`, so that a PPL update costs
a CPL update and one KL, or with `expected` one pass over a thousand states.

References: arXiv:2310.13639 (CPL), arXiv:2505.06273 (PPL), arXiv:2305.18290 (DPO, on segments).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from autotelic.control.episodes import Episode
from autotelic.control.expected import ExpectedLookahead
from autotelic.control.networks import GaussianPolicy
from autotelic.control.segments import Preferences
from autotelic.functional.lookahead import Lookahead, dirac_divergence, gaussian_kl, lookahead_weights
from autotelic.functional.preference import cpl_score, ppl_score

Number = float | int


@dataclass(frozen=True)
class PairData:
    """Segments as tensors, and the pairs over them.

    Attributes:
        observations: at every step of every segment, or of the rollout from its start to the episode's end.
        actions: u.
        mask: true on the segment's own steps.
        valid: true on recorded steps: the mask, or with rollouts also what follows the segment.
        first: segment of pair m.
        second: the other one.
        label: probability that the second is preferred.
        label_mean: of the policy label, or None (`deterministic`, or not needed).
        label_log_std: likewise.
        ref_logprobs: log pi_ref of the actions, or None.
        weights: of the look-ahead (`with_lookahead`), or None.
        discounts: gamma^t of the segment's own steps under `weights="tail"`, or None.
        expected: the regression behind `future="expected"`, or None.
    """

    observations: Float[Tensor, "N S O"]
    actions: Float[Tensor, "N S A"]
    mask: Bool[Tensor, "N S"]
    valid: Bool[Tensor, "N S"]
    first: Int[Tensor, " M"]
    second: Int[Tensor, " M"]
    label: Float[Tensor, " M"]
    label_mean: Float[Tensor, "N S A"] | None = None
    label_log_std: Float[Tensor, "N S A"] | None = None
    ref_logprobs: Float[Tensor, "N S"] | None = None
    weights: Float[Tensor, "N S"] | None = None
    discounts: Float[Tensor, " S"] | None = None
    expected: ExpectedLookahead | None = None

    def with_lookahead(self, lookahead: Lookahead) -> "PairData":
        """Cache the look-ahead's weights: they depend on the masks alone."""
        discounts = None
        if lookahead.weights == "tail":
            discounts = lookahead.gamma ** torch.arange(float(self.mask.shape[1]))
        if lookahead.future in ("none", "expected"):
            return replace(self, weights=None, discounts=discounts)
        steps = self.valid if lookahead.future == "observed" else self.mask
        window = (lookahead.gamma, lookahead.horizon, lookahead.start, lookahead.weights)
        weights = lookahead_weights(steps, *window, score_mask=self.mask)
        return replace(self, weights=weights, discounts=discounts)

    def take(self, pairs: Int[Tensor, " K"]) -> "PairData":
        """Return the pairs in `pairs`, over the same segments."""
        return replace(self, first=self.first[pairs], second=self.second[pairs], label=self.label[pairs])


@dataclass(frozen=True)
class Steps:
    """Where the steps of every segment are recorded; steps beyond the last one repeat it.

    Attributes:
        episode: of each step.
        step: its place there.
        mask: true on the segment's own steps.
        valid: true on recorded steps.
    """

    episode: Int[ndarray, "N S"]
    step: Int[ndarray, "N S"]
    mask: Bool[ndarray, "N S"]
    valid: Bool[ndarray, "N S"]


def segment_steps(preferences: Preferences, episodes: Sequence[Episode], rollouts: bool = False) -> Steps:
    """Index the segments, or with `rollouts` each segment and everything after it in its episode."""
    length = preferences.length
    if rollouts:
        length = np.array([len(e) for e in episodes])[preferences.episode] - preferences.start
    offset = np.arange(int(length.max()))
    step = preferences.start[:, None] + np.minimum(offset, length[:, None] - 1)
    episode = np.broadcast_to(preferences.episode[:, None], step.shape)
    return Steps(episode, step, offset < preferences.length[:, None], offset < length[:, None])


def pair_data(
    episodes: Sequence[Episode],
    preferences: Preferences,
    steps: Steps,
    label: tuple[Float[Tensor, "N S A"], Float[Tensor, "N S A"]] | None = None,
) -> PairData:
    """Gather the steps (`segment_steps`) of the episodes into tensors."""
    begin = np.concatenate([[0], np.cumsum([len(e) for e in episodes])[:-1]])[steps.episode] + steps.step
    observations = np.concatenate([e.observations[:-1] for e in episodes])[begin]
    actions = np.concatenate([e.actions for e in episodes])[begin]
    mean, log_std = (None, None) if label is None else label
    return PairData(
        torch.from_numpy(observations),
        torch.from_numpy(actions),
        torch.from_numpy(steps.mask),
        torch.from_numpy(steps.valid),
        torch.from_numpy(preferences.first),
        torch.from_numpy(preferences.second),
        torch.from_numpy(preferences.label),
        mean,
        log_std,
    )


def scores(
    policy: GaussianPolicy,
    data: PairData,
    segments: Int[Tensor, " K"],
    lookahead: Lookahead,
    constants: str = "keep",
    expected: Callable[[Int[Tensor, " K"]], Float[Tensor, " K"]] | None = None,
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K S"]]:
    """Return S of some segments under the policy, and log pi of their actions (without its constants, if dropped).

    Args:
        policy: being trained.
        data: the segments, with the weights of `with_lookahead`.
        segments: rows.
        lookahead: the method's.
        constants: `drop` needs a policy of fixed std.
        expected: look-ahead of some segments where `lookahead.future` is `expected`; by default from all states.
    """
    mask = data.mask[segments]
    actions = data.actions[segments]
    mean, log_std = policy(data.observations[segments])
    drop = constants == "drop" and policy.std is not None
    logprobs = -scaled_distance(actions, mean, log_std) if drop else policy.logprob(actions, mean, log_std)
    reference = None if data.ref_logprobs is None else data.ref_logprobs[segments]
    counted = logprobs if data.discounts is None else logprobs * data.discounts
    if data.discounts is not None and reference is not None:
        reference = reference * data.discounts
    if not lookahead.active:
        return cpl_score(counted, mask, reference), logprobs
    if lookahead.future == "expected":
        ahead = (expected or expected_lookahead(policy, data, lookahead, constants))(segments)
        return cpl_score(counted, mask, reference) - lookahead.coef * ahead, logprobs
    if lookahead.divergence == "dirac" or data.label_mean is None or data.label_log_std is None:
        divergences = dirac_divergence(logprobs)
    elif drop:
        divergences = scaled_distance(data.label_mean[segments], mean, log_std)
    else:  # KL of squashed Gaussians by the same tanh is that of their bases
        label = (data.label_mean[segments], data.label_log_std[segments])
        divergences = gaussian_kl(*label, mean, log_std, lookahead.label_entropy)
    if data.weights is None:
        raise ValueError("call with_lookahead first: the weights are computed once, not per batch")
    weights = data.weights[segments]
    return ppl_score(counted, divergences, weights, mask, reference, lookahead.coef), logprobs


def expected_lookahead(
    policy: GaussianPolicy,
    data: PairData,
    lookahead: Lookahead,
    constants: str = "keep",
    generator: torch.Generator | None = None,
) -> Callable[[Int[Tensor, " K"]], Float[Tensor, " K"]]:
    """Return the look-ahead of some segments under `future="expected"`.

    With a generator, as in training: from a sample of states. Without: from all of them.
    """
    regression = data.expected
    if regression is None:
        raise ValueError("future='expected' needs PairData.expected: fit it with control.expected.fit_expected")

    def divergence(rows: Int[Tensor, " J"]) -> Float[Tensor, " J"]:
        mean, log_std = policy(regression.observations[rows])
        label_mean, label_log_std = regression.label_mean, regression.label_log_std
        drop = constants == "drop" and policy.std is not None
        if lookahead.divergence == "dirac" or label_mean is None or label_log_std is None:
            actions = regression.actions[rows]
            return scaled_distance(actions, mean, log_std) if drop else -policy.logprob(actions, mean, log_std)
        if drop:
            return scaled_distance(label_mean[rows], mean, log_std)
        return gaussian_kl(label_mean[rows], label_log_std[rows], mean, log_std, lookahead.label_entropy)

    if generator is not None:
        return lambda segments: regression.ahead(divergence, segments, generator)
    vectors = regression.complete(divergence)
    return lambda segments: regression.of(vectors, segments)


def scaled_distance(
    point: Float[Tensor, "*batch A"], mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"]
) -> Float[Tensor, "*batch"]:
    """|point - mean|^2 / (2 std^2): -log N without its normaliser, and KL between Gaussians without its constant."""
    return 0.5 * ((point - mean) * (-log_std).exp()).square().sum(-1)


@torch.no_grad()
def all_scores(
    policy: GaussianPolicy, data: PairData, lookahead: Lookahead, constants: str = "keep", chunk: int = 256
) -> Float[Tensor, " N"]:
    """S of every segment, in evaluation mode."""
    training = policy.training
    policy.eval()
    rows, known = torch.arange(len(data.mask)).split(chunk), lookahead.active and lookahead.future == "expected"
    ahead = expected_lookahead(policy, data, lookahead, constants) if known else None
    result = torch.cat([scores(policy, data, part, lookahead, constants, ahead)[0] for part in rows])
    policy.train(training)
    return result


def calibrated_nll(
    margins: Float[Tensor, " M"], labels: Float[Tensor, " M"], held_out: Bool[Tensor, " M"]
) -> tuple[float, float]:
    """Held-out preference NLL (nats per pair) and accuracy, with the margin's scale fitted to the other pairs.

    The scale of a score is free (alpha, lambda != 1, long segments); without it a better ordering could look worse.
    """
    from scipy.optimize import minimize_scalar

    margin, label = margins.double().numpy(), labels.double().numpy()
    train, test = ~held_out.numpy(), held_out.numpy()
    unit = max(float(np.abs(margin[train]).mean()), 1e-12)

    def nll(log_scale: float, rows: ndarray) -> float:
        scaled = np.exp(log_scale) * margin[rows] / unit
        return float((label[rows] * np.logaddexp(0, -scaled) + (1 - label[rows]) * np.logaddexp(0, scaled)).mean())

    found: Any = minimize_scalar(lambda x: nll(x, train), bounds=(-8, 5), method="bounded")
    accuracy = float(((margin[test] > 0) == (label[test] > 0.5)).mean())
    return nll(float(found.x), test), accuracy
