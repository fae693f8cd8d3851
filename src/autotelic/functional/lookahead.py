"""The look-ahead term of policy-labelled preference learning (PPL): what a behaviour policy costs after each step.

    Dbar(pi || pi*; s_t, a_t) = E_{tau ~ P^pi(s_t, a_t)} sum_{l >= 1} gamma^l KL(pi(.|s_{t+l}) || pi*(.|s_{t+l}))

`pi` is the *policy label* of the segment. An estimator is a choice of futures, of a divergence per future step, and
of a window over those steps; `Lookahead` names the choice, the functions below compute it.

==============  =========================================  ======================================================
futures         needs                                      biased when
==============  =========================================  ======================================================
``none``        nothing (CPL)                              preferences follow regret and the label is not pi*
``exact``       the transition probabilities               never
``expected``    the behaviour: a regression on its data    with little data or few rollouts: the loss is not linear in
                (control), fresh rollouts (language)       the look-ahead; the bias falls as they grow
``observed``    the rollout beyond the segment's end       dynamics or the label's actions are random: the loss needs
                                                           the expectation, and one rollout is a noisy guess of it
``in_segment``  the segment alone                          as ``observed``, and futures beyond the segment count 0
==============  =========================================  ======================================================

==================  ===============================================  =============================================
divergence          needs                                            biased when
==================  ===============================================  =============================================
``kl``              the label's parameters or probabilities          never (closed form)
``single_sample``   log-probability of the taken action              unbiased, of high variance; log mu has no gradient
``dirac``           the taken action alone (PPL-d)                   the label is not deterministic
==================  ===============================================  =============================================

==========  ==========================================================  ==============================================
weights     of the divergence at step l, n steps in the segment         for a judge who
==========  ==========================================================  ==============================================
``regret``  sum_{t<l} gamma^(l-t), t over the segment                   sums the regret of every step (the paper)
``mean``    the same with every step's sum divided by its terms         nobody: lower variance, no longer the regret
``tail``    gamma^l after the segment, 0 inside it (t = 0 begins it)    counts the future once, from the segment's end
==========  ==========================================================  ==============================================

Reference: Policy-labeled Preference Learning, arXiv:2505.06273, Fig. 1 (the score).
Deviations: gamma and the window's length are not given in the paper; they are arguments here. `mean` and `tail` are
ours: the paper's score sums over every step of the segment (`regret`).
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from autotelic.errors import UserError, one_of

Number = float | int
Future = Literal["none", "exact", "expected", "observed", "in_segment"]
Weights = Literal["regret", "mean", "tail"]
Divergence = Literal["kl", "single_sample", "dirac"]
LabelEntropy = Literal["include", "drop"]
Holes = Literal["cut", "skip"]


CHOICES = {"future": Future, "divergence": Divergence, "weights": Weights, "label_entropy": LabelEntropy}


class BiasedLookaheadWarning(UserWarning):
    """One observed future stands for the expectation over futures: the fit converges to the wrong policy."""


@dataclass(frozen=True)
class Lookahead:
    """One look-ahead estimator; the tables in the module's docstring say what each part needs and when it is biased.

    Attributes:
        future: whose future steps enter the sum.
        divergence: what one future step contributes.
        gamma: discount in (0, 1].
        horizon: largest lag, in steps; None is no limit, 0 is CPL.
        start: first lag: 1 as in the score, 0 as in RePO's live window.
        weights: how often a later step counts: `regret`, `mean` or `tail`; see the module's docstring.
        coef: multiplier of the look-ahead, c_L in the notes.
        label_entropy: `include` keeps the label's entropy in the divergence: KL(mu || pi) = -H(mu) - E_mu log pi.
            `drop` keeps the cross-entropy alone. Both have the same gradient per score, but the entropy shifts the
            margin wherever labels differ or lambda != 1, so it changes training.
    """

    future: Future = "in_segment"
    divergence: Divergence = "kl"
    gamma: Number = 1.0
    horizon: int | None = None
    start: int = 1
    weights: Weights = "regret"
    coef: Number = 1.0
    label_entropy: LabelEntropy = "include"

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for name, kind in CHOICES.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise UserError(f"unknown {name} {value!r}{one_of(str(value), allowed)}")
        _check_window(self.gamma, self.horizon, self.start)
        if self.coef < 0:
            raise UserError(f"coef is {self.coef}: a negative look-ahead rewards bad behaviour. Use 0 (CPL) or more.")
        if self.future == "exact" and (self.divergence != "kl" or self.start != 1 or self.weights != "regret"):
            raise UserError(
                "the exact look-ahead is a sum of KL from t + 1: use divergence='kl', start=1, weights='regret'."
            )
        if self.future == "expected" and (self.divergence == "single_sample" or self.weights == "mean"):
            raise UserError(
                "future='expected' needs divergence 'kl' or 'dirac' and weights 'regret' or 'tail': a mean of windows "
                "is no regret, and one sample of a divergence is no expectation."
            )
        if self.weights == "tail" and (self.start != 1 or self.future == "in_segment"):
            raise UserError(
                "weights='tail' counts the steps after the segment alone: use start=1, future='observed' or 'expected'."
            )

    @property
    def active(self) -> bool:
        """Whether the score has a look-ahead at all."""
        return self.future != "none" and self.coef > 0 and self.horizon != 0

    @property
    def reads_label(self) -> bool:
        """Whether the divergence reads mu: the actions taken suffice for `dirac`, and without the label's entropy."""
        single = self.divergence == "single_sample" and self.label_entropy == "include"
        return self.active and (single or self.divergence == "kl")

    def warn_if_biased(self, stochastic: bool) -> None:
        """Warn when one observed future stands for an expectation.

        Args:
            stochastic: whether the dynamics or the label's actions are random; with either, the same action may be
                followed by different futures. Sampled language models and Gaussian policies are.
        """
        if stochastic and self.future in ("observed", "in_segment") and self.active:
            warnings.warn(
                f"the look-ahead {self.future!r} is biased where dynamics or the label's actions are random, and more "
                "data does not help: the logistic loss needs the expectation over futures. Use future='expected', or "
                "'exact' where transitions are known.",
                BiasedLookaheadWarning,
                stacklevel=2,
            )


def _check_window(gamma: Number, horizon: int | None, start: int) -> None:
    if not 0 < gamma <= 1:
        raise UserError(f"gamma is {gamma}, but a discount lies in (0, 1]. Use 1 for no discount.")
    if horizon is not None and horizon < 0:
        raise UserError(f"horizon is {horizon}, but it counts future steps. Use None for no limit, 0 for none.")
    if start not in (0, 1):
        raise UserError(f"start is {start}: the window begins at the step itself (0) or at the next one (1).")


def lookahead_weights(
    mask: Bool[Tensor, "N S"],
    gamma: Number = 1.0,
    horizon: int | None = None,
    start: int = 1,
    weights: Weights = "regret",
    score_mask: Bool[Tensor, "N S"] | None = None,
    episode_end: Bool[Tensor, "N S"] | None = None,
    holes: Holes = "cut",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "N S"]:
    """How often, discounted, the divergence at each step enters the segment's score.

        regret  w_l = sum_{t: start <= l - t <= L} gamma^(l - t), t over the scored steps
        mean    the same, each t's term divided by m_t, the number of steps in its window
        tail    w_l = gamma^(l - t_0) for the L steps after the last scored one, t_0 the first scored step

    so that `(w * d).sum(-1)` is the sum of all look-aheads of a segment. It depends on the mask only: cache it.

    Args:
        mask: true on real steps.
        gamma: discount in (0, 1].
        horizon: largest lag L, or None.
        start: first lag, 0 or 1.
        weights: `regret`, `mean` or `tail`.
        score_mask: steps whose look-ahead counts: the segment, where `mask` spans the rollout beyond; default `mask`.
        episode_end: true on the last step of an episode: no window crosses it.
        holes: `cut` ends a window at a masked step; `skip` closes interior gaps (tool output between a model's tokens).
        dtype: of the result.
    """
    _check_window(gamma, horizon, start)
    runs, order = _runs(mask, episode_end, holes)
    scored = _take(mask if score_mask is None else mask & score_mask, order)
    if weights == "tail":
        return _put_back(_tail_weights(runs, scored, gamma, horizon).to(dtype), order)
    lags, share = _lags(runs, horizon, start), scored.to(dtype)
    if weights == "mean":
        share = share / _window_counts(runs, lags, dtype).clamp(min=1)
    total = torch.zeros_like(share)
    for lag in lags:
        width = runs.shape[1] - lag
        total[:, lag:] += gamma**lag * share[:, :width] * _same_run(runs, lag)
    return _put_back(total, order)


def _tail_weights(runs: Tensor, scored: Tensor, gamma: Number, horizon: int | None) -> Tensor:
    column = torch.arange(runs.shape[1], device=runs.device)
    first = scored.to(torch.uint8).argmax(-1, keepdim=True)
    last = torch.where(scored, column, -1).amax(-1, keepdim=True)
    after = (column > last) & (last >= 0) & (runs == runs.gather(-1, last.clamp(min=0)))
    if horizon is not None:
        after &= column <= last + horizon
    return torch.where(after, torch.as_tensor(float(gamma), dtype=torch.float64) ** (column - first), 0.0)


def lookahead_sum(
    divergences: Float[Tensor, "N S"],
    mask: Bool[Tensor, "N S"],
    gamma: Number = 1.0,
    horizon: int | None = None,
    start: int = 1,
    weights: Literal["regret", "mean"] = "regret",
    episode_end: Bool[Tensor, "N S"] | None = None,
    holes: Holes = "cut",
) -> Float[Tensor, "N S"]:
    """The look-ahead of every step: W_t = sum_{l=start..L} gamma^l d_{t+l} [/ m_t]; 0 where the window is empty.

    The arguments are those of `lookahead_weights` (`mean` divides by m_t); values of `divergences` outside the mask are
    never read.
    """
    _check_window(gamma, horizon, start)
    runs, order = _runs(mask, episode_end, holes)
    values = _take(divergences.masked_fill(~mask, 0.0), order)
    lags = _lags(runs, horizon, start)
    total = torch.zeros_like(values)
    for lag in lags:
        width = runs.shape[1] - lag
        term = gamma**lag * values[:, lag:] * _same_run(runs, lag)
        total = total + torch.nn.functional.pad(term, (0, runs.shape[1] - width))
    if weights == "mean":
        total = total / _window_counts(runs, lags, values.dtype).clamp(min=1)
    return _put_back(total, order)


def _runs(mask: Tensor, episode_end: Tensor | None, holes: Holes) -> tuple[Tensor, Tensor | None]:
    """Number the stretches that a window may not leave (-1 where masked), and the order that closes interior gaps."""
    breaks = (~mask).long() if holes == "cut" else torch.zeros_like(mask, dtype=torch.long)
    if episode_end is not None:
        breaks = breaks + torch.nn.functional.pad(episode_end, (1, 0))[:, :-1].long()
    runs = breaks.cumsum(-1).masked_fill(~mask, -1)
    if holes == "cut":
        return runs, None
    order = torch.argsort((~mask).long(), dim=-1, stable=True)
    return runs.gather(-1, order), order


def _take(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values.gather(-1, order)


def _put_back(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values.gather(-1, order.argsort(-1))


def _lags(runs: Tensor, horizon: int | None, start: int) -> range:
    if horizon == 0:
        return range(0)
    longest = runs.shape[1] - 1
    return range(start, (longest if horizon is None else min(horizon, longest)) + 1)


def _same_run(runs: Tensor, lag: int) -> Tensor:
    early, late = runs[:, : runs.shape[1] - lag], runs[:, lag:]
    return (early == late) & (early >= 0)


def _window_counts(runs: Tensor, lags: range, dtype: torch.dtype) -> Tensor:
    counts = torch.zeros(runs.shape, dtype=dtype, device=runs.device)
    for lag in lags:
        counts[:, : runs.shape[1] - lag] += _same_run(runs, lag)
    return counts


def exact_lookahead(
    transitions: Float[Tensor, "X A X"],
    policy_label: Float[Tensor, "X A"],
    logprobs: Float[Tensor, "X A"],
    gamma: Number,
    label_entropy: LabelEntropy = "include",
) -> Float[Tensor, "X A"]:
    """Dbar(mu || pi; s, a) on a finite MDP: the expectation, with no sampling error.

        Dbar = gamma P (I - gamma P_mu)^-1 k,   k(s) = KL(mu(.|s) || pi(.|s))

    Needs the transition probabilities, and is unbiased under any dynamics.

    Args:
        transitions: P(s' | s, a); a row may sum to less than one, the rest ends the episode.
        policy_label: mu(a | s).
        logprobs: log pi(a | s), of the policy being fitted.
        gamma: discount in (0, 1]; 1 only where episodes end.
        label_entropy: see `Lookahead`.
    """
    per_state = categorical_kl(policy_label, logprobs, label_entropy)
    under_label = torch.einsum("xa,xay->xy", policy_label, transitions)
    identity = torch.eye(len(policy_label), dtype=transitions.dtype, device=transitions.device)
    to_go = torch.linalg.solve(identity - gamma * under_label, per_state)
    return gamma * transitions @ to_go


def categorical_kl(
    label_probs: Float[Tensor, "*batch V"], logprobs: Float[Tensor, "*batch V"], label_entropy: LabelEntropy = "include"
) -> Float[Tensor, "*batch"]:
    """KL(mu || pi) = sum_v mu_v (log mu_v - log pi_v), in nats; a probability of 0 contributes 0.

    Args:
        label_probs: mu, summing to one over the last axis.
        logprobs: log pi, normalised.
        label_entropy: `drop` gives the cross-entropy -sum mu log pi.
    """
    cross = -torch.where(label_probs > 0, label_probs * logprobs, 0.0).sum(-1)
    return cross - torch.special.entr(label_probs).sum(-1) if label_entropy == "include" else cross


def top_k_kl(label_logprobs: Float[Tensor, "*batch K"], logprobs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
    """KL(mu || pi) after every token outside mu's k most likely ones is merged into one. A lower bound of the full KL.

    Args:
        label_logprobs: log mu of its k most likely tokens (full-vocabulary normalisation).
        logprobs: log pi of the same tokens.
    """
    kept = (label_logprobs.exp() * (label_logprobs - logprobs)).sum(-1)
    rest_label = (1 - label_logprobs.exp().sum(-1)).clamp(min=0)
    rest = (1 - logprobs.exp().sum(-1)).clamp(min=torch.finfo(logprobs.dtype).tiny)
    return kept + torch.where(
        rest_label > 0, torch.special.xlogy(rest_label, rest_label) - rest_label * rest.log(), 0.0
    )


def gaussian_kl(
    label_mean: Float[Tensor, "*batch A"],
    label_log_std: Float[Tensor, "*batch A"],
    mean: Float[Tensor, "*batch A"],
    log_std: Float[Tensor, "*batch A"],
    label_entropy: LabelEntropy = "include",
) -> Float[Tensor, "*batch"]:
    """KL between diagonal Gaussians, in nats.

        KL(mu || pi) = sum_a [ log s_pi - log s_mu + (s_mu^2 + (m_mu - m_pi)^2) / (2 s_pi^2) - 1/2 ]

    With `label_entropy="drop"`: the cross-entropy, i.e. plus H(mu) = sum_a [ log s_mu + log(2 pi e) / 2 ].
    """
    scaled = ((2 * (label_log_std - log_std)).exp() + ((label_mean - mean) * (-log_std).exp()) ** 2) / 2
    per_dimension = log_std - label_log_std + scaled - 0.5
    if label_entropy == "drop":
        per_dimension = per_dimension + label_log_std + 0.5 * math.log(2 * math.pi * math.e)
    return per_dimension.sum(-1)


def tanh_gaussian_kl(
    label_mean: Float[Tensor, "*batch A"],
    label_log_std: Float[Tensor, "*batch A"],
    mean: Float[Tensor, "*batch A"],
    log_std: Float[Tensor, "*batch A"],
) -> Float[Tensor, "*batch"]:
    """KL between two tanh-squashed Gaussians: that of their base Gaussians, since tanh is one-to-one and KL ignores it.

    Only both squashed by the same tanh: KL of a squashed against an unsquashed Gaussian has no closed form. The entropy
    of a squashed Gaussian has none either, so `label_entropy="drop"` is not offered here.
    """
    return gaussian_kl(label_mean, label_log_std, mean, log_std)


def gaussian_logprob(
    action: Float[Tensor, "*batch A"], mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"]
) -> Float[Tensor, "*batch"]:
    """Log-density of a diagonal Gaussian, in nats."""
    standard = (action - mean) * (-log_std).exp()
    return (-0.5 * standard**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def tanh_gaussian_logprob(
    pre_tanh: Float[Tensor, "*batch A"], mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"]
) -> Float[Tensor, "*batch"]:
    """Log-density of tanh(u) at the stored, unsquashed u: log N(u) - sum log(1 - tanh(u)^2), in a stable form."""
    log_slope = 2 * (math.log(2) - pre_tanh - softplus(-2 * pre_tanh))
    return gaussian_logprob(pre_tanh, mean, log_std) - log_slope.sum(-1)


def single_sample_divergence(
    label_logprobs: Float[Tensor, "*batch"], logprobs: Float[Tensor, "*batch"], label_entropy: LabelEntropy = "include"
) -> Float[Tensor, "*batch"]:
    """One-sample estimate of KL(mu || pi): log mu(a) - log pi(a) at the action that mu took.

    `label_logprobs` must be those of the *sampling* distribution (temperature and top-k included). They carry no
    gradient and only shift the margin; `label_entropy="drop"` leaves them out, which is the step-weighted ablation.
    """
    return label_logprobs.detach() - logprobs if label_entropy == "include" else -logprobs


def dirac_divergence(logprobs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """PPL-d: the label is taken to be certain of the action it took, so that KL(mu || pi) = -log pi(a)."""
    return -logprobs
