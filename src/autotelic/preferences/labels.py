"""The policy label of every side of a pair: the distribution mu that the look-ahead compares the policy with.

    known               that of the row's policy id
    estimated, pooled   a clone per policy id, or one of everything
    shuffled, wrong     controls that must hurt where labels matter: ids permuted over all sides, or moved on by one

A label is written into the data set before training, as the objective needs it: log mu of the recorded tokens and mu's
most likely tokens there (`observed`, `in_segment`), or K continuations that mu samples, with mu's most likely tokens at
theirs (`expected`).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from autotelic.errors import UserError, closest
from autotelic.preferences.continuations import Side, continuations_of, label_columns, sides_of
from autotelic.preferences.objective import PPL
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.sampling_policies import (
    NEVER,
    BehaviorPolicy,
    clone_policy,
    label_sequences,
)
from autotelic.runs.method_settings import Spec, read, typed

LabelKind = Literal["known", "estimated", "pooled", "shuffled", "wrong"]
CHECKED_ROWS = 16  # rows a policy whose stored log-probabilities are compared with its model
TOLERANCE = 0.02  # nats a token: above what bf16 and another attention kernel do


@dataclass(frozen=True)
class LabelSettings:
    """Which label, and how a clone is fitted where there is one.

    Attributes:
        kind: see the module's docstring.
        clone_steps: updates of behaviour cloning per label.
        clone_learning_rate: of its AdamW.
        clone_batch_size: responses per cloning update.
    """

    kind: LabelKind = "known"
    clone_steps: int = 100
    clone_learning_rate: float = 3e-4
    clone_batch_size: int = 32

    @property
    def cloned(self) -> bool:
        """Whether labels are clones fitted to the data."""
        return self.kind in ("estimated", "pooled")


def read_labels(spec: Spec) -> LabelSettings:
    """Return what `KIND,clone_steps=100` or `{name: KIND, clone_steps: 100}` stands for.

    Raises:
        UserError: an unknown kind or setting.
    """
    name, given = read(spec, "policy_labels")
    if name not in get_args(LabelKind):
        raise UserError(
            f"unknown policy_labels {name!r}{closest(name, get_args(LabelKind))}; there are "
            f"{', '.join(get_args(LabelKind))}"
        )
    return LabelSettings(**typed("policy_labels", name, {"kind": name, **given}, LabelSettings))


@dataclass
class PolicyLabels:
    """Gives every side of a tokenised preference data set its policy label.

    Attributes:
        settings: kind of label, and cloning.
        policies: how each policy id sampled.
        load_model: name or folder -> a causal language model; `None` is the model to be trained, before training.
        source: the file's name, for messages.
        seed: of shuffling, cloning and continuations.
        max_new_tokens: longest continuation of `future: expected`.
    """

    settings: LabelSettings = field(default_factory=LabelSettings)
    policies: Mapping[str, BehaviorPolicy] = field(default_factory=dict)
    load_model: Callable[[str | None], Any] | None = None
    source: str = "the data"
    seed: int = 0
    max_new_tokens: int = 256
    _models: dict[str, Any] = field(default_factory=dict, repr=False)
    _fitted: bool = field(default=False, repr=False)

    def attach(self, dataset: Any, ppl: PPL, tokenizer: Any) -> Any:
        """Return the data set with the label columns that the objective reads.

        Args:
            dataset: a `datasets.Dataset` with `prompt_ids`, `chosen_ids`, `rejected_ids` (TRL's) and the rows' columns.
            ppl: the objective; one that reads no label leaves the data as they are.
            tokenizer: for the end token of continuations.
        """
        if not (ppl.lookahead.reads_label or ppl.futures):
            return dataset
        self.check_columns(dataset)
        sides = sides_of(dataset, self.source)
        self.check_stored(sides)
        stored = self.settings.kind == "known" and all(side.stored is not None for side in sides)
        if stored and not ppl.label_tokens and not ppl.futures:
            return added(dataset, [{"label_logprobs": side.stored} for side in sides])
        continuations = continuations_of(ppl, tokenizer, self.max_new_tokens, self.seed)
        columns: list[Any] = [None] * len(sides)
        for name, places in self.by_label(sides):
            own = [sides[i] for i in places]
            policy = BehaviorPolicy(temperature=1.0)  # a clone learns the sampling distribution itself
            policy = policy if self.settings.cloned else self.policies.get(name, policy)
            for i, row in zip(
                places, label_columns(self.model(name, own), policy, own, ppl, continuations), strict=True
            ):
                columns[i] = row
        self._fitted = True
        if self.settings.kind == "known" and not ppl.futures:
            self.check_possible(sides, columns)
        return added(dataset, columns)

    def check_columns(self, dataset: Any) -> None:
        """Refuse rows that do not say who wrote them."""
        for side in SIDES:
            if self.settings.kind != "pooled" and f"{side}_policy_id" not in dataset.column_names:
                raise UserError(
                    f"{self.source}: no column '{side}_policy_id', which policy labels need; add it, or use "
                    "--policy_labels pooled, or an objective without labels (dpo, ppl_d)"
                )

    def check_stored(self, sides: Sequence[Side]) -> None:
        """Stored log-probabilities: one per token, of a stated sampling distribution, that of the model if given."""
        by_policy: dict[str, list[Side]] = {}
        for side in sides:
            if self.settings.kind in ("known", "shuffled", "wrong") and side.policy not in self.policies:
                raise UserError(
                    f"{side.where}: policy {side.policy!r} is not in the table of behaviour policies"
                    f"{closest(side.policy, self.policies)}; add it with its temperature (and model)"
                )
            if side.stored is None:
                continue
            if len(side.stored) != len(side.response):
                raise UserError(
                    f"{side.where} has {len(side.response)} tokens, the end token included, but "
                    f"{len(side.stored)} log-probabilities: store one per token of this tokenizer, and leave out "
                    "responses that were cut at the length limit"
                )
            by_policy.setdefault(side.policy, []).append(side)
        for name, own in by_policy.items():
            policy = self.policies.get(name, BehaviorPolicy(temperature=1.0))
            if policy.temperature is None:
                raise UserError(
                    f"{own[0].where}: log-probabilities of policy {name!r} without its temperature: they must be "
                    "those of the sampling distribution; state temperature (1 if you sampled plainly), top_k and top_p "
                    "in the table of behaviour policies"
                )
            if policy.model is not None and self.load_model is not None and self.settings.kind == "known":
                self.compare(policy, name, own[:CHECKED_ROWS])

    def compare(self, policy: BehaviorPolicy, name: str, sides: Sequence[Side]) -> None:
        """Recompute some stored log-probabilities with the policy's model."""
        model = self.model(name, sides)
        stored = [side.stored or [] for side in sides]
        arguments = ([side.prompt for side in sides], [side.response for side in sides], 1)
        computed = [label.logprobs for label in label_sequences(model, policy, *arguments)]
        gap, worst = max(
            (sum(abs(a - b) for a, b in zip(row, stored[place], strict=True)) / len(row), place)
            for place, row in enumerate(computed)
        )
        if gap <= TOLERANCE:
            return
        raw = label_sequences(model, BehaviorPolicy(temperature=1.0), *arguments)[worst].logprobs
        is_raw = max(abs(a - b) for a, b in zip(raw, stored[worst], strict=True)) <= TOLERANCE
        raise UserError(
            f"{sides[worst].where}: the stored log-probabilities differ by {gap:.3g} nats a token from those of "
            f"{policy.model} at temperature {policy.temperature}, top_k {policy.top_k}, top_p {policy.top_p}"
            + (": they are those of temperature 1 without top-k and top-p" if is_raw else "")
            + "; store those of the sampling distribution, or leave the column out and let the model compute them"
        )

    def check_possible(self, sides: Sequence[Side], columns: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a response with a token that its policy cannot have sampled."""
        for side, row in zip(sides, columns, strict=True):
            logprobs, policy = row["label_logprobs"], self.policies[side.policy]
            if min(logprobs) <= NEVER / 2:
                raise UserError(
                    f"{side.where}, token {logprobs.index(min(logprobs)) + 1}: policy {side.policy!r} cannot "
                    f"have sampled it at top_k {policy.top_k}, top_p {policy.top_p}; correct the table of policies"
                )

    def by_label(self, sides: Sequence[Side]) -> Iterator[tuple[str, list[int]]]:
        """Yield each label's name with the places of its sides."""
        names = self.label_names([side.policy for side in sides])
        for name in sorted(set(names)):
            yield name, [i for i, label in enumerate(names) if label == name]

    def label_names(self, policies: Sequence[str]) -> list[str]:
        """Return the name of each side's label."""
        names, known = list(policies), sorted(set(policies) | set(self.policies))
        if self.settings.kind == "pooled":
            return ["all"] * len(names)
        if self.settings.kind == "shuffled":
            random.Random(self.seed).shuffle(names)
        if self.settings.kind == "wrong":
            if len(known) < 2:
                raise UserError("--policy_labels wrong needs at least two behaviour policies")
            return [known[(known.index(name) + 1) % len(known)] for name in names]
        return names

    def model(self, name: str, sides: Sequence[Side]) -> Any:
        """The model of a label: the policy's own, or a clone fitted to its responses (once, on the first data set)."""
        if name not in self._models:
            if self.load_model is None:
                raise UserError("policy labels need load_model, a function from a model's name to the model")
            self._models[name] = self.clone(name, sides) if self.settings.cloned else self.load(name)
        return self._models[name]

    def clone(self, name: str, sides: Sequence[Side]) -> Any:
        """Fit the model to be trained, as it is before training, to the responses of one policy."""
        if self._fitted:
            raise UserError(
                f"policy {name!r} appears in held-out pairs only, so that its label cannot be estimated: give "
                "training pairs of it, or keep other pairs aside"
            )
        assert self.load_model is not None
        return clone_policy(
            self.load_model(None),
            [side.prompt for side in sides],
            [side.response for side in sides],
            num_steps=self.settings.clone_steps,
            learning_rate=self.settings.clone_learning_rate,
            batch_size=self.settings.clone_batch_size,
            seed=self.seed,
        )

    def load(self, name: str) -> Any:
        """Load the model that the table names."""
        policy = self.policies.get(name)
        if policy is None or policy.model is None:
            raise UserError(
                f"policy {name!r} has no model, and this label needs one (divergence=kl, future=expected, shuffled or "
                "wrong labels): add `model:` to the table of behaviour policies, or use divergence=single_sample with "
                "stored log-probabilities, or --policy_labels estimated"
            )
        if policy.temperature is None:
            raise UserError(
                f"policy {name!r} has no temperature: state that of its sampling (1 if you sampled plainly)"
            )
        assert self.load_model is not None
        return self.load_model(policy.model).eval()


def added(dataset: Any, columns: Sequence[Mapping[str, Any]]) -> Any:
    """Return the data set with one row of columns per side: all chosen sides, then all rejected ones."""
    for number, side in enumerate(SIDES):
        rows = columns[number * len(dataset) : (number + 1) * len(dataset)]
        for name in rows[0]:
            dataset = dataset.add_column(f"{side}_{name}", [row[name] for row in rows])
    return dataset
