"""Covariance selection and the loss on it, for one update: `python benchmarks/covariance.py`.

From log-probabilities (with gradient), old log-probabilities, advantages and a mask to the gradient of the loss:
  autotelic  one exact choice over the whole update, the same for every split, order, padding and number of ranks, and
             the loss of the whole update
  equations  verl's loss functions as `autotelic.compat.policy_losses` writes them anew, one micro-batch at a time
  verl       verl's own functions on the same micro-batches, where verl can be imported: an environment of its own
             (verl 0.9.1 wants another transformers), `PYTHONPATH=src VERL_PYTHON benchmarks/covariance.py`
"""

from types import SimpleNamespace
from typing import Any

from common import OURS, case, interleave, one_thread, parser_for, write

METHODS = ("clip_cov", "kl_cov")
MICRO = 8
CLIP = 0.2
SIZES = ((64, 1024), (512, 1024))


def make_batch(rows: int, width: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(rows, width, generator=generator).exponential_(1.5, generator=generator)
    lengths = torch.randint(width // 2, width + 1, (rows, 1), generator=generator)
    return {
        "logprobs": (old + 0.1 * torch.randn(rows, width, generator=generator)).clamp(max=0),
        "old_logprobs": old,
        "advantages": torch.randn(rows, 1, generator=generator).expand(rows, width).contiguous(),
        "mask": torch.arange(width) < lengths,
    }


def ours(method: str, batch: dict[str, Any]) -> Any:
    """Return the gradient of the loss by our way."""
    import torch

    from autotelic import functional as F
    from autotelic.functional.masking import reduce_tokens
    from autotelic.functional.surrogate import ratio_clipped

    logprobs, old, mask = batch["logprobs"].clone().requires_grad_(), batch["old_logprobs"], batch["mask"]
    moments = F.token_moments(logprobs, batch["advantages"], mask)
    means = {"mean_logprob": moments.mean_logprob, "mean_advantage": moments.mean_advantage}
    covariance = F.token_covariance(logprobs, batch["advantages"], mask, **means)
    if method == "clip_cov":
        bounds = {"clip_low": CLIP, "clip_high": CLIP}
        clipped = ratio_clipped(logprobs, old, batch["advantages"], mask, **bounds)
        rows = torch.arange(mask.shape[0])
        advantages, _ = F.clip_cov(
            batch["advantages"],
            covariance.masked_fill(clipped, -torch.inf),
            mask,
            fraction=2e-4,
            low=1.0,
            high=5.0,
            priority=F.hash_uniform(0, 0, rows, F.response_positions(mask)),
            num_tokens=moments.num_tokens,
        )
    else:
        bounds = {"clip_low": None, "clip_high": None}
        log_ratio = logprobs.detach() - old
        advantages, _ = F.kl_cov(
            batch["advantages"], log_ratio, covariance, mask, fraction=2e-3, coef=1.0, num_tokens=moments.num_tokens
        )
    loss = F.clipped_surrogate(logprobs, old, advantages, mask=mask, **bounds)
    reduce_tokens(loss, mask, denominator=moments.num_tokens).backward()
    return logprobs.grad


def micro_batches(batch: dict[str, Any], loss_of: Any) -> Any:
    """Return the gradient by a loss function that sees one micro-batch at a time, weighted to the update's mean."""
    logprobs = batch["logprobs"].clone().requires_grad_()
    total = batch["mask"].sum()
    for rows in range(0, logprobs.shape[0], MICRO):
        part = {key: value[rows : rows + MICRO] for key, value in batch.items()}
        loss = loss_of(logprobs[rows : rows + MICRO], part)
        (loss * (part["mask"].sum() / total)).backward()
    return logprobs.grad


def equations(method: str, batch: dict[str, Any]) -> Any:
    from autotelic.compat import policy_losses as parity

    settings = parity.ParitySettings(kl_cov_fraction=2e-3)
    return micro_batches(
        batch,
        lambda logprobs, part: parity.policy_loss(
            method, logprobs, part["old_logprobs"], part["advantages"], part["mask"], settings
        ),
    )


def verl_side(method: str) -> Any:
    """Return verl's way as a function of the batch; ImportError where there is no verl."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    function = get_policy_loss_fn(method)
    numbers = {"clip_cov_ratio": 2e-4, "clip_cov_lb": 1.0, "clip_cov_ub": 5.0, "kl_cov_ratio": 2e-3, "ppo_kl_coef": 1.0}
    config = SimpleNamespace(
        clip_ratio=CLIP,
        clip_ratio_low=CLIP,
        clip_ratio_high=CLIP,
        policy_loss=SimpleNamespace(**numbers),
        global_batch_info={},
    )

    def loss_of(logprobs: Any, part: dict[str, Any]) -> Any:
        mask = part["mask"].float()
        return function(part["old_logprobs"], logprobs, part["advantages"], mask, "token-mean", config)[0]

    return lambda batch: micro_batches(batch, loss_of)


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=9).parse_args(options)
    one_thread()
    missing, cases = {}, []
    for rows, width in ((16, 32),) if args.smoke else SIZES:
        batch = make_batch(rows, width)
        for method in METHODS:
            sides = {
                OURS: lambda method=method, batch=batch: ours(method, batch),
                "equations": lambda method=method, batch=batch: equations(method, batch),
            }
            try:
                theirs = verl_side(method)
            except ImportError as error:
                missing["verl"] = f"not importable here: {error}"
            else:
                sides["verl"] = lambda theirs=theirs, batch=batch: theirs(batch)
            cases.append(case(f"{method}, {rows} x {width} tokens", interleave(sides, args.repeats), target=1.0))
    work = {
        "micro_batch": f"{MICRO} rows (verl, equations)",
        "gradient": "of the token-mean loss in the log-probabilities",
    }
    return write("covariance", args, cases, work=work, missing=missing)


if __name__ == "__main__":
    main()
