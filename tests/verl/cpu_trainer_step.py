"""verl's V1 trainer on a CPU: its fit loop on Ray and TransferQueue, its worker and its loss; only sampling is a stub.

    python cpu_trainer_step.py ADV_ESTIMATOR LOSS_MODE STEPS

`fit` and all that it calls are verl's own: sample, balance, old log-probabilities, advantages, actor update, metrics,
tracking. The rollouts come from the carried model by transformers. Prints what each step gave as JSON; the metrics are
read back from verl's file tracker.
"""

import json
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path

os.environ |= {"TRANSFER_QUEUE_ENABLE": "1", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")

import cpu_worker as cpu  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
import transfer_queue as tq  # noqa: E402
import verl  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import OmegaConf, open_dict  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from autotelic.tasks import load_problems, model_path  # noqa: E402

PROMPTS, GROUP, WIDTH = 4, 8, 24


def configuration(estimator, mode):
    """Return verl's own configuration, with what a user would set."""
    options = [
        f"algorithm.adv_estimator={estimator}",
        f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}",
        "actor_rollout_ref.actor.policy_loss._target_=autotelic.verl.policy_loss.PolicyLoss",
        f"actor_rollout_ref.model.path={model_path('any_pair')}",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=eager",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.calculate_log_probs=False",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "trainer.n_gpus_per_node=1",
        f"data.train_batch_size={PROMPTS}",
        "trainer.logger=[file]",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
    ]
    if mode == "autotelic_clip_cov":
        options += [
            "actor_rollout_ref.actor.policy_loss.clip_cov_ratio=0.05",
            "actor_rollout_ref.actor.policy_loss.clip_cov_lb=0.1",
        ]
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", overrides=options)


class Rollouts:
    """Stands for verl's replay buffer: fills the transfer queue with responses of the carried model."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.model = AutoModelForCausalLM.from_pretrained(model_path("any_pair"), dtype="float32")
        self.problems = load_problems("chain_sums:train", limit=PROMPTS)

    def sample(self, global_steps, partition_id, batch_size):
        torch.manual_seed(global_steps)
        keys, tags, rows = [], [], []
        for number, problem in enumerate(self.problems):
            prompt = self.tokenizer(problem["prompt"], return_tensors="pt").input_ids
            found = self.model.generate(
                prompt.repeat(GROUP, 1), max_new_tokens=WIDTH, do_sample=True, pad_token_id=self.tokenizer.pad_token_id
            )
            for session, ids in enumerate(found[:, prompt.shape[1] :]):
                ends = (ids == self.tokenizer.eos_token_id).nonzero()
                response = ids[: int(ends[0]) + 1] if len(ends) else ids
                whole = torch.cat([prompt[0], response])
                uid = f"step{global_steps}prompt{number}"
                keys.append(f"{uid}_{session}_0")
                tags.append({"seq_len": len(whole), "min_global_steps": global_steps, "max_global_steps": global_steps})
                rows.append(
                    {
                        "uid": uid,
                        "prompts": prompt[0],
                        "responses": response,
                        "input_ids": whole,
                        "position_ids": torch.arange(len(whole)),
                        "response_mask": torch.ones(len(response), dtype=torch.int64),
                        "loss_mask": torch.ones(len(response), dtype=torch.int64),
                        "num_turns": 1,
                        "rm_scores": torch.full((len(response),), -1.0),  # a label's score, to be replaced
                    }
                )
        from verl.utils.tensordict_utils import list_of_dict_to_tensordict

        fields = list_of_dict_to_tensordict(rows)
        batch = tq.kv_batch_put(keys=keys, partition_id=partition_id, tags=tags, fields=fields)
        batch.extra_info = {}
        return batch, {}


class InProcess:
    """Stands for verl's worker group: one worker, in this process."""

    def __init__(self, worker):
        self.worker, self._dispatch_info = worker, {"actor": [0]}

    def compute_log_prob(self, batch):
        return self.worker.compute_log_prob(batch)

    def update_actor(self, batch):
        return self.worker.update_actor(batch)


def make_trainer(config, steps):
    """Return verl's synchronous trainer without its servers and its data loader."""
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.trainer.ppo.v1.trainer_base import RolloutMoELoadBalanceMetricsAccumulator
    from verl.workers.engine_workers import ActorRolloutRefWorker

    tokenizer = AutoTokenizer.from_pretrained(model_path("any_pair"))
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    trainer = object.__new__(get_trainer_cls("sync"))
    trainer.config, trainer.tokenizer, trainer.global_steps = config, tokenizer, 0
    trainer.trainer_mode, trainer.parameter_sync_step = "sync", 1
    trainer.total_training_steps, trainer.steps_per_epoch = steps, steps
    trainer.use_reference_policy = trainer.use_critic = False
    trainer.replay_buffer = Rollouts(tokenizer)
    trainer.reward_loop_manager = types.SimpleNamespace(reward_loop_worker_handles=[])
    trainer.checkpoint_manager = types.SimpleNamespace(sleep_replicas=lambda: None, update_weights=lambda step: None)
    trainer.resource_pool_manager = types.SimpleNamespace(get_n_gpus=lambda: 1)
    trainer.actor_rollout_wg = InProcess(worker)
    model = config.actor_rollout_ref.model
    trainer._rollout_moe_lb_metrics_accumulator = RolloutMoELoadBalanceMetricsAccumulator(model_config=model)
    trainer._init_dump_executor()
    trainer.prepare_step = dict  # nothing is sent to a sampler
    return trainer


def watch(trainer, found):
    """Keep what each step wrote into the transfer queue, before verl clears it."""
    compute = trainer._compute_metrics

    def compute_and_keep(batch, metrics, timing_raw, **kwargs):
        names = ["advantages", "rm_scores", "prompts", "responses"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        texts = {
            name: trainer.tokenizer.batch_decode(
                [row.tolist() for row in data[name].unbind()], skip_special_tokens=True
            )
            for name in ("prompts", "responses")
        }
        rewards = [float(row.sum()) for row in data["rm_scores"].unbind()]
        advantages = [float(row[0]) for row in data["advantages"].unbind()]
        found.append({"rewards": rewards, "advantages": advantages, **texts})
        return compute(batch, metrics, timing_raw, **kwargs)

    trainer._compute_metrics = compute_and_keep


def main():
    estimator, mode, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VERL_FILE_LOGGER_PATH"] = str(Path(folder) / "log.jsonl")
        config = configuration(estimator, mode)
        with open_dict(config):
            config.transfer_queue.enable = True
            config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
        OmegaConf.resolve(config)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        tq.init(config.transfer_queue)
        cpu.start()
        found = []
        trainer = make_trainer(config, steps)
        watch(trainer, found)
        trainer.fit(None)
        trainer.logger.finish()
        rows = [json.loads(line)["data"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    print("STEPS" + json.dumps([step | {"metrics": row} for step, row in zip(found, rows, strict=True)]))
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
