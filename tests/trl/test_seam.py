"""The seam to TRL: what parts see of a run, in which order, and which classes it serves."""

import warnings
from functools import partial

import pytest
import torch

from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.errors import UserError
from autotelic.trl import (
    ClipCov,
    Control,
    KLCov,
    Part,
    SurplusVotes,
    with_entropy_control,
    with_entropy_minimization,
    with_parts,
)


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


class Recorder(Part):
    """Notes every call."""

    def __init__(self):
        self.calls = []

    def check(self):
        self.calls.append("check")

    def on_responses(self, rollout):
        self.calls.append("on_responses")
        assert len(rollout.prompt_ids) == len(rollout.response_ids) == 32 and rollout.rewards is None

    def on_rollout(self, rollout):
        self.calls.append("on_rollout")
        assert rollout.rewards.shape == (32, 1) and rollout.output["row_ids"].tolist() == list(range(32))

    def on_generation(self, micro_batches):
        self.calls.append("on_generation")
        return micro_batches

    def on_update(self, update):
        self.calls.append(f"on_update {len(update.micro_batches)}")

    def on_token_stats(self, loss):
        self.calls.append("on_token_stats")
        assert loss.logprobs.shape == loss.mask.shape and loss.logprobs.requires_grad

    def loss_term(self, loss):
        self.calls.append(f"loss_term {loss.is_last}")

    def on_train_end(self):
        self.calls.append("on_train_end")


def test_hooks_are_called_from_top_to_bottom(make_trainer):
    """One rollout of two updates, each of two micro-batches."""
    part = Recorder()
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    make_trainer(with_parts, parts=[part], max_steps=2, **settings).train()
    update = ["on_update 2", "on_token_stats", "loss_term False", "on_token_stats", "loss_term True"]
    rollout = ["on_responses", "on_rollout", "on_generation"]
    assert part.calls == ["check", *rollout, *update, *update, "on_train_end"]


def test_without_parts_training_is_trls_to_the_bit(make_trainer, make_model):
    """Metrics and weights after four updates."""
    found = []
    for wrap in (lambda cls: cls, with_parts, with_entropy_control):
        trainer = make_trainer(wrap, model=make_model())
        trainer.train()
        logs = [
            {k: v for k, v in row.items() if k in ("loss", "grad_norm", "entropy")} for row in trainer.state.log_history
        ]
        found.append((logs, [p.detach().clone() for p in trainer.model.parameters()]))
    for logs, parameters in found[1:]:
        assert logs == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, found[0][1], strict=True))


@pytest.mark.trl_1_16
def test_forward_and_generate_are_patched_only_if_asked(make_trainer):
    plain = make_trainer(lambda cls: cls)
    ours = make_trainer(with_entropy_control, entropy_control=ClipCov())
    fast = make_trainer(with_entropy_control, entropy_control=ClipCov(), fused_head="on", shared_prefix="on")
    assert ours.model.forward.__code__ is plain.model.forward.__code__ and "generate" not in vars(ours.model)
    assert fast.model.forward.__code__ is not plain.model.forward.__code__ and "generate" in vars(fast.model)


def test_parts_are_sorted_so_that_rows_leave_last(make_trainer):
    trainer = make_trainer(with_parts, parts=[SurplusVotes(2), Control(ClipCov(fraction=0.5, low=-9.0, high=9.0))])
    assert [type(part) for part in trainer.parts] == [Control, SurplusVotes]
    trainer.train()
    assert trainer.state.global_step == 4


def test_settings_may_be_given_to_the_class(make_trainer):
    """The class then has TRL's own signature, which a type checker knows."""
    trainer = make_trainer(lambda cls: with_entropy_control(cls, entropy_control=KLCov(fraction=0.3)))
    assert trainer.part(Control).control == KLCov(fraction=0.3)
    with pytest.raises(TypeError, match="entropy_controll"):
        make_trainer(lambda cls: with_entropy_control(cls, entropy_controll=KLCov()))


@pytest.mark.trl_1_16
def test_other_trainers_are_refused_by_name():
    from trl import DPOTrainer
    from trl.experimental.async_grpo import AsyncGRPOTrainer

    with pytest.raises(UserError, match="DPOTrainer is not served"):
        with_entropy_control(DPOTrainer)
    with pytest.raises(UserError, match="AsyncGRPOTrainer is not served"):  # its control has a seam of its own
        with_entropy_minimization(AsyncGRPOTrainer)


# RLOO.


@pytest.fixture
def make_rloo(make_trainer):
    return partial(make_trainer, engine="RLOO")


def test_rloo(make_rloo):
    """Silenced tokens leave the ratio of the response: against the loss in float64; then a whole run."""
    trainer = make_rloo(with_entropy_control, entropy_control=ClipCov(fraction=0.3, low=-9.0, high=9.0))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps, trainer._step = 1, 0
    torch.manual_seed(3)
    micro = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    mask, plan, old = micro["completion_mask"].bool(), micro["plan"], micro["rollout_logprobs"]
    assert 0 < int(plan.selected.sum()) < int(mask.sum())
    torch.testing.assert_close((old * mask).sum(1), micro["old_logps"])
    moved = old + 0.1 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
    leaf = moved.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        base = type(trainer).__mro__[2]
        patch.setattr(base, "_get_per_token_logps_and_entropies", lambda *a, **k: (leaf, torch.ones_like(leaf), None))
        found = torch.autograd.grad(trainer._compute_loss(trainer.model, micro), leaf)[0]
    wide = moved.double().requires_grad_()
    held = torch.where(plan.selected, wide.detach(), wide)
    ratio = torch.where(mask, held - old.double(), 0.0).sum(1).exp()
    a = micro["advantages"].double()
    loss = -(ratio * a).minimum(ratio.clamp(1 - trainer.epsilon_low, 1 + trainer.epsilon_high) * a).mean()
    torch.testing.assert_close(found.double(), torch.autograd.grad(loss, wide)[0], rtol=2e-5, atol=1e-8)
    trainer = make_rloo(with_entropy_control, entropy_control=ClipCov(fraction=0.3, low=-9.0, high=9.0))
    trainer.train()
    assert trainer.state.global_step == 4
    assert all(row["selected/realised"] > 0 for row in trainer.state.log_history if "selected/realised" in row)


def test_rloo_refuses_what_weighs_single_tokens(make_rloo):
    with pytest.raises(UserError, match="single tokens"):
        make_rloo(with_entropy_control, entropy_control=KLCov(fraction=0.3))


@pytest.mark.slow
def test_rloo_takes_entropies_from_its_own_pass(make_rloo):
    """A control that reads entropies, from the pass that RLOO makes anyway."""
    from autotelic.trl import entropy_control

    trainer = make_rloo(with_entropy_control, entropy_control=entropy_control("high_entropy", fraction=0.5))
    trainer.train()
    assert trainer.state.global_step == 4
