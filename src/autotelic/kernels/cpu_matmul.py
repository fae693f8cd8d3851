"""Which of PyTorch's matrix products a CPU does best: faster ones are taken where they are as exact.

float32    PyTorch multiplies by MKL; with the "bf16" setting of its oneDNN products it may round the operands, and does
           so on CPUs that have tiles for it (AMX). On all others oneDNN still multiplies in full, often faster than
           MKL: 1.0 to 1.5 times on an AMD EPYC of the fourth generation, twice on the fifth. A small product tells.
bfloat16   about twice as fast as float32 where the CPU has instructions for it, hopeless elsewhere.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def quick_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices by oneDNN in the block, if that rounds nothing, and unless the user asked for less."""
    switch = float32_switch()
    if (
        device.type != "cpu"
        or switch is None
        or switch.fp32_precision not in ("none", "ieee")
        or not relaxed_is_exact()
    ):
        yield
        return
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def float32_switch() -> Any:
    """Return PyTorch's switch for float32 products by oneDNN; None before torch 2.9."""
    switch = getattr(torch.backends.mkldnn, "matmul", None)
    return switch if hasattr(switch, "fp32_precision") else None


@functools.cache
def relaxed_is_exact() -> bool:
    """Return whether a relaxed float32 product keeps the last bits of its operands."""
    switch = float32_switch()
    kept = 1 + 2.0**-20
    diagonal, ones = torch.eye(128) * kept, torch.ones(128, 128)
    before, switch.fp32_precision = switch.fp32_precision, "bf16"
    try:
        return all(bool((product == kept).all()) for product in (diagonal @ ones, ones @ diagonal))
    finally:
        switch.fp32_precision = before


@functools.cache
def bfloat16_is_fast() -> bool:
    """Return whether the CPU multiplies bfloat16 by instructions of its own."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
