"""One dialect for YAML and the command line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from autotelic.cli.config import find_recipe, read, to_options
from autotelic.errors import UserError


@dataclass
class Small:
    rate: float = 1.0
    count: int | None = None
    on: bool = False
    off: bool = True
    text: str | None = None
    kind: Literal["one", "two"] = "one"
    weights: list[float] | None = None
    names: str | list[str] | None = None
    settings: dict[str, Any] | str | None = None
    method: str | Mapping[str, Any] = "none"
    output_dir: str = "x"


@dataclass
class Other:
    losses: list[str] = field(default_factory=lambda: ["a"])


def small(*options: str, **defaults: Any) -> Small:
    return read((Small, Other), options, defaults)[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--rate 1e-4 --count 3", {"rate": 1e-4, "count": 3}),
        ("--rate=1e-4 --count none", {"rate": 1e-4, "count": None}),
        ("--on --no-off", {"on": True, "off": False}),
        ("--on true --no_off", {"on": True, "off": False}),
        ("--output-dir a --text -3+4=?", {"output_dir": "a", "text": "-3+4=?"}),
        ("--output a", {"output_dir": "a"}),
        ("--weights 1 0.5 --names all", {"weights": [1.0, 0.5], "names": "all"}),
        ('--settings {"a":1}', {"settings": {"a": 1}}),
        ("--settings {a:,b:}", {"settings": {"a": None, "b": None}}),
        ("--method empo,low=0.1", {"method": "empo,low=0.1"}),
        ("--method empo,low=0.1 --method.high 0.9", {"method": {"name": "empo", "low": "0.1", "high": "0.9"}}),
        ("--kind two --text none", {"kind": "two", "text": "none"}),
    ],
)
def test_command_line(options, expected):
    found = small(*options.split())
    assert {name: getattr(found, name) for name in expected} == expected


def test_recipe_between_defaults_and_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rate: 5e-7\ncount: 3\nmethod: {name: clip_cov, low: 1}\nlosses: b\nsettings: {a: {b: 1}}\n")
    for words in (["--config", str(recipe)], [f"--config={recipe}"]):
        found, other = read((Small, Other), [*words, "--count", "4", "--method.low", "2"], {"rate": 9.0, "text": "d"})
        assert (found.rate, found.count, found.text) == (5e-7, 4, "d")
        assert found.method == {"name": "clip_cov", "low": "2"}
        assert found.settings == {"a": {"b": 1}} and other.losses == ["b"]


def test_what_is_written_is_read_back():
    values = {"rate": 0.5, "on": True, "weights": [1.0, 2.0], "method": {"name": "empo", "low": 0.1}, "text": "a b"}
    found = small(*to_options(values))
    assert {name: getattr(found, name) for name in values} == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rat 1", "did you mean 'rate'"),
        ("--rate fast", "rate is 'fast', not a number"),
        ("--count 1.5", "count is '1.5', not a whole number"),
        ("--kind three", "one of one, two"),
        ("--on maybe", "true or false"),
        ("--rate 1 2", "takes one value, got 2"),
        ("--rate", "--rate needs a value"),
        ("--text --count 3", "--text needs a value"),
        ("fast", "belongs to no option"),
        ("--config", "needs a file name"),
        ("--config no.yaml", "cannot read the recipe"),
        ("--config tiny_grop", "did you mean 'tiny_grpo'"),
        ("--settings {", "neither JSON nor YAML"),
    ],
)
def test_what_cannot_be_meant_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        small(*options.split())
    assert "\n" not in str(caught.value)


def test_a_recipe_of_the_package_is_found_by_its_name():
    path = find_recipe("tiny_grpo")
    assert path.name == "tiny_grpo.yaml" and path.is_file()
    assert find_recipe("some/file.yaml") == Path("some/file.yaml")


def test_every_field_of_the_engines_takes_its_own_default():
    """What TRL's classes hold can be written in YAML and on a command line, and comes back as it was."""
    from dataclasses import MISSING, fields

    from trl import DPOConfig, GRPOConfig, ModelConfig

    from autotelic.cli.config import convert, fields_of

    for cls in (GRPOConfig, DPOConfig, ModelConfig):
        kinds = fields_of(cls)
        for each in fields(cls):
            if each.init and each.default is not MISSING and each.default is not None:
                text = json.dumps(each.default) if isinstance(each.default, dict) else str(each.default)
                assert convert([text], kinds[each.name], each.name) in (each.default, text), each.name
                assert convert(each.default, kinds[each.name], each.name) == each.default, each.name


def test_a_setting_that_was_an_option_says_where_it_went():
    from autotelic.cli.train import parse

    for option, message in (
        ("fraction", "--entropy_control NAME,fraction=VALUE"),
        ("kl_form", "--entropy_control NAME,form=VALUE"),
        ("threshold_low", "--reward NAME,low=VALUE"),
        ("em_floor", "--em floor=VALUE"),
        ("probe_k", "--probe k=VALUE"),
        ("stop_action", "--probe action=VALUE"),
        ("train_generations", "--rollout train_generations=VALUE"),
    ):
        with pytest.raises(UserError, match=message):
            parse("grpo", [f"--{option}", "1"])


def test_a_run_has_at_most_thirty_options_of_ours():
    from dataclasses import fields

    from autotelic.trl.arguments import GROUPS, RunArguments

    assert len(fields(RunArguments)) <= 30
    assert all(each.metadata["help"] and each.metadata["group"] in GROUPS for each in fields(RunArguments))


def test_a_name_given_twice_is_refused_in_a_recipe_and_the_last_value_on_the_command_line_is_taken(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rate: 1\nsettings: {a: 1, a: 2}\n")
    with pytest.raises(UserError, match="gives 'a' twice"):
        read([Small], ["--config", str(recipe)])
    recipe.write_text("rate: 1\nrate: 2\n")
    with pytest.raises(UserError, match="gives 'rate' twice"):
        read([Small], ["--config", str(recipe)])
    recipe.write_text("output: a\noutput_dir: b\n")
    with pytest.raises(UserError, match="output and output_dir are the same option"):
        read([Small], ["--config", str(recipe)])
    with pytest.raises(UserError, match="on and no_on are the same option"):
        read([Small], ["--on", "--no_on"])
    assert read([Small], ["--rate", "2", "--rate=2"])[0].rate == 2
    assert not capsys.readouterr().err
    assert read([Small], ["--rate", "1", "--rate=2"])[0].rate == 2
    assert capsys.readouterr().err == "autotelic: --rate is given more than once (1, 2): the last is taken\n"
    assert read([Small], ["--rate", "2"], over={"rate": 3.0})[0].rate == 3


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(b"\xef\xbb\xbfrate: 2\r\n")
    assert read([Small], ["--config", str(recipe)])[0].rate == 2
