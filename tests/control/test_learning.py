"""`autotelic control data | train | online`: run folders, resuming, evaluation, refusals, and the small environment."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from tests.control.conftest import POINTS

from autotelic.cli.main import main
from autotelic.control.collection import build_data, read_data
from autotelic.control.environments import MetaWorld, expert, make
from autotelic.control.episodes import Episode, write_minari
from autotelic.control.networks import GaussianPolicy, load_policy
from autotelic.control.online import run_online
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.settings import METHODS, DataSettings, OnlineSettings, TrainSettings
from autotelic.control.training import build_learner, choose, evaluate, prepare, train
from autotelic.errors import UserError
from autotelic.functional.lookahead import BiasedLookaheadWarning

pytest.importorskip("minari", reason="needs the extra: pip install 'autotelic[control]'")
FAST = TrainSettings(hidden=(16,), bc_steps=4, steps=4, eval_every=2, eval_episodes=4, batch_pairs=4, num_envs=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("points")
    build_data(DataSettings(**POINTS), path)
    return path


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_run_that_the_report_reads(folder, tmp_path, method):
    from autotelic.report.run_folders import load_run

    result = train(replace(FAST, method=method), folder, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.method == method and run.seed == 0
    assert list(run.metrics["eval/success"]) == [4, 6, 8] and "preference/nll_ppl" in run.metrics
    assert 0 <= result["eval/success_low"] <= result["eval/success"] <= result["eval/success_high"] <= 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "metrics.jsonl",
        "policy.safetensors",
        "result.json",
        "run.json",
        "state.pt",
    ]


def test_methods_share_their_clone(folder, tmp_path):
    for name, change in {"a": {"method": "cpl"}, "b": {"method": "ppl"}, "c": {"future": "observed"}}.items():
        with pytest.warns(BiasedLookaheadWarning) if name == "c" else nullcontext():
            train(replace(FAST, steps=0, **change), folder, tmp_path / name)
    rows = [rows_of(tmp_path / name)[0] for name in "abc"]
    assert len({(row["eval/return"], row["preference/nll_cpl"]) for row in rows}) == 1


def test_an_interrupted_run_resumes_with_the_same_numbers(folder, tmp_path, monkeypatch):
    settings = replace(FAST, dropout=0.2)
    train(settings, folder, tmp_path / "whole")
    from autotelic.control.learners import PreferenceLearner

    update = PreferenceLearner.update

    def interrupted(self):
        if self.updates == 7:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(PreferenceLearner, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings, folder, tmp_path / "cut")
    monkeypatch.undo()
    with pytest.raises(UserError, match="give --resume"):
        train(settings, folder, tmp_path / "cut")
    with pytest.raises(UserError, match="another alpha"):
        train(replace(settings, alpha=0.2), folder, tmp_path / "cut", resume=True)
    train(settings, folder, tmp_path / "cut", resume=True)
    whole, cut = (
        [{k: v for k, v in row.items() if k != "train/step_time"} for row in rows_of(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert whole == cut
    lines = []
    again = train(settings, folder, tmp_path / "cut", resume=True, progress=lines.append)
    assert again["step"] == 8 and "is finished" in lines[0]


def test_evaluation_counts_success_of_the_deterministic_policy():
    good, bad = LinearBehavior(std=2.0), LinearBehavior(gain=-1.0)
    environment = make("point-reach", 8, 50)
    assert evaluate(good, environment, 20, 0, True)["eval/success"] == 1.0
    assert evaluate(bad, environment, 20, 0, True)["eval/success"] < 0.2


@pytest.mark.slow
def test_a_good_policy_is_found_in_seconds(tmp_path):
    """From behaviours of about 20 and 100 % success, PPL makes much more of the data than their clone does."""
    settings = DataSettings(
        env="point-reach",
        actions="tanh",
        policies=("linear:2:1:0.8", "linear:6:0:0.3"),
        episodes=32,
        num_envs=32,
        segment_length=16,
        segments=500,
        critic="simulated",
    )
    build_data(settings, tmp_path / "data")
    fast = TrainSettings(hidden=(64,), bc_steps=200, steps=150, eval_every=150, eval_episodes=32, lr=1e-3, dropout=0.0)
    train(fast, tmp_path / "data", tmp_path / "run", environment=make("point-reach", 32, 50))
    clone, *_, last = rows_of(tmp_path / "run")
    assert last["eval/return"] > clone["eval/return"] + 3 and last["eval/success"] > clone["eval/success"]
    assert last["preference/accuracy"] > 0.6 and last["preference/nll_ppl"] < clone["preference/nll_ppl"]


def test_auto_names_the_lower_held_out_nll(folder, tmp_path):
    result = train(replace(FAST, label_model="auto"), folder, tmp_path / "run")
    assert result["label_model"] == min(result["held_out_nll"], key=result["held_out_nll"].get)


def test_auto_picks_by_nll_alone(folder, monkeypatch):
    import autotelic.control.training as training

    for better in ("cpl", "ppl"):
        nll = {f"preference/nll_{name}": 0.5 - 0.1 * (name == better) for name in ("cpl", "ppl")}
        monkeypatch.setattr(training, "preference_figures", lambda *_, nll=nll: nll)
        settings = replace(FAST, label_model="auto", steps=0, bc_steps=0)
        assert choose(settings, prepare(settings, folder), lambda line: None)["label_model"] == better


def test_data_without_densities_trains_what_needs_none(tmp_path, episodes):
    bare = [Episode(e.observations, e.actions, e.rewards, e.success, e.policy) for e in episodes]
    write_minari(tmp_path / "episodes", bare, True, {"environment": "point-reach"})
    np.savez(
        tmp_path / "preferences.npz",
        episode=np.arange(8),
        start=np.zeros(8, dtype=int),
        length=np.full(8, 6),
        first=np.array([0, 1, 2, 3]),
        second=np.array([4, 5, 6, 7]),
        label=np.array([1.0, 0.0, 0.5, 1.0]),
    )
    with pytest.raises(UserError, match="episode 0: behaviour parameters are missing"):
        train(FAST, tmp_path, tmp_path / "no")
    assert "preference/nll_ppl" not in train(replace(FAST, method="cpl"), tmp_path, tmp_path / "cpl")
    assert "eval/success" in train(replace(FAST, method="ppl_d"), tmp_path, tmp_path / "ppl_d")


def test_the_learning_rate_rises_after_cloning_and_falls_to_the_end(folder):
    """Four updates of cloning at lr; then 1/2, 2/2 of it for the warm-up, times 4/4, 3/4, 2/4, 1/4 for the decay."""
    learner = build_learner(replace(FAST, method="cpl", warmup=2, decay=True), prepare(FAST, folder))
    rates = []
    for _ in range(8):
        learner.update()
        rates.append(learner.optimizers["policy"].param_groups[0]["lr"] / FAST.lr)
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 0.5, 0.75, 0.5, 0.25])


def test_cpls_released_network_is_the_default_on_metaworld(folder, tmp_path):
    """A tanh keeps the mean within the actions, which are read as the environment received them."""
    assert FAST.on("metaworld/door-open", squash=False).output_act == "tanh"
    assert FAST.on("metaworld/door-open", squash=True).output_act == "linear"
    assert FAST.on("point-reach", squash=False).output_act == "linear"
    with pytest.raises(UserError, match="clipped actions"):
        train(replace(FAST, output_act="tanh"), folder, tmp_path / "no")
    clip = replace(DataSettings(**POINTS), actions="clip", policies=("linear:6:0:2", "linear:-3:0:2"))
    build_data(clip, tmp_path / "data")
    assert max(np.abs(e.actions).max() for e in read_data(tmp_path / "data")[0]) > 1
    prepared = prepare(replace(FAST, output_act="tanh"), tmp_path / "data")
    assert float(prepared.data.actions.abs().max()) < 1
    train(replace(FAST, output_act="tanh", lr=0.1), tmp_path / "data", tmp_path / "run")
    policy = load_policy(tmp_path / "run" / "policy.safetensors")
    assert policy.output_act == "tanh" and np.abs(policy.parameters_at(np.full((3, 6), 50.0))[0]).max() <= 1


def test_online_rounds_spend_their_answers(tmp_path):
    online = OnlineSettings(rounds=2, round_episodes=4, round_answers=6, start="linear:1:1:0.8", segment_length=5)
    rows = run_online(online, replace(FAST, horizon=15, steps=2), tmp_path / "run")
    assert [row["feedback/labels"] for row in rows] == [0, 6, 12]
    assert [row["step"] for row in rows] == [0, 6, 8]
    assert rows_of(tmp_path / "run") == rows
    lines, noisy = [], replace(online, rounds=1, temperature=0.1, temperature_unit="spread")
    run_online(noisy, replace(FAST, horizon=15, steps=2), tmp_path / "noisy", lines.append)
    assert "temperature_unit score" in lines[0], "the unit is warned of when it is used"
    with pytest.raises(UserError, match="rounds"):
        OnlineSettings(rounds=0)


def test_the_command_line_from_data_to_frames(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "data: {policies: ['linear:3:0.6:0.6', 'linear:-1:0:0.8'], actions: tanh, critic: simulated, horizon: 20,\n"
        "  episodes: 8, segment_length: 8, segments: 40}\n"
        "train: {hidden: [8], bc_steps: 2, steps: 2, eval_every: 2, eval_episodes: 4, num_envs: 4}\n"
        "online: {rounds: 1, round_episodes: 4, round_answers: 5, segment_length: 5, start: 'linear:1:0:1'}\n"
    )
    common, data = ["--config", str(tmp_path / "r.yaml")], str(tmp_path / "d")
    assert main(["control", "data", *common, "--output", data, "--judge", "advantage"]) == 0
    assert "20 pairs" in capsys.readouterr().out
    assert json.loads((tmp_path / "d" / "data.json").read_text())["settings"]["judge"] == "advantage"
    options = ["--data", data, "--output", str(tmp_path / "r")]
    assert main(["control", "train", "cpl", *common, *options, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["method"] == "cpl" and "frames:" in out.err
    assert (tmp_path / "r" / "rollout.png").read_bytes().startswith(b"\x89PNG")
    assert main(["control", "train", "cpl", *common, *options, "--no-frames"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["control", "train", "cpl", *common, *options, "--no-frames", "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["control", "online", "ppl", *common, "--horizon", "10", "--output", str(tmp_path / "o")]) == 0
    assert "5 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {episods: 3}", "did you mean 'episodes'"),
        ("data: {episodes: many}", "not a whole number"),
        ("dta: {}", "did you mean 'data'"),
        ("data: [1]", "must be a mapping"),
        ("data: [", "is not YAML"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path, capsys, text, words):
    (tmp_path / "r.yaml").write_text(text)
    assert main(["control", "data", "--config", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_folder_without_data_is_refused_in_one_line(tmp_path, capsys):
    assert main(["control", "train", "cpl", "--data", str(tmp_path / "x"), "--output", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "no Minari data set" in error and error.count("\n") == 1


def test_point_reach_is_a_gymnasium_environment():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra: pip install 'autotelic[control]'")
    from gymnasium.utils.env_checker import check_env

    import autotelic.control.gymnasium_env  # noqa: F401

    environment = gymnasium.make("autotelic/PointReach-v0", horizon=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the checker's remarks on infinite bounds
        check_env(environment.unwrapped, skip_render_check=True)
    environment.reset(seed=3)
    results = [environment.step(np.zeros(2, dtype=np.float32)) for _ in range(5)]
    assert [r[3] for r in results] == [False] * 4 + [True]


def test_points_can_be_put_anywhere():
    environment = PointReach(3, 9)
    before, _ = environment.reset(0)
    action = np.full((3, 2), 0.3)
    after = environment.step(action)[0]
    other = PointReach(3, 9)
    other.place(before)
    np.testing.assert_allclose(other.step(action)[0], after)
    with pytest.raises(UserError, match="one state for each"):
        other.place(before[:2])


def test_unknown_environments_are_refused():
    with pytest.raises(UserError, match="did you mean 'point-reach'"):
        make("point-rech")
    with pytest.raises(UserError, match="unknown environment"):
        expert("metaworld/fly")
    with pytest.raises(UserError, match="horizon"):
        MetaWorld("door-open", 1, 501)
    with pytest.raises(UserError, match="std"):
        GaussianPolicy(2, 2, (4,), std=-1.0)


@pytest.mark.slow
def test_metaworld_end_to_end(tmp_path, monkeypatch):
    """Rollouts of a task repeat, the script solves it, and data, training and frames work."""
    pytest.importorskip("metaworld", reason="needs the extra: pip install 'autotelic[control]'")
    monkeypatch.setattr("autotelic.control.judges.UPDATES", 50)  # how good the critics are is not asked here
    environment, script = make("metaworld/drawer-open", 2, 120), expert("metaworld/drawer-open")
    runs = []
    for seed in (5, 5, 6):
        observation, _ = environment.reset(seed)
        rewards, success = [], np.zeros(2, dtype=bool)
        for _ in range(120):
            observation, reward, _, _, info = environment.step(script(observation))
            rewards.append(reward)
            success |= info["success"]
        assert success.all()
        runs.append(np.stack(rewards))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    hands = {make("metaworld/drawer-open", 2, 9, True).reset(s)[0][:, :3].tobytes() for s in (5, 5, 6)}
    assert len(hands) == 2, "the hand's start is random, and its seed fixes it"
    settings = DataSettings(
        env="metaworld/drawer-open",
        random_hand=True,
        policies=("clone:2:30", "clone:2:300"),
        episodes=4,
        num_envs=2,
        horizon=100,
        segments=20,
        critic_episodes=4,
    )
    build_data(settings, tmp_path / "data")
    train(replace(FAST, num_envs=2), tmp_path / "data", tmp_path / "run")
    assert (
        prepare(FAST, tmp_path / "data").random_hand
        and load_policy(tmp_path / "run/policy.safetensors").output_act == "tanh"
    )
    from autotelic.control.render import try_frames

    line = try_frames(tmp_path / "run")
    assert line.startswith(("frames:", "no frames:"))
