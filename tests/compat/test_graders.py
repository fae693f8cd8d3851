"""Parity with the authors' reward functions on recorded groups, quirks included."""

import gzip
import json
from pathlib import Path

import pytest

from autotelic import rewards as ours
from autotelic.compat import rewards as compat
from autotelic.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "label_free_rewards.jsonl.gz"
ROWS = [json.loads(line) for line in gzip.decompress(GOLDEN.read_bytes()).decode().splitlines()]


def check(rows, mode):
    for row in rows:
        expected = row["rewards"][mode]
        if expected is None:
            with pytest.raises(compat.UnsafeQuirkError, match="eval"):
                compat.rewards(row["responses"], mode)
        else:
            assert compat.rewards(row["responses"], mode) == pytest.approx(expected, abs=1e-12), row["id"]


@pytest.mark.parametrize(("mode", "every"), [("empo_trl", 60), ("empo_verl", 120), ("ttrl", 8)])
def test_recorded_rewards_sample(mode, every):
    check(ROWS[::every], mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(compat.MODES))
def test_recorded_rewards_all(mode):
    check(ROWS, mode)


def test_every_excluded_group_is_refused_and_no_other():
    excluded = [row for row in ROWS if "verl_excluded_eval" in row["flags"]]
    assert len(excluded) == 14
    check(excluded, "empo_verl")


def boxed(*answers):
    return [f"\\boxed{{{answer}}}" for answer in answers]


def test_known_quirks_and_what_we_do_instead():
    """Strings, tolerance, the empty vote: each asserted for the official code, and against our own reward."""
    halves = boxed("1/2", "0.5", "\\frac{1}{2}", "7")
    assert compat.rewards(halves, "empo_trl") == [0.0] * 4  # four strings, four clusters, entropy ln 4
    assert ours.empo(["q"] * 4, halves) == [0.75, 0.75, 0.75, 0.25]
    near = boxed("5040", "5041", "5041", "1")
    assert compat.rewards(near, "empo_verl") == [0.75, 0.75, 0.75, 0.25]
    assert ours.empo(["q"] * 4, near) == [0.25, 0.5, 0.5, 0.25]
    none = ["I give up."] * 3 + boxed("3")
    assert compat.rewards(none, "ttrl") == [1.0, 1.0, 1.0, 0.0]
    assert ours.majority_vote(["q"] * 4, none) == [0.0, 0.0, 0.0, 1.0]
    assert compat.rewards(none, "empo_verl") == [0.25] * 4


def test_the_empty_group():
    assert compat.rewards([], "ttrl") == []


def test_unknown_mode():
    with pytest.raises(UserError, match="did you mean 'empo_trl'"):
        compat.rewards(["1"], "empo_tlr")


@pytest.mark.parametrize("attack", ["9**9**9**9", "(" * 900, "\\frac{" * 100, "1e999"])
@pytest.mark.parametrize("mode", sorted(compat.MODES))
def test_hostile_text_does_no_harm(attack, mode):
    assert len(compat.rewards(boxed(attack, "1", "1"), mode)) == 3
