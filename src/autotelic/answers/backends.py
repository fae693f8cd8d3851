"""Equivalence of free text: embeddings, entailment, a judge, in the protocol of `autotelic.answers.equivalence`.

Nothing heavy is imported before the first comparison, every verdict is cached, and a group with U different strings
asks at most U (U - 1) questions, once.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from autotelic.errors import UserError

Entailment = Literal["entailment", "neutral", "contradiction"]
LABELS = ("entailment", "neutral", "contradiction")


class EmbeddingEquivalence:
    """Two texts are the same answer when the cosine of their embeddings reaches a threshold.

    A cosine sees the topic better than the answer: "the left ventricle" and "the right ventricle" come out close.
    Measure your model on pairs of your own first (`benchmarks/answers_embedding.py`, figures in `docs/log/empo.md`).

    Args:
        model: Name or folder of a sentence-transformers model.
        threshold: Least cosine.
        encode: A function from texts to vectors, instead of the model.
    """

    symmetric = True

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        threshold: float = 0.9,
        encode: Callable[[list[str]], Any] | None = None,
    ) -> None:
        if not -1 <= threshold <= 1:
            raise UserError(f"threshold is a cosine, in [-1, 1], got {threshold}")
        self.model_name, self.threshold = model, threshold
        self._encode = encode
        self._vectors: dict[str, Any] = {}
        self.num_encoded = 0

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Encode what was not seen before, and compare cosines."""
        import numpy as np

        new = [text for text in dict.fromkeys(answers) if text not in self._vectors]
        if new:
            vectors = np.asarray((self._encode or self._load())(new), dtype=np.float64)
            norms = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            self._vectors.update(zip(new, vectors / norms, strict=True))
            self.num_encoded += len(new)
        return [bool(self._vectors[answers[i]] @ self._vectors[answers[j]] >= self.threshold) for i, j in pairs]

    def _load(self) -> Callable[[list[str]], Any]:
        """Load the model on first use."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"embedding equivalence cannot import sentence-transformers ({error}): "
                "pip install 'autotelic[text]', or pass encode="
            ) from error
        model = SentenceTransformer(self.model_name, model_kwargs={"use_safetensors": True})
        self._encode = lambda texts: model.encode(texts, show_progress_bar=False)
        return self._encode


class NLIEquivalence:
    """Two texts mean the same when each entails the other.

    strict: both directions are entailment. Not strict: neither direction is a contradiction, and not both are neutral.

    Reference: Kuhn et al. 2023, arXiv:2302.09664 (strict); the rule for not strict is that of Farquhar et al. 2024.
    Deviations: none.

    Args:
        model: Name or folder of a sequence-classification model whose labels name entailment, neutral, contradiction.
        strict: Which rule.
        batch_size: Pairs a forward pass.
        question: Put before both texts, so that they are read as answers to it.
        classify: A function from (premise, hypothesis) pairs to labels, instead of the model.
    """

    symmetric = True  # the rule looks at both directions of a pair at once

    def __init__(
        self,
        model: str = "microsoft/deberta-large-mnli",
        strict: bool = True,
        batch_size: int = 32,
        question: str = "",
        classify: Callable[[list[tuple[str, str]]], Sequence[str]] | None = None,
    ) -> None:
        self.model_name, self.strict, self.batch_size, self.question = model, strict, batch_size, question
        self._classify = classify
        self._cache: dict[tuple[str, str], str] = {}
        self.num_calls = 0
        self.num_asymmetric = 0

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Classify every direction not seen before, in batches."""
        texts = [f"{self.question} {a}".strip() for a in answers]
        wanted = [(texts[a], texts[b]) for i, j in pairs for a, b in ((i, j), (j, i))]
        new = [pair for pair in dict.fromkeys(wanted) if pair not in self._cache]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            labels = [str(label).lower() for label in (self._classify or self._load())(batch)]
            if any(label not in LABELS for label in labels):
                raise UserError(f"the NLI model's labels are {sorted(set(labels))}, not {', '.join(LABELS)}")
            self._cache.update(zip(batch, labels, strict=True))
            self.num_calls += len(batch)
        verdicts: list[bool | None] = []
        for i, j in pairs:
            one, two = self._cache[texts[i], texts[j]], self._cache[texts[j], texts[i]]
            self.num_asymmetric += (one == "entailment") != (two == "entailment")
            verdicts.append(self._same(one, two))
        return verdicts

    def _same(self, one: str, two: str) -> bool:
        if self.strict:
            return one == two == "entailment"
        return "contradiction" not in (one, two) and not (one == two == "neutral")

    def _load(self) -> Callable[[list[tuple[str, str]]], Sequence[str]]:
        """Load the model on first use."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model_name)
        model = AutoModelForSequenceClassification.from_pretrained(self.model_name, use_safetensors=True).eval()
        names = {int(k): str(v).lower() for k, v in (model.config.id2label or {}).items()}

        def classify(batch: list[tuple[str, str]]) -> list[str]:
            first, second = [p for p, _ in batch], [h for _, h in batch]
            inputs = tokenizer(first, second, return_tensors="pt", padding=True, truncation=True).to(model.device)
            with torch.inference_mode():
                return [names[int(k)] for k in model(**inputs).logits.argmax(-1)]

        self._classify = classify
        return classify


PROMPT = (
    "Two answers to one question are given. Do they state the same final answer? "
    "Reply with one word, yes or no.\nQuestion: {question}\nAnswer A: {first}\nAnswer B: {second}"
)


class JudgeEquivalence:
    """A language model behind an OpenAI-compatible endpoint decides. Verdicts are kept on disk; cost is counted.

    Args:
        url: Base address, such as ``http://localhost:8000/v1``.
        model: Name of the model there.
        cache: File for the verdicts (one JSON object a line); none are kept beyond this process without it.
        api_key_variable: Environment variable that holds the key.
        question: Told to the judge.
        retries: Attempts after a failure, with doubling pauses.
        timeout: Seconds for one request.
        price: Cost of a million prompt tokens and of a million reply tokens.
    """

    symmetric = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: str | Path | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        question: str = "",
        retries: int = 3,
        timeout: float = 30.0,
        pause: float = 1.0,
        price: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the judge's url must begin with http:// or https://, got {url!r}")
        self.url, self.model, self.question = url.rstrip("/"), model, question
        self.retries, self.timeout, self.pause, self.price = retries, timeout, pause, price
        self.api_key_variable = api_key_variable
        self.cache_file = Path(cache) if cache is not None else None
        self._cache: dict[str, bool] = self._read_cache()
        self.num_calls = self.num_failures = self.prompt_tokens = self.reply_tokens = 0

    @property
    def cost(self) -> float:
        """What the calls of this object have cost, in the unit of `price`."""
        return (self.prompt_tokens * self.price[0] + self.reply_tokens * self.price[1]) / 1e6

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Ask about each unordered pair once; ``None`` where the endpoint gave no usable answer."""
        verdicts: list[bool | None] = []
        for i, j in pairs:
            first, second = sorted((answers[i], answers[j]))
            key = hashlib.sha256(json.dumps([self.model, self.question, first, second]).encode()).hexdigest()
            if key not in self._cache:
                verdict = self._ask(first, second)
                if verdict is None:
                    verdicts.append(None)
                    continue
                self._cache[key] = verdict
                self._append_cache(key, verdict)
            verdicts.append(self._cache[key])
        return verdicts

    def _ask(self, first: str, second: str) -> bool | None:
        """Call the endpoint, retrying what may pass."""
        content = PROMPT.format(question=self.question, first=first, second=second)
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                self.num_calls += 1
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return self._verdict(json.loads(reply.read(1 << 20)))
            except urllib.error.HTTPError as error:
                if error.code not in (408, 429) and error.code < 500:
                    raise UserError(f"the judge at {self.url} refused: HTTP {error.code} {error.reason}") from error
            except (urllib.error.URLError, TimeoutError, json.JSONDecodeError, OSError):
                pass  # it may come back: retried below, and counted
            if attempt < self.retries:
                time.sleep(self.pause * 2**attempt)
        self.num_failures += 1
        return None

    def _verdict(self, reply: Any) -> bool | None:
        """Return yes or no from a reply, and count its tokens."""
        usage = reply.get("usage") or {}
        self.prompt_tokens += int(usage.get("prompt_tokens", 0))
        self.reply_tokens += int(usage.get("completion_tokens", 0))
        try:
            word = str(reply["choices"][0]["message"]["content"]).strip().lower()
        except (KeyError, IndexError, TypeError):
            return None
        return True if word.startswith("yes") else False if word.startswith("no") else None

    def _read_cache(self) -> dict[str, bool]:
        if self.cache_file is None or not self.cache_file.exists():
            return {}
        rows = []
        for line in self.cache_file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # a line cut short by an interrupted run
        return {row["key"]: bool(row["same"]) for row in rows}

    def _append_cache(self, key: str, verdict: bool) -> None:
        if self.cache_file is not None:
            self.cache_file.parent.mkdir(parents=True, exist_ok=True)
            with self.cache_file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": key, "same": verdict}) + "\n")
