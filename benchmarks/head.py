"""The head, values and gradients, against every peer: `python benchmarks/head.py`.

From hidden states (N, d) and the head's weight (V, d): log-probability of N targets and entropy, then the gradients of
both results for random upstream gradients, in float32 without reduced-precision products, and once more with the
operands in bfloat16, on one thread. There ours still computes the logits in float32, while peers round them to
bfloat16: see the column `error`. Sides are what the packages themselves offer for a CPU: TRL's chunked head,
Liger's scaled cross-entropy with entropy (its portable path, after verl's), verl's FusedLinearForPPO in torch, and
logits held in full. `four bare products` is the least arithmetic without stored logits: logits, logits
again, and two gradients. Ours stores the logits of as many rows as the weight has columns, in the memory of the
weight's gradient; `autotelic, nothing kept` is its way with all further rows. Beside a missed target stands the ratio
that would be reached if ours did nothing but its matrix products: three for kept rows, 1.4 where 20 % of the rows have
a gradient, and with bfloat16 operands one in float32 (PyTorch has no bfloat16 product with a float32 result on a CPU)
and two in bfloat16. Where both keep their logits, 20 % of the rows cannot take less than 1.4 / 3 = .47 of every row.

MiB is the peak above the operands and the returned gradients, each side in a process of its own. The error is the
relative one of the weight's gradient, by norm, against float64, on a small problem.
"""

import json
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import OURS, case, in_child, interleave, machine, one_thread, parser_for, peak_above, write

SIZES = {"full": (256, 151_936, 896), "smoke": (24, 601, 32)}
SHARE = 0.2
PEERS = {"materialised logits": 1.5, "TRL": 1.6, "Liger": 1.6, "verl": 1.6}
"""And how many times ours is to be faster."""
KNOWN, SKIPPED, PRODUCTS = "autotelic, loss known", "autotelic, 20 % of rows", "four bare products"
BARE_HALF = "three bare products"
NOTHING_KEPT = "autotelic, nothing kept"
TRL_SKIPPED = "TRL, 20 % of rows"
TRL_CHUNK = 8192


def problem(rows: int, words: int, dim: int, dtype: str = "float32") -> dict[str, Any]:
    import torch

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, dim, generator=generator)
    weight = torch.randn(words, dim, generator=generator).mul_(2 / dim**0.5)
    upstream = torch.randn(2, rows, generator=generator)
    keep = torch.rand(rows, generator=generator).argsort() < SHARE * rows
    return {
        "hidden": hidden.to(kind).requires_grad_(),
        "weight": weight.to(kind).requires_grad_(),
        "targets": torch.randint(words, (rows,), generator=generator),
        "upstream": upstream,
        "skipped": upstream * keep,
    }


def sides_of(data: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return every side that can run here, from nothing to the two gradients, and why the others cannot."""
    import torch

    from autotelic.kernels import linear_logprob_entropy, linear_loss

    hidden, weight, targets = data["hidden"], data["weight"], data["targets"]

    def through(values: Callable[[], Any], upstream: str) -> Callable[[], Any]:
        def run() -> Any:
            found = values()
            return torch.autograd.grad(found, (hidden, weight), list(data[upstream].to(found[0].dtype)))

        return run

    def known() -> Any:
        columns = data["upstream"].to(hidden.dtype)
        found = linear_loss(hidden, weight, targets, lambda logprobs, h, a, b: a * logprobs + b * h, *columns)
        return torch.autograd.grad(found.loss, (hidden, weight))

    def products(logits: int) -> Any:
        """Logits so many times, in float32, then the two gradients; in tiles and by the library that ours takes."""
        from autotelic.kernels import cpu_matmul as products
        from autotelic.kernels import portable
        from autotelic.kernels.rows import spans, widest

        with torch.no_grad(), products.quick_float32(hidden.device):
            columns = portable.block_columns(weight, hidden.shape[0])
            grad_hidden, grad_weight = torch.zeros_like(hidden), torch.empty_like(weight)
            tile = torch.empty(min(portable.ROWS, hidden.shape[0]) * columns, dtype=widest(hidden))
            for turn in range(logits):
                for words in spans(weight.shape[0], columns):
                    for rows in spans(hidden.shape[0], portable.ROWS):
                        h, w = hidden[rows], weight[words]
                        z = tile[: h.shape[0] * w.shape[0]].view(h.shape[0], w.shape[0])
                        torch.mm(h.to(z.dtype), w.T.to(z.dtype), out=z)
                        if turn == logits - 1:
                            dz = z.to(h.dtype)
                            grad_hidden[rows].addmm_(dz, w)
                            grad_weight[words].addmm_(dz.T, h, beta=float(rows.start > 0))
        return grad_hidden, grad_weight

    def materialised() -> Any:
        logits = hidden @ weight.T
        log_p = (logits.float() if logits.dtype == torch.bfloat16 else logits).log_softmax(-1)
        return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    def ours() -> Any:
        return linear_logprob_entropy(hidden, weight, targets)

    def nothing_kept() -> Any:
        return linear_logprob_entropy(hidden, weight, targets, keep_logits=False)

    sides = {
        OURS: through(ours, "upstream"),
        NOTHING_KEPT: through(nothing_kept, "upstream"),
        PRODUCTS: lambda: products(2),
        BARE_HALF: lambda: products(1),
        KNOWN: known,
        SKIPPED: through(ours, "skipped"),
        "materialised logits": through(materialised, "upstream"),
    }
    missing = {}
    try:
        from trl.kernels import ChunkedLogProbFunction

        def trl() -> Any:
            return ChunkedLogProbFunction.apply(
                hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ("log_probs", "entropy")
            )[:2]

        sides["TRL"], sides[TRL_SKIPPED] = through(trl, "upstream"), through(trl, "skipped")
    except ImportError as error:
        missing["TRL"] = str(error)
    try:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

        def liger() -> Any:
            nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
                hidden, weight, targets, return_entropy=True
            )
            return -nll, entropy

        sides["Liger"] = through(liger, "upstream")
    except ImportError as error:
        missing["Liger"] = str(error)
    try:
        from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

        sides["verl"] = through(lambda: FusedLinearForPPOFunction.apply(hidden, weight, targets, 1.0, 512), "upstream")
    except ImportError as error:
        missing["verl"] = f"not importable beside this TRL: {error}"
    return sides, missing


def extra_mib(side: str, size: tuple[int, int, int]) -> float:
    """Peak memory of one turn beyond the operands and the gradients, in this process."""
    one_thread()
    warm, _ = sides_of(problem(*SIZES["smoke"]))
    warm[side]()
    sides, _ = sides_of(problem(*size))
    peak = peak_above()
    gradients = sides[side]()
    return peak() - sum(x.numel() * x.element_size() for x in gradients) / 2**20


def errors(dtype: str = "float32") -> dict[str, float]:
    """Each side's error in the weight's gradient, on a small problem, against materialised logits in float64."""
    import torch

    data = problem(64, 5003, 64, dtype)
    exact = {key: x.detach().double() if x.is_floating_point() else x for key, x in data.items()}
    exact |= {key: exact[key].requires_grad_() for key in ("hidden", "weight")}
    reference = sides_of(exact)[0]["materialised logits"]()[1]
    found = {}
    for name, side in sides_of(data)[0].items():
        if name not in (PRODUCTS, BARE_HALF, SKIPPED, TRL_SKIPPED):
            found[name] = float(torch.linalg.vector_norm(side()[1] - reference) / torch.linalg.vector_norm(reference))
    return found


def cases_of(seconds: dict[str, list[float]], memory: dict[str, float], error: dict[str, float]) -> list[Any]:
    product = statistics.median(seconds[PRODUCTS]) / 4

    def row(name: str, ours: str, others: list[str], count: float, **extra: Any) -> dict[str, Any]:
        labels = {ours: OURS} | {x: ("autotelic, every row" if x == OURS else x) for x in others if x in seconds}
        extra |= {
            key: {label: values[side] for side, label in labels.items() if side in values}
            for key, values in (("memory_mib", memory), ("error", error))
            if any(side in values for side in labels)
        }
        turns = {label: seconds[side] for side, label in labels.items()}
        return case(name, turns, bounds=bounds_of(turns, count * product), **extra)

    found = [
        row("every row", OURS, list(PEERS), 3, targets=PEERS),
        row("against the bare arithmetic", OURS, [PRODUCTS], 3, targets={PRODUCTS: 1 / 1.1}),
        row("nothing kept", NOTHING_KEPT, [PRODUCTS], 4, targets={PRODUCTS: 1 / 1.1}),
        row("loss known in the forward", KNOWN, [NOTHING_KEPT], 3, targets={NOTHING_KEPT: 1 / 0.85}),
        row("20 % of the rows", SKIPPED, [OURS, NOTHING_KEPT], 1.4, targets={"autotelic, every row": 1 / 0.45}),
    ]
    if TRL_SKIPPED in seconds:
        found.append(row("20 % of the rows, against TRL", SKIPPED, [TRL_SKIPPED], 1.4, targets={TRL_SKIPPED: 4.0}))
    if memory:
        found[0]["missed"] = [f"{memory[OURS]:.0f} MiB beyond the gradients, at most 64"] if memory[OURS] > 64 else []
    return found


def bounds_of(seconds: dict[str, list[float]], products: float) -> dict[str, float]:
    """What each side would be, in times ours, if ours took no longer than its matrix products."""
    return {side: statistics.median(turns) / products for side, turns in seconds.items() if side != OURS}


def main(options: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__, repeats=3)
    parser.add_argument("--side", help="measure the memory of this side alone, and print it")
    parser.add_argument("--rows", type=int, default=SIZES["full"][0], help="N; other values need --output")
    args = parser.parse_args(options)
    size = SIZES["smoke"] if args.smoke else (args.rows, *SIZES["full"][1:])
    if args.side:
        print(json.dumps({"extra_mib": extra_mib(args.side, size)}))
        return {}
    if size not in SIZES.values() and args.output is None:
        parser.error("--rows is not the size of the published figures: say with --output where to write others")
    one_thread()
    error = errors()
    data = problem(*size)
    sides, missing = sides_of(data)
    seconds = interleave(
        {x: side for x, side in sides.items() if x != BARE_HALF}, args.repeats, warm_up=int(args.smoke)
    )
    bare = (PRODUCTS, BARE_HALF)
    names = [] if args.smoke or not sys.platform.startswith("linux") else [x for x in sides if x not in bare]
    with ThreadPoolExecutor(machine()["cores"]) as pool:  # memory does not mind company
        children = list(pool.map(lambda name: in_child(__file__, "--side", name, "--rows", str(args.rows)), names))
    memory = {name: found["extra_mib"] for name, found in zip(names, children, strict=True) if found is not None}
    cases = cases_of(seconds, memory, error)
    low, _ = sides_of(problem(*size, dtype="bfloat16"))
    low = {name: side for name, side in low.items() if name in (OURS, BARE_HALF, *PEERS)}
    low_error = {name: value for name, value in errors("bfloat16").items() if name in low}
    low_seconds = interleave(low, args.repeats, warm_up=int(args.smoke))
    bounds = bounds_of(low_seconds, statistics.median(low_seconds.pop(BARE_HALF)))
    cases.append(case("every row, operands in bfloat16", low_seconds, targets=PEERS, error=low_error, bounds=bounds))
    rows, words, dim = size
    work = {"rows": rows, "vocabulary": words, "width": dim, "dtype": "float32", "matmul_precision": "highest"}
    options = f" --rows {rows} --output benchmarks/results/{args.output.name}" if size not in SIZES.values() else ""
    return write("head", args, cases, work=work, missing=missing, options=options)


if __name__ == "__main__":
    main()
