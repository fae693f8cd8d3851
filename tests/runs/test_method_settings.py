"""How a method and its settings are written: text and YAML give the same method, and mistakes get one line."""

from dataclasses import dataclass
from typing import Literal

import pytest

from autotelic.errors import UserError
from autotelic.runs.method_settings import check_settings, make, read, read_all, setting, settings_of, type_text


@dataclass(frozen=True)
class Method:
    share: float = setting(0.1, "a share", unit="share")
    count: int = setting(3, "a count")
    on: bool = setting(False, "a switch")
    kind: Literal["one", "two"] = setting("one", "a choice")
    target: float | None = setting(None, "a target", unit="nats", needed="for example 0.3")
    names: tuple[str, ...] = setting((), "a list")

    def __post_init__(self):
        check_settings(self)


TABLE = {"method": Method}


def test_text_and_mapping_give_the_same_method():
    text = make("option", "method, share=2e-4,on=true,kind=two,target=1,count=4,names=a+b", TABLE)
    given = {"share": 2e-4, "on": True, "kind": "two", "target": 1, "count": 4, "names": ["a", "b"]}
    assert text == make("option", {"name": "method"} | given, TABLE) == Method(2e-4, 4, True, "two", 1.0, ("a", "b"))
    assert make("option", {"name": "method", "share": "2e-4", "target": 1}, TABLE).share == 2e-4  # YAML 1.1 reads text


def test_several_methods_after_commas():
    wanted = [("diversity", {}), ("entropy_floor", {"floor": "0.3"}), ("collapse", {})]
    assert read_all("diversity,entropy_floor,floor=0.3,collapse") == wanted
    assert read_all(["diversity", {"name": "entropy_floor", "floor": 0.3}])[1] == ("entropy_floor", {"floor": 0.3})


def test_settings_for_documents():
    found = {each.name: each for each in settings_of(Method)}
    assert (found["share"].unit, found["share"].default, found["target"].default) == ("share", 0.1, None)
    assert [type_text(found[name].type) for name in ("share", "on", "kind")] == ["number", "true or false", "one / two"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("methd", "unknown option 'methd'; did you mean 'method'"),
        ("method,shar=1", "no setting 'shar'; did you mean 'share'"),
        ("method,share=many,target=1", "share is 'many', not a number"),
        ("method,count=1.5,target=1", "count is '1.5', not a whole number"),
        ({"name": "method", "count": True, "target": 1}, "count is True, not a whole number"),
        ("method,on=perhaps,target=1", "on is 'perhaps', not true or false"),
        ("method,kind=three,target=1", "kind is 'three', not one of one, two"),
        ("method", "needs target: for example 0.3"),
        ("method,target=none", "needs target"),
        ("method,share", "'share' has no value; write share=VALUE"),
        ("method,share=", "is not a name or a setting"),
        ("share=1", "begins with a setting"),
        ("method,share=1,share=2", "sets share twice"),
        ({"share": 1}, "needs `name`"),
    ],
)
def test_mistakes_get_one_line(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        make("option", spec, TABLE)
    assert "\n" not in str(caught.value)


def test_a_choice_given_in_python_is_checked():
    with pytest.raises(UserError, match="kind is 'tow'; did you mean 'two'"):
        Method(kind="tow", target=1.0)


def test_read_returns_what_was_written():
    assert read("clip_cov,fraction=2e-4") == ("clip_cov", {"fraction": "2e-4"})
