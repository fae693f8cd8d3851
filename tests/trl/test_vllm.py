"""`--use_vllm` through TRL, with a sampler that is a stub: our selection and EM against its log-probabilities.

The stub stands where TRL puts `VLLMGeneration`, for both of its modes. It samples from the model at the configured
temperature, and returns log-probabilities as vLLM does after temperature and logit processing, moved by `shift`.
"""

import math
import types
import warnings
from typing import ClassVar

import pytest
import torch
from tiny_trainer import first_update, gradient_of, logged

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.rewards import constant
from autotelic.trl import (
    ClipCov,
    EntropyMinimization,
    HighEntropy,
    KLCov,
    with_entropy_control,
    with_entropy_minimization,
    with_parts,
)
from autotelic.trl.control_part import warn_once
from autotelic.trl.sampler_mismatch import SamplerMismatch


class Sampler:
    """TRL's `VLLMGeneration`, without vLLM."""

    shift = staticmethod(lambda position: 0.0)
    calls: ClassVar[list[dict]] = []

    def __init__(self, model, processing_class, mode, temperature, max_completion_length, **settings):
        self.model, self.mode, self.temperature = model, mode, temperature
        self.width, self.end = max_completion_length, processing_class.eos_token_id
        self.vllm_client = types.SimpleNamespace(
            get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}}
        )
        self.synced = 0
        self.calls.append(settings | {"mode": mode})

    def sync_weights(self):
        self.synced += 1

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler=None):
        generator = torch.Generator().manual_seed(7)
        ids, logprobs = [], []
        for prompt in prompts:
            row, scores = list(prompt), []
            for position in range(self.width):
                logits = self.model(input_ids=torch.tensor([row])).logits[0, -1].float() / self.temperature
                probabilities = logits.softmax(-1)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
                scores.append([math.log(probabilities[token]) + self.shift(position)])
                row.append(token)
                if token == self.end:
                    break
            ids.append(row[len(prompt) :])
            logprobs.append(scores)
        return prompts, ids, logprobs, [[[token] for token in row] for row in ids]


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


@pytest.fixture
def with_sampler(monkeypatch, make_trainer):
    """Return a function that builds a trainer on the stub and makes its first update: inputs, gradients, trainer."""

    def build(wrap, shift=lambda position: 0.0, mode="colocate", **settings):
        monkeypatch.setattr(Sampler, "shift", staticmethod(shift))
        monkeypatch.setattr(Sampler, "calls", [])
        monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Sampler)
        torch.manual_seed(0)
        trainer = make_trainer(wrap, use_vllm=True, vllm_mode=mode, **settings)
        inputs = first_update(trainer)[0]
        return inputs, gradient_of(trainer.model), trainer

    return build


def covariance_of(logprobs, inputs):
    mask = inputs["completion_mask"].bool()
    return F.token_covariance(logprobs, inputs["advantages"].unsqueeze(1).expand(mask.shape), mask)


@pytest.mark.parametrize("mode", ["colocate", pytest.param("server", marks=pytest.mark.slow)])
def test_selection_reads_the_policys_log_probabilities_not_the_shifted_ones(with_sampler, mode):
    """With TRL's correction the rollout is scored again: tokens are chosen on that score, whatever the sampler says."""
    control = KLCov(fraction=0.2)
    chosen = []
    for shift in (lambda position: 0.0, lambda position: -0.7 * (position % 3)):
        inputs, _, trainer = with_sampler(with_entropy_control, shift, mode, entropy_control=control)
        torch.testing.assert_close(inputs["plan"].covariance, covariance_of(inputs["old_per_token_logps"], inputs))
        chosen.append(inputs["plan"].selected)
    assert bool(chosen[0].any()) and torch.equal(chosen[0], chosen[1])
    by_sampler = covariance_of(inputs["sampling_per_token_logps"], inputs)
    assert not torch.allclose(by_sampler, inputs["plan"].covariance)
    assert trainer.vllm_generation.synced == 1 and Sampler.calls[-1]["mode"] == mode


def test_without_the_correction_the_samplers_own_decide(with_sampler):
    """One update per rollout and no correction: TRL scores nothing, so the choice costs no pass of its own."""
    inputs, _, _ = with_sampler(
        with_entropy_control,
        lambda position: -0.7 * (position % 3),
        entropy_control=ClipCov(fraction=0.2, low=-9.0, high=9.0),
        steps_per_generation=1,
        vllm_importance_sampling_correction=False,
    )
    assert inputs.get("old_per_token_logps") is None
    expected = covariance_of(inputs["sampling_per_token_logps"], inputs)
    torch.testing.assert_close(inputs["plan"].covariance, expected)


@pytest.mark.slow
def test_truncated_sampling_is_said_once_where_its_log_probabilities_are_read(with_sampler, caplog):
    """Under top-p the sampler's log-probabilities are those of another distribution; refresh reads the policy's."""
    warn_once.cache_clear()
    settings = {"steps_per_generation": 1, "vllm_importance_sampling_correction": False, "top_p": 0.9}
    for refresh, expected in ((False, 1), (False, 1), (True, 1)):
        control = ClipCov(fraction=0.2, low=-9.0, high=9.0, refresh=refresh)
        with_sampler(with_entropy_control, entropy_control=control, **settings)
        lines = [record.message for record in caplog.records if "truncated distribution" in record.message]
        assert len(lines) == expected and "top_p=0.9" in lines[0]
    warn_once.cache_clear()
    caplog.clear()
    with_sampler(with_entropy_control, entropy_control=control, **settings)
    assert not [record for record in caplog.records if "truncated distribution" in record.message]


def test_the_importance_ratio_is_trls_and_multiplies_the_rewritten_advantage(with_sampler):
    """A sampler that is too sure by ln 1.25 at every token: the ratio is 0.8 everywhere, and so is the gradient."""
    settings = {"entropy_control": ClipCov(fraction=0.2, low=-9.0, high=9.0)}
    settings |= {"vllm_importance_sampling_mode": "token_truncate"}
    plain, reference, _ = with_sampler(with_entropy_control, **settings)
    moved, gradient, _ = with_sampler(with_entropy_control, lambda position: math.log(1.25), **settings)
    assert torch.equal(plain["plan"].selected, moved["plan"].selected) and bool(moved["plan"].selected.any())
    mask = moved["completion_mask"].bool()
    ratio = moved["importance_sampling_ratio"][mask]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.8), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(gradient, 0.8 * reference, rtol=2e-3, atol=1e-7)


def test_the_mismatch_is_logged(with_sampler):
    """A sampler that is too sure by ln 1.25 at every token: k1 = ln 1.25, and a bound of 0.9 cuts every token."""
    settings = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.9}
    parts = {"parts": [SamplerMismatch()]}
    _, _, trainer = with_sampler(with_parts, lambda position: math.log(1.25), **settings, **parts)
    found = {name: values[0] for name, values in logged(trainer).items() if name.startswith("sampler/")}
    assert found["sampler/k1"] == pytest.approx(math.log(1.25), rel=1e-3)
    assert found["sampler/k3"] == pytest.approx(0.8 - 1 + math.log(1.25), rel=1e-2)
    assert found["sampler/max"] == pytest.approx(math.log(1.25), rel=1e-2) and found["sampler/cut"] == 1.0


def test_temperature_is_one_and_the_same(with_sampler):
    """At temperature 0.6 the sampler's log-probabilities are the trainer's: ratios of 1, for selection and for EM."""
    inputs, _, _ = with_sampler(
        with_entropy_control, entropy_control=HighEntropy(), temperature=0.6, vllm_importance_sampling_mode="token_mask"
    )
    mask = inputs["completion_mask"].bool()
    ours, theirs = inputs["old_per_token_logps"][mask], inputs["sampling_per_token_logps"][mask]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert inputs["rollout_entropy"][mask].mean() < math.log(18)


@pytest.mark.trl_1_16
def test_entropy_minimisation_does_not_depend_on_the_samplers_log_probabilities(with_sampler):
    """Its loss is the entropy of the policy on the samples: no ratio enters, not even one that masks every response."""
    settings = {"entropy_minimization": EntropyMinimization(), "reward_funcs": constant, "temperature": 0.5}
    _, reference, _ = with_sampler(with_entropy_minimization, **settings)
    _, gradient, _ = with_sampler(with_entropy_minimization, lambda position: -3.0, **settings)
    assert float(reference.norm()) > 0
    torch.testing.assert_close(gradient, reference)


@pytest.mark.trl_1_16
def test_entropy_minimisation_takes_the_entropy_at_the_sampling_temperature(with_sampler):
    """By hand: the mean over response tokens of the entropy of softmax(z / 0.5)."""
    settings = {"entropy_minimization": EntropyMinimization(), "reward_funcs": constant, "temperature": 0.5}
    inputs, _, trainer = with_sampler(with_entropy_minimization, steps_per_generation=1, **settings)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    entropy = F.token_entropy(logits, 0.5)
    expected = F.masked_mean(entropy, inputs["completion_mask"])
    assert logged(trainer)["train/em_loss"][0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.trl_1_16
@pytest.mark.slow
def test_a_token_without_a_log_probability(with_sampler):
    """vLLM may give NaN for a token: TRL takes its ratio as 1, and our choice, made on its own score, is unmoved."""
    control = ClipCov(fraction=0.2, low=-9.0, high=9.0)
    plain, _, _ = with_sampler(with_entropy_control, entropy_control=control)
    inputs, gradient, _ = with_sampler(
        with_entropy_control, lambda position: math.nan if position == 1 else 0.0, entropy_control=control
    )
    assert torch.equal(inputs["plan"].selected, plain["plan"].selected)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.trl_1_16
def test_a_token_without_a_log_probability_and_no_correction(with_sampler):
    """Without the correction the choice is made on the sampler's numbers: the others must still be ranked."""
    inputs, _, _ = with_sampler(
        with_entropy_control,
        lambda position: math.nan if position == 1 else 0.0,
        entropy_control=ClipCov(fraction=0.2, low=-9.0, high=9.0),
        steps_per_generation=1,
        vllm_importance_sampling_correction=False,
    )
    assert bool(inputs["plan"].selected.any())


@pytest.mark.slow
def test_training_runs_and_selects(with_sampler):
    """A whole run on the stub: every update selects, and weights go to the sampler once a rollout."""
    _, _, trainer = with_sampler(with_entropy_control, lambda position: -0.1, entropy_control=KLCov(fraction=0.2))
    trainer.train()
    realised = [row["selected/realised"] for row in trainer.state.log_history if "selected/realised" in row]
    assert len(realised) == 4 and all(count > 0 for count in realised)
    assert trainer.vllm_generation.synced >= 2
