"""Probes a model on fixed prompts, without labels: what the stop rules look at, and what the report follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotelic.diagnostics.stopping import ProbeStatistics, statistics_of
from autotelic.errors import UserError

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
    from autotelic.evaluation import generation_config, prompt_text

    if not 1 <= len(rows) <= MAX_FOLLOWED_PROMPTS or not 1 <= k <= MAX_FOLLOWED_RESPONSES:
        raise UserError(
            f"a run can follow 1 to {MAX_FOLLOWED_PROMPTS} prompts with 1 to {MAX_FOLLOWED_RESPONSES} responses each, "
            f"not {len(rows)} with {k}: the log must stay small"
        )
    texts = [prompt_text(row["prompt"], tokenizer) for row in rows]

    def follow(model: Any) -> list[dict[str, Any]]:
        import torch

        config = generation_config(model, tokenizer, temperature, 1.0, max_new_tokens)
        repeated = [text for text in texts for _ in range(k)]
        responses: list[dict[str, Any]] = []
        cuda = [model.device] if model.device.type == "cuda" else []
        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng(devices=cuda), torch.no_grad():
                torch.manual_seed(seed)
                for start in range(0, len(repeated), ROWS_AT_ONCE):
                    part = repeated[start : start + ROWS_AT_ONCE]
                    responses += sampled_responses(model, tokenizer, part, config, temperature)
        finally:
            model.train(training)
        return [
            {
                "prompt_id": str(row.get("id", i)),
                "prompt": texts[i],
                "responses": clustered(responses[i * k : i * k + k]),
            }
            for i, row in enumerate(rows)
        ]

    return follow


def sampled_responses(
    model: Any, tokenizer: Any, prompts: Sequence[str], config: Any, temperature: float | int
) -> list[dict[str, Any]]:
    """Continue every prompt once; return text, tokens, and each token's entropy and surprisal in nats."""
    import torch

    from autotelic.evaluation import left_padded, response_mask
    from autotelic.functional import surprisal, token_entropy

    ids, attention = (x.to(model.device) for x in left_padded(prompts, tokenizer))
    output = model.generate(input_ids=ids, attention_mask=attention, generation_config=config)
    completion = output[:, ids.shape[1] :]
    mask = response_mask(completion, config.eos_token_id)
    attention = torch.cat([attention, mask.to(attention.dtype)], dim=1)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    keep = completion.shape[1] + 1
    logits = model(
        input_ids=output, attention_mask=attention, position_ids=positions, logits_to_keep=keep, use_cache=False
    ).logits[:, :-1]
    entropies, surprisals = token_entropy(logits, temperature), surprisal(logits, completion, temperature)
    responses = []
    for row, kept in enumerate(mask):
        token_ids = completion[row][kept].tolist()
        responses.append(
            {
                "text": tokenizer.decode(token_ids, skip_special_tokens=True),
                "tokens": [tokenizer.decode([token]) for token in token_ids],
                "entropy": [round(float(value), 4) for value in entropies[row][kept]],
                "surprisal": [round(float(value), 4) for value in surprisals[row][kept]],
            }
        )
    return responses


def clustered(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one prompt's responses, each with the number of its cluster of equal answers (-1: none could be read)."""
    from autotelic.answers import cluster, extract

    numbers = cluster([extract(response["text"]) for response in responses])
    return [{**response, "cluster": int(number)} for response, number in zip(responses, numbers, strict=True)]
