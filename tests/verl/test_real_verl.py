"""The plug-in in the real verl (make test-verl): registration, its training worker on a CPU, and parity with TRL."""

import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl.protocol", reason="verl lives in an environment of its own: make test-verl")
sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")  # of verl's optional engines

import cpu_worker as cpu  # noqa: E402
from tiny_trainer import on_made_up_tensors  # noqa: E402

from autotelic.controls.covariance import ClipCov, KLCov  # noqa: E402
from autotelic.controls.entropy_control import EntropyControlWarning, UpdateBatch  # noqa: E402
from autotelic.controls.table import entropy_control  # noqa: E402
from autotelic.errors import UserError  # noqa: E402
from autotelic.tasks import model_path  # noqa: E402
from autotelic.verl.engine import content_ids, content_keys  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
MODEL = model_path("any_pair")
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    cpu.start()


def policy_loss(mode, **settings):
    from autotelic.verl.policy_loss import PolicyLoss

    warnings.simplefilter("ignore", EntropyControlWarning)
    return PolicyLoss(loss_mode=f"autotelic_{mode}", settings=settings)


WIDE = {"fraction": 0.2, "low": -9.0, "high": 9.0}


def run_python(code, **environment):
    env = {**os.environ, "VERL_PLATFORM": "cpu", "CUDA_VISIBLE_DEVICES": "", **environment}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


NAMES = (
    "import json; import verl; from verl.trainer.ppo import core_algos as c;"
    "print(json.dumps([sorted(n for n in r if n.startswith('autotelic_')) "
    "for r in (c.POLICY_LOSS_REGISTRY, c.ADV_ESTIMATOR_REGISTRY)]))"
)


def test_import_verl_registers_everything():
    losses, estimators = run_python(NAMES, VERL_PLATFORM="nvidia")
    assert {"autotelic_clip_cov", "autotelic_kl_cov", "autotelic_one_shot_em", "autotelic_steer"} <= set(losses)
    assert {"autotelic_empo", "autotelic_majority_vote", "autotelic_token_entropy"} <= set(estimators)


def test_plugins_off_and_the_line_that_brings_it_back():
    off = {"VERL_PLATFORM": "nvidia", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    assert run_python(NAMES, **off) == [[], []]
    losses, estimators = run_python(NAMES, VERL_USE_EXTERNAL_MODULES="autotelic.verl.plugin", **off)
    assert "autotelic_clip_cov" in losses and "autotelic_empo" in estimators


def gradients_of(worker):
    """Keep the gradients of each update in place of taking the step."""
    engine, kept = worker.engine, []

    def keep():
        kept.append(
            {n: p.grad.full_tensor().clone() for n, p in engine.module.named_parameters() if p.grad is not None}
        )
        return 0.0

    engine.optimizer_step = keep
    return kept


def metrics_of(output):
    from verl.utils import tensordict_utils as tu

    return tu.get(output, "metrics")


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("clip_cov", WIDE),
        ("kl_cov", {"fraction": 0.2}),
        ("high_entropy", {}),
        ("one_shot_em", {}),
        ("entropy_band", {"coef": 0.05, "low": 9.0}),
        ("entrocraft", {"low": 0.0, "high": 0.1}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_update_does_not_depend_on_the_micro_batch(mode, settings):
    """verl's own worker, FSDP2: 16 rows as 1, 4 and 16 micro-batches, in another order, and by tokens."""
    found = []
    for micro_batch, order, dynamic in ((16, 0, 0), (4, 0, 0), (1, 0, 0), (4, 1, 0), (4, 0, 1)):
        loss = policy_loss(mode, **settings)
        worker = cpu.make_worker(MODEL, loss, micro_batch=micro_batch, dynamic=bool(dynamic))
        kept = gradients_of(worker)
        rows = cpu.made_up_rollouts()
        rows = [rows[(5 * i + 3) % 16] for i in range(16)] if order else rows
        output = worker.train_mini_batch(cpu.as_tensordict(rows * 2, 16))
        found.append((kept[0], metrics_of(output)))
    reference, metrics = found[0]
    assert sum(float(g.abs().sum()) for g in reference.values()) > 0
    if mode not in ("one_shot_em", "entropy_band"):
        assert metrics["selected/realised"][0] > 0
    for gradients, other in found[1:]:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)
        if mode != "one_shot_em":
            assert other["selected/realised"][0] == metrics["selected/realised"][0]


def first_gradient(mode, rows=None, weights=None, mask=None, actor=None, **settings):
    """The gradient of one update of verl's worker, flat, and what it logged."""
    worker = cpu.make_worker(MODEL, policy_loss(mode, **settings), micro_batch=4, **(actor or {}))
    kept = gradients_of(worker)
    data = cpu.as_tensordict(cpu.made_up_rollouts() if rows is None else rows, 16)
    for name, values in (("rollout_is_weights", weights), ("response_mask", mask)):
        if values is not None:
            data[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    output = worker.train_mini_batch(data)
    return torch.cat([g.flatten() for g in kept[0].values()]), metrics_of(output)


def test_an_entropy_band_adds_the_gradient_of_the_entropy():
    """Below the band: that of PPO, less `coef` times that of the mean entropy, which one-shot EM's loss is."""
    plain, _ = first_gradient("observe")
    entropy, _ = first_gradient("one_shot_em")
    for band, sign in (({"low": 9.0}, 1), ({"low": 0.0, "high": 0.1}, -1), ({"low": 0.0, "high": 9.0}, 0), ({}, 1)):
        found, _ = first_gradient("entropy_band", coef=0.3, **band)
        torch.testing.assert_close(found, plain - sign * 0.3 * entropy, rtol=1e-4, atol=1e-6)


def test_entrocraft_leaves_out_punished_responses_above_its_band():
    """The gradient is that of PPO on the rest, with as many more tokens' weight; below, rewarded ones leave."""
    rows = cpu.made_up_rollouts()
    tokens = sum(len(response) for _, response, *_ in rows)
    for band, keeps in (({"low": 0.0, "high": 0.1}, 1), ({"low": 9.0, "high": 9.5}, -1)):
        scale = tokens / sum(len(response) for _, response, _, a, _ in rows if keeps * float(a[0]) > 0)
        left = [(p, r, old, scale * a * (keeps * a > 0), uid) for p, r, old, a, uid in rows]
        expected, _ = first_gradient("observe", left)
        found, metrics = first_gradient("entrocraft", **band)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert 0 < metrics["selected/share"][0] < 1


def test_a_schedule_needs_the_length_of_the_run():
    from verl.workers.config import FSDPOptimizerConfig

    with pytest.raises(UserError, match="does not say how long the run is"):
        first_gradient("entropy_band", coef="linear:0.6:0")
    known = {"optim": FSDPOptimizerConfig(lr=1e-4, total_training_steps=4)}
    found, _ = first_gradient("entropy_band", coef="linear:0.4:0", actor=known)  # after a quarter of the run: .3
    expected, _ = first_gradient("entropy_band", coef=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "correction", [{"rollout_is": "token", "rollout_is_threshold": 1.2}, {"rollout_is": "sequence"}]
)
def test_clip_cov_with_verls_rollout_correction(correction):
    """verl's own helper makes weights, and takes rejected tokens out of the mask; Clip-Cov chooses among the rest.

    The choice looks at the policy's log-probabilities, not at the weights; the gradient is the weighted one, the same
    for micro-batches of 1 and 4; a weight of 1/2 everywhere halves it.
    """
    from verl import DataProto
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch

    rows = cpu.made_up_rollouts()
    plain, metrics = first_gradient("clip_cov", **WIDE)
    lengths = [len(response) for _, response, *_ in rows]
    half, _ = first_gradient("clip_cov", weights=[torch.full((n,), 0.5) for n in lengths], **WIDE)
    torch.testing.assert_close(half, plain / 2, rtol=1e-4, atol=1e-7)

    padded = cpu.padded(rows)
    generator = torch.Generator().manual_seed(3)
    mask = padded["response_mask"].bool()
    old = padded["old_log_probs"].masked_fill(~mask, 0.0)
    sampler = (old + 0.3 * torch.randn(old.shape, generator=generator)) * mask
    columns = {"old_log_probs": old, "rollout_log_probs": sampler, "response_mask": padded["response_mask"]}
    settings = correction | {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.7_1.5"}
    batch, found = compute_rollout_correction_and_add_to_batch(DataProto.from_single_dict(columns), settings)
    kept = batch.batch["response_mask"]
    assert found["rollout_corr/rollout_is_max"] > 1 and 0 < int(kept.sum()) < int(mask.sum())
    weights = [row[:n] for row, n in zip(batch.batch["rollout_is_weights"], lengths, strict=True)]
    masks = [row[:n] for row, n in zip(kept, lengths, strict=True)]
    corrected, logged = first_gradient("clip_cov", weights=weights, mask=masks, **WIDE)
    assert float((corrected - plain).norm() / plain.norm()) > 0.02
    assert logged["selected/requested"][0] == int(0.2 * int(kept.sum())) < metrics["selected/requested"][0]
    unweighted, same = first_gradient("clip_cov", mask=masks, **WIDE)
    assert same["selected/realised"] == logged["selected/realised"] and not torch.allclose(unweighted, corrected)
    one, _ = first_gradient("clip_cov", weights=weights, mask=masks, actor={"ppo_micro_batch_size_per_gpu": 1}, **WIDE)
    torch.testing.assert_close(one, corrected, rtol=1e-4, atol=1e-6)


def test_lora():
    """verl's LoRA: only the adapter moves, and the selection is that of the whole model (it reads old log-probs)."""
    counts = []
    for rank in (0, 4):
        worker = cpu.make_worker(MODEL, policy_loss("clip_cov", **WIDE), lora_rank=rank)
        kept = gradients_of(worker)
        output = worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(), 16))
        counts.append(metrics_of(output)["selected/realised"][0])
    assert counts[0] == counts[1] > 0
    assert kept[0] and all("lora" in name for name in kept[0])


def test_what_the_plugin_corrects():
    """KL-Cov on 64 rows, 2 % of the tokens: verl's gradient moves with the micro-batch size, ours does not."""
    from verl.workers.config import PolicyLossConfig

    settings = {"kl_cov_ratio": 0.02, "ppo_kl_coef": 1.0}
    difference = {}
    for name, loss in (
        ("theirs", PolicyLossConfig(loss_mode="kl_cov", **settings)),
        ("ours", policy_loss("kl_cov", fraction=0.02, coef=1.0)),
    ):
        found = []
        for micro_batch in (64, 4):
            worker = cpu.make_worker(MODEL, loss, micro_batch=micro_batch)
            kept = gradients_of(worker)
            worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(64) * 2, 64))
            found.append(torch.cat([g.flatten() for g in kept[0].values()]))
        difference[name] = float((found[0] - found[1]).norm() / found[0].norm())
    assert difference["theirs"] > 0.1 and difference["ours"] < 1e-5


def test_two_ranks_choose_and_update_as_one():
    """Rows split over two gloo processes: the gradients and counts of one process."""
    script = str(HERE / "cpu_two_ranks.py")
    outputs = []
    for size in (1, 2):
        port = cpu.free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", script, str(rank), str(size), str(port)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        texts = [process.communicate(timeout=300) for process in processes]
        assert all(process.returncode == 0 for process in processes), texts[0][1][-2000:]
        outputs.append(json.loads(texts[0][0].strip().splitlines()[-1]))
    one, two = outputs
    for mode in one:
        assert one[mode]["realised"] == two[mode]["realised"] > 0
        assert two[mode]["gradient"] == pytest.approx(one[mode]["gradient"], rel=1e-4, abs=1e-6)


def test_padded_rows_of_the_old_trainer_give_the_same_update():
    """The deprecated trainer hands padded tensors to the worker: the same plan, the same gradient."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    rows = cpu.made_up_rollouts()
    kept = []
    for padded in (False, True):
        worker = cpu.make_worker(MODEL, policy_loss("clip_cov", **WIDE))
        kept.append(gradients_of(worker))
        data = cpu.as_tensordict(rows, 16)
        if padded:
            names = [name for name in list(data.keys()) if not isinstance(data.get(name), torch.Tensor)]
            flags = {name: tu.get(data, name) for name in names}
            data = left_right_2_no_padding(tu.get_tensordict(cpu.padded(rows)))
            tu.assign_non_tensor(data, **{key: value for key, value in flags.items() if value is not None})
        worker.train_mini_batch(data)
    for name, gradient in kept[1][0].items():
        torch.testing.assert_close(gradient, kept[0][0][name], rtol=1e-4, atol=1e-6)


def test_kl_cov_with_one_update_per_rollout_is_refused_or_becomes_an_entropy_term():
    worker = cpu.make_worker(MODEL, policy_loss("kl_cov", fraction=0.2))
    with pytest.raises(UserError, match="ppo_mini_batch_size"):
        worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(), 16))
    worker = cpu.make_worker(MODEL, policy_loss("kl_cov", fraction=0.2, on_policy="entropy_term"))
    kept = gradients_of(worker)
    rows = [(p, r, old, torch.zeros_like(a), uid) for p, r, old, a, uid in cpu.made_up_rollouts()]
    rows = [(p, r, old, a + (0.01 if i % 2 else -0.01), uid) for i, (p, r, old, a, uid) in enumerate(rows)]
    worker.train_mini_batch(cpu.as_tensordict(rows, 16))
    assert sum(float(g.abs().sum()) for g in kept[0].values()) > 0


def test_entropy_minimisation_lowers_entropy():
    """Ten of verl's own updates on `autotelic_one_shot_em`: the entropy that verl logs falls at each of them."""
    worker = cpu.make_worker(MODEL, policy_loss("one_shot_em"), learning_rate=3e-4)
    entropies = []
    for _ in range(10):
        output = worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(), 16))
        entropies.append(float(metrics_of(output)["actor/entropy_loss"][0]))
    assert all(after < before for before, after in itertools.pairwise(entropies))


def test_memory_of_a_control_goes_with_verls_checkpoint(tmp_path):
    """EntroPIC's integral and the count of updates survive verl's own save and load."""
    settings = {"target": 0.5, "threshold": 0.5}
    worker = cpu.make_worker(MODEL, policy_loss("entropic", **settings))
    for _ in range(2):
        worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(), 8))
    saved = worker.engine.autotelic_run
    assert saved.updates == 4 and saved.state["accumulated"] != 0
    worker.save_checkpoint(str(tmp_path), global_step=2)
    resumed = cpu.make_worker(MODEL, policy_loss("entropic", **settings))
    resumed.load_checkpoint(str(tmp_path), del_local_after_load=False)
    assert resumed.engine.autotelic_run.to_json() == saved.to_json()


def test_a_control_that_learns_from_the_present_policy():
    """`refresh` makes verl's engine measure log-probabilities first; at the first update they are the actor's own."""
    worker = cpu.make_worker(MODEL, policy_loss("kl_cov", fraction=0.2, refresh=True))
    output = worker.train_mini_batch(cpu.as_tensordict(cpu.made_up_rollouts(), 8))
    metrics = metrics_of(output)
    assert metrics["policy/surprisal"][0] != pytest.approx(1.46, abs=0.05)  # not that of the made-up old policy
    assert metrics["selected/realised"][0] > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [("clip_cov", WIDE), ("kl_cov", {"fraction": 0.2}), ("observe", {}), ("stare", {}), ("steer", {})],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_numerical_equality_with_the_trl_path(make_trainer, name, settings):
    """The same tensors through TRL's trainer and through verl's loss: loss and gradient agree in every token."""
    from verl.workers.config import FSDPActorConfig

    from autotelic.verl.losses import MicroBatch, planned
    from autotelic.verl.losses import policy_loss as loss_of

    control = entropy_control(name, **settings)
    generator = torch.Generator().manual_seed(1)
    shape = (8, 7)
    lengths = torch.tensor([7, 3, 5, 1, 7, 4, 6, 2])
    mask = torch.arange(7) < lengths.unsqueeze(1)
    old = -2.5 * torch.rand(shape, generator=generator)
    new = old + 0.3 * torch.randn(shape, generator=generator)
    entropy = 2 * torch.rand(shape, generator=generator)
    advantages = torch.randn(8, generator=generator)
    ids = torch.arange(8)
    more = {"rollout_entropy": entropy, "row_ids": ids}
    made = on_made_up_tensors(make_trainer, control, new, old, advantages, mask, more, loss_type="dapo")
    loss, gradient = made[:2]
    batch = UpdateBatch(
        logprobs=torch.where(mask, old, 0.0),
        advantages=torch.where(mask, advantages.unsqueeze(1), 0.0),
        mask=mask,
        row_ids=ids,
        step=0,
        seed=0,
        across_ranks=False,
        old_logprobs=torch.where(mask, old, 0.0),
        entropy=torch.where(mask, entropy, 0.0),
    )
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=8)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=8)
    leaf = new.clone().requires_grad_()
    with planned(MicroBatch(control, control.plan(batch), None, 0.0, {})):
        ours, _ = loss_of(name)(
            old_log_prob=old,
            log_prob=leaf,
            advantages=advantages.unsqueeze(1).expand(shape),
            response_mask=mask,
            config=config,
        )
    ours.backward()
    torch.testing.assert_close(ours.detach(), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-7)
    assert bool((gradient != 0).any())


def test_row_identities_are_those_of_the_tokens():
    rows = cpu.made_up_rollouts()
    data = cpu.as_tensordict(rows, 16)
    ids = content_ids(content_keys(data["input_ids"]))
    assert sorted(ids.tolist()) == list(range(16))


def test_clip_cov_of_verl_is_ours_with_scope_micro_on_one_micro_batch():
    """With one micro-batch and every candidate taken, verl's own Clip-Cov chooses what ours does."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_clip_cov
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

    from autotelic.verl.losses import MicroBatch, planned
    from autotelic.verl.losses import policy_loss as loss_of

    generator = torch.Generator().manual_seed(2)
    old = -2.5 * torch.rand((6, 5), generator=generator)
    advantages = torch.randn((6, 1), generator=generator).expand(6, 5)
    mask = torch.ones(6, 5, dtype=torch.bool)
    theirs = PolicyLossConfig(loss_mode="clip_cov", clip_cov_ratio=1.0, clip_cov_lb=0.5, clip_cov_ub=9.0)
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=6, policy_loss=theirs)
    control = ClipCov(fraction=1.0, low=0.5, high=9.0)
    batch = UpdateBatch(old, advantages, mask, torch.arange(6), 0, 0, False)
    given = {"old_log_prob": old, "log_prob": old, "advantages": advantages, "response_mask": mask, "config": config}
    reference, _ = compute_policy_loss_clip_cov(**given)
    with planned(MicroBatch(control, control.plan(batch), None, 0.0, {})):
        ours, _ = loss_of("clip_cov")(**given)
    assert control.plan(batch).selected.any()
    torch.testing.assert_close(ours, reference)
    assert KLCov.name == "kl_cov"


def test_the_law_is_logged_with_verls_metrics(tmp_path, monkeypatch):
    """verl's own Tracking writes law/* into its file log once there are enough validations."""
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "log.jsonl"))
    actor = {"policy_loss": {"loss_mode": "autotelic_observe"}, "entropy_coeff": 0}
    config = {"actor_rollout_ref": {"actor": actor}, "algorithm": {"adv_estimator": "grpo"}, "trainer": {}}
    tracker = Tracking("p", "e", default_backend=["file"], config=config)
    for step in range(9):
        entropy = 1.0 - 0.1 * step
        reward = 0.6 - 0.1 * 2.718281828459045**entropy
        tracker.log(data={"actor/entropy": entropy, "val-core/chain/acc/mean@4": reward}, step=step)
    tracker.finish()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "law/ceiling" not in rows[6]["data"]
    assert rows[-1]["data"]["law/ceiling"] == pytest.approx(0.5, abs=1e-6)


def trainer_steps(estimator, mode, steps):
    """Run verl's V1 trainer in a process of its own; return what each step gave. A busy machine may start Ray late."""
    script = str(HERE / "cpu_trainer_step.py")
    command = [sys.executable, "-W", "ignore", script, estimator, mode, str(steps)]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=dict(os.environ))
        if "timed out during startup" not in done.stderr:  # after 30 seconds, which Ray does not let one set
            break
    line = next((line for line in done.stdout.splitlines() if line.startswith("STEPS")), None)
    assert line is not None, done.stderr[-3000:]
    return json.loads(line.removeprefix("STEPS"))


def test_every_mode_of_the_trainer_scores_groups():
    """verl's three trainers, and any that calls the base class, go through the wrapped method."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    assert {"sync", "colocate_async", "separate_async"} <= set(TRAINER_REGISTRY)
    for trainer in TRAINER_REGISTRY.values():
        assert trainer._compute_advantage.__name__ == "_compute_advantage"
        assert hasattr(trainer._compute_advantage, "__wrapped__")


def test_verls_trainer_with_empo_and_clip_cov():
    """verl's own `fit` on Ray and TransferQueue, sampling apart: nine steps, so that the law has its eight points.

    The rewards are those that the TRL path gives the same texts; the user's scores (-1 a token) are replaced; the
    advantages are the group's; the update selects floor(fraction N) tokens; verl's tracker gets law/*.
    """
    from autotelic.functional import group_advantages
    from autotelic.rewards import EMPO

    steps = trainer_steps("autotelic_empo", "autotelic_clip_cov", 9)
    assert steps[0]["responses"] != steps[1]["responses"]
    for step in steps:
        rewards = EMPO(num_generations=8)(step["prompts"], step["responses"])
        assert step["rewards"] == pytest.approx(rewards)
        expected = group_advantages(torch.tensor(rewards).view(-1, 8)).flatten().tolist()
        assert step["advantages"] == pytest.approx(expected, abs=1e-5)
        metrics = step["metrics"]
        assert metrics["actor/selected/realised"] == metrics["actor/selected/requested"] > 0
        assert metrics["actor/grad_norm"] > 0 and metrics["semantic/parse_rate"] > 0
        assert metrics["critic/score/mean"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-4)
    assert ["law/ceiling" in step["metrics"] for step in steps] == [False] * 7 + [True] * 2
    assert steps[-1]["metrics"]["law/num_points"] == 9


def test_verls_trainer_scales_advantages_and_minimises_entropy():
    """SEED-GRPO's factor reaches the advantages, one for each prompt; the loss is the entropy that verl logs."""
    from autotelic.functional import group_advantages
    from autotelic.rewards import MajorityVote
    from autotelic.rewards.formulas import seed_grpo_scale
    from autotelic.rewards.groups import Group

    (step,) = trainer_steps("autotelic_seed_grpo", "autotelic_one_shot_em", 1)
    rewards = torch.tensor(step["rewards"]).view(-1, 8)
    plain = group_advantages(rewards).flatten()
    from autotelic.answers import extract

    groups = [
        Group.of("q", step["responses"][i : i + 8], [extract(text) for text in step["responses"][i : i + 8]])
        for i in range(0, 32, 8)
    ]
    scale = seed_grpo_scale(MajorityVote().score(groups).clusters).repeat_interleave(8)
    torch.testing.assert_close(torch.tensor(step["advantages"]), (plain * scale).float(), rtol=1e-4, atol=1e-5)
    assert bool((scale < 1).any())
    metrics = step["metrics"]
    assert metrics["actor/pg_loss"] == pytest.approx(metrics["actor/entropy_loss"], rel=1e-5)


def test_rows_without_an_answer_are_scored_zero_and_those_with_one_as_before():
    """verl's own manager fails on them; ours is its subclass, found by name."""
    import numpy as np
    from tensordict import TensorDict
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import NaiveRewardManager, get_reward_manager_cls

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer("= 7", return_tensors="pt").input_ids

    def data(**columns):
        batch = TensorDict(
            {"responses": ids, "attention_mask": torch.ones(1, 2 * ids.shape[1], dtype=torch.int64)}, batch_size=1
        )
        non_tensor = {"data_source": np.array(["chain"], dtype=object)}
        return DataProto(batch=batch, non_tensor_batch=non_tensor | columns)

    def right(data_source, solution_str, ground_truth, extra_info):
        return float(ground_truth in solution_str)

    labelled = data(
        reward_model=np.array([{"ground_truth": "7"}], dtype=object), extra_info=np.array([{}], dtype=object)
    )
    for name, manager in (("ours", get_reward_manager_cls("autotelic_unlabelled")), ("theirs", NaiveRewardManager)):
        found = manager(None, tokenizer, right)
        assert found.loop.run_until_complete(found.run_single(labelled))["reward_score"] == 1.0
        if name == "ours":
            assert found.loop.run_until_complete(found.run_single(data()))["reward_score"] == 0.0
        else:
            with pytest.raises(KeyError):
                found.loop.run_until_complete(found.run_single(data()))


def test_doctor_finds_the_plugin():
    """In this environment: loaded, all parts installed; with plug-ins off it says so, and names the line."""

    def plugin_check(**environment):
        env = {**os.environ, **environment} | {"VERL_PLATFORM": "nvidia"}
        command = [sys.executable, "-W", "ignore", "-m", "autotelic", "doctor", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        return next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "verl plug-in")

    here = plugin_check()
    assert here["status"] == "works" and "6 parts" in here["detail"]
    off = plugin_check(VERL_USE_EXTERNAL_PLUGINS="none")
    assert off["status"] == "broken" and off["advice"] == "export VERL_USE_EXTERNAL_MODULES=autotelic.verl.plugin"
    assert plugin_check(VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="autotelic.verl.plugin") == here


def overrides_in(page):
    """Every hydra override in a page's `verl.trainer.main_ppo` commands, one list a command."""
    text = page.read_text().replace("\\\n", " ")
    commands = [line for line in text.split("\n") if "verl.trainer.main_ppo" in line]
    return [line.split("verl.trainer.main_ppo", 1)[1].split("#")[0].split() for line in commands]


DOCS = HERE.parents[1] / "docs"
COMMANDS = [each for page in ("how-to/verl.md", "scaling.md") for each in overrides_in(DOCS / page)]


@pytest.mark.parametrize("overrides", COMMANDS, ids=lambda x: x[0])
def test_commands_in_the_documents(overrides):
    """verl's configuration takes every line, and the plug-in finds in it what the page says."""
    import verl
    from hydra import compose, initialize_config_dir
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.utils.config import omega_conf_to_dataclass

    from autotelic.verl.estimators import reward_of
    from autotelic.verl.loss_methods import method_of

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    if mode.startswith("autotelic_"):
        method = method_of(omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss))
        assert f"autotelic_{method.name}" == mode
    if config.algorithm.adv_estimator.startswith("autotelic_"):
        assert config.algorithm.adv_estimator in ADV_ESTIMATOR_REGISTRY
        if config.algorithm.adv_estimator != "autotelic_max_rl":
            assert reward_of(config.algorithm.adv_estimator, dict(config.algorithm.label_free)).high == 0.9
