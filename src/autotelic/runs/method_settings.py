"""How a method and its settings are written, and one reader for them.

    clip_cov,fraction=2e-4,low=1                         on a command line
    {name: clip_cov, fraction: 2.0e-4, low: 1}           in YAML
    diversity,entropy_floor,floor=0.3                    several methods: an item without "=" begins the next one

A method is a dataclass. Its fields are its settings: the annotation is the type, `setting` adds unit and help. Whatever
reads a table of methods (entropy controls, rewards, stop rules) reads these fields, so no setting is listed twice.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from autotelic.errors import UserError, closest, one_of

M = TypeVar("M")
Spec = str | Mapping[str, Any]
"""One method as it is written: ``name,key=value`` or a mapping with ``name``."""
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def setting(default: Any, help: str, *, unit: str = "", needed: str = "") -> Any:
    """Return a dataclass field for a setting.

    Args:
        default: the value, or None.
        help: what it does, for documents and error messages.
        unit: nats, share, ...
        needed: where there is no default: the hint that `check_settings` gives when it is missing.
    """
    return field(default=default, metadata={"help": help, "unit": unit, "needed": needed})


@dataclass(frozen=True)
class Setting:
    """One setting of a method, for documents and forms."""

    name: str
    type: Any
    default: Any
    unit: str
    help: str


def settings_of(method: type) -> list[Setting]:
    """Return the settings of a method in the order of its fields, those of base classes last."""
    own = list(vars(method).get("__annotations__", {}))
    found = sorted((f for f in fields(method) if f.init), key=lambda f: f.name not in own)
    return [
        Setting(f.name, f.type, None if f.default is MISSING else f.default, *(f.metadata.get(k, "") for k in _KEYS))
        for f in found
    ]


_KEYS = ("unit", "help")


def check_settings(method: Any) -> None:
    """Refuse a missing setting that has no default, and a value that is not among its choices."""
    name = getattr(method, "name", type(method).__name__)
    for f in fields(method):
        value, needed = getattr(method, f.name), f.metadata.get("needed")
        if value is None and needed:
            raise UserError(f"{name} needs {f.name}: {needed}")
        choices = _choices(f.type)
        if choices and value is not None and value not in choices:
            raise UserError(f"{name}: {f.name} is {value!r}{closest(str(value), choices)}; one of {_list(choices)}")


def read(spec: Spec, kind: str = "method") -> tuple[str, dict[str, Any]]:
    """Return name and settings of one method, as written.

    Raises:
        UserError: more than one method, no name, a setting without a value or given twice.
    """
    methods = read_all(spec, kind)
    if len(methods) > 1:
        raise UserError(f"{kind} {spec!r}: {methods[1][0]!r} has no value; write {methods[1][0]}=VALUE")
    return methods[0]


def read_all(specs: Spec | Sequence[Spec], kind: str = "method") -> list[tuple[str, dict[str, Any]]]:
    """Return name and settings of each method in a text, a mapping or a list of them."""
    if isinstance(specs, Mapping):
        given = dict(specs)
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise UserError(f"{kind}: a mapping needs `name`, for example {{name: clip_cov, fraction: 0.01}}")
        return [(name, given)]
    if not isinstance(specs, str):
        return [method for spec in specs for method in read_all(spec, kind)]
    found: list[tuple[str, dict[str, Any]]] = []
    for item in (part.strip() for part in specs.split(",")):
        key, equals, value = (x.strip() for x in item.partition("="))
        if not key or (equals and not value):
            raise UserError(f"{kind} {specs!r}: {item!r} is not a name or a setting; write name,key=value")
        if not equals:
            found.append((key, {}))
        elif not found:
            raise UserError(f"{kind} {specs!r} begins with a setting; write name,{item}")
        elif key in found[-1][1]:
            raise UserError(f"{kind} {specs!r} sets {key} twice")
        else:
            found[-1][1][key] = value
    return found


def make(kind: str, spec: Spec, table: Mapping[str, Callable[..., M]]) -> M:
    """Return the method that a text or mapping names, with its settings.

    Args:
        kind: the option's name, for messages.
        spec: ``name,key=value,...`` or ``{name: ..., key: value}``.
        table: dataclasses by name.

    Raises:
        UserError: an unknown name or setting, or a value of the wrong type.
    """
    name, given = read(spec, kind)
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}{one_of(name, table)}")
    return table[name](**typed(kind, name, given, table[name]))


def typed(kind: str, name: str, given: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """Return settings with the types of a method's fields; text is converted, numbers are widened to float."""
    known = {f.name: f.type for f in fields(method) if f.init}
    for key in given:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{kind} {name} has no setting {key!r}{closest(key, known)}; {has}")
    return {key: _converted(value, known[key], f"{kind} {name}: {key}") for key, value in given.items()}


def _converted(value: Any, annotation: Any, where: str) -> Any:
    """Return a value as the annotation wants it, or say what it should have been."""
    optional, kinds = _kinds(annotation)
    if optional and (value is None or value == "none"):
        return None
    for kind in kinds:
        try:
            return _as(value, kind)
        except (ValueError, TypeError):
            continue
    raise UserError(f"{where} is {value!r}, not {' or '.join(dict.fromkeys(_describe(kind) for kind in kinds))}")


def _as(value: Any, kind: Any) -> Any:
    """Return a value as one plain type; raises ValueError where it is none."""
    if get_origin(kind) is Literal:
        choice = next((c for c in get_args(kind) if str(c) == str(value)), None)
        if choice is None:
            raise ValueError
        return choice
    if get_origin(kind) in (tuple, Sequence):
        items = value.split("+") if isinstance(value, str) else value
        return tuple(_as(item, get_args(kind)[0]) for item in items)
    if kind is bool:
        text = str(value).lower()
        if text not in TRUE + FALSE:
            raise ValueError
        return text in TRUE
    if isinstance(value, bool) and kind in (int, float):
        raise ValueError
    if kind is int and isinstance(value, float) and value != int(value):
        raise ValueError
    if kind in (int, float):
        return kind(value)
    if kind is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    parse = getattr(kind, "parse", None)
    if parse is None:
        raise ValueError
    return parse(value)


def _kinds(annotation: Any) -> tuple[bool, list[Any]]:
    """Return whether None is allowed, and the other types in the order in which to try them."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = [kind for kind in (get_args(annotation) if union else (annotation,)) if kind is not types.NoneType]
    return types.NoneType in get_args(annotation) if union else False, kinds


def _choices(annotation: Any) -> tuple[Any, ...]:
    _, kinds = _kinds(annotation)
    return get_args(kinds[0]) if len(kinds) == 1 and get_origin(kinds[0]) is Literal else ()


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {_list(get_args(kind))}"
    if get_origin(kind) in (tuple, Sequence):
        return "a list such as one+two"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(kind, getattr(kind, "written", "a value"))


def _list(choices: Sequence[Any]) -> str:
    return ", ".join(str(choice) for choice in choices)


def type_text(annotation: Any) -> str:
    """Return a type for documents: ``number``, ``abs | k1 | k2 | k3``, ..."""
    _, kinds = _kinds(annotation)
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    parts = []
    for kind in kinds:
        is_choice = get_origin(kind) is Literal
        parts.append(" / ".join(map(str, get_args(kind))) if is_choice else words.get(kind, _describe(kind)))
    return " or ".join(dict.fromkeys(parts))
