"""Is it more than sharpening? Trained models against the base at the temperature of equal entropy.

    python benchmarks/evidence_sharpening.py runs/evidence/smollm2      (or benchmarks/results/evidence_smollm2.json)

Every method that lowers the entropy makes the likeliest answers likelier, which alone raises accuracy. So each run is
compared with its base model, sampled at the temperature at which the base has the run's entropy. Between the measured
temperatures each prompt's accuracy is interpolated linearly in the entropy, down to greedy decoding at 0.
Intervals are 95 % bootstrap intervals over prompts of the difference, averaged over seeds (paired by prompt).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.evaluation import bootstrap, pass_at_k

Runs = dict[str, list[dict[str, Any]]]


def load(source: Path) -> tuple[Runs, int]:
    """Return the finished runs by name, and the number of responses to a prompt."""
    if source.is_dir():
        records = [json.loads(path.read_text()) for path in sorted(source.glob("*/result.json"))]
        experiment = json.loads((source / "experiment.json").read_text())
    else:
        content = json.loads(source.read_text())
        records, experiment = content["runs"], content["experiment"]
    found: Runs = {name: [] for name in experiment["runs"]}
    for record in records:
        found[record["name"]].append(record)
    return {name: rows for name, rows in found.items() if rows}, experiment["evaluation"]["k"]


def accuracy(record: dict[str, Any], k: int) -> np.ndarray:
    """Share of correct responses to each prompt."""
    return np.asarray(record["details"]["correct"]) / k


def base_at(entropy: float, base: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Each prompt's accuracy of the base at an entropy, from (entropy, accuracy) sorted by entropy."""
    values = np.asarray([point for point, _ in base])
    upper = int(np.clip(np.searchsorted(values, entropy), 1, len(base) - 1))
    (low, at_low), (high, at_high) = base[upper - 1], base[upper]
    share = float(np.clip((entropy - low) / (high - low), 0, 1))
    return (1 - share) * at_low + share * at_high


def base_curve(runs: Runs, k: int) -> list[tuple[float, np.ndarray]]:
    """The base's entropy and accuracy at every temperature that was measured, greedy decoding first."""
    measured = [(rows[0]["evaluation"]["entropy"]["value"], rows) for name, rows in runs.items() if is_base(name)]
    points = [(entropy, np.mean([accuracy(row, k) for row in rows], 0)) for entropy, rows in measured]
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


def interval(values: np.ndarray) -> str:
    estimate = bootstrap(values)
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def table(runs: Runs, k: int) -> str:
    base, start = base_curve(runs, k), accuracy(runs["base"][0], k)
    heads = ["run", "seeds", f"mean@{k}", "greedy", f"pass@{k}", "entropy", "gain on the base"]
    heads += ["gain at equal entropy", "answers a prompt", "modal first token", "right operator"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, rows in runs.items():
        correct = np.mean([accuracy(row, k) for row in rows], 0)
        entropies = [row["evaluation"]["entropy"]["value"] for row in rows]
        equal = np.mean([accuracy(row, k) - base_at(h, base) for row, h in zip(rows, entropies, strict=True)], 0)
        cells = [name, str(len(rows)), f"{correct.mean():.3f}"]
        decoded = [row["details"]["greedy"] for row in rows if row["details"]["greedy"][0] is not None]
        cells += [f"{np.mean(decoded):.3f}" if decoded else ""]
        cells += [f"{np.mean([row['evaluation'][f'pass@{k}']['value'] for row in rows]):.3f}"]
        cells += [f"{np.mean(entropies):.2f}"]
        cells += ["", ""] if is_base(name) else [interval(correct - start), interval(equal)]
        cells += [f"{np.mean([np.mean(row['details']['distinct']) for row in rows]):.1f}"]
        cells += [f"{np.mean([modal_share(row, 'first_token') for row in rows]):.2f}"]
        cells += [f"{np.mean([right_operator(row) for row in rows]):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pass_table(runs: Runs, k: int) -> str:
    """pass@1 ... pass@k: whether what was gained at one response is lost at many."""
    tries = [2**i for i in range(k.bit_length()) if 2**i <= k]
    lines = ["| run | " + " | ".join(f"pass@{n}" for n in tries) + " |", "| --- " * (len(tries) + 1) + "|"]
    for name, rows in runs.items():
        right = [np.arange(k) < np.asarray(row["details"]["correct"])[:, None] for row in rows]
        cells = (f"{np.mean([pass_at_k(one, n).mean() for one in right]):.3f}" for n in tries)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_table(runs: Runs, k: int) -> str:
    """mean@k of every seed."""
    lines = [f"| run | mean@{k} of seeds 0, 1, ... |", "| --- | --- |"]
    lines += [
        f"| {name} | " + ", ".join(f"{accuracy(row, k).mean():.3f}" for row in rows) + " |"
        for name, rows in runs.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    given = load(parser.parse_args().source)
    print(table(*given), pass_table(*given), seeds_table(*given), sep="\n\n")
