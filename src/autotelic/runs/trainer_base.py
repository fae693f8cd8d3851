"""What the mixins are put in front of: a GRPOTrainer, whose attributes TRL does not type precisely enough to check."""

from typing import Any

TrainerBase: Any = object
