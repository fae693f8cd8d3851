"""Policy-labelled preference learning on TRL's `DPOTrainer`.

`with_policy_labels(DPOTrainer)` calls TRL's own `compute_loss` once a batch, on a policy whose outputs it keeps. So TRL
logs what it always logs (`rewards/*`, `logps/*`, `logits/*`, `mean_token_accuracy`, `num_tokens`), and an objective
that is DPO *is* TRL's DPO, with every loss type, weight and f-divergence of its configuration. Any other objective
replaces TRL's loss by its own, of the same outputs; settings that shape TRL's loss alone are refused for it.

LoRA, precomputed references, the router's auxiliary loss, evaluation, checkpoints and trackers stay TRL's.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from autotelic.errors import UserError
from autotelic.functional.preference import repo_sft_loss
from autotelic.preferences.collator import COLUMNS, FUTURE, TOKEN_LABELS, PolicyLabelCollator
from autotelic.preferences.labels import PolicyLabels
from autotelic.preferences.objective import PPL
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.recorded_policy import RecordedPolicy, scores_of_logits
from autotelic.runs.processes import stop_if_not_finite
from autotelic.trl.fast_passes import use_fast_passes
from autotelic.trl.seam import Base, stop_at_bad_gradient

LOSS_SETTINGS = (
    "loss_type",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "label_smoothing",
    "use_weighting",
    "discopop_tau",
)
"""DPOConfig's fields that shape TRL's loss and nothing else."""
NO_LABEL = "divergence {!r} needs a policy label for every response: give policy_labels"
OUR_KEYS = ("response_mask", "pair_weights", *TOKEN_LABELS)


class PolicyLabelMixin(Base):
    """Overrides the loss of a `DPOTrainer`.

    Keyword Args:
        ppl: the objective.
        policy_labels: what gives each side its label; None where the data set has the label columns already, or the
            objective needs none.
        fused_head: `on` uses our head (`autotelic.trl.fast_passes`); `auto` only for the closed-form KL, whose label's
            tokens TRL's head cannot score; `off` nowhere.
        shared_prefix: `on` computes the prompt of a pair once; `auto` only for the closed-form KL; `off` nowhere.
    """

    weights_pairs = False
    """Whether batches carry `pair_weights`, which TRL's loss does not know."""

    def __init__(
        self,
        *args: Any,
        ppl: PPL | None = None,
        policy_labels: PolicyLabels | None = None,
        fused_head: str = "auto",
        shared_prefix: str = "auto",
        **kwargs: Any,
    ):
        if importlib.util.find_spec("trl.kernels") is None:  # TRL's DPO has a head that returns log-probabilities since
            raise UserError("policy-labelled preferences need TRL >= 1.16: pip install 'trl>=1.16'")
        self.ppl, self.policy_labels = ppl if ppl is not None else PPL(), policy_labels
        self.ppl.lookahead.warn_if_biased(stochastic=True)  # a language model's tokens are drawn
        self._heldout: dict[str, list[float]] = {}
        if not self.uses_trl_loss:
            refuse_loss_settings(kwargs.get("args"))
        if fused_head == shared_prefix == "auto" and not self.ppl.label_tokens:
            fused_head = shared_prefix = "off"
        super().__init__(*args, **kwargs)
        asked = "its closed-form KL reads further words of the vocabulary" if self.ppl.label_tokens else None
        self.installed = use_fast_passes(self, fused_head, shared_prefix, statistics=True, asked=asked)

    @property
    def uses_trl_loss(self) -> bool:
        """Whether the loss is TRL's own."""
        return self.ppl.is_dpo and not self.weights_pairs

    @property
    def data_collator(self) -> Any:
        """The collator; ours in place of TRL's own."""
        return self._data_collator

    @data_collator.setter
    def data_collator(self, collator: Any) -> None:
        ours = type(collator) is DataCollatorForPreference
        self._data_collator = PolicyLabelCollator(**vars(collator)) if ours else collator

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Add the policy labels to every data set that TRL tokenises: training, held out, and given to `evaluate`."""
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if not self.uses_trl_loss:
            dataset = dataset.map(without_rest, fn_kwargs={"end": self._tokenizer.eos_token_id})
        needs_labels = self.ppl.lookahead.reads_label or self.ppl.futures
        if self.policy_labels is None or not needs_labels:
            return dataset
        if not hasattr(dataset, "add_column"):
            raise UserError("policy labels are computed before training: give a Dataset, not a stream")
        return self.policy_labels.attach(dataset, self.ppl, self._tokenizer)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep our columns beside TRL's."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *COLUMNS, "row"]))

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The reference's log-probabilities, summed over the judged tokens."""
        return super().compute_ref_log_probs(model, for_trl(inputs))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss where the objective is DPO; else the mean policy-labelled preference loss of the pairs."""
        if self.model.training and self._total_train_tokens == 0:  # TRL's count does not survive a checkpoint
            self._total_train_tokens = self.state.num_input_tokens_seen
        policy = RecordedPolicy(self, model, inputs)
        with self._reference(inputs) as known:
            result = super().compute_loss(policy, known, return_outputs, num_items_in_batch)
        self.state.num_input_tokens_seen = self._total_train_tokens
        loss, outputs = result if return_outputs else (result, None)
        judged, reference = known["completion_mask"][:, 1:].bool(), None
        if self.ppl.ref_coef != 0:
            reference = torch.cat([known["ref_chosen_logps"], known["ref_rejected_logps"]])
        logprobs = policy.output.log_probs[:, -judged.shape[1] :]
        lookahead, divergences = self._lookahead(model, inputs, policy.output, judged)
        scores = self.ppl.scores(logprobs, lookahead, judged, reference)
        weights = inputs.get("pair_weights", torch.ones_like(scores[::2]))
        if not self.uses_trl_loss:
            loss = weighted_mean(self.ppl.losses(scores, self.beta), weights)
            if self.ppl.sft_coef:
                response = response_mask(inputs)
                loss = loss + self.ppl.sft_coef * repo_sft_loss(logprobs.chunk(2)[0], response.chunk(2)[0])
            if self.aux_loss_enabled:
                loss = loss + self.router_aux_loss_coef * policy.output.aux_loss
        if self.model.training:
            self._last_ids = inputs["input_ids"]
            stop_if_not_finite(self, "loss", loss, self._last_ids)
        with torch.no_grad():
            plain = self.ppl.scores(logprobs, None, judged, reference)
            self._log_pairs(scores, plain, divergences, weights)
        return (loss, outputs) if return_outputs else loss

    @contextlib.contextmanager
    def _reference(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Give TRL's loss its batch with the reference's log-probabilities in it: one pass serves both losses."""
        known, before = for_trl(inputs), self.precompute_ref_logps
        if self.ppl.ref_coef == 0:
            zeros = torch.zeros(len(known["input_ids"]) // 2, device=known["input_ids"].device)
            known |= {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros}
        elif not before:
            reference = self.ref_model if self.ref_model is not None else self.model
            chosen, rejected = self.compute_ref_log_probs(reference, inputs)
            known |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        self.precompute_ref_logps = True
        try:
            yield known
        finally:
            self.precompute_ref_logps = before

    def token_scores(self, model: Any, top_ids: Tensor | None, **kwargs: Any) -> Any:
        """Return log-probabilities, entropies and statistics of the labelled tokens, and log pi of others beside them.

        Args:
            model: the policy.
            top_ids: further tokens at each place, for the closed-form KL; None for none.
            kwargs: what TRL gives the model, `labels` among it.
        """
        own_head = self.installed.head.ours and not kwargs.get("output_router_logits")
        if top_ids is None:
            return model(**kwargs, fused_lm_head=True)
        if own_head:
            return model(**kwargs, other_ids=top_ids, fused_lm_head=True)
        return scores_of_logits(model, top_ids, **kwargs)

    def _lookahead(
        self, model: Any, inputs: Mapping[str, Any], output: Any, judged: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, " B"] | None, tuple[Tensor, Tensor] | None]:
        """The look-ahead of every response, and the divergences that it sums with their mask, for the log."""
        if not self.ppl.lookahead.active:
            return None, None
        if self.ppl.futures:
            futures = {n.removeprefix(FUTURE): v for n, v in inputs.items() if n.startswith(FUTURE)}
            if not futures:
                raise UserError("future=expected needs continuations of every response: give policy_labels")
            rollout = futures["completion_mask"][:, 1:].bool()
            names = ("input_ids", "attention_mask")
            targets = futures["input_ids"].masked_fill(futures["completion_mask"] == 0, -100)
            given = {name: futures[name] for name in names} | {"labels": targets, "use_cache": False}
            output = self.token_scores(model, self.top_ids(futures), **given)
            divergences = self.divergences(output, futures, rollout)
            lookahead = self.ppl.expected_lookahead(divergences, rollout, judged.sum(-1).float())
            return lookahead, (divergences, rollout)
        response = response_mask(inputs)
        divergences = self.divergences(output, inputs, response)
        return self.ppl.observed_lookahead(divergences, judged, response), (divergences, response)

    def divergences(self, output: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """d_l at every token of a batch that `token_scores` has scored."""
        width = mask.shape[1]
        needed = {"kl": "label_top_logprobs", "single_sample": "label_logprobs"}.get(self.ppl.lookahead.divergence)
        if self.ppl.lookahead.reads_label and needed not in batch:
            raise UserError(NO_LABEL.format(self.ppl.lookahead.divergence))
        labels = {name: batch[name][:, 1:] for name in TOKEN_LABELS if name in batch}
        top = output.other_log_probs[:, -width:] if self.ppl.label_tokens else None
        return self.ppl.divergences(output.log_probs[:, -width:], labels, top)

    def top_ids(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The label's most likely tokens at the places that are scored, where the objective reads them."""
        if not self.ppl.label_tokens or (self.ppl.futures and FUTURE + "input_ids" in batch):
            return None
        if "label_top_ids" not in batch:
            raise UserError(NO_LABEL.format("kl"))
        return batch["label_top_ids"][:, 1:]

    def _log_pairs(
        self, scores: Tensor, plain: Tensor, divergences: tuple[Tensor, Tensor] | None, weights: Tensor
    ) -> None:
        """Record the batch's metrics; TRL averages them until the next log."""
        chosen, rejected = scores.chunk(2)
        values = {
            "nll": self.ppl.losses(scores, self.beta, bias=1.0),
            "nll_no_lookahead": self.ppl.losses(plain, self.beta, bias=1.0),
            "accuracy": (chosen > rejected).float(),
            "margin": self.beta * (chosen - rejected),
        }
        weights = self.accelerator.gather_for_metrics(weights.to(scores))
        for name, value in values.items():
            value = self.accelerator.gather_for_metrics(value)
            if weights.sum() > 0:
                self._record(name, (value * weights).sum(), weights.sum())
        if divergences is not None:
            value, mask = divergences
            sums = torch.stack([value.masked_fill(~mask, 0.0).sum(-1), mask.sum(-1).to(value)], dim=-1)
            sums = sums.view(2, len(chosen), -1, 2).sum((0, 2))  # per pair, so that a gather can drop repeated pairs
            total, count = self.accelerator.gather_for_metrics(sums).sum(0)
            self._record("divergence", total, count.clamp(min=1))

    def _record(self, name: str, total: Tensor, count: Tensor) -> None:
        """Keep a batch's mean for TRL's training log; held-out pairs are averaged over all, not over batches."""
        if self.model.training:
            self._metrics["train"][f"preference/train_{name}"].append((total / count).item())
        else:
            sums = self._heldout.setdefault(f"preference/heldout_{name}", [0.0, 0.0])
            sums[0], sums[1] = sums[0] + total.item(), sums[1] + count.item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the held-out metrics, under the glossary's names."""
        if not self.model.training:
            logs |= {name: total / count for name, (total, count) in self._heldout.items()}
            self._heldout.clear()
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop before an update whose gradient is not finite: the weights, and the next checkpoint, stay usable."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        stop_at_bad_gradient(self, grad_norm, self._last_ids)
        return grad_norm


def without_rest(row: Mapping[str, Any], end: int) -> dict[str, list[int]]:
    """Return both responses without what a chat template writes after the end token: no policy has sampled that."""
    sides = {f"{side}_ids": row[f"{side}_ids"] for side in SIDES}
    return {name: ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids for name, ids in sides.items()}


def for_trl(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch without our tensors."""
    return {name: value for name, value in inputs.items() if name not in OUR_KEYS and not name.startswith(FUTURE)}


def response_mask(inputs: Mapping[str, Any]) -> Bool[Tensor, "B T"]:
    """Return the tokens of the whole response, judged or not, at the places that predict them."""
    return inputs.get("response_mask", inputs["completion_mask"])[:, 1:].bool()


def refuse_loss_settings(args: Any) -> None:
    """Refuse settings of TRL's loss that an objective with a loss of its own would ignore."""
    for field in fields(DPOConfig):
        if args is None or field.name not in LOSS_SETTINGS:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if getattr(args, field.name) != default:
            raise UserError(
                f"{field.name} is a variant of DPO's loss that this objective does not have: leave it, or use dpo"
            )


def weighted_mean(values: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over the pairs that hold a preference (weight 1); 0 when there is none."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def with_policy_labels(trainer_class: type) -> type:
    """Return a subclass of DPOTrainer that takes `ppl=` and `policy_labels=`."""
    return type(f"PolicyLabelled{trainer_class.__name__}", (PolicyLabelMixin, trainer_class), {})
