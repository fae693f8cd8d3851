"""Starts triton_cases.py where Triton's interpreter takes the place of a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autotelic.errors import UserError
from autotelic.kernels import linear_logprob_entropy

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_kernels_in_the_interpreter():
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cases.parents[2], check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_triton_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="needs CUDA"):
        linear_logprob_entropy(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long(), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1000, 5003, 896), (300, 151936, 1536), (17, 999, 100)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu(shape, dtype):
    n, v, d = shape
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, generator=g, device="cuda").to(dtype)
    weight = (torch.randn(v, d, generator=g, device="cuda") * 0.05).to(dtype)
    targets = torch.randint(v, (n,), generator=g, device="cuda")
    results = []
    for backend, wide in (("triton", dtype), ("torch", torch.float64)):
        leaves = [x.to(wide).requires_grad_() for x in (hidden, weight)]
        found = linear_logprob_entropy(*leaves, targets, backend=backend)
        results.append((*found, *torch.autograd.grad(sum(x.sum() for x in found), leaves)))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        tolerance = 1e-5 if i < 2 or dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert ((a.double() - b).norm() / b.norm()).item() < tolerance
