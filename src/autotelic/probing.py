"""Probes a model on a fixed set of prompts, without labels: what the stop rules look at."""

from collections.abc import Callable, Sequence
from typing import Any

from autotelic.diagnostics.stopping import ProbeStatistics, statistics_of


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

    Args:
        tokenizer: the model's.
        prompts: what to ask; they have no answers here.
        k: responses of each.
        temperature: of the sampling, above 0.
        max_new_tokens: longest response.
        seed: of the sampling.
        measure_logits: also take token entropy and logit skewness, by one forward pass over the responses.
    """
    from autotelic.evaluation import sample_responses

    def probe(model: Any) -> ProbeStatistics:
        found = sample_responses(
            model,
            tokenizer,
            [prompt for prompt in prompts for _ in range(k)],
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            entropy=False,
        )
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in found.texts]
        entropy = skewness = None
        if measure_logits:
            asked = [tokenizer(prompt)["input_ids"] for prompt in prompts for _ in range(k)]
            entropy, skewness = entropy_and_skewness(model, list(zip(asked, tokens, strict=True)))
        groups = range(0, len(found.texts), k)
        return statistics_of(
            [found.texts[i : i + k] for i in groups],
            [tokens[i : i + k] for i in groups],
            token_entropy=entropy,
            logit_skewness=skewness,
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
