"""Fit R = -a exp(H) + b to a training log: the ceiling b - a, and what is left to gain.

LOG is a metrics.jsonl or a run folder, transformers' trainer_state.json, verl's file or console log, a log of ms-swift
or LLaMA-Factory, a TensorBoard folder, a W&B CSV export, or any CSV with named columns. Entropy H is in nats a token,
reward R is the mean validation accuracy where the log has it. Several logs give one table.

    autotelic forecast runs/demo/grpo
    autotelic forecast runs/demo/grpo runs/demo/empo runs/demo/grpo_kl_cov
    autotelic forecast runs/small runs/medium runs/large --across size
    autotelic forecast export.csv --entropy-column actor/entropy --reward-column val/accuracy --plot law.html
"""

import argparse
from pathlib import Path
from typing import Any

from autotelic.cli.forecast_across import across_sizes, across_text, sizes_of
from autotelic.cli.options import add_output, as_json, finite, say_written
from autotelic.errors import UserError

BASELINES = ("law", "last_value", "linear_in_entropy", "linear_in_step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", metavar="LOG", nargs="+", type=Path, help="the log to read, or several to compare")
    parser.add_argument("--entropy-column", help="name of the entropy, in nats")
    parser.add_argument("--reward-column", help="name of the reward or accuracy")
    parser.add_argument("--step-column", help="name of the step")
    parser.add_argument("--at", type=finite, nargs="+", default=[], metavar="H", help="predict R at these entropies")
    parser.add_argument(
        "--across",
        choices=("size",),
        help="fit a and b of several logs as lines in ln N, with N parameters of the model",
    )
    parser.add_argument(
        "--sizes",
        type=finite,
        nargs="+",
        metavar="N",
        help="parameters of each log's model (known for our run folders)",
    )
    parser.add_argument(
        "--at-size", type=finite, nargs="+", default=[], metavar="N", help="predict a and b for models of these sizes"
    )
    parser.add_argument(
        "--share", type=finite, default=0.15, help="forecast from this first share of training (default: 0.15)"
    )
    parser.add_argument(
        "--intervention", help="what acts on the entropy in this run, if anything (detected in our run folders)"
    )
    add_output(parser, plot="also write a picture: .html, or .png with matplotlib")


def run(args: argparse.Namespace) -> int:
    """Read, fit, forecast, print."""
    from autotelic.functional.entropy_law import MAX_ENTROPY

    if args.plot and args.plot.suffix.lower() not in {".html", ".png"}:
        raise UserError(f"--plot writes .html or .png, not {args.plot.suffix or 'a name without a suffix'}")
    if not 0 < args.share < 1:
        raise UserError(f"--share must be between 0 and 1, got {args.share}: it is the part of training that is fitted")
    if any(not 0 <= h <= MAX_ENTROPY for h in args.at):
        raise UserError(f"--at takes entropies in nats per token, from 0 to {MAX_ENTROPY:g}")
    sizes = checked_sizes(args)
    if missing := [str(log) for log in args.logs if not log.exists()]:
        raise UserError(f"{', '.join(missing)} does not exist; give a log or the folder of one")
    if len(args.logs) > 1:
        if args.plot:
            raise UserError("--plot draws one log: give one")
        results = compared(args)
        across = across_sizes(results, sizes, args.at_size) if args.across else None
        if args.json:
            print(as_json({"logs": results} | ({"across": across} if across else {})))
        else:
            print(comparison(results) + (f"\n\n{across_text(across)}" if across else ""))
        return 0
    curve, result, fit = forecast(args.logs[0], args)
    if args.plot:
        write_plot(args.plot, curve, fit, result)
        result["plot"] = str(args.plot)
    print(as_json(result) if args.json else text(result))
    say_written(args, args.plot)
    return 0


def checked_sizes(args: argparse.Namespace) -> list[float]:
    """Return the size of each log's model where lines across sizes are asked for; refuse options that miss it."""
    if not args.across:
        if args.sizes or args.at_size:
            raise UserError("--sizes and --at-size belong to --across size")
        return []
    if len(args.logs) < 3:
        raise UserError(f"--across size draws a line through several logs: give three at least, got {len(args.logs)}")
    if any(not size > 0 for size in (*(args.sizes or ()), *args.at_size)):
        raise UserError("a model's size is its number of parameters, above zero")
    return sizes_of(args.logs, args.sizes)


def forecast(log: Path, args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """Read one log; return its curve, everything that is printed, and the law itself."""
    from autotelic.runs.logs import pick_curve, read_log

    read = read_log(log, step_column=args.step_column)
    curve = pick_curve(read, entropy_column=args.entropy_column, reward_column=args.reward_column)
    return curve, *fitted(curve, args, intervention_of(log))


def compared(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one result per log; a log without a law keeps its reason under "error".

    Raises:
        UserError: no log has a law.
    """
    results: list[dict[str, Any]] = []
    for log in args.logs:
        try:
            results.append({"log": str(log)} | forecast(log, args)[1])
        except UserError as error:
            results.append({"log": str(log), "error": str(error)})
    if all("error" in result for result in results):
        raise UserError("; ".join(result["error"] for result in results))
    return results


def fitted(curve: Any, args: argparse.Namespace, detected: str | None) -> tuple[dict[str, Any], Any]:
    """Return everything that is printed, and the law itself."""
    from autotelic.functional.entropy_law import fit_entropy_law, rolling_forecasts

    fit = fit_entropy_law(curve.entropy, curve.reward, intervention=args.intervention or detected)
    warnings = [*fit.warnings, *curve.notes]
    forecasts = []
    if len(curve.step) >= 4:
        shares = sorted({args.share, 0.3, 0.45, 0.6, 0.75})
        forecasts = rolling_forecasts(curve.step, curve.entropy, curve.reward, shares=shares)
    else:
        warnings.append(f"no forecast: it needs at least 4 evaluations, the log has {len(curve.step)}")
    names = ("share", "num_fitted", "num_predicted", "rmse", "final_error")
    rows = [{name: getattr(each, name) for name in names} for each in forecasts]
    result = {
        **fit.as_dict(),
        "last_step": curve.step[-1].item(),
        "last_entropy": float(curve.entropy[-1]),
        "last_reward": float(curve.reward[-1]),
        "entropy_column": curve.entropy_column,
        "reward_column": curve.reward_column,
        "predictions": [
            {"entropy": h, "reward": float(fit.predict(h)), "interval": list(fit.predict_interval(h))} for h in args.at
        ],
        "warnings": warnings,
        "forecast": {**rows[0], "rolling": rows[1:]} if rows else None,
    }
    return result, fit


def intervention_of(log: Path) -> str | None:
    """Return what acts on the entropy of one of our own runs, as its run.json tells; None where nothing is known."""
    from autotelic.controls.table import intervention
    from autotelic.report.method_styles import control_of, method_of, settings_of
    from autotelic.report.run_folders import read_object

    folder = log if log.is_dir() else log.parent
    try:
        description = read_object(folder / "run.json")
    except (OSError, UserError):
        return None  # there is none, or it is another program's
    return intervention(method_of(description, folder.name), control_of(settings_of(description)))


def text(result: dict[str, Any]) -> str:
    """Return the findings for people."""

    def interval(name: str) -> str:
        low, high = result[f"{name}_interval"]
        return f"{result[name]:8.4f}  [{low:.4f}, {high:.4f}]"

    lines = [
        f"R = -a exp(H) + b    {result['reward_column']} against {result['entropy_column']}, "
        f"{result['num_points']} points, R2 {result['r_squared']:.3f}",
        f"  a                  {interval('a')}",
        f"  b                  {interval('b')}",
        f"  ceiling b - a      {interval('ceiling')}",
        f"  now                {result['last_reward']:8.4f}  at H = {result['last_entropy']:.3f}, "
        f"step {result['last_step']:g}",
    ]
    if result["share_taken"] is not None:
        lines.append(f"  gain reached       {100 * result['share_taken']:8.0f} % of the predicted gain")
    lines += [f"  {predicted(p)}" for p in result["predictions"]]
    if result["forecast"]:
        lines += ["", "forecast: RMSE on the rest of training, fitted on its first part"]
        lines.append(f"  {'fitted on':<16}" + "".join(f"{name.replace('_', ' '):>19}" for name in BASELINES))
        for row in (result["forecast"], *result["forecast"]["rolling"]):
            head = f"{100 * row['share']:.0f} % ({row['num_fitted']} points)"
            lines.append(f"  {head:<16}" + "".join(f"{row['rmse'][name]:19.4f}" for name in BASELINES))
        lines.append("  the law and `linear in entropy` read the entropy of the steps that they predict")
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines.append(
        "intervals: 95 %, Student t; points of one run are correlated, so they are too narrow rather than too wide"
    )
    return "\n".join(lines)


def predicted(p: dict[str, Any]) -> str:
    """Return the reward that the law gives at an entropy, with its interval."""
    low, high = p["interval"]
    return f"R at H = {p['entropy']:<8.3f}  {p['reward']:8.4f}  [{low:.4f}, {high:.4f}]"


def comparison(results: list[dict[str, Any]]) -> str:
    """Return one row per log: its law, where it stands, and how well its first part forecasts the rest."""
    width = max(len("log"), *(len(result["log"]) for result in results))
    titles = ("points", "a", "b", "ceiling", "95 %", "now", "reached", "R2", "RMSE law", "RMSE last")
    lines = [f"{'log':<{width}}" + "".join(f"{title:>{18 if title == '95 %' else 10}}" for title in titles)]
    for result in results:
        if "error" in result:
            lines.append(f"{result['log']:<{width}}  no law: {result['error']}")
            continue
        low, high = result["ceiling_interval"]
        reached = "" if result["share_taken"] is None else f"{100 * result['share_taken']:.0f} %"
        rmse = result["forecast"]["rmse"] if result["forecast"] else {}
        cells = [f"{result[name]:.4f}" for name in ("a", "b", "ceiling")]
        cells = [str(result["num_points"]), *cells, f"[{low:.3f}, {high:.3f}]"]
        cells += [f"{result['last_reward']:.4f}", reached, f"{result['r_squared']:.3f}"]
        cells += [f"{rmse[name]:.4f}" if rmse else "" for name in ("law", "last_value")]
        widths = [18 if title == "95 %" else 10 for title in titles]
        lines.append(f"{result['log']:<{width}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    notes = [f"{r['log']}: {warning}" for r in results for warning in r.get("warnings", ())]
    for r in results:
        lines += [f"{r['log']}: {predicted(p)}" for p in r.get("predictions", ())]
    columns = {(r["reward_column"], r["entropy_column"]) for r in results if "error" not in r}
    lines += [f"R = -a exp(H) + b, {reward} against {entropy}" for reward, entropy in sorted(columns)]
    return "\n".join([*lines, *(f"warning: {note}" for note in notes)])


def write_plot(path: Path, curve: Any, fit: Any, result: dict[str, Any]) -> None:
    """Draw points, fit, band and ceiling."""
    import numpy as np

    grid = np.linspace(0.0, float(curve.entropy.max()) * 1.02, 80)
    bands = np.array([fit.predict_interval(float(h)) for h in grid])
    title = f"R = -{fit.a:.3f} exp(H) + {fit.b:.3f}, ceiling {fit.ceiling:.3f}"
    draw = draw_html if path.suffix.lower() == ".html" else draw_png
    draw(path, curve, grid, fit.predict(grid), bands, title, result)


def draw_html(path: Path, curve: Any, grid: Any, line: Any, bands: Any, title: str, result: dict[str, Any]) -> None:
    """Write one self-contained page."""
    from autotelic.report.figure_page import figure_page
    from autotelic.report.method_styles import PALETTE
    from autotelic.runs.files import write_output

    blue, grid = {"color": PALETTE[0]}, grid.tolist()
    edge = {"x": grid, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    shade = {"fill": "tonexty", "fillcolor": "rgba(0,114,178,.18)", "name": "95 %"}
    points = {"x": curve.entropy.tolist(), "y": curve.reward.tolist(), "text": [f"step {s}" for s in curve.step]}
    low, high = result["ceiling_interval"]
    ceiling, error = float(line[0]), {"type": "data", "symmetric": False}
    error |= {"array": [high - ceiling], "arrayminus": [ceiling - low]}
    traces = [
        {**edge, "y": bands[:, 0].tolist(), "showlegend": False},
        {**edge, "y": bands[:, 1].tolist(), **shade},
        {"x": grid, "y": line.tolist(), "mode": "lines", "line": blue, "name": "fit"},
        {**points, "mode": "markers", "marker": blue, "name": "log"},
        {"x": [0], "y": [ceiling], "error_y": error, "mode": "markers", "name": "ceiling"}
        | {"marker": {"symbol": "diamond", "size": 11, "color": PALETTE[4]}},
    ]
    axes = {
        "xaxis": {"title": {"text": "entropy H (nats per token)"}},
        "yaxis": {"title": {"text": curve.reward_column}},
    }
    write_output(path, figure_page("The entropy law", [{"title": title, "traces": traces, "layout": axes}]))


def draw_png(path: Path, curve: Any, grid: Any, line: Any, bands: Any, title: str, result: dict[str, Any]) -> None:
    """Write a picture with matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a .png needs matplotlib: pip install matplotlib, or write .html") from None
    import io

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(grid, bands[:, 0], bands[:, 1], alpha=0.18, color="#0072B2", linewidth=0)
    axes.plot(grid, line, color="#0072B2")
    axes.plot(curve.entropy, curve.reward, "o", color="#0072B2", markersize=4)
    low, high = result["ceiling_interval"]
    axes.errorbar([0], [line[0]], [[line[0] - low], [high - line[0]]], fmt="D", color="#D55E00")
    axes.set(title=title, xlabel="entropy H (nats per token)", ylabel=curve.reward_column)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    from autotelic.runs.files import write_output

    write_output(path, buffer.getvalue())
