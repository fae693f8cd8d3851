"""Every command speaks the same way: --json, --quiet, no colour or progress where nobody watches, one-line errors."""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import synthetic_runs

from autotelic.cli.main import COMMANDS, main


def parsers(name: str) -> list[argparse.ArgumentParser]:
    """The command's own parsers: those of its subcommands where it has any."""
    parser = argparse.ArgumentParser(prog=f"autotelic {name}")
    importlib.import_module(f"autotelic.cli.{name}").add_arguments(parser)
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = [each for action in below for each in action.choices.values()] or [parser]
    for each in found:
        if declare := getattr(each, "declare", None):  # options that are declared when they are needed
            each.declare = None
            declare(each)
    return found


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train", "completion"}))
def test_every_command_has_json_and_quiet(name):
    """But for `completion`, whose output is a script."""
    for parser in parsers(name):
        options = {word: action for action in parser._actions for word in action.option_strings}
        for word in ("--json", "--quiet"):
            assert isinstance(options.get(word), argparse._StoreTrueAction), f"{parser.prog} has no flag {word}"


def test_train_has_json_and_quiet():
    from autotelic.trl.arguments import RunArguments

    assert {"json", "quiet"} <= {field.name for field in fields(RunArguments) if field.type is bool}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    synthetic_runs.write_run(folder / "run", "grpo", steps=40)
    rows = [{"prompt": p, "responses": ["= 1", "= 2", "= 1"], "answer": "1"} for p in "abc"]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


QUICK = {
    "score": ["score", "samples.jsonl", "--out", "scored.jsonl"],
    "eval": ["eval", "samples.jsonl", "--out", "eval.json"],
    "select": ["select", "samples.jsonl", "--out", "ranked.jsonl"],
    "forecast": ["forecast", "run", "--plot", "law.html"],
    "report": ["report", "run", "-o", "page.html"],
    "control": ["control", "tree", "--p-bad", "0.5", "--pairs", "20", "--seeds", "2", "--out", "tree.json"],
}


@pytest.mark.parametrize("name", QUICK)
def test_json_is_one_value_and_quiet_is_silent(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(QUICK[name]) == 0
    loud = capsys.readouterr()
    assert loud.out.strip() and "\x1b" not in loud.out + loud.err and "\r" not in loud.err
    assert main([*QUICK[name], "--json", "--quiet"]) == 0
    silent = capsys.readouterr()
    assert isinstance(json.loads(silent.out), dict)
    assert silent.err == ""
    if name != "report":  # whose result is the page
        assert "written to" in loud.err
        assert main([*QUICK[name], "--quiet"]) == 0
        captured = capsys.readouterr()
        assert captured.out.strip() and captured.err == ""


@pytest.mark.slow
def test_no_colour_where_no_terminal_watches(place):
    """The whole process, whose output goes into pipes: neither colours nor lines that rewrite themselves."""
    done = subprocess.run([sys.executable, "-m", "autotelic", *QUICK["score"]], cwd=place, capture_output=True)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_failure_is_one_line_and_debug_shows_where(name, monkeypatch, capsys):
    from autotelic.errors import UserError

    def fail(args):
        raise UserError("no such thing")

    module = importlib.import_module(f"autotelic.cli.{name}")
    monkeypatch.setattr(module, "add_arguments", lambda parser: None)
    monkeypatch.setattr(module, "run", fail)
    assert main([name]) == 2
    assert capsys.readouterr().err == "autotelic: error: no such thing\n"
    assert main([name, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_summary_of_a_run_shows_where_it_began_and_ended():
    from autotelic.cli.train import summary_table

    rows = [{"step": 1, "policy/entropy": 0.6, "trl/x": 1.0}, {"step": 2, "policy/entropy": 0.2, "eval/greedy": 0.5}]
    head, entropy, greedy = summary_table(rows).splitlines()
    assert head.split() == ["first", "last", "lowest", "highest"]
    assert entropy.split() == ["policy/entropy", "0.6", "0.2", "0.2", "0.6"]
    assert greedy.split() == ["eval/greedy", "0.5", "0.5", "0.5", "0.5"]
    assert summary_table([]) == ""


def test_progress_says_entropy_reward_and_time_left(monkeypatch, capsys):
    """A line now and then where nobody watches, nothing with quiet: ten of twenty steps in 30 s leave 30 s."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from autotelic.runs import callbacks

    clock = iter([60.0, 100.0, 130.0])  # 40 s of validation before the first update do not count
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    args, control = TrainingArguments(output_dir="unused", use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=20, is_world_process_zero=True)
    for quiet in (False, True):
        progress = callbacks.Progress("grpo mine", quiet=quiet, begins_with="sampling")
        state.global_step = 0
        if quiet:
            clock = iter([100.0] * 9)
        progress.on_train_begin(args, state, control)
        progress.on_step_begin(args, state, control)
        for _ in range(2):
            progress.phase("updating")
        progress.on_log(args, state, control, logs={"entropy": 0.3125, "reward": 0.5})
        state.global_step = 10
        progress.on_step_end(args, state, control)
        printed = capsys.readouterr().err
        lines = ["grpo mine: sampling", "grpo mine: updating"]  # each phase is named once
        lines += ["grpo mine: step 10/20  entropy 0.312  reward 0.500  30 s left"]
        lines = [] if quiet else lines
        assert printed.splitlines() == lines
