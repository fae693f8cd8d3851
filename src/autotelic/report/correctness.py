"""Which recorded responses are right: labels meet responses here, after training, for the report's viewer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotelic.report.run_folders import RolloutRow, Run, as_text, read_rollout

FOLLOWED = "followed/right"
"""Share of right responses to the followed prompts, by step: a curve of the page, not of a run."""


class Labels:
    """The accepted answers of problems, found by the text of their prompts.

    Args:
        problems: rows with `prompt` and `answer`. A recorded prompt may hold a problem's text inside a chat template.
    """

    def __init__(self, problems: Sequence[Mapping[str, Any]]):
        from autotelic.tasks.conversations import question_text

        self.labels: dict[str, Any] = {}
        for row in problems:
            for text in (as_text(row["prompt"]), json.dumps(row["prompt"], default=str), question_text(row["prompt"])):
                self.labels.setdefault(text, row["answer"])
        self.known: dict[str, tuple[str, ...]] = {}
        self.verdicts: dict[tuple[str, str | None], bool] = {}

    def of(self, prompt: str) -> tuple[str, ...]:
        """Return the accepted answers of a recorded prompt; none where no problem has it."""
        from autotelic.rewards.label_reader import read_label

        if prompt not in self.known:
            whole = prompt
            if prompt not in self.labels:
                whole = max((text for text in self.labels if held(text, prompt)), key=len, default="")
            self.known[prompt] = read_label(self.labels.get(whole))
        return self.known[prompt]

    def judge(self, record: Mapping[str, Any]) -> list[bool] | None:
        """Return whether each response of a row of rollouts is right; None where the prompt has no label."""
        from autotelic.answers import extract
        from autotelic.rewards.label_reader import is_right

        prompt = as_text(record.get("prompt"))
        accepted = self.of(prompt)
        if not accepted:
            return None
        found = []
        for response in record["responses"]:
            key = (prompt, extract(str(response.get("text", ""))))
            if key not in self.verdicts:
                self.verdicts[key] = is_right(key[1], accepted)
            found.append(self.verdicts[key])
        return found


def held(question: str, prompt: str) -> bool:
    """Tell whether a prompt holds a question as a line or a message of its own: `2+7=` is not held in `12+7=`."""
    before, found, after = prompt.partition(question) if question else (prompt, "", "")
    return bool(found) and before[-1:] in ("", "\n", ">") and after[:1] in ("", "\n", "<")


def with_verdicts(runs: Sequence[Run], problems: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Return the runs with a verdict on every recorded response that has a label, and the curve of followed prompts."""
    if not problems:
        return list(runs)
    labels = Labels(problems)
    found = []
    for run in runs:
        judged = {
            name: [judged_row(run, row, labels) for row in getattr(run, name)] for name in ("rollouts", "followed")
        }
        looks: dict[int, list[bool]] = {}
        for row in judged["followed"]:
            looks.setdefault(row.step, []).extend(row.right or ())
        curve = {step: sum(right) / len(right) for step, right in sorted(looks.items()) if right}
        found.append(replace(run, **judged, metrics=run.metrics | ({FOLLOWED: curve} if curve else {})))
    return found


def judged_row(run: Run, row: RolloutRow, labels: Labels) -> RolloutRow:
    """Return the row with its verdicts."""
    right = labels.judge(read_rollout(run.path, row))
    return row if right is None else replace(row, right=tuple(right))
