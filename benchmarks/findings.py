"""The small pictures of docs/findings.md, drawn from benchmarks/results.

python benchmarks/findings.py

Each is a dot a method with its 95 % interval (over seeds), in colours that can be read on light and on dark pages.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS, FIGURES = ROOT / "benchmarks/results", ROOT / "docs/figures/findings"
LABELS = {
    "base": "base",
    "grpo": "GRPO, labels",
    "clip_cov": "Clip-Cov",
    "kl_cov": "KL-Cov",
    "empo": "EMPO",
    "empo_kl_cov": "EMPO + KL-Cov",
    "majority_vote": "majority vote",
    "random": "random reward",
    "self_certainty": "self-certainty",
}
Row = tuple[str, float, float, float]
"""Label, mean, lower and upper end."""


def over_seeds(file: str, metric: str, names: Sequence[str]) -> list[Row]:
    """Return the mean of a metric over the seeds of each method, with a Student interval."""
    runs = json.loads((RESULTS / file).read_text())["runs"]
    rows = []
    for name in names:
        values = [run["evaluation"][metric]["value"] for run in runs if run["name"] == name]
        mean, half = sum(values) / len(values), 0.0
        if len(values) > 2:
            half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
        rows.append((LABELS.get(name, name), mean, mean - half, mean + half))
    return rows


def summarised(file: str, metric: str, names: dict[str, str]) -> list[Row]:
    """Return figures that a results file holds already summarised."""
    figures = json.loads((RESULTS / file).read_text())["figures"]
    found = {label: figures[name][metric] for name, label in names.items()}
    return [(label, f["mean"], f["low"], f["high"]) for label, f in found.items()]


def draw(name: str, title: str, rows: Sequence[Row]) -> None:
    """Write one picture as SVG: a line a method, from 0 to a little above the largest interval."""
    width, left, step = 360, 118, 22
    top = max(high for *_, high in rows) * 1.08
    height = 34 + step * len(rows)

    def x(value: float) -> float:
        return left + (width - left - 46) * max(value, 0.0) / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}" font-family="sans-serif" font-size="12" fill="#7a7f8a">',
        f'<text x="4" y="16" font-weight="bold">{title}</text>',
    ]
    for place, (label, mean, low, high) in enumerate(rows):
        y = 38 + step * place
        parts += [
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>',
            f'<line x1="{left}" x2="{x(mean):.1f}" y1="{y}" y2="{y}" stroke="#7a7f8a" stroke-opacity=".35"/>',
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="#3f7fd0" stroke-width="3"/>',
            f'<circle cx="{x(mean):.1f}" cy="{y}" r="4.5" fill="#3f7fd0"/>',
            f'<text x="{x(high) + 9:.1f}" y="{y + 4}">{mean:.2f}</text>',
        ]
    FIGURES.mkdir(parents=True, exist_ok=True)
    (FIGURES / f"{name}.svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


def main() -> None:
    """Draw them all."""
    entropy = ("grpo", "clip_cov", "kl_cov")
    draw("entropy", "entropy after 200 updates, nats", over_seeds("evidence_entropy.json", "entropy", entropy))
    draw(
        "accuracy", "accuracy of samples (mean@8), 200 updates", over_seeds("evidence_entropy.json", "mean@8", entropy)
    )
    label_free = ("base", "random", "self_certainty", "majority_vote", "empo", "empo_kl_cov", "grpo")
    draw(
        "label_free",
        "accuracy of samples (mean@64), 160 updates",
        over_seeds("evidence_label_free.json", "mean@64", label_free),
    )
    one_shot = {"base": "base", "format reward": "format reward", "random reward": "random reward", "em": "one-shot EM"}
    one_shot |= {"em then rl": "EM, then GRPO", "rl": "GRPO", "rl then em": "GRPO, then EM"}
    draw("one_shot_em", "mean@8", summarised("one_shot_em.json", "mean@8", one_shot))


if __name__ == "__main__":
    main()
