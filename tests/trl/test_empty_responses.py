"""A rollout of empty responses ends the run, with the reason; a few empty ones do not."""

from types import SimpleNamespace

import pytest
import torch

from autotelic.errors import UserError
from autotelic.trl.empty_responses import NotEmpty
from autotelic.trl.seam import Rollout, with_parts


def part(tokenizer, **settings):
    found = NotEmpty()
    found.trainer = SimpleNamespace(
        processing_class=tokenizer,
        accelerator=SimpleNamespace(device="cpu"),
        state=SimpleNamespace(global_step=3),
        **settings,
    )
    return found


def rollout(prompt, responses, training=True):
    return Rollout(rows=[{"prompt": prompt}] * len(responses), training=training, response_ids=responses)


def test_nearly_all_and_why(tokenizer, monkeypatch):
    eos, text = tokenizer.eos_token_id, tokenizer("7")["input_ids"]
    part(tokenizer).on_responses(rollout("q", [[eos]] * 9 + [text]))
    part(tokenizer).on_responses(rollout("q", [[eos]] * 10, training=False))
    with pytest.raises(UserError, match=r"19 of 20 responses at step 3 are empty.*look at the prompts"):
        part(tokenizer).on_responses(rollout("q", [[eos]] * 19 + [text]))
    monkeypatch.setattr(tokenizer, "chat_template", "x")
    with pytest.raises(UserError, match=r"this is a chat model.*--chat on"):
        part(tokenizer).on_responses(rollout("q", [[eos], []]))
    with pytest.raises(UserError, match="look at the prompts"):
        part(tokenizer).on_responses(rollout([{"role": "user", "content": "q"}], [[eos]]))


def test_a_run_ends_before_its_first_update(make_trainer, make_model, tokenizer):
    model = make_model()

    def generate(input_ids, **kwargs):
        return torch.cat([input_ids, torch.full((len(input_ids), 1), tokenizer.eos_token_id)], dim=1)

    model.generate = generate
    trainer = make_trainer(with_parts, model=model, parts=[NotEmpty()])
    with pytest.raises(UserError, match="32 of 32 responses at step 0 are empty"):
        trainer.train()
    assert trainer.state.global_step == 0
