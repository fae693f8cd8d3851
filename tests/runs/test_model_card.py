"""Model cards, push_to_hub with the upload stubbed, and real logs of the trackers that are installed."""

import importlib.util
import json
import math
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from autotelic.cli.train import train
from autotelic.runs.model_card import code, model_card

pytestmark = pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")


@pytest.fixture
def options(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{i}+{i + 1}=?", "answer": str(2 * i + 1), "id": f"../../{i}"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(name="run", **overrides):
        settings = {
            "model_name_or_path": tmp_path / "model",
            "dataset": tmp_path / "data.jsonl",
            "output_dir": tmp_path / name,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 4,
            "max_steps": 2,
            "quiet": "true",
        } | overrides
        return [text for key, value in settings.items() for text in (f"--{key}", str(value))]

    return build


def header_and_text(folder):
    card = (folder / "README.md").read_text()
    _, header, text = re.split(r"^---$", card, maxsplit=2, flags=re.M)
    return yaml.safe_load(header), text


def test_the_card_tells_what_was_trained_and_whether_labels_were_used(tmp_path, options):
    train("empo", [*options(), "--validation_dataset", str(tmp_path / "data.jsonl"), "--validation_steps", "2"])
    header, text = header_and_text(tmp_path / "run")
    assert header["library_name"] == "transformers" and "base_model" not in header  # a path of this machine
    assert {"autotelic", "empo", "arxiv:2504.05812"} <= set(header["tags"])
    assert "**No labels were used in training.** Reward: `empo`." in text
    assert "those labels reached the metrics only" in text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    entropies = [row["policy/entropy"] for row in rows if "policy/entropy" in row]
    assert f"| entropy, nats per token | {entropies[0]:.4g} | {entropies[-1]:.4g} |" in text
    assert "entropy law" in text.lower() and "after 2 updates" in text


def test_labels_and_lora_are_on_the_card(tmp_path, options):
    extra = {"use_peft": "true", "lora_r": 2, "lora_target_modules": "all-linear"}
    train("grpo", options(entropy_control="clip_cov,fraction=0.1,low=-9,high=9", **extra))
    header, text = header_and_text(tmp_path / "run")
    assert header["library_name"] == "peft" and {"grpo", "clip_cov"} <= set(header["tags"])
    assert "**Labels were used**" in text and "(a LoRA adapter)" in text and "| fraction | `0.1` |" in text
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_the_law_is_that_of_the_log_or_of_the_whole_run():
    record = {
        "method": "grpo",
        "config": {
            "run": {"prompt": None, "dataset": "d", "dataset_limit": 5, "reward": "a.b", "validation_dataset": None},
            "training": {"output_dir": "runs/x"},
        },
        "versions": {"torch": "1"},
    }
    logged = [{"step": 1, "law/a": 0.5, "law/b": 1.25, "law/ceiling": 0.75}]
    assert "a = 0.5, b = 1.25, ceiling at H = 0: 0.75" in model_card(record, logged)
    entropies = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    rows = [{"step": i, "policy/entropy": h, "reward/mean": 0.9 - 0.2 * math.exp(h)} for i, h in enumerate(entropies)]
    found = model_card(record, rows, base_model="someone/model-7B")
    assert "a = 0.2, b = 0.9, ceiling at H = 0: 0.7" in found and "base_model: someone/model-7B" in found
    assert "cannot be fitted" in model_card(record, [])


def test_text_from_outside_stays_code():
    assert code("`x`\n<script>") == "`'x' <script>`"
    assert len(code("y" * 1000)) < 220


@pytest.mark.slow
def test_push_to_hub_uploads_the_final_model_and_the_card(tmp_path, options, monkeypatch):
    """The hub's calls are stubbed: what would have been uploaded is the finished folder, without checkpoints."""
    import transformers.trainer as module

    uploads = []

    def upload(**kwargs):
        names = {path.name for path in tmp_path.joinpath("run").iterdir()}
        uploads.append((kwargs["repo_id"], kwargs["commit_message"], kwargs["ignore_patterns"], names))
        return SimpleNamespace(is_done=lambda: True)

    stub = SimpleNamespace(
        create_repo=lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id, url=f"hub/{repo_id}"),
        upload_folder=upload,
    )
    monkeypatch.setattr(module, "hf_api", lambda: stub)
    train("empo", options(push_to_hub="true", hub_model_id="someone/small", hub_strategy="end"))
    assert [upload[:2] for upload in uploads] == [("someone/small", "Model save")]
    assert "checkpoint-*" in uploads[0][2]
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= uploads[0][3]
    assert "**No labels were used in training.**" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.slow
def test_tensorboard_gets_the_run(tmp_path, options, monkeypatch):
    from autotelic.runs.logs import read_log

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train("grpo", options(report_to="tensorboard", entropy_control="kl_cov,fraction=0.1"))
    log = read_log(tmp_path / "board")
    ours = {
        json.loads(line)["step"]: json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    }
    for name, theirs in (("train/entropy", "policy/entropy"), ("train/selected/share", "selected/share")):
        steps, values = log.columns[name]
        assert list(steps) == [1, 2]
        assert list(values) == pytest.approx([ours[step][theirs] for step in steps], rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_the_run_offline(tmp_path, options, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    train("grpo", options(report_to="wandb", entropy_control="kl_cov,fraction=0.1"))
    import wandb

    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert b"train/entropy" in data and b"train/selected/share" in data


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None or "TRACKIO_DIR" not in os.environ,
    reason="needs trackio, and TRACKIO_DIR set before it is imported: a folder for its database",
)
def test_trackio_gets_the_run(options):
    train("grpo", options(report_to="trackio", entropy_control="kl_cov,fraction=0.1", project="small"))
    (database,) = Path(os.environ["TRACKIO_DIR"]).glob("small*.db")
    with closing(sqlite3.connect(database)) as connection:
        logged = [bytes(row[0]) for row in connection.execute("SELECT CAST(metrics AS BLOB) FROM metrics")]
    assert sum(b"train/selected/share" in row for row in logged) == 2


def test_identifiers_of_the_data_name_no_files(tmp_path, options):
    """Prompt ids such as ../../0 end up in rows, never in paths."""
    before = set(tmp_path.parent.iterdir())
    train("grpo", options(log_rollouts=2, reward="random"))
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data.jsonl", "run"}
    assert set(tmp_path.parent.iterdir()) == before
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert all(row["prompt_id"].startswith("../../") for row in rows) and rows


def test_pickled_weights_are_refused(tmp_path, options, make_model):
    import torch

    from autotelic.errors import UserError

    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"without weights: no \.safetensors file"):
        train("grpo", options(reward="random"))


def test_code_of_a_model_is_not_trusted_by_default(options):
    from autotelic.cli.train import parse

    run, training, model = parse("grpo", options())
    trusting = [item.trust_remote_code for item in (run, training, model) if hasattr(item, "trust_remote_code")]
    assert trusting and not any(trusting)


def test_papers_come_from_the_tables():
    from autotelic.runs.model_card import paper_of

    names = ("kl_cov", "entrocraft", "cispo", "empo", "observe", "grpo")
    assert [paper_of(name) for name in names] == ["2505.22617", "2604.26326", "2506.13585", "2504.05812", "", ""]
