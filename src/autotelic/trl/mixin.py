"""Entropy control in one line for any GRPOTrainer.

    trainer = with_entropy_control(GRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3))

Nothing of TRL's loss is copied. The mixin chooses tokens where TRL hands out micro-batches (`_prepare_inputs`), and
rewrites the advantages where TRL asks for log-probabilities (`_get_per_token_logps_and_entropies`), because TRL reads
`inputs["advantages"]` after that call and accepts the shape (B, T). A canary test guards this order.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.trl.base import TrainerBase
from autotelic.trl.controls import EntropyControl, Plan, UpdateBatch
from autotelic.trl.statistics import control_metrics, jaccard, ratio_metrics

ROW_IDS = "row_ids"
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


class EntropyControlMixin(TrainerBase):
    """Rewrites advantages by token covariance; put it before a GRPOTrainer in the bases (`with_entropy_control`).

    Keyword Args:
        entropy_control: a `ClipCov`, a `KLCov`, or None to train as the base class does.
    """

    def __init__(self, *args: Any, entropy_control: EntropyControl | None = None, **kwargs: Any):
        self.entropy_control: Any = entropy_control
        self._plans: list[Plan] = []
        self._active_plan: Any = None
        self._micro_batch: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)
        if entropy_control is not None:
            check_window(self.args)
            entropy_control.check(updates_per_rollout(self.args), self.importance_sampling_level)

    # Where TRL makes and hands out rollouts.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Name every response, so that it can be recognised after shuffling and splitting, on any rank."""
        output = super()._generate_and_score_completions(inputs)
        rows = output["completion_ids"].shape[0]
        first = self.accelerator.process_index * rows
        output[ROW_IDS] = torch.arange(first, first + rows, device=output["completion_ids"].device)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Choose the tokens of the whole optimizer step when its first micro-batch is asked for."""
        inputs = super()._prepare_inputs(generation_batch)
        if self.entropy_control is None or not self.model.training:
            return inputs
        window = self.current_gradient_accumulation_steps
        if self._step % window == 0 or not self._plans:
            self._plans = self._plan_update(window)
        return {**inputs, "plan": self._plans[self._step % window]}

    def _plan_update(self, window: int) -> list[Plan]:
        """Return the plan of each micro-batch of the optimizer step that begins now."""
        control, size = self.entropy_control, self.args.steps_per_generation
        micro_batches = [self._buffered_inputs[(self._step + i) % size] for i in range(window)]
        batches = [self._update_batch(micro) for micro in micro_batches]
        counts = [batch.mask.shape[0] for batch in batches]
        if control.scope == "micro":
            plans = [control.plan(batch) for batch in batches]
        else:
            plans = split_plan(control.plan(concatenate(batches)), counts)
        chosen = join_plans(plans, control.scope)
        self._record(control_metrics(chosen, concatenate(batches)))
        if control.refresh:
            stale = concatenate([self._update_batch(micro, refresh=False) for micro in micro_batches])
            self._record({"selected/jaccard": jaccard(chosen.selected, control.plan(stale).selected)})
        self._on_plan(micro_batches, plans)
        return plans

    def _on_plan(self, micro_batches: list[dict[str, Any]], plans: list[Plan]) -> None:
        """Called with the micro-batches and plans of each update, for subclasses that record them."""

    def _update_batch(self, micro: dict[str, Any], refresh: bool | None = None) -> UpdateBatch:
        mask = response_mask(micro)
        refresh = self.entropy_control.refresh if refresh is None else refresh
        logprobs = None if refresh else rollout_logprobs(micro)
        if logprobs is None:  # on-policy, TRL keeps no log-probabilities of the rollout: one forward pass
            logprobs = self._current_logprobs(micro)
        advantages = micro["advantages"]
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(1).expand(mask.shape)
        return UpdateBatch(
            logprobs=logprobs.float(),
            advantages=advantages.float(),
            mask=mask,
            row_ids=micro[ROW_IDS],
            step=self.state.global_step,
            seed=self.entropy_control.seed,
            across_ranks=self.entropy_control.scope == "update",
        )

    @torch.no_grad()
    def _current_logprobs(self, micro: dict[str, Any]) -> Float[Tensor, "B T"]:
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
        attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
        keep = micro["completion_ids"].shape[1]
        extras = {key: micro[key] for key in FORWARD_KEYS if key in micro}
        logprobs, *_ = self._get_per_token_logps_and_entropies(self.model, ids, attention, keep, **extras)
        return logprobs

    # Where TRL computes the loss.

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Let TRL compute its loss on advantages that are rewritten while it does."""
        plan = inputs.get("plan")
        micro_batch = {key: value for key, value in inputs.items() if key != "plan"}
        self._micro_batch = micro_batch if plan is not None else None
        self._active_plan = plan
        try:
            loss = super()._compute_loss(model, micro_batch)
        finally:
            self._micro_batch = None
        loss = loss + self._entropy_term(plan, micro_batch) if plan is not None else loss
        if not torch.isfinite(loss):
            raise FloatingPointError(self._not_finite(loss, inputs))
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Pass TRL's result on; while a loss is being computed, rewrite the advantages it is about to read."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._micro_batch is None:
            return result
        logprobs, entropies, *rest = result
        return self._rewrite(self._micro_batch, logprobs), entropies, *rest

    def _rewrite(self, micro: dict[str, Any], logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Write the new advantages into TRL's inputs and return the log-probabilities it is to use."""
        plan, mask = self._active_plan, response_mask(micro)
        old = micro.get("old_per_token_logps")
        log_ratio = torch.zeros_like(logprobs) if old is None else logprobs.detach() - old
        advantages = micro["advantages"]
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(1).expand(mask.shape)
        micro["advantages"] = self.entropy_control.rewrite(
            advantages.to(log_ratio.dtype), log_ratio.masked_fill(~mask, 0.0), plan.selected
        )
        self._record(ratio_metrics(logprobs.detach(), log_ratio, mask))
        if self.importance_sampling_level == "sequence":
            # One ratio serves the whole response: zero advantage would not stop a token's gradient, detaching does.
            logprobs = torch.where(plan.selected, logprobs.detach(), logprobs)
        return logprobs

    def _entropy_term(self, plan: Plan, micro: dict[str, Any]) -> Tensor | float:
        """Return the entropy of the selected positions, negated: the on-policy form of a control, where it has one."""
        coef = self.entropy_control.entropy_coef(updates_per_rollout(self.args))
        if not coef:
            return 0.0
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
        attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
        keep = micro["completion_ids"].shape[1]
        extras = {key: micro[key] for key in FORWARD_KEYS if key in micro}
        _, entropies, *_ = self._get_per_token_logps_and_entropies(
            self.model, ids, attention, keep, compute_entropy=True, **extras
        )
        return -coef * F.reduce_tokens(entropies, plan.selected, denominator=self._tokens_per_rank(micro))

    def _tokens_per_rank(self, micro: dict[str, Any]) -> Tensor:
        """Return the denominator of a global token mean, as TRL's `dapo` loss takes it.

        `num_items_in_batch` counts the response tokens of the generation batch on all ranks; data parallelism averages
        gradients over ranks, and an update takes its share of the generation batch.
        """
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return micro["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes * share

    def _record(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _not_finite(self, loss: Tensor, inputs: dict[str, Any]) -> str:
        prompts = self.processing_class.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
        return (
            f"the loss of step {self.state.global_step + 1} is {loss.item()}: training stopped before the update; "
            f"prompts of this micro-batch: {sorted(set(prompts))[:3]}. The last checkpoint is intact; lower the "
            "learning rate, or inspect these prompts."
        )


def with_entropy_control(trainer_class: type) -> type:
    """Return a subclass of `trainer_class` (GRPOTrainer or a subclass of it) that takes `entropy_control=`.

    Raises:
        UserError: the class does not have the two methods that the mixin builds on.
    """
    for method in ("_compute_loss", "_get_per_token_logps_and_entropies", "_prepare_inputs"):
        if not hasattr(trainer_class, method):
            raise UserError(
                f"{trainer_class.__name__} has no {method}: entropy control works on trl.GRPOTrainer and its "
                "subclasses (TRL >= 1.10, not 1.15.0)"
            )
    if issubclass(trainer_class, EntropyControlMixin):
        return trainer_class
    return type(f"EntropyControlled{trainer_class.__name__}", (EntropyControlMixin, trainer_class), {})


def updates_per_rollout(args: Any) -> float:
    """Return how many optimizer steps a generation batch serves."""
    return args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps


def check_window(args: Any) -> None:
    """Refuse a schedule in which an update begins before all of its rollouts exist."""
    if args.steps_per_generation % args.gradient_accumulation_steps:
        raise UserError(
            f"entropy control needs steps_per_generation ({args.steps_per_generation}) to be a multiple of "
            f"gradient_accumulation_steps ({args.gradient_accumulation_steps}): tokens are chosen over the whole "
            "update, so its rollouts must all exist when it begins."
        )


def response_mask(micro: dict[str, Any]) -> Tensor:
    """Return the tokens that the policy chose: the end token counts, padding and tool output do not."""
    mask = micro["completion_mask"]
    return (mask * micro["tool_mask"] if "tool_mask" in micro else mask).bool()


def rollout_logprobs(micro: dict[str, Any]) -> Float[Tensor, "B T"] | None:
    """Return ln pi_old as TRL recomputed it, else the sampler's own (vLLM), else None."""
    logprobs = micro.get("old_per_token_logps")
    return micro.get("sampling_per_token_logps") if logprobs is None else logprobs


def concatenate(batches: list[UpdateBatch]) -> UpdateBatch:
    """Join the micro-batches of one update; they come from one generation batch and share its width."""
    first = batches[0]
    return UpdateBatch(
        logprobs=torch.cat([batch.logprobs for batch in batches]),
        advantages=torch.cat([batch.advantages for batch in batches]),
        mask=torch.cat([batch.mask for batch in batches]),
        row_ids=torch.cat([batch.row_ids for batch in batches]),
        step=first.step,
        seed=first.seed,
        across_ranks=first.across_ranks,
    )


def split_plan(plan: Plan, counts: list[int]) -> list[Plan]:
    """Cut a plan back into its micro-batches; the quota stays that of the whole update."""
    parts = zip(plan.selected.split(counts), plan.covariance.split(counts), strict=True)
    return [Plan(selected, covariance, plan.requested) for selected, covariance in parts]


def join_plans(plans: list[Plan], scope: str) -> Plan:
    """Join the plans of one update; micro-batch quotas add up, the update's own is already whole."""
    return Plan(
        torch.cat([plan.selected for plan in plans]),
        torch.cat([plan.covariance for plan in plans]),
        sum(plan.requested for plan in plans) if scope == "micro" else plans[0].requested,
    )
