"""Sampling by transformers and by vLLM on the same prompts: `.venv-vllm/bin/python benchmarks/sampling.py`.

SmolLM2-135M-Instruct in float32 on word problems, through the sampler of `eval` and `select`; both sides live in one
process and take turns. Tokens a second count response tokens only. vLLM for CPUs is in the environment of
`make test-vllm`; it runs eagerly here. Not part of `make bench`, whose environment has no vLLM.
"""

import os
import time
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}

from common import OURS, case, interleave, parser_for, write

VLLM = "vLLM"
MODEL, LENGTH = "smollm2", 64
SIZES = ((4, 1), (4, 8), (16, 8))
"""Prompts, and responses of each."""


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=3).parse_args(options)
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.engines import open_engine
    from autotelic.lm.load import load_model
    from autotelic.lm.sampling import sample
    from autotelic.tasks import load_problems

    name, length = ("any_pair", 16) if args.smoke else (MODEL, LENGTH)
    data = "chain_sums:train" if args.smoke else "word_sums:train"
    problems = load_problems(data, limit=max(prompts for prompts, _ in SIZES), say=lambda text: None)
    model, tokenizer = load_model(name)
    started = time.perf_counter()
    engine = open_engine("vllm", name, {"max_model_len": 64 if args.smoke else 512})
    start = time.perf_counter() - started
    texts = prompt_texts([row["prompt"] for row in problems], tokenizer)
    rows = []
    for prompts, k in SIZES[:1] if args.smoke else SIZES:
        counted: dict[str, list[int]] = {OURS: [], VLLM: []}

        def run(side: str, sampler: Any, prompts: int = prompts, k: int = k, counted: Any = counted) -> None:
            found = sample(sampler, tokenizer, texts[:prompts], k=k, max_new_tokens=length, seed=len(counted[side]))
            counted[side].append(int(found.num_tokens.sum()))

        sides = {OURS: lambda: run(OURS, model), VLLM: lambda: run(VLLM, engine)}
        seconds = interleave(sides, args.repeats, clock=time.process_time)
        speed = {side: sum(counted[side][1:]) / sum(turns) for side, turns in seconds.items()}
        print("tokens a CPU second:", {side: round(value, 1) for side, value in speed.items()}, flush=True)
        # Lengths are random: what is compared is seconds for each token.
        each = {
            side: [1e3 * taken / n for taken, n in zip(turns, counted[side][1:], strict=True)]
            for side, turns in seconds.items()
        }
        rows.append(case(f"{prompts} prompts x {k}, ms a token", each, tokens_per_second=speed))
    work = {"model": name, "dtype": "float32", "max_new_tokens": length, "vllm_start_seconds": start}
    return write("sampling", args, rows, work=work, clock="CPU ms for each response token")


if __name__ == "__main__":
    main()
