"""Losses and gradients of the reference implementations, on stored arrays (sources in tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autotelic.compat.policy_losses import (
    PRESETS,
    ParitySettings,
    clip_cov_candidates,
    kl_cov_selection,
    policy_loss,
    preset,
    ratio_clipped,
)
from autotelic.functional import (
    clipped_surrogate,
    entropy_minimization_loss,
    entropy_minimization_official,
    group_advantages,
    kl_cov,
    reduce_tokens,
    token_covariance,
    token_entropy,
)
from autotelic.functional.entropy import official_positions

GOLDEN = Path(__file__).parents[1] / "golden"
POLICY = json.loads((GOLDEN / "policy_losses.json").read_text())["cases"]
ENTROPY = json.loads((GOLDEN / "entropy_minimization.json").read_text())["cases"]
EVALUATIONS = [(c, e) for c in POLICY for e in c["evaluations"]]


@pytest.fixture(scope="module")
def policy_arrays():
    with np.load(GOLDEN / "policy_losses.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def entropy_arrays():
    with np.load(GOLDEN / "entropy_minimization.npz") as arrays:
        return dict(arrays)


def inputs(arrays, case, dtype=torch.float64):
    loaded = {name: torch.from_numpy(arrays[key]) for name, key in case["inputs"].items()}
    floats = [loaded[name].to(dtype) for name in ("log_prob", "old_log_prob", "advantages")]
    return *floats, loaded["response_mask"]


def parity_settings(case, evaluation):
    p = {**case["params"], **evaluation.get("params_override", {})}
    return ParitySettings(
        clip_low=p["clip_ratio_low"],
        clip_high=p["clip_ratio_high"],
        dual_clip=p["clip_ratio_c"],
        clip_cov_fraction=p["clip_cov_ratio"],
        clip_cov_low=p["clip_cov_lb"],
        clip_cov_high=p["clip_cov_ub"],
        kl_cov_fraction=p["kl_cov_ratio"],
        kl_cov_coef=p["ppo_kl_coef"],
    )


@pytest.mark.parametrize(("case", "evaluation"), EVALUATIONS, ids=[f"{c['id']}-{e['label']}" for c, e in EVALUATIONS])
def test_policy_losses_and_gradients(policy_arrays, case, evaluation):
    method = evaluation["impl"].split(":")[1]
    chosen = parity_settings(case, evaluation)
    stored = torch.from_numpy(policy_arrays[evaluation["arrays"]["selected"]])
    for dtype, loss_key, loss_tolerance, gradient_tolerance in [
        (torch.float64, "loss", 1e-9, 1e-11),
        (torch.float32, "loss_float32", 1e-6, 1e-7),
    ]:
        new, old, advantages, mask = inputs(policy_arrays, case, dtype)
        new.requires_grad_()
        # Where all covariances are equal up to rounding the reference picks by chance: its choice is put in.
        arbitrary = "selection_arbitrary" in evaluation["flags"]
        generator = torch.Generator().manual_seed(evaluation["torch_seed"])
        loss = policy_loss(
            method,
            new,
            old,
            advantages,
            mask,
            chosen,
            generator=generator,
            selected=stored if arbitrary else None,
        )
        loss.backward()
        assert loss.item() == pytest.approx(evaluation[loss_key], abs=loss_tolerance, rel=1e-5)
        expected = policy_arrays[evaluation["arrays"]["grad"]]
        np.testing.assert_allclose(new.grad.double(), expected, atol=gradient_tolerance, rtol=0)
        assert (new.grad[~mask] == 0).all()


@pytest.mark.parametrize("case", POLICY, ids=[c["id"] for c in POLICY])
def test_selections_candidates_and_covariance(policy_arrays, case):
    new, old, advantages, mask = inputs(policy_arrays, case)
    for evaluation in case["evaluations"]:
        chosen, stored = parity_settings(case, evaluation), evaluation["arrays"]
        bounds = {"clip_low": chosen.clip_low, "clip_high": chosen.clip_high}
        selected = policy_arrays[stored["selected"]]
        method = evaluation["impl"].split(":")[1]
        if "cov" in stored:
            theirs = torch.from_numpy(policy_arrays[stored["cov"]]).nan_to_num(0.0)
            torch.testing.assert_close(token_covariance(new, advantages, mask), theirs, atol=1e-6, rtol=1e-6)
        if method == "clip_cov":
            candidates = clip_cov_candidates(new, old, advantages, mask, chosen)
            np.testing.assert_array_equal(candidates, policy_arrays[stored["candidates"]])
            np.testing.assert_array_equal(
                ratio_clipped(new, old, advantages, mask, **bounds), policy_arrays[stored["clipped_by_ratio"]]
            )
        elif method == "kl_cov":
            ours = kl_cov_selection(new, advantages, mask, chosen)
            assert ours.sum() == evaluation["n_selected"]
            if "selection_arbitrary" not in evaluation["flags"]:
                np.testing.assert_array_equal(ours, selected)
        elif method == "ppo":
            np.testing.assert_array_equal(ratio_clipped(new, old, advantages, mask, **bounds), selected)


@pytest.mark.parametrize("case", [c for c in POLICY if c["id"] not in ("c07", "c08")], ids=lambda c: c["id"])
def test_the_advantage_rewrite_has_the_reference_gradient(policy_arrays, case):
    """Our public ``kl_cov`` with the parity options, under the unclipped surrogate, against both references."""
    new, old, advantages, mask = inputs(policy_arrays, case)
    for evaluation in (e for e in case["evaluations"] if e["impl"].endswith("kl_cov")):
        chosen = parity_settings(case, evaluation)
        rewritten, selected = kl_cov(
            advantages,
            new - old,
            token_covariance(new, advantages, mask),
            mask,
            fraction=chosen.kl_cov_fraction,
            coef=chosen.kl_cov_coef,
            positive_only=False,
            at_least_one=True,
        )
        x = new.clone().requires_grad_()
        per_token = clipped_surrogate(x, old, rewritten, clip_low=None, clip_high=None, mask=mask)
        reduce_tokens(per_token, mask, denominator=mask.sum()).backward()
        assert selected.sum() == evaluation["n_selected"]
        np.testing.assert_allclose(x.grad, policy_arrays[evaluation["arrays"]["grad"]], atol=1e-11)


def test_group_advantages_are_those_of_grpo(policy_arrays):
    checked = 0
    for case in POLICY:
        if case["advantage_kind"] != "group":
            continue
        loaded = {name: policy_arrays[key] for name, key in case["inputs"].items()}
        rewards = torch.from_numpy(loaded["rewards"]).view(-1, case["group_size"])
        np.testing.assert_array_equal(
            loaded["group_index"].reshape(-1, case["group_size"]).min(1), loaded["group_index"][:: case["group_size"]]
        )
        ours = group_advantages(rewards).flatten()
        mask, stored = loaded["response_mask"], loaded["advantages"]
        for row in range(len(ours)):
            np.testing.assert_allclose(stored[row][mask[row]], ours[row], atol=2e-5)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("case", ENTROPY, ids=[c["id"] for c in ENTROPY])
def test_entropy_minimisation_of_the_official_script(entropy_arrays, case):
    a = {name: torch.from_numpy(entropy_arrays[key]) for name, key in case["arrays"].items()}
    logits = a["logits"].double().requires_grad_()
    loss = entropy_minimization_official(
        logits, a["ids"], a["prompt_lengths"], pad_id=case["pad_id"], temperature=case["temperature"]
    )
    loss.backward()
    assert loss.item() == pytest.approx(case["official_loss"], abs=1e-10)
    torch.testing.assert_close(logits.grad, a["official_grad"], atol=1e-12, rtol=0)
    positions = official_positions(a["ids"], a["prompt_lengths"], case["pad_id"])
    np.testing.assert_array_equal(positions, a["official_mask"])


@pytest.mark.parametrize("case", ENTROPY, ids=[c["id"] for c in ENTROPY])
def test_entropy_minimisation_on_the_right_positions(entropy_arrays, case):
    a = {name: torch.from_numpy(entropy_arrays[key]) for name, key in case["arrays"].items()}
    columns = torch.arange(case["shape"][1])
    generated = (columns >= case["prompt_width"]) & (
        columns < case["prompt_width"] + a["generated_lengths"].unsqueeze(-1)
    )
    for dtype, loss_tolerance, gradient_tolerance in [(torch.float64, 1e-10, 1e-12), (torch.float32, 1e-5, 1e-6)]:
        logits = a["logits"].to(dtype).requires_grad_()
        # The logits at t - 1 predict the token at t.
        loss = entropy_minimization_loss(logits[:, :-1], generated[:, 1:], case["temperature"])
        loss.backward()
        assert loss.item() == pytest.approx(case["corrected_loss"], abs=loss_tolerance, rel=loss_tolerance)
        np.testing.assert_allclose(logits.grad.double(), a["corrected_grad"], atol=gradient_tolerance)
        assert generated.sum() == case["corrected_token_count"]
    per_token = token_entropy(a["logits"].double()[:, :-1], case["temperature"])
    expected = a["corrected_token_entropy"][:, 1:]
    torch.testing.assert_close(per_token[generated[:, 1:]], expected[generated[:, 1:]], atol=1e-12, rtol=0)


def test_presets_hold_the_published_numbers():
    assert preset("paper_7b").kl_cov_fraction == 2e-3
    assert preset("paper_32b").kl_cov_fraction == 2e-4
    assert preset("verl_default").kl_cov_coef == 0.1
    assert {p.clip_cov_fraction for p in PRESETS.values()} == {2e-4}
    with pytest.raises(ValueError, match="paper_7b"):
        preset("paper_7")
