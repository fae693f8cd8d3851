"""PPL on TRL's DPOTrainer: what it equals, what the labels are, what is refused, and the run from the command line."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trl import DPOConfig, DPOTrainer

from autotelic import functional as F
from autotelic.cli.train import train
from autotelic.errors import UserError
from autotelic.preferences.labels import (
    SIDES,
    BehaviorPolicy,
    PolicyLabels,
    label_sequences,
    load_pairs,
    read_policies,
    sampling_log_softmax,
)
from autotelic.preferences.trainer import OBJECTIVES, PPL, objective, with_policy_labels

GOLDEN = Path(__file__).parent.parent / "golden"


def pairs(count=16, **columns):
    """Rows whose chosen response is longer or shorter than the rejected one, by turns."""
    rows = []
    for i in range(count):
        good, bad = f"{i + 3}={2 * i}", f"{i}"
        rows.append({"prompt": f"{i}+{i + 1}=?", "chosen": good, "rejected": bad} | {"row": i + 1})
        rows[-1] |= {"chosen_policy_id": "ab"[i % 2], "rejected_policy_id": "ab"[i % 3 == 0]} | columns
    return rows


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer, make_model):
    """A saved model, since TRL reads the reference from where the model came from."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture
def build(tmp_path, model_dir, tokenizer):
    """Return a function giving a trainer of four updates."""
    from datasets import Dataset

    def make(wrap=with_policy_labels, rows=None, model=None, **settings):
        own = {
            k: settings.pop(k)
            for k in ("ppl", "policy_labels", "fused_head", "shared_prefix", "peft_config", "eval_dataset")
            if k in settings
        }
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "beta": 0.3,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        } | settings
        return wrap(DPOTrainer)(
            model=model or load(model_dir),
            args=DPOConfig(**arguments),
            train_dataset=Dataset.from_list(rows or pairs()),
            processing_class=tokenizer,
            **own,
        )

    return make


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradient(trainer, batch=None):
    batch = first_batch(trainer) if batch is None else batch
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


@pytest.mark.parametrize(
    "settings",
    [OBJECTIVES["dpo"], PPL(normalize="sum", horizon=0), PPL(divergence="dirac", normalize="sum", coef=0.0)],
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
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-8)


REPO = json.loads((GOLDEN / "repo_preference.json").read_text())["cases"]


@pytest.mark.parametrize("variant", ["repo", "repo_det"])
def test_objectives_in_repo_settings_are_the_authors_code(variant):
    """Loss and gradient of `OBJECTIVES` on the stored arrays: every case whose mask has no holes."""
    arrays, seen = np.load(GOLDEN / "repo_preference.npz"), 0
    for case in REPO:
        run = next((e for e in case["evaluations"] if e["variant"] == variant), None)
        read = lambda side, name, case=case: torch.tensor(arrays[case["inputs"][f"{side}_{name}"]])  # noqa: E731
        masks = [read(side, "mask").bool() for side in SIDES]
        if run is None or not all(torch.equal(mask, F.consecutive_mask(mask)) for mask in masks):
            continue
        seen, settings = seen + 1, case["params"]
        ppl = objective(
            variant,
            bias=settings["cpl_lambda"],
            ref_coef=settings["ref_coef"] if case["uses_reference"] else 0.0,
            sft_coef=settings["sft_loss_coef"],
        )
        mask, logprobs = torch.cat(masks), torch.cat([read(side, "policy_logps").double() for side in SIDES])
        logprobs.requires_grad_(True)
        labels = {"label_logprobs": torch.cat([read(side, "behaviour_logps").double() for side in SIDES])}
        reference = None
        if case["uses_reference"]:
            reference = torch.cat([read(side, "reference_logps").double() for side in SIDES])
            reference = reference.masked_fill(~mask, 0.0).sum(-1)
        scores = ppl.scores(logprobs, ppl.divergences(logprobs, labels), mask, mask, reference)
        losses = ppl.losses(scores, settings["alpha"])
        np.testing.assert_allclose(losses.detach(), arrays[run["arrays"]["pair_loss"]], rtol=1e-10, atol=1e-12)
        total = losses.mean() + ppl.sft_coef * F.repo_sft_loss(logprobs.chunk(2)[0], masks[0])
        np.testing.assert_allclose(total.item(), run["total_loss"], rtol=1e-10)
        (gradient,) = torch.autograd.grad(total, logprobs)
        wanted = np.concatenate([arrays[run["arrays"][f"grad_total_{side}"]] for side in SIDES])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-12)
    assert seen >= 4


def test_the_trainer_computes_repo(build, model_dir):
    """Through the trainer: RePO's loss from functions of `autotelic.functional` alone, and rows' log-probabilities."""
    labels = PolicyLabels(policies={"a": BehaviorPolicy(str(model_dir), 0.7), "b": BehaviorPolicy(str(model_dir), 1.3)})
    labels.load_model = load
    trainer = build(ppl=OBJECTIVES["repo"], policy_labels=labels)
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


def test_kl_by_hand():
    """Two judged tokens and one after them; mu = (1/2, 1/2), pi = (1/4, 3/4): d = log 2 - log 3 / 2 = .1438 everywhere.

    Averaged window: token 1 looks at tokens 2 and 3, token 2 at token 3: each look-ahead is d, so S = sum log pi - 2 d.
    """
    pi = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    top = pi.expand(1, 3, 2)
    label = {"label_top_logprobs": torch.full((1, 3, 2), 0.5, dtype=torch.float64).log()}
    logprobs, response = pi[[0, 1, 1]].unsqueeze(0), torch.ones(1, 3, dtype=torch.bool)
    segment = torch.tensor([[True, True, False]])
    ppl = PPL(normalize="sum")
    d = ppl.divergences(logprobs, label, top)
    assert d[0].tolist() == pytest.approx([math.log(2) - math.log(3) / 2] * 3)
    score = ppl.scores(logprobs, d, segment, response)
    assert score.item() == pytest.approx(math.log(0.25) + math.log(0.75) - 2 * d[0, 0].item())
    inside = PPL(normalize="sum", future="in_segment").scores(logprobs, d, segment, response)
    assert inside.item() == pytest.approx(math.log(0.25) + math.log(0.75) - d[0, 0].item())
    dropped = PPL(normalize="sum", label_entropy="drop").divergences(logprobs, label, top)
    assert dropped[0].tolist() == pytest.approx([math.log(2) - math.log(3) / 2 + math.log(2)] * 3)


def test_the_loss_ignores_padding_and_the_width_of_the_label(build, model_dir):
    """A longer row in the batch changes no other pair; the whole vocabulary gives the KL of the whole vocabulary."""
    labels = PolicyLabels(
        policies={name: BehaviorPolicy(str(model_dir), 1.4) for name in "ab"}, load_model=load, top_k=10_000
    )
    trainer = build(ppl=PPL(normalize="sum"), policy_labels=labels, per_device_train_batch_size=4)
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.eval()
    together = trainer.compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=True)[1]["scores"]
    for place, row in enumerate(rows):
        alone = trainer.compute_loss(trainer.model, trainer.data_collator([row]), return_outputs=True)[1]["scores"]
        torch.testing.assert_close(alone, together[[place, place + 4]], rtol=1e-5, atol=1e-5)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = load(model_dir)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        exact = F.categorical_kl((logits / 1.4).softmax(-1), logits.log_softmax(-1))
    inputs = {name: value[:, 1:] for name, value in batch.items() if name.startswith("label")}
    _, _, top = trainer._token_logprobs(trainer.model, batch, inputs)
    mask = batch["completion_mask"][:, 1:].bool()
    ours = trainer.ppl.divergences(torch.zeros_like(exact), inputs, top.detach())
    torch.testing.assert_close(ours[mask], exact[mask], rtol=1e-4, atol=1e-5)


def test_label_logprobs_are_those_of_the_sampling_distribution(model_dir, tokenizer):
    """Tokens that generation draws at temperature .7 and top-k 3 have the probabilities that the label gives them."""
    policy = BehaviorPolicy(temperature=0.7, top_k=3)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    kept = torch.exp(torch.tensor([2.0, 1.0, 0.0]) / 0.7)
    found = sampling_log_softmax(logits, policy)
    torch.testing.assert_close(found[:3].exp(), kept / kept.sum())
    assert found[3] < -1000
    nucleus = sampling_log_softmax(logits, BehaviorPolicy(temperature=1.0, top_p=0.8)).exp()
    assert nucleus[2:].sum() == 0 and nucleus.sum().item() == pytest.approx(1)
    ids = tokenizer("1+2=?")["input_ids"]
    response = tokenizer("3", add_special_tokens=False)["input_ids"]
    (logprobs, top, values), *_ = label_sequences(load(model_dir).eval(), policy, [ids], [response], 3)
    assert len(logprobs) == len(response) == len(top) and len(top[0]) == 3
    assert sum(math.exp(value) for value in values[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["known", "estimated", "pooled", "shuffled", "wrong"])
def test_label_kinds(kind, build, model_dir):
    """Clones know the data better than the model they start from; controls differ from the truth in the label alone."""
    policies = {"a": BehaviorPolicy(str(model_dir), 0.5), "b": BehaviorPolicy(str(model_dir), 2.0)}
    start = lambda name: load(name or model_dir)  # noqa: E731
    labels = PolicyLabels(kind, policies, start, clone_steps=20, clone_learning_rate=1e-2)
    trainer = build(ppl=PPL(divergence="single_sample"), policy_labels=labels)
    truth = build(ppl=PPL(divergence="single_sample"), policy_labels=PolicyLabels("known", policies, start))
    ours = [sum(row) for side in SIDES for row in trainer.train_dataset[f"{side}_label_logprobs"]]
    wanted = [sum(row) for side in SIDES for row in truth.train_dataset[f"{side}_label_logprobs"]]
    if kind == "known":
        assert ours == pytest.approx(wanted)
    elif kind in ("estimated", "pooled"):
        assert sum(ours) > 0.7 * sum(wanted)  # both negative
    else:
        changed = sum(a != pytest.approx(b) for a, b in zip(ours, wanted, strict=True))
        assert changed == len(ours) if kind == "wrong" else 0 < changed < len(ours)
    assert torch.isfinite(loss_and_gradient(trainer)[0])


def test_a_policy_that_only_held_out_pairs_have_cannot_be_estimated(build, model_dir):
    labels = PolicyLabels("estimated", {}, lambda name: load(name or model_dir), clone_steps=1)
    rows = [row | {"chosen_policy_id": "a", "rejected_policy_id": "a"} for row in pairs(4)]
    labels.attach(build(rows=rows, ppl=OBJECTIVES["dpo"]).train_dataset)
    with pytest.raises(UserError, match="'b' appears in held-out pairs only"):
        labels.attach(build(rows=pairs(4), ppl=OBJECTIVES["dpo"]).train_dataset)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "row 3: no column 'rejected'"),
        ({"chosen": 7}, "row 3: chosen is a int"),
        ({"chosen": "same", "rejected": "same"}, "row 3: chosen and rejected are the same"),
        ({"chosen_segment_tokens": 0}, "row 3: chosen_segment_tokens"),
        ({"chosen_sampler_logprobs": [-0.1, 0.4]}, "row 3: chosen_sampler_logprobs, token 2 is 0.4"),
        ({"chosen_sampler_logprobs": [float("nan")]}, "row 3: chosen_sampler_logprobs, token 1 is nan"),
        ({"chosen_policy_id": None}, "row 3: column 'chosen_policy_id' is in some rows only"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    rows = pairs(4)
    rows[2] |= change
    with pytest.raises(UserError, match=message):
        load_pairs(write(tmp_path / "pairs.jsonl", rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must map policy ids"),
        ("a: 3", "policy 'a' must be a mapping"),
        ("a: {modl: x}", "did you mean 'model'"),
        ("a: {temperature: 0}", "temperature must be a number above 0"),
        ("a: {top_p: 2}", "top_p must lie in"),
        ("a: [", "neither YAML nor JSON"),
    ],
)
def test_bad_policies_are_named(tmp_path, text, message):
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_policies(path)


def test_stored_logprobs_must_be_those_of_the_sampling_distribution(build, model_dir, tokenizer):
    """Right at the stated temperature: accepted. Raw ones: recognised as such. None stated, or one too few: refused."""
    model, rows = load(model_dir).eval(), pairs(4)

    def stored(policy, cut=0):
        result = []
        for row in rows:
            columns = dict(row)
            for side in SIDES:
                prompt = tokenizer(row["prompt"])["input_ids"]
                response = tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"][len(prompt) :]
                logprobs = label_sequences(model, policy, [prompt], [response], 1)[0][0]
                columns[f"{side}_sampler_logprobs"] = logprobs[: len(logprobs) - cut]
            result.append(columns)
        return result

    def attach(rows, policy):
        labels = PolicyLabels(policies={"a": policy, "b": policy}, load_model=load, source="pairs.jsonl")
        return build(rows=rows, ppl=PPL(divergence="single_sample"), policy_labels=labels)

    stated = BehaviorPolicy(str(model_dir), 0.7)
    assert "chosen_label_logprobs" in attach(stored(stated), stated).train_dataset.column_names
    with pytest.raises(UserError, match=r"pairs.jsonl, row \d, .*those of temperature 1 without"):
        attach(stored(BehaviorPolicy(temperature=1.0)), stated)
    with pytest.raises(UserError, match=r"row 1, chosen has .* tokens, the end token included"):
        attach(stored(stated, cut=1), stated)
    with pytest.raises(UserError, match="without its temperature"):
        attach(stored(stated), BehaviorPolicy())
    with pytest.raises(UserError, match="has no model"):
        build(
            rows=rows,
            ppl=PPL(),
            policy_labels=PolicyLabels(policies={n: BehaviorPolicy(temperature=1.0) for n in "ab"}, load_model=load),
        )
    with pytest.raises(UserError, match="cannot have sampled it at top_k 1"):
        build(
            rows=rows,
            ppl=PPL(),
            policy_labels=PolicyLabels(
                policies={n: BehaviorPolicy(str(model_dir), 1.0, top_k=1) for n in "ab"}, load_model=load
            ),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objective("pppl"), "did you mean 'ppl'"),
        (lambda: PPL(divergence="k1"), "unknown divergence 'k1'"),
        (lambda: PPL(bias=0.0), "lambda"),
        (lambda: PPL(coef=-1.0), "rewards bad behaviour"),
        (lambda: PPL(gamma=1.5), "discount"),
        (lambda: PolicyLabels("konwn"), "did you mean 'known'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_variant_of_dpos_loss_is_refused(build):
    with pytest.raises(UserError, match="label_smoothing is a variant"):
        build(label_smoothing=0.1)


def test_lora(build, model_dir):
    """As DPOTrainer takes it: only the adapter learns, the reference is the model without it, and the loss falls."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["up_proj"])
    trainer = build(ppl=OBJECTIVES["ppl_d"], peft_config=adapter, per_device_train_batch_size=16, max_steps=8)
    assert trainer.ref_model is None
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    base = load(model_dir).state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight, base)
    assert "preference/train_nll" in trainer.state.log_history[0]


@pytest.fixture
def options(tmp_path, model_dir):
    """Return a function giving the options of a run of a few seconds."""
    data = write(tmp_path / "pairs.jsonl", [{k: v for k, v in row.items() if k != "row"} for row in pairs(32)])
    policies = tmp_path / "policies.yaml"
    policies.write_text(f"a: {{model: {model_dir}, temperature: 0.7}}\nb: {{model: {model_dir}, temperature: 1.5}}\n")

    def make(name="run", **overrides):
        settings = {
            "model_name_or_path": model_dir,
            "dataset": data,
            "behavior_policies": policies,
            "output_dir": tmp_path / name,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "heldout_steps": 2,
            "max_completion_length": 8,
            "quiet": True,
        } | overrides
        return [item for key, value in settings.items() if value is not None for item in (f"--{key}", str(value))]

    return make


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows):
    clocks = ("runtime", "per_second", "step_time")
    return [{key: value for key, value in row.items() if not key.endswith(clocks)} for row in rows]


def test_a_run_reports_the_held_out_loss_of_both_scores_and_resumes(tmp_path, options):
    summary = train("ppl", options("whole", save_steps=2))
    assert summary["finished"] and summary["step"] == 4
    rows = metrics(tmp_path / "whole")
    assert [row["step"] for row in rows if "preference/heldout_nll" in row] == [0, 2, 4]
    first = rows[0]
    assert first["preference/heldout_nll_no_lookahead"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["preference/heldout_nll"] != first["preference/heldout_nll_no_lookahead"]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["method"] == "ppl" and record["config"]["run"]["objective"] == "ppl"
    train("ppl", options("parts", save_steps=2))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")  # as if the run had died after step 2's checkpoint
    train("ppl", options("parts", save_steps=2, resume=True))
    assert without_time(metrics(tmp_path / "parts")) == without_time(rows)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_auto_keeps_the_lower_held_out_loss(tmp_path, options):
    train("ppl", options("auto", objective="auto", save_strategy="no", policy_labels="estimated", clone_steps=2))
    choice = json.loads((tmp_path / "auto" / "choice.json").read_text())
    losses = choice["heldout_nll"]
    assert set(losses) == {"ppl", "dpo"} and losses[choice["chosen"]] == min(losses.values())
    for name, loss in losses.items():
        last = [row for row in metrics(tmp_path / "auto" / name) if "preference/heldout_nll" in row][-1]
        assert last["preference/heldout_nll"] == loss


def test_online_pairs_carry_the_policy_that_sampled_them(tmp_path, options):
    """A buffer of two batches holds two policies; a resumed run continues with the same numbers."""
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{i}+1=?"} for i in range(16)])
    extra = {"dataset": prompts, "behavior_policies": None, "online": True, "reward": "random", "online_buffer": 2}
    extra |= {"save_steps": 2, "temperature": 0.8, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    train("ppl", options("whole", **extra))
    rows = [row for row in metrics(tmp_path / "whole") if "preference/decided_share" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all("reward/mean" in row for row in rows)
    saved = json.loads((tmp_path / "whole" / "checkpoint-4" / "online_pairs-0.json").read_text())
    assert [batch[0]["chosen_policy_id"] for batch in saved] == ["2", "3"]
    example = saved[-1][0]
    model = load(tmp_path / "whole" / "checkpoint-4").eval()
    sampling = BehaviorPolicy(temperature=0.8)
    now = label_sequences(model, sampling, [example["prompt_ids"]], [example["chosen_ids"]], 1)[0][0]
    assert example["chosen_label_logprobs"] != pytest.approx(now, abs=1e-4)  # the label is older than the policy
    train("ppl", options("parts", **extra))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    train("ppl", options("parts", **extra, resume=True))
    assert without_time(metrics(tmp_path / "parts")) == without_time(metrics(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropy_control": "kl_cov"}, "entropy_control belongs to the GRPO methods"),
        ({"entropy_control": "kl_cov"}, "entropy_control belongs to the GRPO methods"),
        ({"reward": "verifier"}, "judged already"),
        ({"dataset": None}, "give --dataset"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl is not a file"),
        ({"behavior_policies": "nowhere.yaml"}, "cannot read the behaviour policies"),
        ({"behavior_policies": None}, "not in the table of behaviour policies"),
        ({"objective": "dppo"}, "did you mean 'dpo'"),
        ({"online": True}, "needs --reward"),
        ({"heldout_fraction": 1.0}, "heldout_fraction"),
        ({"num_generations": 4}, "unknown option"),
    ],
)
def test_bad_input_is_one_clear_line(options, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train("ppl", options(**changes))
    assert "\n" not in str(caught.value).strip()


RANK_PROGRAM = "import sys; from autotelic.cli.train import train; train('ppl', sys.argv[1:])"


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path, options):
    """Half the pairs each: same losses and parameters; held-out pairs count once, though ranks share an odd number."""
    for size in (1, 2):
        extra = {"per_device_train_batch_size": 8 // size, "per_device_eval_batch_size": 3, "save_strategy": "no"}
        extra |= {"max_steps": 3}  # three whole batches: accelerate fills up a short one in its own way
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(size)}
        ranks = []
        for rank in range(size):
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", RANK_PROGRAM, *options(f"ranks{size}", **extra)]
            ranks.append(subprocess.Popen(command, env=os.environ | place))
        assert [rank.wait(timeout=300) for rank in ranks] == [0] * size
    one, two = (metrics(tmp_path / f"ranks{size}") for size in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        for name in ours:
            if name.startswith("preference/") or name in ("train/loss", "policy/entropy"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (ours["step"], name)


# The fused head.


@pytest.mark.parametrize(("name", "top_k"), [("ppl", 64), ("ppl", 3), ("dpo", 64), ("repo_det", 64)])
def test_the_fused_head_changes_nothing_but_memory(name, top_k, build, model_dir, monkeypatch):
    """Loss, gradients and metrics with our head are those without; the closed-form KL then makes no logits."""
    ppl = objective(name, kl_top_k=top_k)
    policies = {"a": BehaviorPolicy(str(model_dir), 1.0), "b": BehaviorPolicy(str(model_dir), 1.5)}
    found = []
    for mode in ("off", "on"):
        labels = PolicyLabels(policies=policies, load_model=load, top_k=top_k, needs_logprobs=True)
        trainer = build(ppl=ppl, policy_labels=labels if name == "ppl" else None, fused_head=mode)
        drift = torch.Generator().manual_seed(1)
        trainer.model.lm_head.weight.data += 0.1 * torch.randn(trainer.model.lm_head.weight.shape, generator=drift)
        if mode == "on":
            monkeypatch.setattr(trainer.model.lm_head, "forward", lambda *a: pytest.fail("logits were made"))
            assert trainer.fused_head_refusal is None
        batch = first_batch(trainer)
        loss, gradient = loss_and_gradient(trainer, batch)
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items()}
        found.append((loss, gradient, trainer.model.lm_head.weight.grad, metrics))
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert found[0][3] == pytest.approx(found[1][3], rel=1e-4, abs=1e-6)


# Shared prompts.


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
        labels = PolicyLabels(policies=policies, load_model=load, top_k=3, needs_logprobs=True)
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
    trainer = build(ppl=OBJECTIVES["ppl_d"], model=load(tmp_path / "model"), bf16=True, max_steps=1)
    trainer.train()
    plain = trainer.state.log_history[0]["preference/train_nll_no_lookahead"]
    assert plain == torch.tensor(2.0).log().item()
