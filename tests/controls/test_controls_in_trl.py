"""Every control of the table in TRL's trainer: it trains beside a label-free reward, and the split does not matter."""

import warnings

import pytest
import torch

from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.controls.table import METHODS, read_control
from autotelic.errors import UserError
from autotelic.trl import with_entropy_control

CONTROLS = {
    "aem": "aem,min_range=0",
    "ce_gppo": "ce_gppo,low=0.01,high=0.01",
    "clip_b": "clip_b,mu=0.5",
    "clip_cov": "clip_cov,fraction=0.2,low=-9,high=9",
    "clip_v": "clip_v,mu=0.5,fraction=0.05",
    "dppo": "dppo,high=0.001",
    "entrocraft": "entrocraft,low=0.1,high=0.2",
    "entropic": "entropic,target=0.1,threshold=0.01",
    "entropy_band": "entropy_band,coef=linear:0.1:0",
    "erc": "erc,low=0.99,high=1.01",
    "estr": "estr,tau=0.0001",
    "high_entropy": "high_entropy",
    "kl_cov": "kl_cov,fraction=0.2",
    "lp_reg": "lp_reg,fraction=0.5",
    "observe": "observe",
    "repo": "repo,coef=0.1",
    "stare": "stare,target=9",
    "steer": "steer,min_weight=0.2",
}
CHANGED = ("ce_gppo", "dppo", "entrocraft", "entropy_band", "erc", "estr", "lp_reg")


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def moved_update(trainer):
    """The gradient of the first update after the weights have moved away from the rollout's."""
    model = trainer.model
    model.train()
    trainer.state.max_steps = 10
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    batch = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(3)
    trainer._step = 0
    inputs = trainer._prepare_inputs(batch)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step
        inputs = inputs if step == 0 else trainer._prepare_inputs(batch)
        trainer._compute_loss(model, inputs).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def settings_of(accumulation):
    return {
        "per_device_train_batch_size": 32 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": 2 * accumulation,
    }


def test_every_control_is_here():
    assert set(CONTROLS) == set(METHODS)


@pytest.mark.parametrize("name", CONTROLS)
def test_two_updates_beside_a_label_free_reward(make_trainer, name):
    """EMPO's reward; weights move, metrics are finite."""
    from autotelic.rewards import EMPO

    trainer = make_trainer(
        with_entropy_control, entropy_control=read_control(CONTROLS[name]), reward_funcs=EMPO(), max_steps=2
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    assert all(row["grad_norm"] == row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row)
    assert len(before) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize("name", CHANGED)
def test_the_newer_controls_act_and_do_not_depend_on_the_micro_batch(make_trainer, make_model, name):
    """One update of 32 responses as 1 and 4 micro-batches, the policy moved: one gradient, not that of plain GRPO."""
    found = [
        moved_update(
            make_trainer(
                with_entropy_control,
                model=make_model(),
                entropy_control=read_control(control),
                **settings_of(accumulation),
            )
        )
        for control, accumulation in ((CONTROLS[name], 1), (CONTROLS[name], 4), ("observe", 1))
    ]
    for parameter, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][parameter], rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(gradient, found[2][name], rtol=1e-3) for name, gradient in found[0].items())


def test_dppo_without_a_bound_is_the_surrogate_without_a_clip(make_trainer, make_model):
    """With a bound that nothing reaches, DPPO is the plain policy gradient: PPO's clip is off."""
    found = []
    for control, bounds in (("dppo,low=2,high=2", {}), ("observe", {"epsilon": 1e6, "epsilon_high": 1e6})):
        settings = settings_of(1) | bounds
        trainer = make_trainer(
            with_entropy_control, model=make_model(), entropy_control=read_control(control), **settings
        )
        found.append(moved_update(trainer))
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][parameter], rtol=1e-5, atol=1e-8)


def test_entrocraft_under_a_sequence_ratio(make_trainer, make_model):
    """Whole responses are left out, which GSPO can express: the gradient is not that without a control."""
    found = []
    for control in (CONTROLS["entrocraft"], "observe"):
        trainer = make_trainer(
            with_entropy_control,
            model=make_model(),
            entropy_control=read_control(control),
            importance_sampling_level="sequence",
            **settings_of(1),
        )
        found.append(moved_update(trainer))
    assert any(not torch.allclose(gradient, found[1][name], rtol=1e-3) for name, gradient in found[0].items())
    with pytest.raises(UserError, match="single tokens"):
        make_trainer(with_entropy_control, entropy_control=read_control("dppo"), importance_sampling_level="sequence")


def test_lp_reg_has_the_gradient_of_its_equation(make_trainer, make_model):
    """The difference to a run with coef=0 is the gradient of the mean KL(pi_proxy || pi) over the protected tokens."""
    from autotelic import functional as F
    from autotelic.trl.seam import forward_inputs

    found = {}
    for coef in (0, 1):
        trainer = make_trainer(
            with_entropy_control,
            model=make_model(),
            entropy_control=read_control(f"lp_reg,fraction=0.5,coef={coef}"),
            **settings_of(1),
        )
        found[coef] = moved_update(trainer)
    micro = trainer._buffered_inputs[0]
    plan = trainer._update.micro_batches[0]
    ids, attention, width = forward_inputs(micro)
    trainer.model.zero_grad()
    logits = trainer.model(ids, attention_mask=attention).logits[:, -width - 1 : -1]
    kept = F.kept_log_mass(logits.float(), kappa=0.02, temperature=trainer.temperature)
    assert "plan" in plan or plan is not None
    selected = trainer.part_plan.selected if hasattr(trainer, "part_plan") else control_plan(trainer).selected
    assert selected.any()
    (-(kept * selected).sum() / micro["completion_mask"].sum()).backward()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(found[1][name] - found[0][name], parameter.grad, rtol=1e-3, atol=1e-6)


def control_plan(trainer):
    from autotelic.trl import Control

    return trainer.part(Control)._plan
