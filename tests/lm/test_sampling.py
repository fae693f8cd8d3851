"""The sampler: entropies against a plain loop, groups, batches, interruptions, a model's generation settings."""

import pytest
import torch

from autotelic.errors import UserError
from autotelic.lm.sampling import encode, left_padded, response_mask, sample

PROMPTS = ["1+1=?", "12+7-5=?", "9=?"]


def test_entropy_and_surprisal_agree_with_a_plain_loop_without_padding(tiny, monkeypatch):
    """Every response is run alone, unpadded, and its entropies taken up to and including the first end token."""
    model, tokenizer = tiny
    monkeypatch.setattr("autotelic.lm.sampling.MAX_LOGIT_ELEMENTS", 1)
    got = sample(
        model,
        tokenizer,
        PROMPTS,
        k=3,
        temperature=1.3,
        max_new_tokens=8,
        seed=1,
        statistics=("entropy", "surprisal"),
        statistics_temperature=0.7,
    )
    assert len(got.texts) == 9 and got.done.all() and got.ended.any() and not got.ended.all()
    model.eval()
    for row, tokens in enumerate(got.tokens):
        start = tokenizer(PROMPTS[row // 3])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*start, *tokens]])).logits[0, len(start) - 1 : -1].double() / 0.7
        log_p = logits.log_softmax(-1)
        assert got.entropy[row] == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), rel=1e-4, abs=1e-6)
        assert got.surprisal[row] == pytest.approx(-log_p[range(len(tokens)), tokens].numpy(), rel=1e-4, abs=1e-6)
        assert got.texts[row] == tokenizer.decode(got.without_end()[row])


def test_greedy_does_not_depend_on_batching(tiny):
    model, tokenizer = tiny
    together = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=6)
    alone = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=6, batch_size=1)
    assert together.texts == alone.texts
    assert together.entropy_sum == pytest.approx(alone.entropy_sum, rel=1e-4)


def test_sharing_the_prompt_changes_neither_samples_nor_entropies(tiny):
    model, tokenizer = tiny
    prompts = ["1+2-3" * 20, "9-4+1" * 17]
    options = {"k": 4, "max_new_tokens": 6, "seed": 2}
    whole = sample(model, tokenizer, prompts, **options, shared_prefix="off")
    before = dict(vars(model))
    shared = sample(model, tokenizer, prompts, **options, shared_prefix="on")
    assert vars(model) == before
    assert shared.tokens == whole.tokens
    assert shared.entropy_sum == pytest.approx(whole.entropy_sum, rel=1e-4)


def test_a_models_own_generation_settings_do_not_shape_the_samples(tiny):
    """generation_config.json of many chat models sets a repetition penalty, top-k and top-p."""
    model, tokenizer = tiny
    options = {"k": 4, "max_new_tokens": 8, "seed": 3}
    plain = sample(model, tokenizer, PROMPTS, **options)
    before = model.generation_config
    model.generation_config = type(before).from_dict(
        before.to_dict()
        | {"repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "no_repeat_ngram_size": 1}
    )
    try:
        assert sample(model, tokenizer, PROMPTS, **options).tokens == plain.tokens
    finally:
        model.generation_config = before


def test_an_interruption_keeps_what_was_sampled(tiny, monkeypatch):
    model, tokenizer = tiny
    whole = sample(model, tokenizer, PROMPTS, k=2, max_new_tokens=4, batch_size=2)

    def stop(done):
        if done > 4:
            raise KeyboardInterrupt

    options = {"k": 2, "max_new_tokens": 4, "batch_size": 2, "progress": stop}
    kept = sample(model, tokenizer, PROMPTS, **options, keep_interrupted=True)
    assert kept.done.tolist() == [True] * 4 + [False] * 2
    assert kept.tokens[:4] == whole.tokens[:4] and kept.texts[4:] == ["", ""]
    with pytest.raises(KeyboardInterrupt):
        sample(model, tokenizer, PROMPTS, **options)


def test_progress_counts_the_responses(tiny):
    seen = []
    sample(*tiny, PROMPTS, k=2, max_new_tokens=3, batch_size=4, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 6 and 4 in seen


def test_entropies_that_were_not_asked_for_are_refused(tiny):
    with pytest.raises(UserError, match="not sampled"):
        _ = sample(*tiny, PROMPTS, max_new_tokens=1, statistics=()).entropy_sum


def test_mask_and_padding_by_hand(tiny):
    assert response_mask(torch.tensor([[5, 1, 7, 1], [5, 6, 7, 8]]), [1, 9]).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    ids, attention = left_padded([encode(prompt, tiny[1]) for prompt in ("1", "1+2")], tiny[1])
    assert attention.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert ids[0, 2] == ids[1, 0]
    with pytest.raises(UserError, match="a prompt is empty"):
        encode("", tiny[1])
