"""The mathematics: pure functions of tensors. One equation, one function, one citation."""

from autotelic.functional.advantages import broadcast_advantages, group_advantages
from autotelic.functional.covariance import TokenMoments, token_covariance, token_moments
from autotelic.functional.distributed import (
    global_moments,
    global_sum,
    hash_uniform,
    response_positions,
    top_k_mask,
)
from autotelic.functional.divergence import full_kl, kl_estimate, kl_gradient
from autotelic.functional.entropy import entropy_minimization_loss, entropy_minimization_official, token_entropy
from autotelic.functional.logprobs import surprisal, token_logprobs
from autotelic.functional.masking import masked_mean, masked_sum, reduce_tokens, sequence_means
from autotelic.functional.semantic import (
    cluster_sizes,
    consensus_reward,
    entropy_threshold_mask,
    semantic_entropy,
    weighted_semantic_entropy,
)
from autotelic.functional.surrogate import clipped_surrogate
from autotelic.functional.token_advantages import clip_cov, kl_cov, kl_penalised, quota

__all__ = [
    "TokenMoments",
    "broadcast_advantages",
    "clip_cov",
    "clipped_surrogate",
    "cluster_sizes",
    "consensus_reward",
    "entropy_minimization_loss",
    "entropy_minimization_official",
    "entropy_threshold_mask",
    "full_kl",
    "global_moments",
    "global_sum",
    "group_advantages",
    "hash_uniform",
    "kl_cov",
    "kl_estimate",
    "kl_gradient",
    "kl_penalised",
    "masked_mean",
    "masked_sum",
    "quota",
    "reduce_tokens",
    "response_positions",
    "semantic_entropy",
    "sequence_means",
    "surprisal",
    "token_covariance",
    "token_entropy",
    "token_logprobs",
    "token_moments",
    "top_k_mask",
    "weighted_semantic_entropy",
]
