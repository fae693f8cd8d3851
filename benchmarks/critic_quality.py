"""What a control recipe's labels are worth, and how far PPL's loss is from CPL's: why one may not beat the other.

    python benchmarks/critic_quality.py benchmarks/recipes/control_metaworld_former.yaml --seeds 0 1 2

Per task and seed, with the recipe's own data: what `autotelic control data` reports (`control.data_report`); then the
correlation of CPL's and PPL's margins, and the cosine of their losses' gradients, at the clone, and the same for PPL
under wrong labels: what is left there for a label to change.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from autotelic.cli.control_learning import build_settings
from autotelic.control.collection import build_data
from autotelic.control.objectives import all_scores
from autotelic.control.settings import DataSettings, TrainSettings
from autotelic.control.training import build_learner, prepare


def losses(training: TrainSettings, folder: Path) -> dict[str, float]:
    """Margins and gradients of CPL and PPL at their common clone, and of PPL with known and with wrong labels."""
    margins, gradients = {}, {}
    arms = {"cpl": ("cpl", "known"), "ppl": ("ppl", "known"), "wrong": ("ppl", "wrong"), "ppl_d": ("ppl_d", "known")}
    weights: Any = None
    for name, (method, labels) in arms.items():
        settings = replace(training, method=method, labels=labels)
        learner = build_learner(settings, prepare(settings, folder))
        if weights is None:
            for _ in range(settings.bc_steps):
                learner.update()
            weights = learner.policy.state_dict()
        learner.policy.load_state_dict(weights)
        score = all_scores(learner.policy, learner.data, learner.lookahead, learner.constants)
        margins[name] = (score[learner.data.second] - score[learner.data.first]).numpy()
        parameters = list(learner.policy.body.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for _ in range(40):
            found = torch.autograd.grad(learner.objective(), parameters)
            total = [t + g for t, g in zip(total, found, strict=True)]
        gradients[name] = torch.cat([t.flatten() for t in total])
    result = {}
    for one, two in (("ppl", "cpl"), ("ppl_d", "cpl"), ("wrong", "ppl")):
        result[f"margins_{one}_{two}"] = float(np.corrcoef(margins[one], margins[two])[0, 1])
        cosine = torch.nn.functional.cosine_similarity(gradients[one], gradients[two], dim=0)
        result[f"gradients_{one}_{two}"] = float(cosine)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = yaml.safe_load(args.recipe.read_text()), []
    for task in args.tasks or recipe["tasks"]:
        for seed in args.seeds:
            section = recipe.get("data", {}) | recipe["tasks"][task]
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "data"
                report = build_data(build_settings(DataSettings, section, {"seed": seed}), data)["report"]
                training = build_settings(TrainSettings, recipe["train"] | {"bias": 0.5}, {"seed": seed})
                rows.append({"task": task, "seed": seed} | report | losses(training, data))
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
            print(time.strftime("%H:%M:%S"), json.dumps(shown), file=sys.stderr, flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    names = [name for name in rows[0] if name not in ("task", "seed") and rows[0][name] is not None]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    print("| | " + " | ".join(tasks) + " |\n| --- " + "| --- " * len(tasks) + "|")
    for name in names:
        cells = [[row[name] for row in rows if row["task"] == task] for task in tasks]
        print(f"| {name} | " + " | ".join(f"{np.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells) + " |")


if __name__ == "__main__":
    main()
