"""The Triton kernels in the interpreter, against the portable path; run by test_gpu.py in a process of its own.

The interpreter multiplies bit patterns of bfloat16 and reads outside of tensors without a word: float32 and float16
here, and shapes that are no multiple of any block.
"""

import pytest
import torch

from autotelic.errors import UserError
from autotelic.kernels import gpu, linear_logprob_entropy, linear_loss, linear_statistics

OPTIONS = {
    "plain": {},
    "all": {"temperature": 0.8, "logit_scale": 1.5, "softcap": 5.0, "bias": True},
    "bias": {"bias": True, "temperature": 2},
}


def problem(n, v, d, dtype, case, seed=0):
    g = torch.Generator().manual_seed(seed)
    options = dict(OPTIONS[case])
    hidden, weight = torch.randn(n, d, generator=g), torch.randn(v, d, generator=g) * 0.7
    bias = torch.randn(v, generator=g) if options.pop("bias", False) else None
    return hidden.to(dtype), weight.to(dtype), torch.randint(v, (n,), generator=g), bias, options


def run(backend, hidden, weight, targets, bias, options, upstream, **more):
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    found = linear_logprob_entropy(
        *leaves[:2], targets, bias=leaves[2] if bias is not None else None, backend=backend, **options, **more
    )
    return *found, *torch.autograd.grad(found, leaves, upstream)


def close(a, b, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    error = ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
    assert a.dtype == b.dtype and error < tolerance, error


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(37, 301, 19), (1, 33, 16), (32, 128, 32)])
def test_values_and_gradients(shape, dtype, case):
    arguments = problem(*shape, dtype, case)
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(shape[0], generator=g) for _ in range(2)]
    for a, b in zip(run("triton", *arguments, upstream), run("torch", *arguments, upstream), strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("kept", ["some", "none"])
def test_skipped_rows(kept):
    arguments = problem(37, 301, 19, torch.float32, "bias")
    mask = (torch.arange(37) % 3 == 0).float() * (kept == "some")
    ours = run("triton", *arguments, [mask, 0.3 * mask])
    theirs = run("torch", *arguments, [mask, 0.3 * mask])
    assert (ours[2][mask == 0] == 0).all()
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, torch.float32)


def test_several_blocks_of_words(monkeypatch):
    arguments = problem(37, 301, 19, torch.float32, "all")
    whole = run("triton", *arguments, [torch.ones(37), torch.ones(37)])
    monkeypatch.setattr(gpu, "BLOCK_MIB", 0)
    monkeypatch.setattr(gpu, "UNIT", 64)
    monkeypatch.setattr(gpu, "TILES", 3)
    monkeypatch.setattr(gpu, "GROUP", 2)
    for a, b in zip(run("triton", *arguments, [torch.ones(37), torch.ones(37)]), whole, strict=True):
        close(a, b, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("skip", [False, True])
def test_kept_logits_change_nothing(dtype, skip, monkeypatch):
    """37 rows; room for 24 (float32) or 12 (float16), over several blocks of words, the last one ragged."""
    monkeypatch.setattr(gpu, "BLOCK_MIB", 0)
    monkeypatch.setattr(gpu, "UNIT", 64)
    arguments = problem(37, 301, 24, dtype, "all")
    upstream = [torch.ones(37) * (1 if not skip else torch.arange(37) % 3 == 0) for _ in range(2)]
    launched = []
    inner = gpu.Part.spread
    monkeypatch.setattr(
        gpu.Part,
        "spread",
        lambda self, dz, words, kept: (
            launched.append((len(self.index), kept is not None)) or inner(self, dz, words, kept)
        ),
    )
    with_room = run("triton", *arguments, upstream)
    room = {torch.float32: 24, torch.float16: 12}[dtype]
    active = torch.arange(37)[upstream[0] != 0]
    assert set(launched) == {(int((active < room).sum()), True), (int((active >= room).sum()), False)}
    for a, b in zip(with_room, run("triton", *arguments, upstream, keep_logits=False), strict=True):
        close(a, b, torch.float32)
    for a, b in zip(with_room, run("torch", *arguments, upstream), strict=True):
        close(a, b, dtype)


def test_small_entropy():
    hidden, weight, targets, _, _ = problem(8, 100, 16, torch.float32, "plain")
    weight[targets] += hidden * 18 / hidden.square().sum(1, keepdim=True)
    z = hidden.double() @ weight.double().T
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    assert entropy.min() < 0.05
    logprobs, found = linear_logprob_entropy(hidden, weight, targets, backend="triton")
    assert ((found - entropy) / entropy).abs().max() < 1e-4
    expected = log_p.gather(1, targets[:, None])[:, 0]
    assert ((logprobs - expected) / expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", OPTIONS)
def test_statistics(case):
    hidden, weight, targets, bias, options = problem(37, 301, 19, torch.float32, case)
    ours, theirs = (
        linear_statistics(hidden, weight, targets, bias=bias, backend=b, **options) for b in ("triton", "torch")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("limit", [0, 512])
def test_known_loss(case, limit):
    hidden, weight, targets, bias, options = problem(7, 301, 19, torch.float32, case)
    weights = (torch.arange(7) % 3 != 0).float()
    results = []
    for backend in ("triton", "torch"):
        leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
        found = linear_loss(
            *leaves[:2],
            targets,
            lambda logprobs, entropy, a: a * logprobs.exp() + entropy,
            weights + 1,
            weights=weights,
            bias=leaves[2] if bias is not None else None,
            max_logits_mib=limit,
            backend=backend,
            **options,
        )
        found.loss.backward()
        results.append([found.loss, found.losses, found.entropy, *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        close(a.detach(), b.detach(), torch.float32)


def test_no_rows_strides_and_refusals():
    hidden, weight, targets, _, _ = problem(16, 256, 32, torch.float32, "plain")
    with pytest.raises(UserError, match="float64"):
        linear_logprob_entropy(hidden.double(), weight, targets, backend="triton")
    strided = linear_logprob_entropy(hidden.T.contiguous().T, weight.T.contiguous().T, targets, backend="triton")
    torch.testing.assert_close(strided, linear_logprob_entropy(hidden, weight, targets, backend="torch"))
    empty = hidden[:0].requires_grad_()
    linear_logprob_entropy(empty, weight, targets[:0], backend="triton")[0].sum().backward()
    assert empty.grad is not None and empty.grad.shape == (0, 32)
