"""No gradient on outliers of the entropy discriminator."""

import torch

from autotelic.functional import (
    clip_b,
    clip_v,
)

ONES = torch.ones(1, 4)


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
