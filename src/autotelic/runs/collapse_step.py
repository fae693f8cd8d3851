"""When label-free training stopped being right: two readings of the Model Collapse Step.

    below           the first step at which the vote's accuracy is under 1 %, after it was not
    turning point   the step of the highest accuracy, once the last one lies clearly below it

Reference: "How Far Can Unsupervised RLVR Scale", arXiv:2603.08660, as second-hand descriptions have it; they disagree,
so both readings are kept. The share by which the last accuracy must lie below the peak (a fifth) is ours.
"""

from collections.abc import Sequence

ACCURACY = 0.01
FALL = 0.8


def collapse_step(steps: Sequence[int], accuracy: Sequence[float], *, threshold: float = ACCURACY) -> int | None:
    """Return the first step whose accuracy is below `threshold`, if one before was not; None where there is none."""
    for i, value in enumerate(accuracy):
        if value < threshold and any(before >= threshold for before in accuracy[:i]):
            return steps[i]
    return None


def turning_step(steps: Sequence[int], accuracy: Sequence[float], *, fall: float = FALL) -> int | None:
    """Return the step of the highest accuracy, if the last is below `fall` times that; None while it is not."""
    if not accuracy:
        return None
    best = max(range(len(accuracy)), key=lambda i: accuracy[i])
    return steps[best] if accuracy[-1] < fall * accuracy[best] else None
