"""Accuracy with intervals: mean@k, pass@k, maj@k, greedy, and the exact entropy of a model.

    mean@k = c / n                         pass@k = 1 - C(n - c, k) / C(n, k)
    maj@k  = the expected correctness of the largest cluster, every tied largest cluster equally likely

n samples of one prompt, c of them correct. Every figure is a mean over prompts with a percentile bootstrap
interval over prompts.
This module and the verifiers in `autotelic.rewards` are the only readers of labels, all by `rewards.label_reader`;
training code may not import it.

Reference: pass@k is the unbiased estimator of Chen et al. 2021, arXiv:2107.03374v2, Eq. 1.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from autotelic.errors import UserError

NUM_RESAMPLES = 2000
FEWEST_PROMPTS = 3  # two resample to three different means: no interval
MAX_RESAMPLE_ELEMENTS = 4_000_000  # indices held at once by the bootstrap: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its percentile bootstrap interval; the bounds are NaN under three prompts."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return `{"value", "interval": [low, high]}`, with None for what is not finite, as JSON has no NaN."""
        value, low, high = (x if math.isfinite(x) else None for x in (self.value, self.low, self.high))
        return {"value": value, "interval": [low, high]}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PromptSamples:
    """What one prompt gave: its responses, what was read from them, and whether that was right.

    `entropy` is the mean over this prompt's response tokens, in nats a token; None where only responses are known.
    """

    id: str
    prompt: str
    answer: str
    responses: tuple[str, ...]
    extracted: tuple[str | None, ...]
    clusters: tuple[int, ...]
    correct: tuple[bool, ...]
    greedy: str | None = None
    greedy_correct: bool | None = None
    entropy: float | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Named estimates ("mean@8", "pass@1" ... "pass@8", "maj@8", "greedy", "entropy", "length") and their samples."""

    metrics: dict[str, Estimate]
    samples: tuple[PromptSamples, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    unscored: tuple[dict[str, Any], ...] = ()  # rows whose comparison was cut short, with their responses

    def __getitem__(self, name: str) -> Estimate:
        """Return one estimate by its name."""
        return self.metrics[name]

    def as_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """Return what JSON can hold; `samples=True` adds every response."""
        result: dict[str, Any] = {name: estimate.as_dict() for name, estimate in self.metrics.items()}
        result["settings"] = dict(self.settings)
        result["num_prompts"] = len(self.samples)
        result["warnings"] = list(self.warnings)
        if samples:
            result["samples"] = [vars(sample) for sample in self.samples]
            result |= {"unscored": list(self.unscored)} if self.unscored else {}
        return result


def mean_at_k(correct: Bool[np.ndarray, "P K"]) -> Float[np.ndarray, " P"]:
    """Return the share of correct samples of each prompt."""
    return correct.mean(axis=1)


def pass_at_k(correct: Bool[np.ndarray, "P K"], k: int) -> Float[np.ndarray, " P"]:
    """Return the chance that at least one of k samples drawn without replacement from the K is correct.

    `1 - C(n - c, k) / C(n, k)` as the product `prod_{i=n-c+1..n} (1 - k / i)`, which neither overflows nor cancels.

    Args:
        correct: correctness of K samples of each prompt.
        k: samples drawn, between 1 and K.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise UserError(
            f"pass@{k} needs 1 <= k <= {n}, the number of samples of a prompt; draw more samples or lower k"
        )
    i = np.arange(1, n + 1)
    # factors of the product taken from the largest i down: failing[c] is their product over the c largest
    factors = np.clip(1.0 - k / i, 0.0, None)[::-1]
    failing = np.concatenate([[1.0], np.cumprod(factors)])
    return 1.0 - failing[correct.sum(axis=1)]


def majority_at_k(correct: Bool[np.ndarray, "P K"], clusters: Int[np.ndarray, "P K"]) -> Float[np.ndarray, " P"]:
    """Return the expected correctness of the most frequent answer; tied clusters are equally likely to win.

    A cluster counts by the share of its members that are correct (0 or 1 where equivalence is consistent).
    A response without an answer (-1) never wins; a prompt without any answer scores 0.
    """
    scores = np.zeros(len(correct))
    for p, (row, names) in enumerate(zip(correct, clusters, strict=True)):
        labels, sizes = np.unique(names[names >= 0], return_counts=True)
        if len(labels):
            winners = labels[sizes == sizes.max()]
            scores[p] = np.mean([row[names == label].mean() for label in winners])
    return scores


def bootstrap(
    values: Float[np.ndarray, " P"],
    weights: Float[np.ndarray, " P"] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    share: bool = False,
) -> Estimate:
    """Return `sum(w v) / sum(w)` over prompts with its bootstrap interval, prompts resampled with replacement.

    Fewer than three prompts give no interval.

    Args:
        values: one value per prompt.
        weights: for example the tokens of each prompt; None weighs every prompt the same.
        level: coverage of the interval, in (0, 1).
        num_resamples: bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.
        share: the values lie in [0, 1]. Where all are 0, or all 1, resampling sees no spread: the interval is Wilson's.
    """
    if not len(values):
        raise UserError("no prompt to average over; give at least one")
    weights = np.ones(len(values)) if weights is None else weights
    value = float((values * weights).sum() / weights.sum())
    if len(values) < FEWEST_PROMPTS:
        return Estimate(value, math.nan, math.nan)
    if share and (np.all(values == 0) or np.all(values == 1)):
        wilson = stats.binomtest(round(float(values.sum())), len(values)).proportion_ci(level, method="wilson")
        return Estimate(value, float(wilson.low), float(wilson.high))
    rng = np.random.default_rng(seed)
    rows = max(1, MAX_RESAMPLE_ELEMENTS // len(values))
    means = []
    for start in range(0, num_resamples, rows):
        index = rng.integers(len(values), size=(min(rows, num_resamples - start), len(values)))
        means.append((values * weights)[index].sum(axis=1) / weights[index].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def accuracy_estimates(
    correct: Bool[np.ndarray, "P K"], clusters: Int[np.ndarray, "P K"], *, seed: int = 0
) -> dict[str, Estimate]:
    """Return mean@K, pass@1, pass@2, pass@4 ... pass@K and maj@K with their intervals."""
    k = correct.shape[1]
    powers = [2**i for i in range(k.bit_length()) if 2**i <= k]
    estimates = {f"mean@{k}": bootstrap(mean_at_k(correct), seed=seed, share=True)}
    estimates |= {f"pass@{j}": bootstrap(pass_at_k(correct, j), seed=seed, share=True) for j in sorted({*powers, k})}
    estimates[f"maj@{k}"] = bootstrap(majority_at_k(correct, clusters), seed=seed, share=True)
    return estimates


def evaluate_model(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Mapping[str, Any]],
    *,
    k: int = 8,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    seed: int = 0,
    greedy: bool = True,
    chat: str | bool = "auto",
    equivalence: Any = None,
    progress: Callable[[float, int], None] = lambda done, total: None,
    keep_interrupted: bool = False,
) -> Evaluation:
    """Sample k responses of every problem, and one greedy response, and score them.

    Entropy is exact over the vocabulary, at temperature 1 whatever the sampling temperature, in nats a token: the mean
    over all sampled response tokens up to and including the first end token. The global random state is left as it was.
    Problems whose label cannot be read are left out, and a warning names them. An engine gives no entropy, and the
    result has none.

    Args:
        model: a causal language model of transformers, or an engine (`autotelic.lm.engines`).
        tokenizer: its tokenizer.
        problems: rows with `prompt` (text, or a list of chat messages), `answer`, and optionally `id`.
        k: samples of each prompt.
        temperature: of the sampling, above 0.
        top_p: nucleus of the sampling, in (0, 1].
        max_new_tokens: longest response.
        batch_size: sequences generated at once.
        seed: of the sampling and of the bootstrap.
        greedy: also decode greedily once.
        chat: auto, on or off: whether text prompts go through the chat template (`autotelic.lm.chat`).
        equivalence: of answers, see `autotelic.answers`; None is mathematics.
        progress: called with the responses that are done, and how many there will be.
        keep_interrupted: on Ctrl-C, or where a server stops in the middle, score the prompts that are complete; where
            the comparison of answers stops, keep what is not compared as `unscored`.
    """
    check_sampling(k, temperature, top_p, max_new_tokens, batch_size)
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.sampling import Engine, sample

    rows, warnings = labelled_rows(problems, equivalence)
    prompts = prompt_texts([row["prompt"] for row in rows], tokenizer, chat)

    def after(before: int) -> Callable[[float], None]:
        return lambda done: progress(before + done, len(rows) * (k + greedy))

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    options["keep_interrupted"] = keep_interrupted
    sampled = sample(model, tokenizer, prompts, k=k, temperature=temperature, top_p=top_p, progress=after(0), **options)
    done, decoded = sampled.complete(k), None
    if greedy and all(done):
        options |= {"temperature": 0, "statistics": (), "progress": after(len(rows) * k)}
        decoded = sample(model, tokenizer, prompts, **options)
    if not any(done):
        sampled.end()
    if sampled.entropy is None:
        warnings.append(f"no entropy: {model.name} gives tokens, and not the distributions that they came from")
    interrupted = not all(done) or (decoded is not None and not decoded.done.all())
    best = None if decoded is None or interrupted else decoded.texts

    def drawn(p: int) -> dict[str, Any]:
        own = sampled.of_prompt(p, k)
        measured = {"entropy": own.entropy, "num_tokens": own.num_tokens}
        return {"responses": list(own.texts), "greedy": None if best is None else best[p], **measured}

    samples, places = [], np.flatnonzero(done).tolist()
    try:
        for p in places:
            samples.append(score_prompt(rows[p], **drawn(p), index=p, equivalence=equivalence))
    except (KeyboardInterrupt, UserError) as error:
        if not keep_interrupted:
            raise
        why = str(error) or "interrupted"
        warnings.append(f"{why}: {len(samples)} of {len(places)} prompts were scored before that")
    unscored = tuple({"id": str(rows[p].get("id", p)), **rows[p], **drawn(p)} for p in places[len(samples) :])
    if interrupted:
        why = next((f" ({each.stopped})" for each in (sampled, decoded) if each is not None and each.stopped), "")
        warnings.append(f"interrupted: {len(places)} of {len(rows)} prompts were sampled{why}")
    settings = {"k": k, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    settings |= {"engine": model.name} if isinstance(model, Engine) else {}
    interrupted = interrupted or bool(unscored)
    result = summarize(samples, settings=settings, seed=seed, warnings=warnings, interrupted=interrupted)
    return replace(result, unscored=unscored)


def check_sampling(k: int, temperature: float | int, top_p: float | int, max_new_tokens: int, batch_size: int) -> None:
    """Refuse settings of `evaluate_model` that sample nothing.

    Raises:
        UserError: one of them is out of its range.
    """
    if k < 1 or temperature <= 0 or not 0 < top_p <= 1 or max_new_tokens < 1 or batch_size < 1:
        raise UserError(
            "evaluation needs k, max_new_tokens and batch_size of at least 1, temperature above 0 and top_p in (0, 1]; "
            f"got {k}, {max_new_tokens}, {batch_size}, {temperature} and {top_p}"
        )


def evaluate_samples(
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int = 0,
    equivalence: Any = None,
    progress: Callable[[float, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score recorded responses: rows `{prompt, responses: [...], answer}`, optionally `id` and `greedy`.

    Rows with unequal numbers of responses are cut to the smallest, their first ones are kept, and a warning says so.
    Rows whose label cannot be read are left out, and a warning names them.
    """
    rows, warnings = labelled_rows(list(rows), equivalence)
    for number, row in enumerate(rows, start=1):
        responses = row.get("responses")
        if not isinstance(responses, list | tuple) or not responses or not all(isinstance(r, str) for r in responses):
            raise UserError(f"row {number} has no `responses`: give a list of at least one string")
    k = min(len(row["responses"]) for row in rows)
    most = max(len(row["responses"]) for row in rows)
    warnings += [f"rows hold {k} to {most} responses: the first {k} of each are scored"] if most > k else []
    samples = []
    for p, row in enumerate(rows):
        own = list(row["responses"][:k])
        samples.append(score_prompt(row, own, index=p, greedy=row.get("greedy"), equivalence=equivalence))
        progress(p + 1, len(rows))
    return summarize(samples, settings={"k": k}, seed=seed, warnings=warnings)


def temperature_sweep(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Mapping[str, Any]],
    temperatures: Sequence[float | int],
    **settings: Any,
) -> dict[float, Evaluation]:
    """Evaluate once per sampling temperature, on the same problems and seed; greedy is decoded the first time only.

    With `keep_interrupted`, an interruption ends the sweep, and what was sampled until then is returned.
    """
    if any(temperature <= 0 for temperature in temperatures):
        raise UserError(f"evaluation needs every temperature above 0, got {', '.join(map(str, temperatures))}")
    results: dict[float, Evaluation] = {}
    for number, temperature in enumerate(temperatures):
        options = {**settings, "greedy": settings.get("greedy", True) and number == 0}
        try:
            result = evaluate_model(model, tokenizer, problems, temperature=temperature, **options)
        except (KeyboardInterrupt, UserError) as error:
            if not results or not settings.get("keep_interrupted"):
                raise
            last, why = list(results)[-1], f" ({error})" if str(error) else ""
            note = f"interrupted: nothing was sampled at temperature {temperature}{why}"
            results[last] = replace(results[last], warnings=(*results[last].warnings, note), interrupted=True)
            break
        results[float(temperature)] = result
        if result.interrupted:
            break
    return results


def labelled_rows(
    rows: Sequence[Mapping[str, Any]], equivalence: Any = None
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the rows whose label can be read, and a warning that names the others.

    Raises:
        UserError: no rows, a row without prompt or answer, or no label that can be read.
    """
    from autotelic.rewards.label_reader import unread_labels

    if not rows:
        raise UserError("nothing to evaluate: the source holds no problem")
    for number, row in enumerate(rows, start=1):
        for name in ("prompt", "answer"):
            if row.get(name) is None:
                has = ", ".join(map(str, row)) or "no column"
                raise UserError(
                    f"row {number} has no `{name}` (it has {has}): evaluation compares responses with answers"
                )
    places, note = unread_labels([row["answer"] for row in rows], free_text=equivalence is not None)
    kept = [row for place, row in enumerate(rows) if place not in set(places)]
    return kept, [] if note is None else [f"{note}: these prompts are left out"]


def score_prompt(
    row: Mapping[str, Any],
    responses: Sequence[str],
    *,
    index: int,
    greedy: str | None = None,
    entropy: float | None = None,
    num_tokens: int | None = None,
    equivalence: Any = None,
) -> PromptSamples:
    """Read the answers of one prompt's responses, cluster them, and compare them with the label."""
    from autotelic.answers import cluster, extract
    from autotelic.rewards.label_reader import is_right, read_label
    from autotelic.tasks.conversations import question_text

    accepted = read_label(row["answer"], free_text=equivalence is not None)
    question = question_text(row["prompt"])
    extracted = [extract(text) for text in responses]
    final = None if greedy is None else extract(greedy)
    verdicts = {text: is_right(text, accepted, equivalence, question) for text in {*extracted, final}}
    return PromptSamples(
        id=str(row.get("id", index)),
        prompt=row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False),
        answer=row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"], ensure_ascii=False),
        responses=tuple(responses),
        extracted=tuple(extracted),
        clusters=tuple(int(c) for c in cluster(extracted, equivalence=equivalence, question=question)),
        correct=tuple(verdicts[text] for text in extracted),
        greedy=greedy,
        greedy_correct=None if greedy is None else verdicts[final],
        entropy=entropy,
        num_tokens=num_tokens,
    )


def summarize(
    samples: Sequence[PromptSamples],
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    warnings: Sequence[str] = (),
    interrupted: bool = False,
) -> Evaluation:
    """Turn scored prompts into estimates; greedy, entropy and length appear only where every prompt has them."""
    if not samples:
        return Evaluation({}, (), dict(settings), tuple(warnings), interrupted)
    correct = np.array([sample.correct for sample in samples], dtype=bool)
    clusters = np.array([sample.clusters for sample in samples], dtype=np.int64)
    metrics = accuracy_estimates(correct, clusters, seed=seed)
    if all(sample.greedy_correct is not None for sample in samples):
        metrics["greedy"] = bootstrap(np.array([float(bool(s.greedy_correct)) for s in samples]), seed=seed, share=True)
    if all(sample.num_tokens for sample in samples):
        tokens = np.array([float(s.num_tokens or 0) for s in samples])
        if all(sample.entropy is not None for sample in samples):
            metrics["entropy"] = bootstrap(np.array([float(s.entropy or 0.0) for s in samples]), tokens, seed=seed)
        metrics["length"] = bootstrap(tokens / correct.shape[1], seed=seed)
    metrics["parsed"] = bootstrap((clusters >= 0).mean(axis=1), seed=seed, share=True)
    return Evaluation(metrics, tuple(samples), dict(settings), tuple(warnings), interrupted)
