"""What the processes of a run share: random state that a measurement must not disturb, and one decision for all."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from autotelic.errors import UserError
from autotelic.functional.distributed import global_max, world_size

T = TypeVar("T")


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's random state on exit: what happens inside changes no later number."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def stop_together(problem: str | None, device: torch.device | str = "cpu") -> None:
    """Raise FloatingPointError on every process if one of them has a problem; all must call this at the same time.

    A process that stopped alone would leave the others waiting in their next exchange.

    Args:
        problem: what is wrong here, or None.
        device: where the process group exchanges tensors.
    """
    if world_size() == 1:
        problems = [problem]
    elif not global_max(torch.tensor(int(problem is not None), device=device)):
        return
    else:
        problems: list[str | None] = [None] * world_size()
        dist.all_gather_object(problems, problem)
    first = next((text for text in problems if text is not None), None)
    if first is not None:
        raise FloatingPointError(first)


def stop_if_not_finite(trainer: Any, name: str, value: torch.Tensor, prompt_ids: torch.Tensor) -> None:
    """Stop a run, on every process, where one of them has a loss or a gradient norm that is not finite."""
    problem = None
    if not torch.isfinite(value):
        prompts = trainer.processing_class.batch_decode(prompt_ids, skip_special_tokens=True)
        problem = (
            f"the {name} of step {trainer.state.global_step + 1} is {value.item()}: training stopped before the "
            f"update; prompts of this micro-batch: {sorted(set(prompts))[:3]}. The last checkpoint is intact; "
            "lower the learning rate, or inspect these prompts."
        )
    stop_together(problem, trainer.accelerator.device)


def on_main_process(action: Callable[[], T]) -> T:
    """Call `action` on the main process and return its result on all; its UserError is raised on all."""
    if world_size() == 1:
        return action()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]
