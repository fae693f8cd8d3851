"""Rewards from the policy's own certainty; a trainer provides the token statistics (`autotelic.rewards.TokenStats`)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from autotelic.rewards.label_free_reward import Batch, LabelFreeReward
from autotelic.runs.method_settings import setting


@dataclass(kw_only=True)
class SelfCertainty(LabelFreeReward):
    """Intuitor: r_i = mean_t KL(U || p_t), nats per token.

    Reference: Zhao et al. 2025, arXiv:2505.19590, Eq. 4-5.
    """

    name: ClassVar[str] = "self_certainty"
    title: ClassVar[str] = "self-certainty"
    purpose: ClassVar[str] = "reward a response whose token distributions are far from uniform (Intuitor)"
    paper: ClassVar[str] = "Zhao et al. 2025, arXiv:2505.19590"
    needs: ClassVar[tuple[str, ...]] = ("mean_self_certainty",)

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the mean self-certainty."""
        return batch.stat("mean_self_certainty")


@dataclass(kw_only=True)
class TokenEntropy(LabelFreeReward):
    """RENT: r_i = -mean_t H_t, nats per token.

    Reference: Prabhudesai et al. 2025, arXiv:2505.22660.
    """

    name: ClassVar[str] = "token_entropy"
    title: ClassVar[str] = "RENT"
    purpose: ClassVar[str] = "reward a response by how low its mean token entropy is (RENT)"
    paper: ClassVar[str] = "Prabhudesai et al. 2025, arXiv:2505.22660"
    needs: ClassVar[tuple[str, ...]] = ("mean_entropy",)

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return minus the mean token entropy."""
        return -batch.stat("mean_entropy")


@dataclass(kw_only=True)
class EMRLToken(LabelFreeReward):
    """EM-RL, token level: r_i = -sum_t H_t, nats per response.

    Reference: Agarwal et al. 2025, arXiv:2505.15134.
    """

    name: ClassVar[str] = "em_rl_token"
    title: ClassVar[str] = "EM-RL, token"
    purpose: ClassVar[str] = "reward a response by how low the entropy of its tokens is, summed"
    paper: ClassVar[str] = "Agarwal et al. 2025, arXiv:2505.15134"
    needs: ClassVar[tuple[str, ...]] = ("sum_entropy",)

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return minus the summed token entropy."""
        return -batch.stat("sum_entropy")


@dataclass(kw_only=True)
class EMRLSequence(LabelFreeReward):
    """EM-RL, sequence level: r_i = sum_t ln pi(y_t), nats per response.

    Reference: Agarwal et al. 2025, arXiv:2505.15134.
    """

    name: ClassVar[str] = "em_rl_sequence"
    title: ClassVar[str] = "EM-RL, sequence"
    purpose: ClassVar[str] = "reward a response by its log-probability, summed over its tokens"
    paper: ClassVar[str] = "Agarwal et al. 2025, arXiv:2505.15134"
    needs: ClassVar[tuple[str, ...]] = ("sum_logprobs",)

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the log-probability of the response."""
        return batch.stat("sum_logprobs")


@dataclass(kw_only=True)
class RLSC(LabelFreeReward):
    """Self-confidence: r_i = p(y_i | x) + alpha, the weight that a frozen copy of the policy gives to its own sample.

    Reference: Li et al. 2025, arXiv:2506.06395, the L2 loss -(p_old(y|x) + alpha) ln p_theta(y|x).
    Deviations: `length_normalized` takes the geometric mean per token, exp(mean_t ln pi), because the probability of
    a long response underflows; a group baseline removes alpha.
    """

    name: ClassVar[str] = "rlsc"
    title: ClassVar[str] = "RLSC"
    purpose: ClassVar[str] = "reward a response that a frozen copy of the model finds likely"
    paper: ClassVar[str] = "Li et al. 2025, arXiv:2506.06395"
    needs: ClassVar[tuple[str, ...]] = ("sum_logprobs", "mean_logprobs")
    alpha: float | int = setting(0.1, "added to every probability; a group baseline removes it")
    length_normalized: bool = setting(False, "the geometric mean per token in place of the product")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the probability of the response, plus alpha."""
        return batch.stat("mean_logprobs" if self.length_normalized else "sum_logprobs").exp() + self.alpha
