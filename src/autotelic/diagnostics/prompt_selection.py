"""Which prompts to train on: scores of a prompt from k sampled responses, with labels and without.

    with labels      mean p and variance p (1 - p) of correctness, pass@k
    without          p_max, p_max (1 - p_max), semantic entropy, token entropy,
                     agreement = mean over pairs of temperatures of sum_c p_s(c) p_t(c)

The label-free scores take clusters of answers and never see an answer key; correctness comes from
`autotelic.evaluation`. Every score but the accuracies is oriented so that more means: train on this one.

Reference: Gao et al. 2025, arXiv:2505.20282 (the variance of correctness; the authors released no code for it);
Kuhn et al. 2023, arXiv:2302.09664 (semantic entropy).
Deviations: the label-free scores are ours. Ties go to the smaller id.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from autotelic.errors import UserError, closest

BY_LABELS = ("mean", "variance")
LABEL_FREE = ("majority_variance", "semantic_entropy", "token_entropy", "disagreement")
"""Scores to rank by, most promising prompt first."""


def label_free_scores(
    clusters: Sequence[int],
    *,
    temperatures: Sequence[float] | None = None,
    token_entropy: float | None = None,
) -> dict[str, float | None]:
    """Return what can be said about one prompt without its answer.

    Args:
        clusters: an integer per response; equal ones mean equal answers, -1 is no answer.
        temperatures: at which each response was sampled; all but `disagreement` read those of the first one only.
        token_entropy: nats per token over those responses, where a model was at hand.
    """
    import torch

    from autotelic.functional import majority_share, majority_variance, semantic_entropy

    first = list(clusters)
    if temperatures is not None:
        if len(temperatures) != len(clusters):
            raise UserError(f"{len(clusters)} responses but {len(temperatures)} temperatures: give one for each")
        first = [c for c, t in zip(clusters, temperatures, strict=True) if t == temperatures[0]]
    group = torch.tensor([first])
    agreed = agreement(clusters, temperatures) if temperatures is not None else None
    return {
        "majority_share": float(majority_share(group)),
        "majority_variance": float(majority_variance(group)),
        "semantic_entropy": float(semantic_entropy(group)),
        "token_entropy": token_entropy,
        "agreement": agreed,
        "disagreement": None if agreed is None else 1.0 - agreed,
    }


def agreement(clusters: Sequence[int], temperatures: Sequence[float]) -> float | None:
    """Return the chance that two responses of different temperatures agree; None with one temperature only.

    A response without an answer agrees with nothing.
    """
    groups = {t: [c for c, u in zip(clusters, temperatures, strict=True) if u == t] for t in sorted(set(temperatures))}
    pairs = [
        np.mean([[a == b and a >= 0 for b in groups[u]] for a in groups[t]]) for t, u in combinations(sorted(groups), 2)
    ]
    return float(np.mean(pairs)) if pairs else None


def labelled_scores(correct: Sequence[bool]) -> dict[str, Any]:
    """Return mean and variance of correctness, and pass@1, 2, 4 ... of one prompt."""
    from autotelic.evaluation import pass_at_k

    row = np.array([correct], dtype=bool)
    k = row.shape[1]
    p = float(row.mean())
    powers = sorted({*(2**i for i in range(k.bit_length()) if 2**i <= k), k})
    return {"mean": p, "variance": p * (1 - p), "pass_at_k": {str(j): float(pass_at_k(row, j)[0]) for j in powers}}


def rank(rows: Sequence[Mapping[str, Any]], by: str, *, reverse: bool = False) -> list[dict[str, Any]]:
    """Return the rows, best first, with their `rank` from 1; ties go to the smaller id.

    Args:
        rows: with `id` and the score.
        by: the name of the score.
        reverse: least promising first.

    Raises:
        UserError: a row does not have the score.
    """
    names = [name for name in (*BY_LABELS, *LABEL_FREE) if all(row.get(name) is not None for row in rows)]
    if by not in names:
        raise UserError(f"cannot rank by {by!r}{closest(by, names)}; these prompts have {', '.join(names)}")
    sign = 1 if reverse else -1
    # Rounded, so that the last bit of a float does not decide where the mathematics says: equal.
    ordered = sorted(rows, key=lambda row: (sign * round(float(row[by]), 9), natural(str(row["id"]))))
    return [{"rank": place, **row} for place, row in enumerate(ordered, start=1)]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts `p2` before `p10`."""
    import re

    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", text)
        if part
    )


def compare_scores(rows: Sequence[Mapping[str, Any]], *, num_top: int = 10) -> dict[str, dict[str, float | None]]:
    """Return how well each label-free score finds what the labelled variance finds.

    Returns:
        For each score: `spearman` (None where either is constant), `top_overlap` (share of the labelled top `num_top`
        that its own top `num_top` holds) and `chance`, the overlap of a random choice.
    """
    from scipy.stats import spearmanr

    num_top = min(num_top, len(rows))
    wanted = {row["id"] for row in rank(rows, "variance")[:num_top]}
    result: dict[str, dict[str, float | None]] = {}
    for name in LABEL_FREE:
        if any(row.get(name) is None for row in rows):
            continue
        scores, variances = ([float(row[key]) for row in rows] for key in (name, "variance"))
        constant = len(set(scores)) == 1 or len(set(variances)) == 1
        found = {row["id"] for row in rank(rows, name)[:num_top]}
        result[name] = {
            "spearman": None if constant else float(spearmanr(scores, variances)[0]),  # pyright: ignore[reportArgumentType]
            "top_overlap": len(found & wanted) / num_top,
            "chance": num_top / len(rows),
        }
    return result
