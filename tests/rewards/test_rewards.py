"""Label-free rewards: by hand, their masks, and that no label can reach them."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic import rewards
from autotelic.errors import UserError
from autotelic.rewards import Context, Group, TokenStats, formulas

LABEL_FREE = ("empo", "majority_vote", "srt", "srt_soft", "evol_rl", "seed_grpo", "random", "constant", "format")
CERTAINTY = ("self_certainty", "token_entropy", "em_rl_token", "em_rl_sequence", "rlsc", "weighted_empo")
PROMPTS = ["q"] * 4 + ["r"] * 4
TEXTS = [r"so \boxed{1/2}", r"\boxed{0.5}", r"\boxed{2}", "none", "= 3", "= 3", "= 3", "= 4"]


def group(answers, texts=None, prompt="q"):
    return Group.of(prompt, texts or [str(a) for a in answers], answers)


def stats(rows=8, tokens=3):
    values = -torch.arange(rows * tokens, dtype=torch.float64).reshape(rows, tokens) / 10 - 0.1
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[0, 2] = False
    return TokenStats(mask=mask, logprobs=values, entropy=-values, self_certainty=-2 * values)


def test_empo_by_hand():
    """Group q: {1/2, 0.5}, {2}, and one without an answer: 2/4, 2/4, 1/4, 0. Group r: 3/4 three times, 1/4."""
    assert rewards.EMPO()(PROMPTS, TEXTS) == [0.5, 0.5, 0.25, 0.0, 0.75, 0.75, 0.75, 0.25]
    parseable = rewards.EMPO(denominator="parseable")(PROMPTS, TEXTS)
    assert parseable == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0.0, 0.75, 0.75, 0.75, 0.25])


def test_empo_guards_by_hand():
    """Unparseable: -0.5. "the brown fox" is part of the question, 4 of the 4 words of the next too: 0. Share 2/5."""
    question = "does the brown fox jump over the lazy dog"
    answers = ["yes it does", "yes it does", None, "the brown fox", "the fox jump over"]
    asked = group(answers, prompt=question)
    open_ended = {"units": "nats", "low": -1.0, "high": 10.0, "equivalence": lambda a, b: a == b}
    guards = {"unparseable": -0.5, "echo": 0.8, "least_p_max": 0.2}
    assert rewards.EMPO(**open_ended, **guards).score([asked]).rewards.tolist() == [[0.4, 0.4, -0.5, 0.0, 0.0]]
    assert rewards.EMPO(**open_ended).score([asked]).rewards.tolist() == [[0.4, 0.4, 0.0, 0.2, 0.2]]
    split = group(list("abcdef"), prompt="q")  # p_max = 1/6
    assert rewards.EMPO(**open_ended, least_p_max=0.2).score([split]).rewards.tolist() == [[0.0] * 6]
    assert not formulas.echoes_question("the fox jumps up", question, 0.8)  # 2 of 4 words
    assert not formulas.echoes_question(None, question, 0.0)


def test_the_equivalence_is_asked_with_each_question():
    seen = set()

    def same(question, a, b):
        seen.add(question)
        return question == "q" and a[0] == b[0]

    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "r"}]
    prompts = ["q", "q", chat, chat]
    texts = ["<answer>ab</answer>", "<answer>ac</answer>"] * 2
    assert rewards.EMPO(equivalence=same, units="nats", low=-1)(prompts, texts) == [1.0, 1.0, 0.0, 0.0]
    assert seen == {"q", "r"}
    assert rewards.EMPO(equivalence="math").equivalence is None
    with pytest.raises(UserError, match="did you mean 'judge'"):
        rewards.EMPO(equivalence="juge")


def test_result_and_diagnostics():
    reward = rewards.EMPO()
    reward(PROMPTS, TEXTS)
    result = reward.last_result
    assert result.rewards.shape == (2, 4)
    assert result.clusters.tolist() == [[0, 0, 1, -1], [0, 0, 0, 1]]
    assert result.prompt_mask.tolist() == [True, True]
    assert result.diagnostics["semantic/parse_rate"] == 7 / 8
    assert result.diagnostics["semantic/majority_share"] == pytest.approx((0.5 + 0.75) / 2)
    assert result.diagnostics["semantic/timeouts"] == 0


def test_every_emitted_metric_is_declared():
    from autotelic.runs.glossary import METRICS

    reward = rewards.EMPO()
    reward(PROMPTS, TEXTS)
    assert set(reward.last_result.diagnostics) <= set(METRICS)


@pytest.mark.parametrize("size", range(2, 257))
def test_all_distinct_groups_are_masked_for_every_size(size):
    """H = ln G exactly in arithmetic, whatever rounding says; and a unanimous group has H = 0, masked by low."""
    distinct = torch.arange(size).unsqueeze(0)
    unanimous = torch.zeros(1, size, dtype=torch.int64)
    for reward in (rewards.EMPO(), rewards.EMPO(units="nats", high=math.log(size))):
        assert not reward.keeps(distinct).any()
        assert not reward.keeps(unanimous).any()
        if size > 2:
            assert reward.keeps(torch.tensor([[0, 0, *range(1, size - 1)]])).all()
    p_max = rewards.EMPO(units="p_max", low=1 / size, high=1.0)
    assert not p_max.keeps(distinct).any()
    assert not p_max.keeps(unanimous).any()


def test_masked_prompts_have_exactly_equal_rewards():
    reward = rewards.EMPO()
    got = reward(["a"] * 7 + ["b"] * 7, [str(i) for i in range(7)] + ["= 5"] * 7)
    assert set(got) == {0.0}
    assert reward.last_result.prompt_mask.tolist() == [False, False]


def test_an_unparseable_group_has_zero_advantage_under_every_reward():
    for name in LABEL_FREE:
        if name not in ("random", "evol_rl"):
            assert len(set(getattr(rewards, name)(["q"] * 4, ["no", "none", "nothing", "nil"]))) == 1, name
    assert rewards.evol_rl(["q"] * 2, ["no", "none"]) == [-1.0, -1.0]


def test_majority_vote_and_ties():
    """Two clusters of two share the win: 1/2 each; ties="all" pays both, "none" nobody. Unparseable never wins."""
    clusters = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [-1, -1, -1, 0], [-1, -1, -1, -1]])
    share = formulas.majority_reward(clusters)
    assert share.tolist() == [[0.5] * 4, [1, 1, 1, 0], [0, 0, 0, 1], [0] * 4]
    assert formulas.majority_reward(clusters, "all")[0].tolist() == [1] * 4
    assert formulas.majority_reward(clusters, "none")[0].tolist() == [0] * 4


def test_srt():
    """p_max = 3/4 passes tau = 3/4 (not strict) and fails tau = 0.8."""
    groups = [group(["1", "1", "1", "2"])]
    assert rewards.SRT(tau=0.75).score(groups).rewards.tolist() == [[1, 1, 1, 0]]
    assert rewards.SRT(tau=0.75, soft=True).score(groups).rewards.tolist() == [[0.75, 0.75, 0.75, 0.25]]
    failed = rewards.SRT(tau=0.8).score(groups)
    assert failed.rewards.tolist() == [[0] * 4]
    assert not failed.prompt_mask.any()
    with pytest.raises(UserError, match="tau"):
        rewards.SRT(tau=1.5)


def test_weighted_empo_by_hand():
    """Equal likelihoods give the counts back; a likelihood twice as large counts twice."""
    clusters = torch.tensor([[0, 0, 1, -1]])
    equal = formulas.weighted_consensus_reward(clusters, torch.zeros(1, 4, dtype=torch.float64))
    assert equal.tolist() == [[0.5, 0.5, 0.25, 0.0]]
    twice = formulas.weighted_consensus_reward(clusters, torch.tensor([[0.0, 0.0, math.log(2), 0.0]]))
    assert twice.tolist()[0] == pytest.approx([0.4, 0.4, 0.4, 0.0])


def test_certainty_rewards_by_hand():
    """Row 0 has two tokens: log-probabilities -0.1, -0.2; row 1 three: -0.4, -0.5, -0.6."""
    texts = ["1"] * 8
    expected = {
        "em_rl_sequence": [-0.3, -1.5],
        "em_rl_token": [-0.3, -1.5],
        "token_entropy": [-0.15, -0.5],
        "self_certainty": [0.3, 1.0],
        "rlsc": [math.exp(-0.3) + 0.1, math.exp(-1.5) + 0.1],
    }
    for name, values in expected.items():
        reward = getattr(rewards, name)
        assert reward(PROMPTS, texts, token_stats=stats())[:2] == pytest.approx(values), name
        reward.token_stats = stats()
        assert reward(PROMPTS, texts)[:2] == pytest.approx(values), name
        with pytest.raises(UserError, match="token statistic"):  # statistics serve one call only
            reward(PROMPTS, texts)


def test_self_certainty_is_the_divergence_from_uniform():
    logits = torch.randn(2, 3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    expected = (-math.log(11) - log_p).mean(-1)
    assert torch.allclose(formulas.self_certainty(logits).double(), expected, atol=1e-6)
    assert formulas.self_certainty(torch.zeros(1, 1, 7)).abs().max() < 1e-6


def test_evol_rl_bands_and_novelty():
    """Majority in [0.5, 1], minority in [-1, -0.5], no answer -1; the odd wording of the majority earns most."""
    texts = ["we add both sides", "we add both sides", "a completely different argument", "wrong path", "nothing"]
    got = rewards.EvolRL().score([group(["1", "1", "1", "2", None], texts)]).rewards[0].tolist()
    assert got[2] == 1.0
    assert got[0] == got[1] == 0.5
    assert got[3] == -0.75  # alone on its side: the middle of the band
    assert got[4] == -1.0


def test_random_reward():
    many, texts = PROMPTS * 20, TEXTS * 20
    first = rewards.RandomReward(seed=1)(many, texts)
    assert first == rewards.RandomReward(seed=1)(many, texts)
    assert first != rewards.RandomReward(seed=2)(many, texts)
    later = rewards.RandomReward(seed=1)(many, texts, trainer_state=SimpleNamespace(global_step=1))
    assert first != later
    assert 0.4 < sum(first) / len(first) < 0.6
    assert set(first) == {0.0, 1.0}
    assert rewards.RandomReward(p=0)(PROMPTS, TEXTS) == [0.0] * 8


def test_format_and_constant():
    assert rewards.format(PROMPTS, TEXTS) == [1, 1, 1, 0, 0, 0, 0, 0]
    assert rewards.ConstantReward(value=2)(PROMPTS, TEXTS) == [2.0] * 8


def test_verifier():
    labels = ["0.5"] * 4 + [r"#### 3"] * 4
    assert rewards.verifier(PROMPTS, TEXTS, answer=labels) == [1, 1, 0, 0, 1, 1, 1, 0]
    assert rewards.VerifierReward("solution")(PROMPTS, TEXTS, solution=labels)[0] == 1
    with pytest.raises(UserError, match="column 'answer'"):
        rewards.verifier(PROMPTS, TEXTS, answr=labels)


def test_co_rewarding():
    texts = ["1", "1", "2", "2", "3", "3", "3", "1"]
    one = rewards.CoRewardingI(rephrased={"q": "r"})
    assert one(PROMPTS, texts) == [0, 0, 0, 0, 0, 0, 0, 0]  # q has a tie: r is masked; r says 3: nobody in q does
    assert one.last_result.prompt_mask.tolist() == [True, False]
    texts[3] = "1"
    assert one(PROMPTS, texts) == [0, 0, 0, 0, 0, 0, 0, 1]
    with pytest.raises(UserError, match="partner"):
        rewards.CoRewardingI(rephrased={"q": "z"})(PROMPTS, texts)
    two = rewards.CoRewardingII(teacher=lambda prompts: [["= 2", "= 2", "= 1"] for _ in prompts])
    assert two(PROMPTS, texts) == [0, 0, 1, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="teacher"):
        rewards.CoRewardingII()


def test_co_rewarding_asks_its_equivalence_with_the_question():
    asked = []

    def same(question, first, second):
        asked.append(question)
        return first == second

    one = rewards.CoRewardingI(rephrased={"q": "r"}, equivalence=same)
    one.score([group(["1", "2", "1"], prompt="q"), group(["1", "1", "3"], prompt="r")])
    assert set(asked) == {"q", "r"}


def test_ema():
    teacher, student = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = teacher.weight.item()
    rewards.update_ema(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(0.9 * before + 0.1 * student.weight.item())


def test_seed_grpo_scale():
    """Unanimous 1, all distinct 1 - alpha, two halves of four 1 - alpha ln 2 / ln 4 = 1 - alpha / 2."""
    clusters = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]])
    assert formulas.seed_grpo_scale(clusters, 0.5).tolist() == pytest.approx([1.0, 0.5, 0.75])
    got = rewards.SeedGRPO(ties="all")(["q"] * 4, ["1", "1", "2", "2"])
    assert got == pytest.approx([0.5] * 4)


def test_mixing_normalises_first():
    """A reward a thousand times larger weighs no more; one that is constant in a group adds nothing there."""
    small = lambda prompts, completions, **_: [float(len(c)) for c in completions]  # noqa: E731
    large = lambda prompts, completions, **_: [-1000.0 * len(c) for c in completions]  # noqa: E731
    flat = lambda prompts, completions, **_: [7.0] * len(prompts)  # noqa: E731
    texts = ["a", "bb", "ccc", "dddd"]
    zero = rewards.MixedReward([(small, 1.0), (large, 1.0)])(["q"] * 4, texts)
    assert zero == pytest.approx([0.0] * 4)
    got = rewards.MixedReward([(small, 2.0), (flat, 5.0)], normalize="range")(["q"] * 4, texts)
    assert got == pytest.approx([0, 2 / 3, 4 / 3, 2])
    with pytest.raises(UserError, match="at least one"):
        rewards.MixedReward([])


def test_no_label_can_reach_a_label_free_reward():
    """Every column of a data set arrives in kwargs; whatever it is called, nothing changes."""
    junk = ["1/2"] * 8
    columns = ("answer", "solution", "label", "labels", "ground_truth", "target", "token_stats", "num_generations",
               "trainer_state", "log_metric", "step", "logprobs", "equivalence", "clusters")  # fmt: skip
    for name in LABEL_FREE:
        reward = getattr(rewards, name)
        plain = reward(PROMPTS, TEXTS)
        assert reward(PROMPTS, TEXTS, **dict.fromkeys(columns, junk)) == plain, name
        assert set(inspect.signature(reward).parameters) == {"prompts", "completions", "completion_ids", "kwargs"}
    for name in CERTAINTY:
        reward = getattr(rewards, name)
        plain = reward(PROMPTS, TEXTS, token_stats=stats())
        assert reward(PROMPTS, TEXTS, token_stats=stats(), answer=junk, solution=junk) == plain, name


def test_context_takes_only_what_a_trainer_gives():
    trainer = SimpleNamespace(num_generations=4, num_generations_eval=2, model=SimpleNamespace(training=False))

    class Trainer:
        num_generations = 4
        num_generations_eval = 2
        model = trainer.model

        def log_metric(self, name, value):
            pass

    context = Context.take({"trainer_state": SimpleNamespace(global_step=3), "log_metric": Trainer().log_metric})
    assert (context.step, context.num_generations) == (3, 2)
    assert Context.take({"trainer_state": ["a"], "log_metric": ["b"], "num_generations": ["8"]}) == Context()


def test_chat_messages():
    prompts = [[{"role": "user", "content": "q"}]] * 2
    blocks = [{"type": "text", "text": r"\boxed{1.0}"}]
    completions = [[{"role": "assistant", "content": r"\boxed{1}"}], [{"role": "assistant", "content": blocks}]]
    assert rewards.EMPO(high=2.0, low=-1.0)(prompts, completions) == [1.0, 1.0]


def test_names_for_trackers():
    from autotelic.rewards import EMPO, empo, srt, srt_soft, verifier

    assert [r.__name__ for r in (empo, srt, srt_soft, verifier)] == ["empo", "srt", "srt_soft", "verifier"]
    assert EMPO.__name__ == "EMPO"


@pytest.mark.parametrize("units", ["nats", "fraction_of_log_G", "p_max"])
def test_a_lower_threshold_alone_leaves_the_upper_one_at_its_largest(units):
    """Six answers in eight have 1.67 of ln 8 = 2.08 nats: kept. (An upper bound of 1 nat would leave it out.)"""
    mixed = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5]])
    assert rewards.EMPO(low=0.1, units=units).keeps(mixed).all()
    if units != "p_max":
        assert not rewards.EMPO(low=0.1, units=units).keeps(torch.arange(8).unsqueeze(0)).any()


def test_bad_configuration_is_refused():
    with pytest.raises(UserError, match="low must be below high"):
        rewards.EMPO(low=1.0, high=0.5)
    with pytest.raises(UserError, match="not below 1"):
        rewards.EMPO(low=1.0, high=2.0)


@settings(max_examples=20)
@given(st.lists(st.integers(-1, 4), min_size=2, max_size=12), st.randoms())
def test_rewards_do_not_depend_on_order(labels, shuffler):
    answers = [None if label < 0 else str(label) for label in labels]
    order = list(range(len(answers)))
    shuffler.shuffle(order)
    for reward in (rewards.EMPO(), rewards.MajorityVote(), rewards.SRT(soft=True)):
        plain = reward.score([group(answers)])
        moved = reward.score([group([answers[i] for i in order])])
        assert moved.rewards[0].tolist() == [plain.rewards[0, i].item() for i in order]
        assert moved.prompt_mask.tolist() == plain.prompt_mask.tolist()


def test_groups_of_different_sizes_and_invalid_rows():
    groups = [group(["1", "1", "2"]), group(["1", "2"], prompt="r")]
    result = rewards.EMPO(low=-1.0, high=2.0).score(groups)
    assert result.valid.tolist() == [[True] * 3, [True, True, False]]
    assert result.rewards[1].tolist() == [0.5, 0.5, 0.0]
    row = groups[0].rows[2]
    cut = Group((*groups[0].rows[:2], row.__class__(row.prompt, row.text, row.answer, row.stats, valid=False)))
    assert rewards.EMPO(low=-1.0, high=2.0).score([cut]).rewards.tolist() == [[1.0, 1.0, 0.0]]


def test_prompt_fraction_keeps_the_most_agreed():
    """Two of four prompts train: p_max is 1/2, 1, 3/4 and 3/4, and the earlier prompt wins the tie."""
    answers = ["1122", "1111", "1112", "1222"]
    groups = [Group.of(f"q{i}", [str(a) for a in row], list(row)) for i, row in enumerate(answers)]
    result = rewards.MajorityVote(prompt_fraction=0.5).score(groups)
    assert result.prompt_mask.tolist() == [False, True, True, False]
    assert rewards.MajorityVote(prompt_fraction=0.6).score(groups).prompt_mask.sum() == 3  # rounded up
    assert (
        not rewards.EMPO(prompt_fraction=0.5).score(groups).prompt_mask[1]
    )  # the unanimous prompt stays out: both rules hold
    with pytest.raises(UserError, match="prompt_fraction"):
        rewards.MajorityVote(prompt_fraction=0.0).score(groups)
