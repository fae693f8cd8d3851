"""Entropy control on TRL's AsyncGRPOTrainer: its own `compute_loss`, with a stubbed forward pass, against float64.

What runs for real: TRL's loss, its metrics, our choice over the update and our correction. What is stubbed: the model
(a table of logits per packed position, since the real forward needs a FlashAttention kernel), vLLM and the worker.
"""

import math
import pickle
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tiny_trainer import logged

from autotelic import rewards
from autotelic.controls.aem import Aem
from autotelic.controls.covariance import ClipCov, KLCov
from autotelic.controls.dppo import Dppo
from autotelic.controls.high_entropy import HighEntropy
from autotelic.controls.table import METHODS
from autotelic.errors import UserError
from autotelic.trl.async_seam import check_served, with_async_entropy_control

pytestmark = [
    pytest.mark.trl_1_16,
    pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning"),  # large fractions
]

LOW, HIGH = 0.2, 0.28
INDEX = [[0, 1, 2, 0, 3, 4, 0, 5], [0, 1, 0, 2, 3]]
"""Packed position of each trained token: the first one of a row belongs to several responses."""


class Table(torch.nn.Module):
    """Logits for each packed position, and the token that stands there."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.nn.Parameter(torch.randn(6, 5, generator=generator, dtype=torch.float64))
        self.targets = torch.randint(5, (6,), generator=generator)

    def forward(self, input_ids, **_):
        logp = self.logits.log_softmax(-1)[: input_ids.shape[1]]
        picked = logp.gather(-1, self.targets[: input_ids.shape[1], None])[:, 0]
        return SimpleNamespace(log_probs=picked[None], entropy=-(logp.exp() * logp).sum(-1)[None])


def micro_batches():
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in INDEX:
        n, positions = len(index), max(index) + 1
        row = {
            "input_ids": torch.zeros(1, positions, dtype=torch.long),
            "position_ids": torch.arange(positions)[None],
            "shift_labels": torch.zeros(1, positions, dtype=torch.long),
            "attention_mask": torch.ones(1, positions, dtype=torch.long),
            "token_index": torch.tensor([[*index, -1, -1]]),
            "old_log_probs": torch.cat([-2 * torch.rand(1, n, generator=generator), torch.zeros(1, 2)], 1).double(),
            "advantages": torch.cat([torch.randn(1, n, generator=generator), torch.zeros(1, 2)], 1).double(),
            "segment_id": torch.tensor([[*[0] * (n - 2), 1, 1, 0, 0]]),
            "global_n_tokens": torch.tensor([float(n)]),
            "global_n_forward_tokens": torch.tensor([float(positions)]),
            "mean_seq_len": torch.tensor([float(n)]),
            "tree_max_seqlens": torch.tensor([[1, 1]]),
        }
        row |= {
            f"tree_{key}": torch.zeros(1, 1, dtype=torch.long) for key in ("kv_index", "cu_seqlens_q", "cu_seqlens_k")
        }
        found.append(row)
    return found


@pytest.fixture
def make_trainer(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.async_grpo import AsyncGRPOTrainer

    class Bare(AsyncGRPOTrainer):
        """TRL's trainer without its constructor, which starts a model, a server and a worker."""

        def __init__(self):
            self.model, self.epsilon_low, self.epsilon_high, self.aux_loss_enabled = Table(), LOW, HIGH, False
            one = {"reduce": lambda x, **_: x, "gather": lambda x: x.reshape(1)}
            self.accelerator = SimpleNamespace(num_processes=1, process_index=0, **one)
            self.current_gradient_accumulation_steps = 2
            self.args = SimpleNamespace(gradient_accumulation_steps=2)
            self.state = SimpleNamespace(global_step=0, max_steps=10)
            self._metrics = {"train": defaultdict(list)}
            for name in ("forward_tokens", "trained_tokens", "seq_len_weighted", "samples", "forward_s"):
                setattr(self, f"_step_{name}", 0.0)

        def _get_num_items_in_batch(self, batch_samples, device):
            return None

    return lambda control=None, coef=0.0: with_async_entropy_control(Bare)(entropy_control=control, entropy_coef=coef)


def train_step(trainer):
    """One update: fetch, loss and backward of each micro-batch; return total loss, gradient and plans."""
    batches, _ = trainer.get_batch_samples(iter(micro_batches()), 2, "cpu")
    plans = [batch.get("plan") for batch in batches]
    losses = [trainer.compute_loss(trainer.model, batch) for batch in batches]
    sum(losses).backward()
    return float(sum(losses).detach()), trainer.model.logits.grad, plans


def by_hand(table, per_token):
    """Return the mean over micro-batches of the token means of `per_token(number, logp, r, A, H)`, and its gradient."""
    table.logits.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for number, (micro, index) in enumerate(zip(micro_batches(), INDEX, strict=True)):
        out = table(micro["input_ids"])
        logp, entropy = out.log_probs[0][index], out.entropy[0][index]
        old, advantages = micro["old_log_probs"][0, : len(index)], micro["advantages"][0, : len(index)]
        total = total + per_token(number, logp, (logp - old).exp(), advantages, entropy).mean() / 2
    total.backward()
    return float(total.detach()), table.logits.grad


def ppo(r, a):
    return -torch.minimum(r * a, r.clamp(1 - LOW, 1 + HIGH) * a)


def same(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-5)


def test_the_base_class_is_left_alone(make_trainer):
    found = train_step(make_trainer())
    same(found, by_hand(Table(), lambda n, logp, r, a, h: ppo(r, a)))


def test_clip_cov_takes_the_gradient_of_selected_tokens_away(make_trainer):
    trainer = make_trainer(ClipCov(fraction=0.3, low=-9.0, high=9.0))
    loss, gradient, plans = train_step(trainer)
    chosen = [plan.selected[0] for plan in plans]
    assert sum(int(c.sum()) for c in chosen) == 3  # floor(.3 x 13), over the update and not per micro-batch
    assert logged(trainer)["selected/realised"] == [3.0]
    same((loss, gradient), by_hand(Table(), lambda n, logp, r, a, h: ppo(r, a * ~chosen[n])))


@pytest.mark.parametrize("form", ["abs", "k2", "k3"])
def test_kl_cov_pulls_back_to_the_sampler(make_trainer, form):
    """Its gradient is there with one update per rollout: the policy is not the sampler."""
    _, gradient, plans = train_step(make_trainer(KLCov(fraction=0.4, coef=0.7, form=form)))
    chosen = [plan.selected[0] for plan in plans]
    assert sum(int(c.sum()) for c in chosen) > 1
    penalty = {"abs": lambda x: x.abs(), "k2": lambda x: x**2 / 2, "k3": lambda x: x.exp() - 1 - x}[form]
    expected = by_hand(Table(), lambda n, logp, r, a, h: ppo(r, a) + 0.7 * chosen[n] * penalty(r.log()))
    torch.testing.assert_close(gradient, expected[1], atol=1e-6, rtol=1e-5)


def test_high_entropy_mask_looks_at_the_model_once(make_trainer):
    loss, gradient, plans = train_step(make_trainer(HighEntropy(fraction=0.5)))
    dropped = [plan.selected[0] for plan in plans]
    assert 0 < sum(int(d.sum()) for d in dropped) < 13
    same((loss, gradient), by_hand(Table(), lambda n, logp, r, a, h: ppo(r, a * ~dropped[n])))


def test_dppo_replaces_the_clip(make_trainer):
    """TV form: a token moves on unless its probability has left the band on the side it is pushed to."""
    control = Dppo(high=0.15, low=0.15)
    _, gradient, _ = train_step(make_trainer(control))

    def masked(n, logp, r, a, h):
        shift = logp.detach().exp() - logp.detach().exp() / r.detach()
        keep = torch.where(a > 0, shift <= control.high, shift >= -control.low)
        return -r * a * keep

    torch.testing.assert_close(gradient, by_hand(Table(), masked)[1], atol=1e-6, rtol=1e-5)


def test_an_entropy_bonus_has_a_gradient(make_trainer):
    found = train_step(make_trainer(ClipCov(fraction=0.3, low=-9.0, high=9.0), coef=0.1))
    chosen = [plan.selected[0] for plan in found[2]]
    same(found, by_hand(Table(), lambda n, logp, r, a, h: ppo(r, a * ~chosen[n]) - 0.1 * h))


def test_what_packed_rows_do_not_show_is_refused(make_trainer):
    with pytest.raises(UserError, match="all responses of a prompt"):
        make_trainer(Aem())
    with pytest.raises(UserError, match="scope=micro"):
        make_trainer(ClipCov(scope="micro"))
    with pytest.raises(UserError, match="not served here"):
        with_async_entropy_control(Table)


def test_every_control_is_served_or_refused_by_name():
    served = set()
    for name, cls in METHODS.items():
        try:
            control = cls() if name not in NEEDS else cls(**NEEDS[name])
            check_served(control)
            served.add(name)
        except UserError as error:
            assert name in str(error)
    assert {"clip_cov", "kl_cov", "high_entropy", "dppo"} <= served


NEEDS = {"repo": {"coef": 0.1}, "entropic": {"target": 0.5}, "stare": {"target": 0.5}, "estr": {"tau": 1.0}}


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (rewards.token_entropy, "token_entropy.*needs token statistics"),
        ([rewards.empo, rewards.self_certainty], "self_certainty.*needs token statistics"),
        (rewards.EMPO(prompt_fraction=0.5), "compares the prompts of a batch"),
        (rewards.seed_grpo, "scales advantages"),
        ([rewards.empo, rewards.srt, rewards.verifier, len], None),
    ],
)
def test_rewards_that_the_worker_cannot_give_are_refused_before_it_starts(reward, why):
    """Token statistics would fail in its process; a scale, or a share of the prompts, would be ignored."""
    base = type("AsyncGRPOTrainer", (), {"__init__": lambda self, model, reward_funcs=None: None})
    trainer = with_async_entropy_control(base)
    for give in (lambda: trainer("model", reward), lambda: trainer("model", reward_funcs=reward)):
        if why is None:
            assert give().control is None
        else:
            with pytest.raises(UserError, match=why):
                give()


def test_the_entropy_law_reads_what_this_trainer_logs():
    """Its log has `entropy` and `reward` (`async_grpo_trainer.py`, `_metrics`)."""
    from transformers import TrainerState

    from autotelic.trl import EntropyLawCallback

    law, entropy = EntropyLawCallback(intervention="kl_cov", min_points=3), [1.0, 0.7, 0.4, 0.2]
    history = [{"step": i, "entropy": h, "reward": 1 - 0.3 * math.exp(h), "kl": 0.0} for i, h in enumerate(entropy)]
    state = TrainerState(log_history=history, global_step=4, is_world_process_zero=True)
    law.update(state)
    assert (law.law.a, law.law.b) == (pytest.approx(0.3), pytest.approx(1.0))
    assert state.log_history[-1]["law/a"] == pytest.approx(0.3)


def test_label_free_rewards_work_in_the_rollout_worker():
    """The worker is a process of its own that scores one prompt's responses at a time: pickled, called, in order."""
    from autotelic.rewards import empo, majority_vote

    responses = [r"\boxed{4}", r"\boxed{4}", r"\boxed{5}", "no answer"]
    for reward, expected in ((empo, [0.5, 0.5, 0.25, 0.0]), (majority_vote, [1.0, 1.0, 0.0, 0.0])):
        again = pickle.loads(pickle.dumps(reward))
        assert again(prompts=["2+2=?"] * 4, completions=responses) == pytest.approx(expected)
