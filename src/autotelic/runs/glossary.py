"""The glossary: every metric that this library emits, with one unit, one formula and one source.

`check_declared` is called wherever metrics are written, so a metric cannot appear in a log before it is described here.
`docs/metrics.md` is generated from this table by ``python -m autotelic.runs.glossary``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

ENTROPY_MECHANISM = "arXiv:2505.22617"
EMPO = "arXiv:2504.05812"
PPL = "arXiv:2505.06273"


@dataclass(frozen=True)
class Metric:
    """What one number in a log means."""

    unit: str
    formula: str
    meaning: str
    source: str = "autotelic"


METRICS: dict[str, Metric] = {
    # The policy, over the response tokens of the update batch.
    "policy/entropy": Metric(
        "nats per token",
        "mean_t H(pi(.|y_<t)) over the vocabulary, token mean, at the sampling temperature",
        "how undecided the policy is; measured by TRL on the tokens that it trains on",
        f"{ENTROPY_MECHANISM}, Eq. 5 (token mean in place of its sequence mean)",
    ),
    "policy/entropy_sequence": Metric(
        "nats per token",
        "mean over responses of 1/|y| sum_t H(pi(.|y_<t))",
        "the paper's own reduction: short responses weigh as much as long ones",
        f"{ENTROPY_MECHANISM}, Eq. 5",
    ),
    "policy/entropy_first_turn": Metric(
        "nats per token", "mean_t H over the first turns of responses that have several", "of multi-turn training"
    ),
    "policy/entropy_last_turn": Metric(
        "nats per token", "mean_t H over the last turns of the same responses", "far above the first: entropy eruption"
    ),
    "policy/surprisal": Metric(
        "nats per token", "mean_t -log pi(y_t)", "an unbiased one-sample estimate of the entropy while on-policy"
    ),
    "policy/reference_kl": Metric("nats per token", "mean_t k3(pi || pi_ref)", "distance to the reference policy"),
    "policy/abs_log_ratio": Metric("nats per token", "mean_t |log r_t|, r = pi / pi_old", "drift since the rollout"),
    "policy/k1": Metric("nats per token", "mean_t -log r_t", "KL(pi_old || pi), one-sample, unbiased"),
    "policy/k3": Metric("nats per token", "mean_t r_t - 1 - log r_t", "KL(pi_old || pi), one-sample, never negative"),
    # Rewards and advantages.
    "reward/mean": Metric("reward", "mean_i r_i", "mean reward of the rollouts"),
    "reward/std": Metric("reward", "std_i r_i", "spread of the rewards over the batch"),
    "reward/zero_std_share": Metric("share", "groups whose rewards are all equal", "prompts that teach nothing"),
    "advantage/std": Metric("advantage", "std over response tokens of A_t", "zero when no group disagrees"),
    # Dynamic sampling.
    "sampling/extra_share": Metric(
        "share",
        "prompts sampled again / prompts of the rollout",
        "cost of dynamic sampling: 0.5 is half a rollout more",
    ),
    "sampling/refilled": Metric("groups", "groups without signal that were replaced", "of the whole rollout"),
    "sampling/without_signal": Metric(
        "share", "groups without signal that are left / groups", "the bound on refills was reached; or there is none"
    ),
    # An engine that samples (vLLM) against the policy that is trained, on the same weights and responses.
    "sampler/k1": Metric("nats per token", "mean_t -log r_t, r = pi / sampler", "KL(sampler || pi), unbiased"),
    "sampler/k3": Metric("nats per token", "mean_t r_t - 1 - log r_t", "KL(sampler || pi), never negative"),
    "sampler/max": Metric("nats", "max_t |log r_t|", "the worst token"),
    "sampler/cut": Metric(
        "share", "response tokens whose weight is 0 or at a bound", "what TRL's correction of the sampler masks"
    ),
    # Responses.
    "completions/mean_length": Metric("tokens", "mean_i |y_i|", "length of a response"),
    "completions/truncated_share": Metric("share", "responses cut at max_completion_length", "unfinished responses"),
    # Training.
    "train/loss": Metric("loss", "the objective that was differentiated", "mean over the logging window"),
    "train/grad_norm": Metric("norm", "||g||_2 before clipping", "size of the update"),
    "train/learning_rate": Metric("rate", "the schedule's value", "step size"),
    "train/step_time": Metric("seconds", "wall clock of an optimizer step", "without logging and evaluation"),
    "train/epoch": Metric("epochs", "share of the data set seen", "position in the data"),
    "train/entropy_coef": Metric("coefficient", "TRL's entropy_coef now", "fixed or adaptive entropy bonus"),
    "train/em_loss": Metric(
        "nats",
        "reduction of the token entropy named in the run's configuration",
        "the one-shot EM objective",
        "arXiv:2505.20282",
    ),
    # Preference pairs (autotelic train ppl): the batch of an update, and pairs that no update sees.
    **{
        f"preference/{prefix}{name}": metric
        for prefix in ("train_", "heldout_")
        for name, metric in {
            "nll": Metric(
                "nats per pair",
                "-log sigma(beta (S+ - S-)), lambda = 1",
                "how well the objective's own score predicts the preferences; what auto compares",
                PPL,
            ),
            "nll_no_lookahead": Metric(
                "nats per pair",
                "the same policy's loss when S has no look-ahead: DPO's score, CPL's without a reference",
                "what the same policy would predict without policy labels",
                "arXiv:2305.18290, Eq. 7",
            ),
            "accuracy": Metric("share", "pairs with S+ > S-", "preferences that the score predicts"),
            "margin": Metric("nats", "mean of beta (S+ - S-)", "how far apart the sides are"),
            "divergence": Metric(
                "nats per token",
                "mean_l d_l over response tokens, both sides",
                "what the look-ahead sums: KL(label || policy), one sample of it, or -log pi",
                PPL,
            ),
        }.items()
    },
    "preference/decided_share": Metric(
        "share", "prompts whose responses do not all have the same reward", "online: prompts that give a pair"
    ),
    # Token covariance and what a control selects.
    "covariance/mean": Metric(
        "nats x advantage", "mean_t Cov(y_t)", "what drives the entropy down", f"{ENTROPY_MECHANISM}, Eq. 10"
    ),
    **{
        f"covariance/top_{name}": Metric(
            "nats x advantage",
            f"mean of the largest {name.replace('_', '.')} % of Cov(y_t)",
            "the tail that carries the collapse",
            f"{ENTROPY_MECHANISM}, Table 1",
        )
        for name in ("0_02", "0_2", "2", "20", "50")
    },
    **{
        f"covariance/accuracy_{name}": Metric(
            "nats x advantage",
            f"mean_t Cov(y_t) over prompts whose share of right responses is {share}",
            "which prompts drive the entropy down; logged where rewards are 0 or 1",
            f"{ENTROPY_MECHANISM}, Section 3",
        )
        for name, share in (("low", "below 1/3, not 0"), ("mid", "in [1/3, 2/3]"), ("high", "above 2/3, not 1"))
    },
    # Entropy dynamics on followed tokens (entropy_change_rows); logged with the update after the one they describe.
    "dynamics/realised": Metric(
        "nats per token", "mean_t H_t(after the update) - H_t(before it)", "how the entropy changed on the same tokens"
    ),
    "dynamics/predicted_covariance": Metric(
        "nats per token, per unit of logit step",
        "-mean_t Cov(y_t)",
        "first-order prediction; only its sign and proportion have meaning",
        f"{ENTROPY_MECHANISM}, Theorem 1 and Eq. 10",
    ),
    "dynamics/predicted_sampled": Metric(
        "nats per token, per unit of logit step",
        "-mean_t A_t (S_t - E_pi[S]),  S_k = pi_k (H + log pi_k)",
        "the exact single-sample form; only its sign and proportion have meaning",
        "arXiv:2602.03392",
    ),
    "selected/requested": Metric(
        "tokens", "floor(fraction * N)", "the quota of one update, over all ranks, of controls that have one"
    ),
    "selected/realised": Metric(
        "tokens", "tokens that the control touched", "below the quota when there are too few candidates"
    ),
    "selected/share": Metric("share", "realised / N", "share of response tokens that the control touched"),
    "selected/jaccard": Metric(
        "share", "|S and S'| / |S or S'|", "agreement of the rollout's and the refreshed selection (refresh=True)"
    ),
    **{
        f"selected/{sign}_{level}": Metric(
            "share",
            f"selected tokens with {sign} advantage and {level} probability (against the median) / selected tokens",
            "which quadrant the control acts on",
        )
        for sign in ("positive", "negative")
        for level in ("likely", "unlikely")
    },
    "clip/share": Metric("share", "tokens where the PPO clip removes the gradient", "TRL's clip_ratio/region_mean"),
    # Meaning.
    "semantic/entropy": Metric(
        "nats", "mean over prompts of -sum_c p(c) log p(c)", "disagreement in meaning", f"{EMPO}"
    ),
    "semantic/majority_share": Metric("share", "mean over prompts of max_c p(c)", "how far the largest answer leads"),
    "semantic/parse_rate": Metric("share", "responses with an answer", "None is never a cluster"),
    "semantic/kept_share": Metric("share", "prompts within the entropy thresholds", "prompts that train", f"{EMPO}"),
    "semantic/timeouts": Metric("answers", "comparisons stopped at the time limit", "never a silent zero"),
    "semantic/undecided": Metric("pairs", "pairs that the equivalence could not decide", "they count as different"),
    "semantic/intransitive": Metric("triples", "a = b, b = c, a != c", "how far the equivalence is from a partition"),
    "semantic/asymmetric": Metric("pairs", "a = b without b = a", "how far the equivalence is from a partition"),
    "semantic/modal_answer_share": Metric(
        "share", "most common answer across prompts / responses", "one-answer collapse raises it"
    ),
    # Probes of the stop rules: fixed prompts, k responses each, no labels.
    "probe/parse_rate": Metric("share", "responses with an answer / responses", "on the probe prompts"),
    "probe/majority_share": Metric("share", "mean over prompts of max_c p(c)", "on the probe prompts"),
    "probe/unanimous_share": Metric("share", "prompts whose k answers are all the same", "majority lock-in raises it"),
    "probe/diversity": Metric("share", "mean over prompts of different answers / k", "what pass@k lives on"),
    "probe/semantic_entropy": Metric("nats", "mean over prompts of -sum_c p(c) log p(c)", "on the probe prompts"),
    "probe/modal_answer_share": Metric(
        "share", "most common answer across prompts / responses", "one-answer collapse raises it"
    ),
    "probe/mean_length": Metric("tokens", "mean_i |y_i|, without the end token", "on the probe prompts"),
    "probe/repetition": Metric("share", "1 - distinct / all 4-grams of tokens, mean over responses", "repetition"),
    "probe/token_entropy": Metric("nats per token", "mean_t H at temperature 1", "on the probe's own responses"),
    "probe/logit_skewness": Metric(
        "1", "m_3 / m_2^1.5 of the raw logits over the vocabulary", "rises under EM", "arXiv:2505.20282"
    ),
    "probe/unknown_words": Metric(
        "share", "words that neither prompts nor the starting model used / words of 3 letters or more", "garbled text"
    ),
    "probe/turn_ratio": Metric(
        "1", "policy/entropy_last_turn / policy/entropy_first_turn", "entropy eruption in multi-turn training"
    ),
    "probe/majority_drift": Metric("share", "prompts whose majority answer is not the first probe's", "since step 0"),
    # Validation: labels reach these and nothing else.
    "eval/mean_at_k": Metric("accuracy", "mean over prompts and k samples", "pass@1, sampled"),
    "eval/pass_at_k": Metric("accuracy", "1 - C(n-c, k) / C(n, k)", "at least one of k is right", "arXiv:2107.03374"),
    "eval/maj_at_k": Metric("accuracy", "the largest cluster is right", "accuracy of the majority vote"),
    "eval/collapse_step": Metric(
        "step", "first step with eval/maj_at_k < .01 after it was not", "Model Collapse Step", "arXiv:2603.08660"
    ),
    "eval/turning_step": Metric(
        "step",
        "step of the largest eval/maj_at_k, once it has fallen by a fifth",
        "its other reading",
        "arXiv:2603.08660",
    ),
    "eval/greedy": Metric("accuracy", "one greedy response", "temperature 0"),
    "eval/entropy": Metric("nats per token", "mean_t H at temperature 1, on the evaluation samples", "token mean"),
    # Control: preferences between segments, and episodes of the deterministic policy.
    "preference/nll_cpl": Metric(
        "nats per pair",
        "-mean log sigma(c (S_win - S_lose)), S = sum_t log pi; c fitted to the training pairs",
        "held-out preference NLL under CPL's label model",
        "arXiv:2310.13639",
    ),
    "preference/nll_ppl": Metric(
        "nats per pair",
        "the same with S = sum_t log pi - look-ahead",
        "held-out preference NLL under PPL's label model",
        "arXiv:2505.06273",
    ),
    "preference/accuracy": Metric("share", "held-out pairs whose higher score was preferred", "the method's own score"),
    "eval/success": Metric("share", "episodes with success at any step", "of the deterministic policy"),
    "eval/success_low": Metric("share", "95 % Wilson interval of eval/success, lower end", "over episodes"),
    "eval/success_high": Metric("share", "95 % Wilson interval of eval/success, upper end", "over episodes"),
    "eval/return": Metric("reward", "mean over episodes of sum_t r_t", "undiscounted"),
    "feedback/labels": Metric("comparisons", "answers asked for so far", "the budget of online learning"),
    "feedback/env_steps": Metric(
        "steps", "steps that the learner took so far", "its other budget; those of the judge's critics do not count"
    ),
    # The law.
    "law/a": Metric("accuracy", "R = -a exp(H) + b, least squares", "slope", f"{ENTROPY_MECHANISM}"),
    "law/b": Metric("accuracy", "R = -a exp(H) + b, least squares", "intercept", f"{ENTROPY_MECHANISM}"),
    "law/ceiling": Metric("accuracy", "b - a", "R where the entropy is spent", f"{ENTROPY_MECHANISM}"),
    "law/ceiling_low": Metric("accuracy", "95 % interval of b - a, lower end", "Student t"),
    "law/ceiling_high": Metric("accuracy", "95 % interval of b - a, upper end", "Student t"),
    "law/remaining": Metric("accuracy", "a (exp(H) - 1)", "gain that the law leaves at the present entropy"),
    "law/remaining_high": Metric(
        "accuracy", "a (exp(H) - 1), upper end of a's 95 % interval", "what stopping looks at"
    ),
    "law/num_points": Metric("evaluations", "points that the law is fitted to", "below 8 the law is flagged"),
}

TRL_PREFIX = "trl/"
"""Metrics of the engine that have no counterpart above keep TRL's own name behind this prefix."""


def check_declared(names: Iterable[str]) -> None:
    """Raise KeyError for a metric that the glossary does not describe (`trl/...` is TRL's own vocabulary)."""
    for name in names:
        if name not in METRICS and not name.startswith(TRL_PREFIX):
            raise KeyError(f"metric {name!r} is not declared in autotelic.runs.glossary.METRICS")


def to_markdown() -> str:
    """Return the glossary as a Markdown page."""
    lines = [
        "# Metrics",
        "",
        "Generated from `autotelic.runs.glossary`: `python -m autotelic.runs.glossary > docs/metrics.md`.",
        "",
        "| metric | unit | formula | meaning | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, metric in METRICS.items():
        cells = [f"`{name}`", metric.unit, metric.formula, metric.meaning, metric.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown(), end="")
