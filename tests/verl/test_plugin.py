"""The plug-in where verl is not: harmless, and right in what needs no engine."""

import functools
import json
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch

from autotelic.controls.covariance import ClipCov, KLCov
from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.errors import UserError
from autotelic.functional import group_advantages
from autotelic.rewards import EMPO, SRT, SeedGRPO
from autotelic.verl import PREFIX
from autotelic.verl.engine import content_ids, content_keys, like_rows
from autotelic.verl.estimators import (
    advantage_estimator,
    advantage_estimators,
    advantages_by_uid,
    label_free_rewards,
    max_rl,
    reward_of,
    serving,
)
from autotelic.verl.law_tracking import LiveLaw, live_law
from autotelic.verl.loss_methods import EntropyMinimization, method_names, method_of
from autotelic.verl.losses import policy_losses
from autotelic.verl.plugin import PARTS, PartFinder, install_part
from autotelic.verl.trainers import score

ROOT = Path(__file__).parents[2]


def test_the_entry_point_names_the_plugin():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["verl.plugins"]
    assert declared == {"autotelic": "autotelic.verl.plugin"}


def test_loading_the_plugin_is_cheap_and_changes_no_other_import():
    """Without verl nothing is installed and nothing heavy is imported; loaded twice, there is one finder."""
    code = (
        "import sys, json; import autotelic.verl.plugin as plugin; plugin.install();"
        "finders = [f for f in sys.meta_path if type(f).__name__ == 'PartFinder'];"
        "heavy = [m for m in ('torch', 'verl', 'transformers') if m in sys.modules];"
        "print(json.dumps([len(finders), heavy, plugin.status()]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    finders, heavy, status = json.loads(output)
    assert (finders, heavy) == (1, [])
    assert status == dict.fromkeys(PARTS, "waiting")


def test_a_verl_that_does_not_fit_is_reported_and_does_not_break_its_import(monkeypatch):
    monkeypatch.setattr("autotelic.verl.plugin.STATUS", {})
    with pytest.warns(UserWarning, match="autotelic doctor"):
        install_part("verl.workers.engine.base", types.ModuleType("verl.workers.engine.base"))
    from autotelic.verl.plugin import status

    assert "AttributeError" in status()["verl.workers.engine.base"]


@pytest.mark.parametrize(
    ("name", "owner", "methods"),
    [
        ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer", {"_compute_advantage": lambda self, data: data}),
        ("verl.workers.engine.base", "BaseEngine", {"train_batch": lambda self, loss_function, data: data}),
        ("verl.utils.tracking", "Tracking", {"__init__": lambda self, config: None, "log": lambda self, data, step: 0}),
        ("verl.utils.tracking", "Tracking", {"log": lambda self, step, data: 0}),
        ("verl.workers.engine_workers", "TrainingWorker", {"train_mini_batch": lambda self, batch: batch}),
    ],
)
def test_a_method_of_verl_with_other_parameters_is_reported_and_left_alone(monkeypatch, name, owner, methods):
    """verl's main branch may hand something else on: better no plug-in than a wrong one."""
    from autotelic.verl.plugin import status

    monkeypatch.setattr("autotelic.verl.plugin.STATUS", {})
    module = types.ModuleType(name)
    setattr(module, owner, type(owner, (), dict(methods)))
    with pytest.warns(UserWarning, match="autotelic doctor"):
        install_part(name, module)
    assert status()[name].startswith("TypeError") and "not (self" in status()[name]
    assert all(vars(getattr(module, owner))[key] is value for key, value in methods.items())


def test_a_method_that_verl_has_decorated_is_wrapped_all_the_same_and_once(monkeypatch):
    """`__wrapped__` on it is verl's own: it does not mean that ours is there."""
    monkeypatch.setattr("autotelic.verl.plugin.STATUS", {})

    def compute(self, batch, metrics):
        return batch

    @functools.wraps(compute)
    def timed(*args, **kwargs):
        return compute(*args, **kwargs)

    module = types.ModuleType("verl.trainer.ppo.v1.trainer_base")
    module.PPOTrainer = type("PPOTrainer", (), {"_compute_advantage": timed})
    for _ in range(2):
        install_part(module.__name__, module)
        found = module.PPOTrainer._compute_advantage
        assert found is not timed and found.__wrapped__ is timed


def test_the_finder_runs_the_module_first_and_ours_after(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("found = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setitem(PARTS, "late_module", "autotelic.verl.registration")
    monkeypatch.setattr("autotelic.verl.registration.install", lambda module: seen.append(module.found))
    monkeypatch.setattr("autotelic.verl.plugin.STATUS", {})
    assert any(isinstance(finder, PartFinder) for finder in sys.meta_path)  # since the plug-in was imported
    import late_module  # pyright: ignore[reportMissingImports]

    assert seen == [1] and late_module.found == 1


def test_settings_come_from_verls_fields():
    fields = {"clip_cov_ratio": 3e-4, "clip_cov_lb": 0.5, "clip_cov_ub": 4.0, "kl_cov_ratio": 2e-3, "ppo_kl_coef": 1.0}
    assert method_of({"loss_mode": "vanilla"}) is None
    assert method_of({"loss_mode": "clip_cov", **fields}) is None  # verl's own
    assert method_of({"loss_mode": "autotelic_clip_cov", **fields}) == ClipCov(fraction=3e-4, low=0.5, high=4.0)
    assert method_of({"loss_mode": "autotelic_kl_cov", **fields}) == KLCov(fraction=2e-3, coef=1.0)
    given = {"loss_mode": "autotelic_kl_cov", **fields, "settings": {"coef": 0.5, "form": "k3"}}
    assert method_of(given) == KLCov(fraction=2e-3, coef=0.5, form="k3")
    em = method_of({"loss_mode": "autotelic_one_shot_em", "settings": {"floor": 0.1}})
    assert em == EntropyMinimization(floor=0.1)


def test_verls_default_coefficient_gets_a_warning():
    fields = {"kl_cov_ratio": 2e-3, "ppo_kl_coef": 0.1}
    with pytest.warns(EntropyControlWarning, match="the paper's coefficient is 1"):
        method_of({"loss_mode": "autotelic_kl_cov", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_mode": "autotelic_clip_cof"}, "did you mean 'clip_cov'"),
        ({"loss_mode": "autotelic_clip_v"}, "does not exist on verl: it needs a mean over the vocabulary"),
        ({"loss_mode": "autotelic_aem"}, "mini-batches split a prompt's responses. On TRL it does"),
        ({"loss_mode": "autotelic_lp_reg"}, "the policy without its tail"),
        ({"loss_mode": "autotelic_one_shot_em", "settings": {"temperature": 2}}, "coef and floor"),
        ({"loss_mode": "autotelic_repo", "settings": {}}, "repo needs coef"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        method_of(fields)


def test_every_method_has_a_loss_and_none_works_without_a_plan():
    """A loss that could only choose per micro-batch says so in place of training."""
    losses = policy_losses()
    assert sorted(losses) == sorted(PREFIX + name for name in method_names())
    x = torch.zeros(2, 3)
    for loss in losses.values():
        with pytest.raises(UserError, match="no plan"):
            loss(x, x, x, torch.ones(2, 3, dtype=torch.bool))


def test_advantages_by_uid_are_the_groups_own():
    """Rows of a uid are one group in any order: the numbers are those of `group_advantages`."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.25, 0.5, 1.0])
    uids = ["a", "b", "a", "b", "a", "c", "c", "d"]
    found = advantages_by_uid(rewards, uids)
    expected = torch.zeros(8)
    for rows in ([0, 2, 4], [1, 3], [5, 6]):
        expected[rows] = group_advantages(rewards[rows].unsqueeze(0))[0]
    torch.testing.assert_close(found, expected)
    assert found[7] == 0  # alone
    order = torch.tensor([3, 7, 0, 5, 1, 6, 2, 4])
    torch.testing.assert_close(advantages_by_uid(rewards[order], [uids[i] for i in order]), found[order])


def test_max_rl_takes_the_scores_of_verls_own_reward():
    """A = (r - mean) / mean: three of four right is 1/3 and -1; all right, all wrong or alone is 0."""
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    per_token = torch.zeros(7, 3)
    per_token[:, -1] = scores
    mask = torch.ones(7, 3)
    advantages, returns = max_rl(per_token, mask, index=["a", "b", "a", "a", "b", "a", "a"])
    expected = torch.tensor([0.25, 0.0, 0.25, 0.25, 0.0, 0.25, -1.0])
    torch.testing.assert_close(advantages, expected.unsqueeze(1).expand(7, 3))
    assert (
        returns is advantages and "autotelic_max_rl" in advantage_estimators() and reward_of("autotelic_max_rl") is None
    )
    with pytest.raises(UserError, match="must not be negative"):
        max_rl(-per_token, mask, index=["a"] * 7)
    with pytest.raises(UserError, match="uid"):
        max_rl(per_token, mask)


def test_an_estimator_refuses_scores_that_are_not_ours():
    estimate = advantage_estimator("empo")
    rewards, mask = torch.eye(4), torch.ones(4, 4)
    with pytest.raises(UserError, match="use_v1"):
        estimate(token_level_rewards=rewards, response_mask=mask, index=["a", "a", "b", "b"])
    with serving(), pytest.raises(UserError, match="uid"):
        estimate(token_level_rewards=rewards, response_mask=mask)
    with serving():
        advantages, returns = estimate(token_level_rewards=rewards, response_mask=mask, index=["a", "a", "b", "b"])
    assert advantages.shape == (4, 4) and returns is advantages


def test_rewards_by_name():
    assert reward_of("grpo") is None
    assert isinstance(reward_of("autotelic_empo", {"high": 0.9}), EMPO)
    soft = reward_of("autotelic_srt_soft")
    assert isinstance(soft, SRT) and soft.soft
    assert "self_certainty" not in label_free_rewards()
    with pytest.raises(UserError, match="did you mean 'autotelic_empo'"):
        reward_of("autotelic_emp")
    with pytest.raises(UserError, match="no setting 'hihg'"):
        reward_of("autotelic_empo", {"hihg": 0.9})


class Letters:
    """A tokenizer whose tokens are code points."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(i) for i in row) for row in rows]


def batch(prompts, responses, uids):
    def nested(texts):
        return torch.nested.as_nested_tensor([torch.tensor([ord(c) for c in t]) for t in texts], layout=torch.jagged)

    return {"prompts": nested(prompts), "responses": nested(responses), "uid": list(uids)}


def test_group_rewards_of_verls_batch():
    """EMPO by hand: three of four agree (3/4), one does not (1/4); a unanimous prompt is left out: all 0.

    Rows of a group are apart, as verl balances batches by length, and a padding row belongs to no group.
    """
    responses = [r"\boxed{7}", r"\boxed{1}", r"so \boxed{7}", r"\boxed{1}", r"\boxed{7.0}", "?", r"\boxed{8}"]
    uids = ["a", "b", "a", "b", "a", "b", "a"]
    rows = batch(["q"] * 7, responses, uids)
    padding = [False] * 5 + [True, False]
    scores, scale, diagnostics = score(rows, EMPO(), Letters(), padding, step=1)
    assert scores.tolist() == [0.75, 0.0, 0.75, 0.0, 0.75, 0.0, 0.25]
    assert scale.tolist() == [1.0] * 7
    assert diagnostics["semantic/kept_share"] == 0.5
    _, scale, _ = score(rows, SeedGRPO(), Letters(), padding, step=1)
    assert scale[0] == scale[6] < 1 and scale[1] == 1.0


def test_rows_are_known_by_what_they_say():
    """Equal keys for equal tokens wherever they stand; ids are unique, and permute with the rows."""
    rows = [torch.tensor([1, 2, 3]), torch.tensor([3, 2, 1]), torch.tensor([1, 2]), torch.tensor([1, 2, 3])]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    keys = content_keys(nested)
    assert keys[0] == keys[3] and len(set(keys.tolist())) == 3
    ids = content_ids(keys)
    assert sorted(ids.tolist()) == [0, 1, 2, 3]
    order = torch.tensor([2, 0, 1])
    assert content_ids(keys[:3][order]).tolist() == content_ids(keys[:3])[order].tolist()


def test_plans_take_the_layout_of_the_rows():
    lengths = [2, 3, 1]
    nested = torch.nested.as_nested_tensor([torch.ones(n, dtype=torch.int64) for n in lengths], layout=torch.jagged)
    values = torch.arange(9).view(3, 3)
    assert like_rows(values, torch.ones(3, 3)) is values
    rows = like_rows(values, nested).unbind()
    assert [row.tolist() for row in rows] == [[0, 1], [3, 4, 5], [6]]


def law_points():
    return [(h, 0.6 - 0.1 * 2.718281828459045**h) for h in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2)]


def test_the_live_law_finds_the_line_and_prefers_validation():
    """R = 0.6 - 0.1 exp(H) exactly: a = 0.1, b = 0.6, ceiling 0.5; remaining a (exp(0.2) - 1)."""
    law = LiveLaw()
    for step, (entropy, reward) in enumerate(law_points()):
        row = {"actor/entropy": entropy, "critic/score/mean": 0.9, "val-core/chain/acc/mean@4": reward}
        found = law.update(row)
        assert bool(found) == (step == 7)
        assert law.update({"actor/entropy": entropy, "critic/score/mean": 0.5}) == {}
    assert found["law/a"] == pytest.approx(0.1) and found["law/ceiling"] == pytest.approx(0.5)
    assert found["law/remaining"] == pytest.approx(0.1 * (2.718281828459045**0.2 - 1))


def test_the_live_law_is_for_our_runs_only():
    def config(mode, estimator="grpo", bonus=0):
        actor = {"policy_loss": {"loss_mode": mode}, "entropy_coeff": bonus}
        return {"actor_rollout_ref": {"actor": actor}, "algorithm": {"adv_estimator": estimator}}

    assert live_law(None) is None and live_law({"a": 1}) is None
    assert live_law(config("vanilla")) is None
    assert live_law(config("autotelic_observe")).intervention is None
    assert live_law(config("autotelic_clip_cov")).intervention == "clip_cov"
    assert live_law(config("vanilla", "autotelic_empo")).intervention is None
    assert live_law(config("autotelic_observe", bonus=1e-3)).intervention == "an entropy bonus"


def test_metrics_of_a_mini_batch_are_declared_and_right():
    """Five tokens, two of them selected: 40 %; every name is in the glossary."""
    from autotelic.controls.entropy_control import UpdateBatch
    from autotelic.runs.glossary import METRICS
    from autotelic.verl.engine import plan_metrics

    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = -torch.tensor([[0.1, 2.0, 0.5], [1.0, 0.4, 9.0]])
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    batch = UpdateBatch(logprobs, advantages, mask, torch.arange(2), step=0, seed=0, across_ranks=False)
    with pytest.warns(EntropyControlWarning):
        control = KLCov(fraction=0.4)
    metrics = plan_metrics(control.plan(batch), batch)
    assert set(metrics) <= set(METRICS)
    assert metrics["selected/realised"] == metrics["selected/requested"] == 2 and metrics["selected/share"] == 0.4
    assert metrics["policy/surprisal"] == pytest.approx(0.8)
    assert metrics["advantage/std"] == pytest.approx(0.9797959)
