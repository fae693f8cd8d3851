"""Callbacks of a run: what is written of TRL's logs."""

from autotelic.runs.callbacks import to_glossary


def test_entropy_minimisation_logs_no_reward():
    logs = {"reward": 0.0, "reward_std": 0.0, "frac_reward_zero_std": 1.0, "entropy": 0.3, "train/em_loss": 0.3}
    assert to_glossary(logs) == {"policy/entropy": 0.3, "train/em_loss": 0.3}
    assert "reward/mean" in to_glossary(logs | {"reward": 0.5, "reward_std": 0.2})
    assert "reward/mean" in to_glossary({"reward": 0.0, "reward_std": 0.0})
