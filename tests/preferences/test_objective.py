"""The objective: what it equals, by hand and against the authors' arrays, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.preferences.objective import objective, read_objective
from autotelic.preferences.pairs import SIDES

GOLDEN = Path(__file__).parent.parent / "golden"


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
        ahead = ppl.observed_lookahead(ppl.divergences(logprobs, labels), mask, mask)
        scores = ppl.scores(logprobs, ahead, mask, reference)
        losses = ppl.losses(scores, settings["alpha"])
        np.testing.assert_allclose(losses.detach(), arrays[run["arrays"]["pair_loss"]], rtol=1e-10, atol=1e-12)
        total = losses.mean() + ppl.sft_coef * F.repo_sft_loss(logprobs.chunk(2)[0], masks[0])
        np.testing.assert_allclose(total.item(), run["total_loss"], rtol=1e-10)
        (gradient,) = torch.autograd.grad(total, logprobs)
        wanted = np.concatenate([arrays[run["arrays"][f"grad_total_{side}"]] for side in SIDES])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-12)
    assert seen >= 4


def test_kl_by_hand():
    """Two judged tokens and one after them; mu = (1/2, 1/2), pi = (1/4, 3/4): d = log 2 - log 3 / 2 = .1438 everywhere.

    Token 1 looks at tokens 2 and 3, token 2 at token 3: S = sum log pi - 3 d; each divided by its terms, - 2 d; the
    tail alone, token 3, - d; inside the segment, token 2, - d.
    """
    pi = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    top = pi.expand(1, 3, 2)
    label = {"label_top_logprobs": torch.full((1, 3, 2), 0.5, dtype=torch.float64).log()}
    logprobs, response = pi[[0, 1, 1]].unsqueeze(0), torch.ones(1, 3, dtype=torch.bool)
    segment = torch.tensor([[True, True, False]])
    ppl = objective("ppl", normalize="sum")
    d = ppl.divergences(logprobs, label, top)
    assert d[0].tolist() == pytest.approx([math.log(2) - math.log(3) / 2] * 3)
    for settings, times in (({}, 3), ({"weights": "mean"}, 2), ({"weights": "tail"}, 1), ({"future": "in_segment"}, 1)):
        ppl = objective("ppl", normalize="sum", **settings)
        score = ppl.scores(logprobs, ppl.observed_lookahead(d, segment, response), segment)
        assert score.item() == pytest.approx(math.log(0.25) + math.log(0.75) - times * d[0, 0].item())
    dropped = objective("ppl", normalize="sum", label_entropy="drop").divergences(logprobs, label, top)
    assert dropped[0].tolist() == pytest.approx([math.log(2) - math.log(3) / 2 + math.log(2)] * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objective("pppl"), "did you mean 'ppl'"),
        (lambda: objective("ppl", divergence="k1"), "divergence is 'k1', not one of kl"),
        (lambda: objective("ppl", gama=1.0), "did you mean 'gamma'"),
        (lambda: objective("ppl", future="exact"), "cannot be enumerated"),
        (lambda: objective("ppl", weights="tail", gamma=0.9), "use gamma=1"),
        (lambda: objective("ppl", rollouts=0), "at least 1"),
        (lambda: read_objective("ppl,bias"), "no value"),
        (lambda: objective("ppl", bias=0.0), "lambda"),
        (lambda: objective("ppl", coef=-1.0), "rewards bad behaviour"),
        (lambda: objective("ppl", gamma=1.5), "discount"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_expected_lookahead_by_hand():
    """Two responses of n = 3 and 2 judged tokens, K = 2 continuations each, gamma 1/2.

    regret: n times the mean of sum_j gamma^j d_j: 3 (1/2 + 1/4 . 2 + 1/2 . 4) / 2 = 4.5; 2 (0 + 1/2 . 8) / 2 = 4.
    tail, gamma 1: the mean of sums: (1 + 2 + 4) / 2 = 3.5 and 8 / 2 = 4.
    """
    d = torch.tensor([[9.0, 1.0, 2.0], [9.0, 9.0, 4.0], [9.0, 9.0, 9.0], [9.0, 8.0, 9.0]])
    rollout = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    judged = torch.tensor([3.0, 2.0])
    regret = objective("ppl", future="expected", gamma=0.5).expected_lookahead(d, rollout, judged)
    assert regret.tolist() == [4.5, 4.0]
    first = objective("ppl", future="expected", gamma=0.5, horizon=1).expected_lookahead(d, rollout, judged)
    assert first.tolist() == [3 * (0.5 + 2) / 2, 4.0]
    tail = objective("ppl", future="expected", weights="tail").expected_lookahead(d, rollout, judged)
    assert tail.tolist() == [3.5, 4.0]


def test_expected_lookahead_is_the_divergence_of_continuations():
    """Two binary tokens after the prefix: averaged over their four values under mu, it is KL(mu || pi) of the pair."""
    generator = torch.Generator().manual_seed(0)
    mu, pi = (
        torch.rand(3, 2, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2)
    )  # root, after 0, 1
    kl = (mu * (mu / pi).log()).sum(-1)
    joint_mu, joint_pi = ((p[0][:, None] * p[1:]).flatten() for p in (mu, pi))
    rows = torch.stack([torch.stack([kl[0], kl[1 + first]]) for first in (0, 0, 1, 1)])
    ppl = objective("ppl", future="expected", weights="tail")
    each = ppl.expected_lookahead(rows, torch.ones(4, 2, dtype=torch.bool), torch.ones(4, dtype=torch.float64))
    wanted = (joint_mu * (joint_mu / joint_pi).log()).sum()
    torch.testing.assert_close((joint_mu * each).sum(), wanted)


def test_specs_are_read():
    """Settings of the look-ahead and of the objective are written in one line, and mean what the functions take."""
    ppl = read_objective("ppl,future=expected,rollouts=2,horizon=8,bias=0.5")
    assert (ppl.lookahead.future, ppl.rollouts, ppl.lookahead.horizon, ppl.bias) == ("expected", 2, 8, 0.5)
    assert read_objective({"name": "cpl", "ref_coef": 1}) == objective("cpl", ref_coef=1.0)
    assert read_objective("ppl,normalize=sum,horizon=0").is_dpo and objective("dpo").is_dpo
    assert not objective("cpl").is_dpo and not objective("dpo", sft_coef=1.0).is_dpo


def test_exports_are_not_hidden_by_modules_of_their_name():
    """A submodule that is imported becomes an attribute of the package, and would stand before a lazy export."""
    from autotelic import preferences

    modules = {path.stem for path in Path(preferences.__file__).parent.glob("*.py")}
    assert not modules & set(preferences.__all__)
    assert all(callable(getattr(preferences, name)) for name in preferences.__all__)
