"""Entropy controls as plain decisions: exact under any split, against the functional layer, settings and refusals."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autotelic import functional as F
from autotelic.controls.clip_b import ClipB
from autotelic.controls.clip_v import ClipV
from autotelic.controls.covariance import ClipCov, KLCov
from autotelic.controls.entropic import Entropic
from autotelic.controls.entropy_control import EntropyControlWarning, UpdateBatch
from autotelic.controls.high_entropy import HighEntropy
from autotelic.controls.metrics import TOP_SHARES, control_metrics, largest
from autotelic.controls.observe import Observe
from autotelic.controls.repo import Repo
from autotelic.controls.stare import Stare
from autotelic.controls.steer import Steer
from autotelic.controls.table import ENGINE_CONTROLS, METHODS, NAMES, entropy_control, read_control
from autotelic.errors import UserError

CONTROLS = {
    "clip_cov": lambda: ClipCov(fraction=0.1, low=0.1, high=9.0),
    "kl_cov": lambda: KLCov(fraction=0.1),
    "observe": Observe,
    "high_entropy": HighEntropy,
    "repo": lambda: Repo(coef=0.05, adapt=True),
    "steer": lambda: Steer(min_weight=0.5),
    "entropic": lambda: Entropic(target=0.5, threshold=0.2),
    "clip_b": lambda: ClipB(mu=0.5),
    "clip_v": lambda: ClipV(mu=0.5, fraction=0.05),
    "stare": lambda: Stare(target=5.0, variant="C2"),
    "aem": lambda: read_control("aem,min_range=0"),
    "ce_gppo": lambda: read_control("ce_gppo"),
    "dppo": lambda: read_control("dppo,high=0.02"),
    "entrocraft": lambda: read_control("entrocraft,low=0.1,high=0.2"),
    "entropy_band": lambda: read_control("entropy_band,coef=0.1"),
    "erc": lambda: read_control("erc,low=0.9"),
    "estr": lambda: read_control("estr,tau=0.05"),
    "lp_reg": lambda: read_control("lp_reg,fraction=0.5,form=code"),
}
AT_THE_LOSS = {"ce_gppo", "dppo", "erc", "estr"}
"""Controls whose choice depends on the policy in training, not on the plan."""


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def make_batch(seed=0, rows=12, width=9, **changes):
    """Random tokens with ties in the log-probabilities, one row without tokens, and NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, width, 7, generator=generator)
    tokens = torch.randint(0, 7, (rows, width), generator=generator)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[3] = 0
    mask = torch.arange(width) < lengths.unsqueeze(1)
    _, expected = F.entropy_discriminator(logits, tokens)
    logprobs = F.token_logprobs(logits, tokens).mul(4).round().div(4)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width)
    holes = torch.where(mask, 0.0, torch.nan)
    log_p = logits.log_softmax(-1)
    proxy = F.proxy_logprobs(logprobs, log_p.amax(-1), F.kept_log_mass(logits, kappa=0.05), kappa=0.05)
    changes = {"proxy": proxy + holes, "total_steps": 10, "group_size": 4} | changes
    return UpdateBatch(
        logprobs=logprobs + holes,
        advantages=advantages + holes,
        mask=mask,
        row_ids=torch.arange(rows),
        step=5,
        seed=0,
        entropy=F.token_entropy(logits) + holes,
        expected=expected + holes,
        **changes,
    )


def rewritten(control, batch):
    """Return the plan and the advantages that follow from it at log-ratio 0.3, in the rows' natural order."""
    batch = replace(batch, prepared=control.at_rollout(batch))
    plan = control.plan(batch)
    now = replace(plan, logprobs=batch.logprobs + 0.3, entropy=batch.entropy * 1.02)
    new = control.rewrite(torch.where(batch.mask, batch.advantages, 0.0), torch.full(batch.mask.shape, 0.3), now)
    order = batch.row_ids.argsort()
    return plan, torch.where(batch.mask, new, 0.0)[order], plan.selected[order]


def test_every_control_is_tested_here():
    assert set(CONTROLS) == set(METHODS)
    assert set(NAMES) == {"none", *CONTROLS, *ENGINE_CONTROLS}


@pytest.mark.parametrize("name", CONTROLS)
def test_row_order_and_padding_do_not_matter(name):
    """Rows permuted, and three more columns of padding on the left: the same advantages on the same tokens."""
    control, batch = CONTROLS[name](), make_batch()
    _, expected, expected_selected = rewritten(control, batch)
    assert bool(torch.isfinite(expected).all())
    if name in AT_THE_LOSS:
        plain = torch.where(batch.mask, batch.advantages, 0.0)
        assert bool((expected != plain).any()) or name == "erc"
    elif name not in ("observe", "entropy_band"):
        assert bool(expected_selected.any())
    order = torch.randperm(len(batch.row_ids), generator=torch.Generator().manual_seed(1))
    fields = ("logprobs", "advantages", "mask", "entropy", "expected", "proxy")
    shuffled = replace(batch, row_ids=batch.row_ids[order], **{f: getattr(batch, f)[order] for f in fields})
    padded = {f: torch.nn.functional.pad(getattr(shuffled, f), (3, 0)) for f in fields}
    _, found, selected = rewritten(control, replace(shuffled, **padded))
    assert torch.equal(selected[:, 3:], expected_selected)
    torch.testing.assert_close(found[:, 3:], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CONTROLS)
def test_degenerate_batches_stay_finite(name):
    """One token; zero advantages; no token at all; bf16 log-probabilities."""
    control = CONTROLS[name]()
    batch = make_batch()
    one = torch.zeros_like(batch.mask)
    one[0, 0] = True
    for changes in (
        {"mask": one},
        {"mask": torch.zeros_like(batch.mask)},
        {"advantages": torch.zeros_like(batch.advantages)},
        {"logprobs": batch.logprobs.bfloat16().float()},
    ):
        changed = replace(batch, **changes)
        plan, advantages, _ = rewritten(control, changed)
        assert bool(torch.isfinite(advantages).all())
        assert all(np.isfinite(value) for value in control_metrics(plan, changed).values())


def test_rewrites_are_those_of_the_functional_layer():
    batch = make_batch()
    a, p, h, m = batch.advantages, batch.logprobs, batch.entropy, batch.mask

    def close(control, expected):
        torch.testing.assert_close(rewritten(control, batch)[1], expected, rtol=1e-6, atol=0)

    close(HighEntropy(fraction=0.4), F.high_entropy(a, h, m, fraction=0.4)[0])
    close(Repo(coef=0.1, rescale=False), F.repo(a, p, h, m, coef=0.1, rescale=False))
    close(Steer(min_weight=0.7), F.steer(a, p, p, h, m, min_weight=0.7))
    close(ClipB(mu=1.0), F.clip_b(a, p, h, m, mu=1.0)[0])
    close(Stare(target=0.0), torch.where(m, a, 0.0))  # the gate is shut


def test_entropic_remembers_its_error():
    """Target .5, K_p = 0: alpha is K_i times the sum of the errors of the updates before."""
    batch = make_batch()
    error = float(F.masked_mean(batch.entropy, batch.mask)) - 0.5
    control = Entropic(target=0.5, threshold=0.0, proportional=0.0, integral=0.1)
    first = control.plan(batch)
    assert first.state["alpha"] == 0.0
    assert first.state["accumulated"] == pytest.approx(error)
    second = control.plan(replace(batch, state=first.state))
    assert second.state["alpha"] == pytest.approx(0.1 * error)
    assert second.state["accumulated"] == pytest.approx(2 * error)


def test_repo_doubles_its_coefficient_below_the_first_entropy():
    batch = make_batch()
    control = Repo(coef=0.1, adapt=True)
    first = control.plan(batch)
    lower = replace(batch, entropy=batch.entropy / 2, state=first.state)
    assert control.plan(lower).state["coef"] == 2 * first.state["coef"]
    assert control.plan(replace(lower, entropy=batch.entropy * 2)).state["coef"] == first.state["coef"] / 2


def test_clip_cov_leaves_out_what_ppo_clips():
    """As in the authors' code, clipped tokens are no candidates: the quota goes to others."""
    batch = make_batch()
    control = ClipCov(fraction=0.1, low=0.1, high=9.0)
    before = control.plan(batch)
    after = control.plan(replace(batch, clipped=before.selected))
    assert not bool((after.selected & before.selected).any())
    assert int(after.selected.sum()) == after.requested == before.requested


def test_metrics_against_numpy():
    batch = make_batch()
    plan = KLCov(fraction=0.2).plan(batch)
    metrics = control_metrics(plan, batch)
    values = np.sort(plan.covariance[batch.mask].numpy().astype(np.float64))[::-1]
    for name, share in TOP_SHARES.items():
        assert metrics[f"covariance/top_{name}"] == pytest.approx(values[: max(int(share * len(values)), 1)].mean())
    assert metrics["advantage/std"] == pytest.approx(float(batch.advantages[batch.mask].numpy().std()), rel=1e-5)
    likely = batch.logprobs >= batch.logprobs[batch.mask].median()
    share = float((plan.selected & likely & (batch.advantages > 0)).sum()) / float(plan.selected.sum())
    assert metrics["selected/positive_likely"] == pytest.approx(share)
    assert metrics["selected/realised"] == plan.requested == int(plan.selected.sum())


def test_covariance_by_prompt_accuracy():
    """Two rows of accuracy 1/8, two of 1/2, the others all wrong: two bins, each the mean of its rows' tokens."""
    batch = make_batch(accuracy=torch.tensor([0.125] * 2 + [0.5] * 2 + [0.0] * 8))
    plan = Observe().plan(batch)
    metrics = control_metrics(plan, batch)
    rows = slice(0, 2)
    assert metrics["covariance/accuracy_low"] == pytest.approx(float(plan.covariance[rows][batch.mask[rows]].mean()))
    assert "covariance/accuracy_mid" in metrics and "covariance/accuracy_high" not in metrics


def test_largest_counts_ties():
    ranked, sums = largest(torch.tensor([1.0, 3.0, 3.0, 2.0]), [1, 2, 3, 4])
    assert ranked.tolist() == [3.0, 3.0, 2.0, 1.0]
    assert sums.tolist() == [3.0, 6.0, 8.0, 9.0]


def config(**changes):
    return SimpleNamespace(
        **{"epsilon": 0.2, "epsilon_high": None, "entropy_coef": 0.0, "entropy_target": 0.2, "loss_type": "dapo"}
        | changes
    )


def apply(name, settings, args):
    read_control({"name": name} | settings).apply(args)


def test_engine_controls_write_trl_fields():
    args = config()
    apply("clip_higher", {}, args)
    assert args.epsilon_high == 0.28
    args = config()
    apply("adaptive_entropy", {"target": 0.4}, args)
    assert (args.use_adaptive_entropy, args.entropy_target) == (True, 0.4)
    args = config()
    apply("cispo", {}, args)
    assert (args.loss_type, args.epsilon_high) == ("cispo", 5.0)
    apply("clip_lower", {}, config(epsilon=0.1, epsilon_high=0.2))
    with pytest.raises(UserError, match="tighter"):
        apply("clip_lower", {}, config())
    with pytest.raises(UserError, match="no setting 'fraction'"):
        apply("cispo", {"fraction": 0.1}, config())


def test_gspo_sets_the_paper_values():
    from trl import GRPOConfig

    args = GRPOConfig(use_cpu=True, bf16=False, report_to="none")
    apply("gspo", {}, args)
    assert (args.importance_sampling_level, args.epsilon, args.epsilon_high) == ("sequence", 3e-4, 4e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Repo(), "repo needs coef"),
        (lambda: Entropic(), "entropic needs target"),
        (lambda: Entropic(target=0.1), "needs threshold"),
        (lambda: Entropic(target=0.1, threshold=1.5), "probability"),
        (lambda: HighEntropy(fraction=1.5), r"\(0, 1\]"),
        (lambda: Steer().check(2, "sequence"), "single tokens"),
        (lambda: entropy_control("clip_higher"), "setting of TRL"),
        (lambda: entropy_control("stair"), "did you mean 'stare'"),
        (lambda: entropy_control("steer", min_wait=1), "did you mean 'min_weight'"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_silencing_control_works_under_a_shared_ratio():
    HighEntropy().check(1, "sequence")  # silencing works under a shared ratio


def test_a_warning_names_the_users_line(tmp_path):
    """Not a generated `__init__` of a dataclass: in a process without the tests' type checks, which wrap it."""
    import subprocess
    import sys

    script = tmp_path / "mine.py"
    script.write_text("from autotelic.controls.covariance import KLCov\n\nKLCov(fraction=0.5)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert f"{script}:3: EntropyControlWarning" in done.stderr
