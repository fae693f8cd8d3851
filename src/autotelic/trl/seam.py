"""The one place where this package overrides TRL's methods: each once, and each hands on to the parts of the run.

    trainer = with_parts(GRPOTrainer)(..., parts=[Control(ClipCov()), RolloutLog(path)])

A `Part` is a method's share in a training step: a plain object whose hooks are called in the order of the list. Nothing
of TRL's bodies is copied. TRL reads `inputs["advantages"]` after it has asked for log-probabilities, and accepts the
shape (B, T); so a part may rewrite them in between. A canary test (zero advantages give zero gradient) guards this.
`docs/architecture.md` follows one update from the first call to the last.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import fill_outside
from autotelic.runs.processes import stop_if_not_finite

ROW_IDS = "row_ids"
"""Number of each response in the batch of all ranks, (B,): it survives shuffling and splitting."""
STATE_FILE = "parts.json"
SERVED = ("GRPOTrainer", "RLOOTrainer")
FORWARD_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)

PartT = TypeVar("PartT", bound="Part")
TrainerT = TypeVar("TrainerT")
Micro = dict[str, Any]
"""TRL's micro-batch: prompt_ids, completion_ids, their masks, advantages, ..."""


@dataclass
class Rollout:
    """The responses of this rank to one batch of prompts."""

    rows: list[dict[str, Any]]
    """Of the data set, each repeated for every response."""
    training: bool
    prompt_ids: list[list[int]] = field(default_factory=list)
    response_ids: list[list[int]] = field(default_factory=list)
    tool_mask: list[list[int]] | None = None
    """1 where the model wrote the token, 0 where a tool or an environment did."""
    has_images: bool = False
    rewards: Tensor | None = None
    """Of all ranks, one column per reward function."""
    scored: tuple[Tensor, Tensor | None] | None = None
    """Log-probabilities and entropies of TRL's first pass over the responses, where it made one."""
    output: Micro = field(default_factory=dict)
    """What TRL made of it: advantages, masks, old log-probabilities. Parts may change it."""


@dataclass
class Update:
    """One optimizer step of this rank, before it begins."""

    micro_batches: list[Micro]
    """Copies; what a part adds to them is there when their loss is computed."""


@dataclass
class LossInputs:
    """The micro-batch whose loss TRL is computing."""

    model: Any
    micro: Micro
    """TRL's inputs, a copy: parts may rewrite `advantages`."""
    training: bool
    is_last: bool
    """The last micro-batch of its update."""
    policy_scale: float | Tensor = 1.0
    """Factor on the policy term; the seam applies it to the advantages after all parts."""
    logprobs: Any = None
    """Of the policy that is trained, (B, T), with gradient; what TRL uses."""
    entropies: Any = None

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """The tokens that the policy chose."""
        return response_mask(self.micro)


class Part:
    """A method's share in a run; every hook does nothing by default."""

    trainer: Any = None
    """Set before `check`."""
    order: int = 0
    """Parts of a lower order come first; equal ones stay as they were given. In order 1 a rollout is refilled, in order
    2 logged; in order 3 rows leave it."""
    wants_entropies: bool = False
    """TRL's pass over a rollout, where it makes one, is to give entropies too."""
    split_matters: bool = False
    """The update depends on which rows share a micro-batch, so that rows must not be moved."""
    only_our_head: str | None = None
    """Why only our head will do for this part, in words that follow "since"; None where TRL's does too."""

    def check(self) -> None:
        """Refuse a configuration that cannot work; called once, when the trainer is complete."""

    def on_responses(self, rollout: Rollout) -> None:
        """The responses are there, the rewards are not."""

    def on_rollout(self, rollout: Rollout) -> None:
        """All rows of this rank are scored: rewards, advantages, rows that leave."""

    def on_generation(self, micro_batches: list[Micro]) -> list[Micro]:
        """TRL has shuffled the rollout and split it; return its micro-batches."""
        return micro_batches

    def on_update(self, update: Update) -> None:
        """An optimizer step begins, and all of its micro-batches exist."""

    def on_token_stats(self, loss: LossInputs) -> None:
        """The policy's log-probabilities and entropies are known, TRL has not used them yet: rewrite what it will."""

    def loss_term(self, loss: LossInputs) -> Tensor | None:
        """Return what is added to TRL's loss."""

    def state_dict(self) -> dict[str, Any]:
        """Return what goes into a checkpoint that is being written."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned; called whenever a run is resumed."""

    def on_train_end(self) -> None:
        """Training is over."""

    def record(self, metrics: dict[str, float]) -> None:
        """Hand metrics of the update to TRL's log."""
        for name, value in metrics.items():
            self.trainer._metrics["train"][name].append(value)


Base: Any = object  # a GRPOTrainer or RLOOTrainer, whose attributes TRL does not type precisely enough to check


class Seam(Base):
    """Put before a trainer of TRL in the bases (`with_parts`).

    Keyword Args:
        parts: in the order in which their hooks are called; those that other keywords ask for come after them.
    """

    makers: ClassVar[tuple[Callable[..., list[Part]], ...]] = ()
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, parts: Sequence[Part] | None = None, **kwargs: Any):
        given = self.settings.get("parts", ()) if parts is None else parts
        self.parts = sorted([*given, *made(self.makers, self.settings, kwargs)], key=lambda part: part.order)
        self._rollout: Rollout | None = None
        self._generation: Any = None
        self._update: Update | None = None
        self._loss_inputs: LossInputs | None = None
        super().__init__(*args, **kwargs)
        for part in self.parts:
            part.trainer = self
        for part in self.parts:
            part.check()

    def part(self, kind: type[PartT]) -> PartT:
        """Return the run's part of this class.

        Raises:
            KeyError: it has none.
        """
        for part in self.parts:
            if isinstance(part, kind):
                return part
        raise KeyError(kind.__name__)

    # A rollout.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Micro:
        """Make a rollout, and let every part look at it."""
        return self.roll_out(inputs, self.parts).output

    def roll_out(self, rows: list[dict[str, Any]], parts: Sequence[Part]) -> Rollout:
        """Let TRL sample, reward and normalise; name every row; then these parts look at the rollout.

        Args:
            rows: of the data set, each repeated for every response of this process.
            parts: in order.
        """
        rollout = self._rollout = Rollout(list(rows), self.model.training)
        try:
            rollout.output = super()._generate_and_score_completions(rows)
        finally:
            self._rollout = None
        ids = rollout.output["completion_ids"]
        first = self.accelerator.process_index * ids.shape[0]
        rollout.output[ROW_IDS] = torch.arange(first, first + ids.shape[0], device=ids.device)
        for part in parts:
            part.on_rollout(rollout)
        return rollout

    def _generate(self, prompts: list[Any]) -> Any:
        """Keep prompts, responses and who wrote which token, for rewards that ask for them."""
        generated = super()._generate(prompts)
        if self._rollout is not None:
            self._rollout.prompt_ids, self._rollout.response_ids = generated[:2]
            self._rollout.tool_mask = tool_mask_of(generated)
            self._rollout.has_images = any(row.get("image") or row.get("images") for row in self._rollout.rows)
        return generated

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Let the parts prepare, then TRL call every reward."""
        if self._rollout is not None:
            for part in self.parts:
                part.on_responses(self._rollout)
        rewards = super()._calculate_rewards(*args, **kwargs)
        if self._rollout is not None:
            self._rollout.rewards = rewards
        return rewards

    # An update.

    def _prepare_inputs(self, generation_batch: Any) -> Micro:
        """Return the next micro-batch; when it is an update's first, the parts see the whole update before."""
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not self._generation:
            for part in self.parts:
                self._buffered_inputs = part.on_generation(self._buffered_inputs)
            self._generation, self._update = self._buffered_inputs, None
        window, size = self.current_gradient_accumulation_steps, self.args.steps_per_generation
        if not is_whole(self.args):
            return self._buffered_inputs[self._step % size]
        place = self._step % window
        if place == 0 or self._update is None:
            self._begin_update([self._buffered_inputs[(self._step - place + i) % size] for i in range(window)])
        assert self._update is not None
        return self._update.micro_batches[place]

    def _begin_update(self, micro_batches: list[Micro]) -> None:
        self._update = Update([dict(micro) for micro in micro_batches])
        for part in self.parts:
            part.on_update(self._update)

    def _compute_loss(self, model: Any, inputs: Micro) -> Tensor:
        """Let TRL compute its loss on what the parts rewrite while it does, and add their terms."""
        window = self.current_gradient_accumulation_steps if self.model.training else 1
        is_last = self._step % window == window - 1
        loss = self._loss_inputs = LossInputs(model, dict(inputs), self.model.training, is_last)
        try:
            total = super()._compute_loss(model, loss.micro)
        finally:
            self._loss_inputs = None
        for part in self.parts:
            term = part.loss_term(loss)
            total = total if term is None else total + term
        stop_if_not_finite(self, "loss", total, inputs["prompt_ids"])
        return total

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Pass TRL's result on; while a loss is being computed, the parts change what it is about to read."""
        rollout, loss = self._rollout, self._loss_inputs
        if rollout is not None and any(part.wants_entropies for part in self.parts):
            kwargs["compute_entropy"] = True
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if rollout is not None and rollout.scored is None:
            rollout.scored = result[:2]
        if loss is None or loss.logprobs is not None:
            return result
        loss.logprobs, loss.entropies, *rest = result
        for part in self.parts:
            part.on_token_stats(loss)
        loss.micro["advantages"] = loss.micro["advantages"] * loss.policy_scale
        return loss.logprobs, loss.entropies, *rest

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop before an update whose gradient is not finite: the weights, and the next checkpoint, stay usable."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        stop_at_bad_gradient(self, grad_norm, self._buffered_inputs[0]["prompt_ids"])
        return grad_norm

    # A run.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what the parts remember beside the weights."""
        states = {type(part).__name__: part.state_dict() for part in self.parts}
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps({name: state for name, state in states.items() if state}))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Give the parts back what they remembered, where a run is resumed."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint) / STATE_FILE
            states = json.loads(path.read_text()) if path.exists() else {}
            for part in self.parts:
                part.load_state_dict(states.get(type(part).__name__, {}))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, then let the parts finish."""
        result = super().train(*args, **kwargs)
        for part in self.parts:
            part.on_train_end()
        return result


def with_parts(trainer_class: type[TrainerT], *makers: Callable[..., list[Part]], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer or RLOOTrainer that takes `parts=`, and the keywords of `makers`.

    Args:
        trainer_class: `trl.GRPOTrainer`, `trl.RLOOTrainer` or a subclass; a class that has parts already gets more.
        makers: functions from keyword arguments to parts; the trainer takes their keywords.
        settings: values of these keywords, `parts` among them, for a class with the base class's own signature: a type
            checker then sees misspelt arguments.

    Raises:
        UserError: another class.
    """
    if not any(base.__name__ in SERVED for base in trainer_class.__mro__):
        raise UserError(
            f"{trainer_class.__name__} is not served: this works on trl.GRPOTrainer, trl.RLOOTrainer and their "
            "subclasses (TRL >= 1.10, not 1.15.0)"
        )
    known = getattr(trainer_class, "makers", ())
    own = {
        "makers": (*known, *(maker for maker in makers if maker not in known)),
        "settings": getattr(trainer_class, "settings", {}) | settings,
    }
    bases = (trainer_class,) if issubclass(trainer_class, Seam) else (Seam, trainer_class)
    name = trainer_class.__name__ if issubclass(trainer_class, Seam) else f"Extended{trainer_class.__name__}"
    return type(name, bases, own)


def made(makers: Sequence[Callable[..., list[Part]]], settings: dict[str, Any], given: dict[str, Any]) -> list[Part]:
    """Return the parts that keywords ask for; the keywords are taken out of `given`."""
    parts: list[Part] = []
    for maker in makers:
        names = inspect.signature(maker).parameters
        parts += maker(**{name: value for name, value in settings.items() if name in names} | taken(given, names))
    known = {name for maker in makers for name in inspect.signature(maker).parameters} | {"parts"}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(f"unexpected keyword {unknown[0]!r}")
    return parts


def taken(given: dict[str, Any], names: Any) -> dict[str, Any]:
    """Remove the named entries from a dictionary, and return them."""
    return {name: given.pop(name) for name in names if name in given}


def is_whole(args: Any) -> bool:
    """Return whether every update's rollouts exist when it begins."""
    return args.steps_per_generation % args.gradient_accumulation_steps == 0


def updates_per_rollout(args: Any) -> float:
    """Return how many optimizer steps a generation batch serves."""
    return args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps


def response_mask(micro: Micro) -> Bool[Tensor, "B T"]:
    """Return the tokens that the policy chose: the end token counts, padding and tool output do not."""
    mask = micro["completion_mask"]
    return (mask * micro["tool_mask"] if "tool_mask" in micro else mask).bool()


def tool_mask_of(generated: Sequence[Any]) -> list[list[int]] | None:
    """Return who wrote which token, from what TRL's `_generate` gives; RLOO's gives nothing of the kind."""
    found = generated[2]
    lengths = [len(ids) for ids in generated[1]]
    is_mask = isinstance(found, list) and all(isinstance(row, list) for row in found)
    if not is_mask or [len(row) for row in found] != lengths or not all(x in (0, 1) for row in found for x in row):
        return None
    return found


def forward_inputs(micro: Micro) -> tuple[Tensor, Tensor, int]:
    """Return token ids, attention mask and number of response positions, as TRL's forward pass takes them."""
    ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
    attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
    return ids, attention, micro["completion_ids"].shape[1]


def forward_extras(micro: Micro) -> dict[str, Any]:
    """Return the inputs of multimodal models."""
    return {key: micro[key] for key in FORWARD_KEYS if key in micro}


@torch.no_grad()
def score(trainer: Any, micro: Micro, *, entropy: bool = False) -> tuple[Float[Tensor, "B T"], Any]:
    """Return log-probabilities, and entropies if asked, of a micro-batch's responses, by TRL's own pass."""
    options: dict[str, Any] = {"batch_size": trainer.args.per_device_train_batch_size}
    options |= {"compute_entropy": True} if entropy else {}
    found = trainer._get_per_token_logps_and_entropies(
        trainer.model, *forward_inputs(micro), **options, **forward_extras(micro)
    )
    return found[0], found[1]


def per_token(advantages: Tensor, mask: Tensor) -> Float[Tensor, "B T"]:
    """Return the advantages per token, 0 outside the mask, whether TRL gives them per response or per token."""
    wide = advantages.unsqueeze(1).expand(mask.shape) if advantages.dim() == 1 else advantages
    return fill_outside(wide.float(), mask)


def stop_at_bad_gradient(trainer: Any, grad_norm: Any, prompt_ids: Tensor) -> None:
    """Stop a run, on every process, whose gradient norm is not finite."""
    if grad_norm is not None and getattr(trainer.accelerator, "scaler", None) is None:  # a scaler skips such updates
        norm = torch.as_tensor(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)
        stop_if_not_finite(trainer, "gradient norm", norm, prompt_ids)
