"""The entropy law during a run: the fit, what is logged, resume, and stopping."""

import json
import math

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from autotelic.errors import UserError
from autotelic.functional import fit_entropy_law
from autotelic.runs.callbacks import MetricsFile, read_rows
from autotelic.runs.law_callback import EntropyLawCallback

ARGS = TrainingArguments(use_cpu=True, report_to="none")


def curve(steps=20, noise=0.002, start=1.2, end=0.1, a=0.3, b=0.9, seed=0):
    """Entropy that falls, accuracy on R = b - a exp(H) with noise."""
    entropy = np.linspace(start, end, steps)
    reward = b - a * np.exp(entropy) + noise * np.random.default_rng(seed).normal(size=steps)
    return entropy, reward


def play(callback, metrics_file, entropy, reward, first=1):
    """Log one evaluation a step as a run does, and stop when it is told to; return the last step."""
    state, control = TrainerState(global_step=first - 1), TrainerControl()
    metrics_file.on_train_begin(ARGS, state, control)
    callback.on_train_begin(ARGS, state, control)
    for h, r in zip(entropy, reward, strict=True):
        state.global_step += 1
        metrics_file.append({"step": state.global_step, "eval/mean_at_k": float(r)})
        metrics_file.append({"step": state.global_step, "policy/entropy": float(h)})
        callback.on_log(ARGS, state, control, logs={})
        if control.should_training_stop:
            break
    return state.global_step


def test_the_fit_is_that_of_all_points_so_far(tmp_path):
    metrics_file = MetricsFile(tmp_path / "metrics.jsonl")
    callback = EntropyLawCallback(metrics_file)
    entropy, reward = curve()
    play(callback, metrics_file, entropy, reward)
    rows = [row for row in read_rows(metrics_file.path) if "law/a" in row]
    assert [row["step"] for row in rows] == list(range(8, 21))
    for row in (rows[0], rows[-1]):
        law = fit_entropy_law(entropy[: row["step"]], reward[: row["step"]])
        assert (row["law/a"], row["law/b"]) == pytest.approx((law.a, law.b))
        assert row["law/ceiling_low"] == pytest.approx(law.ceiling_interval[0])
        assert row["law/remaining"] == pytest.approx(law.a * math.expm1(entropy[row["step"] - 1]))
    assert rows[-1]["law/ceiling_low"] < 0.6 < rows[-1]["law/ceiling_high"]


def test_a_resumed_run_fits_the_same_points(tmp_path):
    """Break after 12 of 20 steps, with rows past the checkpoint in the file: the last row is that of one run."""
    entropy, reward = curve()
    whole, parts = MetricsFile(tmp_path / "whole.jsonl"), MetricsFile(tmp_path / "parts.jsonl")
    play(EntropyLawCallback(whole), whole, entropy, reward)
    play(EntropyLawCallback(parts), parts, entropy[:14], reward[:14])
    play(EntropyLawCallback(parts), parts, entropy[12:], reward[12:], first=13)
    assert read_rows(parts.path) == read_rows(whole.path)


def test_it_stops_when_little_is_left(tmp_path):
    """a (exp(H) - 1) < .05 from H = .154 on: step 20 or so of 24; never with a bound that is not reached."""
    entropy, reward = curve(steps=24, end=0.02)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    callback = EntropyLawCallback(file, stop_when_remaining_below=0.05)
    last = play(callback, file, entropy, reward)
    assert callback.stopped and last < 24
    assert 0.3 * math.expm1(entropy[last - 1]) < 0.05 < 0.3 * math.expm1(entropy[last - 3])
    patient = EntropyLawCallback(file, stop_when_remaining_below=0.001)
    assert play(patient, file, entropy, reward) == 24 and not patient.stopped


@pytest.mark.parametrize("case", ["intervention", "rebound", "no trade"])
def test_it_never_stops_where_the_law_has_no_standing(tmp_path, case):
    entropy, reward = curve(steps=24, end=0.02)
    if case == "rebound":
        entropy[10] += 1.0
        entropy[11] += 1.0
    if case == "no trade":
        reward = reward[::-1]
    file = MetricsFile(tmp_path / "metrics.jsonl")
    acts = "kl_cov" if case == "intervention" else None
    callback = EntropyLawCallback(file, stop_when_remaining_below=0.05, intervention=acts)
    assert play(callback, file, entropy, reward) == 24
    assert not callback.stopped and callback.law.warnings


def test_without_a_metrics_file_it_reads_the_log_history():
    """Plain TRL: `entropy` and `reward` of the trainer's own log, which a checkpoint keeps."""
    entropy, reward = curve(steps=10)
    state, control = TrainerState(), TrainerControl()
    first = EntropyLawCallback(min_points=10)
    first.on_train_begin(ARGS, state, control)
    for step, (h, r) in enumerate(zip(entropy, reward, strict=True), start=1):
        state.global_step = step
        state.log_history.append({"step": step, "entropy": float(h), "reward": float(r)})
        first.on_log(ARGS, state, control, logs={})
    assert state.log_history[-1]["law/a"] == pytest.approx(fit_entropy_law(entropy, reward).a)
    restored = TrainerState(**json.loads(json.dumps({"log_history": state.log_history, "global_step": 10})))
    again = EntropyLawCallback(min_points=10)
    again.on_train_begin(ARGS, restored, control)
    again.on_log(ARGS, restored, control, logs={})
    assert again.law == first.law


def test_refusals():
    with pytest.raises(UserError, match="at least 3"):
        EntropyLawCallback(min_points=2)
    with pytest.raises(UserError, match="above 0"):
        EntropyLawCallback(stop_when_remaining_below=0)


def test_it_is_wired_to_the_trainer(make_trainer, tmp_path):
    """A real trainer logs the law beside its metrics, and stops when told to."""
    metrics_file = MetricsFile(tmp_path / "metrics.jsonl")

    class Impatient(EntropyLawCallback):
        def update(self, state):
            return super().update(state) or state.global_step == 4

    law = Impatient(metrics_file, min_points=3, stop_when_remaining_below=1e-6)
    trainer = make_trainer(callbacks=[metrics_file, law], max_steps=6, steps_per_generation=1)
    trainer.train()
    assert trainer.state.global_step == 4 and law.stopped
    assert {row["step"] for row in read_rows(metrics_file.path) if "law/ceiling" in row} == {3, 4}
