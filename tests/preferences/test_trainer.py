"""The trainer: DPO exactly where the objective is DPO, and the policy-labelled loss elsewhere."""

import pytest
import torch
from preference_parts import first_batch, load, loss_and_gradient, pairs
from tiny_trainer import random_model

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.functional.lookahead import BiasedLookaheadWarning
from autotelic.preferences.labels import PolicyLabels
from autotelic.preferences.objective import objective
from autotelic.preferences.sampling_policies import BehaviorPolicy
from autotelic.preferences.trainer import LOSS_SETTINGS, without_rest

pytestmark = pytest.mark.filterwarnings("ignore::autotelic.functional.lookahead.BiasedLookaheadWarning")


@pytest.mark.parametrize(
    "settings",
    [
        objective("dpo"),
        objective("ppl", normalize="sum", horizon=0),
        objective("ppl", divergence="dirac", normalize="sum", coef=0.0),
    ],
    ids=["none", "L=0", "c=0"],
)
@pytest.mark.parametrize("precompute", [False, True])
def test_without_lookahead_it_is_dpo_exactly(build, settings, precompute):
    """The same model one update away from its reference: loss and gradient are those of TRL's own DPO."""
    theirs = build(wrap=lambda cls: cls)
    theirs.model.lm_head.weight.data += 0.1 * torch.randn_like(
        theirs.model.lm_head.weight, generator=torch.Generator().manual_seed(1)
    )
    ours = build(ppl=settings, precompute_ref_log_probs=precompute)
    ours.model.load_state_dict(theirs.model.state_dict())
    wanted, found = loss_and_gradient(theirs), loss_and_gradient(ours)
    assert wanted[0] != pytest.approx(0.6931, abs=1e-3)
    if precompute:  # the reference was scored in other batches
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_the_trainer_computes_repo(build, model_dir):
    """Through the trainer: RePO's loss from functions of `autotelic.functional` alone, and rows' log-probabilities."""
    labels = PolicyLabels(policies={"a": BehaviorPolicy(str(model_dir), 0.7), "b": BehaviorPolicy(str(model_dir), 1.3)})
    labels.load_model = load
    trainer = build(ppl=objective("repo"), policy_labels=labels)
    with torch.no_grad():
        trainer.model.lm_head.weight *= 1.5
    batch = first_batch(trainer)
    loss, _ = loss_and_gradient(trainer, batch)
    mask = batch["completion_mask"][:, 1:].bool()
    ids, attention = batch["input_ids"], batch["attention_mask"]
    policy = F.token_logprobs(trainer.model(input_ids=ids, attention_mask=attention).logits[:, :-1], ids[:, 1:])
    reference = F.token_logprobs(load(model_dir)(input_ids=ids, attention_mask=attention).logits[:, :-1], ids[:, 1:])
    score = F.repo_score(policy, mask, batch["label_logprobs"][:, 1:])
    ref = F.cpl_score(reference, mask, normalize="mean")
    wanted = F.repo_loss(*score.chunk(2), *ref.chunk(2), alpha=0.3).mean()
    wanted = wanted + F.repo_sft_loss(policy.chunk(2)[0], mask.chunk(2)[0])
    torch.testing.assert_close(loss, wanted.detach())


def test_the_loss_ignores_padding_and_the_width_of_the_label(build, model_dir):
    """A longer row in the batch changes no other pair; the whole vocabulary gives the KL of the whole vocabulary."""
    labels = PolicyLabels(policies={name: BehaviorPolicy(str(model_dir), 1.4) for name in "ab"}, load_model=load)
    trainer = build(
        ppl=objective("ppl", normalize="sum", kl_top_k=10_000), policy_labels=labels, per_device_train_batch_size=4
    )
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.eval()
    together = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    alone = [trainer.compute_loss(trainer.model, trainer.data_collator([row])) for row in rows]
    torch.testing.assert_close(torch.stack(alone).mean(), together, rtol=1e-5, atol=1e-5)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = load(model_dir)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        exact = F.categorical_kl((logits / 1.4).softmax(-1), logits.log_softmax(-1))
    mask = batch["completion_mask"][:, 1:].bool()
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    output = trainer.token_scores(trainer.model, trainer.top_ids(batch), labels=targets, **given)
    ours = trainer.divergences(output, batch, mask).detach()
    torch.testing.assert_close(ours[mask], exact[mask], rtol=1e-4, atol=1e-5)


def test_a_variant_of_dpos_loss_is_refused(build):
    with pytest.raises(UserError, match="label_smoothing is a variant"):
        build(ppl=objective("ppl_d"), label_smoothing=0.1)


def test_lora(build, model_dir):
    """As DPOTrainer takes it: only the adapter learns, the reference is the model without it, and the loss falls."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["up_proj"])
    trainer = build(ppl=objective("ppl_d"), peft_config=adapter, per_device_train_batch_size=16, max_steps=8)
    assert trainer.ref_model is None
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    base = load(model_dir).state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight, base)
    assert "preference/train_nll" in trainer.state.log_history[0]


@pytest.mark.parametrize(("name", "top_k"), [("ppl", 64), ("ppl", 3), ("dpo", 64), ("repo_det", 64)])
def test_the_fused_head_changes_nothing_but_memory(name, top_k, build, model_dir, monkeypatch):
    """Loss, gradients and metrics with our head are those without; the closed-form KL then makes no logits."""
    ppl = objective(name, kl_top_k=top_k)
    policies = {"a": BehaviorPolicy(str(model_dir), 1.0), "b": BehaviorPolicy(str(model_dir), 1.5)}
    found = []
    for mode in ("off", "on"):
        labels = PolicyLabels(policies=policies, load_model=load)
        trainer = build(ppl=ppl, policy_labels=labels if name == "ppl" else None, fused_head=mode)
        drift = torch.Generator().manual_seed(1)
        trainer.model.lm_head.weight.data += 0.1 * torch.randn(trainer.model.lm_head.weight.shape, generator=drift)
        if mode == "on":
            monkeypatch.setattr(trainer.model.lm_head, "forward", lambda *a: pytest.fail("logits were made"))
            assert trainer.installed.head.ours
        batch = first_batch(trainer)
        loss, gradient = loss_and_gradient(trainer, batch)
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items()}
        found.append((loss, gradient, trainer.model.lm_head.weight.grad, metrics))
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert found[0][3] == pytest.approx(found[1][3], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["ppl", "dpo", "repo_det"])
def test_the_sides_of_a_pair_share_their_prompt(name, build, model_dir, monkeypatch):
    """Loss, gradients and metrics are those without, and every pass, the reference's too, is over packed pairs."""
    from autotelic.lm import shared_prefix

    ppl = objective(name, kl_top_k=3)
    policies = {"a": BehaviorPolicy(str(model_dir), 1.0), "b": BehaviorPolicy(str(model_dir), 1.5)}
    passes, original = [], shared_prefix.packed_hidden

    def spy(model, packed):
        passes.append(len(packed.input_ids))
        return original(model, packed)

    monkeypatch.setattr(shared_prefix, "packed_hidden", spy)
    found = []
    for mode in ("off", "on"):
        labels = PolicyLabels(policies=policies, load_model=load)
        given = {"fused_head": "on", "shared_prefix": mode, "policy_labels": labels if name == "ppl" else None}
        trainer = build(ppl=ppl, **given)
        drift = torch.Generator().manual_seed(1)
        trainer.model.lm_head.weight.data += 0.1 * torch.randn(trainer.model.lm_head.weight.shape, generator=drift)
        passes.clear()
        loss, gradient = loss_and_gradient(trainer)
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items()}
        found.append((loss, gradient, trainer.model.lm_head.weight.grad, metrics))
        assert passes == ([] if mode == "off" else [8] * (2 if ppl.ref_coef else 1))
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert found[0][3] == pytest.approx(found[1][3], rel=1e-4, abs=1e-6)


def test_policy_and_reference_round_alike(build, tmp_path, tokenizer):
    """bfloat16: our head serves both, under the same autocast, so that the first loss is log 2 to the last bit."""
    from tiny_trainer import random_model

    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    random_model("Cohere2ForCausalLM", vocab_size=10_000, **special).save_pretrained(tmp_path / "model")
    trainer = build(ppl=objective("ppl_d"), model=load(tmp_path / "model"), bf16=True, max_steps=1)
    trainer.train()
    plain = trainer.state.log_history[0]["preference/train_nll_no_lookahead"]
    assert plain == torch.tensor(2.0).log().item()


def same_training(build, model=None, **settings):
    """Train TRL's DPOTrainer and ours, wrapped with the objective dpo, alike; assert that nothing differs by a bit."""
    plain = build(wrap=lambda cls: cls, model=model and model(), **settings)
    ours = build(ppl=objective("dpo"), model=model and model(), **settings)
    for trainer in (plain, ours):
        trainer.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    for wanted, found in zip(plain.state.log_history, ours.state.log_history, strict=True):
        assert {name: found[name] for name in wanted if not name.endswith(CLOCKS)} == {
            name: value for name, value in wanted.items() if not name.endswith(CLOCKS)
        }
    return ours.state.log_history


CLOCKS = ("runtime", "per_second")
VARIANTS = [
    {},
    {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.8, 0.4]},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    {"ld_alpha": 0.5},
    {"use_weighting": True},
    {"loss_type": ["robust"], "label_smoothing": 0.1},
    {"loss_type": ["discopop"], "discopop_tau": 0.1},
    {"precompute_ref_log_probs": True},
    {"max_length": 8},
]


def variants():
    """The first two always, the others among the slow tests."""
    for i, settings in enumerate(VARIANTS):
        marks = () if i < 2 else pytest.mark.slow
        yield pytest.param(settings, id=",".join(settings) or "default", marks=marks)


@pytest.mark.parametrize("settings", variants())
def test_the_objective_dpo_is_trls_trainer(build, settings):
    """To the bit, after two updates, under every loss of TRL; its metrics are all there, ours beside them."""
    history = same_training(build, max_steps=2, **settings)
    wanted = {
        "rewards/chosen",
        "rewards/margins",
        "logps/rejected",
        "logits/chosen",
        "mean_token_accuracy",
        "num_tokens",
    }
    assert wanted | {"preference/train_nll", "entropy"} <= set(history[0])


@pytest.mark.slow
def test_bfloat16_and_a_large_vocabulary_change_nothing(build, tmp_path, tokenizer):
    """Cohere2's logits are scaled, and our head would serve its vocabulary: DPO keeps TRL's, so no bit differs."""
    model = saved_model("Cohere2ForCausalLM", tmp_path, tokenizer, vocab_size=10_000)
    same_training(build, model=lambda: load(model), bf16=True, max_steps=2)


def saved_model(name, folder, tokenizer, **settings):
    special = {key: getattr(tokenizer, key) for key in ("eos_token_id", "pad_token_id", "bos_token_id")}
    random_model(name, **{"vocab_size": len(tokenizer), **special, **settings}).save_pretrained(folder / "model")
    return folder / "model"


MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


@pytest.mark.slow
def test_the_routers_loss_is_kept(build, tmp_path, tokenizer):
    """Mixture of experts: TRL adds the auxiliary loss; so do we, for DPO and for objectives of our own."""
    model = saved_model("Qwen3MoeForCausalLM", tmp_path, tokenizer, router_aux_loss_coef=0.5, **MOE)
    history = same_training(build, model=lambda: load(model), max_steps=2)
    assert history[0]["loss"] == pytest.approx(history[0]["preference/train_nll"] + 0.5 * history[0]["aux_loss"])
    labels = PolicyLabels(policies={n: BehaviorPolicy(str(model), 1.4) for n in "ab"}, load_model=load)
    for settings in ({"ppl": objective("ppl_d")}, {"ppl": objective("ppl"), "policy_labels": labels}):
        trainer = build(model=load(model), max_steps=1, **settings)
        trainer.train()
        row = trainer.state.log_history[0]
        assert row["loss"] == pytest.approx(row["preference/train_nll"] + 0.5 * row["aux_loss"]), row


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
@pytest.mark.parametrize("name", ["dpo", "ppl_d"])
def test_compute_metrics_sees_the_logits(build, name):
    """TRL hands logits and ids to `compute_metrics`: the first evaluation works, and its numbers are TRL's."""
    from datasets import Dataset

    def widths(prediction):
        return {"width": prediction.predictions.shape[-1], "mean": float(prediction.predictions.mean())}

    settings = {"eval_dataset": Dataset.from_list(pairs(8)), "compute_metrics": widths, "max_steps": 1}
    found = [build(wrap=wrap, **settings, **own).evaluate() for wrap, own in plain_and(objective(name))]
    assert found[1]["eval_width"] == found[0]["eval_width"] and found[1]["eval_mean"] == found[0]["eval_mean"]


def plain_and(ppl):
    return ((lambda cls: cls, {}), (None, {"ppl": ppl}))


HONOURED = (  # TRL reads these when it builds, tokenises, scores and trains, whatever the loss
    "model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout dataset_num_proc truncation_mode "
    "padding_free pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size beta max_length "
    "activation_offloading sync_ref_model ref_model_mixup_alpha ref_model_sync_steps pad_token learning_rate"
)
OTHER_VALUES = {
    "loss_type": ["hinge"],
    "loss_weights": [0.5],
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.3,
    "label_smoothing": 0.1,
    "use_weighting": True,
    "discopop_tau": 0.1,
}


def test_every_field_of_dpoconfig_is_honoured_or_refused(build):
    """What DPOConfig adds: TRL's own share in the batch and the model, or a variant of its loss, which is refused."""
    from dataclasses import fields

    from trl import DPOConfig
    from trl.trainer.base_config import _BaseConfig

    ours = {f.name for f in fields(DPOConfig)} - {f.name for f in fields(_BaseConfig)} | {"learning_rate"}
    assert ours == set(HONOURED.split()) | set(OTHER_VALUES)
    assert set(OTHER_VALUES) == set(LOSS_SETTINGS)
    for name, value in OTHER_VALUES.items():
        with pytest.raises(UserError, match=f"{name} is a variant"):
            build(ppl=objective("ppl_d"), **{name: value})


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
def test_labels_stay_with_their_tokens_when_rows_are_cut(build, model_dir, mode):
    """Cut at `max_length` from either end, every kept token has the label that it has in the whole row."""
    policies = {name: BehaviorPolicy(str(model_dir), 1.4) for name in "ab"}
    labels = PolicyLabels(policies=policies, load_model=load)
    given = {"ppl": objective("ppl", divergence="single_sample"), "policy_labels": labels, "truncation_mode": mode}
    trainer = build(rows=pairs(6, chosen_segment_tokens=2, rejected_segment_tokens=2), max_length=8, **given)
    rows = [trainer.train_dataset[i] for i in range(6)]
    batch = trainer.data_collator(rows)
    for place, (row, side) in enumerate((row, side) for side in ("chosen", "rejected") for row in rows):
        prompt, ids = row["prompt_ids"], row[f"{side}_ids"]
        cut = slice(None, 8) if mode == "keep_start" else slice(-8, None)
        width = len((prompt + ids)[cut])
        wanted = ([0.0] * len(prompt) + row[f"{side}_label_logprobs"])[cut]
        torch.testing.assert_close(batch["label_logprobs"][place, :width], torch.tensor(wanted))
        judged = ([0] * len(prompt) + [1] * min(2, len(ids)) + [0] * (len(ids) - 2))[cut]
        assert batch["completion_mask"][place, :width].tolist() == judged
        assert batch["response_mask"][place, :width].tolist() == ([0] * len(prompt) + [1] * len(ids))[cut]


def test_judged_prefixes_are_what_trl_logs(build):
    """A judge who saw two tokens: TRL's log-probabilities are those of the two, while PPL-d looks at the rest too."""
    rows = pairs(8)
    short = [row | {"chosen_segment_tokens": 2, "rejected_segment_tokens": 1} for row in rows]
    whole, judged = build(rows=rows, ppl=objective("dpo")), build(rows=short, ppl=objective("dpo"))
    ahead = build(rows=short, ppl=objective("ppl_d", normalize="sum"))
    logged = []
    for trainer in (whole, judged, ahead):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch)
        logged.append({name: value[-1] for name, value in trainer._metrics["train"].items()})
    assert logged[1]["logps/chosen"] > logged[0]["logps/chosen"]
    assert logged[2]["logps/chosen"] == pytest.approx(logged[1]["logps/chosen"])
    assert logged[2]["preference/train_nll"] != pytest.approx(logged[1]["preference/train_nll"], abs=1e-4)


@pytest.mark.parametrize("divergence", ["kl", "dirac"])
def test_the_trainer_computes_the_expected_lookahead(divergence, build, model_dir):
    """From full logits over each continuation alone: the trainer's loss is that of the score written out."""
    policies = {"a": BehaviorPolicy(str(model_dir), 0.7), "b": BehaviorPolicy(str(model_dir), 1.5)}
    ppl = objective("ppl", divergence=divergence, future="expected", rollouts=2, kl_top_k=10_000, normalize="sum")
    labels = PolicyLabels(policies=policies, load_model=load, max_new_tokens=4)
    trainer = build(ppl=ppl, policy_labels=labels, rows=pairs(4), per_device_train_batch_size=4)
    with torch.no_grad():
        trainer.model.lm_head.weight *= 1.5
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    scores = {}
    for side in ("chosen", "rejected"):
        scores[side] = [score_by_hand(trainer.model, load(model_dir), row, side, policies, divergence) for row in rows]
    margin = torch.stack(scores["chosen"]) - torch.stack(scores["rejected"])
    wanted = -torch.nn.functional.logsigmoid(0.3 * margin).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert trainer.model.lm_head.weight.grad.abs().sum() > 0


def score_by_hand(policy, reference, row, side, policies, divergence):
    """log pi / pi_ref of the response, minus n / K times the divergences along the K continuations."""

    def logprobs(model, prefix, ids):
        logits = model(input_ids=torch.tensor([[*prefix, *ids]])).logits[0, len(prefix) - 1 : -1]
        return logits, logits.log_softmax(-1)[range(len(ids)), ids]

    prompt, ids = row["prompt_ids"], row[f"{side}_ids"]
    score = logprobs(policy, prompt, ids)[1].sum() - logprobs(reference, prompt, ids)[1].sum()
    temperature = policies[row[f"{side}_policy_id"]].temperature
    for start, future in zip(row[f"{side}_future_starts"], row[f"{side}_future_ids"], strict=True):
        if future:
            logits, taken = logprobs(policy, prompt + ids[:start], future)
            mu = (logprobs(reference, prompt + ids[:start], future)[0] / temperature).softmax(-1)
            d = F.categorical_kl(mu, logits.log_softmax(-1)) if divergence == "kl" else -taken
            score = score - len(ids) * d.sum() / 2
    return score.detach()


def test_one_observed_future_warns_once(build):
    with pytest.warns(BiasedLookaheadWarning, match="expected"):
        build(ppl=objective("ppl_d"), max_steps=1)


def test_what_a_template_writes_after_the_end_token_is_left_out():
    row = {"chosen_ids": [5, 2, 6, 2, 9, 9], "rejected_ids": [5, 6], "row": 1}
    assert without_rest(row, end=2) == {"chosen_ids": [5, 2, 6, 2], "rejected_ids": [5, 6]}
