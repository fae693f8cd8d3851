"""One PPL update against one CPL update: `python benchmarks/ppl_update.py`.

CPL's sizes: two layers of 512, 96 pairs of 64 steps, 35 observations, 4 actions, tanh-Gaussian policy, Adam; the
behaviour's parameters are known. Both sides train the same kind of network; CPL's is its equation, since its code is no
package. PPL does more: a KL term and look-ahead weights for each step. The second row compares the learners of
`autotelic control train`: with `future="expected"` each update passes 4096 recorded states more (aim: 1.5 times CPL).
"""

from typing import Any

from common import OURS, case, interleave, one_thread, parser_for, write

STEPS, OBSERVATION, ACTION = 64, 35, 4


def make_update(pairs: int, ppl: bool) -> Any:
    """Return a function that makes one update."""
    import torch

    from autotelic import functional as F

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(OBSERVATION, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 2 * ACTION),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    shape = (2 * pairs, STEPS)
    observations, pre_tanh = torch.randn(*shape, OBSERVATION), torch.randn(*shape, ACTION)
    label_mean, label_log_std = torch.randn(*shape, ACTION), torch.zeros(*shape, ACTION)
    mask, label = torch.ones(shape, dtype=torch.bool), torch.ones(pairs)

    def update() -> float:
        mean, log_std = network(observations).chunk(2, -1)
        logprobs = F.tanh_gaussian_logprob(pre_tanh, mean, log_std)
        if ppl:
            weights = F.lookahead_weights(mask, 0.99)
            kl = F.tanh_gaussian_kl(label_mean, label_log_std, mean, log_std)
            loss = F.ppl_loss(*F.ppl_score(logprobs, kl, weights, mask).chunk(2), label, 0.5, 0.1).mean()
        else:
            loss = F.cpl_loss(*(0.1 * F.cpl_score(logprobs, mask)).chunk(2), label, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return update


def make_learner_update(pairs: int, method: str) -> Any:
    """Return the update of a learner on two behaviours with 10,000 recorded states each, and 300 features."""
    import torch

    from autotelic.control.expected import ExpectedLookahead
    from autotelic.control.learners import PreferenceLearner
    from autotelic.control.objectives import PairData
    from autotelic.control.settings import TrainSettings

    torch.manual_seed(0)
    settings = TrainSettings(method=method, bc_steps=0, batch_pairs=pairs, hidden=(512, 512), lr=1e-4, dropout=0.0)
    count, states, features = 4 * pairs, 20_000, 300
    regression = ExpectedLookahead(
        observations=torch.randn(states, OBSERVATION),
        actions=torch.randn(states, ACTION),
        label_mean=torch.randn(states, ACTION),
        label_log_std=torch.zeros(states, ACTION),
        coefficients=torch.randn(states, features) / states,
        bounds=[0, states // 2, states],
        scale=[1.0, 1.0],
        segments=torch.randn(count, features),
        owner=torch.arange(count) % 2,
    ).draw()
    shape, order = (count, STEPS), torch.arange(2 * pairs)
    mask = torch.ones(shape, dtype=torch.bool)
    rows = torch.randn(*shape, OBSERVATION), torch.randn(*shape, ACTION), mask, mask
    data = PairData(*rows, order, order + 2 * pairs, torch.ones(2 * pairs), expected=regression)
    return PreferenceLearner(settings, data, squash=True).update


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=15).parse_args(options)
    one_thread()
    pairs = 2 if args.smoke else 96
    sides = {OURS: make_update(pairs, ppl=True), "CPL": make_update(pairs, ppl=False)}
    row = case("PPL update", interleave(sides, args.repeats, warm_up=3), target=0.9)
    learners = {OURS: make_learner_update(pairs, "ppl"), "CPL": make_learner_update(pairs, "cpl")}
    expected = case("PPL update, expected look-ahead", interleave(learners, args.repeats, warm_up=3), target=1 / 1.5)
    work = {"pairs": pairs, "steps": STEPS, "network": "35 - 512 - 512 - 8"}
    return write("ppl_update", args, [row, expected], work=work)


if __name__ == "__main__":
    main()
