"""Other ways to hold entropy, and rewards from a model's own certainty."""

import math

import numpy as np
import pytest
import torch

from autotelic.errors import UserError
from autotelic.functional import (
    PIController,
    clip_b,
    clip_v,
    doubling_coef,
    entropic,
    high_entropy,
    negative_entropy_reward,
    repo,
    self_certainty_reward,
    sequence_logprob_reward,
    stare,
    steer,
    token_self_certainty,
    total_negative_entropy_reward,
)

ONES = torch.ones(1, 4)


def test_high_entropy_keeps_the_top_share():
    """Half of 4 tokens: the two of entropy 3 and 2."""
    rewritten, kept = high_entropy(2 * ONES, torch.tensor([[1.0, 3.0, 2.0, 0.0]]), ONES, fraction=0.5)
    assert rewritten.tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert kept.sum() == 2


def test_repo_by_hand():
    """ln p = -2, H = .5: L = -1.5; A = -2, zeta = .1: -2 + .1 x 2 x 1.5 = -1.7; fixed beta: -2 + .15."""
    arguments = (torch.tensor([[-2.0]]), torch.tensor([[-2.0]]), torch.tensor([[0.5]]), torch.ones(1, 1))
    assert repo(*arguments, coef=0.1).item() == pytest.approx(-1.7)
    assert repo(*arguments, coef=0.1, rescale=False).item() == pytest.approx(-1.85)


def test_repo_rewards_the_rare_and_is_centred_under_the_policy():
    """E_pi[L] = 0, so with constant advantages the expected advantage does not move."""
    log_p = torch.randn(1, 6, dtype=torch.float64).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum().expand(1, 6)
    ours = repo(torch.ones(1, 6, dtype=torch.float64), log_p, entropy, torch.ones(1, 6), coef=0.3)
    assert (log_p.exp() * ours).sum().item() == pytest.approx(1.0)
    assert ours[0, log_p.argmin()] > 1 > ours[0, log_p.argmax()]


def test_the_doubling_coefficient():
    assert doubling_coef(0.1, entropy=0.2, target=0.3) == 0.2
    assert doubling_coef(0.1, entropy=0.4, target=0.3) == 0.05


def test_steer_by_hand():
    """p = p_old = 1/2, H = 1, A = 1, 2: Omega = A (1 - ln 2) / 2; the larger gets w_min, the other its root."""
    half = torch.full((1, 2), math.log(0.5))
    ours = steer(torch.tensor([[1.0, 2.0]]), half, half, torch.ones(1, 2), torch.ones(1, 2), min_weight=0.64)
    np.testing.assert_allclose(ours, [[0.8, 1.28]], rtol=1e-5)


def test_steer_leaves_small_changes_alone():
    """Below .02 the scale is .02: an estimated change of 0 has weight 1."""
    zero = torch.zeros(1, 2)
    np.testing.assert_allclose(steer(zero + 1e-9, zero - 1, zero - 1, zero + 1, zero + 1), zero + 1e-9, rtol=1e-5)


def test_entropic_by_hand():
    """Alpha = -.5, only p > .9: A = 1 becomes .5, A = -1 becomes -1.5, the unlikely one stays."""
    logprobs = torch.log(torch.tensor([[0.95, 0.95, 0.5]]))
    ours = entropic(torch.tensor([[1.0, -1.0, 1.0]]), logprobs, torch.ones(1, 3), alpha=-0.5, threshold=0.9)
    assert ours.tolist() == [[0.5, -1.5, 1.0]]


def test_the_controller_by_hand():
    """Target .3, K_p = 1, K_i = .5. H = .1: -.2. Then H = .2: -.1 + .5 (-.2) = -.2. Far off: held at -1."""
    controller, first = PIController(0.3, 1.0, 0.5).update(0.1)
    controller, second = controller.update(0.2)
    assert (first, second) == pytest.approx((-0.2, -0.2))
    assert controller.accumulated == pytest.approx(-0.3)
    assert PIController(5.0).update(0.0)[1] == -1.0


def test_clip_b_zeroes_only_punished_tokens_that_would_lose_entropy():
    """S = p (ln p + H), H = 1: p = .05 gives -.0998, p = .9 gives .805; only the rare token with A < 0 goes."""
    logprobs = torch.log(torch.tensor([[0.9, 0.9, 0.05, 0.05]]))
    rewritten, selected = clip_b(torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), logprobs, ONES, ONES, mu=0.5)
    assert selected.tolist() == [[False, False, True, False]]
    assert rewritten.tolist() == [[-1.0, 1.0, 0.0, 1.0]]


def test_clip_v_takes_the_largest_gaps_up_to_its_quota():
    sampled, expected = torch.tensor([[-0.5, -0.9, 0.0, -0.8]]), torch.zeros(1, 4)
    advantages = torch.tensor([[-1.0, -1.0, -1.0, 1.0]])
    everything = clip_v(advantages, sampled, expected, ONES, mu=1.0, fraction=1.0)[1]
    assert everything.tolist() == [[True, True, False, False]]
    assert clip_v(advantages, sampled, expected, ONES, mu=1.0)[1].tolist() == [[False, True, False, False]]


def test_stare_by_hand():
    """Positive tokens 0, 1, 2 and fraction .5: ceil(1.5) = 2 most surprising; C2 damps 1 of the 1 negative tokens."""
    advantages, logprobs = torch.tensor([[1.0, 1.0, 1.0, -1.0]]), torch.tensor([[-1.0, -3.0, -2.0, -1.0]])
    options = {"entropy": 0.1, "target": 0.3, "fraction": 0.5}
    np.testing.assert_allclose(stare(advantages, logprobs, ONES, **options)[0], [[1.0, 1.1, 1.1, -1.0]])
    np.testing.assert_allclose(stare(advantages, logprobs, ONES, variant="C2", **options)[0], [[1.0, 1.1, 1.1, -0.9]])
    gated, reweighted = stare(advantages, logprobs, ONES, entropy=0.3, target=0.3)
    assert torch.equal(gated, advantages)
    assert not reweighted.any()


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda a, x, m: high_entropy(a, x, m, fraction=0.5)[0],
        lambda a, x, m: repo(a, x, -x, m, coef=0.1),
        lambda a, x, m: steer(a, x, x, -x, m),
        lambda a, x, m: entropic(a, x, m, alpha=0.3, threshold=0.5),
        lambda a, x, m: clip_b(a, x, -x, m)[0],
        lambda a, x, m: clip_v(a, x, -x, m)[0],
        lambda a, x, m: stare(a, x, m, entropy=0.0, variant="C2")[0],
    ],
)
def test_padding_is_never_read_and_an_empty_batch_is_harmless(rewrite):
    g = torch.Generator().manual_seed(0)
    a, x = torch.randn(3, 4, generator=g), -torch.rand(3, 4, generator=g)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected = rewrite(a, x, mask)
    ours = rewrite(a.masked_fill(mask == 0, math.nan), x.masked_fill(mask == 0, math.inf), mask)
    torch.testing.assert_close(ours, expected)
    assert (ours[mask == 0] == 0).all()
    assert (rewrite(a, x, torch.zeros(3, 4)) == 0).all()
    assert (rewrite(torch.zeros(3, 4), x, mask) == 0).all()


def test_bad_options_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="min_weight"):
        steer(x, x, x, x, x, min_weight=1.5)
    with pytest.raises(UserError, match="fraction"):
        high_entropy(x, x, x, fraction=20)


def test_self_certainty_by_hand():
    """p = (3/4, 1/4): KL(U || p) = -ln 2 - (ln 3/4 + ln 1/4) / 2 = .14384; a uniform p has none."""
    logits = torch.tensor([[math.log(3), 0.0], [7.0, 7.0]], dtype=torch.float64)
    expected = -math.log(2) - (math.log(0.75) + math.log(0.25)) / 2
    np.testing.assert_allclose(token_self_certainty(logits), [expected, 0.0], atol=1e-12)


def test_certainty_rewards_by_hand():
    values, mask = torch.tensor([[1.0, 3.0, math.nan], [math.nan] * 3]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert self_certainty_reward(values, mask).tolist() == [2.0, 0.0]
    assert negative_entropy_reward(values, mask).tolist() == [-2.0, 0.0]
    assert total_negative_entropy_reward(values, mask).tolist() == [-4.0, 0.0]
    assert sequence_logprob_reward(values, mask).tolist() == [4.0, 0.0]
