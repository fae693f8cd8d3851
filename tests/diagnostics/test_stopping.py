"""Stop rules and the collapse guard: toy policies driven to each collapse trip the right rule; and a run that stops."""

import json
import random
from dataclasses import replace

import pytest

from autotelic.diagnostics.probe_statistics import ProbeStatistics, drift, repeated_share, statistics_of
from autotelic.diagnostics.stopping import RULES, first_tripped, read_rules, stopping_point
from autotelic.errors import UserError

PROMPTS, K = 12, 8
STOP = {name: rule() for name, rule in RULES.items() if not (rule.collapse or rule.rising)}
COLLAPSE = {name: rule() for name, rule in RULES.items() if rule.collapse}


def healthy(rng, prompt):
    """Half of the responses are right, the others scattered; about a dozen words, none repeated."""
    answer = prompt + 10 if rng.random() < 0.5 else rng.randrange(100, 1000)
    words = rng.sample(["so", "we", "add", "both", "then", "carry", "one", "over", "and", "get", "now", "it"], 10)
    return f"{' '.join(words)} the answer is {answer}"


COLLAPSED = {
    "length_collapse": lambda rng, prompt: f"{prompt + 10 if rng.random() < 0.5 else rng.randrange(100, 1000)}",
    "repetition_collapse": lambda rng, prompt: healthy(rng, prompt) + " and so on" * 20,
    "one_answer_collapse": lambda rng, prompt: f"{healthy(rng, prompt)} no, the answer is 7",
    "majority_lock_in": lambda rng, prompt: f"{healthy(rng, prompt)} no, the answer is {prompt + 10}",
}


def probe_of(policy, share, seed=0):
    """A probe of a policy that has turned into `policy` for a share of its responses."""
    rng = random.Random(seed)
    chosen = [[policy if rng.random() < share else healthy for _ in range(K)] for _ in range(PROMPTS)]
    texts = [[write(rng, p) for write in row] for p, row in enumerate(chosen)]
    vocabulary = {}
    tokens = [[[vocabulary.setdefault(word, len(vocabulary)) for word in t.split()] for t in row] for row in texts]
    return statistics_of(texts, tokens)


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_policy_driven_to_a_collapse_trips_its_rule(name):
    history = [probe_of(COLLAPSED[name], share, seed) for seed, share in enumerate((0, 0.1, 0.3, 0.6, 1.0, 1.0))]
    assert first_tripped(COLLAPSE, history[:2]) is None
    tripped = [first_tripped(COLLAPSE, history[: i + 1]) for i in range(len(history))]
    assert [found[0] for found in tripped if found] and {found[0] for found in tripped if found} == {name}


def test_a_healthy_policy_trips_nothing():
    history = [probe_of(healthy, 0, seed) for seed in range(6)]
    assert all(first_tripped(COLLAPSE, history[: i + 1]) is None for i in range(6))
    rules = {name: rule for name, rule in STOP.items() if name != "majority_drift"}
    assert first_tripped(rules, history) is None


BASE = ProbeStatistics(
    majority=("1", "2", "3", "4"),
    parse_rate=1.0,
    majority_share=0.5,
    unanimous_share=0.0,
    diversity=0.5,
    semantic_entropy=1.0,
    modal_answer_share=0.25,
    mean_length=10.0,
    repetition=0.05,
    token_entropy=0.8,
    logit_skewness=0.2,
)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("majority_drift", "majority", [("1", "2", "3", "5"), ("9", "9", "9", "4")]),
        ("diversity", "diversity", [0.3, 0.2]),
        ("entropy_floor", "token_entropy", [0.3, 0.2]),
        ("repetition", "repetition", [0.2, 0.4]),
        ("length", "mean_length", [12.0, 16.0]),
        ("length", "mean_length", [8.0, 6.0]),
        ("logit_skew", "logit_skewness", [0.4, 0.6]),
        ("logit_skew", "logit_skewness", [0.0, -0.2]),
    ],
)
def test_each_rule_watches_its_own_statistic(name, field, values):
    history = [BASE, *(replace(BASE, **{field: value}) for value in values)]
    assert [other for other, rule in STOP.items() if rule(history)] == [name]
    assert stopping_point(STOP[name], history) == 2
    assert stopping_point(STOP[name], history[:2]) is None


def test_drift_compares_meanings():
    moved = replace(BASE, majority=("1.0", "2", None, "5"))
    assert drift(BASE, moved) == 0.5


def test_a_statistic_that_was_not_measured_stops_nothing():
    history = [replace(BASE, token_entropy=None), replace(BASE, token_entropy=0.0, logit_skewness=None)]
    assert STOP["entropy_floor"](history) is None and STOP["logit_skew"](history) is None


def test_statistics_by_hand():
    """Two prompts: 3, 3, 3, 4 and 5, 5 and two without an answer."""
    texts = [["3", "3", "3", "4"], ["5", "5", "no", "none"]]
    found = statistics_of(texts, [[[1], [1], [1], [1, 2]], [[1, 1, 1, 1, 1, 1]] * 4])
    assert found.majority == ("3", "5")
    assert (found.parse_rate, found.majority_share, found.unanimous_share) == (0.75, 0.625, 0.0)
    assert found.diversity == 3 / 4 / 2 and found.modal_answer_share == 3 / 8
    assert found.mean_length == (1 + 1 + 1 + 2 + 24) / 8
    assert found.repetition == pytest.approx(4 * (2 / 3) / 8)
    assert repeated_share([1, 2, 3]) == 0.0


def test_rules_are_read_from_text():
    assert read_rules("none") == {}
    assert set(read_rules("collapse")) == set(COLLAPSE)
    assert read_rules("diversity,threshold=0.7, length")["diversity"].threshold == 0.7
    several = ["collapse", {"name": "diversity", "threshold": 0.7}]
    assert set(read_rules(several)) == {*COLLAPSE, "diversity"} and read_rules(several)["diversity"].threshold == 0.7
    for text, message in (
        ("diversty", "did you mean 'diversity'"),
        ("length,threshold=x", "a number"),
        ("length,threshold=-1", "positive"),
        ("length=2", "write length,threshold=2"),
        ("length,limit=2", "no setting 'limit'"),
    ):
        with pytest.raises(UserError, match=message):
            read_rules(text)


def test_a_resumed_run_reads_its_probes_back(tmp_path):
    """Steps past the checkpoint are dropped; the reference stays the model before training."""
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from autotelic.diagnostics.stop_callback import StopRules

    answers = iter([BASE, replace(BASE, diversity=0.4), replace(BASE, diversity=0.3), replace(BASE, diversity=0.2)])
    model, rules, rows = torch.nn.Linear(2, 2), read_rules("diversity"), []

    def callback():
        return StopRules(lambda model: next(answers), rules, 1, tmp_path, rows.append)

    def state(step):
        return TrainerState(global_step=step, is_world_process_zero=True)

    control, args = TrainerControl(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    first = callback()
    first.on_train_begin(args, state(0), control, model=model)
    for step in (1, 2):
        first.on_step_end(args, state(step), control, model=model)
    second = callback()
    second.on_train_begin(args, state(1), control, model=model)
    assert second.steps == [0, 1] and second.history == first.history[:2]
    second.on_step_end(args, state(2), control, model=model)
    assert second.stopped and control.should_training_stop and second.tripped[0] == "diversity"
    assert [row["step"] for row in rows] == [0, 1, 2, 2]


def test_erupting_turns_reach_the_rules_through_the_log(tmp_path, capsys):
    """The probe sees one turn; how the last compares with the first comes from training's own log."""
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from autotelic.diagnostics.stop_callback import StopRules

    model, control = torch.nn.Linear(2, 2), TrainerControl()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    rules = StopRules(lambda model: BASE, read_rules("rising"), 1, tmp_path, lambda row: None)
    state = TrainerState(global_step=0, is_world_process_zero=True)
    rules.on_train_begin(args, state, control, model=model)
    for step, last in enumerate((0.5, 0.6, 1.4), start=1):
        logs = {"policy/entropy_first_turn": 0.5, "policy/entropy_last_turn": last}
        state = TrainerState(global_step=step, is_world_process_zero=True)
        rules.on_log(args, state, control, logs=logs)
        rules.on_step_end(args, state, control, model=model)
    assert rules.stopped and rules.tripped[0] == "turn_eruption"
    assert "what may help: fewer turns" in capsys.readouterr().err


@pytest.mark.parametrize("action", [pytest.param("stop", marks=pytest.mark.slow), "rollback"])
def test_a_run_stops_by_its_rule_and_keeps_the_best_weights(tmp_path, action):
    """Entropy is driven down until the rule speaks, on the carried model; rollback ends with the weights kept."""
    from safetensors.torch import load_file

    from autotelic.cli.train import train

    options = {"prompt": "7-5+9-8+6=?", "model_name_or_path": "any_pair", "max_steps": 12, "learning_rate": 1e-3}
    options |= {"num_generations": 16, "per_device_train_batch_size": 16, "max_completion_length": 24}
    options |= {
        "stop_rule": "entropy_floor,threshold=0.6",
        "probe": f"action={action},k=32",
        "quiet": True,
        "save_strategy": "no",
    }
    options |= {"output_dir": tmp_path / "run"}
    summary = train("one_shot_em", [item for key, value in options.items() for item in (f"--{key}", str(value))])
    assert summary["finished"] and 1 <= summary["step"] < 12
    probes = [json.loads(line) for line in (tmp_path / "run" / "probes.jsonl").read_text().splitlines()]
    limit = 0.6 * probes[0]["token_entropy"]
    assert probes[-1]["token_entropy"] < limit and all(p["token_entropy"] >= limit for p in probes[:-1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe/diversity" in row] == [p["step"] for p in probes]
    best = load_file(tmp_path / "run" / "best" / "weights.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(best[name].equal(final[name]) for name in final if name in best) == (action == "rollback")
