"""The head, an update and a shared prompt on a GPU, against every peer: `python benchmarks/gpu.py`. Six minutes.

Sections, each within its budget of seconds; the result file is written after each one, and a side that is missing, does
not fit or fails is named with the reason:
  rate      the rate of bf16 products that this GPU reaches; `share` below is a side's arithmetic over its time and this
  correct   our Triton kernels against materialised logits in float64, on ragged shapes, with every option
  entropy   the relative error of entropies under .05 nats, operands in bf16
  head      values and gradients of every row: ours, TRL's, Liger's, verl's, logits held in full
  skipped   the same where 20 % of the rows have a gradient
  update    forward and backward of one GRPO and one EM update, 64 x 1024 tokens, random model of a 0.5B model's shape
  prefix    a GRPO micro-batch of 8 responses of 200 tokens to one prompt of 1,000

Wall seconds between synchronisations; the sides take turns. MiB is the peak above the operands and the returned
gradients. `--smoke` runs every section on a CPU on tiny sizes, our kernels in Triton's interpreter. `timed` in the
result file is what `autotelic.lm.head_choice` decides by.
"""

import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
if "--smoke" in sys.argv:  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

from common import OURS, case, interleave, one_thread, parser_for, write

BUDGET = {"rate": 10, "correct": 60, "entropy": 20, "head": 110, "skipped": 40, "update": 70, "prefix": 40}
"""Seconds; in all under six minutes."""
COMPILES = 20
"""Seconds that a side's first call may take; a slower one is left out from then on."""
TRL, LOGITS, KNOWN = "TRL", "materialised logits", "autotelic, loss known"
PRODUCTS = {LOGITS: 3, KNOWN: 3}
"""Matrix products of a side for every row; 4 for the others, less what ours keeps."""
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True, "temperature": 2.0},
    "all": {"temperature": 0.8, "logit_scale": 1.5, "softcap": 5.0, "bias": True},
}
SHARE = 0.2


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    device: str
    dtype: str
    vocabulary: int
    widths: tuple[int, ...]
    rows: tuple[int, ...]
    ragged: tuple[tuple[int, int, int], ...]
    dtypes: tuple[str, ...]
    model: Mapping[str, int]
    responses: int
    micro: int
    tokens: int
    prompt: int
    response: int
    square: int


FULL = Sizes(
    device="cuda",
    dtype="bfloat16",
    vocabulary=151_936,
    widths=(896, 2048, 4096),
    rows=(8192, 32_768),
    ragged=((1, 257, 64), (127, 5003, 100), (300, 33_001, 896), (513, 151_936, 2048)),
    dtypes=("bfloat16", "float32"),
    model={"layers": 24, "hidden": 896, "inner": 4864, "vocabulary": 151_936},
    responses=64,
    micro=8,
    tokens=1024,
    prompt=1000,
    response=200,
    square=8192,
)
SMOKE = Sizes(
    device="cpu",
    dtype="float32",
    vocabulary=301,
    widths=(16, 24),
    rows=(37,),
    ragged=((1, 33, 16), (37, 301, 19)),
    dtypes=("float32", "float16"),
    model={"layers": 1, "hidden": 64, "inner": 128, "vocabulary": 997},
    responses=8,
    micro=4,
    tokens=8,
    prompt=30,
    response=6,
    square=64,
)
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}
"""Of a gradient, relative, by norm."""
VALUES = 2e-5
"""Of log-probabilities and entropies, likewise: operands of any dtype are accumulated in float32."""


@dataclass
class Run:
    """What the sections share."""

    args: Any
    sizes: Sizes
    cases: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    timed: list[dict[str, Any]] = field(default_factory=list)
    rate: float | None = None
    """Floating-point operations a second."""
    until: float = 0.0
    slow: set[str] = field(default_factory=set)
    """Sides that take too long to compile."""

    @property
    def left(self) -> float:
        """Seconds of the section's budget."""
        return self.until - time.perf_counter()

    def clock(self) -> float:
        """Seconds, once the GPU has done what it was given."""
        import torch

        if self.sizes.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def try_out(self, where: str, sides: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
        """Run each side twice; return those that could, and their peak memory in MiB without what they return."""
        able: dict[str, Any] = {}
        memory: dict[str, float] = {}
        for name, side in sides.items():
            if name in self.slow:
                continue
            try:
                began = self.clock()
                side()  # compiles
                if self.sizes.device == "cuda" and name != OURS and self.clock() - began > COMPILES:
                    self.slow.add(name)
                    raise TimeoutError(f"its first call took {self.clock() - began:.0f} s")
                with peak(self.sizes.device) as found:
                    returned = side()
                if found:
                    memory[name] = found[0] - bytes_of(returned) / 2**20
                able[name] = side
                del returned
            except Exception as error:  # a peer may fail in any way: it is named, and the others go on
                self.missing[f"{name}, {where}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            gc.collect()
        return able, memory

    def compare(self, name: str, sides: Mapping[str, Callable[[], Any]], **extra: Any) -> dict[str, Any] | None:
        """Time the sides in turns, as many as the budget allows; None if ours or the time is missing."""
        if self.left < 0:
            self.missing[name] = "out of time"
            return None
        able, memory = self.try_out(name, sides)
        if OURS not in able:
            return None
        began = self.clock()
        for side in able.values():
            side()
        round_trip = max(self.clock() - began, 1e-6)
        turns = int(min(max(self.left / 2 / round_trip, 2), self.args.repeats))
        seconds = interleave(able, turns, warm_up=0, clock=self.clock)
        if memory:
            extra["memory_mib"] = memory
        self.cases.append(case(name, seconds, **extra))
        return self.cases[-1]


def bytes_of(found: Any) -> int:
    import torch

    values = found if isinstance(found, list | tuple) else [found]
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, torch.Tensor))


@contextmanager
def peak(device: str) -> Iterator[list[float]]:
    """Yield a list that afterwards holds the peak of allocated memory above the start, in MiB; empty on a CPU."""
    import torch

    found: list[float] = []
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if device == "cuda":
        torch.cuda.synchronize()
        found.append((torch.cuda.max_memory_allocated() - before) / 2**20)


# Problems and sides.


def problem(sizes: Sizes, rows: int, words: int, dim: int, dtype: str, share: float = 1.0) -> dict[str, Any]:
    """Hidden states, weight, targets, and upstream gradients of which `share` of the rows are not zero."""
    import torch

    generator = torch.Generator(sizes.device).manual_seed(0)
    options = {"generator": generator, "device": sizes.device}
    kind = getattr(torch, dtype)
    weight = torch.empty(words, dim, device=sizes.device, dtype=kind).normal_(0, 2 / dim**0.5, generator=generator)
    upstream = torch.randn(2, rows, **options)
    keep = torch.rand(rows, **options).argsort() < share * rows
    return {
        "hidden": torch.randn(rows, dim, **options).to(kind).requires_grad_(),
        "weight": weight.requires_grad_(),
        "targets": torch.randint(words, (rows,), **options),
        "upstream": upstream * keep,
    }


def logits_of(
    hidden: Any,
    weight: Any,
    bias: Any = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Any:
    """The head written out."""
    z = hidden @ weight.T
    z = (z if bias is None else z + bias) * logit_scale
    return (z if softcap is None else softcap * (z / softcap).tanh()) / temperature


def from_logits(logits: Any, targets: Any) -> tuple[Any, Any]:
    log_p = logits.log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def values_of(data: Mapping[str, Any], missing: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Return each side from operands to (log-probability, entropy); absent peers are named."""
    import torch

    from autotelic.kernels import linear_logprob_entropy

    hidden, weight, targets = (data[name] for name in ("hidden", "weight", "targets"))

    def materialised() -> Any:
        logits = hidden @ weight.T
        return from_logits(logits.float() if logits.dtype == torch.bfloat16 else logits, targets)

    sides: dict[str, Callable[[], Any]] = {
        OURS: lambda: linear_logprob_entropy(hidden, weight, targets, backend="triton")
    }
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

        outputs = ("log_probs", "entropy")
        sides[TRL] = lambda: ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, outputs
        )[:2]
    except ImportError as error:
        missing[TRL] = str(error)
    try:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

        def liger() -> Any:
            nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
                hidden, weight, targets, return_entropy=True
            )
            return -nll, entropy

        sides["Liger"] = liger
    except ImportError as error:
        missing["Liger"] = str(error)
    try:
        if weight.is_cuda:
            from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

            sides["verl"] = lambda: linear_cross_entropy(hidden, weight, targets, 1.0, "none")
        else:
            from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

            sides["verl"] = lambda: FusedLinearForPPOFunction.apply(hidden, weight, targets, 1.0, 512)
    except ImportError as error:
        missing["verl"] = str(error)
    sides[LOGITS] = materialised
    return sides


def gradients_of(data: Mapping[str, Any], values: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function from nothing to the gradients of hidden states and weight."""
    import torch

    def run() -> Any:
        found = values()
        upstream = [g.to(x.dtype) for g, x in zip(data["upstream"], found, strict=True)]
        return torch.autograd.grad(found, (data["hidden"], data["weight"]), upstream)

    return run


def loss_known(data: Mapping[str, Any]) -> Callable[[], Any]:
    """Return ours where the loss is known token by token: gradients in the forward pass."""
    import torch

    from autotelic.kernels import linear_loss

    hidden, weight, targets = (data[name] for name in ("hidden", "weight", "targets"))

    def run() -> Any:
        columns = data["upstream"]
        found = linear_loss(
            hidden, weight, targets, lambda logprobs, h, a, b: a * logprobs + b * h, *columns, backend="triton"
        )
        return torch.autograd.grad(found.loss, (hidden, weight))

    return run


# Sections.


def rate(run: Run) -> None:
    """Products of square matrices, the best of a few."""
    import torch

    size, kind = run.sizes.square, getattr(torch, run.sizes.dtype)
    a, b = (torch.randn(size, size, device=run.sizes.device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        began = run.clock()
        a @ b
        best = min(best, run.clock() - began)
    run.rate = 2 * size**3 / best
    print(f"{run.sizes.dtype} products: {run.rate / 1e12:.3g} TFLOP/s", flush=True)


def correct(run: Run) -> None:
    """Our kernels against float64."""
    import torch

    from autotelic.kernels import linear_logprob_entropy, linear_statistics

    errors, failed = {}, []
    for dtype, shape, (name, given) in product(run.sizes.dtypes, run.sizes.ragged, OPTIONS.items()):
        where, options = f"{dtype}, {' x '.join(map(str, shape))}, {name}", dict(given)
        if run.left < 0:
            run.missing[f"correct, {where}"] = "out of time"
            continue
        data = problem(run.sizes, *shape, dtype, share=0.7)
        bias = torch.randn(shape[1], device=run.sizes.device) if options.pop("bias", False) else None
        leaves = [data["hidden"], data["weight"]] + ([] if bias is None else [bias.requires_grad_()])
        found = linear_logprob_entropy(*leaves[:2], data["targets"], bias=bias, backend="triton", **options)
        mine = torch.autograd.grad(found, leaves, list(data["upstream"]))
        exact = [x.detach().double().requires_grad_() for x in leaves]
        logits = logits_of(exact[0], exact[1], None if bias is None else exact[2], **options)
        expected = from_logits(logits, data["targets"])
        theirs = torch.autograd.grad(expected, exact, list(data["upstream"].double()))
        statistics = linear_statistics(*leaves[:2], data["targets"], bias=bias, backend="triton", **options)
        pairs = {"values": ((*found, statistics.entropy), (*expected, expected[1])), "gradients": (mine, theirs)}
        for what, (a, b) in pairs.items():
            error = max(relative(x, y) for x, y in zip(a, b, strict=True))
            errors[f"{where}, {what}"] = error
            bound = VALUES if what == "values" else BOUNDS[dtype]
            if not error < bound:
                failed.append(f"{where}, {what}: {error:.3g}, at most {bound:g}")
    run.cases.append({"name": "our kernels against float64", "errors": errors, "missed": failed})
    print(f"correct: {len(errors)} comparisons, {len(failed)} above their bound", *failed, sep="\n  ", flush=True)


def relative(found: Any, expected: Any) -> float:
    """The norm of the difference over that of what was expected."""
    import torch

    return float(torch.linalg.vector_norm(found.double() - expected) / torch.linalg.vector_norm(expected).clamp(1e-30))


def entropy(run: Run) -> None:
    """Rows that point at their target, so that little is left to the other words."""
    import torch

    sizes = run.sizes
    data = problem(sizes, 512 if sizes.device == "cuda" else 37, sizes.vocabulary, sizes.widths[0], sizes.dtype)
    rows = data["weight"].detach()[data["targets"]].float()
    strength = torch.linspace(14, 34, len(rows), device=sizes.device).unsqueeze(1)
    data["hidden"] = (rows / rows.square().sum(1, keepdim=True) * strength).to(data["weight"].dtype)
    with torch.no_grad():
        expected = from_logits(data["hidden"].double() @ data["weight"].double().T, data["targets"])[1]
        small = (expected < 0.05) & (expected > 1e-12)
        able, _ = run.try_out("entropies near zero", values_of(data, run.missing))
        error = {
            name: float(((values()[1].double() - expected).abs() / expected)[small].median())
            for name, values in able.items()
        }
    name = f"relative error of {int(small.sum())} entropies under .05 nats, median"
    run.cases.append({"name": name, "errors": error, "missed": []})
    print(f"{name}: {', '.join(f'{side} {value:.2g}' for side, value in error.items())}", flush=True)


def head(run: Run) -> None:
    """Every row, each width and number of rows."""
    for width in run.sizes.widths:
        for rows in run.sizes.rows:
            data = problem(run.sizes, rows, run.sizes.vocabulary, width, run.sizes.dtype)
            sides = {name: gradients_of(data, values) for name, values in values_of(data, run.missing).items()}
            sides[KNOWN] = loss_known(data)
            found = run.compare(f"every row, d = {width}, N = {rows}", sides, target=1.0, target_side=TRL)
            if found is not None:
                add_shares(run, found, rows, width)
                add_timed(run, found, width)
            del data, sides
            gc.collect()


def add_shares(run: Run, found: dict[str, Any], rows: int, width: int) -> None:
    """Add each side's share of the measured rate."""
    kept = min(rows, width * data_size(run.sizes.dtype) // 4)
    products = {name: PRODUCTS.get(name, 4) * rows for name in found["sides"]} | {OURS: 4 * rows - kept}
    flops = {name: count * 2 * run.sizes.vocabulary * width for name, count in products.items()}
    assert run.rate is not None
    shares = {name: flops[name] / side["median"] / run.rate for name, side in found["sides"].items()}
    found["rate_share"] = shares
    if width >= 4096 and shares[OURS] < 0.8:
        found["missed"] = [f"{shares[OURS]:.0%} of the measured rate of bf16 products, the target is 80%"]


def data_size(dtype: str) -> int:
    import torch

    return getattr(torch, dtype).itemsize


def add_timed(run: Run, found: dict[str, Any], width: int) -> None:
    """Keep the row of this width that has the most tokens, for the choice between ours and TRL's."""
    import torch

    if TRL not in found["against"]:
        return
    against = found["against"][TRL]
    place = torch.cuda.get_device_name() if run.sizes.device == "cuda" else "cpu"
    row = {"device": place, "dtype": run.sizes.dtype, "width": width, "times": against["ratio"], "low": against["low"]}
    run.timed = [*(other for other in run.timed if other["width"] != width), row]


def skipped(run: Run) -> None:
    """20 % of the rows have a gradient."""
    rows = max(run.sizes.rows)
    for width in run.sizes.widths:
        data = problem(run.sizes, rows, run.sizes.vocabulary, width, run.sizes.dtype, SHARE)
        sides = {name: gradients_of(data, values) for name, values in values_of(data, run.missing).items()}
        del sides[LOGITS]
        run.compare(f"20 % of the rows, d = {width}, N = {rows}", sides, target=1.0)
        del data, sides
        gc.collect()


def trainer_of(run: Run, base: Any, rows: int, micro: int, width: int, **ours: Any) -> Any:
    """Return a trainer on a random model of the sizes' shape."""
    from grpo_step import build, random_model

    from autotelic.tasks.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    model = random_model(tokenizer, **run.sizes.model, width=width)
    cuda = run.sizes.device == "cuda"
    return build(base, tokenizer, model, rows, micro, width, settings={"use_cpu": not cuda, "bf16": cuda}, **ours)


def on_device(run: Run, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value.to(run.sizes.device) if hasattr(value, "to") else value for key, value in part.items()}
        for part in parts
    ]


def update(run: Run) -> None:
    """One GRPO and one EM update."""
    import torch
    from grpo_step import rollout, scored
    from grpo_step import update as make_update
    from trl import GRPOTrainer

    from autotelic.controls.high_entropy import HighEntropy
    from autotelic.trl import EntropyMinimization, with_entropy_control, with_entropy_minimization
    from autotelic.trl.seam import score

    sizes = run.sizes
    shape = (sizes.responses, sizes.micro, sizes.tokens)
    controlled, minimising = with_entropy_control(GRPOTrainer), with_entropy_minimization(GRPOTrainer)
    kinds = {
        TRL: (GRPOTrainer, {}),
        OURS: (controlled, {"entropy_control": None, "fused_head": "on"}),
        f"{OURS}, high_entropy": (controlled, {"entropy_control": HighEntropy(), "fused_head": "on"}),
    }
    trainers = {name: trainer_of(run, base, *shape, **ours) for name, (base, ours) in kinds.items()}
    parts = on_device(run, rollout(sizes.responses, sizes.micro, sizes.tokens, sizes.model["vocabulary"]))
    parts = scored(trainers[TRL], parts)
    for name, trainer in trainers.items():
        trainer._buffered_inputs = [dict(part) for part in parts]
        if name.endswith("high_entropy"):
            with torch.no_grad():
                for part in trainer._buffered_inputs:
                    part["rollout_entropy"] = score(trainer, part, entropy=True)[1]
    name = f"GRPO update, {sizes.responses} x {sizes.tokens} tokens"
    run.compare(name, {side: (lambda t=t: make_update(t)) for side, t in trainers.items()}, target_side=TRL, target=1.0)
    theirs = trainers[TRL]
    del trainers
    gc.collect()
    term = {"entropy_minimization": EntropyMinimization(guard=0), "fused_head": "on"}
    ours = trainer_of(run, minimising, *shape, **term)
    count = sum(part["completion_mask"].sum() for part in parts)
    ours._buffered_inputs = [
        part | {"advantages": torch.zeros_like(part["advantages"]), "num_em_tokens": count} for part in parts
    ]

    def em_by_trl() -> None:
        for part in parts:
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            attention = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
            with theirs.accelerator.autocast():
                _, found, _ = theirs._get_per_token_logps_and_entropies(
                    theirs.model, ids, attention, part["completion_ids"].shape[1], compute_entropy=True
                )
            ((found * part["completion_mask"]).sum() / count).backward()
        theirs.model.zero_grad(set_to_none=True)

    name = f"EM update, {sizes.responses} x {sizes.tokens} tokens"
    run.compare(name, {OURS: lambda: make_update(ours), TRL: em_by_trl}, target_side=TRL, target=1.0)


def prefix(run: Run) -> None:
    """One prompt and its group."""
    from prefix import GROUP, UNSHARED, group
    from trl import GRPOTrainer

    from autotelic.trl import with_entropy_control

    sizes = run.sizes
    (micro,) = on_device(run, [group(sizes.prompt, sizes.response, sizes.model["vocabulary"])])
    sides: dict[str, Callable[[], Any]] = {}
    for name, mode in {OURS: "on", UNSHARED: "off", TRL: ""}.items():
        base = with_entropy_control(GRPOTrainer) if mode else GRPOTrainer
        ours = {"fused_head": "on", "shared_prefix": mode} if mode else {}
        trainer = trainer_of(run, base, GROUP, GROUP, sizes.prompt + sizes.response, **ours)

        def step(trainer: Any = trainer) -> None:
            with trainer.accelerator.autocast():
                trainer._compute_loss(trainer.model, dict(micro)).backward()
            trainer.model.zero_grad(set_to_none=True)

        sides[name] = step
    run.compare(f"prompt {sizes.prompt}, response {sizes.response}, group {GROUP}", sides, target_side=TRL, target=1.0)


SECTIONS: dict[str, Callable[[Run], None]] = {
    "rate": rate,
    "correct": correct,
    "entropy": entropy,
    "head": head,
    "skipped": skipped,
    "update": update,
    "prefix": prefix,
}


def main(options: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__, repeats=5)
    said = "sections to run; rate always is"
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help=said)
    args = parser.parse_args(options)
    import torch

    if args.smoke:
        one_thread()
    elif not torch.cuda.is_available():
        parser.error("no CUDA device; --smoke runs every section on a CPU")
    run = Run(args, SMOKE if args.smoke else FULL)
    result: dict[str, Any] = {}
    for name in (each for each in SECTIONS if each in ("rate", *args.only)):
        began = time.perf_counter()
        run.until = began + BUDGET[name]
        try:
            SECTIONS[name](run)
        except Exception:  # the sections after it are worth having
            if args.smoke:
                raise
            run.missing[name] = traceback.format_exc()[-1500:]
            print(run.missing[name], flush=True)
        gc.collect()
        print(f"== {name}: {time.perf_counter() - began:.0f} s of {BUDGET[name]}", flush=True)
        sizes = run.sizes
        work = {"vocabulary": sizes.vocabulary, "dtype": sizes.dtype, "model": dict(sizes.model), "rate": run.rate}
        more = {"timed": run.timed}
        result = write("gpu", args, run.cases, work=work, clock="wall seconds", missing=run.missing, more=more)
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch
        found = main()
    sys.exit(any(case.get("errors") and case["missed"] for case in found["cases"]))
