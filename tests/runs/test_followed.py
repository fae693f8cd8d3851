"""Followed prompts: the same ones at every look, bounded, right in their statistics, and without effect on the run."""

import json

import pytest
import torch

from autotelic.cli.train import train
from autotelic.diagnostics.probing import MAX_FOLLOWED_PROMPTS, make_follower
from autotelic.errors import UserError
from autotelic.runs.followed import FollowedPrompts


@pytest.fixture
def follower(tokenizer):
    return make_follower(tokenizer, [{"prompt": "1+2=?", "id": "a"}, {"prompt": "12+7-5=?"}], k=3, max_new_tokens=6)


def test_statistics_are_those_of_a_plain_forward_pass(follower, make_model, tokenizer):
    """One response at a time, no padding, float64 softmax."""
    model = make_model().eval()
    rows = follower(model)
    assert [row["prompt_id"] for row in rows] == ["a", "1"]
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert len(row["responses"]) == 3
        for response in row["responses"]:
            tokens = tokenizer.convert_tokens_to_ids(response["tokens"])
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
            log_p = logits.log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            assert response["entropy"] == pytest.approx(entropy.tolist(), abs=2e-4)
            surprisal = -log_p.gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1)
            assert response["surprisal"] == pytest.approx(surprisal.tolist(), abs=2e-4)


def test_random_numbers_are_its_own(follower, make_model):
    """Two looks at one model are equal, and the global random state is where it was."""
    model = make_model().train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert follower(model) == follower(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert follower(make_model(1)) != follower(model)


def test_the_log_stays_small(tokenizer):
    with pytest.raises(UserError, match="the log must stay small"):
        make_follower(tokenizer, [{"prompt": "1+2=?"}] * (MAX_FOLLOWED_PROMPTS + 1))
    with pytest.raises(UserError, match="the log must stay small"):
        make_follower(tokenizer, [{"prompt": "1+2=?"}], k=17)


def run(make_trainer, make_model, folder, callbacks):
    torch.manual_seed(11)
    trainer = make_trainer(model=make_model(), callbacks=callbacks, output_dir=str(folder), num_iterations=2)
    trainer.train()
    logs = [
        {k: v for k, v in row.items() if "time" not in k and "runtime" not in k and "per_second" not in k}
        for row in trainer.state.log_history
    ]
    return logs, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_run_is_bit_identical_with_and_without(make_trainer, make_model, follower, tmp_path):
    path = tmp_path / "followed.jsonl"
    plain_logs, plain = run(make_trainer, make_model, tmp_path / "a", [])
    logs, weights = run(make_trainer, make_model, tmp_path / "b", [FollowedPrompts(follower, path, 1)])
    assert logs == plain_logs and len(logs) > 3
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {row["prompt_id"] for row in rows} == {"a", "1"}
    assert rows[0]["responses"] != rows[-2]["responses"]  # the model has changed


def engine(folder, *, step, **state):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    state = TrainerState(global_step=step, **({"is_world_process_zero": True} | state))
    return TrainingArguments(output_dir=str(folder), use_cpu=True), state, TrainerControl()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(follower, make_model, tmp_path):
    """State at step 2: rows of steps 0 to 2 stay, step 4 goes; the end is looked at once."""
    path = tmp_path / "followed.jsonl"
    path.write_text("".join(json.dumps({"step": s, "prompt_id": "a", "responses": []}) + "\n" for s in (0, 2, 4)))
    callback, model = FollowedPrompts(follower, path, 2), make_model()
    args, state, control = engine(tmp_path, step=2)
    callback.on_train_begin(args, state, control, model=model)
    state.global_step = 4
    callback.on_step_end(args, state, control, model=model)
    callback.on_train_end(args, state, control, model=model)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2, 4, 4]


def test_only_the_main_process_writes(follower, make_model, tmp_path):
    path = tmp_path / "followed.jsonl"
    callback = FollowedPrompts(follower, path, 1)
    args, state, control = engine(tmp_path, step=0, is_world_process_zero=False)
    callback.on_train_begin(args, state, control, model=make_model())
    assert not path.exists()


def test_the_command_follows_its_first_prompts(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i % 4}+1=?", "id": f"p{i}"}) + "\n" for i in range(16)))
    settings = {
        "model_name_or_path": tmp_path / "model",
        "dataset": data,
        "reward": "empo",
        "output_dir": tmp_path / "run",
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": 2,
        "quiet": True,
        "save_strategy": "no",
        "follow_prompts": "3,k=2,steps=1",
    }
    train("grpo", [item for key, value in settings.items() for item in (f"--{key}", str(value))])
    rows = [json.loads(line) for line in (tmp_path / "run" / "followed.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt_id"]) for row in rows[:4]] == [(0, "p0"), (0, "p1"), (0, "p2"), (1, "p0")]
    assert len(rows) == 9 and len(rows[0]["responses"]) == 2


def test_overwriting_a_run_leaves_nothing_that_the_report_would_take_for_its_own(tmp_path):
    from autotelic.report.run_folders import RUN_FILES
    from autotelic.trl.arguments import RunArguments
    from autotelic.trl.build import prepare_folder

    for name in RUN_FILES:
        (tmp_path / name).write_text("{}\n")
    prepare_folder(tmp_path, RunArguments(overwrite=True))
    assert [name for name in RUN_FILES if (tmp_path / name).exists()] == []
