"""How cost grows with tokens, vocabulary, group and processes: `python benchmarks/scaling.py`.

For each, seconds at several sizes and the exponent k of seconds = c size^k, with its 95 % interval (of the fit over the
medians). One multiplies out what a larger run costs; an exponent above the expected one would be a defect.
  head, N and V      forward and backward of the log-probabilities and entropies of N tokens over V; expected 1
  covariance, N      the choice and the loss of `benchmarks/covariance.py`; expected 1
  answers, G         one group of G spellings of four answers; pairwise comparison would be 2
  answers, unique    one group of different polynomials, which the worker has to tell apart; expected 1
  update             forward, backward and choice of a KL-Cov update over B responses, T tokens each, a vocabulary of
                     V, or four groups of G; expected 1 at most (T: attention alone is 2). `parts of an update` is what
                     the parts of a run take of it
  ranks              the choice of `covariance` over a million tokens, spread over processes (gloo, one machine): CPU
                     seconds of one of them; -1 where nothing but its own share of the tokens costs it anything
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from answers import few_symbolic
from common import cpu_seconds, exponent, interleave, one_thread, parser_for, write
from covariance import make_batch, ours


def fitted(name: str, sizes: Sequence[int], seconds: dict[str, list[float]], expected: float | None) -> dict[str, Any]:
    """Return one row: medians at each size and the fitted exponent."""
    import statistics

    medians = [statistics.median(seconds[str(size)]) for size in sizes]
    fit = exponent(sizes, medians)
    print(f"{name}: exponent {fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]", flush=True)
    return {"name": name, "sizes": list(sizes), "medians": medians, "expected": expected, **fit}


def swept(sizes: Sequence[int], make: Callable[[int], Callable[[], Any]], repeats: int, clock: Any) -> dict[str, Any]:
    return interleave({str(size): make(size) for size in sizes}, repeats, clock=clock)


def head_turn(rows: int, vocabulary: int, width: int) -> Callable[[], Any]:
    """Return one forward and backward of the head."""
    import torch

    from autotelic.kernels import linear_logprob_entropy

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator)

    def turn() -> None:
        logprobs, entropy = linear_logprob_entropy(hidden, weight, targets)[:2]
        (logprobs.sum() + entropy.sum()).backward()
        hidden.grad = weight.grad = None

    return turn


def answers_turn(group: int) -> Callable[[], Any]:
    """Return the clustering of one group, other answers in every turn."""
    from autotelic.answers import cluster

    seeds = iter(range(group * 10**5, 10**9))

    def turn() -> None:
        spellings = few_symbolic(next(seeds))
        cluster([spellings[i % len(spellings)] for i in range(group)])

    return turn


def unique_turn(count: int) -> Callable[[], Any]:
    """Return the clustering of one group of different polynomials, other ones in every turn."""
    from autotelic.answers import cluster

    seeds = iter(range(count * 10**4, 10**9))

    def turn() -> None:
        base = next(seeds) * 1000
        cluster([f"{base + k}x^2 + {k}x - 1" for k in range(2, count + 2)])

    return turn


class Shape(NamedTuple):
    """Sizes of one update."""

    responses: int = 16
    tokens: int = 256
    vocabulary: int = 18
    group: int = 4


def update_seconds(shapes: Mapping[str, Shape], turns: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of whole updates of these shapes, and what the parts of the run take of them, in turns."""
    from grpo_step import build, clocked, random_model, rollout, scored, update
    from trl import GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import KLCov, with_entropy_control

    tokenizer, trainers = build_tokenizer(), {}
    for name, (rows, width, vocabulary, group) in shapes.items():
        model = random_model(tokenizer, layers=1, hidden=32, inner=64, vocabulary=vocabulary, width=width)
        ours = {"entropy_control": KLCov(fraction=0.02), "group": group}
        trainer = build(with_entropy_control(GRPOTrainer), tokenizer, model, rows, rows, width, **ours)
        trainer._buffered_inputs = scored(trainer, rollout(rows, rows, width, vocabulary))
        trainers[name] = clocked(trainer)
    whole, own = ({name: [] for name in shapes} for _ in range(2))
    for turn in range(turns + 1):
        for name, trainer in trainers.items():
            trainer.own, started = 0.0, time.process_time()
            update(trainer)
            if turn:  # the first is for warming up
                whole[name].append(time.process_time() - started)
                own[name].append(trainer.own)
    return whole, own


def rank_seconds(rank: int, world: int, port: int, tokens: int, turns: int, seconds: Any) -> None:
    """One process of a group: its share of an update's choice, over all ranks."""
    import torch
    import torch.distributed as dist

    from autotelic import functional as F

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    rows = tokens // 1024
    whole = make_batch(rows, 1024)
    mine = slice(rank * rows // world, (rank + 1) * rows // world)
    batch = {key: value[mine] for key, value in whole.items()}
    ids = torch.arange(rows)[mine, None] * 1024 + torch.arange(1024)
    for turn in range(turns + 1):
        dist.barrier()
        started = time.process_time()
        moments = F.global_moments(batch["logprobs"], batch["advantages"], batch["mask"])
        means = {"mean_logprob": moments.mean_logprob, "mean_advantage": moments.mean_advantage}
        covariance = F.token_covariance(batch["logprobs"], batch["advantages"], batch["mask"], **means)
        F.kl_cov(
            batch["advantages"],
            batch["logprobs"] - batch["old_logprobs"],
            covariance,
            batch["mask"],
            fraction=2e-3,
            coef=1.0,
            token_ids=ids,
            num_tokens=moments.num_tokens,
            across_ranks=True,
        )
        dist.barrier()
        if turn and rank == 0:
            seconds.append(time.process_time() - started)
    dist.destroy_process_group()


def over_ranks(world: int, tokens: int, turns: int) -> list[float]:
    """Return rank 0's CPU seconds per choice; the update has the same number of tokens whatever the number of ranks."""
    from torch.multiprocessing import Manager, spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Manager() as manager:
        seconds = manager.list()
        spawn(rank_seconds, (world, port, tokens, turns, seconds), nprocs=world)
        return list(seconds)


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=3).parse_args(options)
    one_thread()
    warnings.simplefilter("ignore")
    from autotelic.answers import default_pool

    cpu, rows = time.process_time, []

    def sweep(name: str, sizes: Sequence[int], make: Any, expected: float, clock: Any = cpu) -> None:
        rows.append(fitted(name, sizes, swept(sizes, make, args.repeats, clock), expected))

    def update_sweep(name: str, sizes: Sequence[int], shape: Callable[[int], Shape]) -> None:
        whole, own = update_seconds({str(size): shape(size) for size in sizes}, args.repeats)
        rows.append(fitted(f"update, {name}", sizes, whole, 1.0))
        rows.append(fitted(f"parts of an update, {name}", sizes, own, 1.0))

    if args.smoke:
        sweep("head, tokens N", (4, 8, 16), lambda n: head_turn(n, 64, 8), 1.0)
        update_sweep("responses B", (4, 8, 16), lambda rows: Shape(rows, 8))
        sweep(
            "covariance, tokens N",
            (256, 512, 1024),
            lambda n: partial(ours, "kl_cov", make_batch(n // 32, 32)),
            1.0,
        )
    else:
        sweep("head, tokens N", (128, 256, 512, 1024), lambda n: head_turn(n, 32_768, 256), 1.0)
        sweep("head, vocabulary V", (16_384, 32_768, 65_536, 131_072), lambda v: head_turn(256, v, 256), 1.0)
        for method in ("clip_cov", "kl_cov"):
            sweep(
                f"covariance, {method}, tokens N",
                (2**16, 2**17, 2**18, 2**19, 2**20),
                lambda n, method=method: partial(ours, method, make_batch(n // 1024, 1024)),
                1.0,
            )
        default_pool().warm_up()
        sweep("answers, group G", (8, 16, 32, 64, 128), answers_turn, 1.0, cpu_seconds)
        sweep("answers, unique ones", (8, 16, 32, 64), unique_turn, 1.0, cpu_seconds)
        update_sweep("responses B", (16, 32, 64, 128), lambda rows: Shape(responses=rows))
        update_sweep("tokens T", (128, 256, 512, 1024), lambda width: Shape(tokens=width))
        update_sweep("vocabulary V", (4096, 8192, 16_384, 32_768), lambda size: Shape(tokens=64, vocabulary=size))
        update_sweep("group G", (8, 16, 32, 64), lambda group: Shape(responses=4 * group, group=group))
        worlds = (1, 2, 4)
        seconds = {str(world): over_ranks(world, 2**20, args.repeats) for world in worlds}
        rows.append(fitted("covariance over processes, 1M tokens", worlds, seconds, None))
    work = {
        "head": "d = 256, float32",
        "covariance": "rows of 1024 tokens",
        "answers": "four formulas, four spellings each; unique ones are polynomials",
        "update": "KL-Cov on made-up rollouts, 16 responses of 256 tokens, V = 18, groups of 4; for V 64 tokens",
    }
    return write(
        "scaling",
        args,
        rows,
        work=work,
        clock="CPU seconds, one thread; answers: with the worker's; processes: those of one",
    )


if __name__ == "__main__":
    main()
