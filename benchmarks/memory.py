"""Peak memory and time of one update over a vocabulary of 151,936, against TRL: `python benchmarks/memory.py`.

One forward and backward of a micro-batch on one random layer of a 0.5B model's shape (d = 896), for GRPO and for
one-shot EM; EM on TRL is the gradient of the entropies that TRL's head returns. Each measurement has a process of its
own: the peak of resident memory above what is held before the update (weights, gradients, rollout, libraries). Sizes
are responses x tokens; `--responses 64 --width 1024` is the full one, some twenty minutes of a core for ours. A side
that does not fit the limit (`--limit_gib`) is written down as such.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from common import OURS, in_child, one_thread, parser_for, peak_above, ratio, write
from grpo_step import TRL, build, random_model, rollout

SIZES = ((1, 1024),)


def measure(side: str, method: str, responses: int, width: int, smoke: bool) -> dict[str, float]:
    """In a process of its own: return the peak of an update above the state before it, in MiB, and its CPU seconds."""
    import torch
    from trl import GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import EntropyMinimization, with_entropy_control, with_entropy_minimization

    one_thread()
    hidden, inner, vocabulary = (64, 128, 997) if smoke else (896, 4864, 151_936)
    tokenizer = build_tokenizer()
    model = random_model(tokenizer, layers=1, hidden=hidden, inner=inner, vocabulary=vocabulary, width=width)
    if side == TRL:
        trainer_class, ours = GRPOTrainer, {}
    elif method == "grpo":
        trainer_class, ours = with_entropy_control(GRPOTrainer), {"fused_head": "on"}
    else:
        trainer_class = with_entropy_minimization(GRPOTrainer)
        ours = {"fused_head": "on", "entropy_minimization": EntropyMinimization()}
    rows = max(responses, 4)  # TRL wants whole groups; the micro-batch is what is measured
    trainer = build(trainer_class, tokenizer, model, rows, rows, width, **ours)
    whole = rollout(rows, rows, width, vocabulary)[0]
    micro = {key: value[:responses] if getattr(value, "ndim", 0) else value for key, value in whole.items()}
    micro["num_em_tokens"] = micro["completion_mask"].sum()
    if method == "em":
        micro["advantages"] = torch.zeros(responses)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # an optimizer step would need them anyway
    peak, started = peak_above(), time.process_time()
    if side == TRL and method == "em":
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], 1)
        attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], 1)
        _, entropy, _ = trainer._get_per_token_logps_and_entropies(model, ids, attention, width, compute_entropy=True)
        loss = (entropy * micro["completion_mask"]).sum() / micro["num_em_tokens"]
    else:
        loss = trainer._compute_loss(model, micro)
    loss.backward()
    return {"memory_mib": peak(), "seconds": time.process_time() - started}


def main(options: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__, repeats=1)
    parser.add_argument("--responses", type=int, help="with --width: this size only")
    parser.add_argument("--width", type=int)
    parser.add_argument("--limit_gib", type=float, default=16.0, help="address space of one measurement")
    parser.add_argument("--methods", nargs="+", default=["grpo", "em"])
    parser.add_argument("--sides", nargs="+", default=[OURS, TRL])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(options)
    if args.child:
        side, method, responses, width = args.child
        print(json.dumps(measure(side, method, int(responses), int(width), args.smoke)))
        return {}
    sizes = ((1, 16),) if args.smoke else ((args.responses, args.width),) if args.responses else SIZES
    rows = []
    for method in args.methods:
        for responses, width in sizes:
            rows.append(one_size(args, method, responses, width))
    work = {"model": "1 random layer, d = 896, tied head, float32", "limit_gib": args.limit_gib}
    clock, words = "CPU seconds, one thread; peak resident MiB above the start", ""
    if args.responses and args.output:
        words = f" --responses {args.responses} --width {args.width} --output benchmarks/results/{args.output.name}"
    return write("memory", args, rows, work=work, clock=clock, options=words)


def one_size(args: Any, method: str, responses: int, width: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in args.sides:
        smoke = ["--smoke"] if args.smoke else []
        words = ["--child", side, method, str(responses), str(width), *smoke]
        found[side] = in_child(str(Path(__file__).resolve()), *words, limit_gib=args.limit_gib)
        print(f"{method}, {responses} x {width}: {side} {found[side] or 'does not fit'}", flush=True)
    row: dict[str, Any] = {"name": f"{method}, {responses} x {width} tokens", "measured": found}
    if all(found.get(side) for side in (OURS, TRL)):
        row["against"] = {
            TRL: {
                quantity: ratio([found[TRL][quantity]], [found[OURS][quantity]])["ratio"]
                for quantity in ("memory_mib", "seconds")
            }
        }
    return row


if __name__ == "__main__":
    sys.exit(0 if main() is not None else 1)
