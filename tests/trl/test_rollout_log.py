"""What a logged rollout says of its prompt."""

from autotelic.report.run_folders import as_text
from autotelic.trl.rollout_log import prompt_row


def test_a_chat_is_logged_as_its_messages_and_read_line_by_line():
    chat = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "2 + 3?"}]
    row = prompt_row({"prompt": chat}, 3)
    assert row["prompt"] == chat and row["step"] == 3
    assert as_text(row["prompt"]) == "system: Answer.\nuser: 2 + 3?"
    text = "2 + 3?"
    assert prompt_row({"prompt": text}, 3) == {"step": 3, "prompt_id": text, "prompt": text, "responses": []}
