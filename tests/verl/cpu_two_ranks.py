"""One rank of the test of two: cpu_two_ranks.py RANK SIZE PORT; the first rank prints gradients and counts."""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")

import cpu_worker as cpu  # noqa: E402

rank, size, port = (int(argument) for argument in sys.argv[1:])
cpu.start(rank, size, port)

from autotelic.tasks import model_path  # noqa: E402
from autotelic.verl.policy_loss import PolicyLoss  # noqa: E402

METHODS = {
    "clip_cov": {"fraction": 0.2, "low": -9.0, "high": 9.0},
    "kl_cov": {"fraction": 0.2},
    "high_entropy": {},
}
found = {}
for mode, settings in METHODS.items():
    loss = PolicyLoss(loss_mode=f"autotelic_{mode}", settings=settings)
    worker = cpu.make_worker(model_path("any_pair"), loss, micro_batch=2)
    kept = []

    def keep(engine=worker.engine, kept=kept):
        kept.append(
            [float(p.grad.full_tensor().double().norm()) for p in engine.module.parameters() if p.grad is not None]
        )
        return 0.0

    worker.engine.optimizer_step = keep
    rows = cpu.made_up_rollouts()
    own = rows[rank * 16 // size : (rank + 1) * 16 // size]
    output = worker.train_mini_batch(cpu.as_tensordict(own * 2, 16))  # two updates, for KL-Cov
    from verl.utils import tensordict_utils as tu

    realised = tu.get(output, "metrics")["selected/realised"][0]
    found[mode] = {"gradient": kept[0], "realised": float(realised)}
if rank == 0:
    print(json.dumps(found))
