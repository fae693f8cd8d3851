"""Evaluation: estimators by hand and against enumeration, intervals, and a tiny model end to end."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.evaluation import (
    Estimate,
    accuracy_estimates,
    bootstrap,
    evaluate_model,
    evaluate_samples,
    majority_at_k,
    mean_at_k,
    pass_at_k,
    temperature_sweep,
)


def test_pass_at_k_by_hand():
    """n = 4, c = 1: pass@2 = 1 - C(3, 2) / C(4, 2) = 1 - 3/6 = 1/2; c = 3: 1 - 0 = 1; c = 0: 0."""
    correct = np.array([[True, False, False, False], [True, True, True, False], [False] * 4])
    assert pass_at_k(correct, 2).tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert mean_at_k(correct).tolist() == [0.25, 0.75, 0.0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_equals_the_enumeration_of_subsets(row, data):
    k = data.draw(st.integers(1, len(row)))
    expected = np.mean([any(subset) for subset in itertools.combinations(row, k)])
    assert pass_at_k(np.array([row]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples():
    """C(10000, 5000) overflows a float; the value is 1 - C(9990, 5000) / C(10000, 5000)."""
    correct = np.zeros((1, 10_000), dtype=bool)
    correct[0, :10] = True
    expected = 1 - math.comb(9990, 5000) / math.comb(10_000, 5000)
    assert pass_at_k(correct, 5000)[0] == pytest.approx(expected, rel=1e-12)


def test_pass_at_k_refuses_more_than_was_sampled():
    with pytest.raises(UserError, match="pass@5 needs"):
        pass_at_k(np.zeros((1, 4), dtype=bool), 5)


def test_majority_by_hand():
    """Row 1: the pair wins, right. Row 2: a tie, one of two right: 1/2. Row 3: -1 never wins. Row 4: nothing parsed."""
    clusters = np.array([[0, 0, 1, 2], [0, 0, 1, 1], [-1, -1, -1, 0], [-1, -1, -1, -1]])
    correct = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    assert majority_at_k(correct, clusters).tolist() == [1.0, 0.5, 1.0, 0.0]


def test_bootstrap_interval_has_its_coverage():
    """A 95 % interval for a Bernoulli mean at P = 100 covers the truth in about 95 of 100 trials."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        estimate = bootstrap((rng.random(100) < 0.3).astype(float), seed=trial, num_resamples=500)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.985


def test_bootstrap_is_seeded_weighted_and_honest_about_one_prompt():
    values, weights = np.array([0.0, 1.0, 4.0]), np.array([1.0, 1.0, 2.0])
    estimate = bootstrap(values, weights, seed=3)
    assert estimate.value == pytest.approx(9 / 4)
    assert estimate == bootstrap(values, weights, seed=3)
    assert estimate.low <= estimate.value <= estimate.high
    single = bootstrap(np.array([0.5]))
    assert math.isnan(single.low)
    assert single.as_dict() == {"value": 0.5, "interval": [None, None]}


def test_an_interval_needs_three_prompts_and_is_never_a_point_at_the_edge():
    """Wilson for 4 of 4: from 4 / (4 + 1.96^2) = .510 to 1."""
    assert math.isnan(bootstrap(np.ones(2), share=True).high)
    right, wrong = bootstrap(np.ones(4), share=True), bootstrap(np.zeros(4), share=True)
    assert (right.value, right.high) == (1, pytest.approx(1)) and right.low == pytest.approx(0.5101, abs=1e-4)
    assert (wrong.value, wrong.low) == (0, pytest.approx(0)) and wrong.high == pytest.approx(0.4899, abs=1e-4)
    estimates = accuracy_estimates(np.ones((3, 2), dtype=bool), np.zeros((3, 2), dtype=int))
    assert all(estimate.low < 0.9 for estimate in estimates.values())


def test_bootstrap_in_parts_equals_bootstrap_at_once(monkeypatch):
    values = np.random.default_rng(0).random(50)
    at_once = bootstrap(values, num_resamples=200)
    monkeypatch.setattr("autotelic.evaluation.MAX_RESAMPLE_ELEMENTS", 50 * 7)
    assert bootstrap(values, num_resamples=200) == at_once


def test_accuracy_estimates_name_every_power_of_two_and_k():
    correct = np.random.default_rng(0).random((5, 6)) < 0.5
    names = list(accuracy_estimates(correct, np.zeros((5, 6), dtype=np.int64)))
    assert names == ["mean@6", "pass@1", "pass@2", "pass@4", "pass@6", "maj@6"]


def test_samples_are_scored_by_their_answers():
    rows = [
        {"prompt": "2+2=?", "answer": 4, "responses": ["the answer is 4", "it is 5", "no idea", "= 4"], "greedy": "4"},
        {"prompt": "1+2=?", "answer": "3", "responses": ["3", "3", "4", "5"], "greedy": "5"},
    ]
    result = evaluate_samples(rows)
    assert result["mean@4"].value == 0.5
    assert result["pass@4"].value == 1.0
    assert result["maj@4"].value == 1.0
    assert result["greedy"].value == 0.5
    assert result["parsed"].value == 7 / 8
    assert result.samples[0].correct == (True, False, False, True)


def test_unequal_groups_are_cut_and_said_so():
    rows = [{"prompt": "a", "answer": 1, "responses": ["1", "2"]}, {"prompt": "b", "answer": 1, "responses": ["1"] * 3}]
    result = evaluate_samples(rows)
    assert "mean@2" in result.metrics
    assert "2 to 3 responses" in result.warnings[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "nothing to evaluate"),
        ([{"prompt": "a", "responses": ["1"]}], "row 1 has no `answer`"),
        ([{"prompt": "a", "answer": 1}], "row 1 has no `responses`"),
        ([{"prompt": "a", "answer": 1, "responses": []}], "row 1 has no `responses`"),
        ([{"prompt": "a", "answer": 1, "responses": [3]}], "row 1 has no `responses`"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        evaluate_samples(rows)


PROBLEMS = [{"prompt": "1+1=?", "answer": "2"}, {"prompt": "12+7-5=?", "answer": "14"}, {"prompt": "9=?", "answer": 9}]


def test_model_evaluation_is_reproducible_and_leaves_the_random_state(tiny):
    model, tokenizer = tiny
    model.train()
    state = torch.get_rng_state()
    first = evaluate_model(model, tokenizer, PROBLEMS, k=4, max_new_tokens=6, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert first == evaluate_model(model, tokenizer, PROBLEMS, k=4, max_new_tokens=6, seed=5)
    assert first.samples != evaluate_model(model, tokenizer, PROBLEMS, k=4, max_new_tokens=6, seed=6).samples
    assert {"mean@4", "pass@1", "pass@2", "pass@4", "maj@4", "greedy", "entropy", "length", "parsed"} == set(
        first.metrics
    )


def test_temperature_sweep_decodes_greedily_once(tiny):
    model, tokenizer = tiny
    sweep = temperature_sweep(model, tokenizer, PROBLEMS, [0.5, 2], k=2, max_new_tokens=4)
    assert list(sweep) == [0.5, 2.0]
    assert "greedy" in sweep[0.5].metrics
    assert "greedy" not in sweep[2.0].metrics


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"k": 0}, {"top_p": 0.0}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused(tiny, settings):
    with pytest.raises(UserError, match="evaluation needs"):
        evaluate_model(*tiny, PROBLEMS, **settings)


def test_a_conversation_needs_a_chat_template(tiny):
    problems = [{"prompt": [{"role": "user", "content": "1+1=?"}], "answer": "2"}]
    with pytest.raises(UserError, match="no chat template"):
        evaluate_model(*tiny, problems)


def test_estimates_print_their_interval():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
