"""Run `autotelic train` on several processes of this machine's CPU, as `accelerate launch` would, and report.

    python tests/scaling/ranks.py FOLDER SCENARIO.json

The parent imports everything once and forks the processes, so a scenario takes seconds. A scenario is a list of runs:
{"name", "method", "size", "config" (of recipes/accelerate), "options", "rows": rollouts are a matter of step and row,
"fault": what goes wrong}. Printed is one JSON object: name -> what each process found.

accelerate 1.15 shards on accelerators only: FSDP and DeepSpeed are skipped where the backend is gloo. Here that one
decision (`PartialState`'s kind of distribution) is overruled; all that follows is theirs.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "faults"))

GROUP, ROWS = 8, 16


def main(folder: Path, runs: list[dict]) -> dict:
    """Run every scenario in turn."""
    from kill import prepare

    prepare(folder)
    results = {}
    for run in runs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environ = launch_environment(run) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = [fork(folder, run, rank, environ) for rank in range(run["size"])]
        for child in children:
            os.waitpid(child, 0)
        outputs = [folder / f"{run['name']}.{rank}.json" for rank in range(run["size"])]
        results[run["name"]] = [json.loads(path.read_text()) if path.exists() else None for path in outputs]
    return results


def launch_environment(run: dict) -> dict[str, str]:
    """Return what `accelerate launch --config_file` would put into the environment, from accelerate's own functions."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    if run.get("config") is None:
        return {}
    config = str(ROOT / "recipes" / "accelerate" / f"{run['config']}.yaml")
    arguments = [
        "--config_file",
        config,
        "--num_processes",
        str(run["size"]),
        "--mixed_precision",
        "no",
        "--no_python",
        "x",
    ]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    before = dict(os.environ)
    if args.use_deepspeed:
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environ = prepare_deepspeed_cmd_env(args)[1]
    else:
        environ = prepare_multi_gpu_env(args)
    os.environ.clear()
    os.environ |= before
    return {key: value for key, value in environ.items() if before.get(key) != value and isinstance(value, str)}


def fork(folder: Path, run: dict, rank: int, environ: dict[str, str]) -> int:
    """Start one process; return its id."""
    child = os.fork()
    if child:
        return child
    found: dict = {}
    try:
        size = run["size"]
        os.environ |= environ
        if size > 1 or run.get("config"):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        with (folder / f"{run['name']}.{rank}.log").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        found = train_and_tell(folder, run, rank)
    except BaseException as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    finally:
        (folder / f"{run['name']}.{rank}.json").write_text(json.dumps(found))
        sys.stderr.flush()
        os._exit(0)


def train_and_tell(folder: Path, run: dict, rank: int) -> dict:
    """Train; return what this process saw."""
    sharded = run.get("config") not in (None, "ddp")
    if sharded:
        shard_on_a_cpu(run["config"])
    seen = {"texts": [], "selected": []}
    follow(run, rank, seen)
    from autotelic.cli.train import train

    per_process = ROWS // run["size"]
    settings = {
        "model_name_or_path": folder / "model",
        "dataset": folder / "data.jsonl",
        "output_dir": folder / run.get("folder", run["name"]),
        "num_generations": GROUP,
        "per_device_train_batch_size": per_process,
        "steps_per_generation": 1,
        "num_iterations": 2,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "max_steps": 4,
        "save_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 1e9,
        "quiet": "true",
    } | run.get("options", {})
    if sharded and run["config"].startswith("zero"):
        settings |= {"use_cpu": "false"}  # accelerate takes no DeepSpeed where it was asked for a CPU
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    summary = train(run["method"], options)
    return {"finished": summary["finished"], "step": summary["step"], **seen}


def shard_on_a_cpu(config: str) -> None:
    """Let accelerate shard over gloo."""
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if config.startswith("zero"):
        import deepspeed

        # Only its inference uses this kernel, which it would compile for minutes at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState._prepare_backend = lambda self, *a, **k: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
        return
    start = PartialState.__init__

    def overruled(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = overruled


def follow(run: dict, rank: int, seen: dict) -> None:
    """Replace rollouts where asked, note what is sampled and selected, and make the fault happen."""
    import torch
    from trl import GRPOTrainer

    from autotelic.trl import Control

    sample, compute, plan = GRPOTrainer._generate_single_turn, GRPOTrainer._compute_loss, Control.on_update
    fault = run.get("fault")

    def rollouts(self, prompt_ids, *args, **kwargs):
        if run.get("rows"):
            first = self.accelerator.process_index * len(prompt_ids)
            found = [made_up(self, first + i) for i in range(len(prompt_ids))], None
        else:
            found = sample(self, prompt_ids, *args, **kwargs)
        seen["texts"].append(self.processing_class.batch_decode(found[0]))
        if fault == "sigterm" and rank == 1 and self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    def loss(self, model, inputs):
        value = compute(self, model, inputs)
        spoilt = fault == "nan" and rank == 1 and self.state.global_step == 2
        return value * float("nan") if spoilt else value

    def planned(self, update):
        plan(self, update)
        ours = {}
        for micro in update.micro_batches:
            selections = zip(micro["row_ids"], micro["completion_mask"], micro["plan"].selected, strict=True)
            for row, mask, selected in selections:
                ours[int(row)] = selected[mask.bool()].tolist()
        seen["selected"].append(ours)

    def made_up(self, row):
        """Digits, so that answers differ and agree; half of a group is right for the length reward."""
        generator = torch.Generator().manual_seed(1000 * self.state.global_step + row)
        length = int(torch.randint(1, 6, (1,), generator=generator))
        digits = self.processing_class.convert_tokens_to_ids(list("0123"))
        chosen = torch.randint(0, len(digits), (length,), generator=generator).tolist()
        return [digits[i] for i in chosen] if row % 3 else [digits[1]]

    GRPOTrainer._generate_single_turn, GRPOTrainer._compute_loss = rollouts, loss
    Control.on_update = planned


def length_reward(prompts, completion_ids, **kwargs):
    """A reward that differs within a group and needs no label."""
    return [float(len(ids) % 2) for ids in completion_ids]


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    sys.modules["ranks"] = sys.modules["__main__"]  # `--reward ranks.length_reward`
    print(json.dumps(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
