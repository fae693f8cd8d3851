"""Lp-Reg: unlikely tokens that the policy itself would keep are not pushed out of it.

    proxy:  pi_proxy(v) = pi(v) / Z for v with pi(v) > kappa max_u pi(u), 0 elsewhere;   Z = sum of the kept pi(v)
    L_t = -clip(r, 0, U) A + beta 1[pi(o) < delta, A < 0] D
    paper:  D = KL(pi_proxy || pi) where pi_proxy(o) > 0
    code:   D = k3(ln pi_proxy(o) - ln pi(o)) where pi(o) < pi_proxy(o);   k3(d) = exp(d) - 1 - d

delta is the lowest rho-percentile of the sampled tokens' probabilities: of the batch in the paper, of those with A < 0
in the code. With the proxy made from the present policy, KL(pi_proxy || pi) = -ln Z, and its gradient for a proxy that
is held fixed is that of -ln Z for a kept set that is held fixed: both are pi - pi_proxy.

Reference: arXiv:2510.03222, Eq. 6; the code is CarlanLark/Lp-Reg-dev, commit 33b27e2, verl/trainer/ppo/core_algos.py.
Deviations: percentiles belong to the whole update batch, where the code takes them per micro-batch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.functional.logprobs import scale_logits


def kept_log_mass(
    logits: Float[Tensor, "*B V"], *, kappa: float | int, temperature: float | int = 1.0
) -> Float[Tensor, "*B"]:
    """Return ln Z, the log of the mass of the tokens with p > kappa max p; differentiable, the kept set is fixed."""
    log_p = scale_logits(logits, temperature).log_softmax(-1)
    kept = log_p.detach() > log_p.detach().amax(-1, keepdim=True) + math.log(kappa)
    return log_p.masked_fill(~kept, -torch.inf).logsumexp(-1)


def proxy_logprobs(
    logprobs: Float[Tensor, "*B"], max_logprobs: Float[Tensor, "*B"], log_mass: Float[Tensor, "*B"], *, kappa: float
) -> Float[Tensor, "*B"]:
    """Return ln pi_proxy of the sampled token: ln pi - ln Z where it is kept, -inf where it is not."""
    return torch.where(logprobs > max_logprobs + math.log(kappa), logprobs - log_mass, -torch.inf)


def lp_reg_gradient(proxy: Float[Tensor, "*B"], logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return d k3(ln pi_proxy - ln pi) / d ln pi = 1 - pi_proxy / pi of the code's form, for a fixed proxy."""
    return -torch.expm1(proxy - logprobs)
