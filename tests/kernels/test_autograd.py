"""The fused head against logits that are held in full, in float64."""

import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.kernels import (
    autograd,
    cpu_matmul,
    linear_logprob_entropy,
    linear_loss,
    linear_statistics,
    portable,
    two_ways,
)

CASES = {
    "plain": {},
    "temperature": {"temperature": 0.5},
    "scale": {"logit_scale": 0.25, "temperature": 2},
    "bias": {"bias": True, "temperature": 0.7},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "temperature": 0.8, "logit_scale": 1.5, "softcap": 5.0},
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that every shape is ragged and the maximum moves many times."""
    monkeypatch.setattr(portable, "ROWS", 5)
    monkeypatch.setattr(portable, "block_columns", lambda weight, num_rows: min(7, weight.shape[0]))


def problem(n=13, v=29, d=6, dtype=torch.float64, seed=0, spread=1.0, bias=False):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(v, d, generator=g, dtype=torch.float64) * spread).to(dtype)
    b = torch.randn(v, generator=g, dtype=torch.float64).to(dtype) if bias else None
    return hidden, weight, torch.randint(v, (n,), generator=g), b


def logits_of(hidden, weight, bias, temperature=1.0, logit_scale=1.0, softcap=None):
    z = hidden.double() @ weight.double().T
    z = (z if bias is None else z + bias.double()) * logit_scale
    return (z if softcap is None else softcap * (z / softcap).tanh()) / temperature


def materialised(hidden, weight, targets, bias=None, **options):
    log_p = logits_of(hidden, weight, bias, **options).log_softmax(-1)
    finite = log_p.masked_fill(log_p.isneginf(), 0.0)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * finite).sum(-1)


def gradients(function, tensors, upstream):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = function(*leaves)
    return outputs, torch.autograd.grad(
        outputs, leaves, [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]
    )


def both(n, v, d, case, dtype, seed=0, spread=1.0, active=None):
    """Values and gradients: ours, and the oracle's in float64."""
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(n, v, d, dtype, seed, spread, options.pop("bias", False))
    tensors = [hidden, weight] + ([] if bias is None else [bias])
    g = torch.Generator().manual_seed(seed + 1)
    upstream = [torch.randn(n, generator=g, dtype=torch.float64) for _ in range(2)]
    if active is not None:
        upstream = [u * active for u in upstream]

    def ours(h, w, b=None):
        return linear_logprob_entropy(h, w, targets, bias=b, **options)

    def oracle(h, w, b=None):
        return materialised(h, w, targets, b, **options)

    return gradients(ours, tensors, upstream), gradients(oracle, [x.double() for x in tensors], upstream)


def relative(a, b):
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item()


def test_by_hand():
    """Logits 0 and ln 3: p = 1/4, 3/4; H = ln 4 - 3/4 ln 3; at T = 1/2 the odds are 1 to 9."""
    hidden, weight = torch.tensor([[math.log(3.0)]]), torch.tensor([[0.0], [1.0]])
    logprobs, entropy = linear_logprob_entropy(hidden, weight, torch.tensor([0]))
    assert logprobs.item() == pytest.approx(-math.log(4))
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    logprobs, _ = linear_logprob_entropy(hidden, weight, torch.tensor([1]), temperature=0.5)
    assert logprobs.item() == pytest.approx(math.log(0.9))


def test_oracle_loops():
    hidden, weight, targets, _ = problem()
    logprobs, entropy = linear_logprob_entropy(hidden, weight, targets, temperature=0.7)
    z = (hidden @ weight.T).numpy()
    np.testing.assert_allclose(entropy, oracles.token_entropy(z, 0.7), rtol=1e-12)
    expected = [math.log(oracles.softmax(row, 0.7)[t]) for row, t in zip(z, targets.tolist(), strict=True)]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(13, 29, 6), (1, 1, 1), (5, 7, 3), (6, 8, 2), (11, 50, 1)])
def test_float64_matches_materialised(case, shape, small_tiles):
    (values, grads), (expected, expected_grads) = both(*shape, case, torch.float64)
    for a, b in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_float32_to_1e_5(case):
    (values, grads), (expected, expected_grads) = both(600, 3001, 48, case, torch.float32, spread=0.4)
    assert all(x.dtype == torch.float32 for x in (*values, *grads))
    for a, b in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        assert relative(a, b) < 1e-5


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.sampled_from(sorted(CASES)))
@settings(max_examples=25, deadline=None)
def test_any_shape(n, v, d, seed, case):
    (values, grads), (expected, expected_grads) = both(n, v, d, case, torch.float64, seed)
    for a, b in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skipped", ["none", "some", "all"])
def test_gradcheck(case, skipped, small_tiles):
    """With every row skipped the weight's gradient is zero, not what memory held."""
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(7, 9, 3, bias=options.pop("bias", False))
    keep = {"none": torch.ones(7), "some": torch.arange(7) % 3 == 0, "all": torch.zeros(7)}[skipped].double()
    inputs = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]

    def loss(h, w, b=None):
        return [x * keep for x in linear_logprob_entropy(h, w, targets, bias=b, **options)]

    assert torch.autograd.gradcheck(loss, inputs, nondet_tol=1e-12)  # BLAS rounds as the memory is aligned
    if skipped == "all":
        assert all((g == 0).all() for g in torch.autograd.grad(sum(x.sum() for x in loss(*inputs)), inputs))


def test_skipped_rows_are_exactly_zero_and_the_others_unchanged(small_tiles):
    active = torch.arange(13) % 4 == 1
    (_, some), (_, expected) = both(13, 29, 6, "all", torch.float64, active=active.double())
    assert (some[0][~active] == 0).all()
    for a, b in zip(some, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gap", [3.0, 6.0, 12.0, 20.0])
def test_small_entropies_keep_relative_precision(gap):
    """One word leads by `gap`: values and gradients still have their digits, which ln(p + 1e-12) loses."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, 32, generator=g) * 0.05
    winner = torch.randint(2000, (64,), generator=g)
    hidden = torch.randn(64, 32, generator=g)
    weight[winner] += hidden * (gap + 5) / hidden.square().sum(1, keepdim=True)
    targets = torch.where(torch.arange(64) % 2 == 0, winner, 0)
    upstream = [torch.randn(64, generator=g).double() for _ in range(2)]

    def ours(h, w):
        return linear_logprob_entropy(h, w, targets)

    def oracle(h, w):
        return materialised(h, w, targets)

    found, grads = gradients(ours, [hidden, weight], upstream)
    expected, expected_grads = gradients(oracle, [hidden.double(), weight.double()], upstream)
    assert relative(grads[0], expected_grads[0]) < 1e-5 and relative(grads[1], expected_grads[1]) < 1e-5
    errors = ((found[1].double() - expected[1]) / expected[1]).abs()
    low = expected[1] < 0.05
    assert gap < 12 or low.any()
    assert (errors[low] < 1e-4).all(), errors[low].max()
    assert ((found[0].double() - expected[0]) / expected[0]).abs().max() < 1e-4


def test_only_what_is_asked_for_is_computed(monkeypatch):
    hidden, weight, targets, bias = problem(bias=True)
    seen = []
    inner = two_ways.backward
    monkeypatch.setattr(two_ways, "backward", lambda *a: seen.append(a[-1]) or inner(*a))
    for asked in ((True, False, False), (False, True, False), (False, False, True), (True, True, True)):
        leaves = [x.detach().clone().requires_grad_(a) for x, a in zip((hidden, weight, bias), asked, strict=True)]
        linear_logprob_entropy(*leaves[:2], targets, bias=leaves[2])[0].sum().backward()
        assert tuple(seen.pop()) == asked
        assert [x.grad is not None for x in leaves] == list(asked)
    assert not linear_logprob_entropy(hidden, weight, targets)[0].requires_grad


def test_one_of_the_two_results_alone():
    hidden, weight, targets, _ = problem()
    for which in (0, 1):
        sides = (linear_logprob_entropy, materialised)
        mine, theirs = (
            gradients(lambda h, w, f=f, i=which: [f(h, w, targets)[i]], [hidden, weight], [torch.ones(13)])
            for f in sides
        )
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["plain", "all"])
def test_half_precision_operands_are_exact_up_to_the_gradients_rounding(dtype, case):
    (values, grads), (expected, expected_grads) = both(200, 999, 24, case, dtype, spread=0.3)
    for a, b in zip(values, expected, strict=True):
        assert a.dtype == torch.float32 and relative(a, b) < 1e-5
    for a, b in zip(grads, expected_grads, strict=True):
        assert a.dtype == dtype and relative(a, b) < 2 * torch.finfo(dtype).eps


def test_mixed_operands():
    hidden, weight, targets, _ = problem(dtype=torch.float32)
    mixed, half = gradients(
        lambda h, w: linear_logprob_entropy(h, w, targets), [hidden.bfloat16(), weight], [torch.ones(13)] * 2
    )
    assert mixed[0].dtype == torch.float32 and half[0].dtype == torch.bfloat16 and half[1].dtype == torch.float32
    torch.testing.assert_close(mixed, linear_logprob_entropy(hidden.bfloat16().float(), weight, targets))


def test_words_outside_the_vocabulary_have_no_part(small_tiles):
    """A bias of -inf: the same as without those words, and finite gradients."""
    hidden, weight, targets, bias = problem(bias=True)
    out = torch.arange(29) % 3 == 0
    out[targets] = False
    masked = bias.masked_fill(out, -torch.inf)
    mine, grads = gradients(
        lambda h, w: linear_logprob_entropy(h, w, targets, bias=masked), [hidden, weight], [torch.ones(13)] * 2
    )
    place = torch.cumsum(~out, 0) - 1
    short = materialised(hidden, weight[~out], place[targets], bias[~out])
    torch.testing.assert_close(mine, short)
    assert all(g.isfinite().all() for g in grads) and (grads[1][out] == 0).all()
    assert linear_statistics(hidden, weight, targets, bias=masked).mean_logit.isneginf().all()


def test_no_rows():
    hidden, weight, targets, _ = problem(n=0)
    values, grads = gradients(lambda h, w: linear_logprob_entropy(h, w, targets), [hidden, weight], [torch.ones(0)] * 2)
    assert values[0].shape == (0,) and (grads[1] == 0).all()


def test_constants_and_order_change_nothing(small_tiles):
    hidden, weight, targets, bias = problem(bias=True)
    order = torch.randperm(13)
    base = linear_logprob_entropy(hidden, weight, targets, bias=bias)
    torch.testing.assert_close(linear_logprob_entropy(hidden, weight, targets, bias=bias + 5.0), base)
    shuffled = linear_logprob_entropy(hidden[order], weight, targets[order], bias=bias)
    torch.testing.assert_close(shuffled, tuple(x[order] for x in base))


def test_large_logits():
    """Logits of thousands: no overflow, entropy 0, finite gradients."""
    hidden, weight, targets, _ = problem(dtype=torch.float32, spread=3000)
    values, grads = gradients(
        lambda h, w: linear_logprob_entropy(h, w, targets), [hidden, weight], [torch.ones(13)] * 2
    )
    assert all(x.isfinite().all() for x in (*values, *grads))


def test_nothing_given_is_changed():
    hidden, weight, targets, bias = problem(bias=True)
    copies = [x.clone() for x in (hidden, weight, targets, bias)]
    gradients(
        lambda h, w, b: linear_logprob_entropy(h, w, targets, bias=b, softcap=2.0),
        [hidden, weight, bias],
        [torch.ones(13)] * 2,
    )
    assert all(torch.equal(a, b) for a, b in zip(copies, (hidden, weight, targets, bias), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("skip", [False, True])
def test_known_loss(case, blocks, skip, small_tiles):
    """The same loss and gradients as through `linear_logprob_entropy`, whatever is kept at once."""
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(bias=options.pop("bias", False))
    tensors = [hidden, weight] + ([] if bias is None else [bias])
    advantages = torch.randn(13, dtype=torch.float64)
    weights = torch.rand(13, dtype=torch.float64) * ((torch.arange(13) % 3 != 0) if skip else 1)

    def formula(logprobs, entropy, a):
        return -a * logprobs.exp() + 0.1 * entropy.square()

    def known(h, w, b=None):
        limit = 29 * 8 * 13 // blocks
        inner = two_ways.loss_and_gradients
        limited = lambda *a: inner(*a[:-1], limit // 8)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(two_ways, "loss_and_gradients", limited)
            found = linear_loss(h, w, targets, formula, advantages, weights=weights, bias=b, **options)
        return [found.loss * 3]

    def general(h, w, b=None):
        values = linear_logprob_entropy(h, w, targets, bias=b, **options)
        return [(formula(*values, advantages) * weights).sum() * 3]

    one, two = (gradients(f, tensors, [torch.ones(())]) for f in (known, general))
    for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_known_loss_in_half_precision_over_several_blocks():
    hidden, weight, targets, _ = problem(300, 1009, 16, torch.bfloat16, spread=0.5)
    options = {"max_logits_mib": 1}
    _, found = gradients(
        lambda h, w: [linear_loss(h, w, targets, lambda logp, e: e - logp, **options).loss],
        [hidden, weight],
        [torch.ones(())],
    )
    _, expected = gradients(
        lambda h, w: [materialised(h, w, targets)[1].sum() - materialised(h, w, targets)[0].sum()],
        [hidden.double(), weight.double()],
        [torch.ones(())],
    )
    assert portable.TILE and all(
        relative(a, b) < 2 * torch.finfo(torch.bfloat16).eps for a, b in zip(found, expected, strict=True)
    )


def test_known_loss_values_and_refusals():
    hidden, weight, targets, _ = problem()
    found = linear_loss(hidden, weight, targets, lambda logprobs, entropy: -logprobs)
    assert found.loss.item() == pytest.approx(-found.logprobs.sum().item()) and not found.loss.requires_grad
    hidden.requires_grad_()
    with pytest.raises(UserError, match="one loss per row"):
        linear_loss(hidden, weight, targets, lambda logprobs, entropy: logprobs[:3])
    loss = linear_loss(hidden, weight, targets, lambda logprobs, entropy: torch.ones_like(logprobs)).loss
    assert (torch.autograd.grad(loss, hidden, retain_graph=True)[0] == 0).all()
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


@pytest.mark.parametrize("case", CASES)
def test_statistics(case, small_tiles):
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(bias=options.pop("bias", False))
    z = logits_of(hidden, weight, bias, **options)
    found = linear_statistics(hidden, weight, targets, bias=bias, **options)
    close = torch.testing.assert_close
    close(found.logprobs, F.token_logprobs(z, targets))
    close(found.entropy, F.token_entropy(z))
    close(found.log_normalizer, z.logsumexp(-1))
    close(found.mean_logit, z.mean(-1))
    close(found.self_certainty, F.token_self_certainty(z))
    close(found.max_logprob, z.log_softmax(-1).amax(-1))
    close(found.sum_squares, z.softmax(-1).square().sum(-1))
    discriminator = F.entropy_discriminator(z, targets)
    close((found.discriminator, found.expected_discriminator), tuple(discriminator))


def test_refusals():
    hidden, weight, targets, _ = problem()
    for wrong in (-100, 29):
        with pytest.raises(UserError, match="outside the vocabulary"):
            linear_logprob_entropy(hidden, weight, targets.masked_fill(targets == targets[0], wrong))
    for option, value in (("temperature", 0), ("softcap", -1), ("logit_scale", 0)):
        with pytest.raises(UserError, match=option):
            linear_logprob_entropy(hidden, weight, targets, **{option: value})
    with pytest.raises(UserError, match=r"\(V, d\)"):
        autograd.check(hidden, weight.T, targets, None, 1.0, 1.0, None)


MEMORY = """
import resource, torch
from autotelic.kernels import linear_logprob_entropy
torch.set_num_threads(1)
hidden, weight = torch.randn(512, 64, requires_grad=True), torch.randn(151936, 64, requires_grad=True)
targets = torch.randint(151936, (512,))
small = linear_logprob_entropy(hidden[:2, :4], weight[:9, :4], targets[:2] % 9)
sum(x.sum() for x in small).backward()
hidden.grad = weight.grad = None
open("/proc/self/clear_refs", "w").write("5")
def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
before = status("VmRSS")
sum(x.sum() for x in linear_logprob_entropy(hidden, weight, targets)).backward()
print(status("VmHWM") - before - sum(x.numel() * 4 for x in (hidden, weight)) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beyond_the_gradients_is_at_most_64_mib():
    """The logits alone would be 297 MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 64


# Logits that wait in the memory of the weight's gradient.


@pytest.mark.parametrize("rows", [3, 6, 13, 31])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skip", [False, True])
def test_kept_logits_change_nothing(case, rows, skip, small_tiles):
    """Room for 6 rows, tiles of 5: none left over, one tile, two tiles in the room, and more rows than room."""
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(n=rows, bias=options.pop("bias", False))
    tensors = [hidden, weight] + ([] if bias is None else [bias])
    upstream = [x * (1 if not skip else torch.arange(rows) % 3 != 1) for x in torch.randn(2, rows).double()]

    def run(keep):
        def function(h, w, b=None):
            return linear_logprob_entropy(h, w, targets, bias=b, keep_logits=keep, **options)

        return gradients(function, tensors, upstream)

    (values, grads), (expected, expected_grads) = run(True), run(False)
    for a, b in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.fixture
def products_made(monkeypatch):
    """Count the tiles of logits that are made."""
    made = []
    inner = portable.Operands.logits
    monkeypatch.setattr(portable.Operands, "logits", lambda self, rows, *a: made.append(rows) or inner(self, rows, *a))
    return made


def test_kept_logits_are_not_made_again(products_made, small_tiles):
    """13 rows, room for 6: the backward pass makes the logits of the other 7 again, and of all without room."""
    hidden, weight, targets, _ = problem()

    def rows_made(keep, *leaves):
        products_made.clear()
        linear_logprob_entropy(*leaves, targets, keep_logits=keep)[0].sum().backward()
        blocks = -(-29 // 7)
        return sum(rows.stop - rows.start for rows in products_made) / blocks

    grown = weight.clone().requires_grad_()
    assert rows_made(True, hidden, grown) == 13 + 7
    assert rows_made(False, hidden, grown) == 13 + 13
    assert rows_made(True, hidden.clone().requires_grad_(), weight) == 13 + 13  # no gradient of the weight, no room


def test_a_second_backward_makes_the_logits_again(small_tiles):
    hidden, weight, targets, _ = problem()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    found = sum(x.sum() for x in linear_logprob_entropy(*leaves, targets))
    first = torch.autograd.grad(found, leaves, retain_graph=True)
    kept = [x.clone() for x in first]
    torch.testing.assert_close(torch.autograd.grad(found, leaves), kept)
    torch.testing.assert_close(list(first), kept)


def test_without_gradients_nothing_is_kept_and_no_loss_is_differentiated(monkeypatch):
    hidden, weight, targets, _ = problem()
    weight.requires_grad_()
    monkeypatch.setattr(two_ways, "room_in_gradient", lambda *a: pytest.fail("memory was taken"))
    with torch.no_grad():
        linear_logprob_entropy(hidden, weight, targets)
        found = linear_loss(hidden, weight, targets, lambda logprobs, entropy: entropy - logprobs)
    assert not found.loss.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_known_loss_with_room_for_every_row(case, products_made, small_tiles):
    """Thirteen rows, width 16: the logits wait in the gradient, and no row's are made twice."""
    options = dict(CASES[case])
    hidden, weight, targets, bias = problem(d=16, spread=0.4, bias=options.pop("bias", False))
    tensors = [hidden, weight] + ([] if bias is None else [bias])

    def known(h, w, b=None):
        return [linear_loss(h, w, targets, lambda p, e: e - 2 * p, bias=b, max_logits_mib=0, **options).loss]

    def oracle(h, w, b=None):
        logprobs, entropy = materialised(h, w, targets, b, **options)
        return [(entropy - 2 * logprobs).sum()]

    ours = gradients(known, tensors, [torch.ones(())])
    assert sum(rows.stop - rows.start for rows in products_made) == 13 * -(-29 // 7)
    theirs = gradients(oracle, tensors, [torch.ones(())])
    for a, b in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# Which products are used.


def test_quick_float32_products_are_exact_and_leave_no_trace():
    before = cpu_matmul.float32_switch() and cpu_matmul.float32_switch().fp32_precision
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    exact = a.double() @ b.double()
    with cpu_matmul.quick_float32(a.device):
        assert relative(a @ b, exact) < 1e-6
    assert (cpu_matmul.float32_switch() and cpu_matmul.float32_switch().fp32_precision) == before
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def switch():
    found = cpu_matmul.float32_switch()
    if found is None:
        pytest.skip("torch before 2.9 has no such switch")
    before = found.fp32_precision
    yield found
    found.fp32_precision = before


def test_a_lower_precision_that_the_user_asked_for_stays(switch):
    switch.fp32_precision = "bf16"
    with cpu_matmul.quick_float32(torch.device("cpu")):
        assert switch.fp32_precision == "bf16"
    assert switch.fp32_precision == "bf16"


def test_relaxed_products_that_round_are_not_taken(switch, monkeypatch):
    """On a CPU with matrix tiles the relaxed setting loses bits; then nothing may be switched."""
    monkeypatch.setattr(cpu_matmul, "relaxed_is_exact", lambda: False)
    before = switch.fp32_precision
    with cpu_matmul.quick_float32(torch.device("cpu")):
        assert switch.fp32_precision == before


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rows", [60, 700])
def test_bfloat16_products_cost_no_more_than_the_gradients_rounding(fast, rows, monkeypatch):
    """Logits stay exact; only dL/dz is rounded, once, before products whose results are rounded anyway."""
    monkeypatch.setattr(portable, "bfloat16_is_fast", lambda: fast)
    (values, grads), (expected, expected_grads) = both(rows, 2999, 64, "all", torch.bfloat16, spread=0.3)
    for a, b in zip(values, expected, strict=True):
        assert a.dtype == torch.float32 and relative(a, b) < 1e-5
    eps = torch.finfo(torch.bfloat16).eps
    for a, b in zip(grads, expected_grads, strict=True):
        assert a.dtype == torch.bfloat16 and relative(a, b) < (eps if fast else eps / 2), relative(a, b)
