"""What models train on: the small reasoning world and the base models it made, reasoning-gym, files and hub data sets.

`load_problems` is the one interface to all of them; `model_path` is where a carried base model lies.
Importing this package is cheap: torch, transformers and datasets are imported by the functions that need them.
"""

from autotelic.tasks.models import model_names, model_path
from autotelic.tasks.sources import load_problems, to_dataset

__all__ = ["load_problems", "model_names", "model_path", "to_dataset"]
