"""Log-probabilities of the sampled tokens.

    ln pi(y_t) = z_t[y_t] / tau - logsumexp_v(z_t[v] / tau)

Reference: softmax; the temperature divides the logits, as in sampling.
"""

from jaxtyping import Float, Int
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import compute_dtype


def scale_logits(logits: Float[Tensor, "*B V"], temperature: float | int = 1.0) -> Float[Tensor, "*B V"]:
    """Return ``logits / temperature`` in float32 (float64 if given float64)."""
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}: softmax(z / 0) is not defined; use e.g. 1.0")
    z = logits.to(compute_dtype(logits))
    return z if temperature == 1 else z / temperature


def token_logprobs(
    logits: Float[Tensor, "*B V"], tokens: Int[Tensor, "*B"], temperature: float | int = 1.0
) -> Float[Tensor, "*B"]:
    """Return ln pi of each token, in nats. ``logits[..., t, :]`` must be the ones that predict ``tokens[..., t]``."""
    z = scale_logits(logits, temperature)
    return z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - z.logsumexp(-1)


def surprisal(
    logits: Float[Tensor, "*B V"], tokens: Int[Tensor, "*B"], temperature: float | int = 1.0
) -> Float[Tensor, "*B"]:
    """Return -ln pi of each token, in nats; its mean under the policy is the entropy."""
    return -token_logprobs(logits, tokens, temperature)
