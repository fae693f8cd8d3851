"""Preference pairs with the policy that produced each side: reading, checking, and the policy labels.

A row has `prompt`, `chosen`, `rejected`, and per side (`chosen_...`, `rejected_...`), as far as the label needs it:

    policy_id          which behaviour policy produced it, a name in the table of policies
    sampler_logprobs   log mu of each token under the *sampling* distribution, the end token included
    segment_tokens     the judge saw only this many tokens from the start; the rest is the rollout that followed

The table of policies (YAML or JSON) says how each one samples, and where its model is:

    strong: {model: runs/strong, temperature: 1.0}
    noisy: {model: any_pair, temperature: 1.5, top_k: 20, top_p: 0.95}

A policy label is the distribution mu that the look-ahead compares the policy with: `known` (that of the row), or
`estimated` (behaviour cloning per policy id), `pooled` (one clone of everything), and the controls `shuffled` (policy
ids permuted over all sides) and `wrong` (every side points to the next policy), which must hurt where labels matter.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from autotelic.errors import UserError, closest

SIDES = ("chosen", "rejected")
LABEL_KINDS = ("known", "estimated", "pooled", "shuffled", "wrong")
CHECKED_ROWS = 16  # rows a policy whose stored log-probabilities are compared with its model
TOLERANCE = 0.02  # nats a token: above what bf16 and another attention kernel do
NEVER = -1e4  # log-probability of a token that top-k or top-p removed; finite, since 0 * -inf is not 0


@dataclass(frozen=True)
class BehaviorPolicy:
    """How one policy sampled, and its model where there is one.

    Attributes:
        model: folder, hub name, or a carried model's name; None where only stored log-probabilities exist.
        temperature: of the sampling, above 0; None is not stated.
        top_k: tokens kept by the sampler; 0 keeps all.
        top_p: nucleus, in (0, 1].
    """

    model: str | None = None
    temperature: float | int | None = None
    top_k: int = 0
    top_p: float | int = 1.0


def read_policies(path: Path) -> dict[str, BehaviorPolicy]:
    """Read the table of behaviour policies: a mapping of id to the fields of `BehaviorPolicy`."""
    try:
        table = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the behaviour policies {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"the behaviour policies {path} are neither YAML nor JSON: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} must map policy ids to settings, such as  strong: {{model: PATH, temperature: 1.0}}")
    return {str(name): _policy(f"{path}, policy {name!r}", settings) for name, settings in table.items()}


def _policy(where: str, settings: Any) -> BehaviorPolicy:
    if not isinstance(settings, dict):
        raise UserError(f"{where} must be a mapping such as {{model: PATH, temperature: 1.0}}")
    known = BehaviorPolicy.__dataclass_fields__
    for key in settings:
        if key not in known:
            raise UserError(
                f"{where} has an unknown setting {key!r}{closest(str(key), known)}; known: {', '.join(known)}"
            )
    policy = BehaviorPolicy(**settings)
    temperature, top_p, top_k = policy.temperature, policy.top_p, policy.top_k
    if temperature is not None and not (_is_number(temperature) and temperature > 0):
        raise UserError(f"{where}: temperature must be a number above 0, got {temperature!r}")
    if not (_is_number(top_p) and 0 < top_p <= 1) or not isinstance(top_k, int) or top_k < 0:
        raise UserError(f"{where}: top_p must lie in (0, 1] and top_k be 0 (all) or more, got {top_p!r} and {top_k!r}")
    if policy.model is not None and not isinstance(policy.model, str):
        raise UserError(f"{where}: model must be a folder or a name, got {policy.model!r}")
    return policy


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_pairs(source: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Read and check preference rows of a `.jsonl` or `.parquet` file; unknown columns are dropped.

    Raises:
        UserError: names the file, the row and what to do.
    """
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source} is not a file: give preference pairs as .jsonl or .parquet")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            raw = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"cannot read {path} as parquet: {str(error).splitlines()[0]}") from error
    else:
        from autotelic.runs.logs import read_jsonl

        raw = read_jsonl(path)
    rows = [_pair(row, f"{path}, row {number}") for number, row in enumerate(raw[:limit], start=1)]
    if not rows:
        raise UserError(f"{path} has no rows")
    columns = set(rows[0])
    for number, row in enumerate(rows, start=1):
        if set(row) != columns:
            differing = sorted(columns ^ set(row))[0]
            raise UserError(
                f"{path}, row {number}: column {differing!r} is in some rows only; give it in all or in none"
            )
    return [row | {"row": number} for number, row in enumerate(rows, start=1)]


def _pair(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in ("prompt", *SIDES):
        if row.get(name) is None:
            raise UserError(f"{where}: no column {name!r}; present: {', '.join(map(str, row)) or 'none'}")
        if not isinstance(row[name], str | list):
            raise UserError(f"{where}: {name} is a {type(row[name]).__name__}: give a string, or a list of messages")
    if row["chosen"] == row["rejected"]:
        raise UserError(f"{where}: chosen and rejected are the same response: drop the row, it holds no preference")
    kept: dict[str, Any] = {name: row[name] for name in ("prompt", *SIDES)}
    for side in SIDES:
        if row.get(f"{side}_policy_id") is not None:
            kept[f"{side}_policy_id"] = str(row[f"{side}_policy_id"])
        tokens = row.get(f"{side}_segment_tokens")
        if tokens is not None:
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
                raise UserError(f"{where}: {side}_segment_tokens must be a whole number of at least 1, got {tokens!r}")
            kept[f"{side}_segment_tokens"] = tokens
        logprobs = row.get(f"{side}_sampler_logprobs")
        if logprobs is not None:
            kept[f"{side}_sampler_logprobs"] = _logprobs(logprobs, f"{where}: {side}_sampler_logprobs")
    return kept


def _logprobs(values: Any, where: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} must be a list with one number per token, the end token included")
    for place, value in enumerate(values):
        if not _is_number(value) or value > 1e-4:
            raise UserError(
                f"{where}, token {place + 1} is {value!r}: a log-probability is finite and at most 0; a token that the "
                "sampler could not draw means that these are not those of the sampling distribution"
            )
    return [min(float(value), 0.0) for value in values]


def sampling_log_softmax(logits: Float[Tensor, "*B V"], policy: BehaviorPolicy) -> Float[Tensor, "*B V"]:
    """Log-probabilities of the distribution that the policy samples from: temperature, then top-k, then top-p.

    Tokens that the sampler removed get `NEVER`. The order and the cuts are those of transformers' generation.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    shape = logits.shape
    scores = logits.float().reshape(-1, shape[-1]) / (policy.temperature or 1.0)
    ids = torch.zeros(len(scores), 1, dtype=torch.long, device=scores.device)
    if policy.top_k:
        scores = TopKLogitsWarper(min(policy.top_k, shape[-1]))(ids, scores)  # pyright: ignore[reportArgumentType]
    if policy.top_p < 1:
        scores = TopPLogitsWarper(float(policy.top_p))(ids, scores)  # pyright: ignore[reportArgumentType]
    return torch.as_tensor(scores).log_softmax(-1).clamp(min=NEVER).reshape(shape)


@torch.no_grad()
def label_sequences(
    model: Any,
    policy: BehaviorPolicy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    top_k: int,
    batch_size: int = 64,
) -> list[tuple[list[float], list[list[int]], list[list[float]]]]:
    """Return log mu of each response token, and mu's `top_k` most likely tokens there with their log-probabilities."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    results: list[Any] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, attention = _right_padded([[*prompts[i], *responses[i]] for i in rows], model.device)
        logprobs = sampling_log_softmax(model(input_ids=ids, attention_mask=attention).logits[:, :-1], policy)
        taken = logprobs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        top = logprobs.topk(min(top_k, logprobs.shape[-1]), dim=-1)
        for place, i in enumerate(rows):
            own = slice(len(prompts[i]) - 1, len(prompts[i]) + len(responses[i]) - 1)
            results[i] = (
                taken[place, own].tolist(),
                top.indices[place, own].tolist(),
                top.values[place, own].tolist(),
            )
    return results


def _right_padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, attention


@dataclass
class PolicyLabels:
    """Gives every side of a tokenised preference data set its policy label.

    Attributes:
        kind: see the module's docstring.
        policies: how each policy id sampled.
        load_model: name or folder -> a causal language model; `None` is the model to be trained, before training.
        top_k: tokens of the label kept per position for the closed-form KL; 0 where it is not needed.
        needs_logprobs: whether the objective uses log mu at all (PPL-d and DPO do not).
        source: the file's name, for messages.
        seed: of shuffling and cloning.
        clone_steps: updates of behaviour cloning per label.
        clone_learning_rate: of its AdamW.
        clone_batch_size: responses per cloning update.
    """

    kind: str = "known"
    policies: Mapping[str, BehaviorPolicy] = field(default_factory=dict)
    load_model: Callable[[str | None], Any] | None = None
    top_k: int = 0
    needs_logprobs: bool = True
    source: str = "the data"
    seed: int = 0
    clone_steps: int = 100
    clone_learning_rate: float = 3e-4
    clone_batch_size: int = 32
    _models: dict[str, Any] = field(default_factory=dict, repr=False)
    _fitted: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an unknown kind of label."""
        if self.kind not in LABEL_KINDS:
            raise UserError(
                f"unknown policy_labels {self.kind!r}{closest(self.kind, LABEL_KINDS)}; "
                f"there are {', '.join(LABEL_KINDS)}"
            )

    def attach(self, dataset: Any) -> Any:
        """Return a `datasets.Dataset` with the columns that the collator reads.

        Args:
            dataset: with `prompt_ids`, `chosen_ids`, `rejected_ids` (TRL's) and the columns of this module.
        """
        if not self.needs_logprobs:
            return dataset
        columns = set(dataset.column_names)
        sides = self._sides(dataset)
        self._check_stored(dataset, sides)
        stored = {f"{side}_sampler_logprobs" for side in SIDES} <= columns
        if self.kind == "known" and stored and not self.top_k:
            for side in SIDES:
                dataset = dataset.add_column(f"{side}_label_logprobs", list(dataset[f"{side}_sampler_logprobs"]))
            return dataset
        labels = self._label_names(sides)
        results: list[Any] = [None] * len(sides)
        for name in sorted(set(labels)):
            own = [i for i, label in enumerate(labels) if label == name]
            policy = self.policies.get(name, BehaviorPolicy(temperature=1.0))
            if self.kind in ("estimated", "pooled"):
                policy = BehaviorPolicy(temperature=1.0)  # a clone learns the sampling distribution itself
            model = self._model(name, [sides[i] for i in own])
            found = label_sequences(
                model,
                policy,
                [sides[i]["prompt"] for i in own],
                [sides[i]["response"] for i in own],
                max(self.top_k, 1),
            )
            for i, values in zip(own, found, strict=True):
                results[i] = values
        self._fitted = True
        if self.kind == "known":
            self._check_possible(sides, results)
        for number, side in enumerate(SIDES):
            rows = results[number * len(dataset) : (number + 1) * len(dataset)]
            dataset = dataset.add_column(f"{side}_label_logprobs", [row[0] for row in rows])
            if self.top_k:
                dataset = dataset.add_column(f"{side}_label_top_ids", [row[1] for row in rows])
                dataset = dataset.add_column(f"{side}_label_top_logprobs", [row[2] for row in rows])
        return dataset

    def _sides(self, dataset: Any) -> list[dict[str, Any]]:
        """All chosen sides, then all rejected ones."""
        columns, sides = set(dataset.column_names), []
        for side in SIDES:
            if self.kind != "pooled" and f"{side}_policy_id" not in columns:
                raise UserError(
                    f"{self.source}: no column '{side}_policy_id', which policy labels need; add it, or use "
                    "--policy_labels pooled, or an objective without labels (dpo, ppl_d)"
                )
            for row in dataset:
                sides.append(
                    {
                        "prompt": row["prompt_ids"],
                        "response": row[f"{side}_ids"],
                        "policy": row.get(f"{side}_policy_id", "all"),
                        "stored": row.get(f"{side}_sampler_logprobs"),
                        "where": f"{self.source}, row {row.get('row', '?')}, {side}",
                    }
                )
        return sides

    def _check_stored(self, dataset: Any, sides: Sequence[Mapping[str, Any]]) -> None:
        """Stored log-probabilities: one per token, of a stated sampling distribution, that of the model if given."""
        by_policy: dict[str, list[Mapping[str, Any]]] = {}
        for side in sides:
            if self.kind in ("known", "shuffled", "wrong") and side["policy"] not in self.policies:
                raise UserError(
                    f"{side['where']}: policy {side['policy']!r} is not in the table of behaviour policies"
                    f"{closest(side['policy'], self.policies)}; add it with its temperature (and model)"
                )
            if side["stored"] is None:
                continue
            if len(side["stored"]) != len(side["response"]):
                raise UserError(
                    f"{side['where']} has {len(side['response'])} tokens, the end token included, but "
                    f"{len(side['stored'])} log-probabilities: store one per token of this tokenizer, and leave out "
                    "responses that were cut at the length limit"
                )
            by_policy.setdefault(side["policy"], []).append(side)
        for name, own in by_policy.items():
            policy = self.policies.get(name, BehaviorPolicy(temperature=1.0))
            if policy.temperature is None:
                raise UserError(
                    f"{own[0]['where']}: log-probabilities of policy {name!r} without its temperature: they must be "
                    "those of the sampling distribution; state temperature (1 if you sampled plainly), top_k and top_p "
                    "in the table of behaviour policies"
                )
            if policy.model is not None and self.load_model is not None and self.kind == "known":
                self._compare(policy, name, own[:CHECKED_ROWS])

    def _compare(self, policy: BehaviorPolicy, name: str, sides: Sequence[Mapping[str, Any]]) -> None:
        """Recompute some stored log-probabilities with the policy's model."""
        model = self._model(name, sides)
        arguments = ([side["prompt"] for side in sides], [side["response"] for side in sides], 1)
        computed = [row[0] for row in label_sequences(model, policy, *arguments)]
        gap, worst = max(
            (sum(abs(a - b) for a, b in zip(row, side["stored"], strict=True)) / len(row), place)
            for place, (row, side) in enumerate(zip(computed, sides, strict=True))
        )
        if gap <= TOLERANCE:
            return
        raw = label_sequences(model, BehaviorPolicy(temperature=1.0), *arguments)[worst][0]
        is_raw = max(abs(a - b) for a, b in zip(raw, sides[worst]["stored"], strict=True)) <= TOLERANCE
        raise UserError(
            f"{sides[worst]['where']}: the stored log-probabilities differ by {gap:.3g} nats a token from those of "
            f"{policy.model} at temperature {policy.temperature}, top_k {policy.top_k}, top_p {policy.top_p}"
            + (": they are those of temperature 1 without top-k and top-p" if is_raw else "")
            + "; store those of the sampling distribution, or leave the column out and let the model compute them"
        )

    def _check_possible(self, sides: Sequence[Mapping[str, Any]], results: Sequence[Any]) -> None:
        for side, (logprobs, _, _) in zip(sides, results, strict=True):
            if min(logprobs) <= NEVER / 2:
                policy = self.policies[side["policy"]]
                raise UserError(
                    f"{side['where']}, token {logprobs.index(min(logprobs)) + 1}: policy {side['policy']!r} cannot "
                    f"have sampled it at top_k {policy.top_k}, top_p {policy.top_p}; correct the table of policies"
                )

    def _label_names(self, sides: Sequence[Mapping[str, Any]]) -> list[str]:
        true = [side["policy"] for side in sides]
        names = sorted(set(true) | set(self.policies))
        if self.kind == "pooled":
            return ["all"] * len(true)
        if self.kind == "shuffled":
            random.Random(self.seed).shuffle(true)
        if self.kind == "wrong":
            if len(names) < 2:
                raise UserError("--policy_labels wrong needs at least two behaviour policies")
            return [names[(names.index(name) + 1) % len(names)] for name in true]
        return true

    def _model(self, name: str, sides: Sequence[Mapping[str, Any]]) -> Any:
        """The model of a label: the policy's own, or a clone fitted to its responses (once, on the first data set)."""
        if name in self._models:
            return self._models[name]
        if self.load_model is None:
            raise UserError("policy labels need load_model, a function from a model's name to the model")
        if self.kind in ("estimated", "pooled"):
            if self._fitted:
                raise UserError(
                    f"policy {name!r} appears in held-out pairs only, so that its label cannot be estimated: give "
                    "training pairs of it, or keep other pairs aside"
                )
            self._models[name] = clone_policy(
                self.load_model(None),
                [side["prompt"] for side in sides],
                [side["response"] for side in sides],
                num_steps=self.clone_steps,
                learning_rate=self.clone_learning_rate,
                batch_size=self.clone_batch_size,
                seed=self.seed,
            )
            return self._models[name]
        policy = self.policies.get(name)
        if policy is None or policy.model is None:
            raise UserError(
                f"policy {name!r} has no model, and this label needs one (--divergence kl, shuffled or wrong labels): "
                "add `model:` to the table of behaviour policies, or use --divergence single_sample with stored "
                "log-probabilities, or --policy_labels estimated"
            )
        if policy.temperature is None:
            raise UserError(
                f"policy {name!r} has no temperature: state that of its sampling (1 if you sampled plainly)"
            )
        self._models[name] = self.load_model(policy.model).eval()
        return self._models[name]


def clone_policy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    num_steps: int,
    learning_rate: float | int,
    batch_size: int,
    seed: int,
) -> Any:
    """Behaviour cloning: fit the model to the responses by maximum likelihood, and return it in evaluation mode.

    Args:
        model: trained in place.
        prompts: token ids.
        responses: token ids that the policy produced, the end token included.
        num_steps: updates.
        learning_rate: of AdamW, constant.
        batch_size: responses an update, drawn with replacement.
        seed: of the draws.
    """
    generator = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(num_steps):
        rows = [generator.randrange(len(prompts)) for _ in range(batch_size)]
        ids, attention = _right_padded([[*prompts[i], *responses[i]] for i in rows], model.device)
        targets = ids.masked_fill(attention == 0, -100)
        for place, i in enumerate(rows):
            targets[place, : len(prompts[i])] = -100
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def write_pairs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write preference rows as JSON lines, whole or not at all."""
    from autotelic.runs.files import write_atomically

    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
