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


FEW = "(float32 and all) or skipped_rows or several_blocks or small_entropy or no_rows"


@needs_triton
@pytest.mark.parametrize("chosen", [FEW, pytest.param("test", marks=pytest.mark.slow)], ids=["few", "all"])
def test_kernels_in_the_interpreter(chosen):
    """Every kernel, value and gradient; all types, options and shapes among the slow tests."""
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cases.parents[2], check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_triton_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="needs CUDA"):
        linear_logprob_entropy(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long(), backend="triton")


@needs_triton
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Triton announces its next release's defaults
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("full", [False, True])
def test_kernels_compile_without_a_gpu(arch, full):
    """What the interpreter cannot tell: types, arguments that are 1 and become constants, shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from autotelic.kernels import gpu

    flags = {"HAS_BIAS": full, "HAS_CAP": full, "EVEN": not full, "PRECISION": "ieee", "GROUP": 16}
    flags |= {"MOMENTS": full, "KEEP": full, "TILES": 8, "LINEAR": not full, "KEPT": False}
    flags |= {"ROWS": 128, "WORDS": 256, "DIMS": 64}
    ones = {"num_rows", "num_splits", "plane"} if full else {"h_dim", "w_dim"}
    types = {"hidden": "*bf16", "weight": "*bf16", "bias": "*bf16", "targets": "*i64", "index": "*i64"}
    types |= {"scale": "fp32", "cap": "fp32", "out": "*fp32", "logits": "*fp32"}
    types |= dict.fromkeys(("best", "constant", "linear", "at_target"), "*fp32")
    for kernel in (gpu.measure, gpu.spread):
        names = kernel.arg_names
        constants = {name: flags.get(name, 1) for name in names if name in flags or name in ones}
        source = ASTSource(
            fn=kernel,
            signature={name: "constexpr" if name in constants else types.get(name, "i32") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={
                (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in ("dim", "h_row", "w_row")
            },
        )
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 8, "num_stages": 3})
        assert made.metadata.shared <= (232448 if arch == 90 else 166912)
        assert ("wgmma" if arch == 90 else "mma.sync") in made.asm["ptx"]


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
