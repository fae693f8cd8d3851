"""How robust is answer equivalence? ``python benchmarks/answers_robustness.py FILE.jsonl [FILE.jsonl ...]``.

Reads rows with an ``answer``. Each must equal itself and its usual rewritings (boxed in a sentence, fraction, decimal,
percent, spacing, LaTeX style), and must not equal itself with one number changed. Prints the shares and every failure;
``--output FILE`` writes them as JSON.
"""

import argparse
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from autotelic.answers import as_fraction, default_pool, equivalent, extract


def rewritings(answer: str) -> Iterator[tuple[str, str]]:
    """Yield (name, another spelling of the same answer)."""
    yield "itself", answer
    yield "spaces around", f"  {answer} "
    yield "dollars", "$" + re.sub(r"(?<!\\)[$]", "", answer) + "$"
    yield "full stop", f"{answer}."
    yield "dfrac", answer.replace("\\frac", "\\dfrac")
    yield "tfrac", answer.replace("\\frac", "\\tfrac")
    yield "left and right", re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", answer))
    if not re.search(r"\d,\s?\d|\\!", answer):
        yield "thin spaces", re.sub(r"(?<=[,+=])\s*", r"\\, ", answer)
    yield "no spaces", re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", answer) if "text" not in answer else answer
    yield "unicode minus", answer.replace("-", "−") if "begin" not in answer else answer
    boxed = extract(f"We find that the result is $\\boxed{{{answer}}}$.")
    yield "boxed in a sentence", boxed if boxed is not None else ""
    value = as_fraction(answer)
    if value is not None:
        yield from _number_rewritings(value)


def _number_rewritings(value: Fraction) -> Iterator[tuple[str, str]]:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    yield "fraction", f"{sign}\\frac{{{top}}}{{{bottom}}}"
    yield "unreduced fraction", f"{sign}\\frac{{{top * 3}}}{{{bottom * 3}}}"
    yield "slash", f"{value.numerator}/{bottom}"
    yield "percent", f"{sign}\\frac{{{top * 100}}}{{{bottom}}}\\%"
    yield "equation", f"x = {sign}\\frac{{{top}}}{{{bottom}}}"
    decimal = _decimal(value)
    if decimal is not None:
        yield "decimal", decimal
        yield "trailing zeros", decimal + ("0" if "." in decimal else ".00")
    if bottom == 1 and top >= 1000:
        yield "thousands", f"{sign}{top:,}"
        yield "latex thousands", f"{sign}{top:,}".replace(",", "{,}")


def _decimal(value: Fraction) -> str | None:
    """Return the finite decimal expansion, if there is one."""
    for digits in range(13):
        scaled = value * 10**digits
        if scaled.denominator == 1:
            text = str(abs(scaled.numerator)).rjust(digits + 1, "0")
            body = text[:-digits] + "." + text[-digits:] if digits else text
            return ("-" if value < 0 else "") + body
    return None


def perturbed(answer: str) -> Iterator[tuple[str, str]]:
    """Yield (name, a different answer that looks alike)."""
    numbers = list(re.finditer(r"(?<![\d_{.])\d+(?![\d.])", answer)) or list(re.finditer(r"\d+", answer))
    if numbers:
        last = numbers[-1]
        yield "last number + 1", answer[: last.start()] + str(int(last.group()) + 1) + answer[last.end() :]
        first = numbers[0]
        yield "first number + 1", answer[: first.start()] + str(int(first.group()) + 1) + answer[first.end() :]
    value = as_fraction(answer)
    if value is not None:
        yield "times 1.0002", f"\\frac{{{value.numerator * 5001 + (value == 0)}}}{{{value.denominator * 5000}}}"
        yield "negated", str(-value if value else 1)
        yield "percent sign", f"{value if value else 7}\\%"


def check(path: Path) -> dict:
    """Return counts and failures for one file."""
    result = {"file": path.name, "answers": 0, "equal": [0, 0], "different": [0, 0], "failures": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = str(row["answer"])
        result["answers"] += 1
        for kind, variants, wanted in (("equal", rewritings, True), ("different", perturbed, False)):
            for name, other in variants(answer):
                right = equivalent(answer, other) is wanted
                result[kind][0] += right
                result[kind][1] += 1
                if not right:
                    result["failures"].append([kind, name, answer, other])
    return result


def main() -> None:
    """Check every file and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = [check(path) for path in args.files]
    for result in results:
        for failure in result["failures"]:
            print("  {}: {:20} {!r} / {!r}".format(*failure))
    for result in [*results, _total(results)]:
        (same, n), (apart, m) = result["equal"], result["different"]
        print(
            f"{result['file']:24} {result['answers']:5} answers   equal {same}/{n} = {same / max(n, 1):.4%}   "
            f"different {apart}/{m} = {apart / max(m, 1):.4%}"
        )
    print("workers:", default_pool().stats)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _total(results: list[dict]) -> dict:
    sums = {key: [sum(r[key][i] for r in results) for i in (0, 1)] for key in ("equal", "different")}
    return {"file": "all", "answers": sum(r["answers"] for r in results), **sums}


if __name__ == "__main__":
    main()
