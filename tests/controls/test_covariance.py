"""Clip-Cov and KL-Cov as controls: the penalty beside the trainer's clip, what is counted, and rounding."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from autotelic.controls.covariance import ClipCov, KLCov
from autotelic.controls.entropy_control import EntropyControlWarning, UpdateBatch
from autotelic.errors import UserError
from autotelic.functional.gradient_weights import CLIPPED, gradient_weights

LOW, HIGH = 0.2, 0.28


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def trl_loss(loss_type, logprobs, old, advantages):
    """One value per token, as TRL computes it (grpo_trainer.py, `_compute_loss`)."""
    ratio = (logprobs - old).exp()
    if loss_type in CLIPPED:
        return -torch.min(ratio * advantages, ratio.clamp(1 - LOW, 1 + HIGH) * advantages)
    if loss_type == "cispo":
        return -ratio.clamp(max=1 + HIGH).detach() * advantages * logprobs
    temperature = 1.0 + 0.05 * (advantages <= 0).double()
    return -(temperature * (ratio - 1)).sigmoid() * 4 / temperature * advantages


def penalty(form, log_ratio):
    """The KL estimates, as the docstring of `autotelic.functional.divergence` states them."""
    return {"abs": log_ratio.abs(), "k2": log_ratio**2 / 2, "k3": log_ratio.exp() - 1 - log_ratio, "k1": -log_ratio}[
        form
    ]


def gradient(per_token, logprobs):
    return torch.autograd.grad(per_token.sum(), logprobs)[0]


@pytest.mark.parametrize("loss_type", [*CLIPPED, "cispo", "sapo"])
@pytest.mark.parametrize("form", ["abs", "k2", "k3"])
@pytest.mark.parametrize("coef", [0.3, 1.0, 4.0])
def test_the_penalty_is_exact_beside_every_loss(form, loss_type, coef):
    """Every sign of A x ratio above, inside and below the bounds: the gradient is that of TRL's loss of A + coef k.

    A = 2, coef = 1, r = 1.3 is the case in which A' = A - coef / r is itself clipped, and the penalty lost with it.
    """
    ratios = torch.tensor([1.6, 1.3, 1.1, 1.0, 0.95, 0.75, 0.4], dtype=torch.float64)
    signs = torch.tensor([2.0, 0.5, 0.0, -0.5, -2.0], dtype=torch.float64)
    old = torch.full((len(signs), len(ratios)), -1.0, dtype=torch.float64)
    logprobs = (old + ratios.log()).requires_grad_()
    advantages, log_ratio = signs[:, None].expand_as(old).contiguous(), (logprobs - old).detach()
    wanted = gradient(trl_loss(loss_type, logprobs, old, advantages) + coef * penalty(form, logprobs - old), logprobs)
    control = KLCov(fraction=1.0, coef=coef, form=form)
    high = 1 + HIGH if loss_type == "cispo" else HIGH
    weights = gradient_weights(log_ratio, loss_type, clip_low=LOW, clip_high=high, temperatures=(1.0, 1.05))
    plan = replace(control.plan(batch_of(old, advantages)), selected=torch.ones_like(old, dtype=torch.bool))
    rewritten = control.rewrite(advantages, log_ratio, replace(plan, weights=weights))
    found = gradient(trl_loss(loss_type, logprobs, old, rewritten), logprobs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def batch_of(logprobs, advantages, **changes):
    fields = {"step": 0, "seed": 0, "across_ranks": False, "precision": torch.float64} | changes
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    return UpdateBatch(logprobs, advantages, mask, torch.arange(len(logprobs)), **fields)


def test_k1_is_refused_beside_a_clip():
    """Its derivative is -1 whatever the ratio: above the upper bound no advantage could give that gradient."""
    KLCov(form="k1").check(2, "token")
    with pytest.raises(UserError, match="form=k1 beside a PPO clip"):
        KLCov(form="k1").check(2, "token", clipped=True)
    KLCov(form="k3").check(2, "token", clipped=True)


def ragged(rows=6, width=10):
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, width).contiguous()
    return logprobs, advantages


@pytest.mark.parametrize("make", [partial(ClipCov, low=0.0, high=9.0), KLCov])
def test_prompts_without_signal_may_leave_the_statistics(make):
    """Four rows count: N = 40, a quota of 4, means over these; the choice is that of the four rows alone."""
    control = make(fraction=0.1, mixed_only=True)
    logprobs, advantages = ragged()
    flat = torch.tensor([False, True, False, True, False, False])
    plan = control.plan(batch_of(logprobs, advantages, flat=flat))
    assert plan.requested == 4 == int(plan.selected.sum())
    alone = batch_of(logprobs[~flat], advantages[~flat])
    expected = control.plan(replace(alone, row_ids=torch.arange(6)[~flat]))
    assert torch.equal(plan.selected[~flat], expected.selected)
    torch.testing.assert_close(plan.covariance[~flat], expected.covariance)
    assert not plan.selected[flat].any()
    plain = replace(control, mixed_only=False).plan(batch_of(logprobs, advantages, flat=flat))
    assert plain.requested == 6


@pytest.mark.parametrize(("precision", "noise"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 2e-3)])
def test_rounding_between_two_passes_is_no_move(precision, noise):
    """While the policies are equal, log r is rounding; its size follows from the precision of the pass, and |ln pi|."""
    logprobs, advantages = ragged()
    control = KLCov(fraction=1.0)
    plan = control.plan(batch_of(logprobs, advantages, precision=precision))
    assert plan.selected.any()
    still = noise * (1 + logprobs.abs())
    assert torch.equal(control.rewrite(advantages, still, plan), advantages)
    moved = control.rewrite(advantages, 3 * still, plan)
    assert (moved[plan.selected] < advantages[plan.selected]).all()


def test_rounding_of_a_model_in_bfloat16():
    """Two passes of one model in bfloat16, with and without padding: no token is penalised, as in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=40, num_key_value_heads=1, head_dim=16, **shape)).to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
        ids = torch.randint(3, 40, (8, 12))
        attention = torch.ones_like(ids)
        padded = torch.nn.functional.pad(ids, (5, 0)), torch.nn.functional.pad(attention, (5, 0))
        passes = [model(ids, attention_mask=attention).logits, model(padded[0], attention_mask=padded[1]).logits[:, 5:]]
    now, old = (x[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) for x in passes)
    assert float((now - old).abs().max()) > 1e-3  # far above the rounding of float32
    advantages = torch.randn(8, 1).expand(8, 11).contiguous()
    control = KLCov(fraction=1.0)
    plan = control.plan(replace(batch_of(old, advantages), precision=torch.bfloat16))
    assert torch.equal(control.rewrite(advantages, now - old, plan), advantages)
