"""Packing by itself: who is with whom, where each token lies, what it sees, and what it costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.lm.packing import best_packs, cost, longest, pack, rows_of, spread
from autotelic.trl.update_order import regrouped, update_window

X = -100


def batch(rows, width):
    """Return ids, attention and labels of rows (padding, prompt, completion), padded right to the width."""
    ids, attention, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, X))
    for i, (left, prompt, completion) in enumerate(rows):
        tokens = torch.tensor([*prompt, *completion])
        ids[i, left : left + len(tokens)] = tokens
        attention[i, left : left + len(tokens)] = 1
        labels[i, left + len(prompt) : left + len(tokens)] = torch.tensor(completion, dtype=torch.long)
    return ids, attention, labels


def test_a_case_by_hand():
    """[1 2 | 5 6] and [1 2 | 7] with one column of padding: 1 2 5 6 7 at columns 1 2 3 4 3, and who sees whom."""
    ids, attention, labels = batch([(1, [1, 2], [5, 6]), (1, [1, 2], [7])], 5)
    rows = rows_of(ids, attention, labels)
    assert (rows.groups, rows.prompts, rows.completions, rows.padded) == ([[0, 1]], [2, 2], [2, 1], True)
    packed = pack(ids, attention, labels, [[0, 1]])
    assert packed.input_ids.tolist() == [[1, 2, 5, 6, 7]]
    assert packed.position_ids.tolist() == [[1, 2, 3, 4, 3]]
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert packed.allowed[0, 0].int().tolist() == seen
    assert packed.places.tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 4, 0]]
    hidden = torch.arange(5.0).view(1, 5, 1)
    wanted = torch.nn.functional.pad(labels[:, 1:] != X, (0, 1))
    assert packed.rows(hidden, wanted).flatten().tolist() == [1, 2, 1]  # the prompt's last token serves both


def test_prompts_are_one_only_where_tokens_and_columns_agree():
    rows = [
        (1, [1, 2], [5]),
        (1, [1, 2], [6, 7]),
        (0, [1, 2], [5]),
        (1, [1, 3], [5]),
        (1, [1, 2], []),
        (0, [9, 1, 2], [5]),
    ]
    assert rows_of(*batch(rows, 6)).groups == [[0, 1], [2], [3], [5]]  # the row without a label is in none


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_token_keeps_its_company(data):
    """For any batch and any size of packs: each token finds itself, its column, and the tokens that it saw."""
    prompts = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=3))
    completion = st.lists(st.integers(4, 9), max_size=4)
    rows = [
        (4 - len(p), p, data.draw(completion))
        for p in data.draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=7))
    ]
    ids, attention, labels = batch(rows, 9)
    found = rows_of(ids, attention, labels)
    packs = spread(found, data.draw(st.integers(1, 4)))
    if not packs:
        return
    assert sorted(row for members in packs for row in members) == [i for i, (_, _, c) in enumerate(rows) if c]
    packed = pack(ids, attention, labels, packs)
    assert packed.input_ids.shape == (len(packs), longest(found, packs))
    flat_ids, flat_positions = packed.input_ids.flatten(), packed.position_ids.flatten()
    length = packed.input_ids.shape[1]
    for number, members in enumerate(packs):
        for row in members:
            columns = attention[row].nonzero().flatten()
            places = packed.places[row, columns]
            assert (places // length == number).all()
            assert flat_ids[places].equal(ids[row, columns]) and flat_positions[places].equal(columns)
            for i, place in enumerate(places % length):
                seen = packed.allowed[number, 0, place].nonzero().flatten()
                assert sorted(seen.tolist()) == sorted((places[: i + 1] % length).tolist())
    assert packed.allowed.any(-1).all()  # padding too sees something: a softmax over nothing is not a number


def test_groups_are_spread_evenly_over_as_few_packs_as_it_takes():
    rows = rows_of(*batch([(0, [1], [5] * n) for n in (4, 1, 3, 2, 2)], 6))
    assert spread(rows, 5) == [[0, 1, 2, 3, 4]]
    assert [sum(rows.completions[i] for i in p) for p in spread(rows, 3)] == [6, 6]
    assert max(map(len, spread(rows, 2))) == 2 and len(spread(rows, 2)) == 3


def test_the_cheapest_packs_by_hand():
    """Two rows of 3 + 1 tokens: 5 packed tokens and 25 pairs against 8 tokens and 16 pairs, half of them."""
    rows = rows_of(*batch([(0, [1, 2, 3], [5]), (0, [1, 2, 3], [6])], 4))
    assert cost(1, 5, 0.1) == 5 + 2.5 and cost(2, 4, 0.1, causal=True) == 8 + 1.6
    packs, share = best_packs(rows, 0.1)
    assert packs == [[0, 1]] and share == pytest.approx(7.5 / 9.6)
    assert best_packs(rows, 0.1, overhead=1.0)[1] == pytest.approx(8.5 / 9.6)


def test_long_completions_are_spread_and_long_prompts_are_not():
    def share(prompt, completion, rows=8, pair_cost=5e-4):
        packs, found = best_packs(
            rows_of(*batch([(0, range(prompt), [5] * completion)] * rows, prompt + completion)), pair_cost
        )
        return len(packs), found

    assert share(1000, 200) == (1, pytest.approx(0.44, abs=0.05))
    assert share(200, 200)[0] == 2
    assert share(200, 1000)[1] > 1
    assert best_packs(rows_of(*batch([(0, [1], [5]), (0, [2], [5])], 3)), 0.1) == ([], 1.0)


# The order of an update.


def test_windows_of_an_update():
    assert [update_window(*x) for x in ((4, 1), (4, 2), (4, 4), (2, 4), (4, 3), (1, 8))] == [1, 2, 4, 2, 1, 1]


def test_rows_of_a_prompt_meet_within_their_update_only():
    def micro(prompts, first):
        count = len(prompts)
        return {
            "prompt_ids": torch.tensor(prompts).unsqueeze(1),
            "prompt_mask": torch.ones(count, 1, dtype=torch.long),
            "row_ids": torch.arange(first, first + count),
            "num_items_in_batch": torch.tensor(7),
            "ref_per_token_logps": None,
        }

    parts = [micro([1, 2, 1], 0), micro([2, 3, 1], 3), micro([3, 1, 3], 6), micro([1, 1, 1], 9)]
    moved = regrouped(parts, 2)
    assert [part["row_ids"].tolist() for part in moved] == [[0, 2, 5], [1, 3, 4], [6, 8, 7], [9, 10, 11]]
    assert [part["prompt_ids"].flatten().tolist() for part in moved] == [[1, 1, 1], [2, 2, 3], [3, 3, 1], [1, 1, 1]]
    assert all(part["num_items_in_batch"] == 7 and part["ref_per_token_logps"] is None for part in moved)
    parts[0]["num_images"] = [0, 1, 0]
    assert [part["row_ids"].tolist() for part in regrouped(parts, 2)[:2]] == [[0, 1, 2], [3, 4, 5]]


def test_padding_does_not_make_one_prompt_of_two():
    part = {
        "prompt_ids": torch.zeros(3, 2, dtype=torch.long),
        "prompt_mask": torch.tensor([[0, 1], [1, 1], [0, 1]]),
        "row_ids": torch.arange(3),
    }
    assert regrouped([part], 1)[0]["row_ids"].tolist() == [0, 2, 1]
