"""Labels of every published shape; what cannot be read is counted and named; the verifier pays nothing for it."""

import numpy as np
import pytest

from autotelic.errors import UserError
from autotelic.rewards import MixedReward, VerifierReward, empo
from autotelic.rewards.label_reader import is_right, read_label, unread_labels
from autotelic.rewards.verifiers import label_columns, takes_messages


@pytest.mark.parametrize(
    ("label", "accepted"),
    [
        ("He has 1+1=<<1+1=2>>2 eggs\n#### 2", ("2",)),
        ("We add to get $\\boxed{2}$.", ("2",)),
        ("First this.\nThen that, so \\boxed{\\dfrac{1}{2}}", ("\\dfrac{1}{2}",)),
        ("The answer is 2.", ("2",)),
        ("The answer is \\frac{1}{2}", ("\\frac{1}{2}",)),
        ("$\\frac{1}{2}$", ("\\frac{1}{2}",)),
        ("$$x$$", ("x",)),
        ("$5", ("$5",)),
        ("<answer>Paris</answer>", ("Paris",)),
        ("George Washington", ("George Washington",)),
        (2, ("2",)),
        (0.5, ("0.5",)),
        (np.float64(0.5), ("0.5",)),
        (10**30, ("1" + "0" * 30,)),
        (["4", "four", "4"], ("4", "four")),
        (np.array(["4", "four"]), ("4", "four")),
        ('["4", "four"]', ("4", "four")),
        ("['4']", ("4",)),
        ("[1, 2]", ("[1, 2]",)),
        ({"ground_truth": "7", "style": "rule"}, ("7",)),
        ({"value": "Paris", "aliases": ["Paris, France"]}, ("Paris", "Paris, France")),
        ("", ()),
        (None, ()),
        (True, ()),
        (float("nan"), ()),
        ([], ()),
        (["", None], ()),
        ("We add the numbers. That makes two in all.", ()),
        ("one\ntwo", ()),
    ],
)
def test_labels(label, accepted):
    assert read_label(label) == accepted


def test_sentences_are_answers_where_answers_are_texts():
    text = "It rises. The gas is heated, after all."
    assert read_label(text, free_text=True) == (text,)


def test_any_accepted_answer_is_right():
    assert is_right("1/2", ("7", "0.5")) and not is_right("3", ("7", "0.5"))
    assert not is_right(None, ("7",)) and not is_right("7", ())


def test_unread_labels_are_counted_and_named():
    assert unread_labels(["1", 2]) == ([], None)
    places, note = unread_labels(["1", None, "2", "No. It has no answer at all."])
    assert places == [1, 3]
    assert note == "2 of 4 labels cannot be read (row 2, 4; the first is 'None')"
    with pytest.raises(UserError, match="2 of 2 labels cannot be read"):
        unread_labels([None, ""])


def test_the_verifier_reads_the_last_assistant_message_and_any_label(caplog):
    tool = [{"role": "assistant", "content": None}, {"role": "tool", "content": "42"}]
    said = [{"role": "assistant", "content": "\\boxed{1}"}, {"role": "assistant", "content": "So \\boxed{42}."}]
    verifier = VerifierReward()
    labels = ["42", "#### 42", ["41", "42"], "Why? Because it is so, I say."]
    assert verifier(["q"] * 4, [tool, said, said, said], answer=labels) == [0, 1, 1, None]
    assert verifier.num_unread == 1 and "cannot be read" in caplog.text


def exact(prompts, completions, answer, *, difficulty=None, **kwargs):
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def test_a_reward_gets_the_columns_that_it_names_and_a_label_free_one_none():
    accuracy = pytest.importorskip("trl.rewards").accuracy_reward
    assert label_columns(exact) == ("answer", "difficulty")
    assert label_columns(accuracy) == label_columns(takes_messages(accuracy)) == ("solution",)
    assert label_columns(VerifierReward("gold")) == ("gold",)
    assert label_columns(empo) == ()
    assert label_columns(MixedReward([(empo, 1.0), (exact, 1.0), (VerifierReward(), 1.0)])) == ("answer", "difficulty")
    texts = ["So $\\boxed{2}$.", "So $\\boxed{3}$."]
    assert takes_messages(accuracy)(prompts=["q"] * 2, completions=texts, solution=["$2$"] * 2) == [1.0, 0.0]


def test_a_reward_of_trl_by_its_path_takes_texts_and_asks_for_its_column():
    pytest.importorskip("trl.rewards")
    from autotelic.rewards.reward_table import read_reward

    reward = read_reward("trl.rewards.accuracy_reward")
    assert label_columns(reward) == ("solution",) and reward.__name__ == "accuracy_reward"
    assert reward(prompts=["q"], completions=["So $\\boxed{2}$."], solution=["$2$"]) == [1.0]
