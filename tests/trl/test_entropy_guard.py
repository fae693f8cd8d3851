"""One-shot EM ends before the update that would destroy the policy, and leaves healthy runs alone."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from autotelic.errors import UserError
from autotelic.trl import EntropyMinimization, with_entropy_minimization
from autotelic.trl.entropy_guard import EntropyGuard


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def make_em(make_trainer, make_model):
    def build(learning_rate, guard=10.0, accumulation=1):
        model = make_model()
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(4.0)  # as initialised, every token's entropy is ln V
        return make_trainer(
            with_entropy_minimization,
            model=model,
            prompts=("1+2+3=?",),
            reward_funcs=lambda prompts, completions, **kwargs: [0.0] * len(completions),
            entropy_minimization=EntropyMinimization(guard=guard),
            num_generations=16,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            learning_rate=learning_rate,
        )

    return build


def guard_of(trainer):
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, EntropyGuard))


@pytest.mark.trl_1_16
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_ends_with_the_weights_before_the_update_that_took_its_entropy(make_em, capsys, accumulation):
    trainer = make_em(learning_rate=1.0, accumulation=accumulation)
    before = weights(trainer.model)
    trainer.train()
    assert guard_of(trainer).stopped
    assert trainer.state.global_step == 2
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert "learning_rate 1 is too large for this model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.trl_1_16
def test_a_healthy_run_goes_on(make_em):
    trainer = make_em(learning_rate=1e-3)
    before = weights(trainer.model)
    trainer.train()
    assert not guard_of(trainer).stopped
    assert trainer.state.global_step == 4
    assert not all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.slow
@pytest.mark.trl_1_16
def test_without_a_guard_the_run_goes_on_to_its_end(make_em):
    trainer = make_em(learning_rate=1.0, guard=0.0)
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_update_before_a_resumed_run_is_watched(capsys):
    """The checkpoint was written after the update that destroyed the policy: there is nothing to go back to."""
    metrics = {"train": {"train/em_loss": [0.001]}}
    guard = EntropyGuard(SimpleNamespace(_metrics=metrics, current_gradient_accumulation_steps=1), factor=10.0)
    model, args = torch.nn.Linear(1, 1), SimpleNamespace(learning_rate=1e-3)
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters())}
    before = weights(model)
    state, control = TrainerState(log_history=[{"loss": 1.0, "train/em_loss": 0.5}, {"loss": 2.0}]), TrainerControl()
    guard.on_train_begin(args, state, control, **given)
    guard.on_pre_optimizer_step(args, state, control, **given)
    assert control.should_training_stop
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    error = capsys.readouterr().err
    assert "entropy fell from 0.5 to 0.001" in error and "go on from a checkpoint before that update" in error


def test_a_factor_that_stops_every_run_is_refused():
    with pytest.raises(UserError, match="guard must be above 1"):
        EntropyMinimization(guard=1.0)
