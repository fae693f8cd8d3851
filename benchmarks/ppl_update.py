"""Time of a PPL update against a CPL update, with the behaviour's parameters cached: python benchmarks/ppl_update.py.

CPL's sizes: [512, 512] network, 96 pairs of 64 steps, 35 observations, 4 actions, tanh-Gaussian policy, Adam.
"""

import statistics
import time

import torch

from autotelic.functional import (
    cpl_loss,
    cpl_score,
    lookahead_weights,
    ppl_loss,
    ppl_score,
    tanh_gaussian_kl,
    tanh_gaussian_logprob,
)

PAIRS, STEPS, OBSERVATION, ACTION = 96, 64, 35, 4


def main(updates: int = 30) -> None:
    """Alternate the two updates on the same network, and print medians."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(OBSERVATION, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 2 * ACTION),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    shape = (2 * PAIRS, STEPS)
    observations, pre_tanh = torch.randn(*shape, OBSERVATION), torch.randn(*shape, ACTION)
    label_mean, label_log_std = torch.randn(*shape, ACTION), torch.zeros(*shape, ACTION)
    mask, label = torch.ones(shape, dtype=torch.bool), torch.ones(PAIRS)

    def update(ppl: bool) -> float:
        started = time.perf_counter()
        mean, log_std = network(observations).chunk(2, -1)
        logprobs = tanh_gaussian_logprob(pre_tanh, mean, log_std)
        if ppl:
            weights = lookahead_weights(mask, 0.99, average=True)
            kl = tanh_gaussian_kl(label_mean, label_log_std, mean, log_std)
            loss = ppl_loss(*ppl_score(logprobs, kl, weights, mask).chunk(2), label, 0.5, 0.1)
        else:
            loss = cpl_loss(*(0.1 * cpl_score(logprobs, mask)).chunk(2), label, 0.5)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        return time.perf_counter() - started

    times = [(update(False), update(True)) for _ in range(updates)][3:]
    cpl, ppl = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"CPL {cpl * 1e3:.1f} ms, PPL {ppl * 1e3:.1f} ms an update: ratio {ppl / cpl:.2f}")


if __name__ == "__main__":
    main()
