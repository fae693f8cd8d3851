"""Who wrote which token: tools, environments and images on TRL's real trainer.

Sampling is scripted, everything else is TRL's own: what a tool or an environment wrote stands in the response with a
tool mask of 0, and rows that are shorter are padded with a mask of 1.
"""

import json
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from oracles import aem_weights
from tiny_trainer import logged, micro_batches, random_model
from trl import GRPOConfig, GRPOTrainer

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.rewards import EMPO, SelfCertainty, TokenEntropy
from autotelic.trl import (
    ClipCov,
    Control,
    EntropyMinimization,
    EntropyTerm,
    FastPasses,
    LabelFree,
    RolloutLog,
    entropy_control,
    with_parts,
)
from autotelic.trl.label_free import token_statistics
from autotelic.trl.seam import response_mask, score

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


@pytest.fixture(autouse=True)
def _large_fractions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        yield


def scripted(trainer_class, tokenizer, turns):
    """The class, sampling what `turns(number of the call, row)` says."""

    class Scripted(trainer_class):
        calls = 0

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            texts = [turns(self.calls, row) for row in range(len(prompt_ids))]
            type(self).calls += 1
            return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], None

    return Scripted


def trainer_of(tokenizer, tmp_path, reward, parts, rows=4, trainer_class=GRPOTrainer, model=None, **settings):
    given = {name: settings.pop(name) for name in ("tools", "rollout_func", "train_dataset") if name in settings}
    prompt = [{"role": "user", "content": "1+2=?"}]
    options = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": rows,
        "num_generations": rows,
        "num_iterations": 2,
        "max_completion_length": 512,
        "max_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "beta": 0.0,
        "logging_steps": 1,
    }
    words = getattr(tokenizer, "tokenizer", tokenizer)
    special = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    shape = {"vocab_size": len(words), "max_position_embeddings": 2048}
    given = {"train_dataset": Dataset.from_list([{"prompt": prompt}] * rows)} | given
    return with_parts(trainer_class)(
        model=model or random_model("Qwen3ForCausalLM", **shape, **special),
        reward_funcs=reward,
        args=GRPOConfig(**(options | settings)),
        processing_class=tokenizer,
        parts=parts,
        **given,
    )


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The product.
    """
    return a * b


CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": %d}}\n</tool_call><|im_end|>'


def with_tools(call, row):
    """Three rows ask the tool, the fourth answers at once; what the tool returns is never what the model answers."""
    if call % 2 == 0:
        return CALL % (row + 4) if row < 3 else "\\boxed{7}<|im_end|>"
    return ["\\boxed{5}<|im_end|>", "\\boxed{5}<|im_end|>", "so \\boxed{6}<|im_end|>"][row]


def wrote(trainer, tokenizer, micro):
    """Return, for every row, the text of the tokens that count."""
    mask = response_mask(micro)
    return [tokenizer.decode(ids[kept]) for ids, kept in zip(micro["completion_ids"], mask, strict=True)]


def test_tools(byte_tokenizer, tmp_path):
    """Selection, entropy, drift, rewards and answers see what the model wrote; the tool's 12, 15, 18 are not read."""
    control = Control(ClipCov(fraction=0.5, low=-99.0, high=99.0))
    log = RolloutLog(tmp_path / "rollouts.jsonl", 1, 1)
    reward = EMPO(low=-1.0, high=9.0)
    scripts = scripted(GRPOTrainer, byte_tokenizer, with_tools)
    trainer = trainer_of(
        byte_tokenizer, tmp_path, reward, [control, LabelFree(), log], trainer_class=scripts, tools=[multiply]
    )
    micro = micro_batches(trainer)[0]
    order = micro["row_ids"].argsort()
    micro = {name: x[order] for name, x in micro.items() if isinstance(x, torch.Tensor) and x.dim()}
    texts = wrote(trainer, byte_tokenizer, micro)
    assert texts[0] == CALL % 4 + "\\boxed{5}<|im_end|>" and texts[3] == "\\boxed{7}<|im_end|>"
    assert "tool_response" in byte_tokenizer.decode(micro["completion_ids"][0])
    padding = micro["completion_mask"] == 0
    assert bool((micro["tool_mask"][padding] == 1).all()) and not bool(response_mask(micro)[padding].any())
    assert reward.last_result.clusters.tolist() == [[0, 0, 1, 2]]
    trainer.train()
    row = trainer.state.log_history[0]
    tokens = sum(len(byte_tokenizer(text)["input_ids"]) for text in texts)
    assert row["selected/requested"] == tokens // 2
    responses = json.loads((tmp_path / "rollouts.jsonl").read_text().splitlines()[0])["responses"]
    assert [len(response["tokens"]) for response in responses] == [len(byte_tokenizer(t)["input_ids"]) for t in texts]


def environment(prompts, trainer):
    """Five tokens of which the model wrote three, and a shorter row; log-probabilities as a sampler gives them."""
    ids = [[1, 2, 3, 4, 5], [6, 7], [1, 2, 3, 9, 5], [8, 7]][: len(prompts)]
    masks = [[1, 0, 0, 1, 1], [1, 1], [1, 0, 0, 1, 1], [1, 1]]
    return {
        "prompt_ids": [[10, 11, 12]] * len(prompts),
        "completion_ids": ids,
        "logprobs": [[0.0 if not m else -1.0 for m in mask] for mask in masks],
        "env_mask": masks,
    }


@pytest.mark.parametrize("make", [SelfCertainty, TokenEntropy], ids=lambda kind: kind.__name__)
def test_certainty_is_that_of_what_the_model_wrote(byte_tokenizer, tmp_path, make):
    """The environment's two tokens are in the context, and in no mean: by hand, from the model's own logits."""
    reward = make()
    trainer = trainer_of(byte_tokenizer, tmp_path, reward, [LabelFree()], rollout_func=environment)
    micro_batches(trainer)
    with torch.no_grad():
        logits = trainer.model(input_ids=torch.tensor([[10, 11, 12, 1, 2, 3, 4, 5]])).logits[0, 2:7].double()
    log_p = logits.log_softmax(-1)
    values = {"self_certainty": -log_p.mean(-1) - torch.tensor(float(log_p.shape[-1])).log()}
    values["token_entropy"] = (log_p.exp() * log_p).sum(-1)
    expected = values[reward.name][[0, 3, 4]].mean()
    assert reward.last_result.rewards[0, 0] == pytest.approx(float(expected), rel=1e-4)
    assert reward.last_result.rewards[0, 0] != pytest.approx(float(values[reward.name].mean()), rel=1e-3)


def test_the_mask_of_statistics_by_hand(byte_tokenizer):
    model = random_model("Qwen3ForCausalLM")
    found = token_statistics(model, [[1, 2]], [[3, 4, 5]], [[1, 0, 1]], pad_id=0, temperature=1.0, batch_size=1)
    assert found.mask.tolist() == [[True, False, True]]


@pytest.mark.trl_1_16
def test_an_environment_has_no_part_in_control_and_entropy(byte_tokenizer, tmp_path):
    """Ten tokens are the model's: quota, entropies and the EM denominator count them; the gradient is theirs alone."""
    high = Control(entropy_control("high_entropy", fraction=0.5))
    parts = [high, EntropyTerm(EntropyMinimization())]
    reward = lambda completions, **_: [0.0, 1.0, 2.0, 3.0][: len(completions)]  # noqa: E731
    trainer = trainer_of(byte_tokenizer, tmp_path, reward, parts, rollout_func=environment)
    micro_batches(trainer)
    trainer._step = 1  # the second pass over the rollout: nothing is generated
    inputs = trainer._prepare_inputs(None)
    mask = response_mask(inputs)
    assert int(mask.sum()) == int(inputs["num_em_tokens"]) == int(inputs["num_items_in_batch"]) == 10
    kept = mask & ~inputs["plan"].selected
    assert int(kept.sum()) == 5 and not bool((inputs["plan"].selected & ~mask).any())
    entropies = torch.where(mask, inputs["rollout_entropy"], -1.0)
    assert set(entropies.flatten().topk(5).indices.tolist()) == set(kept.flatten().nonzero().flatten().tolist())
    trainer._compute_loss(trainer.model, inputs)
    assert logged(trainer)["train/em_loss"][-1] == pytest.approx(
        float(inputs["rollout_entropy"][mask].mean()), rel=1e-5
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_turns_are_weighed_by_their_entropy(byte_tokenizer, tmp_path):
    """AEM: six turns of one prompt, of which two share their context; the log has first and last turns."""
    control = Control(entropy_control("aem", coef=2.0, min_range=0.0))
    reward = lambda completions, **_: [0.0, 1.0, 2.0, 3.0][: len(completions)]  # noqa: E731
    trainer = trainer_of(byte_tokenizer, tmp_path, reward, [control], rollout_func=environment)
    trainer.train()
    inputs = trainer._buffered_inputs[0]
    mask, entropy = response_mask(inputs), inputs["rollout_entropy"]
    weights = aem_weights(entropy.numpy(), mask.numpy(), [0] * 4, 2.0, 0.0)
    np.testing.assert_allclose(inputs["prepared"][mask], weights[mask.numpy()], rtol=1e-5)
    assert np.unique(weights[mask.numpy()].round(6)).size == 5
    row = trainer.state.log_history[0]
    first, last = mask & (F.turns(mask) == 0), mask & (F.turns(mask) == 1)
    both = last.any(-1, keepdim=True)
    assert row["policy/entropy_first_turn"] == pytest.approx(float(entropy[first & both].mean()), rel=1e-4)
    assert row["policy/entropy_last_turn"] == pytest.approx(float(entropy[last].mean()), rel=1e-4)


# Images.


@pytest.fixture(scope="module")
def seeing(byte_tokenizer):
    """A tiny random Llava: images of 4 x 4 pixels are four tokens; and its processor."""
    import copy

    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen3Config,
    )

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = CLIPImageProcessor(size={"height": 4, "width": 4}, do_center_crop=False)
    processor = LlavaProcessor(
        image,
        tokenizer,
        patch_size=2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    tokenizer.chat_template = TEMPLATE
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=Qwen3Config(**text),
        vision_config=CLIPVisionConfig(**vision, image_size=4, patch_size=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return LlavaForConditionalGeneration(config), processor


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.mark.slow
def test_a_multimodal_batch_goes_through_every_part(seeing, tmp_path):
    """Prompts that differ in their image only; Clip_V, which reads the whole vocabulary, makes a pass of its own."""
    from PIL import Image

    model, processor = seeing
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    prompt = [{"role": "user", "content": "1+2=?"}]
    rows = Dataset.from_list([{"prompt": prompt, "image": image} for image in images] * 2)
    length = lambda completions, **_: [float(len(c[0]["content"])) for c in completions]  # noqa: E731
    parts = [
        Control(entropy_control("clip_v", mu=0.1, fraction=0.5, refresh=True)),
        LabelFree(),
        EntropyTerm(EntropyMinimization()),
        RolloutLog(tmp_path / "rollouts.jsonl", 1, 1),
        FastPasses("auto", "auto"),
    ]
    trainer = trainer_of(processor, tmp_path, length, parts, rows=8, model=model, num_generations=4, train_dataset=rows)
    micro = micro_batches(trainer)[0]
    assert tuple(micro["pixel_values"].shape) == (8, 3, 4, 4)
    expected, entropies = score(trainer, micro, entropy=True)
    found, mask = trainer.part(Control).measure(micro, frozenset({"entropy", "expected"})), response_mask(micro)
    torch.testing.assert_close(found["logprobs"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["entropy"][mask], entropies[mask], rtol=1e-4, atol=1e-5)
    blind, _ = score(trainer, micro | {"pixel_values": torch.zeros_like(micro["pixel_values"])})
    assert not torch.allclose(blind[mask], expected[mask], rtol=1e-4)
    trainer.train()
    assert trainer.state.global_step == 2 and (tmp_path / "rollouts.jsonl").exists()


@pytest.mark.slow
def test_certainty_of_images_is_refused(seeing, tmp_path):
    from PIL import Image

    from autotelic.errors import UserError

    model, processor = seeing
    prompt = [{"role": "user", "content": "1+2=?"}]
    rows = Dataset.from_list([{"prompt": prompt, "image": Image.new("RGB", (4, 4), "red")}] * 4)
    trainer = trainer_of(processor, tmp_path, SelfCertainty(), [LabelFree()], model=model, train_dataset=rows)
    with pytest.raises(UserError, match="text-only"):
        trainer.train()
