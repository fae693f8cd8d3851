"""Parity with CPL's and RePO's code, on the stored arrays of tests/golden (provenance in its README)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autotelic.functional.lookahead import lookahead_sum
from autotelic.functional.preference import (
    behavior_cloning_loss,
    cloned_segments,
    consecutive_mask,
    cpl_loss,
    cpl_ranking_loss,
    cpl_score,
    preference_accuracy,
    repo_loss,
    repo_score,
    repo_sft_loss,
    repo_step_score,
)

GOLDEN = Path(__file__).parents[1] / "golden"
PREFERENCE = json.loads((GOLDEN / "preference.json").read_text())["cases"]
REPO = json.loads((GOLDEN / "repo_preference.json").read_text())["cases"]


@pytest.fixture(scope="module")
def preference():
    return np.load(GOLDEN / "preference.npz")


@pytest.fixture(scope="module")
def repo():
    return np.load(GOLDEN / "repo_preference.npz")


def tensor(array, dtype=torch.float64, grad=False):
    return torch.tensor(np.asarray(array), dtype=dtype).requires_grad_(grad)


def close(ours, theirs, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(ours.detach().numpy() if torch.is_tensor(ours) else ours, theirs, rtol=rtol, atol=atol)


def segment_logprobs(case, arrays, dtype):
    """The differentiated input, and the per-step log-probabilities that follow from it."""
    if case["params"].get("density") == "mse":
        source = tensor(arrays(case, "pred_action"), dtype, grad=True)
        return source, -((source - tensor(arrays(case, "action"), dtype)) ** 2).sum(-1)
    source = tensor(arrays(case, "step_log_probs"), dtype, grad=True)
    return source, source


def preference_terms(case, arrays, dtype):
    """Return (loss, inputs, their gradients' names, accuracy or None) of one stored case."""
    p, ranked = case["params"], case["label_kind"] == "score"
    if case["level"] == "segment advantages":
        names = ["adv"] if ranked else ["adv1", "adv2"]
        inputs = [tensor(arrays(case, n), dtype, grad=True) for n in names]
        if ranked:
            return cpl_ranking_loss(inputs[0], tensor(arrays(case, "score"), dtype), p["lambda"]), inputs, names, None
        label = tensor(arrays(case, "label"), dtype)
        return cpl_loss(*inputs, label, p["lambda"]).mean(), inputs, names, preference_accuracy(*inputs, label)
    source, logprobs = segment_logprobs(case, arrays, dtype)
    ref = tensor(arrays(case, "ref_step_log_probs"), dtype) if p["algorithm"] == "CPL_KL" else None
    scores = p["alpha"] * cpl_score(logprobs, ref_logprobs=ref)
    close(scores, arrays(case, "segment_adv"), *((1e-10, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)))
    name = "pred_action" if p["density"] == "mse" else "step_log_probs"
    if ranked:
        loss, accuracy, use = cpl_ranking_loss(scores, tensor(arrays(case, "score"), dtype), p["lambda"]), None, None
    else:
        label = tensor(arrays(case, "label"), dtype)
        first, second = scores.chunk(2)
        loss, accuracy = cpl_loss(first, second, label, p["lambda"]).mean(), preference_accuracy(first, second, label)
        use = cloned_segments(label, "preferred" if p["bc_data"] == "pos" else "all")
    return loss + p["bc_coeff"] * behavior_cloning_loss(logprobs, use=use), [source], [name], accuracy


@pytest.mark.parametrize("case", PREFERENCE, ids=lambda c: c["id"])
def test_cpl_parity_in_float64(case, preference):
    def arrays(c, name):
        return preference[c["arrays"][name]]

    loss, inputs, names, accuracy = preference_terms(case, arrays, torch.float64)
    close(loss, case["loss"])
    for gradient, name in zip(torch.autograd.grad(loss, inputs), names, strict=True):
        close(gradient, arrays(case, f"grad_{name}"))
    if accuracy is not None:
        close(accuracy, case["accuracy"], rtol=1e-6)


@pytest.mark.parametrize(
    "case", [c for c in PREFERENCE if "float64_only" not in c.get("flags", [])], ids=lambda c: c["id"]
)
def test_cpl_parity_in_float32(case, preference):
    loss, *_ = preference_terms(case, lambda c, name: preference[c["arrays"][name]], torch.float32)
    close(loss.double(), case["loss_float32"], rtol=1e-5)


def test_ranking_denominators_differ_where_losses_underflow(preference):
    """Case d10: 10 of 28 pairs have a loss that does not round to 0; dividing by all pairs is 28 / 10 smaller."""
    case = next(c for c in PREFERENCE if c["id"] == "d10")
    adv, score = (tensor(preference[case["arrays"][k]]) for k in ("adv", "score"))
    official, plain = (cpl_ranking_loss(adv, score, 1.0, d) for d in ("nonzero", "pairs"))
    assert official / plain == pytest.approx(case["pairs_above_diagonal"] / case["denominator"], rel=1e-12)


def repo_inputs(case, repo, side, variant, dtype=torch.float64):
    def get(name):
        return repo[case["inputs"][f"{side}_{name}"]]

    mask = torch.tensor(get("mask"))
    policy = tensor(get("policy_logps"), dtype, grad=True)
    label = tensor(get("behaviour_logps"), dtype) if variant == "repo" else None
    reference = tensor(get("reference_logps"), dtype) if case["uses_reference"] else None
    return policy, label, reference, mask, consecutive_mask(mask)


REPO_RUNS = [(c, e) for c in REPO for e in c["evaluations"]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("case", "run"), REPO_RUNS, ids=[f"{c['id']}-{e['variant']}" for c, e in REPO_RUNS])
def test_repo_parity(case, run, dtype, repo):
    p, keys = case["params"], run["arrays"]
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    target, reference, policies = {}, {}, {}
    for side in ("chosen", "rejected"):
        policy, label, ref, mask, consecutive = repo_inputs(case, repo, side, run["variant"], dtype)
        target[side] = repo_score(policy, consecutive, label)
        close(target[side], repo[keys[f"score_target_{side}"]], **tolerance)
        steps = repo_step_score(policy, consecutive, label)
        stored = repo[keys[f"step_score_target_{side}"]]
        for row, keep, theirs in zip(steps, consecutive, stored, strict=True):
            close(row[keep], theirs[: keep.sum()], **tolerance)
        reference[side] = None if ref is None else cpl_score(ref, consecutive, normalize="mean")
        if ref is not None:
            close(reference[side], repo[keys[f"score_reference_{side}"]], **tolerance)
        if f"dormant_window_score_target_{side}" in keys:
            close(
                repo_score(policy, consecutive, label, start=1),
                repo[keys[f"dormant_window_score_target_{side}"]],
                **tolerance,
            )
        policies[side] = policy
        if side == "chosen":
            sft = repo_sft_loss(policy, mask)
    pairs = repo_loss(*target.values(), *reference.values(), p["alpha"], p["cpl_lambda"], p["ref_coef"])
    close(pairs, repo[keys["pair_loss"]], **tolerance)
    total = pairs.mean() + p["sft_loss_coef"] * sft
    close(total, run["total_loss"], **tolerance)
    if p["sft_loss_coef"]:
        close(sft, run["sft_loss"], **tolerance)
    if dtype == torch.float64:
        for what, value in (("preference", pairs.mean()), ("total", total)):
            gradients = torch.autograd.grad(value, list(policies.values()), retain_graph=True)
            for side, gradient in zip(policies, gradients, strict=True):
                close(gradient, repo[keys[f"grad_{what}_{side}"]])


def test_holes_are_closed_up_unless_their_reading_is_asked_for(repo):
    """Case r7: with interior holes, our score is that of the compacted row, theirs lets holes take tokens' places."""
    case = REPO[7]
    policy, label, _, mask, consecutive = repo_inputs(case, repo, "chosen", "repo")
    compact = [
        repo_score(q[m][None], torch.ones(1, int(m.sum()), dtype=torch.bool), b[m][None])
        for q, b, m in zip(policy, label, mask, strict=True)
    ]
    close(repo_score(policy, mask, label), torch.cat(compact).detach().numpy())
    assert not torch.allclose(repo_score(policy, mask, label), repo_score(policy, consecutive, label))
    assert lookahead_sum(policy, mask, holes="skip").shape == policy.shape
