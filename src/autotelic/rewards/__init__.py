"""Rewards in TRL's protocol, ready to name on a command line: ``trl grpo --reward_funcs autotelic.rewards.empo``.

Each lower-case name is its class with the paper's settings; build the class for others: ``EMPO(high=0.9)``.
Only `verifier` sees labels.
"""

from autotelic.rewards.base import Batch, Context, LabelFreeReward, RewardResult, TokenStats
from autotelic.rewards.consensus import EMPO, MajorityVote, WeightedEMPO
from autotelic.rewards.controls import ConstantReward, FormatReward, RandomReward
from autotelic.rewards.groups import Group, Row, form_groups, gather_groups
from autotelic.rewards.verifiers import VerifierReward

empo = EMPO()
weighted_empo = WeightedEMPO()
majority_vote = MajorityVote()
random = RandomReward()
constant = ConstantReward()
format = FormatReward()
verifier = VerifierReward()

__all__ = [
    "EMPO",
    "Batch",
    "ConstantReward",
    "Context",
    "FormatReward",
    "Group",
    "LabelFreeReward",
    "MajorityVote",
    "RandomReward",
    "RewardResult",
    "Row",
    "TokenStats",
    "VerifierReward",
    "WeightedEMPO",
    "constant",
    "empo",
    "form_groups",
    "format",
    "gather_groups",
    "majority_vote",
    "random",
    "verifier",
    "weighted_empo",
]
