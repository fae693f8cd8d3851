"""The rollouts that the page carries: a bounded choice of prompts and steps, tokens by number, three digits a value."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autotelic.report.data import Group, short
from autotelic.report.run_folders import RolloutRow, Run, as_text, read_rollout

MAX_RUNS = 12
MAX_PROMPTS = 12
MAX_STEPS = 12
MAX_RESPONSES = 16
MAX_RESPONSE_TOKENS = 1200
MAX_ANSWER = 60
MIN_SHARED = 120  # characters; shorter beginnings, such as an instruction, stay
MAX_TOKENS = 200_000  # over the whole page: about 6 MB of JSON; half of it at most is of followed prompts


def rollouts(groups: Sequence[Group]) -> tuple[dict[str, Any], list[str]]:
    """Return what the viewer shows, and notes on what was left out for size.

    The first seed of every method comes before second seeds. Followed prompts come first. Of a run's own rollouts, the
    prompts recorded most often are kept, or evenly spaced ones where none comes back; of a prompt, evenly spaced steps
    with the first and the last. Prompts that several runs have recorded come before others: runs can be compared on
    them.
    """
    depth = max((len(g.runs) for g in groups), default=0)
    order = [(g, g.runs[i]) for i in range(depth) for g in groups if i < len(g.runs)]
    order = [(group, run) for group, run in order if run.rollouts or run.followed]
    notes = [f"rollouts of {len(order) - MAX_RUNS} further runs are not embedded"] if len(order) > MAX_RUNS else []
    order = order[:MAX_RUNS]
    holders = Counter(row_id for _, run in order for row_id in {row.prompt_id for row in run.rollouts})
    pool: dict[str, int] = {}
    entries, cut = [], {"rows": 0, "responses": 0, "tokens": 0}
    for group, run in order:
        entry = embed_run(group, run, pool, MAX_TOKENS // len(order), cut, holders)
        if entry["prompts"]:
            entries.append(entry)
    if shared := leave_out_shared([prompt for entry in entries for prompt in entry["prompts"]]):
        notes.append(f"all prompts begin with the same {len(shared)} lines, such as worked examples; they are left out")
    if cut["rows"]:
        notes.append(
            f"{cut['rows']} recorded rollout rows are not embedded "
            f"(at most {MAX_PROMPTS} prompts x {MAX_STEPS} steps a run)"
        )
    if cut["responses"]:
        notes.append(f"{cut['responses']} responses beyond the {MAX_RESPONSES}th of a prompt are not embedded")
    if cut["tokens"]:
        notes.append(f"{cut['tokens']} responses are cut to their first {MAX_RESPONSE_TOKENS} tokens")
    return {"vocabulary": list(pool), "runs": entries}, notes


def leave_out_shared(prompts: Sequence[dict[str, Any]]) -> list[str]:
    """Take the lines with which all prompts begin out of them, where they are many; return those lines."""
    lines = [prompt["prompt"].split("\n") for prompt in prompts]
    if len({prompt["prompt"] for prompt in prompts}) < 2:
        return []
    count = next((i for i, row in enumerate(zip(*lines, strict=False)) if len(set(row)) > 1), min(map(len, lines)) - 1)
    shared = lines[0][:count]
    if sum(map(len, shared)) < MIN_SHARED:
        return []
    for prompt, own in zip(prompts, lines, strict=True):
        prompt["prompt"] = "\n".join(["...", *own[count:]])
    return shared


def embed_run(
    group: Group, run: Run, pool: dict[str, int], budget: int, cut: dict[str, int], holders: Mapping[str, int]
) -> dict[str, Any]:
    """Return one run's rollouts within a budget of tokens; `holders`: how many runs have recorded a prompt."""
    prompts: list[dict[str, Any]] = []
    for rows, allowed in ((run.followed, budget // 2), (run.rollouts, budget)):
        spent = sum(len(r["t"]) for p in prompts for s in p["steps"] for r in s["responses"])
        chosen = choose_rows(rows, holders)
        prompts += embed_rows(run, chosen, pool, allowed - spent, cut, followed=rows is run.followed)
        cut["rows"] += len(rows) - len(chosen)
    return {"method": group.key, "run": run.name, "seed": run.seed, "prompts": prompts}


def embed_rows(
    run: Run, rows: Sequence[RolloutRow], pool: dict[str, int], budget: int, cut: dict[str, int], *, followed: bool
) -> list[dict[str, Any]]:
    """Return the prompts of chosen rows of one file, with their steps, within a budget of tokens."""
    prompts: dict[str, dict[str, Any]] = {}
    spent = kept = 0
    for row in rows:
        if spent > budget:
            break
        record = read_rollout(run.path, row)
        shown = record["responses"][:MAX_RESPONSES]
        responses = [embed_response(r, c, pool, cut) for r, c in zip(shown, row.clusters, strict=False)]
        for response, right in zip(responses, row.right, strict=False):
            response["k"] = int(right)
        cut["responses"] += max(0, len(record["responses"]) - MAX_RESPONSES)
        spent += sum(len(r["t"]) for r in responses)
        kept += 1
        entry = {"id": row.prompt_id, "prompt": as_text(record.get("prompt")), "steps": [], "followed": followed}
        prompts.setdefault(row.prompt_id, entry)["steps"].append(
            {"step": row.step, "responses": responses, "answers": answers_of(shown, row.clusters)}
        )
    for prompt in prompts.values():
        prompt["steps"].sort(key=lambda s: s["step"])
    cut["rows"] += len(rows) - kept
    return list(prompts.values())


def answers_of(responses: Sequence[dict[str, Any]], clusters: Sequence[int]) -> dict[str, str]:
    """Return each cluster's answer, as its first member has it; only where the text still gives one."""
    from autotelic.answers import extract

    first: dict[int, str] = {}
    for response, number in zip(responses, clusters, strict=False):
        if number >= 0:
            first.setdefault(number, str(response.get("text", "")))
    found = {str(number): extract(text) for number, text in first.items()}
    return {number: answer[:MAX_ANSWER] for number, answer in found.items() if answer}


def choose_rows(rows: Sequence[RolloutRow], holders: Mapping[str, int] | None = None) -> list[RolloutRow]:
    """Return the rows to embed, prompt after prompt: those of most runs first, then the most recorded ones."""
    shared = holders or {}
    by_prompt: dict[str, dict[int, RolloutRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, {})[row.step] = row
    prompts = sorted(by_prompt, key=lambda p: (-shared.get(p, 0), -len(by_prompt[p])))
    alone = all(len(steps) == 1 for steps in by_prompt.values()) and max(shared.values(), default=1) == 1
    if len(prompts) > MAX_PROMPTS and alone:
        prompts = evenly(sorted(prompts, key=lambda p: min(by_prompt[p])), MAX_PROMPTS)  # no prompt comes back
    chosen = []
    for prompt in prompts[:MAX_PROMPTS]:
        steps = sorted(by_prompt[prompt])
        chosen += [by_prompt[prompt][step] for step in evenly(steps, MAX_STEPS)]
    return chosen


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def embed_response(response: dict[str, Any], cluster: int, pool: dict[str, int], cut: dict[str, int]) -> dict[str, Any]:
    """Return one response with short names: t tokens, h entropy, s surprisal, c covariance, x selected, r, a, g."""
    tokens = response.get("tokens") or [str(response.get("text", ""))]
    if len(tokens) > MAX_RESPONSE_TOKENS:
        cut["tokens"] += 1
    result: dict[str, Any] = {
        "t": [pool.setdefault(str(token), len(pool)) for token in tokens[:MAX_RESPONSE_TOKENS]],
        "g": cluster,
    }
    for name, key in (("reward", "r"), ("advantage", "a")):
        if isinstance(response.get(name), int | float):
            result[key] = short([response[name]], 4)[0]
    for name, key in (("entropy", "h"), ("surprisal", "s"), ("covariance", "c")):
        values = response.get(name)
        if isinstance(values, list) and len(values) == len(tokens):
            result[key] = short([float("nan") if v is None else v for v in values[:MAX_RESPONSE_TOKENS]], 3)
    selected = response.get("selected")
    if isinstance(selected, list) and len(selected) == len(tokens):
        result["x"] = [i for i, chosen in enumerate(selected[:MAX_RESPONSE_TOKENS]) if chosen]
    return result
