"""One sampler: k responses of every prompt, with their tokens, entropies and surprisals.

The prompt of a group is computed once (`autotelic.lm.shared_prefill`), and entropies are read from the logits that
generation makes anyway, so that no second pass runs over the responses. The global random state is left as it was.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from autotelic.errors import UserError
from autotelic.functional import surprisal, token_entropy
from autotelic.lm.head import evaluating
from autotelic.lm.shared_prefill import MIN_PROMPT, share_prefill, split_over_processes

MAX_LOGIT_ELEMENTS = 64_000_000
"""Logits whose entropy is taken at once: 256 MB in float32."""
STATISTICS = ("entropy", "surprisal")

Row = tuple[str, list[int], bool, np.ndarray, np.ndarray]
"""One response: text, tokens, whether it ended by itself, entropy and surprisal of each token."""


class PromptResponses(NamedTuple):
    """The responses of one prompt; None: not known."""

    texts: list[str]
    entropy: float | None
    """Mean over their tokens, in nats."""
    num_tokens: int | None
    """Of all of them together."""


@dataclass(frozen=True)
class Responses:
    """Sampled responses, those of a prompt after each other; a row that an interruption left out is not `done`.

    Attributes:
        texts: without special tokens.
        tokens: token ids, the end token included.
        ended: whether the response ended by itself.
        entropy, surprisal: nats of each token; None where they were not asked for, or the engine gives none.
        done: whether the row was sampled.
        counts: number of tokens of each response, where a server tells that in place of the tokens; NaN: it does not.
        stopped: why rows are missing, where it was not Ctrl-C.
    """

    texts: list[str]
    tokens: list[list[int]]
    ended: np.ndarray
    entropy: list[np.ndarray] | None
    surprisal: list[np.ndarray] | None
    done: np.ndarray
    counts: np.ndarray | None = None
    stopped: str = ""

    @classmethod
    def of_rows(cls, found: Sequence[Row | None], statistics: Sequence[str]) -> "Responses":
        """Return rows, None where one was not sampled, with the statistics that were asked for."""
        done = np.array([response is not None for response in found], dtype=bool)
        nothing: Row = ("", [], False, np.zeros(0), np.zeros(0))
        texts, tokens, ended, entropies, surprisals = zip(*(response or nothing for response in found), strict=True)
        return cls(
            list(texts),
            list(tokens),
            np.array(ended, dtype=bool),
            list(entropies) if "entropy" in statistics else None,
            list(surprisals) if "surprisal" in statistics else None,
            done,
        )

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each response, the end token included; NaN where a server does not tell."""
        return np.array([len(row) for row in self.tokens]) if self.counts is None else self.counts

    def complete(self, k: int) -> list[bool]:
        """Tell of each prompt, with k responses, whether all of them were sampled."""
        return [bool(self.done[i : i + k].all()) for i in range(0, len(self.done), k)]

    def end(self) -> NoReturn:
        """Raise what ended the sampling, where nothing of it can be used."""
        raise UserError(self.stopped) if self.stopped else KeyboardInterrupt

    def of_prompt(self, number: int, k: int) -> PromptResponses:
        """Return the k responses of a prompt, counted from 0."""
        own = slice(number * k, (number + 1) * k)
        tokens = self.num_tokens[own].sum()
        entropy = None if self.entropy is None else float(self.entropy_sum[own].sum() / tokens)
        return PromptResponses(self.texts[own], entropy, None if math.isnan(tokens) else round(tokens))

    def without_end(self) -> list[list[int]]:
        """Return the tokens without the end token of those that ended."""
        return [row[:-1] if ended else row for row, ended in zip(self.tokens, self.ended, strict=True)]

    @cached_property
    def entropy_sum(self) -> np.ndarray:
        """Sum of each response's token entropies, in nats."""
        if self.entropy is None:
            raise UserError("entropies were not sampled: ask for statistics=('entropy',)")
        return np.array([row.sum() for row in self.entropy])


@dataclass(frozen=True)
class Request:
    """How an engine is to sample; the fields are the arguments of `sample`."""

    k: int
    temperature: float | int
    top_p: float | int
    max_new_tokens: int
    batch_size: int
    seed: int
    progress: Callable[[float], None] | None
    keep_interrupted: bool


class Engine:
    """What samples in place of transformers (`autotelic.lm.engines`): it gives tokens and no distributions.

    Attributes:
        name: for messages, and for the settings of a result.
        tokenizer: the model's; None where a server keeps it to itself, and its chat template with it.
    """

    name: str
    tokenizer: Any

    def sample(self, prompts: Sequence[Any], request: Request) -> Responses:
        """Continue every prompt k times."""
        raise NotImplementedError  # abstract


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[Sequence[dict[str, Any]]],
    *,
    k: int = 1,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    seed: int = 0,
    statistics: Sequence[str] = ("entropy",),
    statistics_temperature: float | int = 1.0,
    shared_prefix: str = "auto",
    progress: Callable[[float], None] | None = None,
    keep_interrupted: bool = False,
) -> Responses:
    """Continue every prompt k times (temperature 0: greedily), with left padding, longest prompts first.

    Args:
        model: a causal language model of transformers, whose training mode is restored; or an `Engine`, which gives no
            statistics and has ways of its own to share a prefix and to form batches.
        tokenizer: its tokenizer.
        prompts: texts to continue; lists of messages where a server applies its own template.
        k: responses of each.
        temperature: of the sampling; 0 decodes greedily.
        top_p: nucleus of the sampling, in (0, 1].
        max_new_tokens: longest response.
        batch_size: sequences at once.
        seed: of the sampling.
        statistics: what to read of every token, of `STATISTICS`.
        statistics_temperature: divides the logits that the statistics are taken of.
        shared_prefix: auto, on or off: compute the prompt of a group once.
        progress: called with the responses that are done, parts of a batch counted.
        keep_interrupted: on Ctrl-C, or where a server stops, return what was sampled, in place of raising.
    """
    if isinstance(model, Engine):
        return model.sample(
            prompts,
            Request(k, temperature, top_p, max_new_tokens, batch_size, seed, progress, keep_interrupted),
        )
    ids = [encode(str(prompt), tokenizer) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = [p * k + j for p in order for j in range(k)]
    size = batch_size // k * k or batch_size  # whole groups, where a batch holds one
    config = generation_config(model, tokenizer, temperature, top_p, max_new_tokens)
    found: list[Row | None] = [None] * len(rows)
    share = "off" if max(map(len, ids), default=0) < MIN_PROMPT else shared_prefix
    cuda = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), shared_prefill(model, share), torch.random.fork_rng(devices=cuda), torch.no_grad():
        torch.manual_seed(seed)
        try:
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                reader = Reader(statistics, statistics_temperature, max_new_tokens, start, len(batch), progress)
                sampled = continued(model, tokenizer, [ids[row // k] for row in batch], config, reader)
                for row, response in zip(batch, sampled, strict=True):
                    found[row] = response
        except KeyboardInterrupt:
            if not keep_interrupted:
                raise
    return Responses.of_rows(found, statistics)


class Reader:
    """A logits processor that changes nothing: it reads the statistics of each step and says how far it is."""

    def __init__(
        self,
        statistics: Sequence[str],
        temperature: float | int,
        length: int,
        before: int,
        rows: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.statistics, self.temperature, self.length = statistics, temperature, length
        self.before, self.rows, self.progress = before, rows, progress
        self.entropies: list[torch.Tensor] = []
        self.surprisals: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None
        self.steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Read one step's logits `(B, V)`; the surprisal of its token is taken once that is known."""
        if "entropy" in self.statistics:
            rows = max(1, MAX_LOGIT_ELEMENTS // scores.shape[-1])
            self.entropies.append(torch.cat([token_entropy(part, self.temperature) for part in scores.split(rows)]))
        if "surprisal" in self.statistics:
            self.take_surprisal(input_ids[:, -1])
            self.last = scores
        self.steps += 1
        if self.progress is not None:
            self.progress(self.before + self.rows * self.steps / self.length)
        return scores

    def take_surprisal(self, tokens: torch.Tensor) -> None:
        """Read the surprisal of the tokens that the last logits gave."""
        if self.last is not None:
            self.surprisals.append(surprisal(self.last, tokens, self.temperature))
            self.last = None

    def columns(self, steps: list[torch.Tensor], rows: int) -> np.ndarray:
        """Return what was read, `(B, T)`."""
        return torch.stack(steps, dim=1).float().cpu().numpy() if steps else np.zeros((rows, self.steps))


def continued(model: Any, tokenizer: Any, prompts: Sequence[list[int]], config: Any, reader: Reader) -> list[Row]:
    """Continue one batch."""
    from transformers import LogitsProcessorList

    ids, attention = (x.to(model.device) for x in left_padded(prompts, tokenizer))
    output = model.generate(
        input_ids=ids,
        attention_mask=attention,
        generation_config=config,
        logits_processor=LogitsProcessorList([reader]),  # pyright: ignore[reportArgumentType]
    )
    completion = output[:, ids.shape[1] :]
    if "surprisal" in reader.statistics:
        reader.take_surprisal(completion[:, -1])
    entropies = reader.columns(reader.entropies, len(prompts))
    surprisals = reader.columns(reader.surprisals, len(prompts))
    lengths = response_mask(completion, config.eos_token_id).sum(-1).tolist()
    ends = () if config.eos_token_id is None else np.atleast_1d(config.eos_token_id)
    rows = []
    for i, (tokens, n) in enumerate(zip(completion.tolist(), lengths, strict=True)):
        text = tokenizer.decode(tokens[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append((text, tokens[:n], tokens[n - 1] in ends, entropies[i, :n], surprisals[i, :n]))
    if reader.progress is not None:
        reader.progress(reader.before + reader.rows)
    return rows


def generation_config(model: Any, tokenizer: Any, temperature: float | int, top_p: float | int, length: int) -> Any:
    """Return transformers' settings for plain sampling: nothing else (top-k, penalties) shapes the distribution.

    What is not set here, transformers takes from the model's own generation_config.json, repetition penalties included.
    """
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    eos = tokenizer.eos_token_id if eos is None else eos
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else (eos[0] if isinstance(eos, list) else eos)
    sampling: dict[str, Any] = {"do_sample": False, "top_k": 50}  # the value that transformers takes as "not set"
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
        neutral = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        sampling |= {name: off for name, off in neutral.items() if getattr(model.generation_config, name, None)}
    return GenerationConfig(
        max_new_tokens=length,
        eos_token_id=eos,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        **sampling,
    )


def encode(prompt: str, tokenizer: Any) -> list[int]:
    """Return a prompt's token ids, with one begin token where the tokenizer adds any."""
    rendered = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)  # as a chat template's output
    ids = tokenizer(prompt, add_special_tokens=not rendered)["input_ids"]
    if not ids:
        raise UserError("a prompt is empty: it has no token to continue from")
    return ids


def left_padded(prompts: Sequence[list[int]], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask `(B, T)`, padded on the left whatever the tokenizer's own side is."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id or 0, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, row in enumerate(prompts):
        ids[i, width - len(row) :] = torch.tensor(row)
        attention[i, width - len(row) :] = 1
    return ids, attention


def response_mask(completion: torch.Tensor, eos: int | list[int] | None) -> torch.Tensor:
    """Return True on the tokens up to and including the first end token, `(B, T)`."""
    if eos is None:
        return torch.ones_like(completion, dtype=torch.bool)
    ends = torch.isin(completion, torch.as_tensor(eos, device=completion.device))
    return (ends.cumsum(-1) - ends.long()) == 0


@contextmanager
def shared_prefill(model: Any, mode: str) -> Iterator[None]:
    """Let `model.generate` compute repeated prompts once, unless a trainer already sees to that."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if mode == "off" or "generate" in vars(inner) or split_over_processes(inner):
        yield
        return
    share_prefill(inner, mode=mode)
    try:
        yield
    finally:
        vars(inner).pop("generate", None)
