"""One prefill per prompt changes no sample: the same tokens at the same seed, by transformers' own loop; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import Counting, random_model

from autotelic.errors import UserError
from autotelic.lm import shared_prefill as seam
from autotelic.lm.shared_prefix import same_states
from autotelic.trl import FastPasses, with_entropy_control

pytest.importorskip("trl.kernels", reason="this TRL has no fused head to replace")


def small(name="Qwen3ForCausalLM", **given):
    """A tiny random model that does not train."""
    heads = {} if name.startswith("GPT2") else {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = heads | {"max_position_embeddings": 256, "tie_word_embeddings": False}
    return random_model(name, **shape | given).eval()


def prompts(lengths=(7, 4, 9), repeats=4, order=None):
    """Prompts of these lengths, padded left, each repeated; in another order, if one is given."""
    width = max(lengths)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (len(lengths), width), generator=generator)
    attention = (torch.arange(width) >= width - torch.tensor(lengths).unsqueeze(1)).long()
    rows = torch.arange(len(lengths)).repeat_interleave(repeats)
    rows = rows if order is None else rows[order]
    return {"input_ids": (ids * attention)[rows], "attention_mask": attention[rows]}


@pytest.fixture
def prefills(monkeypatch):
    """Record what is prefilled, (prompts, columns), and whether it stays one in the cache."""
    seen = []
    original, kept = seam.prompt_cache, seam.keeps_once

    def spy(model, ids, attention, numbers):
        seen.append([len(set(numbers)), ids.shape[1]])
        return original(model, ids, attention, numbers)

    def kept_spy(*args):
        seen[-1].append(kept(*args))
        return kept(*args)

    monkeypatch.setattr(seam, "prompt_cache", spy)
    monkeypatch.setattr(seam, "keeps_once", kept_spy)
    return seen


def sampled(model, given, seed=5, **options):
    from transformers import GenerationConfig

    config = GenerationConfig(**{"max_new_tokens": 80, "do_sample": True, "top_k": None} | options)
    torch.manual_seed(seed)
    return model.generate(**given, generation_config=config)


def both(make, given, **options):
    """Return the tokens without and with sharing."""
    plain, shared = make(), make()
    assert seam.share_prefill(shared, mode="on") is None
    return sampled(plain, given, **options), sampled(shared, given, **options)


MODELS = {
    "qwen3": (small, True),
    "llama, all heads kept": (lambda: small("LlamaForCausalLM", num_key_value_heads=4), True),
    "gpt2, learned positions": (lambda: small("GPT2LMHeadModel"), True),
    "eager": (lambda: small(attn_implementation="eager"), False),
    "gemma2, soft-capped": (lambda: small("Gemma2ForCausalLM"), False),
    "mistral, beyond its window": (lambda: small("MistralForCausalLM", sliding_window=6), False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_samples_on_every_kind_of_model(name, prefills):
    """80 tokens: more than the room to begin with. Rows end at different places, by their end token."""
    make, once = MODELS[name]
    plain, shared = both(make, prompts())
    assert torch.equal(plain, shared)
    assert prefills == [[2, 6, once], [3, 9, once]]  # install's trial, then the call
    lengths = (plain[:, 9:] == 2).int().argmax(1)
    assert len(set(lengths.tolist())) > 3


OPTIONS = {
    "greedy": {"do_sample": False},
    "processors": {"temperature": 0.6, "top_p": 0.9, "min_new_tokens": 5, "repetition_penalty": 1.3},
    "no end": {"eos_token_id": None, "max_new_tokens": 20},
    "short": {"max_new_tokens": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_samples_with_every_option(name, prefills):
    plain, shared = both(small, prompts(), **OPTIONS[name])
    assert torch.equal(plain, shared) and len(prefills) == 2


BATCHES = {
    "no padding": ({"lengths": (6, 6)}, True),
    "one prompt": ({"lengths": (8,), "repeats": 16}, True),
    "rows apart": ({"order": [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]}, False),
    "unequal groups": ({"order": [0, 1, 2, 4, 5, 8]}, False),
    "one token": ({"lengths": (1, 5)}, True),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_same_samples_on_every_kind_of_batch(name, prefills):
    given, once = BATCHES[name]
    plain, shared = both(small, prompts(**given))
    assert torch.equal(plain, shared) and prefills[-1][-1] is once


def begun(common, lengths=(40, 31, 52), repeats=4):
    """Prompts that begin with the same tokens, behind their padding."""
    given = prompts(lengths, repeats)
    start = torch.randint(3, 40, (common,), generator=torch.Generator().manual_seed(7))
    for row, seen in zip(given["input_ids"], given["attention_mask"], strict=True):
        padding = int((seen == 0).sum())
        row[padding : padding + common] = start
    return given


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("common", "lengths", "repeats"), [(24, (40, 31, 52), 4), (30, (31, 31), 1), (31, (31, 40), 3)]
)
def test_what_all_prompts_begin_with_is_passed_once(common, lengths, repeats, dtype, monkeypatch):
    """Against each prompt in full: the cache and the logits after it; 5 + 24 tokens more, not three prompts."""
    model, given = small().to(getattr(torch, dtype)), begun(common, lengths, repeats)
    numbers = [row // repeats for row in range(len(lengths) * repeats)]
    found, passed = [], []
    forward = model.base_model.forward

    def counting(*args, **kwargs):
        passed.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    model.base_model.forward = counting
    for least in (10**6, seam.MIN_COMMON):
        monkeypatch.setattr(seam, "MIN_COMMON", least)
        found.append(seam.prompt_cache(model, given["input_ids"], given["attention_mask"], numbers))
    assert len(passed) == 3 and passed[1] + passed[2] < passed[0]
    mask = given["attention_mask"][::repeats, None, :-1, None]
    for plain, shared in zip(found[0].layers, found[1].layers, strict=True):
        for name in ("keys", "values"):
            x, y = (getattr(layer, name) * mask for layer in (plain, shared))
            torch.testing.assert_close(x, y, **({"rtol": 0.02, "atol": 0.02} if dtype == "bfloat16" else {}))


def test_the_same_samples_where_prompts_begin_alike(prefills):
    plain, shared = both(small, begun(24))
    assert torch.equal(plain, shared) and prefills[-1] == [3, 52, True]
    plain, shared = both(small, begun(28, repeats=1))  # nothing repeats but the beginning
    assert torch.equal(plain, shared) and prefills[-1] == [3, 52, True]


def test_an_adapter_and_its_generate():
    from peft import LoraConfig, get_peft_model

    def make():
        torch.manual_seed(2)
        return get_peft_model(small(), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)).eval()

    plain, shared = both(make, prompts())
    assert torch.equal(plain, shared)


@given(rows=st.integers(1, 3), repeats=st.integers(1, 3), kept=st.integers(1, 2), data=st.data())
@settings(max_examples=40, deadline=None)
def test_attention_over_a_prompt_kept_once_is_attention(rows, repeats, kept, data):
    """Against the definition, key by key, in float64; with padding, over several steps."""
    from transformers.cache_utils import Cache

    from autotelic.lm.prefix_cache import PrefixLayer, active, attend

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads, length, size, total = 2 * kept, data.draw(st.integers(1, 5)), 4, rows * repeats
    prompt = draw(rows, kept, length, size), draw(rows, kept, length, size)
    layer = PrefixLayer(*prompt)
    module = torch.nn.Module()
    module.layer_idx, module.num_key_value_groups = 0, 2
    token = active.set(Cache(layers=[layer]))
    own, cases = [], []
    try:
        for step in range(3):
            own.append((draw(total, kept, 1, size), draw(total, kept, 1, size)))
            key, value = layer.update(*own[-1])
            assert layer.get_seq_length() == length + step + 1
            mask = torch.rand(total, 1, 1, length + step + 1, generator=generator) > 0.3
            mask[..., -1] = True
            query = draw(total, heads, 1, size)
            cases.append((query, mask, attend(module, query, key, value, mask, scaling=0.5)[0]))
    finally:
        active.reset(token)
    for step, (query, mask, found) in enumerate(cases, 1):
        for row in range(total):
            for head in range(heads):
                keys, values = (
                    torch.cat([prompt[i][row // repeats, head // 2], *(x[i][row, head // 2] for x in own[:step])])
                    for i in (0, 1)
                )
                scores = (keys @ query[row, head, 0] * 0.5).masked_fill(~mask[row, 0, 0], -torch.inf)
                torch.testing.assert_close(found[row, 0, head], scores.softmax(0) @ values)


def test_the_model_is_left_as_it_was():
    """Also after an error; and the prompt's keys are held once: 4 rows of 2 heads, not 16."""
    from autotelic.lm.prefix_cache import active

    model = small()
    seam.share_prefill(model, mode="on")
    held = []

    def stop(ids, scores, **kwargs):
        cache = active.get()
        assert cache is not None
        held.append(cache.layers[0].prompt_keys.shape)
        if ids.shape[1] > 12:
            raise RuntimeError("enough")
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(RuntimeError, match="enough"):
        model.generate(**prompts(), max_new_tokens=9, stopping_criteria=[stop])
    assert held[0] == (3, 2, 8, 8)
    assert active.get() is None and model.config._attn_implementation == "sdpa"
    logits = model(**prompts()).logits
    assert torch.equal(logits, small()(**prompts()).logits)


# Left alone.

ALONE = {
    "num_beams=2": {"num_beams": 2},
    "num_return_sequences=2": {"num_return_sequences": 2},
    "use_cache=False": {"use_cache": False},
    "cache_implementation=static": {"cache_implementation": "static"},
    "return_dict_in_generate=True": {"return_dict_in_generate": True},
    "prefill_chunk_size=4": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("words", ALONE)
def test_other_generations_are_left_alone(words, prefills, caplog):
    model = small()
    seam.say_once.cache_clear()
    seam.share_prefill(model, mode="on")
    torch.manual_seed(0)
    model.generate(**prompts(), max_new_tokens=3, do_sample=True, **ALONE[words])
    assert len(prefills) == 1
    assert [r.message for r in caplog.records] == [f"prompts are not shared in generation: {words}"]


def test_calls_are_left_alone_where_nothing_repeats_or_something_stands_beside(prefills, caplog):
    model = small()
    seam.say_once.cache_clear()
    seam.share_prefill(model, mode="on")
    model.generate(**prompts(repeats=1), max_new_tokens=2)
    model.generate(prompts()["input_ids"], attention_mask=prompts()["attention_mask"], max_new_tokens=2)
    given = prompts()
    right = {name: x.flip(1) for name, x in given.items()}
    model.generate(**right, max_new_tokens=2)
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model.generate(**given, position_ids=positions, max_new_tokens=2)
    model.lm_head.weight.ds_id = 0
    model.generate(**given, max_new_tokens=2)
    assert len(prefills) == 1
    said = [r.message for r in caplog.records if r.message.startswith("prompts are not shared")]
    for line, words in zip(said, ("padded on the right", "position_ids beside", "split over processes"), strict=True):
        assert words in line


def test_dropout_in_training_is_left_alone(prefills):
    model = small(attention_dropout=0.1)
    seam.share_prefill(model, mode="on")
    model.train().generate(**prompts(), max_new_tokens=2)
    assert len(prefills) == 1
    model.eval().generate(**prompts(), max_new_tokens=2)
    assert len(prefills) == 2


def test_one_state_that_bfloat16_rounds_away_is_no_disagreement():
    theirs = torch.ones(2, 4, 3)
    ours = theirs.clone()
    ours[0, 2] = 0.3
    assert same_states(ours, theirs, torch.bfloat16) and not same_states(ours, theirs, torch.float32)
    ours[0] = 0.3  # a whole row: one prompt's cache is wrong
    assert not same_states(ours, theirs, torch.bfloat16)


def test_auto_takes_long_prompts_that_repeat(prefills):
    model = small()
    assert seam.share_prefill(model) is None
    for lengths, repeats, taken in (((63,), 8, 0), ((64, 20), 8, 1), ((64, 64), 1, 0)):
        before = len(prefills)
        model.generate(**prompts(lengths, repeats), max_new_tokens=2)
        assert len(prefills) - before == taken


def wrong():
    model = small()
    model.model.layers[1].mlp = Counting(model.model.layers[1].mlp)
    return model


REFUSED = {
    "keeps a state": lambda: small("MambaForCausalLM", state_size=4),
    "is not what it makes of the rows": wrong,
    "encoder-decoder": lambda: told(is_encoder_decoder=True),
}


def told(**given):
    model = small()
    for name, value in given.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", REFUSED)
def test_models_that_are_refused_by_name(words, dtype):
    model = REFUSED[words]().to(dtype)
    before = model.generate
    assert words in str(seam.share_prefill(model))
    assert model.generate == before
    with pytest.raises(UserError, match=f"in generation: .*{words}.*; take auto or off"):
        seam.share_prefill(model, mode="on")


# In a trainer.


def test_a_rollout_is_the_same_with_and_without(make_trainer, prefills):
    found = []
    for mode in ("off", "on"):
        trainer = make_trainer(with_entropy_control, shared_prefix=mode)
        assert (trainer.part(FastPasses).installed.prefill_refusal is None) is (mode == "on")
        torch.manual_seed(3)
        trainer.model.train()
        prefills.clear()
        batch = next(iter(trainer.get_train_dataloader()))
        found.append(trainer._generate_and_score_completions(batch)["completion_ids"])
        assert [shape[0] for shape in prefills] == ([4] if mode == "on" else [])
    assert torch.equal(*found)
