"""Model output is hostile input: no side effect, no stall, and no other group's result changes."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import autotelic
from autotelic.answers import MathEquivalence, Pool, cluster, default_pool, equivalent, extract
from autotelic.answers.pool import TIME_LIMIT
from autotelic.answers.worker import STEP_LIMIT

BENIGN = ["1/2", "0.5", r"\sin x", r"\sin(x)", r"\cos x", "7"]
EXPECTED = cluster(BENIGN)
ATTACKS = [
    "__import__('os').system('touch {}')",
    "open('{}', 'w').write('x')",
    "exec(\"open('{}','w')\")",
    "\\input{{{}}}",
    "\\write18{{touch {}}}",
    "9**9**9**9",
    "9^{9^{9^{9}}}",
    "99999999999!",
    "(10^{10})!",
    "\\binom{100000000}{50000000}",
    "\\sum_{n=1}^{10^{9}} \\frac{1}{n}",
    "\\prod_{n=1}^{1000000} n",
    "x^{x^{x^{x^{x^{x}}}}}",
    "((((((((((x+1)^9)^9)^9)^9)^9)^9)^9)^9)^9)^9",
    "(" * 3000 + "1" + ")" * 3000,
    "{" * 1000,
    "\\frac{" * 300 + "1" + "}{2}" * 300,
    "\\sqrt{" * 300 + "2" + "}" * 300,
    "\\sin(" * 60,
    "x_{" * 500,
    "1e400",
    "1e999999999",
    "5\x00; 6",
    "\u202e\u2066123\u2069",
    "1" * 1_000_000,
    "a" * 1_000_000,
    "\\newcommand{\\a}{\\b\\b}\\newcommand{\\b}{\\c\\c\\c}\\a\\a\\a",
    "\\begin{pmatrix}" * 100,
    "\\pm " * 300,
    "1," * 900,
    "=" * 1500,
    "^" * 1500,
    "\ud800",
]


@pytest.fixture(scope="module", autouse=True)
def warm():
    default_pool().warm_up()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a[:24].encode("ascii", "backslashreplace").decode())
def test_attack(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "pwned"
    attack = attack.replace("{}", str(target), 1) if "{}" in attack else attack
    extract(f"The answer is \\boxed{{{attack}}}")
    spent = default_pool().stats.seconds
    labels = cluster([*BENIGN, attack, attack])
    assert default_pool().stats.seconds - spent < TIME_LIMIT + STEP_LIMIT
    assert labels[: len(BENIGN)] == EXPECTED
    assert labels[-1] == labels[-2]
    assert labels[-1] not in labels[: len(BENIGN)] or labels[-1] == -1
    assert cluster(BENIGN) == EXPECTED
    assert not list(tmp_path.iterdir())


def test_a_whole_group_of_attacks_ends_within_the_limit_and_is_counted():
    attacks = [f"\\prod_{{n=1}}^{{{1000000 + i}}} n" for i in range(8)]
    before = default_pool().stats.timeouts
    spent = default_pool().stats.seconds
    cluster(attacks)
    assert default_pool().stats.seconds - spent < TIME_LIMIT + STEP_LIMIT
    assert default_pool().stats.timeouts > before
    assert equivalent(r"\sin x", r"\sin(x)")


def test_off_the_main_thread():
    results = []
    equivalence = MathEquivalence(Pool())

    def work(k):
        results.append(equivalence.compare([rf"\sin({k} x)", rf"\sin(x \cdot {k})"], [(0, 1)]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [[True]] * 4
    equivalence.pool.close()


def test_memory_is_bounded():
    """A list of 10^10 zeros does not fit under the limit; the worker survives or is replaced, and goes on."""
    pool = Pool()
    assert pool.compare([r"\sum_{k=1}^{3} \binom{10^{7}}{5 \cdot 10^{6}}^{k}", "x"], [(0, 1)])[0] in (None, False)
    assert pool.compare([r"\sin x", r"\sin(x)"], [(0, 1)]) == [True]
    pool.close()
    assert not pool.running


def test_a_lost_supervisor_is_replaced():
    pool = Pool()
    pool.warm_up()
    pool._worker.process.kill()
    pool._worker.process.wait()
    assert pool.compare([r"\sin x", r"\sin(x)"], [(0, 1)]) == [True]
    assert pool.stats.starts == 2
    pool.close()


def test_workers_end_with_their_parent():
    code = (
        "from autotelic.answers import equivalent, default_pool\n"
        r"equivalent(r'\sin x', r'\sin(x)')" + "\nprint(default_pool()._worker.process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_source_never_evaluates_text():
    """No eval, exec, parse_expr, sympify or pickle.loads of anything, anywhere in the answers and rewards."""
    root = Path(autotelic.__file__).parent
    forbidden = re.compile(r"(?<![\w.])(?:eval|exec|parse_expr|sympify|compile)\(|pickle\.loads?\(|\.lambdify\(")
    for path in [*(root / "answers").glob("*.py"), *(root / "rewards").glob("*.py"), root / "cli" / "score.py"]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not forbidden.search(line), f"{path.name}:{number}: {line.strip()}"


def test_import_is_light():
    code = "import sys, autotelic.answers; assert not {'torch', 'sympy', 'math_verify', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
