"""Behaviour policies of language models: how each sampled, its probabilities, its continuations, and clones of it.

The table of policies (YAML or JSON) says how each one samples, and where its model is:

    strong: {model: runs/strong, temperature: 1.0}
    noisy: {model: any_pair, temperature: 1.5, top_k: 20, top_p: 0.95}
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from autotelic.errors import UserError, closest
from autotelic.tasks.samples import is_number

NEVER = -1e4  # log-probability of a token that top-k or top-p removed; finite, since 0 * -inf is not 0


@dataclass(frozen=True)
class BehaviorPolicy:
    """How one policy sampled, and its model where there is one.

    Attributes:
        model: folder, hub name, or a carried model's name; None where only stored log-probabilities exist.
        temperature: of the sampling, above 0; None is not stated.
        top_k: tokens kept by the sampler; 0 keeps all.
        top_p: nucleus, in (0, 1].
    """

    model: str | None = None
    temperature: float | int | None = None
    top_k: int = 0
    top_p: float | int = 1.0


def read_policies(path: Path) -> dict[str, BehaviorPolicy]:
    """Read the table of behaviour policies: a mapping of id to the fields of `BehaviorPolicy`."""
    try:
        table = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the behaviour policies {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"the behaviour policies {path} are neither YAML nor JSON: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} must map policy ids to settings, such as  strong: {{model: PATH, temperature: 1.0}}")
    return {str(name): checked_policy(f"{path}, policy {name!r}", settings) for name, settings in table.items()}


def checked_policy(where: str, settings: Any) -> BehaviorPolicy:
    """Return one entry of the table; `where` names it in messages."""
    if not isinstance(settings, dict):
        raise UserError(f"{where} must be a mapping such as {{model: PATH, temperature: 1.0}}")
    known = BehaviorPolicy.__dataclass_fields__
    for key in settings:
        if key not in known:
            raise UserError(
                f"{where} has an unknown setting {key!r}{closest(str(key), known)}; known: {', '.join(known)}"
            )
    policy = BehaviorPolicy(**settings)
    temperature, top_p, top_k = policy.temperature, policy.top_p, policy.top_k
    if temperature is not None and not (is_number(temperature) and temperature > 0):
        raise UserError(f"{where}: temperature must be a number above 0, got {temperature!r}")
    if not (is_number(top_p) and 0 < top_p <= 1) or not isinstance(top_k, int) or top_k < 0:
        raise UserError(f"{where}: top_p must lie in (0, 1] and top_k be 0 (all) or more, got {top_p!r} and {top_k!r}")
    if policy.model is not None and not isinstance(policy.model, str):
        raise UserError(f"{where}: model must be a folder or a name, got {policy.model!r}")
    return policy


def sampling_log_softmax(logits: Float[Tensor, "*B V"], policy: BehaviorPolicy) -> Float[Tensor, "*B V"]:
    """Log-probabilities of the distribution that the policy samples from: temperature, then top-k, then top-p.

    Tokens that the sampler removed get `NEVER`. The order and the cuts are those of transformers' generation.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    shape = logits.shape
    scores = logits.float().reshape(-1, shape[-1]) / (policy.temperature or 1.0)
    ids = torch.zeros(len(scores), 1, dtype=torch.long, device=scores.device)
    if policy.top_k:
        scores = TopKLogitsWarper(min(policy.top_k, shape[-1]))(ids, scores)  # pyright: ignore[reportArgumentType]
    if policy.top_p < 1:
        scores = TopPLogitsWarper(float(policy.top_p))(ids, scores)  # pyright: ignore[reportArgumentType]
    return torch.as_tensor(scores).log_softmax(-1).clamp(min=NEVER).reshape(shape)


class TokenLabels(NamedTuple):
    """What a policy says of the tokens of one response."""

    logprobs: list[float]
    """log mu of each."""
    top_ids: list[list[int]]
    """mu's most likely tokens there."""
    top_logprobs: list[list[float]]
    """log mu of those."""


@torch.no_grad()
def label_sequences(
    model: Any,
    policy: BehaviorPolicy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    top_k: int,
    batch_size: int = 64,
) -> list[TokenLabels]:
    """Return log mu of each response token, and mu's `top_k` most likely tokens there with their log-probabilities."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    results: list[Any] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, attention = right_padded([[*prompts[i], *responses[i]] for i in rows], model.device)
        logprobs = sampling_log_softmax(model(input_ids=ids, attention_mask=attention).logits[:, :-1], policy)
        taken = logprobs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        top = logprobs.topk(min(top_k, logprobs.shape[-1]), dim=-1)
        for place, i in enumerate(rows):
            own = slice(len(prompts[i]) - 1, len(prompts[i]) + len(responses[i]) - 1)
            found = (taken[place, own], top.indices[place, own], top.values[place, own])
            results[i] = TokenLabels(*(values.tolist() for values in found))
    return results


@torch.no_grad()
def sample_continuations(
    model: Any,
    policy: BehaviorPolicy,
    prefixes: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    batch_size: int = 64,
    ended: bool = True,
) -> list[list[int]]:
    """Return one continuation of each prefix as the policy samples, up to and including its end token.

    Draws from torch's global generator.

    Args:
        model: a causal language model.
        policy: temperature, top-k and top-p; its `model` is not read.
        prefixes: token ids.
        eos_token_id: ends a continuation.
        pad_token_id: fills up a batch on the left.
        max_new_tokens: longest continuation.
        batch_size: prefixes per call of the model.
        ended: a prefix whose last token is the end token has no continuation; False continues it all the same.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=float(policy.temperature or 1.0),
        top_k=policy.top_k,
        top_p=float(policy.top_p),
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
    )
    found: list[list[int]] = [[] for _ in prefixes]
    going = [i for i, prefix in enumerate(prefixes) if not ended or prefix[-1] != eos_token_id]
    for rows in (going[start : start + batch_size] for start in range(0, len(going), batch_size)):
        width = max(len(prefixes[i]) for i in rows)
        ids = [[pad_token_id] * (width - len(prefixes[i])) + list(prefixes[i]) for i in rows]
        attention = [[0] * (width - len(prefixes[i])) + [1] * len(prefixes[i]) for i in rows]
        given = {"input_ids": ids, "attention_mask": attention}
        given = {name: torch.tensor(value, device=model.device) for name, value in given.items()}
        for i, row in zip(rows, model.generate(**given, generation_config=config)[:, width:].tolist(), strict=True):
            found[i] = row[: row.index(eos_token_id) + 1] if eos_token_id in row else row
    return found


def right_padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask of rows of different lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, attention


def clone_policy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    num_steps: int,
    learning_rate: float | int,
    batch_size: int,
    seed: int,
) -> Any:
    """Behaviour cloning: fit the model to the responses by maximum likelihood, and return it in evaluation mode.

    Args:
        model: trained in place.
        prompts: token ids.
        responses: token ids that the policy produced, the end token included.
        num_steps: updates.
        learning_rate: of AdamW, constant.
        batch_size: responses an update, drawn with replacement.
        seed: of the draws.
    """
    generator = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(num_steps):
        rows = [generator.randrange(len(prompts)) for _ in range(batch_size)]
        ids, attention = right_padded([[*prompts[i], *responses[i]] for i in rows], model.device)
        targets = ids.masked_fill(attention == 0, -100)
        for place, i in enumerate(rows):
            targets[place, : len(prompts[i])] = -100
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
