"""The rule that chooses a head, on faked devices; and what TRL's head gives where the rule takes it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from autotelic.controls.high_entropy import HighEntropy
from autotelic.lm import head, head_choice
from autotelic.lm.head_choice import MIN_VOCABULARY, Choice, Timed, choose_head
from autotelic.rewards import EMPO, SelfCertainty
from autotelic.trl import (
    ClipCov,
    EntropyMinimization,
    FastPasses,
    KLCov,
    with_entropy_control,
    with_entropy_minimization,
)
from autotelic.trl.label_free import with_label_free_rewards

pytest.importorskip("trl.kernels", reason="this TRL has no fused head to replace")

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS = (
    Timed("NVIDIA H200", "bfloat16", 1024, 0.8, 0.7),
    Timed("NVIDIA H200", "bfloat16", 4096, 1.3, 1.2),
    Timed("NVIDIA H200", "bfloat16", 8192, 1.1, 0.9),
    Timed("NVIDIA A100", "bfloat16", 2048, 2.0, 1.9),
)


def choice(monkeypatch, place, width=4096, vocabulary=MIN_VOCABULARY, dtype=torch.bfloat16, asked=None, rows=ROWS):
    """Decide for a weight of this shape that seems to lie there."""
    monkeypatch.setattr(head_choice, "place_of", lambda weight: place)
    monkeypatch.setattr(head_choice, "TIMED", rows)
    return choose_head(torch.empty(vocabulary, width, device="meta"), dtype, asked)


def test_a_cpu_takes_ours_from_a_vocabulary_on(monkeypatch):
    assert choice(monkeypatch, "cpu") == Choice(True, "it is faster on a CPU")
    small = choice(monkeypatch, "cpu", vocabulary=MIN_VOCABULARY - 1, asked="it must be")
    assert str(small) == "TRL's, since a vocabulary below 8192 gains nothing that counts"


@pytest.mark.parametrize("place", ["NVIDIA H200", "xpu"])
def test_a_device_that_was_not_timed_takes_trls(place, monkeypatch):
    found = choice(monkeypatch, place, rows=())
    assert str(found) == f"TRL's, since ours has not been timed on {place}; fused_head=on takes it"
    assert not choice(monkeypatch, "NVIDIA H200", dtype=torch.float32).ours  # another dtype than the one that was timed


@pytest.mark.parametrize(
    ("width", "ours", "why"),
    [
        (896, False, "ours was 0.80 times as fast as TRL's on NVIDIA H200 at d = 1024"),
        (3584, True, "it was 1.30 times as fast as TRL's on NVIDIA H200 at d = 4096"),
        (9000, False, "ours was 1.10 times as fast as TRL's on NVIDIA H200 at d = 8192"),  # the interval holds 1
    ],
)
def test_a_timed_device_takes_the_faster_one_at_the_nearest_width(width, ours, why, monkeypatch):
    assert choice(monkeypatch, "NVIDIA H200", width) == Choice(ours, why)


def test_what_only_ours_does_is_taken_anywhere(monkeypatch):
    assert choice(monkeypatch, "xpu", asked="it skips them") == Choice(True, "it skips them")


def test_the_table_is_what_was_measured():
    """No row without a committed result; and all of its rows."""
    path = RESULTS / "gpu.json"
    timed = json.loads(path.read_text())["timed"] if path.exists() else []
    assert tuple(Timed(**row) for row in timed) == head_choice.TIMED


PARTS = {
    "clip_cov": (with_entropy_control, lambda: {"entropy_control": ClipCov(fraction=0.1)}, None),
    "high_entropy": (with_entropy_control, lambda: {"entropy_control": HighEntropy()}, "80% of the tokens without"),
    "most kept": (with_entropy_control, lambda: {"entropy_control": HighEntropy(fraction=0.9)}, None),
    "em": (with_entropy_minimization, lambda: {"entropy_minimization": EntropyMinimization()}, "relative precision"),
    "empo": (with_label_free_rewards, lambda: {"reward_funcs": EMPO()}, None),
    "certainty": (with_label_free_rewards, lambda: {"reward_funcs": SelfCertainty()}, "token statistics"),
    "quantile": (
        with_entropy_control,
        lambda: {"entropy_control": None, "top_entropy_quantile": 0.2},
        "top_entropy_quantile leaves most tokens",
    ),
}


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
@pytest.mark.parametrize("name", PARTS)
def test_a_part_asks_for_ours_where_it_needs_it(name, make_trainer, monkeypatch):
    """On a device that was not timed, ours runs only where a part of the run says why."""
    monkeypatch.setattr(head_choice, "place_of", lambda weight: "NVIDIA H200")
    monkeypatch.setattr(head_choice, "MIN_VOCABULARY", 1)
    wrap, settings, words = PARTS[name]
    found = make_trainer(wrap, fused_head="auto", num_iterations=2, **settings()).part(FastPasses).installed.head
    assert found.ours == (words is not None)
    assert (words or "has not been timed on NVIDIA H200") in str(found)


# TRL's head, where the rule takes it: float32 against logits in float64, within what is stated here.

EPS = torch.finfo(torch.float32).eps
ULPS = 8
"""Error in units of EPS max|z|: absolute for log-probabilities and entropies, which TRL takes as differences of numbers
of that size (so an entropy near zero has no correct digit), relative by norm for gradients."""
BOUND = 2e-4
"""Relative, by norm, of the gradient of a whole update: what flows through the model is in float32 too."""


def in_float64(trainer_class):
    """A trainer whose log-probabilities and entropies come from a float64 copy's logits."""

    class Reference(trainer_class):
        def _get_per_token_logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=False, **kwargs
        ):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1] / self.temperature
            log_p = logits[:, -logits_to_keep:].log_softmax(-1)
            ids = input_ids[:, -logits_to_keep:].unsqueeze(-1)
            entropy = -(log_p.exp() * log_p).sum(-1) if compute_entropy else None
            return log_p.gather(-1, ids).squeeze(-1), entropy, None

    return Reference


METHODS = {
    "clip_cov": (with_entropy_control, lambda: {"entropy_control": ClipCov(fraction=0.1, low=-1.0, high=5.0)}),
    "kl_cov": (with_entropy_control, lambda: {"entropy_control": KLCov(fraction=0.1)}),
    "entropy_bonus": (with_entropy_control, lambda: {"entropy_control": None, "entropy_coef": 0.1}),
    "em": (with_entropy_minimization, lambda: {"entropy_minimization": EntropyMinimization()}),
}


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_on_trls_head_is_the_float64_one(method, temperature, make_trainer, make_model):
    wrap, settings = METHODS[method]
    settings = settings() | {"num_iterations": 2, "temperature": temperature, "per_device_train_batch_size": 8}
    ours = make_trainer(wrap, model=peaked(make_model()), fused_head="off", **settings)
    exact = make_trainer(lambda cls: wrap(in_float64(cls)), model=peaked(make_model()).double(), **settings)
    parts = rollout(ours)
    for name, gradient in gradients(exact, parts).items():
        error = (gradients(ours, parts)[name].double() - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < BOUND, (name, float(error))


def peaked(model):
    """Distributions between a few nats and nearly none."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)
    return model


def rollout(trainer):
    """Micro-batches of a made-up rollout whose old policy is a little off."""
    generator = torch.Generator().manual_seed(0)
    rows, width = 16, 8
    prompts = torch.randint(3, 18, (rows, 5), generator=generator)
    mask = torch.arange(width) < torch.randint(2, width + 1, (rows, 1), generator=generator)
    whole = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.randint(3, 18, (rows, width), generator=generator),
        "completion_mask": mask.long(),
        "advantages": torch.randn(rows, generator=generator),
        "row_ids": torch.arange(rows),
    }
    parts = [{key: value[half] for key, value in whole.items()} for half in (slice(0, 8), slice(8, 16))]
    noise = 0.2 * torch.randn(rows, width, generator=generator)
    for part, moved in zip(parts, noise.split(8), strict=True):
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
        with torch.no_grad():
            now = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), width)[0]
        part |= {"old_per_token_logps": now + moved, "num_items_in_batch": part["completion_mask"].sum()}
    return parts


def gradients(trainer, parts):
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer._buffered_inputs = [dict(part) for part in parts]
    trainer._step = len(parts)  # the second pass over the rollout: nothing is generated
    trainer._compute_loss(trainer.model, trainer._prepare_inputs(None)).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_trls_values_and_gradients_against_float64(temperature, scale):
    """Log-probability and entropy with their gradients; mean entropies of 9 nats down to a tenth."""
    from trl.kernels import ChunkedLogProbFunction

    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(40, 24, generator=generator)
    weight = torch.randn(9001, 24, generator=generator)
    targets = torch.randint(9001, (40,), generator=generator)
    upstream = torch.randn(2, 40, generator=generator)
    leaves = [nn.Parameter(x) for x in (hidden, weight)]
    outputs = ("log_probs", "entropy")
    found = ChunkedLogProbFunction.apply(*leaves, None, targets, temperature, 4096, None, 1.0, outputs)[:2]
    exact = [nn.Parameter(x.double()) for x in (hidden, weight)]
    log_p = (exact[0] @ exact[1].T / temperature).log_softmax(-1)
    expected = log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    mine = torch.autograd.grad(found, leaves, tuple(upstream))
    theirs = torch.autograd.grad(expected, exact, tuple(upstream.double()))
    bound = ULPS * EPS * float((exact[0] @ exact[1].T / temperature).detach().abs().max())
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).abs().max() < bound
    for a, b in zip(mine, theirs, strict=True):
        assert (a.double() - b).norm() / b.norm() < bound


def test_our_kernels_are_tried_on_the_models_device(make_model, monkeypatch):
    """A kernel that returns something else is found out before the first update."""
    from trl.trainer.utils import add_fused_lm_head

    from autotelic import kernels

    model = make_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    original = kernels.linear_logprob_entropy
    monkeypatch.setattr(kernels, "linear_logprob_entropy", lambda *a, **k: tuple(1.1 * x for x in original(*a, **k)))
    monkeypatch.setattr(head_choice, "MIN_VOCABULARY", 1)
    assert "our kernels give other log-probabilities than the logits on cpu" in str(head.use_fused_head(model))
