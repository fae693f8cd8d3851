"""EM-INF and adaptive temperature: the arg max stays, entropy never rises, rows do not see each other."""

import math
import sys
import types

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_trainer import random_model

from autotelic.decoding import AdaptiveTemperature, EntropyMinimizer, adapt_temperature, minimize_entropy
from autotelic.errors import UserError
from autotelic.functional import token_entropy

LOGITS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(2, 40)),
    elements=st.floats(-12, 12, allow_nan=False, width=64),
)
FUNCTIONS = [minimize_entropy, adapt_temperature]


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=60, deadline=None)
@given(LOGITS, st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_what_both_promise(function, logits, floor, impossible):
    z = torch.from_numpy(logits)
    if impossible:
        z[:, 0] = -math.inf
    before = token_entropy(z)
    after = function(z, floor=floor)
    assert after.argmax(-1).equal(z.argmax(-1))
    assert (token_entropy(after) <= before + 1e-9).all()
    assert (torch.isinf(after) == torch.isinf(z)).all()
    untouched = before <= floor
    assert after[untouched].equal(z[untouched])


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=20, deadline=None)
@given(LOGITS)
def test_a_batch_is_its_rows(function, logits):
    z = torch.from_numpy(logits).float()
    rows = torch.cat([function(row.unsqueeze(0)) for row in z])
    torch.testing.assert_close(function(z), rows, atol=1e-5, rtol=1e-5)


def test_one_step_of_em_inf_by_hand():
    """p = (3/4, 1/4), H = .5623: z + p (ln p + H) = (ln 3 + .75 (-.2877 + .5623), .25 (-1.3863 + .5623))."""
    z = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    h = math.log(4) - 0.75 * math.log(3)
    expected = [math.log(3) + 0.75 * (math.log(0.75) + h), 0.25 * (math.log(0.25) + h)]
    np.testing.assert_allclose(minimize_entropy(z, floor=0.1, num_steps=1)[0], expected, rtol=1e-12)


def test_em_inf_is_gradient_descent_on_the_entropy():
    z = torch.randn(3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_hand = z.clone()
    for _ in range(5):
        leaf = by_hand.clone().requires_grad_()
        token_entropy(leaf).sum().backward()
        by_hand = by_hand - 0.3 * leaf.grad
    torch.testing.assert_close(minimize_entropy(z, floor=0.0, num_steps=5, learning_rate=0.3), by_hand)


def test_a_huge_step_is_halved_until_entropy_falls():
    z = torch.randn(64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.01
    after = minimize_entropy(z, floor=0.0, num_steps=15, learning_rate=1e4)
    assert (token_entropy(after) <= token_entropy(z) + 1e-12).all()
    assert after.argmax(-1).equal(z.argmax(-1))


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.floats(0.05, 1.0), st.sampled_from([0.0, 0.1, 0.5]))
def test_adaptive_temperature_meets_its_target(logits, alpha, floor):
    z = torch.from_numpy(np.unique(logits.ravel())[None, :])  # ties at the top bound the entropy from below
    if z.shape[1] < 2 or float(z[0, -1] - z[0, -2]) < 1e-6:
        return
    before = oracles.token_entropy(z.numpy()[None], 1.0)[0, 0]
    after = oracles.token_entropy(adapt_temperature(z, alpha=alpha, floor=floor).numpy()[None], 1.0)[0, 0]
    target = max(alpha * before, floor)
    assert after == pytest.approx(target if before > target else before, abs=1e-3)


def test_tied_tokens_stay_tied_and_bound_the_entropy():
    z = torch.tensor([[2.0, 2.0, 0.0, -1.0]])
    after = adapt_temperature(z, alpha=0.1, floor=0.0)
    assert after[0, 0] == after[0, 1]
    assert float(token_entropy(after)[0]) == pytest.approx(math.log(2), abs=1e-3)
    uniform = torch.zeros(1, 5)
    assert adapt_temperature(uniform, alpha=0.5, floor=0.0).argmax() == 0
    assert minimize_entropy(uniform).equal(uniform)


def test_generation_takes_them(tiny_model):
    """Greedy text is the same with and without; sampled text has lower entropy under the model's own logits."""
    ids = torch.tensor([[3, 4, 5]]).repeat(64, 1)
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 6}
    for processor in (EntropyMinimizer(floor=0.1, learning_rate=5.0), AdaptiveTemperature(floor=0.1)):
        greedy = tiny_model.generate(**plain, do_sample=False)
        assert greedy.equal(tiny_model.generate(**plain, do_sample=False, logits_processor=[processor]))
        counts = []
        for extra in ({}, {"logits_processor": [processor]}):
            torch.manual_seed(0)
            text = tiny_model.generate(**plain, do_sample=True, top_k=0, **extra)
            counts.append(len({tuple(row) for row in text[:, 3:5].tolist()}))
        assert counts[1] < counts[0]


@pytest.fixture(scope="module")
def tiny_model():
    return random_model("Qwen3ForCausalLM", vocab_size=18, num_hidden_layers=1, eos_token_id=None).eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyMinimizer(floor=-1), "negative"),
        (lambda: EntropyMinimizer(num_steps=0), "num_steps"),
        (lambda: EntropyMinimizer(learning_rate=0), "learning_rate"),
        (lambda: AdaptiveTemperature(alpha=1.5), "share of the entropy"),
        (lambda: AdaptiveTemperature(tolerance=0.0), "tolerance"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture
def vllm_stand_in(monkeypatch):
    """The abstract class of vLLM's V1 interface, as its documentation gives it."""
    import abc

    class LogitsProcessor(abc.ABC):
        @abc.abstractmethod
        def __init__(self, vllm_config, device, is_pin_memory): ...

        @abc.abstractmethod
        def apply(self, logits): ...

        @abc.abstractmethod
        def is_argmax_invariant(self): ...

        @abc.abstractmethod
        def update_state(self, batch_update): ...

    module = types.ModuleType("vllm.v1.sample.logits_processor")
    module.LogitsProcessor = LogitsProcessor
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "autotelic.decoding.vllm", raising=False)
    yield
    sys.modules.pop("autotelic.decoding.vllm", None)


def test_the_vllm_form_gives_the_same_logits(vllm_stand_in):
    from autotelic.decoding.vllm import AdaptiveTemperatureVLLM, EntropyMinimizerVLLM

    config = types.SimpleNamespace(additional_config={"entropy_minimizer": {"floor": 0.2, "num_steps": 3}})
    z = torch.randn(4, 30)
    processor = EntropyMinimizerVLLM(config, torch.device("cpu"), False)
    processor.update_state(None)
    assert processor.is_argmax_invariant()
    assert processor.apply(z).equal(minimize_entropy(z, floor=0.2, num_steps=3))
    assert AdaptiveTemperatureVLLM(config, torch.device("cpu"), False).apply(z).equal(adapt_temperature(z))
    config.additional_config["entropy_minimizer"] = {"flor": 0.2}
    with pytest.raises(UserError, match="flor"):
        EntropyMinimizerVLLM(config, torch.device("cpu"), False)


def test_without_vllm_the_message_says_what_to_do():
    if "vllm" in sys.modules:
        pytest.skip("vLLM is installed")
    with pytest.raises(UserError, match=r"autotelic\[vllm\]"):
        import autotelic.decoding.vllm  # noqa: F401
