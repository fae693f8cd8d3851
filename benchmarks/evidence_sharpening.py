"""Is it more than sharpening? Trained models against the base at the temperature of equal entropy.

    python benchmarks/evidence_sharpening.py runs/evidence/smollm2      (or benchmarks/results/evidence_smollm2.json)

Every method that lowers the entropy makes the likeliest answers likelier, which alone raises accuracy. So each run is
compared with its base model, sampled at the temperature at which the base has the run's entropy. Between the measured
temperatures each prompt's accuracy is interpolated linearly in the entropy, down to greedy decoding at 0.
Intervals are 95 % bootstrap intervals of the difference, paired by prompt; prompts and seeds are both resampled.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from autotelic.evaluation import pass_at_k

Runs = dict[str, list[dict[str, Any]]]


def load(source: Path) -> Runs:
    """Return the finished runs by name."""
    if source.is_dir():
        records = [json.loads(path.read_text()) for path in sorted(source.glob("*/result.json"))]
        experiment = json.loads((source / "experiment.json").read_text())
    else:
        content = json.loads(source.read_text())
        records, experiment = content["runs"], content["experiment"]
    found: Runs = {name: [] for name in experiment["runs"]}
    for record in records:
        found[record["name"]].append(record)
    return {name: rows for name, rows in found.items() if rows}


def responses(record: dict[str, Any]) -> int:
    """Return how many responses to a prompt were sampled."""
    return next(int(name[5:]) for name in record["evaluation"] if name.startswith("mean@"))


def accuracy(record: dict[str, Any]) -> np.ndarray:
    """Share of correct responses to each prompt."""
    return np.asarray(record["details"]["correct"]) / responses(record)


def base_at(entropy: float, base: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Each prompt's accuracy of the base at an entropy, from (entropy, accuracy) sorted by entropy."""
    values = np.asarray([point for point, _ in base])
    upper = int(np.clip(np.searchsorted(values, entropy), 1, len(base) - 1))
    (low, at_low), (high, at_high) = base[upper - 1], base[upper]
    share = float(np.clip((entropy - low) / (high - low), 0, 1))
    return (1 - share) * at_low + share * at_high


def base_curve(runs: Runs) -> list[tuple[float, np.ndarray]]:
    """The base's entropy and accuracy at every temperature that was measured, greedy decoding first."""
    measured = [(rows[0]["evaluation"]["entropy"]["value"], rows) for name, rows in runs.items() if is_base(name)]
    points = [(entropy, np.mean([accuracy(row) for row in rows], 0)) for entropy, rows in measured]
    greedy = np.asarray(runs["base"][0]["details"]["greedy"], dtype=float)
    return sorted([(0.0, greedy), *points], key=lambda point: point[0])


def is_base(name: str) -> bool:
    return name.split("_")[0] == "base"


def modal_share(record: dict[str, Any], what: str) -> float:
    """Share of the most frequent first token (or first operator) among the responses to an operator's problems."""
    shares = []
    operators = record["details"]["operator"]
    for operator in sorted(set(operators)):
        seen = [x for own, row in zip(operators, record["details"][what], strict=True) if own == operator for x in row]
        shares.append(max(map(seen.count, set(seen))) / len(seen))
    return float(np.mean(shares))


def right_operator(record: dict[str, Any]) -> float:
    """Share of the responses whose first operator is the problem's."""
    pairs = zip(record["details"]["operator"], record["details"]["first_operator"], strict=True)
    return float(np.mean([own == used for own, row in pairs for used in row]))


def interval(values: np.ndarray, resamples: int = 2000) -> str:
    """Mean of `(seeds, prompts)` and its interval."""
    rng, (seeds, prompts) = np.random.default_rng(0), values.shape
    means = [
        values[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(prompts, size=prompts)].mean()
        for _ in range(resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def over_seeds(values: Iterable[float]) -> str:
    """Mean over seeds, with the half-width of its 95 % Student interval where there are two or more."""
    array = np.asarray(list(values), dtype=float)
    if len(array) < 2:
        return "".join(f"{x:.3f}" for x in array)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return f"{array.mean():.3f} ± {half:.3f}"


def table(runs: Runs) -> str:
    base, start = base_curve(runs), accuracy(runs["base"][0])
    heads = ["run", "seeds", "sampled", "greedy", "entropy", "gain on the base", "gain at equal entropy"]
    heads += ["answers among 4", "modal first token", "right operator"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, rows in runs.items():
        correct = np.stack([accuracy(row) for row in rows])
        entropies = [row["evaluation"]["entropy"]["value"] for row in rows]
        equal = correct - np.stack([base_at(h, base) for h in entropies])
        decoded = [np.mean(row["details"]["greedy"]) for row in rows if row["details"]["greedy"][0] is not None]
        cells = [name, str(len(rows)), over_seeds(correct.mean(1)), over_seeds(decoded), over_seeds(entropies)]
        cells += ["", ""] if is_base(name) else [interval(correct - start), interval(equal)]
        cells += [f"{np.mean([np.mean(row['details']['distinct_of_4']) for row in rows]):.2f}"]
        cells += [f"{np.mean([modal_share(row, 'first_token') for row in rows]):.2f}"]
        cells += [f"{np.mean([right_operator(row) for row in rows]):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pass_table(runs: Runs) -> str:
    """pass@1, pass@2, ...: whether what was gained at one response is lost at many."""
    tries = [2**i for i in range(6) if 2**i <= max(map(responses, (row for rows in runs.values() for row in rows)))]
    lines = ["| run | " + " | ".join(f"pass@{n}" for n in tries) + " |", "| --- " * (len(tries) + 1) + "|"]
    for name, rows in runs.items():
        cells = []
        for n in tries:
            enough = [row for row in rows if responses(row) >= n]
            right = [np.arange(responses(row)) < np.asarray(row["details"]["correct"])[:, None] for row in enough]
            cells.append(over_seeds(pass_at_k(one, n).mean() for one in right))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_table(runs: Runs) -> str:
    """Sampled accuracy of every seed."""
    lines = ["| run | sampled accuracy of each seed |", "| --- | --- |"]
    lines += [
        f"| {name} | " + ", ".join(f"{accuracy(row).mean():.3f}" for row in rows) + " |" for name, rows in runs.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    given = load(parser.parse_args().source)
    print(table(given), pass_table(given), seeds_table(given), sep="\n\n")
