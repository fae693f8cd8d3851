"""How options become the parts of a run."""

import pytest
from trl import GRPOConfig

from autotelic.errors import UserError
from autotelic.trl.arguments import RunArguments
from autotelic.trl.build import build_control, build_parts
from autotelic.trl.dynamic_sampling import DynamicSampling
from autotelic.trl.label_free import SurplusVotes


@pytest.fixture
def config(tmp_path):
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)


def test_a_control_and_its_settings(config):
    """Settings without a control, and those that it does not have, are refused."""
    assert build_control(RunArguments(entropy_change_rows=4), config).name == "observe"
    with pytest.raises(UserError, match="no setting 'mu'"):
        build_control(RunArguments(entropy_control="kl_cov,mu=1.0"), config)


@pytest.mark.parametrize(
    "rollout",
    ["train_generations=4,max_generation_batches=3", {"train_generations": 4, "max_generation_batches": 3}],
)
def test_what_of_a_rollout_is_trained_on(config, rollout):
    parts = build_parts("grpo", RunArguments(rollout=rollout), config)
    surplus = next(part for part in parts if isinstance(part, SurplusVotes))
    dynamic = next(part for part in parts if isinstance(part, DynamicSampling))
    assert (surplus.train_generations, dynamic.rounds) == (4, 3)
    assert parts[-1] is surplus, "rows leave after every other part has seen them"
    plain = build_parts("grpo", RunArguments(), config)
    assert not any(isinstance(part, SurplusVotes | DynamicSampling) for part in plain)
