"""What the viewer leaves out of prompts that begin alike."""

from autotelic.report.rollout_viewer import leave_out_shared

EXAMPLE = "user: Ann has 5 pens and gets 3 more. How many?\nassistant: 5 + 3 = 8. The answer is 8."
EXAMPLES = f"system: Answer with one sum.\n{EXAMPLE}\n{EXAMPLE}"


def entries(*texts):
    return [{"prompt": text} for text in texts]


def test_worked_examples_that_all_prompts_share_are_left_out():
    prompts = entries(f"{EXAMPLES}\nuser: one?", f"{EXAMPLES}\nuser: two?", f"{EXAMPLES}\nuser: one?")
    assert leave_out_shared(prompts) == EXAMPLES.split("\n")
    assert [prompt["prompt"] for prompt in prompts] == ["...\nuser: one?", "...\nuser: two?", "...\nuser: one?"]


def test_one_prompt_short_beginnings_and_different_ones_stay_whole():
    for texts in ([EXAMPLES], [EXAMPLES, EXAMPLES], ["sum:\n1+2", "sum:\n3+4"], [f"a{EXAMPLES}", f"b{EXAMPLES}"], []):
        prompts = entries(*texts)
        assert leave_out_shared(prompts) == []
        assert [prompt["prompt"] for prompt in prompts] == texts


def test_a_prompt_that_another_continues_keeps_its_last_line():
    prompts = entries(EXAMPLES, f"{EXAMPLES}\nuser: two?")
    assert leave_out_shared(prompts) == EXAMPLES.split("\n")[:-1]
    assert prompts[0]["prompt"].startswith("...\nassistant")
