"""verl's surrogate on the controls that read the policy in training: the gradients of their papers' losses."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from autotelic.controls.entropy_control import UpdateBatch
from autotelic.controls.table import METHODS, read_control
from autotelic.verl.loss_methods import UNSUPPORTED, method_names
from autotelic.verl.losses import surrogate


@dataclass
class Config:
    clip_ratio: float = 0.2
    clip_ratio_low: float | None = None
    clip_ratio_high: float | None = None

    def get(self, name, default=None):
        return getattr(self, name, default)


def batch():
    """Probabilities of the rollout, ratios from .3 to 15 and advantages of both signs, in float64."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(4, 12, generator=generator, dtype=torch.float64) * 0.05 + 0.01
    ratio = torch.tensor([0.3, 0.7, 0.9, 1.0, 1.1, 1.3, 2.0, 5.0, 9.0, 11.0, 13.0, 15.0], dtype=torch.float64)
    advantages = torch.tensor([[1.5], [-0.5], [0.0], [-2.0]], dtype=torch.float64).expand(4, 12).contiguous()
    return (mu * ratio).log(), mu.log(), advantages


def gradient_of(written, entropy=None, old_entropy=None):
    """-dL / d ln pi of every token."""
    control = read_control(written)
    now, old, advantages = batch()
    mask = torch.ones_like(now, dtype=torch.bool)
    plan = control.plan(
        UpdateBatch(old, advantages, mask, torch.arange(4), 0, 0, False, old_logprobs=old, entropy=old_entropy)
    )
    logprobs = now.requires_grad_()
    loss, metrics = surrogate(control, plan, logprobs, old, advantages, mask, Config(), None, entropy)
    assert all(np.isfinite(list(metrics.values())))
    return -torch.autograd.grad(loss.sum(), logprobs)[0]


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_dppo_has_its_own_bound_and_no_clip(divergence):
    now, old, advantages = batch()
    found = gradient_of(f"dppo,divergence={divergence},high=0.1,low=0.01")
    for i in np.ndindex(4, 12):
        pi, mu, a = now[i].exp().item(), old[i].exp().item(), advantages[i].item()
        expected = a * pi / mu if oracles.dppo_keeps(a, pi, mu, divergence, 0.01, 0.1) else 0.0
        assert found[i].item() == pytest.approx(expected, rel=1e-5)


def test_dppo_can_bound_the_weight():
    now, old, advantages = batch()
    found = gradient_of("dppo,high=1,low=1,max_ratio=4")
    torch.testing.assert_close(found, advantages * (now - old).exp().clamp(max=4.0), rtol=1e-5, atol=1e-8)


def test_ce_gppo_keeps_its_gradient_beyond_the_clip():
    now, old, advantages = batch()
    found = gradient_of("ce_gppo")
    for i in np.ndindex(4, 12):
        ratio, a = (now[i] - old[i]).exp().item(), advantages[i].item()
        expected = oracles.ce_gppo_loss_gradient(a, ratio, 0.25, 1.0, 0.2, 0.2, 10.0)
        assert found[i].item() == pytest.approx(expected, rel=1e-5)


def test_erc_and_estr_mask_and_leave_the_clip():
    now, old, _ = batch()
    plain = gradient_of("observe")
    still = torch.ones_like(now)
    moved = still.clone()
    moved[:, ::2] = 1.2
    found = gradient_of("erc", entropy=moved, old_entropy=still)
    torch.testing.assert_close(found, torch.where(moved == 1.2, 0.0, plain))
    found = gradient_of("estr,tau=0.05", old_entropy=still)
    kept = (now - old).square() / 1.01 <= 0.05
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(found, torch.where(kept, plain, 0.0))


def test_what_verl_cannot_serve_is_named():
    assert set(UNSUPPORTED) < set(METHODS)


def test_the_documents_name_every_loss():
    text = (Path(__file__).parents[2] / "docs/how-to/verl.md").read_text()
    assert [name for name in method_names() if f"`autotelic_{name}`" not in text and f"`_{name}`" not in text] == []
