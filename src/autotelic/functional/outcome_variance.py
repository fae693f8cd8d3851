"""How much a prompt has to teach: the variance of its outcomes.

    with labels:     Var(x) = p (1 - p),   p = share of correct responses
    without labels:  Var(x) = p_max (1 - p_max),   p_max = share of the largest answer cluster

Reference: Gao et al. 2025, arXiv:2505.20282 (the prompt at the edge of the model's ability); Wang et al. 2025,
arXiv:2504.20571 (one-shot RLVR).
Deviations: the label-free form is ours; nobody ships one. An unparseable answer is in no cluster and counts as a miss.
"""

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from autotelic.functional.masking import wide
from autotelic.functional.semantic import cluster_sizes


def outcome_variance(correct: Shaped[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Return p (1 - p) of each prompt, in float64; largest, 1/4, where half of the responses are correct."""
    p = wide(correct != 0).mean(-1)
    return p * (1 - p)


def majority_share(clusters: Int[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Return p_max, the share of the group in its largest cluster, in float64; 0 where nothing could be parsed."""
    return wide(cluster_sizes(clusters).amax(-1)) / clusters.shape[-1]


def majority_variance(clusters: Int[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Return p_max (1 - p_max) of each prompt, in float64: the label-free stand-in for ``outcome_variance``."""
    p = majority_share(clusters)
    return p * (1 - p)
