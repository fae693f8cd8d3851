"""Entropy over the vocabulary, and the entropy-minimisation objective.

    H_t = -sum_v p_t(v) ln p_t(v),   p_t = softmax(z_t / tau)          dH_t/dz_i = -(1/tau) p_i (ln p_i + H_t)
    L   = 1/|I| sum_{t in I} H_t     over the generated, non-padding positions I

References: Gao et al. 2025, arXiv:2505.20282 (the loss); Cui et al. 2025, arXiv:2505.22617, Eq. 5 (the sequence mean of
token means); Agarwal et al. 2025, arXiv:2505.15134 (EM-FT, the token sum).
Deviations: exact log-softmax in float32 where the official script takes ln(p + 1e-12) in bfloat16; logits are aligned
with the tokens that they predict, and the end token counts (see ``entropy_minimization_official`` for the script's own
positions).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.logprobs import scale_logits
from autotelic.functional.masking import as_mask, fill_outside, masked_sum, reduce_tokens, sequence_means


def token_entropy(logits: Float[Tensor, "*B V"], temperature: float | int = 1.0) -> Float[Tensor, "*B"]:
    """Return the entropy of softmax(logits / temperature), in nats, differentiable.

    Computed in float32 (float64 where float64 is given). A logit of -inf is a token of probability zero: it adds
    nothing, and its gradient is zero.
    """
    log_p = scale_logits(logits, temperature).log_softmax(-1)
    finite_log_p = log_p.masked_fill(log_p == float("-inf"), 0.0)
    return -(log_p.exp() * finite_log_p).sum(-1)


Reduction = Literal["token_mean", "sequence_mean", "token_sum"]


def entropy_minimization_loss(
    logits: Float[Tensor, "B T V"],
    mask: Shaped[Tensor, "B T"],
    temperature: float | int = 1.0,
    reduction: Reduction = "token_mean",
    *,
    floor: float | int = 0.0,
) -> Float[Tensor, ""]:
    """Return the entropy of the policy on its own samples, to be minimised.

    Args:
        logits: ``logits[:, t]`` predicts the response token t.
        mask: true on response tokens, the end token included.
        temperature: tau of the softmax; the paper uses 0.5, here and in sampling.
        reduction: see ``reduce_entropy``.
        floor: likewise.
    """
    masked = logits.masked_fill(~as_mask(mask).unsqueeze(-1), 0.0)
    return reduce_entropy(token_entropy(masked, temperature), mask, reduction, floor=floor)


def reduce_entropy(
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    reduction: str = "token_mean",
    *,
    floor: float | int = 0.0,
    tokens: Tensor | float | int | None = None,
    responses: int | None = None,
    num_processes: int = 1,
) -> Float[Tensor, ""]:
    """Return the loss of entropy minimisation; with denominators of a whole update, one micro-batch's part of it.

    Args:
        entropy: nats per token.
        mask: the tokens that count.
        reduction: ``token_mean`` divides by all tokens; ``sequence_mean`` is the mean over responses of token means
            (responses without a token are left out); ``token_sum`` is the plain sum over all tokens.
        floor: nats; tokens below it are left alone, the loss is max(H_t, floor).
        tokens: tokens of the update, per rank; those of this batch where None.
        responses: responses of the update on this rank; those of this batch that have a token where None.
        num_processes: ranks; gradients are averaged over them, which ``token_sum`` must undo.

    Raises:
        UserError: an unknown reduction.
    """
    valid = as_mask(mask)
    floored = entropy.clamp(min=floor) if floor else entropy
    match reduction:
        case "token_mean":
            return reduce_tokens(floored, valid, denominator=valid.sum() if tokens is None else tokens)
        case "sequence_mean":
            count = valid.any(-1).sum().clamp(min=1) if responses is None else responses
            return sequence_means(floored, valid).sum() / count
        case "token_sum":
            return masked_sum(floored, valid) * num_processes
    raise UserError(f"unknown reduction {reduction!r}: use token_mean, sequence_mean or token_sum")


def official_positions(ids: Int[Tensor, "B T"], prompt_lengths: Int[Tensor, " B"], pad_id: int) -> Bool[Tensor, "B T"]:
    """Return the positions that the official script averages over: t >= prompt length and id != pad.

    ``prompt_lengths`` counts the prompt's tokens without padding; with left padding prompt columns are therefore taken
    in, the position before the first generated token is not, and with pad == eos the end token drops out.
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    return (columns >= prompt_lengths.unsqueeze(-1)) & (ids != pad_id)


def entropy_minimization_official(
    logits: Float[Tensor, "B T V"],
    ids: Int[Tensor, "B T"],
    prompt_lengths: Int[Tensor, " B"],
    *,
    pad_id: int,
    temperature: float | int = 0.5,
) -> Float[Tensor, ""]:
    """Return the loss of the official script, bug for bug: the parity option, never the default.

    H_t = -sum_v p_t(v) ln(p_t(v) + 1e-12) at position t itself (not t - 1), averaged over ``official_positions``.
    Source: zitian-gao/one-shot-em, commit b2d2d05, train.py, run and observed.
    """
    p = scale_logits(logits, temperature).softmax(-1)
    entropy = -(p * (p + 1e-12).log()).sum(-1)
    mask = official_positions(ids, prompt_lengths, pad_id)
    return fill_outside(entropy, mask).sum() / mask.sum()
