"""Learners: one object per method, `update()` makes one optimizer step on a batch of its own drawing.

    sft, cpl, ppl, ppl_d, dpo   `PreferenceLearner`: behaviour cloning first, then the objective, Adam started anew
    p_iql                       `IQLLearner`: the same cloning; a reward from preferences, then implicit Q-learning

References: arXiv:2310.13639 (cloning, then CPL; SFT on the preferred segments; P-IQL as its baseline), arXiv:2505.06273
(PPL), arXiv:2110.06169 (IQL). Deviations: sizes and number of updates are arguments.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from autotelic.control.episodes import Episode, to_environment
from autotelic.control.networks import GaussianPolicy, Standardise, mlp
from autotelic.control.objectives import PairData, expected_lookahead, scores
from autotelic.control.settings import TrainSettings
from autotelic.functional.preference import behavior_cloning_loss, cloned_segments, ppl_loss


class PreferenceLearner:
    """Cloning for `bc_steps` updates, then `steps` updates of the method's objective."""

    def __init__(self, settings: TrainSettings, data: PairData, squash: bool, method: str | None = None) -> None:
        """Initialise the policy; the seed fixes it and the batches, so that methods share their clone."""
        self.settings, self.method = settings, method or settings.method
        self.lookahead = settings.lookahead(self.method)
        self.constants = settings.constants if settings.std and not self.relative else "keep"
        self.data = data.with_lookahead(self.lookahead)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.future_generator = torch.Generator().manual_seed(settings.seed + 1)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.policy = GaussianPolicy(
                data.observations.shape[-1],
                data.actions.shape[-1],
                settings.hidden,
                settings.std or None,
                squash,
                settings.dropout,
                "linear" if settings.output_act == "auto" else settings.output_act,
            )
        self.policy.inputs.fit(data.observations[data.mask])
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        self.optimizers = {"policy": torch.optim.Adam(self.policy.body.parameters(), lr=settings.lr)}
        self.updates = 0

    @property
    def relative(self) -> bool:
        """Whether scores are relative to the frozen clone: its log-probabilities carry the same constants."""
        return self.method == "dpo" or self.settings.reference

    def update(self) -> float:
        """One optimizer step; returns the loss."""
        if self.updates == self.settings.bc_steps:
            self.after_cloning()
        loss = self.cloning_loss() if self.updates < self.settings.bc_steps else self.objective()
        self.step("policy", loss)
        self.updates += 1
        return float(loss.detach())

    def step(self, name: str, loss: Tensor) -> None:
        """Gradient step of one optimizer; the policy's lr follows warm-up and decay after the cloning."""
        done = self.updates - self.settings.bc_steps
        if name == "policy" and done >= 0:
            rise = min(1.0, (done + 1) / max(self.settings.warmup, 1))
            fall = 1 - done / max(self.settings.steps, 1) if self.settings.decay else 1.0
            self.optimizers[name].param_groups[0]["lr"] = self.settings.lr * rise * fall
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def after_cloning(self) -> None:
        """Start Adam anew, and freeze the clone where it is the reference."""
        self.optimizers["policy"] = torch.optim.Adam(self.policy.body.parameters(), lr=self.settings.lr)
        if self.relative:
            self.data = replace(self.data, ref_logprobs=reference_logprobs(self.policy, self.data))

    def pairs(self) -> PairData:
        """Draw a batch of comparisons."""
        rows = torch.randint(len(self.data.label), (self.settings.batch_pairs,), generator=self.generator)
        return self.data.take(rows)

    def cloning_loss(self) -> Tensor:
        """-log pi on steps of random segments."""
        count = 2 * self.settings.batch_pairs
        rows = torch.randint(len(self.data.mask), (count,), generator=self.generator)
        width = int(self.data.mask.sum(-1).max())  # not beyond segments: the clone is then the same for every method
        column = torch.randint(width, (count, 8), generator=self.generator)
        rows = rows[:, None].expand_as(column)
        mean, log_std = self.policy(self.data.observations[rows, column])
        logprobs = self.policy.logprob(self.data.actions[rows, column], mean, log_std)
        return behavior_cloning_loss(logprobs, self.data.mask[rows, column])

    def objective(self) -> Tensor:
        """The method's loss on one batch, averaged over its pairs."""
        batch = self.pairs()
        both = torch.cat([batch.first, batch.second])
        if self.method == "sft":
            mask = batch.mask[both]
            mean, log_std = self.policy(batch.observations[both])
            logprobs = self.policy.logprob(batch.actions[both], mean, log_std)
            return behavior_cloning_loss(logprobs, mask, cloned_segments(batch.label, "preferred"))
        ahead = None
        if self.lookahead.active and self.lookahead.future == "expected":
            generator = self.future_generator
            ahead = expected_lookahead(self.policy, batch, self.lookahead, self.constants, generator)
        score, logprobs = scores(self.policy, batch, both, self.lookahead, self.constants, ahead)
        first, second = score.chunk(2)
        bias = 1.0 if self.method == "dpo" else self.settings.bias
        loss = ppl_loss(first, second, batch.label, bias, self.settings.alpha).mean()
        if self.settings.bc_coef:
            loss = loss + self.settings.bc_coef * behavior_cloning_loss(logprobs, batch.mask[both])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "updates": self.updates,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ref_logprobs": self.data.ref_logprobs,
            "future_generator": self.future_generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.data = replace(self.data, ref_logprobs=state["ref_logprobs"])
        self.future_generator.set_state(state["future_generator"])


@torch.no_grad()
def reference_logprobs(policy: GaussianPolicy, data: PairData, chunk: int = 256) -> Tensor:
    """Log pi of every recorded action, in evaluation mode."""
    policy.eval()
    parts = torch.arange(len(data.mask)).split(chunk)
    rows = [policy.logprob(data.actions[part], *policy(data.observations[part])) for part in parts]
    policy.train()
    return torch.cat(rows)


class IQLLearner(PreferenceLearner):
    """P-IQL: half of `steps` fit a reward to the preferences, the other half run IQL on it over all transitions."""

    def __init__(self, settings: TrainSettings, data: PairData, squash: bool, episodes: Sequence[Episode]) -> None:
        """Add the networks of reward, values and action values."""
        super().__init__(settings, data, squash)
        self.squash = squash
        size, width = data.observations.shape[-1], data.actions.shape[-1]
        self.state = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
        self.following = torch.from_numpy(np.concatenate([e.observations[1:] for e in episodes]))
        self.base = torch.from_numpy(np.concatenate([e.actions for e in episodes]))
        self.sent = torch.from_numpy(to_environment(self.base.numpy(), squash))
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed + 1)
            self.reward, self.q1, self.q2 = (mlp(size + width, settings.hidden, 1) for _ in range(3))
            self.value = mlp(size, settings.hidden, 1)
        self.inputs = Standardise(size)
        self.inputs.fit(self.state)
        self.target1, self.target2 = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        names = ("reward", "q1", "q2", "value", "target1", "target2", "inputs")
        self.modules |= {name: getattr(self, name) for name in names}
        critics = [*self.q1.parameters(), *self.q2.parameters()]
        self.optimizers |= {
            "reward": torch.optim.Adam(self.reward.parameters(), lr=settings.lr),
            "critics": torch.optim.Adam(critics, lr=settings.lr),
            "value": torch.optim.Adam(self.value.parameters(), lr=settings.lr),
        }
        self.rewards: Tensor | None = None

    def update(self) -> float:
        """Cloning, then the reward, then IQL."""
        reward_until = self.settings.bc_steps + self.settings.steps // 2
        if self.updates < self.settings.bc_steps:
            return super().update()
        loss = self.reward_update() if self.updates < reward_until else self.iql_update()
        self.updates += 1
        return loss

    def reward_update(self) -> float:
        """Bradley-Terry on sums of the learned reward."""
        batch = self.pairs()
        both = torch.cat([batch.first, batch.second])
        sent = torch.tanh(batch.actions[both]) if self.squash else batch.actions[both].clamp(-1, 1)
        step = self.reward(torch.cat([self.inputs(batch.observations[both]), sent], -1)).squeeze(-1)
        first, second = (step * batch.mask[both]).mean(-1).chunk(2)
        margin = second - first
        loss = -(batch.label * logsigmoid(margin) + (1 - batch.label) * logsigmoid(-margin)).mean()
        self.step("reward", loss)
        return float(loss.detach())

    @torch.no_grad()
    def learned_rewards(self) -> Tensor:
        """Return the learned reward of every transition, standardised."""
        reward = self.reward(torch.cat([self.inputs(self.state), self.sent], -1)).squeeze(-1)
        return (reward - reward.mean()) / reward.std().clamp(min=1e-6)

    def iql_update(self) -> float:
        """One step each of V (expectile), Q (Bellman), and the policy (weighted by the advantage)."""
        if self.rewards is None:
            self.rewards = self.learned_rewards()
        rows = torch.randint(len(self.state), (512,), generator=self.generator)
        state, following = self.inputs(self.state[rows]), self.inputs(self.following[rows])
        pair = torch.cat([state, self.sent[rows]], -1)
        with torch.no_grad():
            q = torch.minimum(self.target1(pair), self.target2(pair)).squeeze(-1)
            goal = self.rewards[rows] + self.settings.gamma * self.value(following).squeeze(-1)
        gap = q - self.value(state).squeeze(-1)
        weight = torch.where(gap > 0, self.settings.expectile, 1 - self.settings.expectile)
        self.step("value", (weight * gap.square()).mean())
        errors = sum((critic(pair).squeeze(-1) - goal).square().mean() for critic in (self.q1, self.q2))
        self.step("critics", torch.as_tensor(errors))
        advantage = (self.settings.advantage_scale * gap.detach()).exp().clamp(max=100)
        mean, log_std = self.policy(self.state[rows])
        loss = -(advantage * self.policy.logprob(self.base[rows], mean, log_std)).mean()
        self.step("policy", loss)
        with torch.no_grad():
            for critic, target in ((self.q1, self.target1), (self.q2, self.target2)):
                for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.lerp_(new, 0.005)
        return float(loss.detach())
