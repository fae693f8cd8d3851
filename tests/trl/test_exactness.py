"""What a control and a prompt mask do under each of TRL's losses, against losses written out in float64.

The references are written from the papers, loss by loss, and differentiated by torch. The table of
`docs/papers/entropy_mechanism.md` says for each loss and ratio what is exact and what is refused: each cell is a case.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch
from tiny_trainer import made_up, made_up_trainer, update_on

from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.errors import UserError
from autotelic.trl import ClipCov, KLCov, entropy_control, with_entropy_control, with_label_free_rewards
from autotelic.trl.label_free import TOKEN_LOSSES

LOSSES = ("grpo", "dapo", "bnpo", "dr_grpo", "luspo", "sapo", "cispo", "vespo")
EPSILON, EPSILON_HIGH, LENGTH = 0.2, 0.3, 12
DOCS = Path(__file__).parents[2] / "docs" / "papers"


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def surrogate(loss_type, leaf, log_ratio, ratio, a):
    """The loss of every token; `ratio` is (B, T) or (B, 1)."""
    if loss_type == "cispo":
        return -ratio.detach().clamp(max=EPSILON_HIGH) * a * leaf
    if loss_type == "sapo":
        tau = torch.where(a > 0, 1.0, 1.05)
        return -4 / tau * (tau * (ratio - 1)).sigmoid() * a
    if loss_type == "vespo":
        k, lam = torch.where(a >= 0, 2.0, 3.0), torch.where(a >= 0, 3.0, 2.0)
        log_w = log_ratio.detach().sum(1, keepdim=True).clamp(-18.420680743952367, 20)
        return -(lam + k * log_w - lam * log_w.exp()).exp() * a * leaf
    return -(ratio * a).minimum(ratio.clamp(1 - EPSILON, 1 + EPSILON_HIGH) * a)


def reduced(loss_type, per_token, mask):
    """TRL's reductions, as its documentation states them."""
    per_token = torch.where(mask, per_token, 0.0)
    rows, tokens = mask.shape[0], mask.sum()
    if loss_type in ("grpo", "sapo"):
        return (per_token.sum(1) / mask.sum(1).clamp(min=1)).sum() / rows
    if loss_type == "dr_grpo":
        return per_token.sum() / (rows * LENGTH)
    if loss_type == "luspo":
        return per_token.sum() / rows
    return per_token.sum() / tokens


def reference(data, loss_type, level, *, silenced=None, penalised=None, beta=0.0, advantages=None, corrected=True):
    """Gradient with respect to the log-probabilities, in float64."""
    logprobs, old, a, mask = data[:4]
    leaf = logprobs.double().requires_grad_()
    a = (a.double().unsqueeze(1) if advantages is None else advantages.double()).expand(mask.shape)
    held = leaf if silenced is None else torch.where(silenced, leaf.detach(), leaf)
    log_ratio = torch.where(mask, held - old.double(), 0.0)
    token = log_ratio.exp()
    sequence = (log_ratio.sum(1) / mask.sum(1).clamp(min=1)).exp().unsqueeze(1).expand(mask.shape)
    per_token = surrogate(loss_type, held, log_ratio, token if level == "token" else sequence, a)
    if penalised is not None:
        per_token = per_token + penalised * (leaf - old.double()).abs()
    if beta:
        distance, whole = data[4].double() - leaf, torch.where(mask, leaf - old.double(), 0.0)
        ratio = whole if level == "token" else whole.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        kl = (distance.exp() - distance - 1) * (ratio.exp() if corrected else 1.0)  # by default TRL corrects it
        per_token = per_token + beta * kl
    return torch.autograd.grad(reduced(loss_type, per_token, mask), leaf)[0]


def tensors():
    """Rows of several lengths, ratios on both sides of the clip, one row without an advantage; and a reference."""
    logprobs, old, advantages, mask = made_up(seed=4, rows=8, width=LENGTH)
    mask[:, 0] = True
    advantages[3] = 0.0
    return logprobs, old, advantages, mask, logprobs - 0.3 * torch.rand(mask.shape)


def make(make_trainer, control, level, beta=0.0, **settings):
    settings = {"epsilon": EPSILON, "epsilon_high": EPSILON_HIGH, "max_completion_length": LENGTH} | settings
    wrap = settings.pop("wrap", with_entropy_control)
    given = {} if control is None else {"entropy_control": control}
    trainer = made_up_trainer(make_trainer, 8, wrap, importance_sampling_level=level, **given, **settings)
    trainer.beta = beta  # set afterwards, TRL loads no reference model: the tensors have its log-probabilities
    return trainer


def gradient(trainer, data, loss_type, **extra):
    """The trainer's own gradient under another of TRL's losses."""
    trainer.loss_type = loss_type
    for part in trainer.parts:
        part.check()
    extra = {"ref_per_token_logps": data[4]} | extra
    return update_on(trainer, *data[:4], **extra)[1:]


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-7)


SILENCING = {
    "clip_cov": lambda: ClipCov(fraction=0.3, low=-9.0, high=9.0),
    "high_entropy": lambda: entropy_control("high_entropy", fraction=0.4),
}


@pytest.mark.parametrize(("beta", "corrected"), [(0.0, True), (0.5, True), (0.5, False)])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", SILENCING)
def test_silenced_tokens_leave_the_ratio_and_keep_their_reference_kl(make_trainer, name, level, beta, corrected):
    data = tensors()
    trainer = make(make_trainer, SILENCING[name](), level, beta=beta, use_bias_correction_kl=corrected)
    entropies = {"rollout_entropy": torch.rand(data[3].shape, generator=torch.Generator().manual_seed(0))}
    for loss_type in LOSSES:
        found, inputs = gradient(trainer, data, loss_type, **entropies)
        selected = inputs["plan"].selected
        assert 0 < int(selected.sum()) < int(data[3].sum())
        close(found, reference(data, loss_type, level, silenced=selected, beta=beta, corrected=corrected))


def test_at_ratio_one_the_sequence_level_is_the_token_level(make_trainer):
    """First update, loss_type=grpo: unselected tokens keep the whole of their gradient (it was .84 at 40 %)."""
    logprobs, _, advantages, mask, ref = tensors()
    data = (logprobs, logprobs.clone(), advantages, mask, ref)
    found = {}
    for level in ("token", "sequence"):
        trainer = make(make_trainer, ClipCov(fraction=0.4, low=-9.0, high=9.0), level)
        found[level], inputs = gradient(trainer, data, "grpo")
        assert int(inputs["plan"].selected.sum()) == int(0.4 * mask.sum())
    torch.testing.assert_close(found["sequence"], found["token"], rtol=1e-5, atol=1e-8)


def test_kl_covs_penalty_is_whole_whatever_the_loss(make_trainer):
    """Also with A = 0, and where PPO clips the advantage away."""
    data = tensors()
    trainer = make(make_trainer, Everywhere(fraction=0.4, coef=0.7), "token")
    for loss_type in LOSSES:
        found, inputs = gradient(trainer, data, loss_type)
        selected = inputs["plan"].selected
        assert bool(selected[3].any())
        close(found, reference(data, loss_type, "token", penalised=0.7 * selected))


class Everywhere(KLCov):
    """Selects by place, so that rows without an advantage are penalised too."""

    def plan(self, batch):
        plan = super().plan(batch)
        return type(plan)(batch.mask & (torch.arange(batch.mask.shape[1]) % 2 == 0), plan.covariance, plan.requested)


@pytest.mark.parametrize("name", ["steer", "repo"])
def test_rewritten_advantages_stand_where_trls_stood(make_trainer, name):
    data = tensors()
    settings = {"steer": {"min_weight": 0.3}, "repo": {"coef": 0.4}}[name]
    trainer = make(make_trainer, entropy_control(name, **settings), "token")
    entropies = {"rollout_entropy": torch.rand(data[3].shape, generator=torch.Generator().manual_seed(0))}
    for loss_type in LOSSES:
        found, inputs = gradient(trainer, data, loss_type, **entropies)
        assert bool(inputs["plan"].selected.any())
        close(found, reference(data, loss_type, "token", advantages=inputs["plan"].advantages))


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_prompt_that_is_left_out_leaves_the_mean(make_trainer, level, beta):
    """The policy term is that of the remaining rows alone; the reference KL is TRL's, over all."""
    data = tensors()
    keep = torch.tensor([True, True, False, True, True, False, True, True])
    data = (data[0], data[1], data[2] * keep, *data[3:])
    trainer = make(make_trainer, None, level, wrap=with_label_free_rewards, beta=beta)
    kept = tuple(x[keep] for x in data)
    for loss_type in LOSSES:
        found, _ = gradient(trainer, data, loss_type, row_in_loss=keep)
        policy = torch.zeros_like(found, dtype=torch.float64)
        policy[keep] = reference(kept, loss_type, level)
        whole = reference(data, loss_type, level, beta=beta) - reference(data, loss_type, level)
        close(found, policy + whole)


def test_masked_prompts_and_kl_cov_together(make_trainer):
    """The penalty belongs to the policy term: its mean is over what remains too, and masked rows are not selected."""
    data = tensors()
    keep = torch.tensor([True, True, False, True, True, False, True, True])
    data = (data[0], data[1], data[2] * keep, *data[3:])
    wrap = lambda cls: with_entropy_control(with_label_free_rewards(cls))  # noqa: E731
    trainer = make(make_trainer, KLCov(fraction=0.3), "token", wrap=wrap)
    for loss_type in LOSSES:
        found, inputs = gradient(trainer, data, loss_type, row_in_loss=keep)
        plan = inputs["plan"]
        assert plan.requested == int(0.3 * data[3][keep].sum()) and not bool(plan.selected[~keep].any())
        expected = torch.zeros_like(found, dtype=torch.float64)
        kept = tuple(x[keep] for x in data)
        expected[keep] = reference(kept, loss_type, "token", penalised=1.0 * plan.selected[keep])
        close(found, expected)


def table(page, width):
    """The rows of the page's table of losses."""
    text = (DOCS / page).read_text()
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if re.match(r"^\| `\w+` \|", row)]
    rows = [[cell.strip(" `") for cell in row] for row in rows if row[0].strip(" `") in (*LOSSES, "rloo")]
    assert [row[0] for row in rows] == [*LOSSES, "rloo"] and {len(row) for row in rows} == {width}
    return {row[0]: row[1:] for row in rows}


def test_the_table_of_the_entropy_mechanism(make_trainer):
    """What it calls exact is what the tests above (and `test_rloo`) compare; what it calls refused is refused."""
    rows = table("entropy_mechanism.md", 5)
    assert rows.pop("rloo") == ["-", "-", "exact", "refused"]
    assert all(row == ["exact", "exact", "exact", "refused"] for row in rows.values())
    with pytest.raises(UserError, match="single tokens"):
        make(make_trainer, KLCov(fraction=0.3), "sequence")


def test_the_table_of_empo(make_trainer):
    rows = table("empo.md", 4)
    assert rows.pop("rloo") == ["responses", "-", "exact"]
    for loss_type, (over, *cells) in rows.items():
        assert cells == ["exact", "exact"]
        assert over.split()[0] == ("tokens" if loss_type in (*TOKEN_LOSSES, "bnpo") else "responses")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"delta": 2.0}, "delta=2"), ({"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold")],
)
def test_what_would_drop_kl_covs_penalty_is_refused(make_trainer, settings, message):
    with pytest.raises(UserError, match=message):
        make(make_trainer, KLCov(fraction=0.3), "token", **settings)
