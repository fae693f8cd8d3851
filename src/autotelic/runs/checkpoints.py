"""Checkpoints that are whole, or do not count.

A killed process leaves `checkpoint-N` half-written, and transformers would resume from it, because it looks at the
number only. Here `complete.json`, with every file's size, is written last, when all processes have written their part;
older checkpoints are deleted after that, their mark first. What has no mark, or lacks a listed file, is no checkpoint.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from autotelic.errors import UserError
from autotelic.runs.files import write_atomically

MARK = "complete.json"


def mark_complete(folder: Path) -> None:
    """Write the list of a finished checkpoint's files."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    write_atomically(folder / MARK, json.dumps(files, indent=1) + "\n")


def is_complete(folder: Path) -> bool:
    """Tell whether a checkpoint was finished, and is all there."""
    if not (folder / MARK).exists():
        return False
    files = json.loads((folder / MARK).read_text())
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoint folders, whole or not, by step."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"\d+", path.name[11:])]
    return sorted(found, key=lambda path: int(path.name[11:]))


def last_complete(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, if there is one."""
    return next((path for path in reversed(checkpoints(folder)) if is_complete(path)), None)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint; killed half-way, what is left no longer counts as one."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def save_whole(trainer: Any, trial: Any, save: Callable[[], None]) -> None:
    """Save a checkpoint, mark it, then delete older ones; an error of the disk is one line.

    Args:
        trainer: of transformers.
        trial: of a hyperparameter search, or None.
        save: saves as the trainer would.

    Raises:
        UserError: the disk refused; what was written is deleted.
    """
    run = Path(trainer._get_output_dir(trial=trial))
    folder = run / f"checkpoint-{trainer.state.global_step}"
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    try:
        with disk_errors(str(folder), "checkpoints before it are whole; free the space, then --resume"):
            save()
            trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                mark_complete(folder)
    except UserError:
        discard(folder)
        raise
    finally:
        trainer.args.save_total_limit = limit
    if trainer.args.should_save and limit:
        best = trainer.state.best_model_checkpoint
        older = [path for path in checkpoints(run) if path != folder and str(path) != best]
        for path in older[: max(len(older) + 1 + bool(best) - limit, 0)]:
            discard(path)


def draw_past_orders(sampler: Any, epoch: float) -> None:
    """Draw the orders of the epochs that are over: a resumed sampler would give the first epoch's prompts again."""
    generator = getattr(sampler, "generator", None)
    if generator is not None:
        for _ in range(int(epoch + 1e-9)):
            torch.randperm(sampler.num_samples, generator=generator)


def save_final_model(trainer: Any) -> None:
    """Write the final model beside its place, then put it there: a model that is seen is whole. Push it where asked.

    All processes call this: sharded weights are put together first.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")  # with sharded ones transformers would write no model
    folder = Path(trainer.args.output_dir)
    partial = folder / ".saving"
    with disk_errors(f"the final model in {folder}", "free the space, then --resume"):
        trainer.save_model(str(partial), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
            partial.rmdir()
            trainer.create_model_card()
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)


@contextmanager
def disk_errors(what: str, advice: str) -> Iterator[None]:
    """Turn what the disk refused, whichever library met it, into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(f"cannot write {what}: {reason}; {advice}") from error


def disk_error(error: Exception) -> str | None:
    """Return what the disk said; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    message = str(error)
    if isinstance(error, SafetensorError):
        return re.sub(r"^Error while serializing: (I/O error: )?| \(os error \d+\)$", "", message)
    if re.search("PytorchStreamWriter|inline_container", message):  # torch.save does not pass the reason on
        return "the file could not be written to its end"
    return None
