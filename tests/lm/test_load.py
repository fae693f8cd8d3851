"""One way to load a model: folders, carried names, run folders, adapters, and one line for everything else."""

import json
import shutil

import pytest
import torch

from autotelic.errors import UserError
from autotelic.lm.load import load_model, resolve
from autotelic.tasks import model_path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A run folder that holds a LoRA adapter of the carried model, and what the adapted model says."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model("any_pair")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("run") / "lora"
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, logits(adapted)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5]])).logits


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_folder_is_its_base_with_the_adapter_on_top(adapter, merge):
    folder, expected = adapter
    model, tokenizer = load_model(folder, merge=merge)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not torch.allclose(logits(load_model("any_pair")[0]), expected, atol=1e-3)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in trainable) is not merge  # merged, it is a plain model that can be trained
    assert trainable and (not merge or len(trainable) == len(list(model.parameters())))
    assert tokenizer("1+1=?")["input_ids"]


def test_a_base_that_moved_is_found_by_its_carried_name(adapter, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "gone/models/any_pair"}))
    assert torch.allclose(logits(load_model(folder)[0]), adapter[1], atol=1e-5)
    file.write_text(json.dumps(config | {"base_model_name_or_path": "gone.jsonl"}))
    with pytest.raises(UserError, match="the base model of the adapter"):
        load_model(folder)


def test_an_unfinished_run_is_its_newest_checkpoint(adapter, tmp_path):
    run = tmp_path / "run"
    for step in (2, 10):
        shutil.copytree(model_path("any_pair"), run / f"checkpoint-{step}")
    (run / "checkpoint-11").mkdir()
    assert resolve(run) == str(run / "checkpoint-10")
    model, tokenizer = load_model(run)
    assert model.dtype == torch.float32 and tokenizer.eos_token_id is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "neither a file, a model folder nor a carried model"),
        ("any_pear", "did you mean 'any_pair'"),
        ("data/train.jsonl", "neither"),
        ("x.gguf", "gguf|GGUF"),
        ("EMPTY", "has no config.json"),
        ("RUN", "has saved no model yet"),
        ("BARE", "without weights"),
        ("BROKEN", "cannot load the model"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, name, message):
    if name.isupper():
        files = {"RUN": "run.json", "BARE": "config.json", "BROKEN": "config.json model.safetensors"}.get(name, "x")
        for file in files.split():
            (tmp_path / file).write_text("{}")
        name = str(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_model(name)
    assert "\n" not in str(error.value)
