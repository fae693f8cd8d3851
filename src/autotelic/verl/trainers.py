"""Label-free rewards in verl's V1 trainer, whichever its mode: ``algorithm.adv_estimator=autotelic_empo``.

verl scores responses one at a time, and a label-free reward looks at a group. So the group's rewards are computed where
verl computes advantages: on the driver, for the whole batch. They take the place of the scores (``rm_scores``), and
everything after is verl's. A column of answers, if the data have one, is not asked for.

Reference: the rewards', in `autotelic.rewards`.
Deviations: the tokens of prompts that a reward leaves out have no advantage but stay in the loss's denominator, which
on verl counts all response tokens of the mini-batch.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.answers import extract
from autotelic.rewards.groups import Group, Row
from autotelic.rewards.label_free_reward import LabelFreeReward, RewardResult, TokenStats
from autotelic.verl.estimators import reward_of, serving
from autotelic.verl.plugin import check_parameters, wrap_once

FIELDS = ["uid", "prompts", "responses", "response_mask", "old_log_probs", "entropy"]


def install(trainer_base: ModuleType) -> None:
    """Let ``PPOTrainer._compute_advantage`` score groups first; a second call changes nothing."""
    check_parameters(trainer_base.PPOTrainer._compute_advantage, "self", "batch", "metrics")
    wrap_once(trainer_base.PPOTrainer, "_compute_advantage", scoring_groups)


def scoring_groups(compute_advantage: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``_compute_advantage`` with a label-free reward in the place of the scores, where one is configured."""

    @functools.wraps(compute_advantage)
    def score_and_compute(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        algorithm = self.config.algorithm
        reward = reward_of(algorithm.adv_estimator, dict(algorithm.get("label_free", None) or {}))
        if reward is None:
            return compute_advantage(self, batch, metrics)
        import transfer_queue as tq

        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        padding = [bool(tag.get("is_padding", False)) for tag in batch.tags]
        scores, scale, diagnostics = score(rows, reward, self.tokenizer, padding, step=self.global_steps)
        metrics.update(diagnostics)
        put(tq, batch, "rm_scores", on_last_token(scores, rows["response_mask"]))
        with serving():
            batch = compute_advantage(self, batch, metrics)
        return scale_advantages(tq, batch, scale) if bool((scale != 1).any()) else batch

    return score_and_compute


def scale_advantages(tq: Any, batch: Any, scale: Float[Tensor, " B"]) -> Any:
    """Multiply the advantages of each row, as SEED-GRPO does."""
    fields = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
    nested = fields["advantages"]
    rows = [row * factor for row, factor in zip(nested.unbind(), scale.to(nested.dtype), strict=True)]
    return put(tq, batch, "advantages", torch.nested.as_nested_tensor(rows, layout=torch.jagged))


def score(
    rows: Any, reward: LabelFreeReward, tokenizer: Any, padding: Sequence[bool], *, step: int
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], dict[str, float]]:
    """Return the reward and advantage scale of every row of verl's batch, and the reward's diagnostics.

    Args:
        rows: `FIELDS` of the batch; nested tensors, and one uid per row.
        reward: the reward.
        tokenizer: turns tokens into text.
        padding: rows that verl added to fill the batch; they belong to no group and earn 0.
        step: for rewards that draw at random.
    """
    uids = [str(uid) for uid in rows["uid"]]
    members: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        if not padding[row]:
            members.setdefault(uid, []).append(row)
    groups = form(rows, reward, tokenizer, list(members.values()))
    result = reward.score(groups, step=step)
    scores = torch.zeros(len(uids), dtype=torch.float32)
    scale = torch.ones(len(uids), dtype=torch.float32)
    for g, own in enumerate(members.values()):
        scores[own] = kept_rewards(result)[g, : len(own)].float()
        scale[own] = result.advantage_scale[g].float()
    return scores, scale, result.diagnostics


def kept_rewards(result: RewardResult) -> Float[Tensor, "P G"]:
    """Return the rewards, 0 throughout a prompt that is left out: all equal, hence no advantage."""
    return torch.where(result.prompt_mask.unsqueeze(-1), result.rewards, torch.zeros_like(result.rewards))


def form(rows: Any, reward: LabelFreeReward, tokenizer: Any, members: Sequence[Sequence[int]]) -> list[Group]:
    """Return the groups with text, answer, and the statistics that the reward asks for."""
    prompts = tokenizer.batch_decode([ids.tolist() for ids in rows["prompts"].unbind()], skip_special_tokens=True)
    texts = tokenizer.batch_decode([ids.tolist() for ids in rows["responses"].unbind()], skip_special_tokens=True)
    options = {} if reward.extraction is None else {"methods": reward.extraction}
    columns = statistics(rows, reward)
    groups = []
    for own in members:
        found = [
            Row(prompts[i], texts[i], extract(texts[i], **options), {need: columns[need][i] for need in columns})
            for i in own
        ]
        groups.append(Group(tuple(found), own[0]))
    return groups


def statistics(rows: Any, reward: LabelFreeReward) -> dict[str, list[float]]:
    """Return one number per row for each statistic in ``reward.needs``, such as ``mean_entropy``."""
    if not reward.needs:
        return {}
    padded = rows.select("response_mask", "old_log_probs", "entropy").to_padded_tensor()
    stats = TokenStats(
        mask=padded["response_mask"].bool(), logprobs=padded["old_log_probs"].float(), entropy=padded["entropy"].float()
    )
    columns = {}
    for need in reward.needs:
        reduction, _, name = need.partition("_")
        total, count = stats.sums(name)
        columns[need] = (total / count.clamp(min=1) if reduction == "mean" else total).tolist()
    return columns


def on_last_token(scores: Float[Tensor, " B"], response_mask: Tensor) -> Tensor:
    """Return scores in verl's form: nested like the responses, zero but for the last token."""
    rows = []
    for value, row in zip(scores, response_mask.unbind(), strict=True):
        per_token = torch.zeros(len(row), dtype=torch.float32)
        per_token[-1] = value
        rows.append(per_token)
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def put(tq: Any, batch: Any, name: str, values: Tensor) -> Any:
    """Write one field of the batch back to verl's transfer queue."""
    from tensordict import TensorDict

    fields = TensorDict({name: values}, batch_size=len(batch.keys))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
