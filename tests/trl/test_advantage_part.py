"""Advantage estimators on TRL's trainer: the advantages are those of the equations, and they train."""

import pytest
import torch

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.trl import Control, Steer, with_entropy_control
from autotelic.trl.advantage_part import ESTIMATORS, Advantages, with_advantages

EXPECTED = {
    "rloo": lambda r, m: F.group_advantages(r, scale="none", baseline="leave_one_out").flatten(),
    "max_rl": lambda r, m: F.group_advantages(r, scale="mean").flatten(),
    "reinforce_pp": lambda r, m: F.whitened_advantages(r.flatten(), m),
    "reinforce_pp_baseline": lambda r, m: F.whitened_advantages((r - r.mean(1, keepdim=True)).flatten(), m),
}


class Seen(Advantages):
    """Keeps the rollout before TRL shuffles it."""

    def on_rollout(self, rollout):
        super().on_rollout(rollout)
        self.rewards, self.output = rollout.rewards[:, 0].view(-1, 4), dict(rollout.output)


@pytest.mark.parametrize(
    "estimator", [pytest.param(name, marks=() if name == "rloo" else pytest.mark.slow) for name in EXPECTED]
)
def test_advantages_are_those_of_the_equation(make_trainer, estimator):
    part = Seen(estimator)
    trainer = make_trainer(with_advantages, parts=[part], max_steps=2)
    trainer.train()
    expected = EXPECTED[estimator](part.rewards, part.output["completion_mask"])
    assert bool((expected != 0).any())
    torch.testing.assert_close(part.output["advantages"], expected.to(torch.float32))


@pytest.mark.slow
def test_an_estimator_beside_a_control(make_trainer):
    trainer = make_trainer(
        lambda cls: with_advantages(with_entropy_control(cls)),
        parts=[Advantages("max_rl"), Control(Steer())],
        max_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_names(make_trainer):
    assert set(ESTIMATORS) == {"grpo", *EXPECTED}
    with pytest.raises(UserError, match="did you mean 'max_rl'"):
        Advantages("maxrl")


def test_a_scale_that_the_estimator_would_not_use_is_refused(make_trainer):
    with pytest.raises(UserError, match="scale_rewards='batch' is of advantage=grpo"):
        make_trainer(with_advantages, parts=[Advantages("rloo")], scale_rewards="batch")
