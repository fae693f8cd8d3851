"""The plan of an update on verl: made for the mini-batch of all ranks, before the engine splits it.

Every engine of verl (FSDP, FSDP2, Megatron, ...) makes an update in ``BaseEngine.train_batch(data, loss_function)``,
where ``data`` is this rank's part of the mini-batch. There the plan is made and attached to the rows, so that it
travels with them into whatever micro-batches follow; around the loss function it is handed to `autotelic.verl.losses`.

Each data-parallel rank gathers the tokens' log-probabilities, advantages and masks of all of them, and plans for the
whole mini-batch by itself: the plan is that of one process by construction. A row is known by what it says: ties and
random choices are keyed by the rank of a hash of its tokens, so they depend neither on order nor on ranks.

Reference: arXiv:2505.22617, Eq. 10-14, through `autotelic.controls.entropy_control`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch
from autotelic.errors import UserError
from autotelic.functional.distributed import world_size
from autotelic.functional.masking import fill_outside, wide
from autotelic.functional.schedules import Schedule
from autotelic.functional.surrogate import ratio_clipped
from autotelic.verl.loss_methods import EntropyMinimization, Method, method_of
from autotelic.verl.losses import MicroBatch, clip_bounds, planned
from autotelic.verl.plugin import check_parameters, wrap_once

SELECTED = "autotelic_selected"
CARRIED = {name: f"autotelic_{name}" for name in ("advantages", "old", "bound", "term_tokens")}
"""What of a plan travels with the rows besides the selection, where the control has it."""


@dataclass
class Run:
    """What the plug-in remembers on an engine between updates.

    Attributes:
        method: what the configuration asks for.
        updates: optimizer steps so far; keys random choices.
        updates_per_rollout: how many updates a rollout serves; None where verl has not said.
        state: what a control with memory returned last.
    """

    method: Method
    updates: int = 0
    updates_per_rollout: float | None = None
    state: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what goes into a checkpoint."""
        return {"updates": self.updates, "state": self.state}


@dataclass(frozen=True)
class Rows:
    """The tokens of a mini-batch, or of one rank's part of it, padded."""

    mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    logprobs: Tensor
    entropy: Tensor
    keys: Int[Tensor, " B"]


def install(base: ModuleType) -> None:
    """Let ``BaseEngine.train_batch`` plan first; a second call changes nothing."""
    check_parameters(base.BaseEngine.train_batch, "self", "data", "loss_function")
    wrap_once(base.BaseEngine, "train_batch", planning)


def planning(train_batch: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``train_batch`` with a plan for the whole mini-batch, where the configuration asks for one of ours."""

    @functools.wraps(train_batch)
    def plan_and_train(self: Any, data: Any, loss_function: Any, *args: Any, **kwargs: Any) -> Any:
        config = actor_config(loss_function)
        run = None if config is None else run_of(self, config)
        if run is None:
            return train_batch(self, data, loss_function, *args, **kwargs)
        data = data.clone(recurse=False)
        if isinstance(run.method, EntropyMinimization):
            metrics, coef, needs_entropy = {}, 0.0, True
        else:
            coef = entropy_coef(run.method, run)
            plan, metrics = plan_update(self, data, run, run.method, config)
            attach(data, plan)
            coef = coef or plan.term_coef
            needs_entropy = coef != 0 or run.method.follows_entropy
        if needs_entropy:
            assign_non_tensor(data, calculate_entropy=True)
        run.updates += 1
        loss_function = with_plan(loss_function, run.method, needs_entropy, coef, metrics)
        return train_batch(self, data, loss_function, *args, **kwargs)

    return plan_and_train


def actor_config(loss_function: Any) -> Any:
    """Return the actor's configuration that verl bound to the loss function; None for a critic's loss and others'."""
    config = getattr(loss_function, "keywords", {}).get("config")
    return config if getattr(config, "policy_loss", None) is not None else None


def run_of(engine: Any, config: Any) -> Run | None:
    """Return the engine's memory, made at its first update; None where another loss is configured."""
    run = engine.__dict__.get("autotelic_run")
    if run is None:
        method = method_of(config.policy_loss)
        if method is None:
            return None
        run = engine.autotelic_run = Run(method)
    return run


def entropy_coef(control: EntropyControl, run: Run) -> float:
    """Refuse what cannot work, and return the coefficient of the entropy term on selected tokens."""
    if run.updates_per_rollout is None:
        return 0.0
    try:
        control.check(run.updates_per_rollout, "token", clipped=not control.replaces_clip)
    except UserError as error:
        raise UserError(f"{error} On verl: lower ppo_mini_batch_size, or raise ppo_epochs.") from None
    return control.entropy_coef(run.updates_per_rollout)


def total_updates(config: Any, run: Run, control: EntropyControl) -> int:
    """Return the optimizer steps of the run, 0 where verl does not say; a schedule needs to know."""
    steps = getattr(getattr(config, "optim", None), "total_training_steps", None) or 0
    total = round(steps * (run.updates_per_rollout or 0)) if steps > 0 else 0
    scheduled = [f.name for f in fields(control) if isinstance(getattr(control, f.name), Schedule)]
    if scheduled and not total:
        raise UserError(
            f"{control.name}: {', '.join(scheduled)} follow a schedule, and verl does not say how long the run is: set "
            "actor_rollout_ref.actor.optim.total_training_steps, or give numbers"
        )
    return total


def plan_update(
    engine: Any, data: Any, run: Run, control: EntropyControl, config: Any
) -> tuple[Plan, dict[str, float]]:
    """Return this rank's part of the mini-batch's plan, and the mini-batch's metrics."""
    if control.per_micro_batch:
        raise UserError(
            "scope='micro' is the behaviour of verl's own clip_cov and kl_cov: use these, or leave scope out"
        )
    group = engine.get_data_parallel_group()
    own = rows_of(engine, data, control)
    whole, first = gathered(own, group)
    advantages, mask = fill_outside(whole.advantages.float(), whole.mask), whole.mask
    clipped = None
    if control.refresh:
        low, high = clip_bounds(config)
        clipped = ratio_clipped(
            whole.logprobs.float(), whole.old_logprobs.float(), advantages, mask, clip_low=low, clip_high=high
        )
    batch = UpdateBatch(
        logprobs=fill_outside(whole.logprobs.float(), mask),
        advantages=advantages,
        mask=mask,
        row_ids=content_ids(whole.keys),
        step=run.updates,
        seed=control.seed,
        across_ranks=False,  # every rank holds the whole mini-batch
        old_logprobs=fill_outside(whole.old_logprobs.float(), mask),
        entropy=fill_outside(whole.entropy.float(), mask) if "entropy" in control.needs else None,
        clipped=clipped,
        state=run.state,
        total_steps=total_updates(config, run, control),
        by_response=config.loss_agg_mode == "seq-mean-token-mean",
    )
    plan = control.plan(batch)
    run.state = dict(plan.state)
    last, width = first + own.mask.shape[0], own.mask.shape[1]
    return plan.split([first, own.mask.shape[0], len(mask) - last])[1].narrow(width), plan_metrics(plan, batch)


def rows_of(engine: Any, data: Any, control: EntropyControl) -> Rows:
    """Return this rank's part of the mini-batch."""
    measured = measure(engine, data) if control.refresh or control.needs else None
    fields = data.select("response_mask", "old_log_probs", "advantages").to_padded_tensor()
    mask, old = fields["response_mask"].bool(), fields["old_log_probs"]
    logprobs, entropy = (old, torch.zeros_like(old)) if measured is None else measured
    if not control.refresh:
        logprobs = old
    return Rows(mask, fields["advantages"], old, logprobs, entropy, content_keys(data["input_ids"]))


def measure(engine: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies under the present policy: one forward pass of the engine."""
    from verl.workers.utils.padding import no_padding_2_padding

    data = data.clone(recurse=False)
    assign_non_tensor(data, calculate_entropy=True)
    with torch.no_grad():
        output = engine.forward_backward_batch(data, None, forward_only=True).get("model_output", {})
    if "log_probs" not in output or "entropy" not in output:
        raise UserError(
            "this control needs entropies or refreshed log-probabilities, and this verl engine gives none "
            "on this rank (pipeline parallelism?): use a control without `refresh`, such as clip_cov"
        )
    logprobs, entropy = (no_padding_2_padding(output[name], data) for name in ("log_probs", "entropy"))
    return logprobs.detach(), entropy.detach()


def gathered(own: Rows, group: Any) -> tuple[Rows, int]:
    """Return the rows of all data-parallel ranks, in their order, and the index of this rank's first one."""
    size = world_size(group)
    if size == 1:
        return own, 0
    shape = torch.tensor(own.mask.shape, device=own.mask.device)
    shapes = [torch.zeros_like(shape) for _ in range(size)]
    dist.all_gather(shapes, shape, group=group)
    counts, widths = zip(*(s.tolist() for s in shapes), strict=True)
    height, width = max(counts), max(widths)

    def gather(x: Tensor) -> Tensor:
        padded = x.new_zeros((height, width) if x.ndim == 2 else (height,))
        padded[tuple(slice(n) for n in x.shape)] = x
        parts = [torch.zeros_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    columns = {name: gather(x.byte() if x.dtype == torch.bool else x) for name, x in vars(own).items()}
    columns["mask"] = columns["mask"].bool()
    return Rows(**columns), sum(counts[: dist.get_rank(group)])


def content_keys(input_ids: Tensor) -> Int[Tensor, " B"]:
    """Return a number per row that depends on its tokens, prompt and response, and on nothing else."""
    rows = input_ids.unbind() if input_ids.is_nested else list(input_ids)
    keys = []
    for tokens in rows:
        positions = torch.arange(len(tokens), device=tokens.device).unsqueeze(-1)
        uniform = F.hash_uniform(0, 0, tokens, positions)
        keys.append((uniform * 2.0**53).long().sum())
    return torch.stack(keys)


def content_ids(keys: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return the rank of each row's key: unique, and the same for every order of the rows (up to equal rows)."""
    return keys.argsort(stable=True).argsort()


def plan_metrics(plan: Plan, batch: UpdateBatch) -> dict[str, float]:
    """Return what was chosen in this mini-batch, under the names of the glossary."""
    count = max(int(batch.mask.sum()), 1)
    selected = int((plan.selected & batch.mask).sum())
    advantages = wide(batch.advantages[batch.mask])
    metrics = {
        "covariance/mean": float(wide(plan.covariance[batch.mask]).sum()) / count,
        "selected/realised": float(selected),
        "selected/share": selected / count,
        "advantage/std": float(advantages.std(correction=0)) if len(advantages) else 0.0,
        "policy/surprisal": float(-wide(batch.logprobs[batch.mask]).sum()) / count,
    }
    return metrics if plan.requested is None else metrics | {"selected/requested": float(plan.requested)}


def attach(data: Any, plan: Plan) -> None:
    """Write the plan beside the rows, nested or padded as they are."""
    data[SELECTED] = like_rows(plan.selected.long(), data["response_mask"])
    for name, key in CARRIED.items():
        if getattr(plan, name) is not None:
            values = getattr(plan, name)
            data[key] = like_rows(values.long() if values.dtype == torch.bool else values, data["response_mask"])


def like_rows(values: Tensor, rows: Any) -> Tensor:
    """Return padded values in the layout of ``rows``, a padded or a nested tensor."""
    if not rows.is_nested:
        return values
    lengths = rows.offsets().diff().tolist()
    flat = torch.cat([row[:length] for row, length in zip(values, lengths, strict=True)])
    return torch.nested.nested_tensor_from_jagged(flat, offsets=rows.offsets())


def with_plan(
    loss_function: Callable[..., Any], method: Method, needs_entropy: bool, coef: float, metrics: dict[str, float]
) -> Callable[..., Any]:
    """Return the loss function with each micro-batch's part of the plan handed to our policy loss."""

    @functools.wraps(loss_function)
    def loss_of_micro_batch(*args: Any, **kwargs: Any) -> Any:
        if "model_output" not in kwargs:  # distillation calls the same function on logits
            return loss_function(*args, **kwargs)
        from verl.workers.utils.padding import no_padding_2_padding

        data, output = kwargs["data"], kwargs["model_output"]
        entropy = no_padding_2_padding(output["entropy"], data) if needs_entropy else None
        part = None if isinstance(method, EntropyMinimization) else part_of(data)
        with planned(MicroBatch(method, part, entropy, coef, metrics)):
            return loss_function(*args, **kwargs)

    return loss_of_micro_batch


def part_of(data: Any) -> Plan:
    """Return the plan that `attach` wrote beside these rows."""
    present = {name: key for name, key in CARRIED.items() if key in data}
    fields = data.select(SELECTED, *present.values()).to_padded_tensor()
    selected = fields[SELECTED].bool()
    unknown = torch.zeros(selected.shape, device=selected.device)
    carried = {name: fields[key].bool() if name == "term_tokens" else fields[key] for name, key in present.items()}
    return Plan(selected, unknown, **carried)


def assign_non_tensor(data: Any, **values: Any) -> None:
    """Set verl's own flags on a TensorDict."""
    from verl.utils import tensordict_utils

    tensordict_utils.assign_non_tensor(data, **values)
