"""Policy labels: the kinds, stored log-probabilities, continuations."""

import pytest
import torch
from preference_parts import load, loss_and_gradient, pairs

from autotelic.errors import UserError
from autotelic.preferences.labels import LabelSettings, PolicyLabels, read_labels
from autotelic.preferences.objective import objective
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.sampling_policies import BehaviorPolicy, label_sequences

pytestmark = pytest.mark.filterwarnings("ignore::autotelic.functional.lookahead.BiasedLookaheadWarning")


@pytest.mark.parametrize("kind", ["known", "estimated", "pooled", "shuffled", "wrong"])
def test_label_kinds(kind, build, model_dir):
    """Clones know the data better than the model they start from; controls differ from the truth in the label alone."""
    policies = {"a": BehaviorPolicy(str(model_dir), 0.5), "b": BehaviorPolicy(str(model_dir), 2.0)}
    start = lambda name: load(name or model_dir)  # noqa: E731
    labels = PolicyLabels(LabelSettings(kind, 20, 1e-2), policies, start)
    trainer = build(ppl=objective("ppl", divergence="single_sample"), policy_labels=labels)
    truth = build(
        ppl=objective("ppl", divergence="single_sample"),
        policy_labels=PolicyLabels(LabelSettings("known"), policies, start),
    )
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


def test_a_policy_that_only_held_out_pairs_have_cannot_be_estimated(build, model_dir, tokenizer):
    labels = PolicyLabels(LabelSettings("estimated", 1), {}, lambda name: load(name or model_dir))
    rows = [row | {"chosen_policy_id": "a", "rejected_policy_id": "a"} for row in pairs(4)]
    single = objective("ppl", divergence="single_sample")
    labels.attach(build(rows=rows, ppl=objective("dpo")).train_dataset, single, tokenizer)
    with pytest.raises(UserError, match="'b' appears in held-out pairs only"):
        labels.attach(build(rows=pairs(4), ppl=objective("dpo")).train_dataset, single, tokenizer)


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
        return build(rows=rows, ppl=objective("ppl", divergence="single_sample"), policy_labels=labels)

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
            ppl=objective("ppl"),
            policy_labels=PolicyLabels(policies={n: BehaviorPolicy(temperature=1.0) for n in "ab"}, load_model=load),
        )
    with pytest.raises(UserError, match="cannot have sampled it at top_k 1"):
        build(
            rows=rows,
            ppl=objective("ppl"),
            policy_labels=PolicyLabels(
                policies={n: BehaviorPolicy(str(model_dir), 1.0, top_k=1) for n in "ab"}, load_model=load
            ),
        )


def test_labels_are_read_from_text():
    assert read_labels("estimated,clone_steps=30") == LabelSettings("estimated", 30)
    assert read_labels({"name": "wrong"}).kind == "wrong"
    with pytest.raises(UserError, match="did you mean 'known'"):
        read_labels("konwn")


@pytest.mark.parametrize("weights", ["regret", pytest.param("tail", marks=pytest.mark.slow)])
def test_continuations_are_the_policys_own(weights, build, model_dir, tokenizer):
    """Each continues a prefix of the judged tokens, is drawn as the policy samples, and has its labels there."""
    policies = {name: BehaviorPolicy(str(model_dir), 0.7, top_k=4) for name in "ab"}
    labels = PolicyLabels(policies=policies, load_model=load, max_new_tokens=5)
    ppl = objective("ppl", future="expected", weights=weights, rollouts=3, kl_top_k=2)
    rows = pairs(6, chosen_segment_tokens=2, rejected_segment_tokens=1)
    found = build(rows=rows, ppl=ppl, policy_labels=labels).train_dataset
    assert "chosen_label_top_ids" not in found.column_names  # what was recorded is not read
    for row in found:
        for side, judged in (("chosen", 2), ("rejected", 1)):
            starts, futures = row[f"{side}_future_starts"], row[f"{side}_future_ids"]
            assert len(starts) == len(futures) == 3 and all(1 <= start <= judged for start in starts)
            assert weights == "regret" or set(starts) == {judged}
            for start, ids, top in zip(starts, futures, row[f"{side}_future_label_top_ids"], strict=True):
                assert 1 <= len(ids) <= 5 and len(top) == len(ids) and tokenizer.eos_token_id not in ids[:-1]
                prefix = row["prompt_ids"] + row[f"{side}_ids"][:start]
                (label,) = label_sequences(load(model_dir).eval(), policies["a"], [prefix], [ids], 2)
                assert min(label.logprobs) > -100  # the sampler could draw every token
    again = build(rows=rows, ppl=ppl, policy_labels=PolicyLabels(policies=policies, load_model=load, max_new_tokens=5))
    assert again.train_dataset["chosen_future_ids"] == found["chosen_future_ids"]
