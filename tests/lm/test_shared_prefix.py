"""Shared prompts change no number: losses, gradients, entropies and selections; refusals by name."""

import pytest
import torch
from tiny_trainer import Counting, micro_batches, random_model

from autotelic.controls.observe import Observe
from autotelic.errors import UserError
from autotelic.lm import head as head_seam
from autotelic.lm import shared_prefix as seam
from autotelic.rewards import EMPO
from autotelic.trl import (
    ClipCov,
    EntropyMinimization,
    FastPasses,
    KLCov,
    with_entropy_control,
    with_entropy_minimization,
)
from autotelic.trl.label_free import with_label_free_rewards

pytest.importorskip("trl.kernels", reason="this TRL has no fused head to replace")

COMPLETIONS = (5, 2, 0, 4, 3, 1)


def small(name="Qwen3ForCausalLM", **settings):
    """A tiny random model with TRL's head."""
    from trl.trainer.utils import add_fused_lm_head

    model = random_model(name, **settings)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    return model


def batch(prompts=((3, 4, 5, 6, 7), (8, 9, 3), (3, 4, 5, 6, 7)), completions=COMPLETIONS, right=False):
    """Rows of these prompts in turn: padded left as TRL's GRPO does, or right as its DPO does."""
    rows = [(prompts[i % len(prompts)], [(7 * i + j) % 30 + 5 for j in range(n)]) for i, n in enumerate(completions)]
    start, width = max(map(len, prompts)), max(map(len, prompts)) + max(completions)
    ids, attention = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, completion) in enumerate(rows):
        first = 0 if right else start - len(prompt)
        last = first + len(prompt) + len(completion)
        ids[i, first:last] = torch.tensor([*prompt, *completion])
        attention[i, first:last] = 1
        labels[i, first + len(prompt) : last] = torch.tensor(completion, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def passes(monkeypatch):
    """Record the shape of what the backbone is given in packed passes."""
    shapes = []
    original = seam.packed_hidden

    def spy(model, packed):
        shapes.append(tuple(packed.input_ids.shape))
        return original(model, packed)

    monkeypatch.setattr(seam, "packed_hidden", spy)
    return shapes


@pytest.fixture
def packed_passes(monkeypatch):
    return passes(monkeypatch)


def outcome(model, given):
    """Return log-probabilities, entropies, loss and gradients of one pass."""
    model.zero_grad()
    out = model(**given, fused_lm_head=True)
    weight = torch.linspace(-1, 2, out.log_probs.numel()).view(out.log_probs.shape)
    (out.loss + (weight * out.log_probs + weight.flip(0) * out.entropy).sum()).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"log_probs": out.log_probs, "entropy": out.entropy, "loss": out.loss} | grads


def check_same(shared, plain):
    assert shared.keys() == plain.keys()
    for name, value in plain.items():
        error = (shared[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert error < 3e-6, (name, float(error))


def both(make, given, **settings):
    """Return the outcomes with sharing and without, of two copies of one model with our head."""
    results = []
    for share in (True, False):
        model = make()
        assert head_seam.use_fused_head(model, temperature=0.7, mode="on").ours
        if share:
            assert isinstance(seam.share_prefix(model, temperature=0.7, mode="on"), seam.Sharing)
        for name, value in settings.items():
            getattr(model, name)(**value)
        results.append(outcome(model, given))
    return results


MODELS = {
    "qwen3": lambda: small(),
    "llama": lambda: small("LlamaForCausalLM"),
    "gpt2, learned positions": lambda: small("GPT2LMHeadModel"),
    "gemma2, eager and soft-capped": lambda: small("Gemma2ForCausalLM"),
    "mistral, inside its window": lambda: small("MistralForCausalLM", sliding_window=10),
    "experts": lambda: small("Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    "eager": lambda: small(attn_implementation="eager"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_on_every_kind_of_model(name, packed_passes):
    """Two prompts of two lengths, ragged completions, one of them empty: 4 rows share a prompt, 2 another."""
    check_same(*both(MODELS[name], batch()))
    assert packed_passes[0][0] == 2  # of install's own trial, then of the call
    assert len(packed_passes) == 2


CASES = {
    "padded right": {"right": True},
    "one prompt": {"prompts": ((3, 4, 5, 6),)},
    "equal lengths": {"completions": (4,) * 6},
    "one shared, one alone": {"prompts": ((3, 4), (5, 6), (3, 4)), "completions": (3, 3, 3)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_on_every_kind_of_batch(case, packed_passes):
    check_same(*both(small, batch(**CASES[case])))
    assert len(packed_passes) == 2


NOTHING = {
    "unique prompts": {"prompts": ((3, 4), (5, 6), (7, 8)), "completions": (3, 2, 1)},
    "one row": {"completions": (3,)},
    "no labels": {"completions": (0, 0, 0)},
    "one of two is empty": {"prompts": ((3, 4),), "completions": (3, 0)},
}


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_is_shared_nothing_is_packed(case, packed_passes):
    if case == "no labels":  # the loss is then zero over zero rows
        model = small()
        seam.share_prefix(model, temperature=0.7, mode="on")
        assert not model(**batch(completions=(0, 0, 0)), fused_lm_head=True).log_probs.any()
    else:
        check_same(*both(small, batch(**NOTHING[case])))
    assert len(packed_passes) == 1  # install's own trial


def test_recomputed_activations(packed_passes):
    settings = {"gradient_checkpointing_enable": {}, "train": {}}
    check_same(*both(small, batch(), **settings))
    assert len(packed_passes) == 2


def with_adapter(dropout=0.0):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        target_modules=["q_proj", "v_proj", "lm_head"], r=2, init_lora_weights=False, lora_dropout=dropout
    )
    torch.manual_seed(2)
    return get_peft_model(small(tie_word_embeddings=False), config)


def test_adapters(packed_passes):
    """Also on the head; the installed forward is that of the model inside."""
    check_same(*both(with_adapter, batch()))
    assert len(packed_passes) == 2


def test_further_words_of_each_place():
    given = batch()
    words = torch.arange(given["input_ids"].numel()).view(6, -1)[:, 1:, None] % 30 + torch.arange(3)
    found = []
    for share in (True, False):
        model = small()
        head_seam.use_fused_head(model, temperature=0.7, mode="on")
        if share:
            seam.share_prefix(model, temperature=0.7, mode="on")
        found.append(model(**given, other_ids=words, fused_lm_head=True).other_log_probs)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_our_head_serves_packed_rows_where_auto_leaves_small_heads_to_trl():
    model, plain = small(), small()
    assert "below" in head_seam.use_fused_head(model, temperature=0.7).why
    seam.share_prefix(model, temperature=0.7, mode="on")
    shared, theirs = outcome(model, batch()), outcome(plain, batch())
    for name in ("log_probs", "entropy"):
        torch.testing.assert_close(shared[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_without_the_keyword_the_model_is_as_before(packed_passes):
    model, plain, given = small(), small(), batch()
    seam.share_prefix(model, mode="on")
    assert torch.equal(model(**given).logits, plain(**given).logits)
    assert len(packed_passes) == 1


# Refusals.


def windowed():
    return small("MistralForCausalLM", sliding_window=9)


def dynamic():
    return small(
        "LlamaForCausalLM",
        max_position_embeddings=8,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )


CALLS = {
    "longer than 9": (windowed, {}),
    "longer than 8": (dynamic, {}),
    "dropout": (lambda: small(attention_dropout=0.1).train(), {}),
    "one mask": (lambda: small("GPT2LMHeadModel", resid_pdrop=0.1).train(), {}),
    "position_ids beside": (small, {"position_ids": torch.arange(10).expand(6, 10)}),
    "behind padding": (small, {"attention_mask": torch.tensor([1] * 6 + [0] + [1] * 3).expand(6, 10)}),
    "router": (
        lambda: small("Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        {"output_router_logits": True},
    ),
}


@pytest.mark.parametrize("words", CALLS)
def test_calls_that_are_left_alone_say_why(words, packed_passes, caplog):
    make, given = CALLS[words]
    model = make()
    seam.say_once.cache_clear()
    seam.share_prefix(model, temperature=0.7, mode="on")
    for _ in range(2):
        model(**batch() | given, fused_lm_head=True)
    assert len(packed_passes) == 1
    said = [record.message for record in caplog.records if "prompts are not shared" in record.message]
    assert len(said) == 1 and words in said[0]


def test_dropout_in_an_adapter_is_dropout():
    model = with_adapter(dropout=0.1)
    assert head_seam.use_fused_head(model, mode="on").ours  # dropout on the head is no disagreement
    sharing = seam.share_prefix(model, mode="on")
    assert isinstance(sharing, seam.Sharing) and sharing.drops_out


def test_without_training_there_is_no_dropout(packed_passes):
    check_same(*both(lambda: small(attention_dropout=0.1).eval(), batch()))
    assert len(packed_passes) == 2


def split_head(model):
    model.lm_head.weight.ds_id = 0
    return model


MODELS_REFUSED = {
    "fused_head is off": (small, {"head": "off"}),
    "split by DeepSpeed": (lambda: split_head(small(tie_word_embeddings=False)), {}),
    "flex_attention attention takes no mask": (lambda: small(attn_implementation="flex_attention"), {}),
    "keeps a state": (lambda: small("MambaForCausalLM", state_size=4), {}),
    "layers of conv": (lambda: small("Lfm2ForCausalLM", layer_types=["conv", "full_attention"]), {}),
    "attends in a way of its own": (lambda: small("BloomForCausalLM", n_head=2), {}),
    "not those of OPTForCausalLM": (lambda: small("OPTForCausalLM", ffn_dim=32, word_embed_proj_dim=16), {}),
    "encoder-decoder": (lambda: told(is_encoder_decoder=True), {}),
    "both directions": (lambda: told(use_bidirectional_attention=True), {}),
}


def told(**settings):
    model = small()
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("words", MODELS_REFUSED)
def test_models_that_are_refused_by_name(words):
    make, settings = MODELS_REFUSED[words]
    model = make()
    before = model.forward
    assert words in str(seam.share_prefix(model, **settings))
    assert model.forward == before
    with pytest.raises(UserError, match=f"shared_prefix=on cannot be used: .*{words}.*; take auto or off"):
        seam.share_prefix(model, mode="on", **settings)


def test_a_state_outside_attention_is_found_out():
    model = small()
    model.model.layers[1].mlp = Counting(model.model.layers[1].mlp)
    assert "hidden states of packed rows" in str(seam.share_prefix(model))


# Auto.


def test_auto_leaves_small_work_alone(packed_passes):
    model = small()
    sharing = seam.share_prefix(model, temperature=0.7)
    assert isinstance(sharing, seam.Sharing)
    model(**batch(), fused_lm_head=True)
    assert len(packed_passes) == 1


@pytest.mark.parametrize(("prompt", "completion", "packs"), [(100, 20, 1), (20, 20, 2), (10, 200, 0)])
def test_auto_decides_by_lengths(prompt, completion, packs):
    """Widths as in a model of 8 layers and d = 64, where attention is dear; without the cost of packing itself."""
    rows = seam.Rows(prompt + completion, False, [list(range(8))], [prompt] * 8, [completion] * 8)
    sharing = seam.Sharing("auto", 1.0, False, pair_cost=4e-3, overhead=0.0, longest=None, drops_out=False)
    assert len(sharing.packs(rows)) == packs


# The trainers.


def update(trainer, parts):
    """Return loss, gradients and the plans' rows of an update on given micro-batches."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._buffered_inputs = [dict(part) for part in parts]
    total, chosen = 0.0, {}
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step + len(parts)  # not the first pass over the rollout: nothing is generated
        inputs = trainer._prepare_inputs(None)
        if "plan" in inputs:
            rows = inputs["row_ids"].tolist()
            chosen |= {row: inputs["plan"].selected[i].nonzero().flatten().tolist() for i, row in enumerate(rows)}
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        total += float(loss.detach())
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return total, grads, chosen


METHODS = {
    "grpo": (with_entropy_control, "entropy_control", lambda: None),
    "clip_cov": (with_entropy_control, "entropy_control", lambda: ClipCov(fraction=0.1, low=-1.0, high=5.0)),
    "kl_cov": (with_entropy_control, "entropy_control", lambda: KLCov(fraction=0.1)),
    "empo": (lambda cls: with_entropy_control(with_label_free_rewards(cls)), "reward_funcs", EMPO),
    "one_shot_em": (with_entropy_minimization, "entropy_minimization", EntropyMinimization),
}


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_the_same_with_and_without(method, make_trainer, make_model, packed_passes):
    """TRL's shuffle spreads the groups over four micro-batches; with sharing they meet, and the update is the same."""
    wrap, keyword, make = METHODS[method]
    settings = {
        "per_device_train_batch_size": 8,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 4,
        "num_iterations": 2,
        "temperature": 0.8,
        "prompts": ("1+2=?", "3+4+5=?", "9-1=?", "2-2=?"),
        keyword: make(),
    }
    if method == "one_shot_em":
        settings |= {"prompts": ("1+2+3=?",), "num_generations": 16}
    trainers = {
        mode: make_trainer(wrap, model=make_model(), fused_head="on", shared_prefix=mode, **settings)
        for mode in ("off", "on")
    }
    refusals = {mode: trainer.part(FastPasses).installed.prefix_refusal for mode, trainer in trainers.items()}
    assert refusals["on"] is None and refusals["off"]
    parts = micro_batches(trainers["off"])
    packed_passes.clear()
    generator = torch.Generator().manual_seed(0)
    for part in parts:  # a policy that has moved a little, so that ratios differ from 1
        moved = 0.1 * torch.randn(part["completion_ids"].shape, generator=generator)
        part["old_per_token_logps"] = part["old_per_token_logps"] + moved
        part["advantages"] = torch.randn(8, generator=generator)
    off, on = (update(trainers[mode], parts) for mode in ("off", "on"))
    assert len(packed_passes) >= 4
    assert on[0] == pytest.approx(off[0], rel=1e-5, abs=1e-7)
    for name, gradient in off[1].items():
        assert (on[1][name] - gradient).norm() <= 5e-6 * gradient.norm(), name
    assert on[2] == off[2]
    if keyword == "entropy_control" and make() is not None:
        assert any(on[2].values())


def test_old_and_reference_log_probabilities_are_shared_too(make_trainer, packed_passes):
    """One generation batch of 32 rows: a pass for the old and one for the reference's, in chunks of 16 rows each."""
    from peft import LoraConfig

    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], r=2)  # without it, the model is its own reference
    settings = {"num_iterations": 2, "beta": 0.1, "per_device_train_batch_size": 16, "peft_config": adapter}
    trainers = {
        mode: make_trainer(with_entropy_control, shared_prefix=mode, fused_head="on", **settings)
        for mode in ("off", "on")
    }
    packed_passes.clear()
    plain, shared = (micro_batches(trainers[mode]) for mode in ("off", "on"))
    assert len(packed_passes) == 4
    assert torch.equal(plain[0]["completion_ids"], shared[0]["completion_ids"])  # one update a batch: TRL's order stays
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        mask = plain[0]["completion_mask"].bool()
        torch.testing.assert_close(plain[0][name][mask], shared[0][name][mask], rtol=1e-5, atol=1e-5)


def with_own_loss(trainer_class):
    class OwnLoss(trainer_class):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs)

    return with_entropy_control(OwnLoss)


def experts(tokenizer):
    """A mixture of experts, whose router has a loss of each micro-batch (1.4 % apart in one run)."""
    names = ("eos_token_id", "pad_token_id", "bos_token_id")
    shape = {name: getattr(tokenizer, name) for name in names} | {"vocab_size": len(tokenizer)}
    shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    return random_model("Qwen3MoeForCausalLM", **shape)


ORDER_MATTERS = {
    "the loss of the experts' router": (with_entropy_control, {"model": experts}),
    "tokens of a micro-batch": (with_entropy_control, {"loss_type": "bnpo"}),
    "a quantile of each": (with_entropy_control, {"top_entropy_quantile": 0.5}),
    "a mean of means": (with_entropy_control, {"entropy_coef": 0.1}),
    "choice per micro-batch": (
        with_entropy_control,
        {"entropy_control": KLCov(scope="micro"), "num_iterations": 2},
    ),
    "rows that are followed": (with_entropy_control, {"entropy_control": Observe(), "entropy_change_rows": 2}),
    "the official script": (
        with_entropy_minimization,
        {"entropy_minimization": EntropyMinimization(compat="official")},
    ),
    "a loss of the user's": (with_own_loss, {}),
}


@pytest.mark.parametrize("why", ["", *ORDER_MATTERS])
def test_order_is_left_to_trl_where_the_split_matters(why, make_trainer, tokenizer):
    wrap, settings = ORDER_MATTERS.get(why, (with_entropy_control, {}))
    settings = {name: value(tokenizer) if name == "model" else value for name, value in settings.items()}
    trainer = make_trainer(
        wrap,
        shared_prefix="on",
        per_device_train_batch_size=8,
        steps_per_generation=4,
        gradient_accumulation_steps=4,
        **settings,
    )
    parts = micro_batches(trainer)
    changes = sum(not torch.equal(part["prompt_ids"][i], part["prompt_ids"][i + 1]) for part in parts for i in range(7))
    assert changes > 10 if why else changes < 4  # TRL's shuffle, or four prompts in turn


def test_unknown_modes_and_the_whole_run(make_trainer):
    with pytest.raises(UserError, match="unknown shared_prefix 'yes'"):
        make_trainer(with_entropy_control, shared_prefix="yes")
    trainer = make_trainer(with_entropy_control, shared_prefix="on", entropy_control=Observe())
    trainer.train()
    assert trainer.state.global_step == 4
