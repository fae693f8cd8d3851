"""Rebuild the small base model that the repository carries: about 10 minutes on one core.

autotelic pretrain --config recipes/pretrain_tiny.yaml --output runs/any_pair
"""

import argparse
from pathlib import Path
from typing import Any

from autotelic.cli.config import find_recipe, from_mapping, read_yaml
from autotelic.cli.options import add_output, as_json
from autotelic.errors import UserError
from autotelic.runs.files import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=Path, required=True, help="a recipe, such as recipes/pretrain_tiny.yaml")
    parser.add_argument("--output", type=Path, help="folder of the model (default: runs/pretrain/NAME)")
    parser.add_argument("--num-steps", type=int, help="number of steps in place of the recipe's, for a trial")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Pretrain, and write the model."""
    from dataclasses import replace

    from transformers.utils import logging

    from autotelic.tasks import pretraining

    logging.disable_progress_bar()
    path = find_recipe(str(args.config))
    recipe = from_mapping(pretraining.PretrainRecipe, read_yaml(path), f"the recipe {path}")
    if args.num_steps is not None:
        recipe = replace(recipe, num_steps=args.num_steps)
    folder = args.output or Path("runs") / "pretrain" / recipe.name
    check_output(folder)
    model, losses = pretraining.pretrain(recipe, progress=not args.quiet)
    pretraining.save(model, recipe, losses, folder)
    summary = {"folder": str(folder), "parameters": model.num_parameters(), "steps": len(losses), "loss": losses[-1]}
    print(as_json(summary) if args.json else table(summary))
    return 0


def table(summary: dict[str, Any]) -> str:
    """Return the summary for people."""
    return "\n".join(
        [
            f"parameters   {summary['parameters']:,}",
            f"steps        {summary['steps']}",
            f"last loss    {summary['loss']:.3f} nats per token",
            f"model        {summary['folder']}",
        ]
    )


def check_output(folder: Path) -> None:
    """Refuse, before the work, a folder that cannot be written or that holds something else than a model."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").exists())):
        raise UserError(f"{folder} exists and is not a model folder; choose another --output.")
    check_writable(folder / "config.json", "choose another --output")
