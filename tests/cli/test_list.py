"""`autotelic list`, the help of `train`, completion: all of them read the one table."""

import json
import re
import subprocess
import sys

import pytest

from autotelic.cli.completion import script
from autotelic.cli.main import COMMANDS, hyphenated, main
from autotelic.cli.train_help import help_text
from autotelic.runs.training_methods import METHODS


def test_list_names_every_method_reward_control_and_guard(capsys):
    from autotelic.controls.table import methods as controls
    from autotelic.diagnostics.stopping import RULES
    from autotelic.rewards.reward_table import methods as rewards
    from autotelic.trl.advantage_part import ESTIMATORS

    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    names = {kind: [each["name"] for each in entries if each["kind"] == kind] for kind in ("rewards", "controls")}
    assert names["rewards"] == ["verifier", *rewards()] and names["controls"] == list(controls())
    assert {each["name"] for each in entries} >= {*METHODS, *RULES}
    advantages = [each["name"] for each in entries if each["kind"] == "advantages"]
    assert {"grpo", *advantages} == set(ESTIMATORS)
    assert {"max_generation_batches"} < {each["name"] for each in entries if each["kind"] == "rollouts"}
    purposes = [each["purpose"] for each in entries]
    assert len(set(purposes)) == len(purposes)
    assert all(0 < len(purpose) <= 100 for purpose in purposes)
    assert not [purpose for purpose in purposes if re.search(r"``|arXiv|docstring|_i\b|\bEq\.", purpose)]


def test_one_entry_shows_its_settings_with_defaults(capsys):
    assert main(["list", "srt"]) == 0
    assert "tau=0.5" in capsys.readouterr().out
    assert main(["list", "rewards"]) == 0
    assert "needs no labels, token logprobs" in capsys.readouterr().out
    assert main(["list", "klcov"]) == 2
    assert "did you mean 'kl_cov'" in capsys.readouterr().err


@pytest.mark.parametrize("name", METHODS)
def test_help_of_train_shows_ours_in_groups_with_the_values_of_the_method(name):
    text = help_text(METHODS[name])
    for group in ("data:", "control:", "guards:", "output:"):
        assert f"\n{group}\n" in text
    assert len(text.splitlines()) < 150
    flat = " ".join(text.split())
    assert f"({METHODS[name].defaults['learning_rate']})" in flat
    assert ("--entropy_control" in flat) == (name != "ppl") and ("--objective" in flat) == (name == "ppl")
    everything = help_text(METHODS[name], everything=True)
    assert "--adam_beta1" in everything and "--adam_beta1" not in text and "--lora_r" in everything


def test_help_of_train_imports_no_engine():
    program = (
        "import sys; from autotelic.cli.main import main; main(['train', 'empo', '--help']); "
        "main(['train', 'ppl', '--help']); assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_every_option_of_every_command_has_help():
    import argparse
    import importlib

    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"autotelic.cli.{name}").add_arguments(parser)
        parsers = [parser]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += list(action.choices.values())
        for each in parsers:
            for action in each._actions:
                shown = action.help or isinstance(action, argparse._SubParsersAction)
                assert shown, f"{name}: {action.option_strings or action.dest} has no help"


def test_hyphens_and_underscores_are_the_same():
    assert hyphenated(["--max_new_tokens=3_0", "a_b", "--k", "--x_y", "--", "--a_b"]) == [
        *("--max-new-tokens=3_0", "a_b", "--k", "--x-y", "--", "--a_b")
    ]


def test_completion_knows_commands_and_options(tmp_path):
    (tmp_path / "c.sh").write_text(script("bash"))
    ask = "source c.sh; COMP_WORDS=(autotelic {words}); COMP_CWORD={n}; _autotelic; echo ${{COMPREPLY[@]}}"
    for words, expected in (("tr", "train"), ("train em", "empo"), ("train empo --entropy_con", "--entropy_control")):
        command = ask.format(words=words, n=len(words.split()))
        out = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert out.split() == [expected]
    assert "bashcompinit" in script("zsh")


def test_the_package_runs_as_a_module():
    out = subprocess.run([sys.executable, "-m", "autotelic", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("autotelic ")
