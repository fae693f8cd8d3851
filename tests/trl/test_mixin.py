"""Entropy control on TRL's GRPOTrainer: canary, exactness under splitting, refusals, and that it does something."""

import pytest
import torch

from autotelic.errors import UserError
from autotelic.trl import ClipCov, KLCov, with_entropy_control
from autotelic.trl.controls import EntropyControlWarning


@pytest.fixture(autouse=True)
def _large_fractions():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def first_update(trainer):
    """Generate one rollout and return the micro-batches of its first update, with their plans, and the gradients."""
    model = trainer.model
    model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    batch = next(iter(trainer.get_train_dataloader()))
    micro_batches = []
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step
        inputs = trainer._prepare_inputs(batch)
        trainer._compute_loss(model, inputs).backward()
        micro_batches.append(inputs)
    return micro_batches, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_zero_advantages_give_zero_gradient(make_trainer):
    """Canary for TRL's read order: advantages written during the log-probability call are the ones that count."""

    class Silence(ClipCov):
        def rewrite(self, advantages, log_ratio, plan):
            return torch.zeros_like(advantages)

    trainer = make_trainer(with_entropy_control, entropy_control=Silence(fraction=0.5, low=-9.0, high=9.0))
    _, gradients = first_update(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_without_control_the_gradient_is_not_zero(make_trainer):
    """The canary's counterpart: the same batch moves the model when nothing is rewritten."""
    _, gradients = first_update(make_trainer(with_entropy_control))
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 0


@pytest.mark.parametrize(
    "make_control", [lambda: ClipCov(fraction=0.2, low=-9.0, high=9.0), lambda: KLCov(fraction=0.2)], ids=["clip", "kl"]
)
def test_selection_does_not_depend_on_the_micro_batch(make_trainer, make_model, make_control):
    """One update of 32 responses as 1, 2 and 4 micro-batches: same tokens, same gradient (rtol 1e-5)."""
    found = []
    for accumulation in (1, 2, 4):
        trainer = make_trainer(
            with_entropy_control,
            model=make_model(),
            entropy_control=make_control(),
            per_device_train_batch_size=32 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=2 * accumulation,
        )
        torch.manual_seed(3)
        micro_batches, gradients = first_update(trainer)
        chosen = {}
        for micro in micro_batches:
            for row, selected in zip(micro["row_ids"].tolist(), micro["plan"].selected, strict=True):
                chosen[row] = selected.tolist()
        found.append((chosen, gradients))
    assert any(any(row) for row in found[0][0].values())
    for chosen, gradients in found[1:]:
        assert chosen == found[0][0]
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-5, atol=1e-8)


def test_clip_cov_selected_tokens_have_no_gradient(make_trainer):
    """With every token selected nothing is left to learn from."""
    trainer = make_trainer(with_entropy_control, entropy_control=ClipCov(fraction=1.0, low=-1e9, high=1e9))
    _, gradients = first_update(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_clip_cov_under_a_sequence_ratio(make_trainer):
    """GSPO's shared ratio: detached tokens carry no gradient either."""
    trainer = make_trainer(
        with_entropy_control,
        entropy_control=ClipCov(fraction=1.0, low=-1e9, high=1e9),
        importance_sampling_level="sequence",
    )
    _, gradients = first_update(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_kl_cov_on_policy_is_refused(make_trainer):
    with pytest.raises(UserError, match="zero gradient"):
        make_trainer(with_entropy_control, entropy_control=KLCov(), steps_per_generation=1)


def test_kl_cov_on_policy_entropy_term_has_a_gradient(make_trainer):
    """Constant rewards: all advantages are zero, so only the entropy of the selected positions can move the model."""

    def constant(prompts, completions, **kwargs):
        return [1.0] * len(completions)

    class Everything(KLCov):
        def plan(self, batch):
            plan = super().plan(batch)
            return type(plan)(batch.mask, plan.covariance, plan.requested)

    control = Everything(fraction=0.5, coef=1.0, on_policy="entropy_term")
    trainer = make_trainer(with_entropy_control, entropy_control=control, steps_per_generation=1, reward_funcs=constant)
    _, gradients = first_update(trainer)
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 0


def test_kl_cov_with_a_sequence_ratio_is_refused(make_trainer):
    with pytest.raises(UserError, match="single tokens"):
        make_trainer(with_entropy_control, entropy_control=KLCov(), importance_sampling_level="sequence")


def test_update_longer_than_its_rollout_is_refused(make_trainer):
    with pytest.raises(UserError, match="multiple of"):
        make_trainer(
            with_entropy_control, entropy_control=ClipCov(), steps_per_generation=3, gradient_accumulation_steps=2
        )


def test_fractions(recwarn):
    with pytest.raises(UserError, match=r"\(0, 1\]"):
        ClipCov(fraction=2.0)
    with pytest.warns(EntropyControlWarning, match="not a percentage"):
        KLCov(fraction=0.2)


def test_presets_and_names():
    from autotelic.trl import entropy_control

    assert KLCov.preset("paper_7b").fraction == 2e-3
    assert KLCov.preset("verl_default").coef == 0.1
    with pytest.raises(UserError, match="paper_7b"):
        KLCov.preset("paper_7")
    with pytest.raises(UserError, match="did you mean 'fraction'"):
        entropy_control("clip_cov", fracton=0.1)


def test_masked_rows_and_refresh(make_trainer):
    """Training runs with refreshed selection and reports how far the two selections agree."""
    trainer = make_trainer(with_entropy_control, entropy_control=KLCov(fraction=0.2, refresh=True))
    trainer.train()
    history = [row for row in trainer.state.log_history if "selected/jaccard" in row]
    assert len(history) == 4
    assert history[0]["selected/jaccard"] == 1.0  # the first update has not moved away from the rollout
    assert all(0 <= row["selected/jaccard"] <= 1 for row in history)
    assert all(row["selected/realised"] <= row["selected/requested"] for row in history)


def test_lora_and_accumulation(make_trainer):
    """LoRA with gradient accumulation and two passes over each rollout."""
    from peft import LoraConfig

    trainer = make_trainer(
        with_entropy_control,
        entropy_control=KLCov(fraction=0.2),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
        num_iterations=2,
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
