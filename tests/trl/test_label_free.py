"""Label-free rewards inside the trainer: masked prompts leave the denominator, statistics arrive, scales apply once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_trainer import micro_batches

from autotelic.errors import UserError
from autotelic.rewards import EMPO, SeedGRPO, SelfCertainty
from autotelic.rewards.label_free_reward import LabelFreeReward
from autotelic.tasks import model_path
from autotelic.trl.label_free import token_statistics, with_label_free_rewards, with_surplus_votes


class Masking(LabelFreeReward):
    """Rewards by place in the group; masks the first prompt."""

    name = "graded"

    def rewards(self, batch):
        return torch.arange(batch.clusters.shape[1], dtype=torch.float64).expand(batch.clusters.shape)

    def prompt_mask(self, batch):
        return torch.arange(len(batch.groups)) > 0


class Graded(Masking):
    """Also scales the second by ten."""

    def advantage_scale(self, batch):
        scale = torch.ones(len(batch.groups), dtype=torch.float64)
        scale[1] = 10.0
        return scale


def rollout(trainer):
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer._generate_and_score_completions(batch)


def test_masked_prompts_have_no_advantage_and_leave_the_denominator(make_trainer):
    """The token mean runs over the 12 rows that remain; losses of every kind: tests/trl/test_exactness.py."""
    trainer = make_trainer(with_label_free_rewards, reward_funcs=Graded())
    micro_batches(trainer)
    output = {
        name: torch.cat([part[name] for part in trainer._buffered_inputs])
        for name in ("advantages", "row_ids", "completion_mask")
    }
    order = output["row_ids"].argsort()
    advantages, mask = output["advantages"][order].view(-1, 4), output["completion_mask"][order]
    left_out = advantages.abs().sum(-1) == 0
    assert left_out.nonzero().flatten().tolist() == [0]
    scale = trainer._buffered_inputs[0]["policy_scale"]
    assert float(scale) == pytest.approx(int(mask.sum()) / int(mask[4:].sum()))


@pytest.mark.parametrize(("scale_rewards", "factor"), [("group", 10.0), ("none", 10.0)])
def test_advantage_scale_applies_exactly_once(make_trainer, scale_rewards, factor):
    trainer = make_trainer(with_label_free_rewards, reward_funcs=Graded(), scale_rewards=scale_rewards)
    advantages = rollout(trainer)["advantages"].view(-1, 4)
    torch.testing.assert_close(advantages[1], factor * advantages[2], rtol=1e-3, atol=1e-3)


def test_other_reward_functions_are_left_alone(make_trainer):
    output = rollout(make_trainer(with_label_free_rewards))
    assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum())


def test_token_statistics_ignore_padding_and_batching(make_model, tokenizer):
    """One row at a time and all at once give the same numbers; left padding is invisible."""
    model = make_model().eval()
    prompts = [tokenizer(text)["input_ids"] for text in ("1+2=?", "10+20+30=?", "3-3=?")]
    responses = [tokenizer(text)["input_ids"] for text in ("3", "30+30=60", "0")]
    settings = {"pad_id": tokenizer.pad_token_id, "temperature": 0.7}
    whole = token_statistics(model, prompts, responses, batch_size=3, **settings)
    for i in range(3):
        alone = token_statistics(model, prompts[i : i + 1], responses[i : i + 1], batch_size=1, **settings)
        n = len(responses[i])
        assert int(whole.mask[i].sum()) == n
        for name in ("logprobs", "entropy", "self_certainty"):
            torch.testing.assert_close(getattr(whole, name)[i, :n], getattr(alone, name)[0, :n], rtol=1e-4, atol=1e-5)


def test_token_statistics_by_hand(make_model, tokenizer):
    """The first response token's log-probability is the model's own at the prompt's last position."""
    model = make_model().eval()
    prompt, response = tokenizer("1+2=?")["input_ids"], tokenizer("3")["input_ids"]
    with torch.no_grad():
        log_p = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    found = token_statistics(model, [prompt], [response], pad_id=0, temperature=1.0, batch_size=1)
    assert float(found.logprobs[0, 0]) == pytest.approx(float(log_p[response[0]]), abs=1e-5)
    assert float(found.entropy[0, 0]) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-5)
    assert float(found.self_certainty[0, 0]) == pytest.approx(
        float(-log_p.mean() - torch.tensor(float(len(log_p))).log()), abs=1e-5
    )


def brevity(prompts, completions, **kwargs):
    return [-0.1 * len(completion) for completion in completions]


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_a_second_reward_does_not_bring_a_masked_prompt_back(make_trainer, scale_rewards):
    """Advantages of the other prompts are those of a batch without the first; the first prompt's rows have none."""
    trainer = make_trainer(
        with_label_free_rewards, reward_funcs=[Masking(), brevity], scale_rewards=scale_rewards, steps_per_generation=1
    )
    output = rollout(trainer)
    lengths = [len(trainer.processing_class.decode(ids, skip_special_tokens=True)) for ids in output["completion_ids"]]
    total = torch.arange(4).repeat(4).double() - 0.1 * torch.tensor(lengths).double()
    groups = total.view(4, 4)[1:]
    centred = groups - groups.mean(1, keepdim=True)
    spread = {"group": groups.std(1, keepdim=True), "batch": groups.flatten().std(), "none": torch.tensor(1 - 1e-4)}
    expected = centred / (spread[scale_rewards] + 1e-4)
    found = output["advantages"].view(4, 4)
    assert bool((found[0] == 0).all())
    torch.testing.assert_close(found[1:].double(), expected, rtol=1e-3, atol=1e-4)


def test_what_has_no_meaning_beside_a_second_reward_is_refused(make_trainer):
    with pytest.raises(UserError, match="seed_grpo scales the advantages"):
        make_trainer(with_label_free_rewards, reward_funcs=[SeedGRPO(), brevity])
    with pytest.raises(UserError, match="normalize_then_sum"):
        make_trainer(
            with_label_free_rewards,
            reward_funcs=[EMPO(), brevity],
            multi_objective_aggregation="normalize_then_sum",
        )


@pytest.mark.parametrize("reward", [EMPO(), SelfCertainty(), SeedGRPO()], ids=lambda r: r.name)
def test_training_with_each_kind_of_reward(make_trainer, reward):
    trainer = make_trainer(with_label_free_rewards, reward_funcs=reward, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def rollout_of(trainer, rows: int) -> dict:
    """Make one rollout of `rows` responses."""
    trainer.model.train()
    trainer._step = 0
    prompts = [{"prompt": p} for p in ("1+2=?", "3+4+5=?", "9-1=?", "2-2=?")]
    torch.manual_seed(0)
    return trainer._generate_and_score_completions([prompts[i // trainer.num_generations] for i in range(rows)])


def test_surplus_votes_keep_every_second_response(make_trainer):
    """Rewards and advantages come from all votes; half of the rows train, and only they are in the denominator."""
    whole = rollout_of(make_trainer(with_label_free_rewards, reward_funcs=EMPO(low=-1.0, high=2.0)), 16)
    trainer = make_trainer(
        lambda cls: with_surplus_votes(with_label_free_rewards(cls)),
        reward_funcs=EMPO(low=-1.0, high=2.0),
        train_generations=2,
    )
    half = rollout_of(trainer, 16)
    assert whole["completion_ids"].shape[0] == 16 and half["completion_ids"].shape[0] == 8
    torch.testing.assert_close(half["completion_ids"], whole["completion_ids"][::2])
    torch.testing.assert_close(half["advantages"], whole["advantages"][::2])
    assert int(half["num_items_in_batch"]) == int(half["completion_mask"].sum()) < int(whole["num_items_in_batch"])
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("wrong", [3, 0, 5])
def test_surplus_votes_refuses_what_does_not_divide(make_trainer, wrong):
    with pytest.raises(UserError, match="must divide num_generations=4"):
        make_trainer(with_surplus_votes, train_generations=wrong)


@pytest.mark.slow
def test_trl_grpo_takes_the_reward_by_name(tmp_path):
    """TRL's own command trains with our reward and no trainer of ours."""
    rows = [json.dumps({"prompt": f"{a}+{b}=?"}) for a in range(8) for b in range(8)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    command = [str(Path(sys.executable).parent / "trl"), "grpo", "--reward_funcs", "autotelic.rewards.empo"]
    options = {
        "model_name_or_path": model_path("any_pair"),
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 16,
        "report_to": "none",
        "bf16": False,
    }
    command += ["--use_cpu", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rewards/empo/mean" in done.stdout + done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
