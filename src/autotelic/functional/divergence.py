"""Kullback-Leibler divergences: per-sample estimators and the exact sum over the vocabulary.

With y ~ pi_old and log r = ln pi(y) - ln pi_old(y), estimators of KL(pi_old || pi):

    k1 = -log r        k2 = (log r)^2 / 2        k3 = r - 1 - log r        abs = |log r|

    full: KL(p || q) = sum_v p(v) (ln p(v) - ln q(v))

References: Schulman, "Approximating KL divergence" (2020) for k1, k2, k3; Cui et al. 2025, arXiv:2505.22617 for the
absolute value, which is what the authors' code uses under the name of KL and is none of the three.
Gradients with respect to ln pi: k1 -1, k2 log r, k3 r - 1, abs sign(log r).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.logprobs import scale_logits

KLForm = Literal["abs", "k1", "k2", "k3"]


def kl_estimate(log_ratio: Float[Tensor, "*B"], form: KLForm = "k3") -> Float[Tensor, "*B"]:
    """Return the per-sample estimate of KL(pi_old || pi) from ``log_ratio = logprobs - old_logprobs``, in nats."""
    match form:
        case "abs":
            return log_ratio.abs()
        case "k1":
            return -log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return torch.expm1(log_ratio) - log_ratio
    raise UserError(f"unknown KL form {form!r}: use abs, k1, k2 or k3")


def kl_gradient(log_ratio: Float[Tensor, "*B"], form: KLForm = "k3") -> Float[Tensor, "*B"]:
    """Return the derivative of ``kl_estimate`` with respect to the log-probability, in closed form."""
    match form:
        case "abs":
            return log_ratio.sign()
        case "k1":
            return -torch.ones_like(log_ratio)
        case "k2":
            return log_ratio
        case "k3":
            return torch.expm1(log_ratio)
    raise UserError(f"unknown KL form {form!r}: use abs, k1, k2 or k3")


def full_kl(p_logits: Float[Tensor, "*B V"], q_logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """Return KL(softmax(p_logits) || softmax(q_logits)) in nats, differentiable in both.

    A token to which p gives probability zero (logit -inf) adds nothing, whatever q gives it.
    """
    log_p = scale_logits(p_logits).log_softmax(-1)
    log_q = scale_logits(q_logits).log_softmax(-1)
    absent = log_p == float("-inf")
    difference = log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0)
    return (log_p.exp() * difference).sum(-1)
