"""What verl's training worker knows and its engine does not: updates per rollout, and the checkpoint's folder."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from autotelic.runs.files import write_atomically
from autotelic.verl.engine import Run, actor_config, run_of
from autotelic.verl.plugin import check_parameters, wrap_once

STATE_FILE = "entropy_control_state.json"


def install(engine_workers: ModuleType) -> None:
    """Prepare ``TrainingWorker``; a second call changes nothing."""
    worker = engine_workers.TrainingWorker
    check_parameters(worker.train_mini_batch, "self", "data")
    check_parameters(worker.save_checkpoint, "self", "local_path")
    check_parameters(worker.load_checkpoint, "self", "local_path")
    wrap_once(worker, "train_mini_batch", counting_updates)
    wrap_once(worker, "save_checkpoint", saving_state)
    wrap_once(worker, "load_checkpoint", loading_state)


def our_run(worker: Any) -> Run | None:
    """Return the memory of the worker's engine, where its loss is one of ours."""
    config = actor_config(getattr(worker, "loss_fn", None))
    return None if config is None else run_of(worker.engine, config)


def counting_updates(train_mini_batch: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``train_mini_batch`` telling the engine how many updates this rollout serves."""

    @functools.wraps(train_mini_batch)
    def count_and_train(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        run = our_run(self)
        if run is not None:
            run.updates_per_rollout = updates_per_rollout(data, self.engine.get_data_parallel_size())
        return train_mini_batch(self, data, *args, **kwargs)

    return count_and_train


def updates_per_rollout(data: Any, num_ranks: int) -> float:
    """Return how many optimizer steps verl will take on this rank's rows: mini-batches times epochs."""
    from verl.utils import tensordict_utils

    epochs = tensordict_utils.get(data, "epochs", default=1)
    size = tensordict_utils.get(data, "mini_batch_size", default=None)
    if size is None:
        return float(tensordict_utils.get(data, "num_mini_batch") * epochs)
    return data.shape[0] / (size / num_ranks) * epochs


def saving_state(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``save_checkpoint`` followed by the state of our control, written by the first rank."""

    @functools.wraps(save_checkpoint)
    def save_both(self: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
        result = save_checkpoint(self, local_path, *args, **kwargs)
        run = our_run(self)
        if run is not None and self.rank == 0:
            write_atomically(Path(local_path) / STATE_FILE, json.dumps(run.to_json()))
        return result

    return save_both


def loading_state(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``load_checkpoint`` preceded by the state of our control (verl may remove the folder afterwards)."""

    @functools.wraps(load_checkpoint)
    def load_both(self: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
        run = our_run(self)
        file = None if local_path is None else Path(local_path) / STATE_FILE
        if run is not None and file is not None and file.exists():
            saved = json.loads(file.read_text())
            run.updates, run.state = saved["updates"], saved["state"]
        return load_checkpoint(self, local_path, *args, **kwargs)

    return load_both
