"""The seam between trainers and the fused head: the same numbers, refusals by name, no work for silent rows."""

import types

import pytest
import torch
from tiny_trainer import micro_batches
from torch import nn

from autotelic.controls.high_entropy import HighEntropy
from autotelic.errors import UserError
from autotelic.kernels import rows
from autotelic.lm import head as seam
from autotelic.lm import head_choice
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
from autotelic.trl.seam import score

pytest.importorskip("trl.kernels", reason="this TRL has no fused head to replace")

IDS = torch.tensor([[3, 5, 7, 9, 11, 2], [4, 4, 6, 8, 10, 12]])
LABELS = torch.tensor([[-100, -100, 7, 9, 11, 2], [-100, -100, 6, 8, 10, -100]])


def trl_head(model, temperature=1.0):
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    return model


def expected(model, temperature=1.0):
    """Log-probabilities and entropies of LABELS from the model's own logits."""
    logits = model(input_ids=IDS).logits[:, :-1].double() / temperature
    log_p = logits.log_softmax(-1)
    labels = LABELS[:, 1:]
    mask = labels != -100
    logprobs = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return logprobs * mask, -(log_p.exp() * log_p).sum(-1) * mask


def gradients(model, logprobs, entropy):
    model.zero_grad()
    weight = torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)
    (weight * logprobs + weight.flip(0) * entropy).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_against_logits(model, temperature=0.7):
    """Values and gradients of the installed head against the model's own logits."""
    out = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
    ours = gradients(model, out.log_probs, out.entropy)
    logprobs, entropy = expected(model, temperature)
    theirs = gradients(model, logprobs, entropy)
    torch.testing.assert_close(out.log_probs.double(), logprobs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.entropy.double(), entropy, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


# The same update with and without.


def update(trainer, parts):
    """Return loss, gradients and metrics of an update on given micro-batches."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._buffered_inputs = [dict(part) for part in parts]
    trainer._metrics["train"].clear()
    total = 0.0
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step + len(parts)  # not the first pass over the rollout: nothing is generated
        loss = trainer._compute_loss(trainer.model, trainer._prepare_inputs(None))
        loss.backward()
        total += float(loss.detach())
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return total, grads, {name: values[-1] for name, values in trainer._metrics["train"].items() if values}


METHODS = {
    "clip_cov": (with_entropy_control, "entropy_control", lambda: ClipCov(fraction=0.1, low=-1.0, high=5.0)),
    "kl_cov": (with_entropy_control, "entropy_control", lambda: KLCov(fraction=0.1)),
    "high_entropy": (with_entropy_control, "entropy_control", HighEntropy),
    "empo": (lambda cls: with_entropy_control(with_label_free_rewards(cls)), "reward_funcs", EMPO),
    "one_shot_em": (with_entropy_minimization, "entropy_minimization", EntropyMinimization),
    "em_top_entropy": (
        with_entropy_minimization,
        "entropy_minimization",
        lambda: EntropyMinimization(positions="top_entropy", position_fraction=0.5),
    ),
}


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_the_same_with_and_without(method, make_trainer, make_model):
    wrap, keyword, make = METHODS[method]
    settings = {"num_iterations": 2, "temperature": 0.8, "per_device_train_batch_size": 8, keyword: make()}
    trainers = {mode: make_trainer(wrap, model=make_model(), fused_head=mode, **settings) for mode in ("off", "on")}
    assert [trainers[mode].part(FastPasses).installed.head.ours for mode in ("off", "on")] == [False, True]
    parts = micro_batches(trainers["off"])
    generator = torch.Generator().manual_seed(0)
    for part in parts:  # a policy that has moved a little, so that ratios differ from 1
        moved = 0.1 * torch.randn(part["completion_ids"].shape, generator=generator)
        part["old_per_token_logps"] = part["old_per_token_logps"] + moved
    off, on = (update(trainers[mode], parts) for mode in ("off", "on"))
    assert on[0] == pytest.approx(off[0], rel=1e-4, abs=1e-6)
    for name, gradient in off[1].items():
        torch.testing.assert_close(on[1][name], gradient, rtol=1e-3, atol=1e-6)
    assert on[2].keys() == off[2].keys()
    for name, value in off[2].items():
        assert on[2][name] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name


# Which rows cost a backward pass.


@pytest.fixture
def active(monkeypatch):
    """Record how many rows each backward pass of the head works on, and how many there were."""
    seen = []
    original = rows.active_rows

    def spy(grad_logprobs, grad_entropy):
        rows = original(grad_logprobs, grad_entropy)
        seen.append((rows.numel(), grad_logprobs.numel()))
        return rows

    monkeypatch.setattr(rows, "active_rows", spy)
    return seen


def test_padding_and_prompts_never_reach_the_head(active, make_model):
    model = trl_head(make_model())
    assert seam.use_fused_head(model, mode="on").ours
    out = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
    (out.log_probs.sum() + out.entropy.sum()).backward()
    labelled = int((LABELS[:, 1:] != -100).sum())
    assert active == [(labelled, labelled)]


def silent_rows(trainer, parts, active):
    active.clear()
    update(trainer, parts)
    return active[-1]


def test_zero_advantage_and_clipped_tokens_cost_no_backward(active, make_trainer):
    trainer = make_trainer(
        with_entropy_control, entropy_control=None, fused_head="on", num_iterations=2, per_device_train_batch_size=8
    )
    parts = micro_batches(trainer)[:1]
    trainer.args.steps_per_generation = 1
    part, mask = parts[0], parts[0]["completion_mask"].bool()
    rows = int(mask.sum())
    part["advantages"] = torch.linspace(1, 2, 8)
    part["old_per_token_logps"] = score(trainer, part)[0]
    assert silent_rows(trainer, parts, active) == (rows, rows)
    part["advantages"] = part["advantages"] * (torch.arange(8) % 2)
    assert silent_rows(trainer, parts, active) == (int(mask[1::2].sum()), rows)
    # Raised above 1 + epsilon where the advantage is positive: PPO clips, the gradient is exactly zero.
    part["old_per_token_logps"][:, 0] -= 1.0
    assert silent_rows(trainer, parts, active) == (int(mask[1::2, 1:].sum()), rows)


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
def test_tokens_that_a_control_silences_cost_no_backward(active, make_trainer):
    control = ClipCov(fraction=0.25, low=-1e9, high=1e9)
    trainer = make_trainer(with_entropy_control, entropy_control=control, fused_head="on", num_iterations=2)
    parts = micro_batches(trainer)
    for part in parts:
        part["advantages"] = torch.linspace(1, 2, len(part["advantages"]))
    active.clear()
    update(trainer, parts)
    rows = int(parts[len(parts) % trainer.args.steps_per_generation]["completion_mask"].sum())
    assert active[-1] == (rows - int(0.25 * rows), rows)


def test_positions_that_em_leaves_out_cost_no_backward(active, make_trainer):
    term = EntropyMinimization(positions="last", position_fraction=0.5)
    trainer = make_trainer(
        with_entropy_minimization,
        entropy_minimization=term,
        fused_head="on",
        reward_funcs=lambda prompts, completions, **kwargs: [0.0] * len(completions),
        steps_per_generation=1,
        num_iterations=2,
    )
    parts = micro_batches(trainer)
    active.clear()
    update(trainer, parts)
    mask = parts[0]["completion_mask"].bool()
    assert active[-1] == (int(term.position_counts(mask).sum()), int(mask.sum()))


# Heads of every kind.


def small(name, **settings):
    """A tiny random model of a transformers class."""
    import transformers

    torch.manual_seed(1)
    config_class = getattr(transformers, name.replace("ForCausalLM", "Config"))
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = getattr(transformers, name)(config_class(**shape | settings))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)  # as initialised, every distribution is uniform
    return trl_head(model, temperature=0.7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
        ("Qwen3ForCausalLM", {"tie_word_embeddings": False}),
        ("GraniteForCausalLM", {"logits_scaling": 3.0}),
        ("CohereForCausalLM", {"logit_scale": 0.25}),
        ("PhiForCausalLM", {}),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 2.0}),
    ],
    ids=["tied", "untied", "divided", "multiplied", "bias", "soft-capped"],
)
def test_values_and_gradients_are_those_of_the_logits(name, settings):
    model = small(name, **settings)
    if name == "PhiForCausalLM":
        nn.init.normal_(model.lm_head.bias)
    assert seam.use_fused_head(model, temperature=0.7, mode="on").ours
    check_against_logits(model)


def with_lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, **settings))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def test_lora_on_the_head_counts():
    """TRL's own head takes the layer's weight and leaves the adapter out."""
    model = with_lora(small("Qwen3ForCausalLM"), target_modules=["lm_head", "q_proj"])
    theirs = model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs
    assert (theirs - expected(model, 0.7)[0]).abs().max() > 0.1
    assert seam.use_fused_head(model, temperature=0.7).ours  # also by default: only ours is right
    check_against_logits(model)
    assert any("lm_head" in name for name, p in model.named_parameters() if p.grad is not None)
    with model.disable_adapter():  # the reference policy of a PEFT run
        off = model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs
        torch.testing.assert_close(off.double(), expected(model, 0.7)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying.*")
def test_a_head_that_is_trained_whole_beside_lora_counts():
    model = with_lora(small("Qwen3ForCausalLM"), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.5)
    assert seam.use_fused_head(model, temperature=0.7, mode="on").ours
    check_against_logits(model)


def test_a_sharded_head_is_gathered(tmp_path):
    """FSDP 2 keeps parameters as DTensors; the gradient comes back as one."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    model = small("Qwen3ForCausalLM", tie_word_embeddings=False)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        assert seam.use_fused_head(model, temperature=0.7, mode="on").ours
        whole = model.lm_head.weight.detach().clone()
        model.lm_head.weight = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        out = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
        (out.log_probs.sum() + out.entropy.sum()).backward()
        assert isinstance(model.lm_head.weight.grad, DTensor)
        sharded = model.lm_head.weight.grad.full_tensor()
        model.lm_head.weight = nn.Parameter(whole)
        logprobs, entropy = expected(model, 0.7)
        (logprobs.sum() + entropy.sum()).backward()
        torch.testing.assert_close(sharded, model.lm_head.weight.grad, rtol=1e-3, atol=1e-5)
    finally:
        dist.destroy_process_group()


def test_a_batch_without_labels_is_a_differentiable_zero(make_model):
    model = trl_head(make_model())
    seam.use_fused_head(model, mode="on")
    out = model(input_ids=IDS, labels=torch.full_like(IDS, -100), fused_lm_head=True)
    assert not out.log_probs.any() and not out.entropy.any()
    (out.log_probs.sum() + out.entropy.sum() + out.loss).backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_without_the_keyword_the_model_is_as_before(make_model):
    model = trl_head(make_model())
    before = model(input_ids=IDS, labels=IDS)
    seam.use_fused_head(model, mode="on")
    after = model(input_ids=IDS, labels=IDS)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.loss, after.loss)


# Refusals.


class Strange(nn.Linear):
    def forward(self, x):
        return super().forward(x).sin()


def test_a_logit_of_its_own_making_is_found_out(make_model, caplog):
    """No setting tells of it: only the trial on a few tokens does."""
    model = make_model()
    original = type(model).forward

    def squared(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = types.MethodType(squared, model)
    model = trl_head(model)
    seam.say_once.cache_clear()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_choice, "MIN_VOCABULARY", 1)
        found = seam.use_fused_head(model)
        seam.use_fused_head(model)
    assert not found.ours and "way of its own" in found.why
    assert [record.message for record in caplog.records if "way of its own" in record.message] == [
        f"the head is {found}"
    ]
    with pytest.raises(UserError, match="way of its own; take auto or off"):
        seam.use_fused_head(model, mode="on")


def replaced_head(model, layer):
    model.lm_head = layer
    return model


REFUSED = {
    "no plain linear layer": lambda m: replaced_head(m, Strange(16, 40, bias=False)),
    "ZeRO-3": lambda m: setattr(m.lm_head.weight, "ds_id", 0) or m,
    "offloaded": lambda m: replaced_head(m, nn.Linear(16, 40, bias=False, device="meta")),
    "quantised": lambda m: replaced_head(m, nn.Linear(16, 40, bias=False)) and shrink(m),
    "DoRA": lambda m: with_lora(m, target_modules=["lm_head"], use_dora=True),
    "bias of its own": lambda m: with_lora(m, target_modules=["lm_head"], lora_bias=True),
    "router": lambda m: setattr(m.config, "output_router_logits", True) or m,
    "no temperature": lambda m: setattr(m.config, "logit_scale", -1.0) or m,
}


def shrink(model):
    model.lm_head.weight = nn.Parameter(torch.zeros(320, dtype=torch.uint8), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_the_reason(what):
    model = REFUSED[what](small("Qwen3ForCausalLM", tie_word_embeddings=False))
    words = "not a plain linear layer" if what == "no plain linear layer" else what
    words = "which is no temperature" if what == "no temperature" else words
    with pytest.raises(UserError, match=words):
        seam.use_fused_head(model, mode="on")
    assert words in str(seam.use_fused_head(model))


def test_a_head_that_changes_later_falls_back(make_model):
    """Wrapping may split the head after the trainer was built: TRL's own head then answers."""
    model = trl_head(make_model())
    before = model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs
    seam.use_fused_head(model, mode="on")
    model.lm_head.weight.ds_id = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seam, "score", None)
        after = model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs
    assert torch.equal(before, after)


def test_small_vocabularies_stay_with_trl(make_trainer):
    trainer = make_trainer(with_entropy_control, fused_head="auto")
    assert "below" in trainer.part(FastPasses).installed.head.why
    with pytest.raises(UserError, match="unknown fused_head 'yes'"):
        make_trainer(with_entropy_control, fused_head="yes")


# What rewards and diagnostics read.


def test_statistics_are_those_of_the_logits():
    from autotelic.lm.token_pass import STATISTICS, token_pass
    from autotelic.trl.label_free import token_statistics

    model = small("GraniteForCausalLM", logits_scaling=3.0).eval()
    attention = torch.ones_like(IDS)
    attention[1, -1] = 0
    given = {"temperature": 0.7, "batch_size": 1}
    theirs = token_pass(model, IDS, attention, 4, STATISTICS, **given)
    ours = token_pass(model, IDS, attention, 4, STATISTICS, fused=True, **given)
    mask = attention[:, -4:].bool()
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a[mask], b[mask], rtol=1e-4, atol=1e-5)
    rows = ([[3, 5], [4]], [[7, 9, 11], [6, 8]])
    theirs = token_statistics(model, *rows, pad_id=0, **given)
    ours = token_statistics(model, *rows, pad_id=0, fused=True, **given)
    assert torch.equal(ours.mask, theirs.mask)
    for name in ("logprobs", "entropy", "self_certainty"):
        a, b = (getattr(x, name)[ours.mask] for x in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
