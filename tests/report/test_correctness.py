"""Labels meet recorded responses: by the prompt's text, never by part of a number."""

import json

import synthetic_runs

from autotelic.report import data
from autotelic.report.correctness import FOLLOWED, Labels, held, with_verdicts
from autotelic.report.payload import build_payload
from autotelic.report.rollout_viewer import rollouts
from autotelic.report.run_folders import load_run

LABELS = [{"prompt": "12+7-5=", "answer": "14"}, {"prompt": "0+0=", "answer": "14"}, {"prompt": "x", "answer": None}]


def test_a_question_is_held_as_a_line_or_a_message_of_its_own():
    assert held("2+7=", "<|user|>\n2+7=<|end|>\n")
    assert held("2+7=", "2+7=") and held("2+7=", "Add.\n2+7=\n")
    assert not held("2+7=", "12+7=") and not held("2+7=", "2+7=?") and not held("", "x")


def test_prompts_as_text_as_messages_and_as_logged_json_are_found():
    messages = [{"role": "user", "content": "One and one?"}]
    labels = Labels([{"prompt": messages, "answer": "2"}])
    for prompt in ("user: One and one?", json.dumps(messages), "<|im_start|>user\nOne and one?<|im_end|>\n"):
        assert labels.of(prompt) == ("2",)
    assert labels.of("Two and one?") == ()
    record = {"prompt": messages, "responses": [{"text": r"\boxed{2}"}, {"text": "so 3"}, {"text": ""}]}
    assert labels.judge(record) == [True, False, False]
    assert labels.judge({"prompt": "unknown", "responses": [{"text": "2"}]}) is None


def test_verdicts_reach_the_viewer_and_the_curve_of_followed_prompts(tmp_path):
    """p0 and the first followed prompt have a label, the others none: by hand, from the recorded texts."""
    folder = synthetic_runs.write_run(tmp_path / "grpo", "grpo", steps=20, followed=2, rollout_every=20)
    (run,) = with_verdicts([load_run(folder)], LABELS)
    rows = [json.loads(line) for line in (folder / "followed.jsonl").read_text().splitlines()]
    for step in (0, 20):
        (row,) = [row for row in rows if (row["step"], row["prompt"]) == (step, "0+0=")]
        right = ["=14<eos>" in response["text"] for response in row["responses"]]
        assert run.metrics[FOLLOWED][step] == sum(right) / len(right)
    groups = data.group_runs([run])
    (entry,) = rollouts(groups)[0]["runs"]
    judged = {p["prompt"]: ["k" in r for s in p["steps"] for r in s["responses"]] for p in entry["prompts"]}
    assert all(judged["12+7-5="]) and all(judged["0+0="])
    assert not any(judged["1+1="])
    titles = [chart["title"] for chart in data.charts(groups)[0]]
    assert "Followed prompts: right responses" in titles


def test_without_labels_nothing_is_judged_and_the_page_says_how(tmp_path):
    runs = [load_run(synthetic_runs.write_run(tmp_path / "grpo", "grpo", steps=5))]
    assert with_verdicts(runs, []) == runs
    payload = build_payload(runs, None, "t")
    assert any("--labels" in note for note in payload["absent"])
    assert not any("Followed prompts" in note for note in payload["absent"])


def test_the_command_knows_problems_beyond_the_first_thousand():
    """Recipes of the small world draw from four thousand."""
    from autotelic.cli.report import read_labels
    from autotelic.tasks import load_problems

    last = load_problems("chain_sums:train", limit=4000)[-1]
    assert Labels(read_labels("chain_sums:train")).of(last["prompt"]) == (last["answer"],)
