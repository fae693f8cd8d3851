"""Clusters are a partition that does not depend on order."""

import itertools
import random

import pytest

from autotelic.answers import LINKAGES, Pool, cluster, cluster_group, default_pool, equivalent


def partition(labels):
    return {frozenset(i for i, b in enumerate(labels) if b == a) for a in labels if a >= 0}


def test_by_hand():
    """1/2 = 0.5 = 50% (three strings, one cluster); None and the empty string are out."""
    assert cluster(["1/2", "0.5", None, "2", r"50\%", "", "2.0"]) == [0, 0, -1, 1, 0, -1, 1]
    assert cluster([]) == []
    assert cluster([None, None]) == [-1, -1]


def test_equivalent():
    assert equivalent("1/2", "0.5")
    assert not equivalent("5040", "5041")
    assert not equivalent("180", r"\pi")
    assert not equivalent(None, None)
    assert not equivalent("", "")
    assert equivalent(r"\sin x + 1", r"1+\sin(x)")
    assert equivalent(r"\frac{x^2-1}{x-1}", "x+1")
    assert equivalent(r"(2^{n} \cdot 2, 3)", r"(2^{n+1}, 3.0)")
    assert not equivalent(r"(2^{n}, 3)", r"(2^{n+1}, 3)")
    assert equivalent(r"\{\sin x, 2\}", r"2, \sin(x)")
    assert not equivalent(r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n}\rfloor")
    assert not equivalent(r"\sqrt{10^{60}+1} + x^{1/3}", r"10^{30} + x^{1/3}")


def test_a_plain_group_starts_no_worker():
    pool = Pool()
    before = default_pool().stats.requests
    cluster([str(i) for i in range(16)] + [r"\sqrt2", r"\frac{\pi}{2}", "yes", "3 cm"])
    assert default_pool().stats.requests == before
    assert not pool.running


def test_order_does_not_matter():
    answers = ["1/2", "0.5", None, r"\sin x", r"\sin(x)", r"\cos x", "(1,2)", "1,2", r"\{2,1\}"]
    expected = partition(cluster(answers))
    shuffler = random.Random(0)
    for linkage in LINKAGES:
        for _ in range(1000 if linkage == "union_find" else 20):
            order = list(range(len(answers)))
            shuffler.shuffle(order)
            labels = cluster([answers[i] for i in order], linkage=linkage)
            assert {frozenset(order[i] for i in block) for block in partition(labels)} == expected


def near(a, b):
    """A tolerance: intransitive by nature."""
    return abs(float(a) - float(b)) <= 1


@pytest.mark.parametrize("linkage", LINKAGES)
def test_intransitive_equivalence_is_counted_and_still_order_free(linkage):
    """512 ~ 513 ~ 514 but not 512 ~ 514: one open triple; three results by order in the official code, one here."""
    seen = set()
    for order in itertools.permutations(["512", "513", "514"]):
        result = cluster_group(order, equivalence=near, linkage=linkage)
        assert result.num_intransitive == 1
        seen.add(frozenset(frozenset(order[i] for i in block) for block in partition(result.clusters)))
    assert len(seen) == 1
    sizes = sorted(len(block) for block in next(iter(seen)))
    assert sizes == ([3] if linkage == "union_find" else [1, 2])


def test_asymmetric_equivalence_is_counted():
    result = cluster_group(["a", "b", "c"], equivalence=lambda x, y: x < y)
    assert result.num_asymmetric == 3
    assert result.num_pairs == 6
    assert cluster(["a", "b"], equivalence=lambda x, y: x < y, linkage="greedy") == [0, 1]


def test_greedy_and_complete_differ_from_components_only_where_the_relation_is_broken():
    chain = ["1", "2", "3", "4"]
    assert cluster(chain, equivalence=near) == [0, 0, 0, 0]
    assert cluster(chain, equivalence=near, linkage="complete") == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="unknown linkage"):
        cluster(chain, linkage="single")  # pyright: ignore[reportArgumentType]
