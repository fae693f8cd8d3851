"""The same rollouts on 1, 2 and 4 processes (gloo, through TRL and accelerate): same tokens, metrics and parameters.

Rollouts are made up from each response's place in the batch of all ranks. The 32 responses are two groups of 16, so
four ranks hold half a group each. Two updates share the rollout, with plain gradient descent, so that parameters show
gradients, and the second update has ratios other than 1.
"""

import os
import socket
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_trainer import tiny_qwen

ROWS, GROUP, STEPS = 32, 16, 2
METHODS = {
    "clip_cov": {"fraction": 0.1, "low": 0.05, "high": 99.0},
    "kl_cov": {"fraction": 0.1},
    "high_entropy": {"fraction": 0.3},
    "entropic": {"target": 1.0, "threshold": 0.01},
}
REFILLED = "clip_cov, refilled"
"""With dynamic sampling: every response to one of the two prompts is right, so its group is replaced."""


def rollout_trainer(base, tokenizer):
    """A GRPOTrainer whose rollouts and selections are a matter of row numbers."""

    class Recorded(base):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            first = self.accelerator.process_index * len(prompt_ids)
            responses = []
            for row in range(first, first + len(prompt_ids)):
                generator = torch.Generator().manual_seed(row)
                length = int(torch.randint(1, 12, (1,), generator=generator))
                ids = torch.randint(0, len(tokenizer), (length,), generator=generator).tolist()
                responses.append([token for token in ids if token != tokenizer.eos_token_id] or [5])
            return responses, None

    return Recorded


def recorder():
    """A part that notes which tokens of each row every update selects."""
    from autotelic.trl import Part

    class Selections(Part):
        def __init__(self):
            self.updates = []

        def on_update(self, update):
            rows = [
                (int(row), selected[mask.bool()].tolist())
                for micro in update.micro_batches
                for row, mask, selected in zip(
                    micro["row_ids"], micro["completion_mask"], micro["plan"].selected, strict=True
                )
            ]
            self.updates.append(dict(rows))

    return Selections()


def length_reward(prompts, completions, completion_ids, **kwargs):
    """Half of the responses of a group are right, by their length."""
    return [float(len(ids) % 2) for ids in completion_ids]


def one_prompt_teaches(prompts, completion_ids, **kwargs):
    """The other one has the same reward for every response."""
    return [float(len(ids) % 2) if p.startswith("3") else 1.0 for p, ids in zip(prompts, completion_ids, strict=True)]


def train(method, size, folder):
    """Two updates on this process's share of the rollout; return what must not depend on the number of processes."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import Control, DynamicSampling, entropy_control, with_parts

    tokenizer = build_tokenizer()
    model = tiny_qwen(tokenizer, tie_word_embeddings=False)
    name, refills = method.partition(",")[0], [DynamicSampling(8)] if method == REFILLED else []
    control, seen = Control(entropy_control(name, **METHODS[name])), recorder()
    trainer = rollout_trainer(with_parts(GRPOTrainer), tokenizer)(
        model=model,
        reward_funcs=one_prompt_teaches if refills else length_reward,
        args=GRPOConfig(
            output_dir=str(folder / "run"),
            per_device_train_batch_size=ROWS // size,
            num_generations=GROUP,
            num_iterations=STEPS,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            max_completion_length=12,
            max_steps=STEPS,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=1e9,
            shuffle_dataset=False,
            beta=0.0,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in ("1+2=?", "3+4=?")]),
        processing_class=tokenizer,
        parts=[control, *refills, seen],
    )
    trainer.train()
    ours = ("covariance/", "selected/", "advantage/", "policy/", "reward", "sampling/")
    logs = [{k: v for k, v in row.items() if k.startswith(ours)} for row in trainer.state.log_history[:STEPS]]
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {
        "selections": seen.updates,
        "logs": logs,
        "parameters": parameters,
        "state": dict(control.state),
    }


def worker(rank, size, port, methods, folder):
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of this process
    torch.set_num_threads(1)
    results = {method: train(method, size, Path(folder)) for method in methods}
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return what one process finds, by method."""
    from autotelic.controls.entropy_control import EntropyControlWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        return {method: train(method, 1, tmp_path_factory.mktemp(method)) for method in (*METHODS, REFILLED)}


def test_one_process_selects_and_moves(alone):
    """What the other tests compare with is not trivial."""
    for method, found in alone.items():
        assert len(found["selections"]) == STEPS
        assert all(any(any(row) for row in step.values()) for step in found["selections"]), method
    assert alone["kl_cov"]["logs"][1]["policy/abs_log_ratio"] > 1e-3
    assert "covariance/accuracy_mid" in alone["clip_cov"]["logs"][0]
    assert alone[REFILLED]["logs"][0]["sampling/refilled"] == 1.0
    assert "sampling/refilled" not in alone["clip_cov"]["logs"][0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_trains_alike(alone, size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (size, port, [*METHODS, REFILLED], str(tmp_path)), nprocs=size)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for method, expected in alone.items():
        found = [part[method] for part in parts]
        for step in range(STEPS):
            merged = {row: tokens for part in found for row, tokens in part["selections"][step].items()}
            assert merged == expected["selections"][step], (method, step)
            for name, value in expected["logs"][step].items():
                assert found[0]["logs"][step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (method, name)
        for part in found:
            assert part["state"] == pytest.approx(expected["state"], rel=1e-5)
            for name, parameter in expected["parameters"].items():
                torch.testing.assert_close(part["parameters"][name], parameter, rtol=1e-5, atol=1e-7)
