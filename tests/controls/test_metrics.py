"""Drift of an update: sums that add up over micro-batches, and entropy by turn."""

import math

import pytest
import torch

from autotelic.controls.metrics import drift_metrics, drift_sums


def test_entropy_by_turn_counts_only_responses_with_several():
    """Row 1: turns of entropy 1, 1 and 3. Row 2 has one turn. First turns 1, last turns 3."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    entropy = torch.tensor([[1.0, 1.0, 9.0, 3.0], [7.0, 7.0, 7.0, 9.0]])
    zero = torch.zeros(2, 4)
    metrics = drift_metrics(drift_sums(zero - 1, zero, entropy, mask))
    assert (metrics["policy/entropy_first_turn"], metrics["policy/entropy_last_turn"]) == (1.0, 3.0)
    alone = drift_metrics(drift_sums(zero - 1, zero, entropy, mask & torch.tensor([[False], [True]])))
    assert "policy/entropy_first_turn" not in alone and "policy/entropy_sequence" in alone


def test_sums_add_up_over_micro_batches():
    generator = torch.Generator().manual_seed(0)
    logprobs, log_ratio, entropy = (torch.randn(6, 5, generator=generator) for _ in range(3))
    mask = torch.rand(6, 5, generator=generator) < 0.7
    whole = drift_metrics(drift_sums(logprobs, log_ratio, entropy, mask))
    parts = [drift_sums(logprobs[i], log_ratio[i], entropy[i], mask[i]) for i in (slice(0, 2), slice(2, 6))]
    for name, value in drift_metrics(parts[0] + parts[1]).items():
        assert value == pytest.approx(whole[name]) and math.isfinite(value)
