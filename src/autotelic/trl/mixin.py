"""Entropy control in one line for any GRPOTrainer.

    trainer = with_entropy_control(GRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3))

Nothing of TRL's loss is copied. The mixin chooses tokens where TRL hands out micro-batches (`_prepare_inputs`), and
rewrites the advantages where TRL asks for log-probabilities (`_get_per_token_logps_and_entropies`), because TRL reads
`inputs["advantages"]` after that call and accepts the shape (B, T). A canary test guards this order.

While a control is active, values outside the response mask are never read, and log-ratios are held in [-20, 20] at the
token level (beyond, the gradient is zero), so that neither padding nor an overflowing ratio can spoil the gradient.
"""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.base import EntropyControl, EntropyControlWarning, Plan, UpdateBatch
from autotelic.controls.entropy_change import EntropyChange, VocabularyStatistics, vocabulary_statistics
from autotelic.controls.metrics import control_metrics, drift_metrics, drift_sums, jaccard
from autotelic.errors import UserError
from autotelic.functional.masking import fill_outside
from autotelic.functional.surrogate import ratio_clipped
from autotelic.runs.processes import stop_if_not_finite
from autotelic.trl.passes import FusedHeadMixin

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
PER_TOKEN_KEYS = (
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
ROLLOUT_KEYS = {"logprobs": "rollout_logprobs", "entropy": "rollout_entropy", "expected": "rollout_expected"}
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
MAX_LOG_RATIO = 20.0
STATE_FILE = "entropy_control_state.json"


class EntropyControlMixin(FusedHeadMixin):
    """Rewrites advantages by token covariance; put it before a GRPOTrainer in the bases (`with_entropy_control`).

    Keyword Args:
        entropy_control: a `ClipCov`, a `KLCov`, another of `autotelic.controls.table`, or None to train as the base
            class.
        entropy_change_rows: follow the entropy of so many responses of each update and rank to the next update, and log
            its change beside the predicted one; 0 is off (`autotelic.controls.entropy_change` says what it costs).
        fused_head, shared_prefix: auto, on or off; see `autotelic.trl.passes`.
    """

    def __init__(
        self,
        *args: Any,
        entropy_control: EntropyControl | None = None,
        entropy_change_rows: int = 0,
        **kwargs: Any,
    ):
        self.entropy_control: Any = entropy_control
        self.control_state: dict[str, float] = {}
        self._plans: list[Plan] = []
        self._active_plan: Any = None
        self._loss_entropies: Any = None
        self._micro_batch: dict[str, Any] | None = None
        self._drift: Any = None
        self._scoring_rollout = False
        self._scored: tuple = ()
        self._group_accuracy: Any = None
        self._warned_empty = False
        super().__init__(*args, **kwargs)
        self._entropy_change = (
            EntropyChange(entropy_change_rows, self._vocabulary_statistics) if entropy_change_rows else None
        )
        if entropy_control is not None:
            check_window(self.args)
            entropy_control.check(updates_per_rollout(self.args), self.importance_sampling_level)
        elif entropy_change_rows:
            raise UserError("entropy_change_rows needs an entropy control; without one, take Observe()")

    # Where TRL makes and hands out rollouts.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Name every response, so that it can be recognised after shuffling and splitting, on any rank."""
        needs = self.entropy_control.needs if self.entropy_control is not None and self.model.training else frozenset()
        self._scoring_rollout, self._scored = "entropy" in needs, ()
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._scoring_rollout = False
        rows = output["completion_ids"].shape[0]
        first = self.accelerator.process_index * rows
        output[ROW_IDS] = torch.arange(first, first + rows, device=output["completion_ids"].device)
        if self._group_accuracy is not None:
            output["accuracy"] = self._group_accuracy[first : first + rows].to(output["completion_ids"].device)
        if needs:
            self._keep_rollout_statistics(output, needs)
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Keep the share of right responses of each prompt, where rewards are 0 or 1."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        total = (rewards * self.reward_weights.to(rewards.device).unsqueeze(0)).nansum(dim=1)
        group = self.num_generations if self.model.training else self.num_generations_eval
        binary = bool(((total == 0) | (total == 1)).all()) and total.numel() % group == 0
        self._group_accuracy = total.view(-1, group).mean(1).repeat_interleave(group).float() if binary else None
        return rewards

    def _keep_rollout_statistics(self, output: dict[str, Any], needs: frozenset[str]) -> None:
        """Store the rollout's entropies beside it; they are shuffled and split with it."""
        scored = self._scored
        if scored and "expected" not in needs and scored[0] is output.get("old_per_token_logps"):
            output["rollout_entropy"] = scored[1]  # TRL made this pass for the old log-probabilities
        else:
            output |= {ROLLOUT_KEYS[key]: value for key, value in self._measure(output, needs).items()}
        self._scored = ()

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Choose the tokens of the whole optimizer step when its first micro-batch is asked for."""
        inputs = super()._prepare_inputs(generation_batch)
        if self.entropy_control is None or not self.model.training:
            return inputs
        window = self.current_gradient_accumulation_steps
        if self._step % window == 0 or not self._plans:
            self._plans = self._plan_update(window)
        return {**inputs, "plan": self._plans[self._step % window]}

    def _split_matters(self) -> bool:
        """Also where the control chooses per micro-batch, or the first micro-batch is followed."""
        per_micro = self.entropy_control is not None and self.entropy_control.per_micro_batch
        return per_micro or self._entropy_change is not None or super()._split_matters()

    def _plan_update(self, window: int) -> list[Plan]:
        """Return the plan of each micro-batch of the optimizer step that begins now."""
        control, size = self.entropy_control, self.args.steps_per_generation
        micro_batches = [self._buffered_inputs[(self._step + i) % size] for i in range(window)]
        batches = [self._update_batch(micro) for micro in micro_batches]
        whole = concatenate(batches)
        if control.per_micro_batch:
            plans = [control.plan(batch) for batch in batches]
        else:
            plans = split_plan(control.plan(whole), [batch.mask.shape[0] for batch in batches])
        chosen = join_plans(plans, control.per_micro_batch)
        self.control_state = dict(chosen.state)
        metrics = control_metrics(chosen, whole)
        if control.refresh:
            stale = concatenate([self._update_batch(micro, refresh=False) for micro in micro_batches])
            metrics["selected/jaccard"] = jaccard(chosen.selected, control.plan(stale).selected)
        if self._entropy_change is not None:
            first = batches[0]
            metrics |= self._entropy_change.observe(micro_batches[0], first.advantages, plans[0].covariance, first.mask)
        self._record(metrics)
        self._warn_if_empty(chosen)
        self._on_plan(micro_batches, plans)
        return plans

    def _warn_if_empty(self, plan: Plan) -> None:
        """Say once that the control does nothing, if its quota is below one token."""
        if plan.requested != 0 or self._warned_empty:
            return
        self._warned_empty = True
        fraction = self.entropy_control.fraction
        warnings.warn(
            f"{self.entropy_control.name}: fraction={fraction:g} of this update's response tokens is less than one, so "
            "nothing is selected and training runs as without a control. Take more tokens per update (at least "
            f"{math.ceil(1 / fraction)}), or a larger fraction.",
            EntropyControlWarning,
            stacklevel=2,
        )

    def _on_plan(self, micro_batches: list[dict[str, Any]], plans: list[Plan]) -> None:
        """Called with the micro-batches and plans of each update, for subclasses that record them."""

    def _update_batch(self, micro: dict[str, Any], refresh: bool | None = None) -> UpdateBatch:
        control, mask = self.entropy_control, response_mask(micro)
        refresh = control.refresh if refresh is None else refresh
        old = rollout_logprobs(micro)
        known = {"logprobs": old} | {key: micro.get(name) for key, name in ROLLOUT_KEYS.items() if name in micro}
        if refresh or known["logprobs"] is None:  # on-policy, TRL keeps no log-probabilities: one forward pass
            known |= self._measure(micro, control.needs if refresh else frozenset())
        advantages = per_token(micro["advantages"], mask).float()
        assert known["logprobs"] is not None
        logprobs = known["logprobs"].float()
        mask = mask & logprobs.isfinite()  # a sampler may give no log-probability for a token: it cannot be ranked
        clipped = None
        if refresh and old is not None and self.loss_type in CLIPPED_LOSSES:
            bounds = {"clip_low": self.epsilon_low, "clip_high": self.epsilon_high}
            clipped = ratio_clipped(logprobs, old.float(), advantages, mask, **bounds)
        return UpdateBatch(
            logprobs=logprobs,
            advantages=advantages,
            mask=mask,
            row_ids=micro[ROW_IDS],
            step=self.state.global_step,
            seed=control.seed,
            across_ranks=not control.per_micro_batch,
            old_logprobs=None if old is None else old.float(),
            entropy=known.get("entropy"),
            expected=known.get("expected"),
            clipped=clipped,
            accuracy=micro.get("accuracy"),
            state=self.control_state,
        )

    @torch.no_grad()
    def _measure(self, micro: dict[str, Any], needs: frozenset[str]) -> dict[str, Tensor]:
        """Return log-probabilities under the present policy, and what else is needed, from one forward pass."""
        if "expected" in needs:
            found = self._vocabulary_statistics(micro)
            return {"logprobs": found.logprobs, "entropy": found.entropy, "expected": found.expected}
        options = {"compute_entropy": True} if "entropy" in needs else {}
        options["batch_size"] = self.args.per_device_train_batch_size
        logprobs, entropy, *_ = self._get_per_token_logps_and_entropies(
            self.model, *forward_inputs(micro), **options, **forward_extras(micro)
        )
        return {"logprobs": logprobs} | ({"entropy": entropy} if "entropy" in needs else {})

    def _vocabulary_statistics(self, micro: dict[str, Any]) -> VocabularyStatistics:
        return vocabulary_statistics(
            self.model,
            *forward_inputs(micro),
            temperature=self.temperature,
            batch_size=self.args.per_device_train_batch_size,
            fused=self._fused_statistics(),
            **forward_extras(micro),
        )

    # What a control remembers goes with the checkpoint.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the control's state into the checkpoint."""
        super()._save_checkpoint(model, trial)
        if self.control_state and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(self.control_state))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Read the control's state back when a run is resumed."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE_FILE).exists():
            self.control_state = json.loads((Path(checkpoint) / STATE_FILE).read_text())

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
        if plan is not None:
            loss = loss + self._entropy_term(plan, micro_batch)
            self._loss_entropies = None  # with it goes this micro-batch's graph
            self._finish_drift()
        stop_if_not_finite(self, "loss", loss, inputs["prompt_ids"])
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop before an update whose gradient is not finite: the weights, and the next checkpoint, stay usable."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and getattr(self.accelerator, "scaler", None) is None:  # a scaler skips such updates
            norm = torch.as_tensor(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)
            stop_if_not_finite(self, "gradient norm", norm, self._buffered_inputs[0]["prompt_ids"])
        return grad_norm

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Pass TRL's result on; while a loss is being computed, rewrite the advantages it is about to read."""
        if self._scoring_rollout:
            kwargs["compute_entropy"] = True
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._scoring_rollout and not self._scored:
            self._scored = result[:2]
        if self._micro_batch is None:
            return result
        logprobs, entropies, *rest = result
        logprobs, self._loss_entropies = self._rewrite(self._micro_batch, logprobs, entropies)
        return logprobs, self._loss_entropies, *rest

    def _rewrite(
        self, micro: dict[str, Any], logprobs: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"] | None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        """Write the new advantages into TRL's inputs; return the log-probabilities and entropies it is to use."""
        plan, mask = self._active_plan, response_mask(micro)
        for key in PER_TOKEN_KEYS:
            if key in micro and micro[key].shape == mask.shape:
                micro[key] = fill_outside(micro[key], mask)
        logprobs = fill_outside(logprobs, mask)
        entropies = entropies if entropies is None else fill_outside(entropies, mask)
        old = micro.get("old_per_token_logps")
        log_ratio = torch.zeros_like(logprobs) if old is None else logprobs.detach() - old
        advantages = fill_outside(per_token(micro["advantages"], mask).float(), mask)
        micro["advantages"] = self.entropy_control.rewrite(advantages, log_ratio.float(), plan)
        sums = drift_sums(logprobs.detach(), log_ratio, entropies if entropies is None else entropies.detach(), mask)
        self._drift = sums if self._drift is None else self._drift + sums
        if self.importance_sampling_level == "sequence":
            # One ratio serves the whole response: zero advantage would not stop a token's gradient, detaching does.
            logprobs = torch.where(plan.selected, logprobs.detach(), logprobs)
        elif old is not None:
            bounded = old + log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            logprobs = torch.where(log_ratio.abs() > MAX_LOG_RATIO, bounded, logprobs)
        return logprobs, entropies

    def _finish_drift(self) -> None:
        """Record the drift of the whole update with its last micro-batch."""
        window = self.current_gradient_accumulation_steps
        if self._drift is not None and self._step % window == window - 1:
            self._record(drift_metrics(self._drift))
            self._drift = None

    def _entropy_term(self, plan: Plan, micro: dict[str, Any]) -> Tensor | float:
        """Return the entropy of the selected positions, negated: the on-policy form of a control, where it has one."""
        coef = self.entropy_control.entropy_coef(updates_per_rollout(self.args))
        if not coef:
            return 0.0
        check_entropy_gradient(self._loss_entropies)
        return -coef * F.reduce_tokens(self._loss_entropies, plan.selected, denominator=self._tokens_per_rank(micro))

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


def check_entropy_gradient(entropy: Tensor | None) -> None:
    """Refuse to train on entropies that TRL gives without a gradient."""
    if entropy is None or (torch.is_grad_enabled() and not entropy.requires_grad):
        raise UserError("this TRL gives entropies without a gradient, so an entropy term cannot train; use TRL >= 1.16")


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


def forward_inputs(micro: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Return token ids, attention mask and number of response positions, as TRL's forward pass takes them."""
    ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
    attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
    return ids, attention, micro["completion_ids"].shape[1]


def forward_extras(micro: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of multimodal models."""
    return {key: micro[key] for key in FORWARD_KEYS if key in micro}


def per_token(advantages: Tensor, mask: Tensor) -> Float[Tensor, "B T"]:
    """Return the advantages per token, whether TRL gives them per response or per token."""
    return advantages.unsqueeze(1).expand(mask.shape) if advantages.dim() == 1 else advantages


def concatenate(batches: list[UpdateBatch]) -> UpdateBatch:
    """Join the micro-batches of one update; they come from one generation batch and share its width."""
    names = ("logprobs", "advantages", "mask", "row_ids", "old_logprobs", "entropy", "expected", "clipped", "accuracy")
    joined = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in names
        if getattr(batches[0], name) is not None
    }
    return replace(batches[0], **joined)


def split_plan(plan: Plan, counts: list[int]) -> list[Plan]:
    """Cut a plan back into its micro-batches; the quota and the state stay those of the whole update."""
    advantages = [None] * len(counts) if plan.advantages is None else plan.advantages.split(counts)
    parts = zip(plan.selected.split(counts), plan.covariance.split(counts), advantages, strict=True)
    return [
        replace(plan, selected=selected, covariance=covariance, advantages=part) for selected, covariance, part in parts
    ]


def join_plans(plans: list[Plan], per_micro_batch: bool) -> Plan:
    """Join the plans of one update; micro-batch quotas add up, the update's own is already whole."""
    return Plan(
        torch.cat([plan.selected for plan in plans]),
        torch.cat([plan.covariance for plan in plans]),
        sum(plan.requested or 0 for plan in plans) if per_micro_batch else plans[0].requested,
        state=plans[0].state,
    )
