"""Probes a model on fixed prompts, without labels: what the stop rules look at, and what the report follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotelic.diagnostics.probe_statistics import ProbeStatistics, statistics_of
from autotelic.diagnostics.rising_rules import unknown_share, words_of
from autotelic.errors import UserError

if TYPE_CHECKING:
    from autotelic.lm.sampling import Responses

MAX_FOLLOWED_PROMPTS, MAX_FOLLOWED_RESPONSES = 32, 16  # so that what is written stays small, however long a run is
ROWS_AT_ONCE = 64


def make_probe(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    k: int = 8,
    temperature: float | int = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    measure_logits: bool = True,
) -> Callable[[Any], ProbeStatistics]:
    """Return a function from model to `ProbeStatistics`; the same random numbers every time.

    Words are known that the prompts or the responses of the first call use.

    Args:
        tokenizer: the model's.
        prompts: what to ask; they have no answers here.
        k: responses of each.
        temperature: of the sampling, above 0.
        max_new_tokens: longest response.
        seed: of the sampling.
        measure_logits: also take token entropy and logit skewness, by one forward pass over the responses.
    """
    from autotelic.lm.sampling import encode, sample

    dictionary: set[str] = set()

    def probe(model: Any) -> ProbeStatistics:
        found = sample(
            model,
            tokenizer,
            prompts,
            k=k,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            statistics=(),
        )
        tokens = found.without_end()
        entropy = skewness = None
        if measure_logits:
            asked = [encode(prompt, tokenizer) for prompt in prompts for _ in range(k)]
            entropy, skewness = entropy_and_skewness(model, list(zip(asked, tokens, strict=True)))
        groups = range(0, len(found.texts), k)
        if not dictionary:
            dictionary.update(words_of([*prompts, *found.texts]))
        return statistics_of(
            [found.texts[i : i + k] for i in groups],
            [tokens[i : i + k] for i in groups],
            token_entropy=entropy,
            logit_skewness=skewness,
            unknown_words=unknown_share(found.texts, dictionary),
        )

    return probe


def entropy_and_skewness(model: Any, sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[float, float]:
    """Return nats per token and the skewness of the raw logits, over all positions of the responses."""
    from autotelic.diagnostics.logit_shift import LogitStatistics, response_logits
    from autotelic.functional import token_entropy

    statistics, total = LogitStatistics(num_ranks=1), 0.0
    for logits in response_logits(model, sequences):
        statistics.add(logits)
        total += float(token_entropy(logits).sum())
    return total / statistics.positions, float(statistics.moments()[0, 2])


def make_follower(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    k: int = 8,
    temperature: float | int = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Callable[[Any], list[dict[str, Any]]]:
    """Return a function from model to rows of rollouts: k responses of every prompt with their token statistics.

    The random numbers are its own, and the same every time: what differs between two calls is the model. Entropy and
    surprisal are taken at the sampling temperature, as in the rollouts that a run logs.

    Args:
        tokenizer: the model's.
        rows: `prompt`, and optionally `id`; at most `MAX_FOLLOWED_PROMPTS`.
        k: responses of each, at most `MAX_FOLLOWED_RESPONSES`.
        temperature: of the sampling, above 0.
        max_new_tokens: longest response.
        seed: of the sampling.
    """
    from autotelic.lm.chat import prompt_text
    from autotelic.lm.sampling import sample

    if not 1 <= len(rows) <= MAX_FOLLOWED_PROMPTS or not 1 <= k <= MAX_FOLLOWED_RESPONSES:
        raise UserError(
            f"a run can follow 1 to {MAX_FOLLOWED_PROMPTS} prompts with 1 to {MAX_FOLLOWED_RESPONSES} responses each, "
            f"not {len(rows)} with {k}: the log must stay small"
        )
    texts = [prompt_text(row["prompt"], tokenizer) for row in rows]

    def follow(model: Any) -> list[dict[str, Any]]:
        found = sample(
            model,
            tokenizer,
            texts,
            k=k,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_size=ROWS_AT_ONCE,
            seed=seed,
            statistics=("entropy", "surprisal"),
            statistics_temperature=temperature,
        )
        written = written_down(found, tokenizer)
        groups = [clustered(written[i * k : i * k + k]) for i in range(len(rows))]
        names = [str(row.get("id", i)) for i, row in enumerate(rows)]
        return [
            {"prompt_id": name, "prompt": text, "responses": responses}
            for name, text, responses in zip(names, texts, groups, strict=True)
        ]

    return follow


def written_down(found: "Responses", tokenizer: Any) -> list[dict[str, Any]]:
    """Return each response as the rollout files hold it: text, and the text, entropy and surprisal of its tokens."""
    columns = (found.texts, found.tokens, found.entropy or (), found.surprisal or ())
    return [
        {
            "text": text,
            "tokens": [tokenizer.decode([token]) for token in ids],
            "entropy": [round(float(value), 4) for value in entropies],
            "surprisal": [round(float(value), 4) for value in surprisals],
        }
        for text, ids, entropies, surprisals in zip(*columns, strict=True)
    ]


def clustered(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one prompt's responses, each with the number of its cluster of equal answers (-1: none could be read)."""
    from autotelic.answers import cluster, extract

    numbers = cluster([extract(response["text"]) for response in responses])
    return [{**response, "cluster": int(number)} for response, number in zip(responses, numbers, strict=True)]
