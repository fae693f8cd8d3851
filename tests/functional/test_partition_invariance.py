"""The gradient of a controlled update must not know how the batch was split, ordered or padded."""

import pytest
import torch

from autotelic.functional import (
    broadcast_advantages,
    clip_cov,
    clipped_surrogate,
    entropy_minimization_loss,
    hash_uniform,
    kl_cov,
    kl_penalised,
    reduce_tokens,
    response_positions,
    token_covariance,
    token_logprobs,
)

ROWS, WIDTH, VOCABULARY, FEATURES = 12, 10, 7, 5
CLIP = {"clip_low": 0.2, "clip_high": 0.28}


class Problem:
    """A linear policy on random features, off-policy by one random step, on a ragged batch."""

    def __init__(self, left=False, order=None, width=WIDTH):
        g = torch.Generator().manual_seed(0)
        features = torch.randn(ROWS, WIDTH, FEATURES, generator=g)
        lengths = torch.randint(1, WIDTH + 1, (ROWS,), generator=g)
        tokens = torch.randint(VOCABULARY, (ROWS, WIDTH), generator=g)
        advantages = torch.randn(ROWS, generator=g)
        self.old_weights = torch.randn(FEATURES, VOCABULARY, generator=g)
        self.weights = self.old_weights + 0.1 * torch.randn(FEATURES, VOCABULARY, generator=g)
        order = torch.arange(ROWS) if order is None else order
        self.row_ids = order
        self.mask = torch.zeros(ROWS, width, dtype=torch.bool)
        self.features = torch.full((ROWS, width, FEATURES), 3.0)
        self.tokens = torch.zeros(ROWS, width, dtype=torch.int64)
        for place, row in enumerate(order.tolist()):
            n = int(lengths[row])
            part = slice(width - n, width) if left else slice(0, n)
            self.mask[place, part] = True
            self.features[place, part], self.tokens[place, part] = features[row, :n], tokens[row, :n]
        self.advantages = broadcast_advantages(advantages[order], self.mask)

    def logprobs(self, weights, rows=slice(None)):
        return token_logprobs(self.features[rows] @ weights, self.tokens[rows])


def gradient(method, rows_per_micro, micro_scope=False, **layout):
    """Accumulate the gradient of one optimiser step over micro-batches of ``rows_per_micro`` rows."""
    p = Problem(**layout)
    weights = p.weights.clone().requires_grad_()
    old = p.logprobs(p.old_weights)
    positions = response_positions(p.mask)
    ids = p.row_ids.unsqueeze(-1) * 1000 + positions
    priority = hash_uniform(3, 4, p.row_ids, positions)

    def select(rows):
        covariance = token_covariance(old[rows], p.advantages[rows], p.mask[rows])
        if method == "clip_cov":
            arguments = {"fraction": 0.1, "low": 0.0, "high": 9.0, "priority": priority[rows], "token_ids": ids[rows]}
            return clip_cov(p.advantages[rows], covariance, p.mask[rows], **arguments)
        arguments = {"fraction": 0.1, "coef": 1.0, "token_ids": ids[rows]}
        return kl_cov(p.advantages[rows], torch.zeros_like(old[rows]), covariance, p.mask[rows], **arguments)

    chosen = None if micro_scope else select(slice(None))
    for begin in range(0, ROWS, rows_per_micro):
        rows = slice(begin, begin + rows_per_micro)
        a, selected = select(rows) if chosen is None else (chosen[0][rows], chosen[1][rows])
        new = p.logprobs(weights, rows)
        bounds = CLIP
        if method == "kl_cov":
            bounds = {"clip_low": None, "clip_high": None}
            a = kl_penalised(a, new.detach() - old[rows], selected, coef=1.0)
        per_token = clipped_surrogate(new, old[rows], a, mask=p.mask[rows], **bounds)
        reduce_tokens(per_token, p.mask[rows], denominator=p.mask.sum()).backward()
    return weights.grad


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
@pytest.mark.parametrize("rows", [1, 2, 5, 12])
def test_micro_batches(method, rows):
    torch.testing.assert_close(gradient(method, rows), gradient(method, ROWS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
@pytest.mark.parametrize("layout", [{"left": True}, {"width": 17}, {"left": True, "width": 13}])
def test_padding(method, layout):
    torch.testing.assert_close(gradient(method, 4, **layout), gradient(method, ROWS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
@pytest.mark.parametrize("seed", range(4))
def test_row_order(method, seed):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(gradient(method, 3, order=order), gradient(method, ROWS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
def test_a_choice_per_micro_batch_does_depend_on_the_split(method):
    """The reference's way, and why it is not the default."""
    assert not torch.allclose(gradient(method, 1, True), gradient(method, ROWS, True), rtol=1e-3)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "token_sum"])
def test_entropy_minimisation_has_the_same_gradient_for_any_layout(reduction):
    results = []
    for layout in [{}, {"left": True, "width": 13, "order": torch.arange(ROWS).flip(0)}]:
        p = Problem(**layout)
        weights = p.weights.clone().requires_grad_()
        entropy_minimization_loss(p.features @ weights, p.mask, 0.5, reduction).backward()
        results.append(weights.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
