"""Behaviour policies: the table, the sampling distribution, continuations."""

import math

import pytest
import torch
from preference_parts import load

from autotelic.errors import UserError
from autotelic.preferences.sampling_policies import (
    BehaviorPolicy,
    label_sequences,
    read_policies,
    sampling_log_softmax,
)


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
