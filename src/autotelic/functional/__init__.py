"""The mathematics: pure functions of tensors. One equation, one function, one citation."""

from autotelic.functional.advantages import broadcast_advantages, group_advantages
from autotelic.functional.baselines import (
    PIController,
    clip_b,
    clip_v,
    doubling_coef,
    entropic,
    high_entropy,
    repo,
    stare,
    steer,
)
from autotelic.functional.certainty import (
    negative_entropy_reward,
    self_certainty_reward,
    sequence_logprob_reward,
    token_self_certainty,
    total_negative_entropy_reward,
)
from autotelic.functional.covariance import TokenMoments, token_covariance, token_moments
from autotelic.functional.distributed import (
    global_max,
    global_moments,
    global_sum,
    hash_uniform,
    response_positions,
    top_k_mask,
)
from autotelic.functional.divergence import full_kl, kl_estimate, kl_gradient
from autotelic.functional.entropy import entropy_minimization_loss, entropy_minimization_official, token_entropy
from autotelic.functional.entropy_dynamics import (
    Discriminator,
    action_covariance,
    entropy_discriminator,
    sampled_entropy_change,
)
from autotelic.functional.entropy_law import (
    EntropyLaw,
    Forecast,
    fit_entropy_law,
    forecast,
    regime_warnings,
    rolling_forecasts,
)
from autotelic.functional.logprobs import surprisal, token_logprobs
from autotelic.functional.masking import masked_mean, masked_sum, reduce_tokens, sequence_means
from autotelic.functional.selection import majority_share, majority_variance, outcome_variance
from autotelic.functional.semantic import (
    cluster_sizes,
    consensus_reward,
    entropy_threshold_mask,
    semantic_entropy,
    weighted_semantic_entropy,
)
from autotelic.functional.surrogate import cispo_surrogate, clipped_surrogate, gspo_surrogate
from autotelic.functional.token_advantages import clip_cov, kl_cov, kl_penalised, quota

__all__ = [
    "Discriminator",
    "EntropyLaw",
    "Forecast",
    "PIController",
    "TokenMoments",
    "action_covariance",
    "broadcast_advantages",
    "cispo_surrogate",
    "clip_b",
    "clip_cov",
    "clip_v",
    "clipped_surrogate",
    "cluster_sizes",
    "consensus_reward",
    "doubling_coef",
    "entropic",
    "entropy_discriminator",
    "entropy_minimization_loss",
    "entropy_minimization_official",
    "entropy_threshold_mask",
    "fit_entropy_law",
    "forecast",
    "full_kl",
    "global_max",
    "global_moments",
    "global_sum",
    "group_advantages",
    "gspo_surrogate",
    "hash_uniform",
    "high_entropy",
    "kl_cov",
    "kl_estimate",
    "kl_gradient",
    "kl_penalised",
    "majority_share",
    "majority_variance",
    "masked_mean",
    "masked_sum",
    "negative_entropy_reward",
    "outcome_variance",
    "quota",
    "reduce_tokens",
    "regime_warnings",
    "repo",
    "response_positions",
    "rolling_forecasts",
    "sampled_entropy_change",
    "self_certainty_reward",
    "semantic_entropy",
    "sequence_logprob_reward",
    "sequence_means",
    "stare",
    "steer",
    "surprisal",
    "token_covariance",
    "token_entropy",
    "token_logprobs",
    "token_moments",
    "token_self_certainty",
    "top_k_mask",
    "total_negative_entropy_reward",
    "weighted_semantic_entropy",
]
