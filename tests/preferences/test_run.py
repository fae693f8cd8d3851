"""`autotelic train ppl`: the held-out loss, `auto`, resuming, online pairs, bad input, two processes."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys

import pytest
from preference_parts import load, metrics, pairs, without_time, write

from autotelic.cli.main import main
from autotelic.cli.train import train
from autotelic.errors import UserError
from autotelic.preferences.sampling_policies import BehaviorPolicy, label_sequences

pytestmark = pytest.mark.filterwarnings("ignore::autotelic.functional.lookahead.BiasedLookaheadWarning")


def test_a_run_reports_the_held_out_loss_of_both_scores_and_resumes(tmp_path, options):
    summary = train("ppl", options("whole", save_steps=2))
    assert summary["finished"] and summary["step"] == 4
    rows = metrics(tmp_path / "whole")
    assert [row["step"] for row in rows if "preference/heldout_nll" in row] == [0, 2, 4]
    first = rows[0]
    assert first["preference/heldout_nll_no_lookahead"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["preference/heldout_nll"] != first["preference/heldout_nll_no_lookahead"]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["method"] == "ppl" and record["config"]["run"]["objective"] == "ppl"
    train("ppl", options("parts", save_steps=2))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")  # as if the run had died after step 2's checkpoint
    train("ppl", options("parts", save_steps=2, resume=True))
    assert without_time(metrics(tmp_path / "parts")) == without_time(rows)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_auto_keeps_the_lower_held_out_loss(tmp_path, options):
    train("ppl", options("auto", objective="auto", save_strategy="no", policy_labels="estimated,clone_steps=2"))
    choice = json.loads((tmp_path / "auto" / "choice.json").read_text())
    losses = choice["heldout_nll"]
    assert set(losses) == {"ppl", "dpo"} and losses[choice["chosen"]] == min(losses.values())
    for name, loss in losses.items():
        last = [row for row in metrics(tmp_path / "auto" / name) if "preference/heldout_nll" in row][-1]
        assert last["preference/heldout_nll"] == loss


def test_online_pairs_carry_the_policy_that_sampled_them(tmp_path, options):
    """A buffer of two batches holds two policies; a resumed run continues with the same numbers."""
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{i}+1=?"} for i in range(16)])
    extra = {"dataset": prompts, "behavior_policies": None, "online": "on,buffer=2,temperature=0.8", "reward": "random"}
    extra |= {"save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    train("ppl", options("whole", **extra))
    rows = [row for row in metrics(tmp_path / "whole") if "preference/decided_share" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all("reward/mean" in row for row in rows)
    saved = json.loads((tmp_path / "whole" / "checkpoint-4" / "online_pairs-0.json").read_text())
    assert [batch[0]["chosen_policy_id"] for batch in saved] == ["2", "3"]
    example = saved[-1][0]
    model = load(tmp_path / "whole" / "checkpoint-4").eval()
    sampling = BehaviorPolicy(temperature=0.8)
    now = label_sequences(model, sampling, [example["prompt_ids"]], [example["chosen_ids"]], 1)[0][0]
    assert example["chosen_label_logprobs"] != pytest.approx(now, abs=1e-4)  # the label is older than the policy
    train("ppl", options("parts", **extra))
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    train("ppl", options("parts", **extra, resume=True))
    assert without_time(metrics(tmp_path / "parts")) == without_time(metrics(tmp_path / "whole"))


CHAT = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_conversations_are_trained_on_through_the_chat_template(tmp_path, options, model_dir, capsys):
    """UltraFeedback's rows: refused in one line without a template, and written by it where the tokenizer has one.

    Pairs of texts, and online prompts with columns of other names, go through it too, which is said once.
    """
    rows = [
        {
            "prompt": f"{i}+1=?",
            "chosen": [{"role": "user", "content": f"{i}+1=?"}, {"role": "assistant", "content": f"{i + 1}"}],
            "rejected": [{"role": "user", "content": f"{i}+1=?"}, {"role": "assistant", "content": f"{i + 2}=7"}],
        }
        for i in range(8)
    ]
    extra = {
        "dataset": write(tmp_path / "uf.jsonl", rows),
        "behavior_policies": None,
        "objective": "dpo",
        "max_steps": 1,
    }
    with pytest.raises(UserError, match="no chat template"):
        train("ppl", options("plain", **extra))
    chat = tmp_path / "chat"
    shutil.copytree(model_dir, chat)
    (chat / "chat_template.jinja").write_text(CHAT)
    assert train("ppl", options("chat", model_name_or_path=chat, **extra))["finished"]
    extra |= {"model_name_or_path": chat, "quiet": None}
    texts = write(tmp_path / "texts.jsonl", [{k: v for k, v in row.items() if k != "row"} for row in pairs(16)])
    questions = write(tmp_path / "prompts.jsonl", [{"q": f"{i}+1=?", "gold": f"{i + 1}"} for i in range(16)])
    online = {"online": "on", "reward": "verifier", "prompt_column": "q", "answer_column": "gold"}
    for name, more in (("texts", {"dataset": texts}), ("online", {"dataset": questions} | online)):
        assert train("ppl", options(name, **extra | more))["finished"]
        assert capsys.readouterr().err.count("go through the model's chat template") == 1


def test_a_biased_lookahead_is_said_in_one_line(options, capsys):
    assert main(["train", "ppl", *options(objective="ppl_d", max_steps=1)]) == 0
    error = capsys.readouterr().err
    assert error.count("warning: the look-ahead 'observed' is biased") == 1 and "BiasedLookaheadWarning" not in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropy_control": "kl_cov"}, "entropy_control belongs to the GRPO methods"),
        ({"fraction": 0.1}, "is a setting of entropy_control"),
        ({"reward": "verifier"}, "judged already"),
        ({"dataset": None}, "give --dataset"),
        ({"prompt_column": "q"}, "prompt_column is about prompts"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl is not a file"),
        ({"behavior_policies": "nowhere.yaml"}, "cannot read the behaviour policies"),
        ({"behavior_policies": None}, "not in the table of behaviour policies"),
        ({"objective": "dppo"}, "did you mean 'dpo'"),
        ({"online": "on"}, "needs --reward"),
        ({"online": "on,bufer=2", "reward": "random"}, "did you mean 'buffer'"),
        ({"objective": "ppl,horizon"}, "has no value"),
        ({"policy_labels": "konwn"}, "did you mean 'known'"),
        ({"heldout_fraction": 1.0}, "heldout_fraction"),
        ({"num_generations": 4}, "unknown option"),
    ],
)
def test_bad_input_is_one_clear_line(options, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train("ppl", options(**changes))
    assert "\n" not in str(caught.value).strip()


RANK_PROGRAM = "import sys; from autotelic.cli.train import train; train('ppl', sys.argv[1:])"


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path, options):
    """Half the pairs each: same losses and parameters; held-out pairs count once, though ranks share an odd number."""
    for size in (1, 2):
        extra = {"per_device_train_batch_size": 8 // size, "per_device_eval_batch_size": 3, "save_strategy": "no"}
        extra |= {"max_steps": 3}  # three whole batches: accelerate fills up a short one in its own way
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(size)}
        ranks = []
        for rank in range(size):
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", RANK_PROGRAM, *options(f"ranks{size}", **extra)]
            ranks.append(subprocess.Popen(command, env=os.environ | place))
        assert [rank.wait(timeout=300) for rank in ranks] == [0] * size
    one, two = (metrics(tmp_path / f"ranks{size}") for size in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        for name in ours:
            if name.startswith("preference/") or name in ("train/loss", "policy/entropy"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (ours["step"], name)
