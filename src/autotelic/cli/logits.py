"""What training changed in the logits: the base model against tuned ones, on shared text.

Raw logits over the whole vocabulary, teacher-forced: mean, std and skewness with intervals (bootstrap over sequences,
paired with the base), histograms on shared axes, mean logit per rank. The text is sampled from the base model, or given
as a column `response` (or `responses`) of the prompt file.

    autotelic logits any_pair runs/one_shot_em runs/grpo --prompts chain_sums:test --limit 50 --plot shift.html
    autotelic logits base em rl em_then_rl --prompts prompts.jsonl --compat official

`--compat official` is the published plot instead: the 50 largest scores divided by 0.6, each model on its own text.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotelic.cli.options import add_chat, add_output, add_sampling, say, say_chat, say_written
from autotelic.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the base model, then the tuned ones")
    parser.add_argument("--prompts", default="chain_sums:test", help="a data set or a file (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=50, help="at most this many prompts (default: %(default)s)")
    add_sampling(parser, k=4)
    add_chat(parser)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the text; 0: greedy (default: %(default)s)")
    parser.add_argument("--bin-width", type=float, default=0.25, help="of the histograms (default: %(default)s)")
    parser.add_argument("--compat", choices=("none", "official"), default="none", help="official: the published plot")
    add_output(parser, out="write every figure here (JSON)", plot="write a picture here (HTML)")


def run(args: argparse.Namespace) -> int:
    """Make the text, measure every model, write."""
    from contextlib import ExitStack

    from autotelic.runs.files import replacing

    if args.limit < 1 or args.k < 1 or args.max_new_tokens < 1 or not args.bin_width > 0 or args.temperature < 0:
        raise UserError(
            "limit, k and max-new-tokens must be at least 1, bin-width above 0 and temperature not negative"
        )
    with ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        plot = stack.enter_context(replacing(args.plot)) if args.plot else None
        result = measure(args)
        if out is not None:
            json.dump(result, out)
        if plot is not None:
            plot.write(picture(result))
    print(json.dumps(result) if args.json else table(result))
    say_written(args, args.out, args.plot)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return {"settings", "models": {name: statistics}}."""
    from autotelic.diagnostics.logit_shift import OFFICIAL, RAW, logit_shift
    from autotelic.lm.load import load_model
    from autotelic.tasks import load_problems

    if len(set(args.models)) < len(args.models):
        raise UserError("a model is named twice: name each once")
    official = args.compat == "official"
    prompts = [row["prompt"] for row in load_problems(args.prompts, limit=args.limit, seed=args.seed)]
    given = None if official else given_responses(args)
    base, tokenizer = load_model(args.models[0], device="auto")
    say_chat(args, prompts, tokenizer)
    say(
        args, f"{len(prompts)} prompts, text of {'each model' if official else 'the file' if given else args.models[0]}"
    )
    shared = given_sequences(given, tokenizer) if given else sample(base, tokenizer, prompts, args)
    del base
    sequences = dict.fromkeys(args.models, shared)
    loaders = {}
    for name in args.models:

        def loader(name: str = name) -> Any:
            say(args, f"{name} ...")
            model, own = load_model(name)
            if own.get_vocab() != tokenizer.get_vocab():
                raise UserError(f"{name} has another vocabulary than {args.models[0]}: logits cannot be compared")
            return model

        loaders[name] = loader
    if official:
        for name in args.models[1:]:
            model, own = load_model(name)
            sequences[name] = sample(model, own, prompts, args)
            del model
    results = logit_shift(
        loaders,
        sequences,
        form=OFFICIAL if official else RAW,
        bin_width=args.bin_width,
        seed=args.seed,
        pad_id=tokenizer.pad_token_id or 0,
    )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return {"settings": settings, "models": results}


def given_responses(args: argparse.Namespace) -> list[tuple[str, str]] | None:
    """Return (prompt, response) pairs of the prompt file, where it has responses."""
    path = Path(args.prompts)
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()][: args.limit]
    pairs = []
    for row in rows:
        texts = row.get("responses", [row["response"]] if "response" in row else None)
        if texts is None:
            return None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}: `responses` must be a list of strings")
        pairs += [(row["prompt"], text) for text in texts]
    return pairs


def given_sequences(pairs: list[tuple[str, str]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Turn texts into token ids, as a tuple of pairs that can be compared."""
    return [
        (tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"])
        for prompt, text in pairs
    ]


def sample(model: Any, tokenizer: Any, prompts: list[str], args: argparse.Namespace) -> list:
    """Return the text that a model writes, as token ids."""
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.sampling import encode
    from autotelic.lm.sampling import sample as sampled

    texts = prompt_texts(prompts, tokenizer, args.chat)
    k = args.k if args.temperature > 0 else 1
    found = sampled(
        model,
        tokenizer,
        texts,
        k=k,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        statistics=(),
    )
    asked = [encode(text, tokenizer) for text in texts for _ in range(k)]
    return list(zip(asked, found.without_end(), strict=True))


def table(result: Mapping[str, Any]) -> str:
    """Return the moments of every model, and their shift from the base."""
    models = result["models"]
    width = max(len("model"), *map(len, models))
    lines = [f"{'model':<{width}}" + "".join(f"{name:>26}" for name in ("mean", "std", "skewness", "skewness - base"))]
    for name, row in models.items():
        cells = [cell(row["mean"]), cell(row["std"]), cell(row["skewness"])]
        cells.append(cell(row["shift"]["skewness"]) if "shift" in row else "")
        lines.append(f"{name:<{width}}" + "".join(f"{text:>26}" for text in cells))
    first = next(iter(models.values()))
    lines.append(
        f"{first['num_sequences']} sequences, {first['num_positions']} positions; 95 % bootstrap over sequences"
    )
    return "\n".join(lines)


def cell(estimate: Mapping[str, Any]) -> str:
    """Return a value with its interval."""
    interval = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def picture(result: Mapping[str, Any]) -> str:
    """Return a page: histograms on shared axes, and the mean logit per rank."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, subplot_titles=["density of the logits", "mean logit per rank"])
    for i, (name, row) in enumerate(result["models"].items()):
        bins, colour = row["histogram"], qualitative.D3[i % 10]
        total = sum(bins["counts"]) * bins["bin_width"]
        x = [bins["low"] + (j + 0.5) * bins["bin_width"] for j in range(len(bins["counts"]))]
        label = f"{name} (skewness {row['skewness']['value']:.2f})"
        figure.add_trace(
            go.Scatter(x=x, y=[c / total for c in bins["counts"]], name=label, line={"color": colour, "shape": "hvh"}),
            1,
            1,
        )
        ranks = row["ranks"]
        figure.add_trace(
            go.Scatter(x=ranks["rank"], y=ranks["mean"], name=name, line_color=colour, showlegend=False), 1, 2
        )
    figure.update_xaxes(title_text="logit", row=1, col=1)
    figure.update_xaxes(title_text="rank", type="log", row=1, col=2)
    figure.update_yaxes(title_text="density", row=1, col=1)
    figure.update_layout(template="plotly_white", title="logit shift")
    return figure.to_html(include_plotlyjs=True, full_html=True)
