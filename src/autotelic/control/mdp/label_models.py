"""Policy labels for finite MDPs: whose behaviour each segment is compared under, known or not, and the controls.

A label set is a table of policies `(K, X, A)` and one index per segment. `known`, `estimated`, `deterministic` and
`pooled` are what a user may have; `shuffled` and `wrong` are controls, which must hurt where labels matter.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from autotelic.control.mdp.fit import Segments
from autotelic.errors import UserError, one_of

LabelKind = Literal["known", "estimated", "deterministic", "pooled", "shuffled", "wrong"]


def clone_behavior(
    segments: Segments, num_policies: int, shape: tuple[int, int], smoothing: float | int = 0.5
) -> Float[ndarray, "K X A"]:
    """Behaviour cloning per policy id: action frequencies over every recorded step, plus `smoothing` per action."""
    counts = np.full((num_policies, *shape), float(smoothing))
    rows, steps = np.nonzero(segments.valid)
    np.add.at(counts, (segments.policy[rows], segments.states[rows, steps], segments.actions[rows, steps]), 1.0)
    return counts / counts.sum(-1, keepdims=True)


def label_policies(
    kind: str, segments: Segments, policies: Float[ndarray, "K X A"], generator: np.random.Generator
) -> tuple[Segments, Float[ndarray, "L X A"]]:
    """Return the segments with their policy index, and the table of policies that it points into (`LabelKind`).

    Args:
        kind: `known`: as given; `estimated`: cloned per policy id; `deterministic`: the most likely action of the known
            policy; `pooled`: one clone of all data; `shuffled`: indices permuted over segments; `wrong`: every segment
            points to the next policy.
        segments: with the index of their true policy.
        policies: the true behaviour policies.
        generator: used by `shuffled` alone.
    """
    shape = (policies.shape[1], policies.shape[2])
    match kind:
        case "known":
            return segments, policies
        case "estimated":
            return segments, clone_behavior(segments, len(policies), shape)
        case "deterministic":
            return segments, np.eye(shape[1])[policies.argmax(-1)]
        case "pooled":
            merged = replace(segments, policy=np.zeros_like(segments.policy))
            return merged, clone_behavior(merged, 1, shape)
        case "shuffled":
            return replace(segments, policy=generator.permutation(segments.policy)), policies
        case "wrong":
            return replace(segments, policy=(segments.policy + 1) % len(policies)), policies
    raise UserError(f"unknown policy label {kind!r}{one_of(kind, get_args(LabelKind))}")
