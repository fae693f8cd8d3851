"""The adapters in examples/ against the interfaces that they were written for, on small recorded inputs.

prime-rl: docs/algorithms.md, PrimeIntellect-ai/prime-rl, commit 858d428: `loss(inputs: LossInputs, **kwargs)` on one
sequence; the later `loss_weights` is optional. slime: loss.py, THUDM/slime, commit 00c2d6d: `f(args, rollout_data)`.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from autotelic.errors import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class LossInputs:
    """prime-rl's fields at that commit."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    teacher_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor


def recorded():
    new = torch.tensor([-0.1, -2.0, -0.7, -1.5, -9.0], requires_grad=True)
    old = torch.tensor([-0.3, -1.6, -0.7, -1.9, -1.0])
    mask = torch.tensor([True, True, True, True, False])
    return LossInputs(new, old, None, torch.full((5,), 0.5), mask)


def test_prime_rl_loss_by_hand():
    """Four tokens, A = 0.5, mean ln pi = -1.075: Cov is largest, 0.4875, at the first; fraction 0.25 selects it.

    Its log-ratio is 0.2, so its gradient is -r A + coef = -0.5 e^0.2 + 1; the others' is -r A; outside the mask 0.
    """
    inputs = recorded()
    outputs = load("prime_rl_kl_cov").kl_cov_loss(inputs, fraction=0.25, coef=1.0)
    ratios = [math.exp(0.2), math.exp(-0.4), 1.0, math.exp(0.4)]
    outputs.loss.backward()
    expected = [-0.5 * ratios[0] + 1.0, *(-0.5 * r for r in ratios[1:]), 0.0]
    assert inputs.trainer_logprobs.grad.tolist() == pytest.approx(expected, rel=1e-5)
    assert outputs.loss.shape == () and float(outputs.metrics["selected_share"]) == 0.25
    assert float(outputs.metrics["covariance"]) == pytest.approx(0.0, abs=1e-6)


def test_prime_rl_loss_weights_and_short_sequences():
    """Weights scale each token; a quota below one token leaves the plain surrogate."""
    module, inputs = load("prime_rl_kl_cov"), recorded()
    inputs.loss_weights = torch.full((5,), 2.0)
    module.kl_cov_loss(inputs).loss.backward()
    ratios = [math.exp(0.2), math.exp(-0.4), 1.0, math.exp(0.4)]
    assert inputs.trainer_logprobs.grad.tolist() == pytest.approx([*(-r for r in ratios), 0.0], rel=1e-5)


def slime_inputs():
    return {
        "log_probs": [torch.tensor([-0.1, -2.0]), torch.tensor([-1.0, -0.5, -3.0])],
        "loss_masks": [torch.tensor([1, 1]), torch.tensor([1, 1, 0])],
        "rewards": [1.0, -1.0],
        "tokens": [torch.tensor([9, 3, 4]), torch.tensor([9, 5, 6, 7])],
        "response_lengths": [2, 3],
        "total_lengths": [3, 4],
        "kl": [torch.zeros(2), torch.zeros(3)],
        "values": None,
    }


def test_slime_advantages_by_hand():
    """Four tokens in the masks: mean ln pi = -0.9, mean A = 0; Cov = 0.8, -1.1, 0.1, -0.4.

    The band (0.5, 5) holds the first token only, so a quota of one zeroes it; the masked token has no advantage.
    """
    data = slime_inputs()
    args = SimpleNamespace(use_rollout_logprobs=False, clip_cov_fraction=0.25, clip_cov_low=0.5, clip_cov_high=5.0)
    load("slime_clip_cov").clip_cov_advantages(args, data)
    assert [row.tolist() for row in data["advantages"]] == [[0.0, 1.0], [-1.0, -1.0, 0.0]]
    assert [row.tolist() for row in data["returns"]] == [[1.0, 1.0], [-1.0, -1.0, -1.0]]


def test_slime_choice_follows_the_sample_and_the_sampler():
    """Samples in another order get the same advantages; with `use_rollout_logprobs` the sampler's decide."""
    module = load("slime_clip_cov")
    args = SimpleNamespace(use_rollout_logprobs=True, clip_cov_fraction=0.5, clip_cov_low=-9.0, clip_cov_high=9.0)
    first = slime_inputs()
    first["rollout_log_probs"] = first.pop("log_probs")
    second = {key: value[::-1] if isinstance(value, list) else value for key, value in first.items()}
    module.clip_cov_advantages(args, first)
    module.clip_cov_advantages(args, second)
    assert sum(float((row == 0).sum()) for row in first["advantages"]) == 3  # two selected, one masked
    for one, other in zip(first["advantages"], second["advantages"][::-1], strict=True):
        assert torch.equal(one, other)


def test_slime_context_parallelism_is_refused():
    data = slime_inputs()
    data["log_probs"][1] = data["log_probs"][1][:2]
    with pytest.raises(UserError, match="context parallelism"):
        load("slime_clip_cov").clip_cov_advantages(SimpleNamespace(use_rollout_logprobs=False), data)
