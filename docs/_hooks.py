"""Links from the documents to files of the repository also work on the site.

A page links to `../src/autotelic/functional/token_covariance.py#token_covariance`, which a reader of the repository can
follow. For the site, every file that is linked so becomes a page of highlighted source, with a heading per top-level
name, so that the anchor leads to the function without a line number.

The mark `<!-- modules of PACKAGE -->` becomes a table of the public modules of a package, each with an API page of its
own. Equations between dollar signs become MathML, which
browsers draw without a script. The page on performance is written by `benchmarks/page.py`.
"""

import ast
import html
import json
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

LINK = re.compile(r"\]\(((?:\.\./)+[^)\s]+)\)")
MODULES = re.compile(r"<!-- modules of ([\w.]+) -->")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def on_files(files, config):
    """Add a page for every file outside docs/ that a page links to."""
    root = Path(config.config_file_path).parent
    wanted = set()
    for file in files.documentation_pages():
        text = Path(file.abs_src_path).read_text(encoding="utf-8")
        for target in LINK.findall(text):
            place = outside(file.src_uri, target)
            if place is not None:
                wanted.add(place[0])
    for name in sorted(wanted):
        if (root / name).is_file():
            files.append(File.generated(config, page_of(name), content=source_page(root / name, name)))
    for package in MODULES.findall((root / "docs/api.md").read_text(encoding="utf-8")):
        for module in modules(root / "src", package):
            files.append(File.generated(config, f"api/{module}.md", content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_content(content, page, config, files):
    """Typeset the equations."""
    return EQUATION.sub(lambda match: mathml(html.unescape(match[3]), "block" if match[2] == "[" else "inline"), content)


def mathml(latex, display):
    """Return an equation as MathML, with its source as the text that a screen reader or a copy may take."""
    return convert(latex, display=display).replace("<math ", f'<math aria-label="{html.escape(latex)}" ', 1)


def on_page_markdown(markdown, page, config, files):
    """Point links that leave docs/ to those pages."""

    def moved(match):
        place = outside(page.file.src_uri, match[1])
        if place is None:
            return match[0]
        name, anchor = place
        return f"]({posixpath.relpath(page_of(name), posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    root = Path(config.config_file_path).parent
    markdown = MODULES.sub(lambda match: entries(root / "src", match[1]), markdown)
    return LINK.sub(moved, markdown)


def modules(source, package):
    """Return the names of the package's public modules."""
    folder = source.joinpath(*package.split("."))
    return [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def about(source, module):
    """Return the first sentence of a module or package."""
    path = source.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def entries(source, package):
    """Return what the package says of itself, and a table of its modules, each with a link to its page."""
    rows = [f"| [`{name}`](api/{name}.md) | {about(source, name)} |" for name in modules(source, package)]
    return "\n".join([about(source, package), "", "| module | what it holds |", "| --- | --- |", *rows])


def outside(page, target):
    """Return (path from the repository's root, anchor) if the link leaves docs/, else None."""
    path, mark, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    return (place.removeprefix("../"), mark + anchor) if place.startswith("../") else None


def page_of(name):
    """Return where a file's page lies."""
    return name if name.endswith(".md") else f"{name}.md"


def source_page(path, name):
    """Return a file as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text.replace("](docs/", "](")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        kinds = {"markdown": str, "code": lambda code: fenced(code, "python")}
        return "\n\n".join(kinds[cell["cell_type"]]("".join(cell["source"])) for cell in cells)
    head = f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    if path.suffix != ".py":
        return head + fenced(text, LANGUAGES.get(path.suffix, "text"))
    lines, start, parts = text.splitlines(), 0, []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        if first > start:
            parts.append(fenced("\n".join(lines[start:first]), "python"))
        parts.append(f"## {node.name} {{ #{node.name} }}\n")
        parts.append(fenced("\n".join(lines[first : node.end_lineno]), "python"))
        start = node.end_lineno
    parts.append(fenced("\n".join(lines[start:]), "python"))
    return head + "\n".join(parts)


def fenced(code, language):
    """Return a code block, or nothing for empty code."""
    return f"````{language}\n{code.strip(chr(10))}\n````\n" if code.strip() else ""
