"""Sampling by transformers and by vLLM on the same prompts: `.venv-vllm/bin/python benchmarks/sampling.py`.

SmolLM2-135M-Instruct in float32 on word problems, by the sampler of `eval` and `select`: `autotelic` is its default
engine, transformers. Both sides live in one process, on one thread, and take turns. Responses have random lengths, so
what is compared is the time for 1,000 response tokens. Transformers' side also reads each token's entropy, which vLLM
does not give. vLLM for CPUs is in the environment of `make test-vllm`; it runs eagerly, and forgets the prompts between
turns. Not part of `make bench`, whose environment has no vLLM.
"""

import os
import time
from functools import partial
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}

from common import OURS, case, interleave, one_thread, parser_for, write

VLLM = "vLLM"
MODEL, LENGTH = "smollm2", 32
SIZES = ((4, 1), (4, 8))
"""Prompts, and responses of each."""


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=3).parse_args(options)
    one_thread()
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

        def run(side: str, prompts: int = prompts, k: int = k, counted: Any = counted) -> None:
            if side == VLLM:
                engine.llm.reset_prefix_cache()
            sampler = engine if side == VLLM else model
            found = sample(sampler, tokenizer, texts[:prompts], k=k, max_new_tokens=length, seed=len(counted[side]))
            counted[side].append(int(found.num_tokens.sum()))

        seconds = interleave({side: partial(run, side) for side in counted}, args.repeats)
        timed = {side: counts[1:] for side, counts in counted.items()}
        speed = {side: sum(timed[side]) / sum(turns) for side, turns in seconds.items()}
        each = {
            side: [1e3 * taken / tokens for taken, tokens in zip(turns, timed[side], strict=True)]
            for side, turns in seconds.items()
        }
        rows.append(case(f"{prompts} prompts x {k} responses, 1,000 tokens", each, tokens_per_second=speed))
    work = {"model": name, "dtype": "float32", "max_new_tokens": length, "vllm_start_seconds": start}
    return write("sampling", args, rows, work=work, clock="CPU seconds for 1,000 tokens, one thread")


if __name__ == "__main__":
    main()
