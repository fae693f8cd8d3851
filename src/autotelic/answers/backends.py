"""Equivalence of free text: embeddings, entailment, a judge; and the one way to choose among them, `equivalence`.

Entailment and judges decide with each prompt, as the verifier of EMPO's authors does. Nothing heavy is imported before
the first comparison, every verdict is cached, and a group with U different strings asks at most U (U - 1) questions.
"""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autotelic.answers.compare import Equivalence, FunctionEquivalence
from autotelic.endpoint import Endpoint, NoAnswerError
from autotelic.errors import UserError, one_of

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
    """Two texts mean the same when each entails the other, read as answers to the question: "q a1" entails "q a2".

    strict: both directions are entailment. Not strict: neither direction is a contradiction, and not both are neutral.

    Reference: Kuhn et al. 2023, arXiv:2302.09664 (strict); the rule for not strict is that of Farquhar et al. 2024.

    Args:
        model: Name or folder of a sequence-classification model whose labels name entailment, neutral, contradiction.
        strict: Which rule.
        batch_size: Pairs a forward pass.
        classify: A function from (premise, hypothesis) pairs to labels, instead of the model.
    """

    symmetric = True  # the rule looks at both directions of a pair at once

    def __init__(
        self,
        model: str = "microsoft/deberta-large-mnli",
        strict: bool = True,
        batch_size: int = 32,
        classify: Callable[[list[tuple[str, str]]], Sequence[str]] | None = None,
    ) -> None:
        self.model_name, self.strict, self.batch_size = model, strict, batch_size
        self._classify = classify
        self._cache: dict[tuple[str, str], str] = {}
        self.num_calls = 0
        self.num_asymmetric = 0

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Classify every direction not seen before, in batches."""
        texts = [f"{question} {a}".strip() for a in answers]
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

PATIENCE = 8
"""Pairs in a row on which a judge may give no answer, the attempts of each included: about a minute."""

_PLACES = re.compile(r"\{(question|first|second)\}")


def _filled(prompt: str, said: Mapping[str, str]) -> str:
    """Return the prompt with its places filled in; places within what is filled in stay."""
    return _PLACES.sub(lambda match: said[match.group(1)], prompt)


class JudgeEquivalence:
    """A language model behind an OpenAI-compatible endpoint decides. Verdicts are kept on disk; cost is counted.

    A judge that has never answered, or is silent on more than `PATIENCE` pairs in a row, is an error: a run would go on
    with groups in which nothing agrees.

    Args:
        url: Base address, such as ``http://localhost:8000``; ``/v1`` is added where it has no path.
        model: Name of the model there.
        cache: File for the verdicts (one JSON object a line); none are kept beyond this process without it.
        api_key_variable: Environment variable that holds the key.
        prompt: What the judge is asked, with the places {question}, {first} and {second}. A reply counts by the word
            "yes" or "no" that it begins with, or that follows "decision:".
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
        prompt: str = PROMPT,
        retries: int = 3,
        timeout: float = 30.0,
        pause: float = 1.0,
        price: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if missing := [place for place in ("{first}", "{second}") if place not in prompt]:
            raise UserError(f"the judge's prompt has no place for {' and '.join(missing)}")
        self.endpoint = Endpoint(url, key_variable=api_key_variable, retries=retries, pause=pause, timeout=timeout)
        self.model, self.prompt, self.price = model, prompt, price
        self.cache_file = Path(cache) if cache is not None else None
        self._cache: dict[str, bool] = self._read_cache()
        self.num_calls = self.num_failures = self.prompt_tokens = self.reply_tokens = 0
        self._num_silent = PATIENCE  # in a row; one that has never answered gets no patience

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
            content = _filled(self.prompt, {"question": question, "first": first, "second": second})
            key = hashlib.sha256(json.dumps([self.model, content]).encode()).hexdigest()
            if key not in self._cache:
                verdict = self._ask(content)
                if verdict is None:
                    verdicts.append(None)
                    continue
                self._cache[key] = verdict
                self._append_cache(key, verdict)
            verdicts.append(self._cache[key])
        return verdicts

    def warm_up(self) -> None:
        """Ask one question, so that a judge that cannot answer is known before anything is sampled or trained.

        Where verdicts of an earlier run are kept nothing is asked: they may be all that is needed.
        """
        if not self._cache:
            self._ask(_filled(self.prompt, {"question": "1 + 1 = ?", "first": "2", "second": "two"}))

    def _ask(self, content: str) -> bool | None:
        """Call the endpoint; return yes, no, or None where it said neither."""
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        self.num_calls += 1
        try:
            reply = self.endpoint.ask("chat/completions", body)
        except NoAnswerError as error:
            self.num_failures += 1
            self._num_silent += 1
            if self._num_silent > PATIENCE:
                raise UserError(f"the judge does not answer: {error}") from error
            return None
        self._num_silent = 0
        return self._verdict(reply)

    def _verdict(self, reply: Mapping[str, Any]) -> bool | None:
        """Return yes or no from a reply, and count its tokens."""
        try:
            usage = reply.get("usage") or {}
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.reply_tokens += int(usage.get("completion_tokens") or 0)
            word = str(reply["choices"][0]["message"]["content"]).strip().lower()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return None
        decision = re.match(r"\W*(yes|no)\b", word) or re.search(r".*decision\W*(yes|no)\b", word, re.S)
        return decision.group(1) == "yes" if decision else None

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


BACKENDS: dict[str, Callable[..., Equivalence]] = {
    "nli": NLIEquivalence,
    "judge": JudgeEquivalence,
    "embedding": EmbeddingEquivalence,
}
"""The equivalences that take settings, by name; "math" is the default everywhere."""


def equivalence(spec: Any = None) -> Equivalence | None:
    """Return the equivalence that a command line or a recipe names; ``None`` is mathematics.

    Args:
        spec: "math" or ``None``; "nli", "judge" or "embedding" with settings, as ``judge,url=http://host:8000/v1,model=m``
            or ``{"name": "judge", "url": ..., "model": ...}``; ``package.module.function``, of two answers or of the
            question and two answers; or an equivalence or a function itself.

    Raises:
        UserError: An unknown name or setting, or a value that cannot be used.
    """
    if spec is None or isinstance(spec, Equivalence):
        return spec
    if callable(spec):
        return FunctionEquivalence(spec)
    if isinstance(spec, Mapping):
        given: dict[str, Any] = {str(key): value for key, value in spec.items()}
        name = str(given.pop("name", ""))
    else:
        name, *pairs = (part.strip() for part in str(spec).split(","))
        given = {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}
    if name == "math" and not given:
        return None
    if "." in name and not given:
        module, _, attribute = name.rpartition(".")
        try:
            return equivalence(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot import the equivalence {name!r}: {error}") from error
    if name not in BACKENDS:
        names = ["math", *BACKENDS]
        raise UserError(f"unknown equivalence {name!r}{one_of(name, names)}")
    return BACKENDS[name](**_settings(name, given))


def _settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the types of a backend's parameters."""
    parameters = inspect.signature(BACKENDS[name]).parameters
    kinds = {
        key: p.annotation for key, p in parameters.items() if p.annotation in (str, float, int, bool, str | Path | None)
    }
    for key in given:
        if key not in kinds:
            raise UserError(f"equivalence {name} has no setting {key!r}{one_of(key, kinds)}")
    if missing := [key for key in kinds if parameters[key].default is inspect.Parameter.empty and key not in given]:
        raise UserError(f"equivalence {name} needs {' and '.join(missing)}, as in {name},{missing[0]}=...")
    try:
        return {key: _typed(kinds[key], value) for key, value in given.items()}
    except ValueError as error:
        raise UserError(f"equivalence {name}: {error}") from error


def _typed(kind: Any, value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"true or false, not {value!r}")
        return value.lower() == "true"
    return kind(value) if kind in (int, float, bool) else str(value)
