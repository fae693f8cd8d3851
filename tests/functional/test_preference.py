"""Preference losses and look-ahead: by hand, slow oracle, invariances, gradients. Parity: test_preference_golden."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.functional.lookahead import (
    BiasedLookaheadWarning,
    Lookahead,
    categorical_kl,
    dirac_divergence,
    exact_lookahead,
    gaussian_kl,
    gaussian_logprob,
    lookahead_sum,
    lookahead_weights,
    single_sample_divergence,
    tanh_gaussian_kl,
    tanh_gaussian_logprob,
    top_k_kl,
)
from autotelic.functional.preference import (
    behavior_cloning_loss,
    cpl_loss,
    cpl_ranking_loss,
    cpl_score,
    dpo_loss,
    ppl_loss,
    ppl_score,
    repo_loss,
    repo_score,
    repo_step_score,
)

F64 = torch.float64


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ragged(n, s, seed=0):
    lengths = torch.randint(1, s + 1, (n,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(s) < lengths[:, None]


def slow_windows(d, mask, gamma, horizon, start, weights, end=None, holes="cut"):
    """W_t by loops over steps and lags, stopping at padding, holes and episode ends."""
    out = np.zeros(d.shape)
    for n, row in enumerate(d):
        steps = np.flatnonzero(mask[n]) if holes == "skip" else np.arange(d.shape[1])
        for i, t in enumerate(steps):
            terms = []
            for lag in itertools.count():
                if i + lag >= len(steps) or not mask[n, steps[i + lag]] or (horizon is not None and lag > horizon):
                    break
                if end is not None and end[n, t : steps[i + lag]].any():
                    break
                if lag >= start:
                    terms.append(gamma**lag * row[steps[i + lag]])
            if mask[n, t] and terms and horizon != 0:
                out[n, t] = sum(terms) / (len(terms) if weights == "mean" else 1)
    return out


windows = {
    "seed": st.integers(0, 99),
    "gamma": st.sampled_from([1.0, 0.9, 0.5]),
    "horizon": st.sampled_from([None, 0, 1, 2, 50]),
    "start": st.sampled_from([0, 1]),
    "weights": st.sampled_from(["regret", "mean"]),
    "holes": st.sampled_from(["cut", "skip"]),
    "with_end": st.booleans(),
}


@settings(max_examples=80, deadline=None)
@given(**windows)
def test_windows_match_the_oracle_and_their_weights(seed, gamma, horizon, start, weights, holes, with_end):
    generator = np.random.default_rng(seed)
    shape = (3, int(generator.integers(1, 8)))
    d, mask = generator.standard_normal(shape), generator.random(shape) < 0.8
    end = generator.random(shape) < 0.2 if with_end else None
    tensors = {"episode_end": None if end is None else torch.tensor(end), "holes": holes}
    args = (torch.tensor(mask), gamma, horizon, start, weights)
    expected = slow_windows(d, mask, gamma, horizon, start, weights, end, holes)
    np.testing.assert_allclose(lookahead_sum(torch.tensor(d), *args, **tensors), expected, atol=1e-12)
    counts = lookahead_weights(*args, **tensors, dtype=F64).numpy()
    np.testing.assert_allclose((counts * d).sum(-1), expected.sum(-1), atol=1e-12)


def test_windows_by_hand():
    """d = (1, 2, 4), gamma 1/2: W = (2/2 + 4/4, 4/2, 0) = (2, 2, 0); mean (1, 2, 0); L = 1: (1, 2, 0)."""
    d, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert lookahead_sum(d, mask, 0.5).tolist() == [[2.0, 2.0, 0.0]]
    assert lookahead_sum(d, mask, 0.5, weights="mean").tolist() == [[1.0, 2.0, 0.0]]
    assert lookahead_sum(d, mask, 0.5, horizon=1).tolist() == [[1.0, 2.0, 0.0]]
    assert lookahead_weights(mask).tolist() == [[0.0, 1.0, 2.0]]
    end = torch.tensor([[True, False, False]])
    assert lookahead_sum(d, mask, 0.5, episode_end=end).tolist() == [[0.0, 2.0, 0.0]]


def test_weights_by_hand():
    """Five steps, gamma 1/2, the first two are the segment.

    regret: step l is the future of t = 0 and 1 as far as t < l: 0, 1/2, 1/4 + 1/2, 1/8 + 1/4, 1/16 + 1/8.
    mean: t = 0 has four later steps, t = 1 three: 1/8, (1/4) / 4 + (1/2) / 3, ...
    tail: after the segment gamma^l from its start: 1/4, 1/8, 1/16; two steps at most with L = 2.
    """
    mask, segment = torch.ones(1, 5, dtype=torch.bool), torch.tensor([[True, True, False, False, False]])

    def weigh(kind, **window):
        return lookahead_weights(mask, 0.5, weights=kind, score_mask=segment, dtype=F64, **window)[0].tolist()

    assert weigh("regret") == [0, 0.5, 0.75, 0.375, 0.1875]
    assert weigh("mean") == pytest.approx([0, 1 / 8, 1 / 16 + 1 / 6, 1 / 32 + 1 / 12, 1 / 64 + 1 / 24])
    assert weigh("tail") == [0, 0, 0.25, 0.125, 0.0625]
    assert weigh("tail", horizon=2) == [0, 0, 0.25, 0.125, 0]
    end = torch.tensor([[False, False, True, False, False]])
    assert weigh("tail", episode_end=end) == [0, 0, 0.25, 0, 0]
    nothing_judged = torch.zeros(1, 5, dtype=torch.bool)
    assert not lookahead_weights(mask, weights="tail", score_mask=nothing_judged).any()


def test_observed_rollouts_reach_beyond_the_segment_and_in_segment_ones_do_not():
    rollout, segment = torch.ones(1, 5, dtype=torch.bool), torch.arange(5)[None] < 2
    assert lookahead_weights(rollout, score_mask=segment).tolist() == [[0.0, 1.0, 2.0, 2.0, 2.0]]
    assert lookahead_weights(segment).tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), bias=st.sampled_from([1.0, 0.5, 0.25]), scale=st.sampled_from([1.0, 30.0]))
def test_losses_match_the_oracle(seed, bias, scale):
    s1, s2, label = draw(7, seed=seed, scale=scale), draw(7, seed=seed + 1000, scale=scale), torch.rand(7, dtype=F64)

    def nll(x):
        return math.log1p(math.exp(-x)) if x > -30 else -x

    slow = [y * nll(b - bias * a) + (1 - y) * nll(a - bias * b) for a, b, y in zip(s1, s2, label, strict=True)]
    np.testing.assert_allclose(cpl_loss(s1, s2, label, bias), [float(x) for x in slow], rtol=1e-9, atol=1e-12)
    ranked = [nll(s1[j] - bias * s1[i]) for i in range(7) for j in range(7) if s2[i] < s2[j]]
    assert float(cpl_ranking_loss(s1, s2, bias, "pairs")) == pytest.approx(float(sum(ranked)) / 21, rel=1e-9)


def test_losses_by_hand():
    """Scores 0 and log 3, second preferred, no bias: -log(3/4). DPO with beta 1 and ratios log 3 and 0: the same."""
    zero, log3, one = torch.zeros(1, dtype=F64), torch.full((1,), math.log(3), dtype=F64), torch.ones(1, dtype=F64)
    assert cpl_loss(zero, log3, one).item() == pytest.approx(math.log(4 / 3))
    assert cpl_loss(zero, log3, 0 * one).item() == pytest.approx(math.log(4))
    assert dpo_loss(log3 + 5, zero - 2, zero + 5, zero - 2, beta=1).item() == pytest.approx(math.log(4 / 3))


def test_ppl_score_by_hand():
    """log pi = (-1, -2, -3), d = (9, 1, 2), gamma 1: W = (3, 2, 0), so S = -6 - 5 = -11; with c = 1/2, -8.5."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    logprobs, d = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[9.0, 1.0, 2.0]])
    assert ppl_score(logprobs, d, lookahead_weights(mask), mask).tolist() == [-11.0]
    assert ppl_score(logprobs, d, lookahead_weights(mask), mask, coef=0.5).tolist() == [-8.5]


@pytest.mark.parametrize("bias", [1.0, 0.5])
def test_no_lookahead_is_cpl_bit_for_bit(bias):
    logprobs, d, mask, label = draw(10, 6), draw(10, 6, seed=1).abs(), ragged(10, 6), torch.rand(10, dtype=F64)
    plain = 0.1 * cpl_score(logprobs, mask)
    for weights, coef in (
        (lookahead_weights(mask, horizon=0, dtype=F64), 1.0),
        (lookahead_weights(mask, dtype=F64), 0.0),
    ):
        score = ppl_score(logprobs, d, weights, mask, coef=coef)
        ours = ppl_loss(score, score.flip(0), label, bias, alpha=0.1)
        assert torch.equal(ours, cpl_loss(plain, plain.flip(0), label, bias))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), gamma=st.sampled_from([1.0, 0.9]), kind=st.sampled_from(["regret", "mean"]))
def test_dirac_labels_are_step_weighted_cpl(seed, gamma, kind):
    """-KL becomes + log pi, so that the score is sum_t (1 + W_t) log pi_t with W the look-ahead weights."""
    logprobs, mask = draw(4, 7, seed=seed), ragged(4, 7, seed)
    weights = lookahead_weights(mask, gamma, weights=kind, dtype=F64)
    step_weighted = cpl_score((1 + weights) * logprobs, mask)
    torch.testing.assert_close(ppl_score(logprobs, dirac_divergence(logprobs), weights, mask), step_weighted)


def test_language_form_is_dpo_without_lookahead():
    """S(y; mu) at L = 0, lambda = 1, summed: the margin is DPO's, and so is the loss."""
    mask = ragged(6, 9)
    chosen, rejected = [(draw(6, 9, seed=i), draw(6, 9, seed=i + 50)) for i in (1, 2)]
    none = lookahead_weights(mask, horizon=0, dtype=F64)
    scores = [ppl_score(lp, lp, none, mask, ref) for lp, ref in (rejected, chosen)]
    sums = [cpl_score(x, mask) for x in (chosen[0], rejected[0], chosen[1], rejected[1])]
    ours = ppl_loss(*scores, torch.ones(6, dtype=F64), bias=1, alpha=0.3)
    torch.testing.assert_close(ours, dpo_loss(*sums, beta=0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [0, 1])
def test_language_form_in_repo_settings_is_repo(start):
    """Averaged window, mean over tokens, single-sample divergence; RePO_det is the Dirac label."""
    logprobs, mu, mask = draw(5, 8), draw(5, 8, seed=3), ragged(5, 8)
    weights = lookahead_weights(mask, start=start, weights="mean", dtype=F64)
    repo = ppl_score(logprobs, single_sample_divergence(mu, logprobs), weights, mask, normalize="mean")
    torch.testing.assert_close(repo, repo_score(logprobs, mask, mu, start))
    det = ppl_score(logprobs, dirac_divergence(logprobs), weights, mask, normalize="mean")
    torch.testing.assert_close(det, repo_score(logprobs, mask, start=start))
    steps = repo_step_score(logprobs, mask, mu, start)
    torch.testing.assert_close(steps.sum(-1) / mask.sum(-1), repo)
    torch.testing.assert_close(
        repo_loss(repo, repo.flip(0), alpha=0.2), ppl_loss(repo.flip(0), repo, torch.ones(5, dtype=F64), alpha=0.2)
    )


def test_padding_order_and_micro_batches_change_nothing():
    logprobs, d, mask = draw(8, 5), draw(8, 5, seed=1), ragged(8, 5)

    def score(lp, div, m):
        return ppl_score(lp, div, lookahead_weights(m, 0.9, weights="mean", dtype=F64), m)

    plain = score(logprobs, d, mask)
    wide = [torch.cat([x, torch.full((8, 3), fill)], 1) for x, fill in ((logprobs, math.nan), (d, math.inf))]
    torch.testing.assert_close(score(*wide, torch.cat([mask, torch.zeros(8, 3, dtype=torch.bool)], 1)), plain)
    left = [torch.cat([torch.full((8, 3), fill), x], 1) for x, fill in ((logprobs, math.nan), (d, math.inf))]
    torch.testing.assert_close(score(*left, torch.cat([torch.zeros(8, 3, dtype=torch.bool), mask], 1)), plain)
    order = torch.randperm(8)
    torch.testing.assert_close(score(logprobs[order], d[order], mask[order]), plain[order])
    halves = torch.cat([score(logprobs[i], d[i], mask[i]) for i in (slice(0, 3), slice(3, 8))])
    assert torch.equal(halves, plain)


def test_gradients():
    mask, label = ragged(3, 4, seed=5), torch.tensor([1.0, 0.0, 0.5], dtype=F64)
    mu = draw(3, 4, 5, seed=2).softmax(-1)
    weights = lookahead_weights(mask, 0.9, dtype=F64)

    def loss(logits):
        log_pi = logits.log_softmax(-1)
        score = ppl_score(log_pi[..., 0], categorical_kl(mu, log_pi), weights, mask)
        return ppl_loss(score, score.flip(0) * 0.5, label, 0.5, 0.3)

    logits = draw(3, 4, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(loss, logits)
    (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    assert (gradient[~mask] == 0).all()
    assert torch.autograd.gradcheck(lambda s: cpl_ranking_loss(s, draw(6), 0.5), draw(6, seed=8).requires_grad_(True))
    assert torch.autograd.gradcheck(lambda x: repo_score(x, mask, None), draw(3, 4).requires_grad_(True))
    mean, log_std = draw(2, 3).requires_grad_(True), draw(2, 3, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda m, s: gaussian_kl(draw(2, 3, seed=2), draw(2, 3, seed=3), m, s), (mean, log_std)
    )


def test_log_mu_of_a_single_sample_carries_no_gradient():
    mu = draw(2, 3).requires_grad_(True)
    logprobs = draw(2, 3, seed=1).requires_grad_(True)
    single_sample_divergence(mu, logprobs).sum().backward()
    assert mu.grad is None
    assert (logprobs.grad == -1).all()


@pytest.mark.parametrize("family", ["gaussian", "tanh_gaussian"])
def test_gaussian_kl_against_monte_carlo(family):
    """Squashing changes both densities by the same factor: base-space KL is the KL of the squashed policies."""
    args = [draw(3, seed=1), 0.3 * draw(3, seed=2), draw(3, seed=3), 0.3 * draw(3, seed=4)]
    kl, logprob = {
        "gaussian": (gaussian_kl, gaussian_logprob),
        "tanh_gaussian": (tanh_gaussian_kl, tanh_gaussian_logprob),
    }[family]
    u = args[0] + args[1].exp() * draw(200_000, 3, seed=5)
    sample = logprob(u, args[0].expand_as(u), args[1].expand_as(u)) - logprob(
        u, args[2].expand_as(u), args[3].expand_as(u)
    )
    error = sample.std() / math.sqrt(len(sample))
    assert abs(kl(*args) - sample.mean()) < 4 * error
    assert abs(kl(args[0], args[1], args[0], args[1])) < 1e-12


def test_tanh_gaussian_density_integrates_to_one():
    action = torch.linspace(-0.99999, 0.99999, 200_001, dtype=F64)
    u, half = torch.atanh(action)[:, None], torch.full((200_001, 1), 0.5, dtype=F64)
    density = tanh_gaussian_logprob(u, 0.4 * half, -half).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1, abs=1e-3)


def test_categorical_kl_and_its_entropy_constant():
    mu = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    log_pi = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.9, 0.0]], dtype=F64).log()
    assert categorical_kl(mu, log_pi).tolist() == pytest.approx([math.log(2), -math.log(0.1)])
    cross = categorical_kl(mu, log_pi, "drop")
    assert (cross - categorical_kl(mu, log_pi)).tolist() == pytest.approx([math.log(2), 0.0])
    torch.testing.assert_close(cross[1:], dirac_divergence(log_pi[1:, 0]))
    args = [draw(4, 2, seed=i) for i in range(4)]
    entropy = (args[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    torch.testing.assert_close(gaussian_kl(*args, "drop") - gaussian_kl(*args), entropy)


def test_the_entropy_constant_changes_training_where_labels_differ():
    """Two labels of different entropy: keeping or dropping it moves the margin, hence the gradient's weight."""
    mu = torch.tensor([[[0.5, 0.5]] * 3, [[0.99, 0.01]] * 3], dtype=F64)
    weights, grads = lookahead_weights(torch.ones(2, 3, dtype=torch.bool), dtype=F64), []
    for entropy in ("include", "drop"):
        logits = draw(2, 3, 2).requires_grad_(True)
        log_pi = logits.log_softmax(-1)
        score = ppl_score(log_pi[..., 0], categorical_kl(mu, log_pi, entropy), weights)
        ppl_loss(score[:1], score[1:], torch.ones(1, dtype=F64), 0.5).sum().backward()
        grads.append(logits.grad)
    assert not torch.allclose(*grads, rtol=1e-2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), k=st.integers(1, 5))
def test_top_k_kl_bounds_the_full_kl(seed, k):
    log_mu, log_pi = draw(4, 6, seed=seed).log_softmax(-1), draw(4, 6, seed=seed + 100).log_softmax(-1)
    top = log_mu.topk(k, -1)
    partial, full = top_k_kl(top.values, log_pi.gather(-1, top.indices)), categorical_kl(log_mu.exp(), log_pi)
    assert (partial >= -1e-12).all() and (partial <= full + 1e-12).all()
    order = log_mu.argsort(-1)
    torch.testing.assert_close(top_k_kl(log_mu.gather(-1, order), log_pi.gather(-1, order)), full, atol=1e-9, rtol=1e-9)


def test_exact_lookahead_by_hand():
    """One action leads to state 1, where the episode ends: Dbar = gamma KL(mu || pi) at state 1, and 0 from there."""
    transitions = torch.zeros(2, 2, 2, dtype=F64)
    transitions[0, 0, 1] = 1.0
    mu, pi = torch.full((2, 2), 0.5, dtype=F64), torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=F64)
    expected = 0.9 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    ahead = exact_lookahead(transitions, mu, pi.log(), 0.9)
    assert ahead.tolist() == [[pytest.approx(expected), 0.0], [0.0, 0.0]]


def test_behavior_cloning_averages_over_real_steps():
    logprobs, mask = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]]), torch.tensor([[True, True], [True, False]])
    assert behavior_cloning_loss(logprobs, mask).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"gamma": 0.0}, "gamma"),
        ({"horizon": -1}, "horizon"),
        ({"start": 2}, "start"),
        ({"coef": -1.0}, "coef"),
        ({"future": "exact", "weights": "mean"}, "exact"),
        ({"future": "expected", "weights": "mean"}, "expected"),
        ({"future": "expected", "divergence": "single_sample"}, "expected"),
        ({"future": "in_segment", "weights": "tail"}, "tail"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings_, words):
    with pytest.raises(UserError, match=words):
        Lookahead(**settings_)


def test_a_misspelt_choice_is_named():
    wrong = Lookahead()
    object.__setattr__(wrong, "future", "obseved")  # the type check of the tests would refuse it first
    with pytest.raises(UserError, match="did you mean 'observed'"):
        wrong.__post_init__()


def test_an_observed_future_warns_where_futures_are_random():
    with pytest.warns(BiasedLookaheadWarning, match="biased"):
        Lookahead(future="observed").warn_if_biased(stochastic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Lookahead(future="observed").warn_if_biased(stochastic=False)
        Lookahead(future="expected").warn_if_biased(stochastic=True)
        Lookahead(future="exact").warn_if_biased(stochastic=True)
        Lookahead(future="observed", horizon=0).warn_if_biased(stochastic=True)
