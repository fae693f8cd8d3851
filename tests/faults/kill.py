"""Kill a training process again and again, at random moments, and check that nothing is lost.

    python tests/faults/kill.py FOLDER [KILLS] [SEED]

The parent imports everything once and forks a trainer per kill (no autograd runs in the parent, so forking is safe).
The trainer writes its phase (generation, update, checkpoint) into a shared byte; the parent chooses a phase and kills
with SIGKILL a random moment after it began. A killed run is resumed from its last whole checkpoint; a finished one is
compared with a run that nobody disturbed, row by row and weight by weight, and another method is begun.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

PHASES = {"start": 0, "generation": 1, "update": 2, "checkpoint": 3, "final model": 4}
LENGTHS = {"start": 0.5, "generation": 0.15, "update": 0.08, "checkpoint": 0.08, "final model": 0.03}
"""Seconds that a phase lasts, roughly: the kill comes within them."""
STEPS = 12
METHODS = {
    "grpo": {"reward": "random", "entropy_control": "kl_cov,fraction=0.1"},
    "empo": {},
    "one_shot_em": {"em": "coef=0.1"},
}
CLOCKS = {"train/step_time", "trl/train_runtime"}


def main(folder: Path, kills: int, seed: int) -> dict:
    """Return how many kills hit which phase, and what was found; any loss is an AssertionError."""
    prepare(folder)
    phase = mmap.mmap(-1, 1)
    reference = {}
    for method in METHODS:
        assert wait(fork(method, folder, f"{method}-whole", phase)) == 0, log(folder)
        reference[method] = found(folder / f"{method}-whole")
    chance, hits, rounds, done, started = random.Random(seed), dict.fromkeys(PHASES, 0), 0, 0, time.monotonic()
    repeated = 0
    while done < kills:
        method = list(METHODS)[rounds % len(METHODS)]
        run, fresh, best = folder / f"{method}-{rounds}", True, 0
        while True:
            wanted = chance.choice(list(PHASES)) if done < kills else None
            status, hit, phase[0] = (
                *disturb(fork(method, folder, run.name, phase, not fresh), wanted, phase, chance),
                0,
            )
            if status == 0:
                break
            assert status == -signal.SIGKILL, log(folder)
            hits[hit] += 1
            done += 1
            reached = check(run)
            assert reached >= best, f"{run.name}: the whole checkpoint of step {best} is gone, {reached} is the newest"
            repeated += max(steps(run), default=0) - reached
            best, fresh = reached, reached == 0
        assert found(run) == reference[method], f"{run.name} differs from the run that was not disturbed"
        rounds += 1
    seconds = time.monotonic() - started
    return {
        "kills": done,
        "by_phase": hits,
        "runs": rounds,
        "seconds": round(seconds, 1),
        "repeated_updates": repeated,
    }


def prepare(folder: Path) -> None:
    """Import everything that training needs, and write a tiny model and data."""
    import datasets  # noqa: F401
    import torch
    import transformers
    import trl
    from tiny_trainer import tiny_qwen

    import autotelic.cli.train
    import autotelic.evaluation
    import autotelic.trl.build  # noqa: F401
    from autotelic.tasks.tokenizer import build_tokenizer

    for name in ("GRPOTrainer", "GRPOConfig", "ModelConfig", "TrlParser", "get_peft_config"):
        getattr(trl, name)  # imported on first use
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "Trainer"):
        getattr(transformers, name)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tiny_qwen(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"{i}+{i + 1}=?", "answer": str(2 * i + 1), "id": f"p{i}"} for i in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_settings(folder: Path, run: Path) -> dict:
    """Return the options of a run of about a second: three epochs of two rollouts, two updates each."""
    return {
        "model_name_or_path": folder / "model",
        "dataset": folder / "data.jsonl",
        "output_dir": run,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 4,
        "max_steps": STEPS,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "log_rollouts": "1,steps=4",
        "quiet": "true",
    }


def fork(method: str, folder: Path, name: str, phase: mmap.mmap, resume: bool = False) -> int:
    """Start a trainer; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (folder / "log.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        follow_phases(phase)
        from autotelic.cli.train import train

        flag = "resume" if resume else "overwrite"
        settings = tiny_settings(folder, folder / name) | METHODS[method] | {flag: "true"}
        options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        code = 0 if train(method, options)["finished"] else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def follow_phases(phase: mmap.mmap) -> None:
    """Note in the shared byte what the trainer does."""
    from trl import GRPOTrainer

    from autotelic.runs import checkpoints

    def noting(name, method):
        def noted(*args, **kwargs):
            phase[0] = PHASES[name]
            return method(*args, **kwargs)

        return noted

    GRPOTrainer._generate_and_score_completions = noting("generation", GRPOTrainer._generate_and_score_completions)
    GRPOTrainer._compute_loss = noting("update", GRPOTrainer._compute_loss)
    mixin = checkpoints.WholeCheckpointsMixin
    mixin._save_checkpoint = noting("checkpoint", mixin._save_checkpoint)
    checkpoints.save_final_model = noting("final model", checkpoints.save_final_model)  # looked up when called


def disturb(child: int, wanted: str | None, phase: mmap.mmap, chance: random.Random) -> tuple[int, str]:
    """Kill the child in the wanted phase (None: let it be); return its exit status and the phase it was in."""
    if wanted is None:
        return wait(child), "start"
    skip = chance.randrange(3) if wanted in ("generation", "update", "checkpoint") else 0
    inside = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), "start"
        now = phase[0] == PHASES[wanted]
        if now and not inside:
            skip -= 1
            if skip < 0:
                break
        inside = now
        time.sleep(0.0005)
    time.sleep(chance.random() * LENGTHS[wanted])
    hit = next(name for name, number in PHASES.items() if number == phase[0])
    os.kill(child, signal.SIGKILL)
    return wait(child), hit


def wait(child: int) -> int:
    """Return the child's exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log(folder: Path) -> str:
    """Return what the trainer printed last."""
    return (folder / "log.txt").read_text()[-3000:]


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a JSON-lines file; only the last line may be torn."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line) for line in lines[:-1]]


def steps(run: Path) -> list[int]:
    """Return the updates in the log, which never repeat."""
    found = [row["step"] for row in rows_of(run / "metrics.jsonl") if "train/loss" in row or "policy/entropy" in row]
    assert found == list(range(1, len(found) + 1)), f"{run.name}: updates {found}"
    return found


def check(run: Path) -> int:
    """Load the last whole checkpoint of a killed run; return its step, 0 where there is none yet."""
    import torch
    from safetensors.torch import load_file

    from autotelic.runs.checkpoints import last_complete

    steps(run)
    rows_of(run / "rollouts.jsonl")
    if (run / "model.safetensors").exists():
        load_file(run / "model.safetensors")
    whole = last_complete(run)
    if whole is None:
        return 0
    assert all(value.isfinite().all() for value in load_file(whole / "model.safetensors").values())
    torch.load(whole / "optimizer.pt", weights_only=True)
    return json.loads((whole / "trainer_state.json").read_text())["global_step"]


def found(run: Path) -> tuple:
    """Return what a finished run leaves, without clocks."""
    metrics = [
        {key: value for key, value in row.items() if key not in CLOCKS} for row in rows_of(run / "metrics.jsonl")
    ]
    assert steps(run)[-1] == STEPS
    return metrics, rows_of(run / "rollouts.jsonl"), (run / "model.safetensors").read_bytes()


if __name__ == "__main__":
    arguments = [*sys.argv[2:], "200", "0"][: max(2, len(sys.argv[2:]))]
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    print(json.dumps(main(Path(sys.argv[1]), int(arguments[0]), int(arguments[1]))))
