"""The command line as a newcomer meets it: fast help, one-line errors, exit codes."""

import builtins
import subprocess
import sys
import time

import pytest

from autotelic import __main__
from autotelic.cli.main import COMMANDS, main
from autotelic.errors import UserError, closest, one_of


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "autotelic", *arguments], capture_output=True, text=True)


def test_help_lists_every_command_at_once():
    started = time.monotonic()
    result = run("--help")
    assert result.returncode == 0 and all(name in result.stdout for name in COMMANDS)
    assert time.monotonic() - started < 5  # 0.03 s on an idle machine; torch alone would take longer than this


def test_unknown_command_suggests_the_nearest():
    result = run("tran")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "did you mean 'train'" in result.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_describes_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"autotelic {command}" in capsys.readouterr().out


def test_a_user_error_is_one_line_and_debug_shows_where(monkeypatch, capsys):
    import autotelic.cli.demo as demo

    def fail(args):
        raise UserError("two\nlines")

    monkeypatch.setattr(demo, "run", fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "autotelic: error: two lines\n"
    assert main(["--debug", "demo"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130(monkeypatch, capsys):
    import autotelic.cli.demo as demo

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert main(["demo"]) == 130


def test_an_interrupt_while_the_command_line_is_imported_exits_130(monkeypatch, capsys):
    found = builtins.__import__

    def interrupt(name, *rest):
        if name == "autotelic.cli.main":
            raise KeyboardInterrupt
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", interrupt)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "autotelic: interrupted\n"


def test_closest():
    assert closest("lerning_rate", ["learning_rate", "seed"]) == "; did you mean 'learning_rate'?"
    assert closest("model", ["delta", "model_revision"]) == "; did you mean 'model_revision'?"  # how it begins
    assert closest("zzz", ["learning_rate"]) == "" == closest("version", COMMANDS)
    assert one_of("tarin", ["train", "test"]) == "; did you mean 'train'? One of: train, test"
    assert one_of("zzz", ["train", "test"]) == "; one of: train, test"


@pytest.mark.parametrize(
    ("words", "shown"), [(["help"], "commands:"), (["help", "list"], "KIND|NAME"), (["version"], "0.")]
)
def test_help_and_version_as_words(words, shown, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0 and shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--verison"], "unrecognized arguments: --verison"),
        (["eval"], "the following arguments are required: MODEL_OR_FILE"),
        (["eval", "x", "--k", "many"], "argument --k: invalid int value: 'many'"),
        (["train"], "which method? one of: grpo, empo, one_shot_em, ppl"),
        (["control"], "the following arguments are required"),
        (["control", "tree", "--seds", "3"], "unrecognized arguments: --seds 3"),
    ],
)
def test_a_wrong_call_is_one_line(words, shown, capsys):
    """Without the usage, which is longer than a screen for some commands; the line says how to see it."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("autotelic: error: ") and shown in error and error.count("\n") == 1
    assert "--help`" in error or words == ["train"]


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and all(name in shown.err for name in COMMANDS)
