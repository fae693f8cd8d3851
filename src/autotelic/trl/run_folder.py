"""A trainer of TRL that keeps our run folder: checkpoints that are whole or do not count, and our model card."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autotelic.runs.checkpoints import draw_past_orders, save_whole
from autotelic.runs.model_card import write_model_card

Base: Any = object  # a trainer of TRL
TrainerT = TypeVar("TrainerT")


class RunFolder(Base):
    """Put before a trainer in the bases (`with_run_folder`)."""

    own_card: ClassVar[bool] = True

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Remember the sampler, whose place a resumed run must find again."""
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Resume, with the prompts of the epoch that the checkpoint is in."""
        super()._load_optimizer_and_scheduler(checkpoint)
        draw_past_orders(self._train_sampler, self.state.epoch or 0.0)  # None at the start, in transformers 5.0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as the base class does, except for deleting: that comes last."""
        save_whole(self, trial, lambda: super(RunFolder, self)._save_checkpoint(model, trial))

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Write our card where transformers writes its own: with every checkpoint, at the end, and before a push."""
        if not self.own_card:
            super().create_model_card(model_name, *args, **kwargs)
            return
        if not self.is_world_process_zero():
            return
        adapter = hasattr(self.accelerator.unwrap_model(self.model), "peft_config")
        base = getattr(self.model.config, "_name_or_path", None) or None
        if not write_model_card(Path(self.args.output_dir), base_model=base, adapter=adapter):
            super().create_model_card(model_name, *args, **kwargs)


def with_run_folder(trainer_class: type[TrainerT], *, own_card: bool = True) -> type[TrainerT]:
    """Return a subclass of a trainer that keeps our run folder; put it outermost.

    Args:
        trainer_class: of TRL.
        own_card: write our model card in the place of TRL's.
    """
    return type(f"Kept{trainer_class.__name__}", (RunFolder, trainer_class), {"own_card": own_card})
