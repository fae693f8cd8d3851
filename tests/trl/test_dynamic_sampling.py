"""Dynamic sampling: which groups are replaced, by what, at what cost, and that nothing else changes."""

import pytest
import torch
from tiny_trainer import logged, micro_batches

from autotelic.controls.entropy_control import EntropyControlWarning
from autotelic.errors import UserError
from autotelic.rewards import EMPO
from autotelic.trl import ClipCov, Control, LabelFree, SurplusVotes, with_parts
from autotelic.trl.dynamic_sampling import DynamicSampling, divisible, put, with_dynamic_sampling, with_signal

PROMPTS = ("1+2=?", "3+4+5=?", "9-1=?", "2-2=?")


def odd_prompts_teach(prompts, completions, **kwargs):
    """Only prompts that begin with 3 or 9 have rewards that differ: two of the four."""
    return [float(i % 4) if prompt[0] in "39" else 1.0 for i, prompt in enumerate(prompts)]


def rollout_of(make_trainer, *parts, reward=odd_prompts_teach, **settings):
    trainer = make_trainer(with_parts, parts=list(parts), reward_funcs=reward, prompts=PROMPTS, **settings)
    found = micro_batches(trainer)
    rows = torch.cat([part["row_ids"] for part in found])
    order = rows.argsort()
    names = ("prompt_ids", "completion_ids", "completion_mask", "advantages", "old_per_token_logps")
    whole = {}
    for name in names:
        whole[name] = torch.cat([part[name] for part in found])[order]
    assert rows[order].tolist() == list(range(len(rows)))
    metrics = {name: values[-1] for name, values in logged(trainer).items() if name.startswith("sampling/")}
    return trainer, whole, metrics, found


def prompts_of(trainer, whole):
    return trainer.processing_class.batch_decode(whole["prompt_ids"], skip_special_tokens=True)


def test_every_group_teaches_and_groups_with_signal_stay(make_trainer):
    """Eight groups of four: what had signal is untouched, the rest is from prompts that have some; the cost is told."""
    _, plain, _, _ = rollout_of(make_trainer)
    trainer, full, metrics, parts = rollout_of(make_trainer, DynamicSampling(20))
    signal = with_signal(plain["advantages"], 4)
    assert 0 < int(signal.sum()) < 8 and bool(with_signal(full["advantages"], 4).all())
    width = plain["completion_ids"].shape[1]
    for group in signal.nonzero().flatten().tolist():
        rows = slice(4 * group, 4 * group + 4)
        assert torch.equal(full["completion_ids"][rows, :width], plain["completion_ids"][rows])
        assert torch.equal(full["advantages"][rows], plain["advantages"][rows])
    texts = prompts_of(trainer, full)
    assert all(text[0] in "39" for text in texts)
    assert all(len({*texts[4 * group : 4 * group + 4]}) == 1 for group in range(8))
    assert metrics["sampling/refilled"] == 8 - int(signal.sum()) and metrics["sampling/without_signal"] == 0
    assert metrics["sampling/extra_share"] >= metrics["sampling/refilled"] / 8
    assert int(parts[0]["num_items_in_batch"]) == int(full["completion_mask"].sum())


def test_rows_that_were_put_in_are_those_of_the_policy(make_trainer):
    """Old log-probabilities of every row, scored again by the model: padding did not move anything."""
    from autotelic.trl.seam import score

    trainer, _, _, parts = rollout_of(make_trainer, DynamicSampling(20))
    for part in parts:
        again, _ = score(trainer, part)
        mask = part["completion_mask"].bool()
        torch.testing.assert_close(part["old_per_token_logps"][mask], again[mask], rtol=1e-4, atol=1e-5)


def test_the_bound(make_trainer):
    """Where no prompt teaches, the rollout is sampled so many times and no more, and training goes on."""
    calls = []

    def nothing(prompts, completions, **kwargs):
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    _, _, metrics, _ = rollout_of(make_trainer, DynamicSampling(3), reward=nothing)
    assert calls == [32, 32, 32]
    assert metrics == {"sampling/extra_share": 2.0, "sampling/refilled": 0.0, "sampling/without_signal": 1.0}


@pytest.mark.slow
def test_with_thresholds_a_control_and_votes(make_trainer):
    """EMPO's masked prompts are replaced too; the control chooses over what remains; half of the votes train."""
    with pytest.warns(EntropyControlWarning, match="not a percentage"):
        control = Control(ClipCov(fraction=0.2, low=-9.0, high=9.0))
    parts = [SurplusVotes(2), DynamicSampling(4), LabelFree(), control]
    trainer = make_trainer(with_parts, parts=parts, reward_funcs=EMPO(), prompts=PROMPTS)
    assert [type(part) for part in trainer.parts] == [LabelFree, Control, DynamicSampling, SurplusVotes]
    trainer.train()
    assert trainer.state.global_step == 4
    assert all("sampling/extra_share" in row for row in trainer.state.log_history if "reward" in row)


def test_one_round_is_trls_own(make_trainer):
    assert make_trainer(lambda cls: with_dynamic_sampling(cls, max_generation_batches=1)).parts == []
    refilling = make_trainer(lambda cls: with_dynamic_sampling(cls, max_generation_batches=3))
    assert refilling.part(DynamicSampling).rounds == 3


def test_what_reads_all_groups_is_refused(make_trainer):
    for settings, match in (
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"reward_funcs": EMPO(prompt_fraction=0.5)}, "the reward empo"),
    ):
        with pytest.raises(UserError, match=match):
            make_trainer(with_parts, parts=[DynamicSampling(2)], **settings)
    with pytest.raises(UserError, match="at least 1"):
        DynamicSampling(0)


@pytest.mark.parametrize(("count", "group", "processes", "expected"), [(1, 8, 2, 1), (1, 4, 8, 2), (3, 3, 2, 4)])
def test_processes_share_the_rows(count, group, processes, expected):
    assert divisible(count, group, processes) == expected


def test_the_narrower_row_is_padded():
    """Prompts on the left, responses on the right, either way round."""
    output = {"prompt_ids": torch.tensor([[1, 2]]), "completion_ids": torch.tensor([[3]]), "row_ids": torch.tensor([0])}
    found = {"prompt_ids": torch.tensor([[7]]), "completion_ids": torch.tensor([[8, 9]]), "row_ids": torch.tensor([5])}
    put(output, 0, found, 0)
    assert output["prompt_ids"].tolist() == [[0, 7]] and output["completion_ids"].tolist() == [[8, 9]]
    assert output["row_ids"].tolist() == [0]
