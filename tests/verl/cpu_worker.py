"""verl's real training worker on one CPU process per rank: FSDP2 over gloo, a small model, made-up rollouts."""

import functools
import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))

import cpu_platform
import torch
import torch.distributed as dist
import verl  # noqa: F401  the plug-in loads with it


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(rank=0, size=1, port=None):
    """Initialise the process group as verl's workers do, on gloo."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {key: str(value) for key, value in where.items()} | {"MASTER_PORT": str(port or free_port())}
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=size)
    cpu_platform.register_engine()


def make_worker(
    model,
    policy_loss,
    micro_batch=4,
    mini_batch=16,
    learning_rate=1e-3,
    dynamic=False,
    lora_rank=0,
    strategy="fsdp2",
    **actor,
):
    """Return verl's TrainingWorker with the loss of an actor whose `policy_loss` is given."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import (
        FSDPActorConfig,
        FSDPEngineConfig,
        FSDPOptimizerConfig,
        HFModelConfig,
        TrainingWorkerConfig,
    )
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    engine = FSDPEngineConfig(
        strategy="fsdp2",
        use_dynamic_bsz=dynamic,
        max_token_len_per_gpu=40,
        infer_max_token_len_per_gpu=40,
        micro_batch_size_per_gpu=micro_batch,
        infer_micro_batch_size_per_gpu=micro_batch,
        use_torch_compile=False,
        use_remove_padding=False,
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    )
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(model),
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            lora_rank=lora_rank,
            override_config={"attn_implementation": "eager"},
        ),
        engine_config=engine,
        optimizer_config=FSDPOptimizerConfig(lr=learning_rate, total_training_steps=10, weight_decay=0.0),
        checkpoint_config=CheckpointConfig(),
    )
    worker = TrainingWorker(config)
    worker.reset()
    settings = {"ppo_mini_batch_size": mini_batch, "ppo_micro_batch_size_per_gpu": micro_batch} | actor
    worker.set_loss_fn(
        functools.partial(
            ppo_loss,
            config=FSDPActorConfig(
                strategy="fsdp2",
                rollout_n=4,
                policy_loss=policy_loss,
                **settings,
            ),
        )
    )
    return worker


def made_up_rollouts(num_rows=16, vocabulary=15, seed=0):
    """Return lists of prompt tokens, response tokens, old log-probabilities and advantages."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(num_rows):
        prompt = torch.randint(3, vocabulary, (int(torch.randint(2, 5, (), generator=generator)),), generator=generator)
        length = int(torch.randint(3, 9, (), generator=generator))
        response = torch.randint(3, vocabulary, (length,), generator=generator)
        old = -3 * torch.rand(length, generator=generator)
        advantage = float(torch.randn((), generator=generator))
        rows.append((prompt, response, old, torch.full((length,), advantage), f"uid{row // 4}"))
    return rows


def as_tensordict(rows, mini_batch, epochs=1, **flags):
    """Return rows in the form in which verl's V1 trainer hands them to a worker: nested tensors."""
    from verl.utils import tensordict_utils as tu

    def nested(values):
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    prompts, responses, old, advantages, _ = (list(column) for column in zip(*rows, strict=True))
    mask = nested([torch.ones(len(r), dtype=torch.int64) for r in responses])
    tensors = {
        "prompts": nested(prompts),
        "responses": nested(responses),
        "input_ids": nested([torch.cat(pair) for pair in zip(prompts, responses, strict=True)]),
        "position_ids": nested([torch.arange(len(p) + len(r)) for p, r in zip(prompts, responses, strict=True)]),
        "response_mask": mask,
        "loss_mask": mask,
        "old_log_probs": nested(old),
        "advantages": nested(advantages),
    }
    given = {
        "calculate_entropy": False,
        "global_batch_size": mini_batch,
        "mini_batch_size": mini_batch,
        "epochs": epochs,
        "seed": 0,
        "dataloader_kwargs": {"shuffle": False},
        "temperature": 1.0,
    } | flags
    return tu.get_tensordict(tensors, non_tensor_dict=given)


def padded(rows):
    """Return rows as the deprecated trainer holds them: prompts padded left, responses right."""
    width, height = max(len(p) for p, *_ in rows), max(len(r) for _, r, *_ in rows)
    columns = {name: [] for name in ("prompts", "responses", "attention_mask", "response_mask")}
    floats = {"old_log_probs": [], "advantages": []}
    for prompt, response, old, advantage, _ in rows:
        left, right = width - len(prompt), height - len(response)
        columns["prompts"].append([0] * left + prompt.tolist())
        columns["responses"].append(response.tolist() + [0] * right)
        columns["attention_mask"].append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
        columns["response_mask"].append([1] * len(response) + [0] * right)
        floats["old_log_probs"].append(old.tolist() + [float("nan")] * right)
        floats["advantages"].append(advantage.tolist() + [0.0] * right)
    tensors = {name: torch.tensor(values) for name, values in (columns | floats).items()}
    tensors["input_ids"] = torch.cat([tensors["prompts"], tensors["responses"]], dim=1)
    tensors["position_ids"] = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return tensors
