"""Entropy control for TRL's AsyncGRPOTrainer, whose samples are packed and whose ratio is pi over the sampler.

    trainer = with_async_entropy_control(AsyncGRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3), entropy_coef=0.0)

This trainer is no GRPOTrainer: an update arrives as rows of packed responses, `old_log_probs` are the sampler's, and
one method makes the forward pass and the loss. So the seam has two places. `get_batch_samples` sees all micro-batches
of an update before the first: there the control chooses, over all ranks. `compute_loss` is given a model that keeps its
outputs: TRL's loss is computed as it is, and one term turns its gradient into the control's.

    term = -sum_t (w(A'_t) A'_t - w(A_t) A_t) ln pi_t      w: what the clipped surrogate multiplies an advantage with

The term carries the value of the rewritten loss too, so that what is logged is the loss that is trained. A response
token that shares its packed position with another response's is a token of each: both count once.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 10-14; the weights are `autotelic.functional.gradient_weights`.
Deviations: the anchor is the sampler, which KL-Cov's penalty pulls back to, so it has a gradient with one update per
rollout; a random choice is keyed by a token's place in the packed rows; a group is not visible here, so controls that
need whole groups are refused.
"""

import contextlib
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch
from autotelic.controls.metrics import control_metrics
from autotelic.errors import UserError
from autotelic.functional.gradient_weights import OUT_OF_REACH, gradient_weights
from autotelic.functional.surrogate import MAX_LOG_RATIO, clipped_surrogate
from autotelic.rewards import LabelFreeReward

UPDATES = 2.0
"""What a control is told of updates per rollout: the policy always differs from the sampler."""
Base: Any = object  # an AsyncGRPOTrainer
TrainerT = TypeVar("TrainerT")


class AsyncSeam(Base):
    """Put before TRL's AsyncGRPOTrainer in the bases (`with_async_entropy_control`).

    Keyword Args:
        entropy_control: a `ClipCov`, a `KLCov` or another of `autotelic.controls`; None trains as the base class.
        entropy_coef: factor of the mean token entropy in the objective, with gradient; 0 adds nothing.
    """

    def __init__(self, *args: Any, entropy_control: EntropyControl | None = None, entropy_coef: float = 0.0, **kw: Any):
        rewards = kw.get("reward_funcs", args[1] if len(args) > 1 else None)
        for reward in rewards if isinstance(rewards, list) else [rewards]:
            check_reward(reward)
        super().__init__(*args, **kw)
        self.use_control(entropy_control, entropy_coef)

    def use_control(self, control: EntropyControl | None, entropy_coef: float = 0.0) -> None:
        """Take a control up, or refuse it."""
        self.control: Any = control
        self.coef, self.control_state = entropy_coef, {}
        if control is None:
            return
        check_served(control)
        control.check(UPDATES, "token", clipped=not control.replaces_clip)
        if control.replaces_clip:
            self.epsilon_low = self.epsilon_high = OUT_OF_REACH

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Let the trainer fetch the micro-batches of an update; the control chooses over all of them."""
        micro_batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.control is not None and micro_batches:
            plans = self.plan_update(micro_batches)
            for micro, plan in zip(micro_batches, plans, strict=True):
                micro["plan"] = plan
        return micro_batches, count

    def plan_update(self, micro_batches: list[dict[str, Any]]) -> list[Plan]:
        """Return each micro-batch's part of the choice, and record the update's metrics."""
        control = self.control
        batches = [self.update_batch(micro, place) for place, micro in enumerate(micro_batches)]
        width = max(batch.mask.shape[1] for batch in batches)
        whole = UpdateBatch.join([widened(batch, width) for batch in batches])
        plan = control.plan(whole)
        self.control_state = dict(plan.state)
        for name, value in control_metrics(plan, whole).items():
            self._metrics["train"][name].append(value)
        parts = plan.split([1] * len(batches))
        return [part.narrow(batch.mask.shape[1]) for part, batch in zip(parts, batches, strict=True)]

    def update_batch(self, micro: dict[str, Any], place: int) -> UpdateBatch:
        """Return this rank's row of a micro-batch as a control sees it: one row, a column per trained token."""
        chosen = micro["token_index"] >= 0
        logprobs, advantages = (micro[name][chosen].float().unsqueeze(0) for name in ("old_log_probs", "advantages"))
        known: dict[str, Any] = {}
        if self.control.refresh or "entropy" in self.control.needs:
            found = self.look(micro)
            known["entropy"] = found.entropy.flatten()[micro["token_index"][chosen]].float().unsqueeze(0)
            if self.control.refresh:
                known["old_logprobs"] = logprobs
                logprobs = found.log_probs.flatten()[micro["token_index"][chosen]].float().unsqueeze(0)
        window = max(int(self.args.gradient_accumulation_steps), 1)
        row = self.accelerator.process_index * window + place
        return UpdateBatch(
            logprobs=logprobs,
            advantages=advantages,
            mask=logprobs.isfinite(),
            row_ids=torch.tensor([row], device=logprobs.device),
            step=self.state.global_step,
            seed=self.control.seed,
            total_steps=self.state.max_steps,
            state=self.control_state,
            **known,
        )

    @torch.no_grad()
    def look(self, micro: dict[str, Any]) -> Any:
        """Return the model's outputs on a micro-batch, from the forward pass that TRL would make; nothing is logged."""
        seen = KeepingModel(self.model, stop=True)
        with contextlib.suppress(_SeenEnoughError):
            super().compute_loss(seen, dict(micro))
        return seen.outputs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Let TRL compute its loss, and add what turns it into the control's."""
        inputs = dict(inputs)
        plan = inputs.pop("plan", None)
        if plan is None and not self.coef:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        seen = KeepingModel(model)
        loss = super().compute_loss(seen, inputs, return_outputs, num_items_in_batch)
        chosen = inputs["token_index"] >= 0
        index = inputs["token_index"][chosen]
        entropy = seen.outputs.entropy.flatten()[index].unsqueeze(0)
        per_token = -self.coef * entropy
        if plan is not None:
            logprobs = seen.outputs.log_probs.flatten()[index].unsqueeze(0)
            old, advantages = (inputs[name][chosen].unsqueeze(0) for name in ("old_log_probs", "advantages"))
            per_token = per_token + self.correction(plan, logprobs, old, advantages, entropy)
        tokens = (inputs["global_n_tokens"][0] / self.accelerator.num_processes).clamp(min=1.0)
        return loss + per_token.sum() / tokens.float() / self.current_gradient_accumulation_steps

    def correction(self, plan: Plan, logprobs: Tensor, old: Tensor, advantages: Tensor, entropy: Tensor) -> Tensor:
        """Return, per token (1, N), the rewritten loss less TRL's: its value, with the gradient of a linear term."""
        now = logprobs.detach().float()
        log_ratio = torch.where(old.isfinite(), now - old.float(), 0.0)
        bounds: dict[str, Any] = {"clip_low": self.epsilon_low, "clip_high": self.epsilon_high}
        weights = gradient_weights(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), "dapo", **bounds)
        plan = replace(plan, weights=weights, logprobs=now, entropy=entropy.detach().float())
        rewritten = self.control.rewrite(advantages.float(), log_ratio, plan)
        gradient = weights.of(rewritten) * rewritten - weights.of(advantages) * advantages
        value = [clipped_surrogate(now, old.float(), a, **bounds) for a in (rewritten, advantages)]
        linear = -gradient * logprobs
        return value[0] - value[1] + linear - linear.detach()


class _SeenEnoughError(Exception):
    """Ends a call of TRL's once the model has answered."""


class KeepingModel:
    """A model that keeps the outputs of its call; with `stop`, the caller gets no further."""

    def __init__(self, model: Any, stop: bool = False):
        self.model, self.stop, self.outputs = model, stop, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        self.outputs: Any = self.model(*args, **kwargs)
        if self.stop:
            raise _SeenEnoughError
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def widened(batch: UpdateBatch, width: int) -> UpdateBatch:
    """Return the batch with columns outside its mask up to `width`, as other micro-batches may be longer."""
    more = width - batch.mask.shape[1]
    names = [
        name
        for name in ("logprobs", "advantages", "mask", "old_logprobs", "entropy")
        if getattr(batch, name) is not None
    ]
    return replace(batch, **{name: torch.nn.functional.pad(getattr(batch, name), (0, more)) for name in names})


def check_served(control: EntropyControl) -> None:
    """Refuse a control that needs what packed rows do not show.

    Raises:
        UserError: it needs whole groups, the whole vocabulary, or reference behaviour per micro-batch.
    """
    why = None
    if type(control).at_rollout is not EntropyControl.at_rollout:
        why = "it needs all responses of a prompt, and packed rows do not tell which these are"
    elif control.needs - {"entropy"} or control.has_vocabulary_term:
        why = "it needs the whole vocabulary at each token, which TRL's head does not give"
    elif control.per_micro_batch:
        why = "scope=micro is the reference code's, for comparisons on GRPOTrainer"
    if why:
        raise UserError(f"{control.name} cannot be used with AsyncGRPOTrainer: {why}. Use GRPOTrainer, or clip_cov")


def check_reward(reward: Any) -> None:
    """Refuse a label-free reward that TRL's worker, which scores the responses of one prompt, cannot give.

    Raises:
        UserError: it needs token statistics, or other prompts, or scales advantages.
    """
    if not isinstance(reward, LabelFreeReward):
        return
    why = None
    if reward.needs:
        why = f"it needs token statistics ({', '.join(reward.needs)}), and the worker has none"
    elif reward.whole_batch or reward.prompt_fraction < 1:
        why = "it compares the prompts of a batch, and the worker scores one at a time"
    elif type(reward).advantage_scale is not LabelFreeReward.advantage_scale:
        why = "it scales advantages, and the worker takes rewards only"
    if why:
        raise UserError(
            f"the reward {reward.name} cannot be used with AsyncGRPOTrainer: {why}. Take empo, or GRPOTrainer"
        )


def with_async_entropy_control(trainer_class: type[TrainerT]) -> type[TrainerT]:
    """Return a subclass of TRL's AsyncGRPOTrainer that takes `entropy_control=` and `entropy_coef=`.

    Raises:
        UserError: another class.
    """
    if not any(base.__name__ == "AsyncGRPOTrainer" for base in trainer_class.__mro__):
        raise UserError(
            f"{trainer_class.__name__} is not served here: this works on trl.experimental.async_grpo.AsyncGRPOTrainer "
            "and its subclasses; for GRPOTrainer and RLOOTrainer take with_entropy_control"
        )
    return type(f"Extended{trainer_class.__name__}", (AsyncSeam, trainer_class), {})
