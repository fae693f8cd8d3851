"""One-shot entropy minimisation: the gradient, the positions, the split of the batch, padding, ranks, seeds."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_trainer import first_update, gradient_of, logged

from autotelic.cli.train import parse, train
from autotelic.errors import UserError
from autotelic.functional import entropy_minimization_loss, entropy_minimization_official
from autotelic.trl import EntropyMinimization, EntropyTerm, with_entropy_minimization
from autotelic.trl.label_free import with_surplus_votes
from autotelic.trl.seam import response_mask

pytestmark = pytest.mark.trl_1_16

RECIPES = Path(__file__).parents[2] / "recipes"


def constant_reward(prompts, completions, **kwargs):
    return [0.0] * len(completions)


@pytest.fixture
def make_em(make_trainer, make_model):
    """A trainer of 32 rollouts of one prompt in `accumulation` micro-batches, with its own copy of one model."""

    def build(accumulation=1, prompts=("1+2+3=?",), train_generations=None, **settings):
        model = make_model()
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(4.0)  # as initialised, every token's entropy is ln V
        wrap = with_entropy_minimization
        if train_generations is not None:
            wrap = lambda cls: with_surplus_votes(with_entropy_minimization(cls, train_generations=train_generations))  # noqa: E731
        return make_trainer(
            wrap,
            model=model,
            prompts=prompts,
            reward_funcs=constant_reward,
            entropy_minimization=EntropyMinimization(**settings),
            num_generations=16,
            per_device_train_batch_size=32 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            temperature=0.5,
        )

    return build


def update_of(trainer, seed=3):
    """Return the micro-batches of the first update and its gradient."""
    return first_update(trainer, seed), gradient_of(trainer.model)


def reference_gradient(trainer, micro_batches, reduction="token_mean", floor=0.0):
    """The same gradient from a float64 copy of the model, row by row, without padding, by the definition."""
    model = type(trainer.model)(trainer.model.config).double()  # without TRL's patches
    model.load_state_dict(trainer.model.state_dict())
    sums, means, count = [], [], 0
    for micro in micro_batches:
        for row in range(len(micro["completion_ids"])):
            prompt = micro["prompt_ids"][row][micro["prompt_mask"][row].bool()]
            answer = micro["completion_ids"][row][micro["completion_mask"][row].bool()]
            logits = model(input_ids=torch.cat([prompt, answer]).unsqueeze(0)).logits[0]
            predicting = logits[len(prompt) - 1 : -1] / trainer.temperature
            p = predicting.softmax(-1)
            entropy = -(p * p.log()).sum(-1)
            entropy = torch.where(entropy > floor, entropy, torch.full_like(entropy, floor))
            sums.append(entropy.sum())
            means.append(entropy.mean())
            count += len(answer)
    total = torch.stack(sums).sum()
    loss = {"token_mean": total / count, "token_sum": total, "sequence_mean": torch.stack(means).mean()}[reduction]
    loss.backward()
    return gradient_of(model).float(), loss.item()


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_the_gradient_at_the_size_of_a_real_vocabulary(temperature):
    """V = 151,936, some logits at -inf: dH/dz_i = -(1/T) p_i (ln p_i + H), in float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 3, 151_936, generator=generator, dtype=torch.float64) * 3
    z[..., ::7] = -torch.inf
    z[0, 1, 5] = 60.0  # a token that is all but certain
    mask = torch.tensor([[True, True, False]])
    log_p = (z / temperature).log_softmax(-1)
    finite = log_p.masked_fill(log_p == -torch.inf, 0.0)
    p = log_p.exp()
    entropy = -(p * finite).sum(-1, keepdim=True)
    expected = -(p * (finite + entropy)) / temperature / 2 * mask.unsqueeze(-1)
    logits = z.float().requires_grad_()
    loss = entropy_minimization_loss(logits, mask, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(float(entropy[0, :2].mean()), rel=1e-5)
    assert float((logits.grad.double() - expected).norm() / expected.norm()) < 1e-5
    assert (logits.grad[..., ::7] == 0).all()


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "token_sum"])
def test_the_trainers_gradient_is_that_of_the_definition(make_em, reduction):
    trainer = make_em(reduction=reduction)
    micro_batches, gradient = update_of(trainer)
    expected, loss = reference_gradient(trainer, micro_batches, reduction)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert logged(trainer)["train/em_loss"][0] == pytest.approx(loss, rel=1e-5)


def test_the_floor_leaves_tokens_below_it_alone(make_em):
    trainer = make_em(floor=1.0)
    micro_batches, gradient = update_of(trainer)
    expected, _ = reference_gradient(trainer, micro_batches, floor=1.0)
    whole, _ = reference_gradient(trainer, micro_batches)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert float((gradient - whole).norm() / whole.norm()) > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reduction": "sequence_mean"},
        {"reduction": "token_sum"},
        {"positions": "last", "position_fraction": 0.5},
        {"positions": "top_entropy", "position_fraction": 0.2},
    ],
    ids=lambda s: "-".join(map(str, s.values())) or "default",
)
def test_the_split_into_micro_batches_does_not_matter(make_em, settings):
    gradients = [update_of(make_em(accumulation, **settings))[1] for accumulation in (1, 2, 4)]
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-5


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_responses_that_only_vote_are_not_in_the_mean(make_em, reduction):
    """32 votes, 8 rows that train: gradient and logged loss are those of the 8, in float64 (they were .47 of it)."""
    trainer = make_em(2, reduction=reduction, train_generations=4)
    micro_batches, gradient = update_of(trainer)
    assert sum(len(micro["completion_ids"]) for micro in micro_batches) == 8
    expected, loss = reference_gradient(trainer, micro_batches, reduction)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    values = logged(trainer)["train/em_loss"]
    assert sum(values) / len(values) == pytest.approx(loss, rel=1e-5)


def micro_batch(rows, tokenizer, left=0, right=0):
    """A micro-batch by hand: pairs of (prompt, response, whether it ends), with extra padding on either side."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    prompts = [tokenizer(prompt)["input_ids"] for prompt, *_ in rows]
    responses = [tokenizer(text)["input_ids"] + [eos] * ends for _, text, ends in rows]
    before, after = max(map(len, prompts)) + left, max(map(len, responses)) + right
    inputs = {
        "prompt_ids": torch.tensor([[pad] * (before - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (before - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([r + [pad] * (after - len(r)) for r in responses]),
        "completion_mask": torch.tensor([[1] * len(r) + [0] * (after - len(r)) for r in responses]),
        "advantages": torch.zeros(len(rows)),
    }
    return inputs | {"num_items_in_batch": inputs["completion_mask"].sum()}


def loss_of(trainer, inputs):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    count = trainer.part(EntropyTerm).minimization.position_counts(response_mask(inputs)).sum()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs | {"num_em_tokens": count})
    loss.backward()
    return loss.item(), gradient_of(trainer.model)


ROWS = [("1+2=?", "3", True), ("3+4+5=?", "7+5=12", True), ("9-1=?", "8=8=8=8", False)]


def test_the_end_token_counts_once_and_padding_and_prompt_never(make_em, tokenizer):
    """2 + 7 + 7 tokens: `3` and its end, `7+5=12` and its end, seven tokens without one."""
    trainer = make_em()
    inputs = micro_batch(ROWS, tokenizer, right=3)
    assert int(response_mask(inputs).sum()) == 16
    loss, gradient = loss_of(trainer, inputs)
    expected, reference = reference_gradient(trainer, [inputs])
    assert loss == pytest.approx(reference, rel=1e-5)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_padding_on_either_side_does_not_matter(make_em, tokenizer):
    trainer = make_em()
    loss, gradient = loss_of(trainer, micro_batch(ROWS, tokenizer))
    for left, right in ((5, 0), (0, 6), (2, 3)):
        padded_loss, padded = loss_of(trainer, micro_batch(ROWS, tokenizer, left, right))
        assert padded_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(padded, gradient, rtol=1e-4, atol=1e-6)


def test_position_masks_by_hand():
    """Five and three tokens; half of them, rounded up: three and two."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    entropy = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3], [0.5, 0.1, 0.4, 9.0, 9.0]])
    last = EntropyMinimization(positions="last", position_fraction=0.5).position_mask(entropy, mask)
    assert last.tolist() == [[False, False, True, True, True], [False, True, True, False, False]]
    top = EntropyMinimization(positions="top_entropy", position_fraction=0.5).position_mask(entropy, mask)
    assert top.tolist() == [[False, True, False, True, True], [True, False, True, False, False]]
    assert EntropyMinimization().position_mask(entropy, mask).equal(mask)


def test_compat_official_is_the_scripts_loss_on_whole_sequences(make_em, tokenizer):
    """Golden parity of the loss itself: tests/functional/test_official_parity.py."""
    trainer = make_em(compat="official")
    inputs = micro_batch(ROWS, tokenizer)
    loss, _ = loss_of(trainer, inputs)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    expected = entropy_minimization_official(
        trainer.model(input_ids=ids, attention_mask=attention).logits,
        ids,
        inputs["prompt_mask"].sum(-1),
        pad_id=tokenizer.pad_token_id,
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert loss != pytest.approx(loss_of(make_em(), inputs)[0], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "mean"}, "token_mean"),
        ({"positions": "first"}, "top_entropy"),
        ({"position_fraction": 0.0}, "share of tokens"),
        ({"floor": -1.0}, "negative"),
        ({"compat": "paper"}, "official"),
        ({"compat": "official", "floor": 0.1}, "one loss only"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EntropyMinimization(**settings)


def run_of(tmp_path, name, model, seed):
    options = {"prompt": "1+2=?", "num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 2}
    options |= {"max_completion_length": 6, "learning_rate": 1e-3, "output_dir": tmp_path / name, "seed": seed}
    options |= {"model_name_or_path": model, "save_strategy": "no", "quiet": True}
    train("one_shot_em", [item for key, value in options.items() for item in (f"--{key}", str(value))])
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["policy/entropy"], row["train/em_loss"]) for row in rows]


def test_same_seed_same_numbers(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    runs = [run_of(tmp_path, f"run{i}", tmp_path / "model", seed) for i, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("one_shot_em_*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_the_papers_settings(path):
    on_one_process = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "8", "--bf16", "false"]
    run, training, _ = parse("one_shot_em", ["--config", str(path), *on_one_process])
    assert (training.num_generations, training.temperature, training.max_steps) == (64, 0.5, 10)
    assert (training.weight_decay, training.max_grad_norm, training.lr_scheduler_type) == (0.01, 1.0, "constant")
    if "qwen" in path.stem:
        assert training.learning_rate == 2e-5
        assert run.prompt.startswith("The pressure \\( P \\) exerted by wind on a sail varies jointly as the area")
        assert run.prompt.endswith(
            "Find the wind velocity when the pressure on \\( 4 \\) square feet of sail is \\( 32 \\) pounds."
        )
        assert "\n" not in run.prompt and "  " not in run.prompt


def rank_worker(rank, size, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=8,
        num_generations=16,
        max_completion_length=8,
        max_steps=2,
        learning_rate=1e-2,
        temperature=0.5,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        beta=0.0,
    )
    trainer = with_entropy_minimization(GRPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        reward_funcs=constant_reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "1+2+3=?"}] * 16),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        entropy_minimization=EntropyMinimization(),
    )
    seen = []
    inner = trainer._compute_loss

    def watch(model, inputs):
        row = {key: inputs[key].tolist() for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
        seen.append(row | {"num_em_tokens": int(inputs["num_em_tokens"])})
        return inner(model, inputs)

    trainer._compute_loss = watch
    grads = []
    inner_clip = trainer.accelerator.clip_grad_norm_

    def clip(parameters, *rest, **kwargs):
        parameters = list(parameters)
        grads.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).clone())
        return inner_clip(parameters, *rest, **kwargs)

    trainer.accelerator.clip_grad_norm_ = clip
    trainer.train()
    torch.save({"seen": json.dumps(seen), "gradient": grads[0], "steps": trainer.state.global_step}, folder / f"{rank}")


@pytest.mark.slow
def test_ranks_draw_different_rollouts_and_share_one_gradient(tmp_path, make_em, tokenizer):
    """Two gloo processes: other rollouts of one prompt, and the gradient of all sixteen together."""
    import socket

    import torch.multiprocessing as mp

    trainer = make_em()
    trainer.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(rank_worker, (2, port, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    seen = [json.loads(one["seen"]) for one in found]
    assert [one["steps"] for one in found] == [2, 2] and len(seen[0]) == 2
    assert seen[0][0]["completion_ids"] != seen[1][0]["completion_ids"]
    assert seen[0][0]["prompt_ids"] == seen[1][0]["prompt_ids"]
    micro_batches = [{k: torch.tensor(v) for k, v in one[0].items()} for one in seen]
    assert seen[0][0]["num_em_tokens"] == sum(int(m["completion_mask"].sum()) for m in micro_batches)
    expected, _ = reference_gradient(trainer, micro_batches)
    for one in found:
        assert float((one["gradient"] - expected).norm() / expected.norm()) < 1e-4
