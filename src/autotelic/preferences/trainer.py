"""Policy-labelled preference learning on TRL's `DPOTrainer`.

    S(y; mu) = (1/T) sum_t [ log pi/pi_ref (y_t) - c / (T-t) sum_{l>t} gamma^(l-t) d_l ]
    L        = -log sigma(beta [S(y+; mu+) - lambda S(y-; mu-)]) + eta NLL(y+)

d_l is the divergence of the policy label mu from pi at token l: the closed-form KL (whole vocabulary, or mu's k most
likely tokens), one sample `log mu - log pi`, or `-log pi` (PPL-d, the step-weighted ablation). Without look-ahead,
summed and lambda = 1 it is DPO, exactly; `OBJECTIVES` names the settings that are DPO, CPL, RePO and RePO_det.

Reference: arXiv:2505.06273, Fig. 1, for the score; arXiv:2606.09124 and its code for the language form's averages.
Deviations: the reference policy and the window are arguments, since PPL has no published language form.

`with_policy_labels(DPOTrainer)` overrides `compute_loss` and `compute_ref_log_probs` and copies neither body; LoRA,
precomputed references, checkpoints and evaluation stay TRL's.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference

from autotelic import functional as F
from autotelic.errors import UserError, closest
from autotelic.functional.lookahead import LabelEntropy, lookahead_weights
from autotelic.functional.preference import Normalize, cpl_score, ppl_loss, ppl_score, repo_sft_loss
from autotelic.preferences.labels import NEVER, SIDES, PolicyLabels
from autotelic.runs.processes import stop_if_not_finite
from autotelic.trl.fast_passes import use_fast_passes
from autotelic.trl.seam import Base, stop_at_bad_gradient

Number = float | int
DIVERGENCES = ("none", "kl", "single_sample", "dirac")
LABEL_COLUMNS = tuple(
    f"{side}_{name}"
    for side in SIDES
    for name in ("segment_tokens", "label_logprobs", "label_top_ids", "label_top_logprobs")
)
UNUSED_SETTINGS = {"loss_type": ["sigmoid"], "label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False}


@dataclass(frozen=True)
class PPL:
    """Settings of the objective; the scale beta is DPOConfig's.

    Attributes:
        divergence: d_l; `none` has no look-ahead, `kl` needs a model per policy id, `single_sample` log mu of the
            tokens (they carry no gradient and only shift the margin), `dirac` nothing.
        kl_top_k: tokens of mu that the closed-form KL keeps apart; the others are merged, a lower bound of the KL.
        gamma: discount in (0, 1].
        horizon: largest lag in tokens, or None.
        start: first lag: 1, or 0 as in RePO's live window.
        average: divide each token's look-ahead by its number of terms.
        coef: c, the look-ahead's factor.
        label_entropy: `include` or `drop` the label's entropy in d_l. With lambda = 1 and equal labels it cancels;
            else it shifts the margin, and so changes training.
        future: `observed` looks beyond the judged segment along the recorded rollout, `in_segment` does not. Either is
            one rollout of a random label, a noisy guess of the expectation: see the table in `functional.lookahead`.
        normalize: `mean` divides the score by the number of judged tokens, `sum` does not.
        bias: lambda, on the rejected side.
        ref_coef: factor of the reference log-probabilities; 0 is CPL.
        sft_coef: eta, negative log-likelihood of the chosen response, its first token left out as in RePO's code.
    """

    divergence: str = "kl"
    kl_top_k: int = 64
    gamma: Number = 1.0
    horizon: int | None = None
    start: int = 1
    average: bool = True
    coef: Number = 1.0
    label_entropy: LabelEntropy = "include"
    future: Literal["observed", "in_segment"] = "observed"
    normalize: Normalize = "mean"
    bias: Number = 1.0
    ref_coef: Number = 1.0
    sft_coef: Number = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        allowed = {
            "divergence": DIVERGENCES,
            "label_entropy": ("include", "drop"),
            "future": ("observed", "in_segment"),
            "normalize": ("mean", "sum"),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"unknown {name} {value!r}{closest(str(value), values)}; there are {', '.join(values)}")
        if not 0 < self.bias <= 1:
            raise UserError(f"bias (lambda) is {self.bias}, but lies in (0, 1]: the weight of the rejected side")
        if self.coef < 0 or self.sft_coef < 0 or self.ref_coef < 0:
            raise UserError("coef, ref_coef and sft_coef must be 0 or more: a negative one rewards bad behaviour")
        if self.kl_top_k < 1:
            raise UserError(f"kl_top_k must be at least 1, got {self.kl_top_k}")
        lookahead_weights(torch.ones(1, 1, dtype=torch.bool), self.gamma, self.horizon, self.start)

    @property
    def looks_ahead(self) -> bool:
        """Whether the score has a look-ahead at all."""
        return self.divergence != "none" and self.coef > 0 and self.horizon != 0

    @property
    def needs_labels(self) -> bool:
        """Whether log mu or mu itself is read."""
        single = self.divergence == "single_sample" and self.label_entropy == "include"
        return self.looks_ahead and (single or self.divergence == "kl")

    def divergences(
        self, logprobs: Float[Tensor, "B T"], labels: Mapping[str, Tensor], top_logprobs: Tensor | None = None
    ) -> Float[Tensor, "B T"]:
        """d_l at every token.

        Args:
            logprobs: log pi of the tokens.
            labels: `label_logprobs` (B, T) for one sample, `label_top_logprobs` (B, T, K) for the KL.
            top_logprobs: log pi of the label's K most likely tokens.
        """
        if self.divergence == "dirac" or not self.needs_labels:
            return F.dirac_divergence(logprobs)
        if self.divergence == "single_sample":
            return F.single_sample_divergence(labels["label_logprobs"].to(logprobs), logprobs, self.label_entropy)
        assert top_logprobs is not None  # the caller computes it for kl
        label = labels["label_top_logprobs"].to(top_logprobs)
        kl = F.top_k_kl(label, top_logprobs)
        if self.label_entropy == "include":
            return kl
        rest = (1 - label.exp().sum(-1)).clamp(min=0)
        return kl - (label.exp() * label).sum(-1) - torch.special.xlogy(rest, rest)

    def scores(
        self,
        logprobs: Float[Tensor, "B T"],
        divergences: Float[Tensor, "B T"] | None,
        segment: Bool[Tensor, "B T"],
        response: Bool[Tensor, "B T"],
        ref_sum: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """S(y; mu) of every response.

        Args:
            logprobs: log pi of the tokens.
            divergences: d_l, or None for a score without look-ahead.
            segment: the tokens that were judged.
            response: these and the rollout after them.
            ref_sum: log pi_ref summed over the segment.
        """
        if divergences is None or not self.looks_ahead:
            score = cpl_score(logprobs, segment, normalize=self.normalize)
        else:
            futures = response if self.future == "observed" else segment
            window = (self.gamma, self.horizon, self.start, "mean" if self.average else "regret", segment)
            weights = lookahead_weights(futures, *window, holes="skip", dtype=logprobs.dtype)
            score = ppl_score(logprobs, divergences, weights, segment, coef=self.coef, normalize=self.normalize)
        if ref_sum is None or self.ref_coef == 0:
            return score
        per = segment.sum(-1).clamp(min=1) if self.normalize == "mean" else 1
        return score - self.ref_coef * ref_sum / per

    def losses(self, scores: Float[Tensor, " B"], beta: Number, bias: Number | None = None) -> Float[Tensor, " N"]:
        """-log sigma(beta [S+ - lambda S-]) per pair; the first half of the batch are the chosen responses."""
        chosen, rejected = scores.chunk(2)
        return ppl_loss(rejected, chosen, torch.ones_like(chosen), self.bias if bias is None else bias, alpha=beta)


OBJECTIVES: dict[str, PPL] = {
    "ppl": PPL(),
    # The ablation that stands beside every result: the same window, every label certain of its own token.
    "ppl_d": PPL(divergence="dirac"),
    "dpo": PPL(divergence="none", normalize="sum"),
    # jhejna/cpl: lambda .5, no reference (its alpha .1 is beta's default).
    "cpl": PPL(divergence="none", normalize="sum", ref_coef=0.0, bias=0.5),
    # arXiv:2606.09124 and its code: alpha .1 (beta), lambda 1, SFT coefficient 1, window from t.
    "repo": PPL(divergence="single_sample", start=0, sft_coef=1.0),
    "repo_det": PPL(divergence="dirac", start=0, sft_coef=1.0),
}


def objective(name: str, **settings: Any) -> PPL:
    """Return an objective by name, with settings that differ from it."""
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{closest(name, OBJECTIVES)}; there are {', '.join(OBJECTIVES)}")
    return replace(OBJECTIVES[name], **settings)


@dataclass
class PolicyLabelCollator(DataCollatorForPreference):
    """TRL's collator, and beside its tensors: which tokens were judged, and the policy label at every token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with `segment_mask` and the `label_*` tensors, aligned with `input_ids`."""
        batch = super().torch_call(examples)
        rows = [(example, side) for side in SIDES for example in examples]
        segment = torch.zeros_like(batch["completion_mask"])
        labels = self._empty_labels(examples[0], batch)
        for place, (example, side) in enumerate(rows):
            first, width = len(example["prompt_ids"]), segment.shape[1]
            length = len(example[f"{side}_ids"])
            judged = example.get(f"{side}_segment_tokens") or length
            segment[place, first : first + min(judged, length)] = 1
            for name, tensor in labels.items():
                values = torch.tensor(example[f"{side}_{name}"], dtype=tensor.dtype)
                if len(values) != length:
                    raise UserError(
                        f"row {example.get('row', '?')}, {side}: {length} tokens but {len(values)} values of {name}"
                    )
                tensor[place, first : first + length] = values[: max(width - first, 0)]
        return batch | {"segment_mask": segment * batch["completion_mask"]} | labels

    @staticmethod
    def _empty_labels(example: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        shape = batch["input_ids"].shape
        labels: dict[str, Tensor] = {}
        if example.get("chosen_label_logprobs") is not None:
            labels["label_logprobs"] = torch.zeros(shape)
        if example.get("chosen_label_top_ids") is not None:
            k = len(example["chosen_label_top_ids"][0])
            labels["label_top_ids"] = torch.zeros(*shape, k, dtype=torch.long)
            labels["label_top_logprobs"] = torch.full((*shape, k), NEVER)
        return labels


OUR_KEYS = ("segment_mask", "label_logprobs", "label_top_ids", "label_top_logprobs", "pair_weights")


class PolicyLabelMixin(Base):
    """Overrides the loss of a `DPOTrainer`.

    Keyword Args:
        ppl: the objective.
        fused_head: auto, on or off; see `autotelic.trl.fast_passes`. The closed-form KL holds logits without ours.
        shared_prefix: auto, on or off; see `autotelic.trl.fast_passes`. The two sides of a pair share their prompt.
        policy_labels: what gives each side its label; None where the data set has the `label_*` columns already, or
            the objective needs none.
    """

    def __init__(
        self,
        *args: Any,
        ppl: PPL | None = None,
        policy_labels: PolicyLabels | None = None,
        fused_head: str = "auto",
        shared_prefix: str = "auto",
        **kwargs: Any,
    ):
        self.ppl = ppl if ppl is not None else PPL()
        self._heldout: dict[str, list[float]] = {}
        settings = kwargs.get("args")
        for name, value in UNUSED_SETTINGS.items():
            if settings is not None and getattr(settings, name, value) != value:
                raise UserError(
                    f"{name} is a variant of DPO's loss that policy-labelled preferences do not have: leave it"
                )
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is not None and settings is not None:
            kwargs["data_collator"] = self._collator(kwargs["processing_class"], settings)
        super().__init__(*args, **kwargs)
        if importlib.util.find_spec("trl.kernels") is None:  # TRL's DPO has a head that returns log-probabilities since
            raise UserError("policy-labelled preferences need TRL >= 1.16: pip install 'trl>=1.16'")
        self.fused_head_refusal = use_fast_passes(self, fused_head, shared_prefix).head_refusal
        if policy_labels is not None and self.ppl.needs_labels:
            self.train_dataset = policy_labels.attach(self.train_dataset)
            if self.eval_dataset is not None:
                self.eval_dataset = policy_labels.attach(self.eval_dataset)

    @staticmethod
    def _collator(tokenizer: Any, settings: Any) -> Any:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return PolicyLabelCollator(
            pad_token_id=tokenizer.pad_token_id,
            max_length=settings.max_length,
            truncation_mode=settings.truncation_mode,
            pad_to_multiple_of=settings.pad_to_multiple_of if isinstance(settings.pad_to_multiple_of, int) else None,
        )

    def _set_signature_columns_if_needed(self) -> None:
        """Keep our columns beside TRL's."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *LABEL_COLUMNS, "row"]))

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The reference's log-probabilities, summed over the judged tokens."""
        own = {name: value for name, value in inputs.items() if name not in OUR_KEYS}
        if "segment_mask" in inputs:
            own["completion_mask"] = inputs["segment_mask"]
        return super().compute_ref_log_probs(model, own)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the pairs of the policy-labelled preference loss."""
        response = inputs["completion_mask"][:, 1:].bool()
        segment = inputs["segment_mask"][:, 1:].bool() if "segment_mask" in inputs else response
        labels = {name: inputs[name][:, 1:] for name in OUR_KEYS if name.startswith("label") and name in inputs}
        logprobs, entropy, top_logprobs = self._token_logprobs(model, inputs, labels)
        divergences = (
            self.ppl.divergences(logprobs, self._checked(labels), top_logprobs) if self.ppl.looks_ahead else None
        )
        reference = self._reference(inputs)
        scores = self.ppl.scores(logprobs, divergences, segment, response, reference)
        weights = inputs.get("pair_weights", torch.ones_like(scores[::2]))
        loss = weighted_mean(self.ppl.losses(scores, self.beta), weights)
        if self.ppl.sft_coef:
            loss = loss + self.ppl.sft_coef * repo_sft_loss(logprobs.chunk(2)[0], response.chunk(2)[0])
        if self.model.training:
            self._last_ids = inputs["input_ids"]
            stop_if_not_finite(self, "loss", loss, self._last_ids)
        with torch.no_grad():
            plain = self.ppl.scores(logprobs, None, segment, response, reference)
            self._log_pairs(scores, plain, divergences, response, entropy, weights)
        return (loss, {"scores": scores}) if return_outputs else loss

    def _checked(self, labels: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        needed = {"kl": "label_top_logprobs", "single_sample": "label_logprobs"}.get(self.ppl.divergence)
        if self.ppl.needs_labels and needed not in labels:
            raise UserError(
                f"divergence {self.ppl.divergence!r} needs a policy label for every response: give policy_labels"
            )
        return labels

    def _token_logprobs(
        self, model: Any, inputs: Mapping[str, Any], labels: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log pi and entropy at every token, and log pi of the label's most likely tokens for the closed-form KL."""
        arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        targets = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        width = targets.shape[1] - 1
        if self.ppl.divergence != "kl" or not self.ppl.looks_ahead:
            output = model(**arguments, labels=targets, fused_lm_head=True)  # TRL's: no logits are kept
            return output.log_probs[:, -width:], output.entropy[:, -width:].detach(), None
        top_ids = self._checked(labels)["label_top_ids"]
        if self.fused_head_refusal is None:
            output = model(**arguments, labels=targets, other_ids=top_ids, fused_lm_head=True)
            return output.log_probs[:, -width:], output.entropy[:, -width:].detach(), output.other_log_probs[:, -width:]
        response = targets[:, 1:] != -100
        z = model(**arguments).logits[:, -width - 1 : -1][response].float()  # (response tokens, V): no padding is kept
        log_z = z.logsumexp(-1, keepdim=True)
        taken = z.gather(-1, targets[:, 1:][response].unsqueeze(-1)) - log_z
        top = z.gather(-1, top_ids[response]) - log_z
        with torch.no_grad():
            entropy = F.token_entropy(z)
        return scattered(taken.squeeze(-1), response), scattered(entropy, response), scattered(top, response)

    def _reference(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if self.ppl.ref_coef == 0:
            return None
        if self.precompute_ref_logps:
            return torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        return torch.cat(
            self.compute_ref_log_probs(self.ref_model if self.ref_model is not None else self.model, inputs)
        )

    def _log_pairs(
        self,
        scores: Tensor,
        plain: Tensor,
        divergences: Tensor | None,
        response: Tensor,
        entropy: Tensor,
        weights: Tensor,
    ) -> None:
        """Record the batch's metrics; TRL averages them until the next log."""
        chosen, rejected = scores.chunk(2)
        values = {
            "nll": self.ppl.losses(scores, self.beta, bias=1.0),
            "nll_no_lookahead": self.ppl.losses(plain, self.beta, bias=1.0),
            "accuracy": (chosen > rejected).float(),
            "margin": self.beta * (chosen - rejected),
        }
        mode = "train" if self.model.training else "eval"
        weights = self.accelerator.gather_for_metrics(weights.to(scores))
        for name, value in values.items():
            value = self.accelerator.gather_for_metrics(value)
            if weights.sum() > 0:
                self._record(mode, name, (value * weights).sum(), weights.sum())
        tokens = {"entropy": entropy} | ({} if divergences is None else {"divergence": divergences})
        for name, value in tokens.items():
            sums = torch.stack([value.masked_fill(~response, 0.0).sum(-1), response.sum(-1).to(value)], dim=-1)
            total, count = self.accelerator.gather_for_metrics(torch.stack(sums.chunk(2)).sum(0)).sum(0)
            self._record(mode, name, total, count.clamp(min=1))

    def _record(self, mode: str, name: str, total: Tensor, count: Tensor) -> None:
        """Keep a batch's mean for TRL's training log; held-out pairs are averaged over all, not over batches."""
        if name == "entropy":
            self._metrics[mode][name].append((total / count).item())
        elif mode == "train":
            self._metrics[mode][f"preference/train_{name}"].append((total / count).item())
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


def scattered(values: Float[Tensor, "M ..."], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T ..."]:
    """Put one value (or row) per true place of the mask back in its place; 0 elsewhere."""
    return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)


def weighted_mean(values: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over the pairs that hold a preference (weight 1); 0 when there is none."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def with_policy_labels(trainer_class: type) -> type:
    """Return a subclass of DPOTrainer that takes `ppl=` and `policy_labels=`."""
    return type(f"PolicyLabelled{trainer_class.__name__}", (PolicyLabelMixin, trainer_class), {})
