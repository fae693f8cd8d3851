"""Logits of a few words: against the whole product, and their gradients."""

import pytest
import torch

from autotelic.kernels import linear_logprob_entropy, linear_selected
from autotelic.kernels import selected_logits as selected


def problem(n=5, v=11, d=3, k=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(m, d, generator=g, dtype=torch.float64).to(dtype) for m in (n, v))
    return (
        hidden,
        weight,
        torch.randint(v, (n, k), generator=g),
        torch.randn(v, generator=g, dtype=torch.float64).to(dtype),
    )


def test_by_hand():
    """h = (1, 2), w_0 = (3, 0), w_1 = (0, 5), b = (0.5, -1): z = 3.5, 9."""
    z = linear_selected(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 5.0]]),
        torch.tensor([[1, 0, 1]]),
        torch.tensor([0.5, -1.0]),
    )
    assert z.tolist() == [[9.0, 3.5, 9.0]]


@pytest.mark.parametrize("chunk", [1, 25, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients(chunk, with_bias, monkeypatch):
    """Words that occur twice, in one row or in two, add up."""
    monkeypatch.setattr(selected, "CHUNK", chunk)
    hidden, weight, ids, bias = problem()
    ids[0, :2] = ids[1, 0] = 7
    bias = bias if with_bias else None
    whole = hidden @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(linear_selected(hidden, weight, ids, bias), whole.gather(1, ids))
    inputs = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
    assert torch.autograd.gradcheck(lambda h, w, b=None: linear_selected(h, w, ids, b), inputs)


def test_with_one_logprob_they_give_all_others():
    hidden, weight, ids, bias = problem()
    log_p = (hidden @ weight.T + bias).log_softmax(-1)
    logprobs, _ = linear_logprob_entropy(hidden, weight, ids[:, 0], bias=bias)
    z = linear_selected(hidden, weight, ids, bias)
    torch.testing.assert_close(z - z[:, :1] + logprobs[:, None], log_p.gather(1, ids))


def test_half_precision_operands_give_exact_logits():
    hidden, weight, ids, bias = problem(dtype=torch.bfloat16)
    hidden.requires_grad_()
    z = linear_selected(hidden, weight, ids, bias)
    exact = (hidden.double() @ weight.double().T + bias.double()).gather(1, ids)
    torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(z.sum(), hidden)[0].dtype == torch.bfloat16
