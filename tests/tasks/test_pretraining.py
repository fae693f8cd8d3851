"""Tokenizer, recipe and pretraining: round trips, determinism, refusals, and a loss that falls."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from autotelic.cli import main as cli
from autotelic.cli.config import from_mapping, read_yaml
from autotelic.errors import UserError
from autotelic.tasks import load_problems, model_path
from autotelic.tasks.chain_sums import ChainSums, final_answer
from autotelic.tasks.models import carried_names
from autotelic.tasks.pretraining import IGNORED, PretrainRecipe, collate, pretrain, save
from autotelic.tasks.tokenizer import build_tokenizer

TINY = PretrainRecipe(
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    num_steps=30,
    batch_size=16,
    learning_rate=1e-2,
    warmup_steps=5,
)
RECIPES = Path(__file__).parents[2] / "recipes"


def read_recipe(values):
    return from_mapping(PretrainRecipe, values, "the recipe")


def test_the_tokenizer_survives_saving_and_loading(tmp_path: Path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "12+7-5=?19-5=14"
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(text)
    assert tokenizer.chat_template is None
    assert tokenizer.padding_side == "left"
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_characters_outside_the_world_are_unknown_and_spaces_are_kept():
    tokenizer = build_tokenizer()
    assert tokenizer("1 é\n")["input_ids"][1:] == [tokenizer.unk_token_id] * 3


def test_labels_are_the_solution_and_the_end_token():
    """`1+2=?` is five characters; the solution `3` and the end token are learned, the padding is not."""
    tokenizer = build_tokenizer()
    tokens, labels = collate([("1+2=?", "3"), ("1+2+3=?", "3+3=6")], tokenizer)
    assert labels[0, :5].tolist() == [IGNORED] * 5
    assert labels[0, 5:7].tolist() == [*tokenizer("3")["input_ids"], tokenizer.eos_token_id]
    assert (labels[0, 7:] == IGNORED).all()
    assert (tokens[0, 7:] == tokenizer.pad_token_id).all()
    assert labels[1, 7:].tolist() == [*tokenizer("3+3=6")["input_ids"], tokenizer.eos_token_id]


def test_pretraining_is_deterministic_and_learns():
    threads = torch.get_num_threads()
    first, losses = pretrain(TINY, progress=False)
    second, _ = pretrain(TINY, progress=False)
    other, _ = pretrain(replace(TINY, seed=1), progress=False)
    torch.set_num_threads(threads)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


def test_a_saved_model_gives_the_same_logits(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model, losses = pretrain(replace(TINY, num_steps=1), progress=False)
    save(model, TINY, losses, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = build_tokenizer()("12+7-5=?", return_tensors="pt")["input_ids"]
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)
    card = (tmp_path / "model" / "README.md").read_text()
    assert read_recipe(yaml.safe_load(card.split("```yaml")[1].split("```")[0])) == TINY
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1.0e-3", "did you mean 'learning_rate'"),
        ("world: {leap_probabilty: 0.1}", "did you mean 'leap_probability'"),
        ("world: {strategies: leftwards}", "leftwards"),
        ("num_steps: many", "num_steps is .*not a whole number"),
        ("num_steps: true", "num_steps is .*not a whole number"),
        ("num_steps: 0", "num_steps must be at least 1"),
        ("bf16: 1", "bf16 is 1, not true or false"),
        ("hidden_size: 30", "multiple"),
        ("- a\n- b", "mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_recipe(read_yaml(path))


def test_numbers_may_be_written_as_people_write_them():
    assert read_recipe({"learning_rate": "2e-3", "weight_decay": 0}).learning_rate == 2e-3


def test_the_command_writes_a_model_and_refuses_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "recipe.yaml"
    config.write_text("hidden_size: 16\nnum_layers: 1\nnum_heads: 2\nintermediate_size: 16\nbatch_size: 4\n")
    output = tmp_path / "model"
    arguments = ["pretrain", "--config", str(config), "--num_steps", "2"]
    threads = torch.get_num_threads()
    assert cli.main([*arguments, "--output", str(output)]) == 0
    torch.set_num_threads(threads)
    assert "step 2/2" in capsys.readouterr().err
    assert (output / "model.safetensors").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert cli.main([*arguments, "--output", str(tmp_path / "other")]) == 2
    assert cli.main([*arguments, "--output", str(config / "below")]) == 2
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", carried_names())
def test_a_carried_model_is_small_able_and_unsure(name: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_path(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = load_problems("chain_sums:test", limit=40)
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    greedy = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts = tokenizer.batch_decode(greedy[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [final_answer(text) == row["answer"] for text, row in zip(texts, rows, strict=True)]
    assert 0.3 < sum(right) / len(right) < 0.95


def test_a_carried_model_says_which_recipe_made_it():
    found = [read_recipe(read_yaml(path)) for path in sorted(RECIPES.glob("pretrain_*.yaml"))]
    recipes = {recipe.name: recipe for recipe in found}
    assert sorted(recipes) == carried_names()
    for name, recipe in recipes.items():
        card = (model_path(name) / "README.md").read_text(encoding="utf-8")
        assert read_recipe(yaml.safe_load(card.split("```yaml")[1].split("```")[0])) == recipe
    assert recipes["any_pair"].world == ChainSums()


def test_an_unknown_model_is_refused_with_the_closest():
    with pytest.raises(UserError, match="did you mean 'any_pair'"):
        model_path("any_pear_tree")
