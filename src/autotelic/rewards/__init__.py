"""Rewards in TRL's protocol, ready to name on a command line: ``trl grpo --reward_funcs autotelic.rewards.empo``.

Each lower-case name is its class with the paper's settings; build the class for others: ``EMPO(high=0.9)``.
Only `verifier` sees labels.
"""

from autotelic.rewards.certainty_rewards import RLSC, EMRLSequence, EMRLToken, SelfCertainty, TokenEntropy
from autotelic.rewards.consensus import EMPO, SRT, MajorityVote, SeedGRPO, SoftSRT, WeightedEMPO
from autotelic.rewards.controls import ConstantReward, FormatReward, RandomReward
from autotelic.rewards.corewarding import CoRewardingI, CoRewardingII, update_ema
from autotelic.rewards.groups import Group, Row, form_groups, gather_groups
from autotelic.rewards.label_free_reward import Batch, Context, LabelFreeReward, RewardResult, TokenStats
from autotelic.rewards.mixing import MixedReward
from autotelic.rewards.novelty import EvolRL
from autotelic.rewards.verifiers import VerifierReward

empo = EMPO()
weighted_empo = WeightedEMPO()
majority_vote = MajorityVote()
srt = SRT()
srt_soft = SoftSRT()
self_certainty = SelfCertainty()
token_entropy = TokenEntropy()
em_rl_token = EMRLToken()
em_rl_sequence = EMRLSequence()
rlsc = RLSC()
evol_rl = EvolRL()
seed_grpo = SeedGRPO()
random = RandomReward()
constant = ConstantReward()
format = FormatReward()
verifier = VerifierReward()

__all__ = [
    "EMPO",
    "RLSC",
    "SRT",
    "Batch",
    "CoRewardingI",
    "CoRewardingII",
    "ConstantReward",
    "Context",
    "EMRLSequence",
    "EMRLToken",
    "EvolRL",
    "FormatReward",
    "Group",
    "LabelFreeReward",
    "MajorityVote",
    "MixedReward",
    "RandomReward",
    "RewardResult",
    "Row",
    "SeedGRPO",
    "SelfCertainty",
    "SoftSRT",
    "TokenEntropy",
    "TokenStats",
    "VerifierReward",
    "WeightedEMPO",
    "constant",
    "em_rl_sequence",
    "em_rl_token",
    "empo",
    "evol_rl",
    "form_groups",
    "format",
    "gather_groups",
    "majority_vote",
    "random",
    "rlsc",
    "seed_grpo",
    "self_certainty",
    "srt",
    "srt_soft",
    "token_entropy",
    "update_ema",
    "verifier",
    "weighted_empo",
]
