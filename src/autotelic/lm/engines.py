"""Engines that sample in place of transformers: vLLM in this process, or a server that speaks OpenAI's interface.

    engine = open_engine("vllm", "OWNER/NAME")
    sample(engine, engine.tokenizer, ["2+2=?"], k=8)

`autotelic.lm.sampling.sample` takes an engine where it takes a model. Engines give texts and tokens, no entropies: the
distribution over the vocabulary does not leave them. Prompts are given as token ids where this machine has the
tokenizer; to a server, else, as text, or as messages that the server's own chat template turns into text.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.endpoint import Endpoint
from autotelic.errors import UserError
from autotelic.lm.load import adapter_base, load_model, load_tokenizer, resolve, tokenizer_folder
from autotelic.lm.sampling import Engine, Request, Responses, encode

NAMES = "transformers, vllm (with settings of its LLM class: vllm,tensor_parallel_size=4), or a server's http address"
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""vLLM's server takes what a request leaves out from the model's generation_config.json: this turns all of it off."""


def open_engine(name: str, model: str, settings: Mapping[str, Any] | None = None) -> Engine:
    """Return the engine of that name or address, with a model.

    Args:
        name: `vllm`, or the address of a server such as `http://localhost:8000`.
        model: as for `autotelic.lm.load.load_model`; of a server, the name by which it knows the model.
        settings: of vLLM's `LLM`.

    Raises:
        UserError: another name, settings for a server, or an engine that cannot start.
    """
    if "://" in name:
        if settings:
            raise UserError(f"--engine {name} is a server and takes no settings here, got {', '.join(settings)}")
        return ServerEngine(name, model)
    if name == "transformers":
        raise UserError(f"--engine transformers takes no settings, got {', '.join(settings or {})}")
    if name != "vllm":
        raise UserError(f"unknown engine {name!r}; there are {NAMES}")
    return VLLMEngine(model, settings or {})


def sampling_fields(request: Request) -> dict[str, Any]:
    """Return the fields that vLLM and OpenAI's interface name alike."""
    return {"temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_new_tokens}


class VLLMEngine(Engine):
    """vLLM on this machine."""

    name = "vllm"

    def __init__(self, model: str, settings: Mapping[str, Any]):
        import torch

        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the result
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(f"--engine vllm needs vLLM ({error}): pip install 'autotelic[vllm]'") from error
        self.tokenizer = load_tokenizer(model)
        on_cpu: dict[str, Any] = {} if torch.cuda.is_available() else {"dtype": "float32", "enforce_eager": True}
        with plain_model(model) as (weights, tokenizer):
            given = {"disable_log_stats": True} | on_cpu | dict(settings)
            try:
                self.llm = LLM(model=weights, tokenizer=tokenizer, **given)
            except Exception as error:  # of its many layers, any kind: a setting, the memory, the model
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"vLLM cannot start with {model!r} and {given}: {reason}") from error

    def sample(self, prompts: Sequence[str], request: Request) -> Responses:
        """Sample every prompt k times; vLLM forms the batches, and an interruption leaves nothing. See `sample`."""
        from vllm import SamplingParams

        k, settings = request.k, {"n": request.k} | sampling_fields(request) | NEUTRAL
        asked = [{"prompt_token_ids": encode(prompt, self.tokenizer)} for prompt in prompts]
        params = [SamplingParams(**settings, seed=request.seed + p * k) for p in range(len(prompts))]
        found = self.llm.generate(asked, params, use_tqdm=False)
        if request.progress is not None:
            request.progress(len(prompts) * k)
        choices = [choice for group in found for choice in sorted(group.outputs, key=lambda choice: choice.index)]
        return Responses(
            [self.tokenizer.decode(list(choice.token_ids), skip_special_tokens=True) for choice in choices],
            [list(choice.token_ids) for choice in choices],
            np.array([choice.finish_reason == "stop" for choice in choices], dtype=bool),
            None,
            None,
            np.ones(len(choices), dtype=bool),
        )


@contextmanager
def plain_model(name: str) -> Iterator[tuple[str, str]]:
    """Give a folder or hub name that vLLM reads, and that of the tokenizer; an adapter is merged into a new folder."""
    where = resolve(name)
    base = adapter_base(Path(where))
    if base is None:
        yield where, tokenizer_folder(where, None)
        return
    model, tokenizer = load_model(name)
    with tempfile.TemporaryDirectory(prefix="autotelic-merged-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        yield folder, folder


class ServerEngine(Engine):
    """A server with OpenAI's interface: vLLM's, SGLang's, llama.cpp's, a provider's.

    The key is read from the environment variable OPENAI_API_KEY.

    Attributes:
        tokenizer: the model's, where this machine has it; None: the server applies its own chat template.
        name: its address.
        model: the name by which it knows the model.
    """

    def __init__(self, url: str, model: str):
        self.endpoint, self.name = Endpoint(url), url.rstrip("/")
        served = self.endpoint.models()
        self.model = served_name(model, list(served), self.name)
        self.is_vllm = served.get(self.model, {}).get("owned_by") == "vllm"
        try:
            self.tokenizer = load_tokenizer(model)
        except UserError:
            self.tokenizer = None

    def sample(self, prompts: Sequence[Any], request: Request) -> Responses:
        """Sample every prompt k times, `batch_size` sequences under way at once. See `sample`."""
        k, settings = request.k, {"model": self.model} | sampling_fields(request)
        settings |= NEUTRAL | {"return_token_ids": True} if self.is_vllm else {}
        found: list[list[Any] | None] = [None] * len(prompts)
        stopped = ""

        def answer(p: int) -> tuple[int, list[Any]]:
            return p, self.group(prompts[p], k, settings, request.seed + p * k)

        # Its threads are daemons, and leaving it waits for none: what is under way when it ends is given up.
        with ThreadPool(min(max(request.batch_size // k, 1), len(prompts))) as pool:
            try:
                for number, (p, rows) in enumerate(pool.imap_unordered(answer, range(len(prompts))), start=1):
                    found[p] = rows
                    if request.progress is not None:
                        request.progress(number * k)
            except (KeyboardInterrupt, UserError) as error:
                if not request.keep_interrupted:
                    raise
                stopped = str(error)
        nothing = [("", [], False, math.nan)] * k
        rows = [row for group in found for row in (group or nothing)]
        texts, tokens, ended, counts = zip(*rows, strict=True)
        return Responses(
            list(texts),
            list(tokens),
            np.array(ended, dtype=bool),
            None,
            None,
            np.repeat([group is not None for group in found], k),
            np.array(counts, dtype=float),
            stopped,
        )

    def group(self, prompt: Any, k: int, settings: Mapping[str, Any], seed: int) -> list[tuple]:
        """Return text, tokens, whether it ended, and number of tokens of k responses; some servers give one at once."""
        rows: list[tuple] = []
        while len(rows) < k:
            body: dict[str, Any] = {**settings, "n": k - len(rows), "seed": seed + len(rows)}
            if isinstance(prompt, str):
                asked = prompt if self.tokenizer is None else encode(prompt, self.tokenizer)
                reply = self.endpoint.ask("completions", body | {"prompt": asked})
            else:
                reply = self.endpoint.ask("chat/completions", body | {"messages": prompt})
            try:
                rows += read_choices(reply, k - len(rows))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{self.name} gave no response: {json.dumps(reply)[:300]}") from error
        return rows


def read_choices(reply: Mapping[str, Any], most: int) -> list[tuple]:
    """Return text, tokens, whether it ended, and number of tokens of each response in a server's reply."""
    choices, total = reply["choices"], (reply.get("usage") or {}).get("completion_tokens")
    if not choices:
        raise ValueError("no choices")
    rows = []
    for choice in choices[:most]:
        text = choice["text"] if "text" in choice else choice["message"].get("content") or ""
        tokens = choice.get("token_ids") or []
        count = len(tokens) or (math.nan if total is None else total / len(choices))
        rows.append((text, tokens, choice.get("finish_reason") == "stop", count))
    return rows


def served_name(model: str, served: Sequence[str], server: str) -> str:
    """Return the name under which a server has a model; a folder may be written in another way."""
    if model in served or not served:
        return model
    try:
        here = Path(resolve(model)).resolve()
    except UserError:
        here = None
    for name in served:
        if Path(name).is_dir() and Path(name).resolve() == here:
            return name
    raise UserError(f"{server} has no model {model!r}; it has {', '.join(served)}")
