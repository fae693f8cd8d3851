"""One forward pass over responses: what the policy's whole distribution says of each of their tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.lm.head import statistics

NOT_THE_MODELS = ("num_images", "num_tiles")
"""Counts that TRL keeps beside a multimodal model's inputs."""


STATISTICS = ("logprobs", "entropy", "self_certainty", "discriminator", "expected_discriminator")
"""What can be asked for, in nats: ln p of the token; H; KL(U || p), U uniform over the vocabulary; the entropy
discriminator S = p (ln p + H) of the token; its mean E_p[S]. `proxy`, ln p without the tail, needs `kappa` (Lp-Reg)."""
TokenStatistics = dict[str, Tensor]
"""One value per response token, (B, T), without gradient, by name."""


@torch.no_grad()
def token_pass(
    model: Any,
    ids: Int[Tensor, "B L"],
    attention: Int[Tensor, "B L"],
    num_response: int,
    names: Sequence[str],
    *,
    temperature: float | int,
    batch_size: int,
    fused: bool = False,
    position_ids: Int[Tensor, "B L"] | None = None,
    kappa: float | None = None,
    **extras: Any,
) -> TokenStatistics:
    """Return the statistics of the last `num_response` tokens of each row.

    The logits of `batch_size` rows are held at a time; with `fused` none are, and padding has zeros
    (`autotelic.lm.head`).

    Args:
        model: a causal language model.
        ids: prompt and response.
        attention: 1 where there is a token.
        num_response: columns of the response; a prompt token stands before them.
        names: which statistics, of `STATISTICS`.
        temperature: logits are divided by it.
        batch_size: rows of a forward pass.
        fused: take our head, which `use_fused_head` has not refused.
        position_ids: for models that do not take positions from the attention mask.
        kappa: `proxy` leaves out the tokens below this share of the largest probability; not with `fused`.
        extras: further inputs of a multimodal model; the rows are then passed at once.
    """
    extras = {name: value for name, value in extras.items() if name not in NOT_THE_MODELS and value is not None}
    batch_size = len(ids) if extras else batch_size
    parts: list[list[Tensor]] = []
    for rows in torch.arange(ids.shape[0], device=ids.device).split(batch_size):
        inputs = {"input_ids": ids[rows], "attention_mask": attention[rows]} | extras
        if position_ids is not None:
            inputs["position_ids"] = position_ids[rows]
        if fused and not extras:
            labels = ids[rows].masked_fill(attention[rows] == 0, -100)
            labels[:, :-num_response] = -100
            found = statistics(model, labels, temperature=temperature, **inputs)
            parts.append([found[name][:, -num_response:] for name in names])
        else:
            logits = model(**inputs).logits[:, -num_response - 1 : -1].float()
            found = from_logits(logits, ids[rows, -num_response:], temperature, names, kappa)
            parts.append([found[name] for name in names])
    return dict(zip(names, (torch.cat(column) for column in zip(*parts, strict=True)), strict=True))


def from_logits(
    logits: Float[Tensor, "B T V"],
    tokens: Int[Tensor, "B T"],
    temperature: float | int,
    names: Sequence[str],
    kappa: float | None = None,
) -> dict[str, Float[Tensor, "B T"]]:
    """Return the named statistics of each token."""
    of_vocabulary = {"entropy": F.token_entropy, "self_certainty": F.token_self_certainty}
    found = {name: function(logits, temperature) for name, function in of_vocabulary.items() if name in names}
    if "logprobs" in names:
        found["logprobs"] = F.token_logprobs(logits, tokens, temperature)
    if "proxy" in names and kappa is not None:
        log_p = F.token_logprobs(logits, tokens, temperature)
        largest = F.token_logprobs(logits, logits.argmax(-1), temperature)
        mass = F.kept_log_mass(logits, kappa=kappa, temperature=temperature)
        found["proxy"] = F.proxy_logprobs(log_p, largest, mass, kappa=kappa)
    if "discriminator" in names or "expected_discriminator" in names:
        both = F.entropy_discriminator(logits, tokens, temperature)
        found |= {"discriminator": both.sampled, "expected_discriminator": both.expected}
    return found


def padded(
    prompt_ids: list[list[int]], response_ids: list[list[int]], pad_id: int, device: Any
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"], int]:
    """Return ids and attention mask of prompts padded on the left and responses on the right, and the response's width.

    Args:
        prompt_ids: tokens of each prompt.
        response_ids: tokens of each response.
        pad_id: what padding holds.
        device: of the tensors.
    """
    before, after = max(map(len, prompt_ids)), max(map(len, response_ids))
    pairs = list(zip(prompt_ids, response_ids, strict=True))
    ids = [[pad_id] * (before - len(p)) + list(p) + list(r) + [pad_id] * (after - len(r)) for p, r in pairs]
    mask = [[0] * (before - len(p)) + [1] * (len(p) + len(r)) + [0] * (after - len(r)) for p, r in pairs]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device), after
