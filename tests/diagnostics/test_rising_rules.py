"""Rules about entropy that rises: each trips on its failure and on no other, and says what to change."""

from dataclasses import replace

import pytest

from autotelic.diagnostics.probe_statistics import ProbeStatistics
from autotelic.diagnostics.rising_rules import slope_of, unknown_share, words_of
from autotelic.diagnostics.stopping import RULES, first_tripped, read_rules, stopping_point
from autotelic.errors import UserError

START = ProbeStatistics(
    majority=("1", "2"),
    parse_rate=0.9,
    majority_share=0.5,
    unanimous_share=0.1,
    diversity=0.4,
    semantic_entropy=0.8,
    modal_answer_share=0.2,
    mean_length=10.0,
    repetition=0.0,
    token_entropy=0.6,
    unknown_words=0.0,
    turn_ratio=1.0,
)
RISING = read_rules("rising")


def history(**series):
    length = len(next(iter(series.values())))
    return [replace(START, **{name: values[i] for name, values in series.items()}) for i in range(length)]


CASES = {
    "entropy_ceiling": ({"token_entropy": [0.6, 0.65, 0.7, 1.3]}, 3),  # 1.3 > 2 x .6
    "entropy_slope": ({"token_entropy": [0.6, 0.66, 0.72, 0.78, 0.84, 0.90]}, 4),  # .06 a probe, from the fifth on
    "turn_eruption": ({"turn_ratio": [1.0, 1.5, 2.5]}, 2),
    "garbled": ({"unknown_words": [0.0, 0.1, 0.2, 0.5]}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_trips_on_its_failure_and_says_what_to_change(name):
    series, place = CASES[name]
    probes = history(**series)
    assert stopping_point(RULES[name](), probes) == place
    assert first_tripped(RISING, probes[: place + 1])[0] == name and RULES[name].advice


@pytest.mark.parametrize(
    "series",
    [
        {"token_entropy": [0.6, 0.5, 0.3, 0.2, 0.1, 0.05]},  # falls
        {"token_entropy": [0.6, 0.7, 0.55, 0.65, 0.6, 0.62]},  # wanders
        {"unknown_words": [0.0, 0.4, 0.42, 0.38, 0.41, 0.45]},  # a text of many words, from the first probe on
        {"turn_ratio": [2.5, 2.6, 2.4, 2.7, 2.5, 2.6]},  # later turns were harder from the start
        {"turn_ratio": [None] * 6, "unknown_words": [None] * 6, "token_entropy": [None] * 6},
    ],
)
def test_no_rule_trips_on_a_healthy_or_a_falling_run(series):
    probes = history(**series)
    assert all(first_tripped(RISING, probes[: i + 1]) is None for i in range(len(probes)))


def test_entropy_that_falls_names_what_to_change_too():
    tripped = first_tripped(read_rules("entropy_floor"), history(token_entropy=[0.6, 0.1]))
    assert tripped[0] == "entropy_floor" and "entropy control" in RULES["entropy_floor"].advice
    assert all(rule.advice for rule in RULES.values())


def test_words():
    assert words_of(["The cat, the Cat's 12 ab x_yz"]) == ["the", "cat", "the", "cat"]
    assert unknown_share(["the cat sat", "the zqx"], {"the", "cat", "sat"}) == 0.2
    assert unknown_share(["1 + 2"], {"the"}) is None


def test_slope_by_hand():
    assert slope_of([1.0, 1.0, 4.0]) == 1.5
    assert slope_of([2.0, 2.0, 2.0]) == 0.0
    with pytest.raises(UserError, match="at least 3"):
        RULES["entropy_slope"](probes=2)
