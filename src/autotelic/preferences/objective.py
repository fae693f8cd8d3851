"""The objective of policy-labelled preferences on language models: its settings, the score, the loss.

    S(y; mu) = sum_t [ log pi/pi_ref (y_t) - c sum_{l>t} gamma^(l-t) d_l ]         (divided by T with `normalize: mean`)
    L        = -log sigma(beta [S(y+; mu+) - lambda S(y-; mu-)]) + eta NLL(y+)

d_l is the divergence of the policy label mu from pi at token l. Which tokens follow token t is the look-ahead's
`future`; `autotelic.functional.lookahead` has the tables. Without look-ahead, summed and lambda = 1 it is DPO.

Given a prompt and a prefix, the expected look-ahead of a language model is a divergence of whole continuations: with
gamma = 1 and the chain rule, E_{y_>t ~ mu} sum_{l>t} KL(mu || pi)(y_<l) is
KL(mu(y_>t | x, y_<=t) || pi(y_>t | x, y_<=t)).
`future: expected` estimates it from continuations that mu writes anew. `observed` and `in_segment` read the recorded
response in their place: the very tokens that the judge saw, one draw, so both are biased wherever mu samples.

Reference: arXiv:2505.06273, Fig. 1, for the score; arXiv:2606.09124 and its code for RePO.
Deviations: the reference policy, the window and the normalisation are settings; PPL has no published language form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError, closest, one_of
from autotelic.functional.lookahead import Lookahead, Number, lookahead_weights
from autotelic.functional.preference import Normalize, cpl_score, ppl_loss
from autotelic.runs.method_settings import Spec, read, typed


@dataclass(frozen=True)
class PPL:
    """Settings of the objective; the scale beta is DPOConfig's.

    Attributes:
        lookahead: whose future, which divergence, which window.
        rollouts: K, continuations of each side that `future: expected` samples from its policy.
        kl_top_k: tokens of mu that the closed-form KL keeps apart; the others are merged, a lower bound of the KL.
        normalize: `mean` divides the score by the number of judged tokens, `sum` does not.
        bias: lambda, on the rejected side.
        ref_coef: factor of the reference log-probabilities; 0 is CPL.
        sft_coef: eta, negative log-likelihood of the chosen response, its first token left out as in RePO's code.
    """

    lookahead: Lookahead = field(default_factory=lambda: Lookahead(future="observed"))
    rollouts: int = 4
    kl_top_k: int = 64
    normalize: Normalize = "mean"
    bias: Number = 1.0
    ref_coef: Number = 1.0
    sft_coef: Number = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        ahead = self.lookahead
        if not 0 < self.bias <= 1:
            raise UserError(f"bias (lambda) is {self.bias}, but lies in (0, 1]: the weight of the rejected side")
        if self.sft_coef < 0 or self.ref_coef < 0:
            raise UserError("ref_coef and sft_coef must be 0 or more: a negative one rewards bad behaviour")
        if self.kl_top_k < 1 or self.rollouts < 1:
            raise UserError(f"kl_top_k and rollouts must be at least 1, got {self.kl_top_k} and {self.rollouts}")
        if ahead.future == "exact":
            raise UserError(
                "the futures of a language model cannot be enumerated: use future=expected in place of exact"
            )
        if ahead.weights == "tail" and ahead.gamma != 1:
            raise UserError("weights=tail would discount the reference's tokens too, which are one sum: use gamma=1")

    @property
    def is_dpo(self) -> bool:
        """Whether the loss is DPO's."""
        plain = self.normalize == "sum" and self.bias == 1 and self.ref_coef == 1 and self.sft_coef == 0
        return plain and not self.lookahead.active

    @property
    def label_tokens(self) -> int:
        """Tokens of mu that are read at every place: `kl_top_k` for the closed-form KL, else none."""
        return self.kl_top_k if self.lookahead.active and self.lookahead.divergence == "kl" else 0

    @property
    def futures(self) -> int:
        """Continuations to sample for each side."""
        return self.rollouts if self.lookahead.active and self.lookahead.future == "expected" else 0

    def divergences(
        self, logprobs: Float[Tensor, "B T"], labels: Mapping[str, Tensor], top_logprobs: Tensor | None = None
    ) -> Float[Tensor, "B T"]:
        """d_l at every token.

        Args:
            logprobs: log pi of the tokens.
            labels: `label_logprobs` (B, T) for one sample, `label_top_logprobs` (B, T, K) for the KL.
            top_logprobs: log pi of the label's K most likely tokens.
        """
        if self.lookahead.divergence == "dirac" or not self.lookahead.reads_label:
            return F.dirac_divergence(logprobs)
        if self.lookahead.divergence == "single_sample":
            return F.single_sample_divergence(labels["label_logprobs"].to(logprobs), logprobs)
        assert top_logprobs is not None  # the caller computes it for kl
        label = labels["label_top_logprobs"].to(top_logprobs)
        kl = F.top_k_kl(label, top_logprobs)
        if self.lookahead.label_entropy == "include":
            return kl
        rest = (1 - label.exp().sum(-1)).clamp(min=0)
        return kl - (label.exp() * label).sum(-1) - torch.special.xlogy(rest, rest)

    def observed_lookahead(
        self, divergences: Float[Tensor, "B T"], segment: Bool[Tensor, "B T"], response: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"]:
        """The look-aheads of all judged tokens, summed, along the recorded response.

        Args:
            divergences: d_l; never read outside the response.
            segment: the tokens that were judged.
            response: these and the rollout after them.
        """
        ahead = self.lookahead
        futures = response if ahead.future == "observed" else segment
        window = (ahead.gamma, ahead.horizon, ahead.start, ahead.weights, segment)
        weights = lookahead_weights(futures, *window, holes="skip", dtype=divergences.dtype)
        return (weights * divergences.masked_fill(weights == 0, 0.0)).sum(-1)

    def expected_lookahead(
        self, divergences: Float[Tensor, "R T"], rollout: Bool[Tensor, "R T"], judged: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The same from K continuations of each response, R = B K in the order of the responses.

        `regret`: each continues a judged prefix drawn uniformly, so n times their mean has the expectation of the sum
        over the n prefixes. `tail`: each continues the whole segment, and the mean is the look-ahead.

        Args:
            divergences: d_l; never read outside the continuation.
            rollout: the tokens of the continuation.
            judged: n, judged tokens of each response.
        """
        ahead, lag = self.lookahead, rollout.long().cumsum(-1)
        weights = (ahead.gamma**lag).to(divergences) * rollout
        if ahead.horizon is not None:
            weights = weights * (lag <= ahead.horizon)
        each = (weights * divergences.masked_fill(weights == 0, 0.0)).sum(-1)
        mean = each.view(len(judged), -1).mean(-1)
        return mean * judged.to(mean) if ahead.weights == "regret" else mean

    def scores(
        self,
        logprobs: Float[Tensor, "B T"],
        lookahead: Float[Tensor, " B"] | None,
        segment: Bool[Tensor, "B T"],
        ref_sum: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """S(y; mu) of every response.

        Args:
            logprobs: log pi of the tokens.
            lookahead: from `observed_lookahead` or `expected_lookahead`; None for the score without it.
            segment: the tokens that were judged.
            ref_sum: log pi_ref summed over them.
        """
        score = cpl_score(logprobs, segment)
        if lookahead is not None:
            score = score - self.lookahead.coef * lookahead
        if ref_sum is not None and self.ref_coef != 0:
            score = score - self.ref_coef * ref_sum
        return score / segment.sum(-1).clamp(min=1) if self.normalize == "mean" else score

    def losses(self, scores: Float[Tensor, " B"], beta: Number, bias: Number | None = None) -> Float[Tensor, " N"]:
        """-log sigma(beta [S+ - lambda S-]) per pair; the first half of the batch are the chosen responses."""
        chosen, rejected = scores.chunk(2)
        return ppl_loss(rejected, chosen, torch.ones_like(chosen), self.bias if bias is None else bias, alpha=beta)


NONE, REPO = Lookahead(future="none"), {"future": "observed", "start": 0, "weights": "mean"}
OBJECTIVES: dict[str, PPL] = {
    "ppl": PPL(),
    # The ablation that stands beside every result: the same window, every label certain of its own token.
    "ppl_d": PPL(Lookahead(future="observed", divergence="dirac")),
    "dpo": PPL(NONE, normalize="sum"),
    # jhejna/cpl: lambda .5, no reference (its alpha .1 is beta's default).
    "cpl": PPL(NONE, normalize="sum", ref_coef=0.0, bias=0.5),
    # arXiv:2606.09124 and its code: alpha .1 (beta), lambda 1, SFT coefficient 1, averages from t.
    "repo": PPL(Lookahead(divergence="single_sample", **REPO), sft_coef=1.0),
    "repo_det": PPL(Lookahead(divergence="dirac", **REPO), sft_coef=1.0),
}


def objective(name: str, **settings: Any) -> PPL:
    """Return an objective by name, with settings of `PPL` and `Lookahead` that differ from it."""
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{one_of(name, OBJECTIVES)}")
    named, window = OBJECTIVES[name], [f.name for f in fields(Lookahead)]
    known = [*window, *(f.name for f in fields(PPL) if f.name != "lookahead")]
    for key in settings:
        if key not in known:
            raise UserError(f"objective {name} has no setting {key!r}{closest(key, known)}; it has {', '.join(known)}")
    ahead = {key: value for key, value in settings.items() if key in window}
    own = {key: value for key, value in settings.items() if key not in window}
    ahead, own = typed("objective", name, ahead, Lookahead), typed("objective", name, own, PPL)
    return replace(named, lookahead=replace(named.lookahead, **ahead), **own)


def read_objective(spec: Spec) -> PPL:
    """Return the objective that `name,key=value` or `{name: ..., key: value}` stands for.

    Raises:
        UserError: an unknown name or setting, or a value that cannot be used.
    """
    name, settings = read(spec, "objective")
    return objective(name, **settings)
