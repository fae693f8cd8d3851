"""Networks for control: Gaussian and tanh-Gaussian MLP policies, and MLPs for values and rewards.

    u ~ N(mean(s), std^2),   a = clip(u, -1, 1)  or  a = tanh(u)

A policy's density is that of u (Gaussian), or of tanh(u) at the stored u (tanh-Gaussian); both are exact. With the
fixed std of 1 / sqrt(2), log pi(u|s) is CPL's score -|u - mean|^2 up to a constant.

With `output_act="tanh"` the mean is tanh of the last layer, as in CPL's released network; the density stays Gaussian.

References: arXiv:2310.13639 and its code (two hidden layers, dropout .25, tanh, deterministic evaluation). Deviations:
inputs are standardised by the data's mean and spread; no orthogonal initialisation.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from autotelic.errors import UserError
from autotelic.functional.lookahead import gaussian_logprob, tanh_gaussian_logprob
from autotelic.runs.files import write_atomically

Number = float | int
LOG_STD_RANGE = (-3.0, 1.0)
CPL_STD = math.sqrt(0.5)  # log pi is then CPL's -|u - mean|^2, up to a constant


def mlp(inputs: int, hidden: Sequence[int], outputs: int, dropout: Number = 0.0) -> nn.Sequential:
    """ReLU layers with dropout after each; no hidden layer gives an affine map."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Standardise(nn.Module):
    """(x - center) / scale, remembered from data; dimensions that never move keep scale 1."""

    center: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, rows: Float[Tensor, "B O"]) -> None:
        """Take mean and standard deviation of the rows."""
        spread = rows.std(0)
        self.center.copy_(rows.mean(0))
        self.scale.copy_(torch.where(spread > 1e-4, spread, torch.ones_like(spread)))

    def forward(self, rows: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch O"]:
        """Standardise, and bound what lies far outside the data."""
        return ((rows - self.center) / self.scale).clamp(-10, 10)


class GaussianPolicy(nn.Module):
    """A diagonal Gaussian over unbounded actions u; `squash` sends tanh(u) to the environment, else clip(u, -1, 1)."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        std: Number | None = CPL_STD,
        squash: bool = False,
        dropout: Number = 0.0,
        output_act: str = "linear",
    ) -> None:
        """Build it; `std=None` learns a standard deviation per state and dimension."""
        super().__init__()
        if std is not None and std <= 0:
            raise UserError(f"std is {std}: give a value above 0, or none to learn it.")
        self.config = {
            "observation_dim": observation_dim,
            "action_dim": action_dim,
            "hidden": list(hidden),
            "std": None if std is None else float(std),
            "squash": squash,
            "dropout": float(dropout),
            "output_act": output_act,
        }
        self.squash, self.std, self.output_act = squash, std, output_act
        self.inputs = Standardise(observation_dim)
        self.body = mlp(observation_dim, hidden, action_dim * (2 if std is None else 1), dropout)

    def forward(
        self, observations: Float[Tensor, "*batch O"]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch A"]]:
        """Return mean and log std of u."""
        out = self.body(self.inputs(observations))
        mean, raw = (out, None) if self.std is not None else out.chunk(2, -1)
        mean = mean.tanh() if self.output_act == "tanh" else mean
        if raw is None or self.std is not None:
            return mean, torch.full_like(mean, math.log(self.std or 1.0))
        low, high = LOG_STD_RANGE
        return mean, low + (high - low) * torch.sigmoid(raw)

    def logprob(
        self,
        base_actions: Float[Tensor, "*batch A"],
        mean: Float[Tensor, "*batch A"],
        log_std: Float[Tensor, "*batch A"],
    ) -> Float[Tensor, "*batch"]:
        """Log-density of the action at the stored u."""
        return (tanh_gaussian_logprob if self.squash else gaussian_logprob)(base_actions, mean, log_std)

    @torch.no_grad()
    def parameters_at(self, observations: Float[ndarray, "*batch O"]) -> tuple[ndarray, ndarray]:
        """Mean and log std of u for NumPy observations: the interface of a behaviour."""
        training = self.training
        self.eval()
        mean, log_std = self(torch.from_numpy(np.asarray(observations, dtype=np.float32)))
        self.train(training)
        return mean.numpy(), log_std.numpy()

    def save(self, path: Path) -> None:
        """Write weights and shape to one safetensors file."""
        from safetensors.torch import save

        write_atomically(path, save(self.state_dict(), metadata={"config": json.dumps(self.config)}))


def regress_mean(
    policy: GaussianPolicy,
    observations: Float[Tensor, "M O"],
    targets: Float[Tensor, "M A"],
    updates: int,
    seed: int,
    decay: bool = False,
) -> Iterator[int]:
    """Fit the mean of u by least squares, 256 rows an update; yields the number of updates after each.

    Args:
        policy: whose inputs are fitted to the observations, and whose layers are trained, by Adam at 1e-3.
        observations: states.
        targets: u there.
        updates: how many.
        seed: of the rows.
        decay: the learning rate falls to a tenth.
    """
    policy.inputs.fit(observations)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.body.parameters(), lr=1e-3)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.9 * update / updates if decay else 1)
        rows = torch.randint(len(targets), (256,), generator=generator)
        loss = (policy(observations[rows])[0] - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield update + 1


def load_policy(path: Path) -> GaussianPolicy:
    """Read a policy that `GaussianPolicy.save` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            policy = GaussianPolicy(**config)
            policy.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot read a policy from {path}: {error}. Give a policy.safetensors of a run.") from None
    return policy.eval()
