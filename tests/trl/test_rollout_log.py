"""What a logged rollout says of its prompt."""

from types import SimpleNamespace

from autotelic.report.run_folders import as_text
from autotelic.trl import RolloutLog


def test_a_chat_is_logged_as_its_messages_and_read_line_by_line(tmp_path):
    log = RolloutLog(tmp_path / "rollouts.jsonl", 1, 1)
    log.trainer = SimpleNamespace(state=SimpleNamespace(global_step=3))
    chat = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "2 + 3?"}]
    row = log._prompt({"prompt": chat})
    assert row["prompt"] == chat and row["step"] == 3
    assert as_text(row["prompt"]) == "system: Answer.\nuser: 2 + 3?"
    assert log._prompt({"prompt": "2 + 3?"}) == {"step": 3, "prompt_id": "2 + 3?", "prompt": "2 + 3?", "responses": []}
