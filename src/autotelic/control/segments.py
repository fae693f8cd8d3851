"""Segments and preferences over episodes: how they are cut, paired and stored.

On disk, beside the episodes: one NumPy file (`preferences.npz`, no pickles) with

    episode, start, length   (N)   segment n is steps start .. start + length - 1 of that episode
    first, second            (M)   rows of segments: pair m compares segment first[m] with second[m]
    label                    (M)   probability that the second is preferred, in [0, 1]
    score                    (N)   what the judge thought of each segment (optional; training never reads it)
    settings                       JSON text: judge, temperature, seed, ... (optional)

`sparse` compares each segment once; `dense` compares all pairs of a pool, as in the paper.

Reference: arXiv:2505.06273 (64-step segments, dense and sparse).
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from autotelic.control.episodes import Episode
from autotelic.errors import UserError
from autotelic.runs.files import write_atomically

Number = float | int
Comparisons = Literal["sparse", "dense"]


@dataclass(frozen=True)
class Preferences:
    """Segments of episodes, and comparisons of them: the file's arrays, whose lengths `check_preferences` compares."""

    episode: Int[ndarray, " _"]
    start: Int[ndarray, " _"]
    length: Int[ndarray, " _"]
    first: Int[ndarray, " _"]
    second: Int[ndarray, " _"]
    label: Float[ndarray, " _"]
    score: Float[ndarray, " _"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def take(self, pairs: Int[ndarray, " K"] | slice) -> "Preferences":
        """Return some of the pairs, over the same segments."""
        return replace(self, first=self.first[pairs], second=self.second[pairs], label=self.label[pairs])


def cut_segments(
    episodes: Sequence[Episode], count: int, length: int, generator: np.random.Generator
) -> tuple[Int[ndarray, " N"], Int[ndarray, " N"]]:
    """Draw `count` segments: episodes as evenly as possible, each start uniform. Returns episode and start."""
    long_enough = np.array([i for i, episode in enumerate(episodes) if len(episode) >= length])
    if not len(long_enough):
        longest = max(map(len, episodes), default=0)
        raise UserError(f"no episode has {length} steps (the longest has {longest}): use a shorter --segment-length.")
    order = np.concatenate([generator.permutation(long_enough) for _ in range(-(-count // len(long_enough)))])[:count]
    room = np.array([len(episodes[i]) - length + 1 for i in order])
    return order, (generator.random(count) * room).astype(np.int64)


def pair_up(
    count: int, kind: str, generator: np.random.Generator, limit: int | None = None
) -> tuple[Int[ndarray, " M"], Int[ndarray, " M"]]:
    """Compare each of `count` segments once (`sparse`), or all pairs (`dense`), at most `limit` of them."""
    if kind == "sparse":
        order = generator.permutation(count)
        first, second = order[: count // 2], order[count // 2 : 2 * (count // 2)]
    elif kind == "dense":
        first, second = np.triu_indices(count, 1)
        order = generator.permutation(len(first))
        first, second = first[order], second[order]
        swap = generator.random(len(first)) < 0.5
        first, second = np.where(swap, second, first), np.where(swap, first, second)
    else:
        raise UserError(f"unknown comparisons {kind!r}: sparse (each segment once) or dense (all pairs of the pool).")
    return first[:limit], second[:limit]


def answer(
    score: Float[ndarray, " N"],
    first: Int[ndarray, " M"],
    second: Int[ndarray, " M"],
    generator: np.random.Generator,
    temperature: Number = 0.0,
    flip_fraction: Number = 0.0,
) -> Float[ndarray, " M"]:
    """Draw a judge's answers: P(second) = sigma(difference / temperature), some flipped.

    Args:
        score: of each segment.
        first: rows of the first segments.
        second: rows of the second ones.
        generator: of the answers.
        temperature: in units of the score; 0 always names the higher score.
        flip_fraction: share of answers that are turned round, whatever the difference.
    """
    if temperature < 0 or not 0 <= flip_fraction <= 1:
        raise UserError(f"temperature {temperature} must be 0 or more, and flip_fraction {flip_fraction} a share.")
    difference = score[second] - score[first]
    chance = 0.5 * (1 + np.tanh(0.5 * difference / max(float(temperature), 1e-12)))
    label = generator.random(len(chance)) < chance
    return (label ^ (generator.random(len(chance)) < flip_fraction)).astype(np.float32)


def merge_preferences(parts: Sequence[Preferences]) -> Preferences:
    """Put comparisons over the same episodes together; segments are not shared between the parts."""
    offset = np.concatenate([[0], np.cumsum([len(p.episode) for p in parts])[:-1]])

    def join(name: str, shift: bool = False) -> ndarray:
        return np.concatenate([getattr(part, name) + by for part, by in zip(parts, offset * shift, strict=True)])

    where = (join("episode"), join("start"), join("length"))
    label = np.concatenate([part.label for part in parts])
    return Preferences(*where, first=join("first", shift=True), second=join("second", shift=True), label=label)


def write_preferences(path: Path, preferences: Preferences) -> None:
    """Write the file whole, or not at all."""
    names = ("episode", "start", "length", "first", "second", "label", "score")
    arrays = {name: value for name in names if (value := getattr(preferences, name)) is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, settings=np.array(json.dumps(preferences.settings)))
    write_atomically(path, buffer.getvalue())


def read_preferences(path: Path, episodes: Sequence[Episode]) -> Preferences:
    """Read and check the file against its episodes; the error names file, row and remedy."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(
            f"cannot read preferences from {path}: {error}. Write them with `autotelic control data`."
        ) from None
    required = ("episode", "start", "length", "first", "second", "label")
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(required)}.")
    try:
        settings = json.loads(str(arrays.get("settings", "{}")))
        integers = {name: arrays[name].astype(np.int64) for name in required[:5]}
        score = arrays["score"].astype(np.float32) if "score" in arrays else None
        preferences = Preferences(**integers, label=arrays["label"].astype(np.float32), score=score, settings=settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds an array of the wrong kind: {error}. Write it again.") from None
    check_preferences(preferences, episodes, path)
    return preferences


def check_preferences(preferences: Preferences, episodes: Sequence[Episode], source: Path | str) -> None:
    """Refuse segments and pairs that point nowhere, arrays of different lengths, and labels that are no probability."""

    def refuse_first(bad: Bool[ndarray, " N"], what: str, why: str) -> None:
        if bad.any():
            raise UserError(f"{source}, {what} {int(np.argmax(bad))}: {why}")

    for group in (("episode", "start", "length"), ("first", "second", "label")):
        sizes = {name: len(getattr(preferences, name)) for name in group}
        if len(set(sizes.values())) > 1:
            raise UserError(f"{source}: arrays differ in length ({sizes}). Give one entry per row in each.")
    if not len(preferences.first):
        raise UserError(f"{source} holds no pair: there is nothing to learn from. Label some segments.")
    p = preferences
    bad = (p.episode < 0) | (p.episode >= len(episodes))
    refuse_first(bad, "segment", f"points to an episode that is not among the {len(episodes)} recorded. Remove it.")
    steps = np.array([len(episode) for episode in episodes])[p.episode]
    bad = (p.start < 0) | (p.length < 1) | (p.start + p.length > steps)
    refuse_first(bad, "segment", "leaves its episode. Cut it to the recorded steps.")
    for side in (p.first, p.second):
        bad = (side < 0) | (side >= len(p.episode))
        refuse_first(bad, "pair", f"points to a segment that is not among the {len(p.episode)}. Remove the pair.")
    refuse_first(p.first == p.second, "pair", "compares a segment with itself. Remove the pair.")
    bad = ~((p.label >= 0) & (p.label <= 1))
    refuse_first(bad, "pair", "has a label that is no probability in [0, 1]. Give P(second preferred).")
