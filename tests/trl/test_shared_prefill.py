"""Prompts that are read once: the same samples as plain generation, fewer tokens read, refusals."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from autotelic.errors import UserError
from autotelic.trl import grouped_cache, with_entropy_control
from autotelic.trl import shared_prefill as prefill


class Ban(LogitsProcessor):
    """A processor that looks at the whole text so far."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, input_ids, -1e9)


def prompts(repeats=4, together=False):
    """Two prompts, the first padded on the left, in turns or one after the other."""
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 4, 11, 12, 13, 14]])
    ids = ids.repeat_interleave(repeats, 0) if together else ids.repeat(repeats, 1)
    return ids, (ids != 0).long()


def config(**more):
    return GenerationConfig(
        **({"max_new_tokens": 9, "do_sample": True, "pad_token_id": 0, "eos_token_id": 3, "top_k": 0} | more)
    )


@pytest.fixture
def reads(monkeypatch):
    """Return a function that counts the tokens which a model's layers read."""

    def follow(model):
        tokens = []
        inner = model.base_model.forward
        monkeypatch.setattr(
            model.base_model, "forward", lambda *a, **k: tokens.append(k["input_ids"].numel()) or inner(*a, **k)
        )
        return tokens

    return follow


@pytest.fixture
def grouped_steps(monkeypatch):
    """Return the list of layers' steps that attended to a prompt stored once."""
    steps = []
    inner = grouped_cache.GroupLayer.update
    monkeypatch.setattr(
        grouped_cache.GroupLayer, "update", lambda self, *a, **k: steps.append(1) or inner(self, *a, **k)
    )
    return steps


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("more", [{}, {"temperature": 0.7, "top_k": 5}, {"do_sample": False}, {"max_new_tokens": 70}])
def test_samples_are_those_of_plain_generation(make_model, more, together, reads, grouped_steps):
    """Also where the responses' own keys outgrow their first buffer; rows of a prompt may lie apart."""
    model = make_model().eval()
    assert prefill.can_group(model)  # the trial, before anything is counted
    grouped_steps.clear()
    ids, attention = prompts(together=together)
    sampled = []
    for install in (False, True):
        if install:
            prefill.install_shared_prefill(model, "on")
        tokens = reads(model)
        torch.manual_seed(5)
        sampled.append(
            model.generate(
                input_ids=ids,
                attention_mask=attention,
                generation_config=config(**more),
                logits_processor=[Ban()],
            )
        )
        if not install:
            steps = len(tokens)
            assert tokens[0] == 8 * 6
        else:
            assert tokens[:2] == [2 * 5, 8] and len(tokens) == steps + 1
    assert len(grouped_steps) == (steps if together else 0) and model.config._attn_implementation == "sdpa"
    assert torch.equal(*sampled) and (sampled[0][:, 6:] != 0).any()


@pytest.mark.parametrize(
    "more",
    [{"num_beams": 2}, {"num_return_sequences": 2}, {"cache_implementation": "static"}, {"use_cache": False}],
)
def test_other_ways_to_decode_are_left_alone(make_model, more, reads):
    model = make_model().eval()
    prefill.install_shared_prefill(model, "on")
    tokens = reads(model)
    ids, attention = prompts()
    model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=2, **more))
    assert tokens[0] >= 8 * 6


@pytest.mark.parametrize("more", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_the_models_own_configuration_counts_too(make_model, more, reads):
    """transformers fills what a call's configuration leaves open from the model's."""
    model = make_model().eval()
    for name, value in more.items():
        setattr(model.generation_config, name, value)
    prefill.install_shared_prefill(model, "on")
    tokens = reads(model)
    ids, attention = prompts()
    model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=2))
    assert tokens[0] >= 8 * 6


def test_dropout_is_not_shared(make_model, reads):
    """In training mode, every row draws its own."""
    model = make_model()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    prefill.install_shared_prefill(model, "on")
    tokens = reads(model)
    ids, attention = prompts()
    for training, first in ((True, 8 * 6), (False, 2 * 5)):
        tokens.clear()
        model.train(training)
        model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=1))
        assert tokens[0] == first


def test_parameters_that_are_spread_over_processes_are_left_alone(make_model, reads):
    model = make_model().eval()
    prefill.install_shared_prefill(model, "on")
    next(model.parameters()).ds_id = 0
    tokens = reads(model)
    ids, attention = prompts()
    model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=1))
    assert tokens[0] == 8 * 6


def test_grouped_attention_by_hand():
    """One head of width 1, prompt keys (0,) and value (4,), own key (0,) and value (8,): both weigh a half."""
    layer = grouped_cache.GroupLayer(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4.0))
    keys, values = layer.update(torch.zeros(2, 1, 1, 1), torch.tensor([8.0, 16.0]).view(2, 1, 1, 1))
    out, _ = grouped_cache.grouped_attention(None, torch.ones(2, 1, 1, 1), keys, values, None)
    assert out.flatten().tolist() == [6.0, 10.0] and layer.get_seq_length() == 2
    hidden = torch.tensor([[False, True], [True, True]]).view(2, 1, 1, 2)
    out, _ = grouped_cache.grouped_attention(None, torch.ones(2, 1, 1, 1), keys, values, hidden)
    assert out.flatten().tolist() == [8.0, 10.0]


def test_an_attention_that_does_otherwise_is_found_out(make_model, monkeypatch, grouped_steps):
    """Where the trial disagrees, every row gets a copy of its prompt's keys."""
    model = make_model().eval()
    monkeypatch.setattr(prefill, "grouped", lambda cache: pytest.fail("used") if grouped_steps else 1 / 0)
    prefill.install_shared_prefill(model, "on")
    ids, attention = prompts(together=True)
    model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=1))
    assert model._groups_prompts is False


def test_auto_wants_tokens_to_save(make_model, reads):
    model = make_model().eval()
    prefill.install_shared_prefill(model, "auto")
    tokens = reads(model)
    for repeats, first in ((4, 8 * 6), (60, 2 * 5)):
        tokens.clear()
        ids, attention = prompts(repeats)
        model.generate(input_ids=ids, attention_mask=attention, generation_config=config(max_new_tokens=1))
        assert tokens[0] == first


def test_different_prompts_and_one_token_are_left_alone(make_model, reads):
    model = make_model().eval()
    prefill.install_shared_prefill(model, "on")
    tokens = reads(model)
    for ids in (torch.tensor([[4, 5], [6, 7]]), torch.tensor([[4], [4]])):
        tokens.clear()
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config(max_new_tokens=1))
        assert tokens == [ids.numel()]


def test_a_trainers_rollout_is_the_same(make_trainer, make_model):
    rollouts = []
    for mode in ("off", "on"):
        trainer = make_trainer(with_entropy_control, model=make_model(), shared_prefix=mode)
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        torch.manual_seed(7)
        rollouts.append(trainer._generate_and_score_completions(batch)["completion_ids"])
    assert torch.equal(*rollouts)


def test_layers_of_another_kind_are_refused(make_model):
    model = make_model()
    assert prefill.prefill_refusal(model) is None
    model.config.layer_types = ["linear_attention"]
    assert "linear_attention" in str(prefill.use_shared_prefill(model, "auto"))
    with pytest.raises(UserError, match="shared_prefix=on cannot be used"):
        prefill.use_shared_prefill(model, "on")
