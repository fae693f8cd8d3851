"""Log readers: every format gives the same columns, and every complaint says what is there."""

import csv
import json

import numpy as np
import pytest

from autotelic.errors import UserError
from autotelic.runs.logs import pick_curve, read_log

STEPS = list(range(10, 110, 10))
ENTROPY = [0.6 * 0.9**i for i in range(10)]
REWARD = [0.9 - 0.4 * h for h in ENTROPY]


def write_jsonl(folder):
    path = folder / "metrics.jsonl"
    rows = [{"step": s, "policy/entropy": h, "reward/mean": r} for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_verl(folder):
    path = folder / "verl.jsonl"
    rows = zip(STEPS, ENTROPY, REWARD, strict=True)
    rows = [{"step": s, "data": {"actor/entropy": h, "critic/score/mean": r}} for s, h, r in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_state(folder):
    path = folder / "trainer_state.json"
    rows = [{"step": s, "entropy": h, "reward": r} for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True)]
    path.write_text(json.dumps({"log_history": [*rows, {"step": 110, "train_runtime": 5.0}]}))
    return path


def write_wandb(folder):
    path = folder / "export.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["Step", "run-1 - actor/entropy", "run-1 - actor/entropy__MIN", "run-1 - critic/score/mean"])
        for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True):
            out.writerow([s, h, h, r])
        out.writerow([120, "", "", ""])
    return path


def write_tensorboard(folder):
    summary = pytest.importorskip("torch.utils.tensorboard")
    writer = summary.SummaryWriter(str(folder / "tb"))
    for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True):
        writer.add_scalar("train/entropy", h, s)
        writer.add_scalar("train/reward", r, s)
    writer.close()
    return folder / "tb"


@pytest.mark.parametrize("write", [write_jsonl, write_verl, write_state, write_wandb, write_tensorboard])
def test_every_format_gives_the_same_curve(tmp_path, write):
    curve = pick_curve(read_log(write(tmp_path)))
    assert curve.step.tolist() == STEPS
    assert curve.entropy == pytest.approx(ENTROPY, rel=1e-6)
    assert curve.reward == pytest.approx(REWARD, rel=1e-6)
    assert curve.notes == ()


def test_other_shapes_of_the_same_log(tmp_path):
    rows = [{"step": s, "entropy": h, "reward": r} for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "semicolons.csv").write_text(
        "step;entropy;reward\n" + "".join(";".join(map(str, row.values())) + "\n" for row in rows)
    )
    (tmp_path / "console.log").write_text("".join(f" 5%|# | 1/9\n{row}\n" for row in rows) + "{'torn': [\n")
    names = {"step": "step", "entropy": "policy/policy_entropy", "reward": "reward/avg_raw_reward"}
    (tmp_path / "skyrl.jsonl").write_text(
        "".join(json.dumps({names[key]: value for key, value in row.items()}) + "\n" for row in rows)
    )
    for name in ("rows.json", "semicolons.csv", "console.log", "skyrl.jsonl"):
        curve = pick_curve(read_log(tmp_path / name))
        assert np.allclose(curve.entropy, ENTROPY) and np.allclose(curve.reward, REWARD), name


def test_two_runs_in_one_export_keep_their_names(tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("Step,a - entropy,b - entropy,a - reward\n1,.5,.6,.1\n2,.4,.5,.2\n")
    log = read_log(path)
    assert set(log.columns) == {"a - entropy", "b - entropy", "reward"}
    curve = pick_curve(log, entropy_column="b - entropy")
    assert curve.entropy.tolist() == [0.6, 0.5]


def test_validation_comes_before_training_and_missing_entropies_are_interpolated(tmp_path):
    """Entropy at 0 and 10, accuracy at 5: the entropy is half way, and a note says so."""
    rows = [
        {"step": 0, "policy/entropy": 0.6},
        {"step": 5, "eval/mean_at_k": 0.3, "reward/mean": 9.0},
        {"step": 10, "policy/entropy": 0.4},
        {"step": 20, "eval/mean_at_k": 0.5},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = pick_curve(read_log(path))
    assert (curve.step.tolist(), curve.reward.tolist()) == ([5], [0.3])
    assert curve.entropy == pytest.approx([0.5])
    assert "1 of 1 steps have no policy/entropy" in curve.notes[0]
    assert "1 steps lie outside" in curve.notes[1]


def test_columns_keep_the_last_value_of_a_step_and_drop_what_is_not_finite(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"step": 2, "a": 1}\n{"step": 1, "a": NaN, "b": true, "c": "x"}\n{"step": 2, "a": 3}\n{"step": 3, "a'
    )
    log = read_log(path)
    assert list(log.columns) == ["a"]
    assert np.array_equal(log.columns["a"], [[2], [3.0]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "{}\nnope\n{}\n", "line 2 is not JSON"),
        ("a.jsonl", "[]\n", "line 1 is not a JSON object"),
        (
            "a.jsonl",
            '{"step": 1, "x": 2}\n',
            "no entropy column that is known by name; it has: x; name one with --entropy",
        ),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "no log_history"),
        ("a.csv", "a,b\n", "is empty"),
        ("a.txt", "", "is not a log"),
    ],
)
def test_bad_logs_are_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        pick_curve(read_log(path))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_log(tmp_path / "no.jsonl")
    with pytest.raises(UserError, match="holds no metrics"):
        read_log(tmp_path)
    write_jsonl(tmp_path)
    with pytest.raises(UserError, match="did you mean 'policy/entropy'"):
        pick_curve(read_log(tmp_path), entropy_column="policy/entropi")
    with pytest.raises(UserError, match="no column 'time'"):
        read_log(tmp_path, step_column="time")


@pytest.mark.parametrize(
    ("row", "entropy", "reward"),
    [
        ({"actor/entropy": 0, "critic/score/mean": 1, "val-core/math/acc/mean@8": 1}, 0, 2),
        ({"actor/entropy_loss": 0, "critic/score/mean": 1, "val/test_score/openai/gsm8k": 1}, 0, 2),
        ({"entropy": 0, "reward": 1, "eval_reward": 1, "eval_reward_std": 1, "eval_runtime": 1}, 0, 2),
        ({"entropy": 0, "reward": 1, "eval_rewards/accuracy_reward/mean": 1, "eval_loss": 1}, 0, 2),
        (
            {"entropy/mean": 0, "reward/mean": 1, "eval/math500/avg@1": 1, "eval/math500/no_response": 1},
            0,
            2,
        ),  # prime-rl
        (
            {"train/entropy_loss": 0, "rollout/raw_reward": 1, "eval/aime": 1, "eval/aime-truncated_ratio": 1},
            0,
            2,
        ),  # slime
        ({"train/entropy_loss": 0, "train/reward": 1, "eval/eval_math_pass1": 1}, 0, 2),  # OpenRLHF
        ({"train/entropy_loss": 0, "train/reward": 1, "train/kl": 1}, 0, 1),
        ({"entropy": 0, "reward": 1, "accuracy": 1}, 0, 1),
    ],
)
def test_the_names_of_each_engine_are_known_validation_first(tmp_path, row, entropy, reward):
    rows = [{"step": s} | {name: 0.5 - s / 100 if v == 0 else s / 100 for name, v in row.items()} for s in range(4)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    curve = pick_curve(read_log(path))
    names = list(row)
    assert (curve.entropy_column, curve.reward_column) == (names[entropy], names[reward])
    assert curve.notes == ()


def test_several_rewards_as_good_as_each_other_are_named(tmp_path):
    """The one with the most points is taken; the others are in a note."""
    path = tmp_path / "m.jsonl"
    rows = [{"step": s, "actor/entropy": 0.5, "val-core/b/acc/mean@4": 0.1} for s in range(3)]
    rows[0]["val-core/a/acc/mean@4"] = 0.2
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    curve = pick_curve(read_log(path))
    assert curve.reward_column == "val-core/b/acc/mean@4"
    assert "not val-core/a/acc/mean@4: --reward-column names another" in curve.notes[0]


def test_ms_swift_llama_factory_and_verls_console(tmp_path):
    swift = tmp_path / "logging.jsonl"
    rows = zip(STEPS, ENTROPY, REWARD, strict=True)
    swift.write_text(
        "".join(
            json.dumps({"reward": r, "entropy/mean": h, "entropy/max": 9, "global_step/max_steps": f"{s}/100"}) + "\n"
            for s, h, r in rows
        )
    )
    factory = tmp_path / "trainer_log.jsonl"
    rows = zip(STEPS, ENTROPY, REWARD, strict=True)
    factory.write_text(
        "".join(
            json.dumps({"current_steps": s, "total_steps": 100, "entropy": h, "reward": r, "percentage": 1}) + "\n"
            for s, h, r in rows
        )
    )
    console = tmp_path / "verl.log"
    lines = [
        f"(TaskRunner pid=1) step:{s} - actor/entropy:np.float64({h}) - critic/score/mean:{r} - note:x"
        for s, h, r in zip(STEPS, ENTROPY, REWARD, strict=True)
    ]
    console.write_text("Ray started\n" + "\n".join(lines))
    for path in (swift, factory, console, tmp_path):  # the folder holds ms-swift's
        curve = pick_curve(read_log(path))
        assert curve.step.tolist() == STEPS
        assert curve.entropy == pytest.approx(ENTROPY) and curve.reward == pytest.approx(REWARD)
    console.write_text("nothing of ours")
    with pytest.raises(UserError, match="no line such as 'step:4"):
        read_log(console)


def test_fractional_steps_percentages_and_counted_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("epoch,entropy,accuracy\n0.25,.5,10%\n0.5,.4,20 %\n0.75,.3,30%\n")
    curve = pick_curve(read_log(path, step_column="epoch"))
    assert curve.step.tolist() == [0.25, 0.5, 0.75] and curve.reward == pytest.approx([0.1, 0.2, 0.3])
    assert curve.notes == ()
    path.write_text("entropy,accuracy\n.5,.1\n.4,.2\n")
    curve = pick_curve(read_log(path))
    assert curve.step.tolist() == [0, 1] and "rows are counted" in curve.notes[0]


def test_steps_that_go_back_are_said(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(json.dumps({"step": s, "entropy": 0.5, "reward": i}) + "\n" for i, s in enumerate([1, 2, 3, 2, 3]))
    )
    curve = pick_curve(read_log(path))
    assert curve.reward.tolist() == [0, 3, 4]
    assert "step goes back 1 time(s) (3 to 2)" in curve.notes[0]


def points(entropies=("0.9", "0.7", "0.5", "0.4")):
    return [(str(i + 1), h, f"0.{3 + i}") for i, h in enumerate(entropies)]


@pytest.mark.parametrize(
    ("name", "head", "delimiter", "decimal"),
    [
        ("spaces.csv", "step, entropy, reward", ", ", "."),
        ("tabs.csv", "step\tentropy\treward", "\t", "."),
        ("decimal_comma.csv", "step;entropy;reward", ";", ","),
        ("UPPER.CSV", "step,entropy,reward", ",", "."),
    ],
)
def test_tables_as_people_export_them(tmp_path, name, head, delimiter, decimal):
    lines = [delimiter.join(cells).replace(".", decimal) for cells in points()]
    (tmp_path / name).write_text("\n".join([head, *lines]))
    assert pick_curve(read_log(tmp_path / name)).entropy.tolist() == [0.9, 0.7, 0.5, 0.4]


def test_values_that_are_not_finite_are_counted_in_a_note(tmp_path):
    """The printed dict of a step whose loss is NaN still has its entropy; a NaN entropy is left out, and said."""
    path = tmp_path / "train.log"
    path.write_text(
        "\n".join(f"{{'loss': nan, 'entropy': {h}, 'reward': {r}}}" for _, h, r in points(("0.9", "0.7", "nan", "0.4")))
    )
    curve = pick_curve(read_log(path))
    assert curve.reward.tolist() == [0.3, 0.4, 0.5, 0.6]
    assert "1 values of entropy are NaN or infinite and are left out" in curve.notes


def test_rows_without_a_step_are_counted_in_a_note_and_no_step_at_all_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "entropy": 0.5, "reward": 0.5} for s in (1, 2, None)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 of 3 rows have no number in step and are left out" in read_log(path).notes
    path.write_text('{"step": "2025-01-01", "entropy": 0.5}\n')
    with pytest.raises(UserError, match=r"column .step. holds no number .the first is '2025-01-01'"):
        read_log(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("deep.json", b"[" * 100_000, "is not JSON"),
        ("utf16.csv", "step,entropy\n1,0.5\n".encode("utf-16"), "not UTF-8"),
        ("twice.csv", b"step,entropy,entropy\n1,0.5,9\n", "two columns 'entropy'"),
    ],
)
def test_hostile_logs_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_log(tmp_path / name)


def test_steps_beyond_64_bits_and_lines_in_a_json_file(tmp_path):
    rows = [{"step": 10**18 * s, "entropy": 0.5, "reward": 0.5} for s in range(1, 41)]
    (tmp_path / "log.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_log(tmp_path / "log.json").columns["entropy"][0][-1] == 4e19
