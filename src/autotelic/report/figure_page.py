"""Pages of one or more plain figures, for the commands that have `--plot`: one file that works from disk, offline.

Figures are drawn by plotly.js 4.1.1 (MIT, `assets/LICENSE.plotly`). The package carries its cartesian bundle, as
`plotly.js-cartesian-dist-min` on npm: 1.5 MB, against 4.8 MB of the complete one, and no Python package is needed.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any


def figure_page(title: str, figures: Sequence[Mapping[str, Any]]) -> str:
    """Return one HTML page.

    Args:
        title: of the page.
        figures: `title`, `traces` as plotly.js takes them, and optionally `layout`.
    """
    script = "".join(
        f"Plotly.newPlot('figure{i}', data[{i}].traces, {{title: {{text: data[{i}].title}}, ...data[{i}].layout}}, "
        "{responsive: true, displaylogo: false, toImageButtonOptions: {format: 'svg'}});"
        for i in range(len(figures))
    )
    places = "".join(f'<div id="figure{i}" style="height: 26rem"></div>' for i in range(len(figures)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title></head>"
        '<body style="font-family: system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 0 1rem">'
        f"<h1 style='font-size: 1.4rem'>{escape(title)}</h1>{places}"
        f'<script type="application/json" id="data">{embed_json(list(figures))}</script>'
        f"<script>{plotly_js()}</script>"
        f"<script>const data = JSON.parse(document.getElementById('data').textContent);{script}</script></body></html>"
    )


def plotly_js() -> str:
    """Return plotly.js, its cartesian bundle."""
    packed = resources.files("autotelic.report") / "assets" / "plotly-cartesian.min.js.gz"
    return gzip.decompress(packed.read_bytes()).decode()


def embed_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no `<`, `>`, `&`, and no line separator of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # a lone surrogate, as a token cut inside a character gives, cannot be written as UTF-8
    return (
        "".join(c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in text)
        if has_surrogate(text)
        else text
    )


def has_surrogate(text: str) -> bool:
    """Tell whether the text holds half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
