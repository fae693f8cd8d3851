"""Entropy control on TRL's GRPOTrainer: canary, exactness under splitting, refusals, and that it does something."""

from functools import partial

import pytest
import torch
from tiny_trainer import first_update, logged, made_up, on_made_up_tensors

from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.errors import UserError
from autotelic.trl import ClipCov, Control, KLCov, with_entropy_control


@pytest.fixture(autouse=True)
def _large_fractions():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def update_of(trainer):
    """Return the micro-batches of the first update, with their plans, and the gradient of each parameter."""
    found = first_update(trainer)
    return found, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_zero_advantages_give_zero_gradient(make_trainer):
    """Canary for TRL's read order: advantages written during the log-probability call are the ones that count."""

    class Silence(ClipCov):
        def rewrite(self, advantages, log_ratio, plan):
            return torch.zeros_like(advantages)

    trainer = make_trainer(with_entropy_control, entropy_control=Silence(fraction=0.5, low=-9.0, high=9.0))
    _, gradients = update_of(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_without_control_the_gradient_is_not_zero(make_trainer):
    """The canary's counterpart: the same batch moves the model when nothing is rewritten."""
    _, gradients = update_of(make_trainer(with_entropy_control))
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
        micro_batches, gradients = update_of(trainer)
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
    _, gradients = update_of(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_clip_cov_under_a_sequence_ratio(make_trainer):
    """GSPO's shared ratio: detached tokens carry no gradient either."""
    trainer = make_trainer(
        with_entropy_control,
        entropy_control=ClipCov(fraction=1.0, low=-1e9, high=1e9),
        importance_sampling_level="sequence",
    )
    _, gradients = update_of(trainer)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_kl_cov_on_policy_is_refused(make_trainer):
    with pytest.raises(UserError, match="zero gradient"):
        make_trainer(with_entropy_control, entropy_control=KLCov(), steps_per_generation=1)


@pytest.mark.trl_1_16
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
    _, gradients = update_of(trainer)
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


@pytest.mark.parametrize("name", ["paper_7b", "verl_default"])
@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
def test_presets_have_the_reference_gradient_through_the_trainer(make_trainer, method, name):
    """`scope="micro"` on one micro-batch: the gradient of the authors' loss, on tokens that theirs would choose."""
    from autotelic.compat import policy_losses as parity

    control = (ClipCov if method == "clip_cov" else KLCov).preset(name)
    settings = parity.preset(name)
    logprobs, old, advantages, mask = made_up()
    bounds = {"epsilon": settings.clip_low, "epsilon_high": settings.clip_high}
    if method == "kl_cov":
        bounds = {"epsilon": 1.0, "epsilon_high": 1e9}
    _, gradient, selected, _ = on_made_up_tensors(make_trainer, control, logprobs, old, advantages, mask, **bounds)
    leaf, per_token = logprobs.clone().requires_grad_(), advantages.unsqueeze(1).expand(mask.shape)
    if method == "clip_cov":  # theirs draws with randperm: the choice is ours, among their candidates
        candidates = parity.clip_cov_candidates(logprobs, old, per_token, mask, settings)
        assert int(selected.sum()) == 1 and bool((candidates | ~selected).all())
    else:
        assert torch.equal(selected, parity.kl_cov_selection(logprobs, per_token, mask, settings))
    loss = parity.policy_loss(method, leaf, old, per_token, mask, settings, selected=selected)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov"])
def test_hostile_values_leave_the_gradient_finite(make_trainer, method):
    """NaN and inf in padding, a row without tokens, log-ratios of +-1000 for either sign of A, and A = 0."""
    control = ClipCov(fraction=0.1, low=0.1, high=99.0) if method == "clip_cov" else KLCov(fraction=0.1)
    logprobs, old, advantages, mask = made_up()
    mask[2] = False
    mask[:, 0] = torch.tensor([True, True, False, True, True, True])
    mask[:, 1] = mask[:, 0]
    advantages[0], advantages[1], advantages[3] = 1.0, -1.0, 0.0
    old[:, 0], old[:, 1] = logprobs[:, 0] - 1000, logprobs[:, 1] + 1000
    for poison in (float("nan"), float("inf")):
        dirty = [torch.where(mask, x, poison) for x in (logprobs, old)]
        loss, gradient, _, trainer = on_made_up_tensors(make_trainer, control, *dirty, advantages, mask)
        assert bool(torch.isfinite(loss)) and bool(torch.isfinite(gradient).all())
        assert bool((gradient[~mask] == 0).all())
        assert bool((gradient[:, :2] == 0).all())  # beyond the bound nothing pulls
        recorded = {name: values[-1] for name, values in logged(trainer).items() if "/" in name}
        ours = {name: value for name, value in recorded.items() if not name.startswith("clip_ratio")}
        assert all(value == value for value in ours.values())


def test_a_broken_log_probability_names_step_and_prompt(make_trainer):
    logprobs, old, advantages, mask = made_up()
    logprobs[0, 0] = float("nan")
    mask[0, 0] = True
    with pytest.raises(FloatingPointError, match=r"step 1 .*1\+2="):
        on_made_up_tensors(make_trainer, KLCov(fraction=0.1), logprobs, old, advantages, mask)


def test_zero_variance_advantages_give_zero_gradient(make_trainer):
    """Nothing to learn: no covariance is positive, so KL-Cov penalises nothing either."""
    logprobs, old, _, mask = made_up()
    for control in (KLCov(fraction=0.5), ClipCov(fraction=0.5, low=-9.0, high=9.0)):
        loss, gradient, _, _ = on_made_up_tensors(make_trainer, control, logprobs, old, torch.zeros(len(mask)), mask)
        assert loss == 0 and bool((gradient == 0).all())


def test_vllm_importance_ratio_multiplies_the_gradient(make_trainer):
    """TRL's sampler correction scales whatever the control has rewritten; padding in it is not read."""
    logprobs, old, advantages, mask = made_up()
    control = KLCov(fraction=0.2)
    _, plain, selected, _ = on_made_up_tensors(make_trainer, control, logprobs, old, advantages, mask)
    ratio = torch.rand(mask.shape) + 0.5
    extra = {
        "importance_sampling_ratio": torch.where(mask, ratio, float("nan")),
        "sampling_per_token_logps": torch.where(mask, old - ratio.log(), float("nan")),
    }

    class WithVLLM(KLCov):
        """Turns TRL's correction on after construction, which would look for vLLM."""

        def plan(self, batch):
            trainer_box[0].use_vllm = trainer_box[0].vllm_importance_sampling_correction = True
            return super().plan(batch)

    trainer_box = []

    def make(wrap, **settings):
        trainer_box.append(make_trainer(wrap, **settings))
        return trainer_box[0]

    _, corrected, same, _ = on_made_up_tensors(
        make, WithVLLM(fraction=0.2), logprobs, old, advantages, mask, extra_inputs=extra
    )
    assert torch.equal(selected, same)
    torch.testing.assert_close(corrected, torch.where(mask, plain * ratio, 0.0), rtol=1e-5, atol=1e-9)


def test_bf16_model_trains(make_trainer, make_model):
    trainer = make_trainer(
        with_entropy_control, model=make_model().to(torch.bfloat16), entropy_control=KLCov(fraction=0.2), max_steps=2
    )
    trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


# Baselines, memory, diagnostics.


@pytest.mark.parametrize("name", ["high_entropy", "clip_v", "steer"])
def test_baselines_do_not_depend_on_the_micro_batch(make_trainer, make_model, name):
    """One update of 32 responses as 1 and 4 micro-batches: same tokens, same gradient (rtol 1e-5)."""
    from autotelic.trl import entropy_control

    settings = {"clip_v": {"mu": 0.5, "fraction": 0.05}, "steer": {"min_weight": 0.2}}.get(name, {})
    found = []
    for accumulation in (1, 4):
        trainer = make_trainer(
            with_entropy_control,
            model=make_model(),
            entropy_control=entropy_control(name, **settings),
            per_device_train_batch_size=32 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=2 * accumulation,
        )
        torch.manual_seed(3)
        micro_batches, gradients = update_of(trainer)
        chosen = {
            row: selected.tolist()
            for micro in micro_batches
            for row, selected in zip(micro["row_ids"].tolist(), micro["plan"].selected, strict=True)
        }
        found.append((chosen, gradients))
    assert any(any(row) for row in found[0][0].values())
    assert found[1][0] == found[0][0]
    for parameter, gradient in found[1][1].items():
        torch.testing.assert_close(gradient, found[0][1][parameter], rtol=1e-5, atol=1e-8)


def test_rollout_entropies_cost_no_extra_pass(make_trainer):
    """Several updates per rollout: TRL's pass for the old log-probabilities gives the entropies too."""
    from autotelic.trl import HighEntropy

    trainer = make_trainer(with_entropy_control, entropy_control=HighEntropy())
    calls = []
    control = trainer.part(Control)
    original = control.measure
    control.measure = lambda *args: calls.append(1) or original(*args)
    micro_batches, _ = update_of(trainer)
    assert not calls
    micro = micro_batches[0]
    _, entropies, *_ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1),
        torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1),
        micro["completion_ids"].shape[1],
        compute_entropy=True,
    )
    mask = micro["completion_mask"].bool()
    torch.testing.assert_close(micro["rollout_entropy"][mask], entropies.detach()[mask])


def test_memory_survives_resume(make_trainer, make_model, tmp_path):
    """EntroPIC's accumulated error after 4 updates is the same in one go and with a break after 2."""
    from autotelic.trl import Entropic

    def control():
        return Entropic(target=0.5, threshold=0.5)

    whole = make_trainer(with_entropy_control, model=make_model(), entropy_control=control())
    whole.train()
    settings = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "parts")}
    make_trainer(with_entropy_control, model=make_model(), entropy_control=control(), **settings).train()
    resumed = make_trainer(with_entropy_control, model=make_model(), entropy_control=control(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert resumed.part(Control).state == pytest.approx(whole.part(Control).state)
    assert abs(whole.part(Control).state["accumulated"]) > 0.5


def test_an_empty_quota_is_said_once(make_trainer):
    trainer = make_trainer(with_entropy_control, entropy_control=ClipCov(fraction=1e-4), max_steps=2)
    with pytest.warns(EntropyControlWarning, match="nothing is selected") as caught:
        trainer.train()
    assert len([w for w in caught if "nothing is selected" in str(w.message)]) == 1


def test_entropy_change_is_that_of_a_recomputation(make_trainer):
    """Observed over one update: the logged change is the difference of two entropies measured by hand."""
    from autotelic.trl import Observe

    def wrap(trainer_class):
        return partial(with_entropy_control(trainer_class), entropy_change_rows=16)

    trainer = make_trainer(wrap, entropy_control=Observe(), max_steps=3)
    change = trainer.part(Control).entropy_change
    seen, original = [], change.measure

    def measure(micro):
        found = original(micro)
        seen.append(float(found["entropy"][micro["completion_mask"].bool()].mean()))
        return found

    change.measure = measure
    trainer.train()
    rows = [row for row in trainer.state.log_history if "dynamics/realised" in row]
    assert [row["step"] for row in rows] == [2, 3]
    before, after = seen[0], seen[1]
    assert rows[0]["dynamics/realised"] == pytest.approx(after - before, abs=1e-5)
    assert all(abs(row["dynamics/predicted_sampled"]) < 10 for row in rows)
    assert all("policy/entropy_sequence" in row for row in rows)
