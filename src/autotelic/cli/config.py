"""One reader for the options of every command: a YAML file and a command line become dataclasses.

    --learning_rate 1e-4   --learning-rate=1e-4          the same option
    --use_vllm             --no_use_vllm                 a switch, on and off
    --reward_weights 1 0.5                               a list
    --reward empo,low=0.1  --reward.low 0.1              a method with settings; one setting of it
    --config RECIPE.yaml   --config=RECIPE.yaml          a mapping of the same names; the command line overrides it

Values from YAML and from the command line meet the same checks: a field's annotation says what it may be.
"""

import dataclasses
import enum
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from autotelic.errors import UserError, closest, one_of

T = TypeVar("T")
ALIASES = {
    "output": "output_dir",
    "model": "model_name_or_path",
    "dataset_name": "dataset",
    "reward_funcs": "reward",
}
"""Names that are understood beside a field's own: those of the other commands, and TRL's of data set and reward."""


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: a file that cannot be read, or that holds something else.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a name that is given twice; YAML itself would take the last value."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"the {what} {path} gives {twice!r} twice: give it once")
            return super().construct_mapping(node, deep)

    try:
        found = Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not YAML: {' '.join(str(error).split())}") from error
    found = {} if found is None else found
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"the {what} {path} must be a mapping of names to values")
    return found


def find_recipe(name: str) -> Path:
    """Return the file that is meant; a bare name is one of the recipes that come with the package."""
    path, package = Path(name), Path(__file__).parent.parent
    if path.suffix or path.exists() or len(path.parts) > 1:
        return path
    folders = (package / "recipes", package.parent.parent / "recipes")  # in the wheel; beside src in a checkout
    found = [folder / f"{name}.yaml" for folder in folders if folder.is_dir()]
    known = sorted({each.stem for place in found for each in place.parent.glob("*.yaml")})
    if not any(place.exists() for place in found):
        raise UserError(f"there is no recipe {name!r}{one_of(name, known)}")
    return next(place for place in found if place.exists())


def split_options(options: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[str] | bool]]:
    """Return the recipe and the words given to each option; a switch without words is True, `--no_x` is x: False."""
    every: dict[str, list[list[str]]] = {}
    recipe: dict[str, Any] = {}
    name = ""
    for word in options:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            every.setdefault(name, []).append([value] if equals else [])
        elif not name:
            raise UserError(f"{word!r} belongs to no option: write --NAME VALUE")
        else:
            every[name][-1].append(word)
    for name, uses in every.items():
        if any(words != uses[-1] for words in uses):  # `script.sh "$@"` overrides what the script gives
            values = ", ".join(" ".join(words) or "no value" for words in uses)
            print(f"autotelic: --{name} is given more than once ({values}): the last is taken", file=sys.stderr)
    given = {name: uses[-1] for name, uses in every.items()}
    if "config" in given:
        files = given.pop("config")
        if len(files) != 1:
            raise UserError("--config needs a file name")
        recipe = {key.replace("-", "_"): value for key, value in read_yaml(find_recipe(files[0])).items()}
    return recipe, {key: words or True for key, words in given.items()}


def read(
    classes: Sequence[type],
    options: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    former: Callable[[str], str | None] = lambda name: None,
    over: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Return one instance of each dataclass: defaults, under the recipe, under the command line, under `over`.

    Args:
        classes: dataclasses; each takes the values of its own fields.
        options: words of the command line.
        defaults: values that replace those of the classes.
        former: name -> what to write now, for names that exist no more.
        over: values that replace all others.

    Raises:
        UserError: an unknown name, or a value that its field cannot have.
    """
    kinds = {name: kind for cls in classes for name, kind in fields_of(cls).items()}
    recipe, given = split_options(options)
    values = dict(defaults or {})
    for source, where in ((recipe, "the recipe has an unknown key {!r}"), (given, "unknown option '--{}'")):
        spelled: dict[str, str] = {}
        for written, value in source.items():
            name, value = named(ALIASES.get(written, written), value, kinds)
            if spelled.setdefault(name, written) != written:
                raise UserError(f"{spelled[name]} and {written} are the same option: give one of them")
            method, dot, setting = name.partition(".")
            if dot and method in kinds and holds_mapping(members_of(kinds[method])):
                value = value[0] if isinstance(value, list) else value
                values[method] = mapping_from(values.get(method), method) | {setting: value}
                continue
            if name not in kinds:
                raise UserError(former(name) or where.format(name) + closest(name, kinds))
            if source is given and value is True and needs_value(kinds[name]):
                raise UserError(f"--{name} needs a value")
            values[name] = convert(value, kinds[name], name)
    values |= dict(over or {})
    try:
        return [cls(**{name: values[name] for name in fields_of(cls) if name in values}) for cls in classes]
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"this configuration cannot be used: {error}") from error


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the dataclass that a mapping (of YAML) describes; a field that is a dataclass takes a mapping too.

    Raises:
        UserError: an unknown key, or a value that its field cannot have.
    """
    kinds = fields_of(cls)
    found: dict[str, Any] = {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a mapping of names to values, got {values!r}")
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"{where} has an unknown key {name!r}{closest(name, kinds)}")
        inner = dataclasses.is_dataclass(kinds[name])
        found[name] = (
            from_mapping(kinds[name], value, f"{where}, {name}") if inner else convert(value, kinds[name], name)
        )
    return cls(**found)


def mapping_from(spec: Any, kind: str) -> dict[str, Any]:
    """Return `name,key=value`, or `key=value` alone, as a mapping."""
    from autotelic.runs.method_settings import read as read_spec

    if isinstance(spec, Mapping):
        return dict(spec)
    if not spec:
        return {}
    if "=" in str(spec).partition(",")[0]:
        return read_spec(f"{kind},{spec}", kind)[1]
    name, given = read_spec(spec, kind)
    return {"name": name, **given}


def named(name: str, value: Any, kinds: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of an option; `no_x` without a value is x: False."""
    bare = name.removeprefix("no_")
    if name not in kinds and bare != name and bare in kinds and value is True:
        return bare, False
    return name, value


def fields_of(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass that its constructor takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def convert(value: Any, kind: Any, name: str) -> Any:
    """Return a value of the command line (a list of words, or True) or of YAML as a field's annotation wants it.

    Raises:
        UserError: a value of another kind.
    """
    members = members_of(kind)
    lists = [member for member in members if get_origin(member) in (list, tuple) or member in (list, tuple)]
    if lists and not isinstance(value, list | Mapping | None) and not set(members) & {str, bool, int, float, Any}:
        value = [value]
    if isinstance(value, list):
        if lists and not (len(value) == 1 and str in members):
            item = (get_args(lists[0]) or (str,))[0]
            found = [convert_one(word, members_of(item), name) for word in value]
            return tuple(found) if (get_origin(lists[0]) or lists[0]) is tuple else found
        if len(value) != 1:
            raise UserError(f"{name} takes one value, got {len(value)}: {' '.join(map(str, value))}")
        value = value[0]
    return convert_one(value, members, name)


def needs_value(kind: Any) -> bool:
    """Tell whether an option means nothing without a word: it is neither a switch nor a method."""
    return not holds_mapping(members_of(kind)) and not {bool, Any} & set(members_of(kind))


def members_of(kind: Any) -> list[Any]:
    """Return the members of a union, or the one kind."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def convert_one(value: Any, members: Sequence[Any], name: str) -> Any:
    """Return one value as the first member that can hold it."""
    text = value.strip() if isinstance(value, str) else None
    if types.NoneType in members and (value is None or (str not in members and (text or "").lower() == "none")):
        return None
    if text is not None and text.startswith("{") and holds_mapping(members):
        value = mapping_of(text, name)
    if isinstance(value, Mapping) and holds_mapping(members):
        return dict(value)
    for member in members:
        if get_origin(member) is Literal and value in get_args(member):
            return value
        if member is bool and (isinstance(value, bool) or (text or "").lower() in ("true", "false")):
            return value if isinstance(value, bool) else str(text).lower() == "true"
    for number in (int, float):
        if number in members and isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                found = number(value)
            except (ValueError, TypeError, OverflowError):
                continue
            if found != found:  # nan is no number that a setting could have
                continue
            if number is float or not isinstance(value, float) or found == value:
                return found
    if str in members or Any in members or any(isinstance(m, type) and issubclass(m, enum.Enum) for m in members):
        return value if value is None or isinstance(value, bool | list | Mapping) else str(value)
    raise UserError(f"{name} is {value!r}, not {' or '.join(dict.fromkeys(described(m) for m in members))}")


def holds_mapping(members: Sequence[Any]) -> bool:
    """Tell whether one of the kinds is a mapping."""
    return any((get_origin(member) or member) in (dict, Mapping) for member in members)


def mapping_of(text: str, name: str) -> Any:
    """Return the mapping in a text such as `{"dtype": "auto"}`."""
    import yaml

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{name} is neither JSON nor YAML: {text}") from error


def described(kind: Any) -> str:
    """Return a kind in plain words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {bool: "true or false", int: "a whole number", float: "a number", types.NoneType: "none"}
    return "a mapping" if holds_mapping([kind]) else names.get(kind, "a text")


def to_options(values: Mapping[str, Any]) -> list[str]:
    """Return the command line that gives these values; `read` reads it back."""
    words: list[str] = []
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(json.dumps(each) if isinstance(each, Mapping) else str(each) for each in items)]
    return words
