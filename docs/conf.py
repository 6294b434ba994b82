"""How the documentation is built: `sphinx-build -W docs docs/_build`. Docstrings and catalogue come from the code."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

import lifelong
from lifelong import metrics
from lifelong.report import figures, frameworks
from lifelong.spec import catalogue

sys.path.insert(0, str(Path(__file__).parent))

project = "lifelong"
release = lifelong.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated"]
html_theme = "furo"
html_title = "lifelong"
html_show_copyright = False
html_show_sourcelink = False
default_role = "code"
smartquotes = False  # quotes in docstrings are typed
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
add_module_names = False

_CODE = re.compile(r"(``?[^`]+``?)")


def plain(text: str) -> str:
    """A Google docstring of plain words and single backticks as one that reStructuredText does not stumble over."""
    lines, section = [], ""
    for line in re.sub(r"^(Source): (.+(?:\n +\S.*)*)", _source, text, flags=re.MULTILINE).split("\n"):
        if line.strip() and not line.startswith(" "):
            section = line if line in ("Args:", "Raises:", "Attributes:", "Returns:") else ""
        if section == "Attributes:":
            line = re.sub(r"^( {4})(\w+), (\w+): ", r"\1\2: see `\3`.\n\1\3: ", line)
        elif not section and (item := re.match(r" {4}('?\w+'?): (.*)", line)):  # a list of names
            line = f"\n    - ``{item[1]}``: {item[2]}"
        elif not section:  # what else is indented keeps its lines
            line = re.sub(r"^ {4}(?=\S)", "    \0 ", re.sub("^ {8}", " " * 6, line))
        lines.append(line)
    pieces = _CODE.split("\n".join(lines))
    return "".join(piece if i % 2 else _escaped(piece) for i, piece in enumerate(pieces)).replace("\0", "|")


def _source(match: re.Match[str]) -> str:
    return f"\n{match[1]}. " + " ".join(line.strip() for line in match[2].split("\n"))


def _escaped(text: str) -> str:
    text = re.sub(r"([*|])", r"\\\1", text)
    text = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = plain("\n".join(lines)).split("\n")


def _entry(kind: str, name: str) -> tuple[str, str, list[str]]:
    """Of one entry of the catalogue the call with its defaults, its first sentence, and its docstring."""
    factory = catalogue.lookup(kind, name)
    hyper = ", ".join(f"{k}={p.default!r}" for k, p in catalogue.hyper_parameters(factory).items())
    text = plain(inspect.getdoc(factory) or "")
    body = str(GoogleDocstring(text, Config(napoleon_use_param=False), what="function"))
    body = re.sub(r"^:raises (\w+):", r"*\1*", body, flags=re.MULTILINE)  # a field of Python objects, which this is not
    return f"{name}({hyper})", _first(text), body.split("\n")


def _first(text: str) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join(text.split("\n\n")[0].split())


def _catalogue(app: Sphinx) -> None:
    """Writes generated/KIND.rst, a table of every entry point and below it everything about each; and other tables."""
    folder = Path(__file__).parent / "generated"
    folder.mkdir(exist_ok=True)
    tables = {
        "definitions": {name.replace("_", " "): text for name, text in metrics.definitions.items()},
        "figures": {name: _first(inspect.getdoc(draw) or "") for name, draw in figures.FIGURES.items()},
        "frameworks": {name: f"{one.title}: {', '.join(m.name for m in one.metrics)}"
                       for name, one in frameworks.FRAMEWORKS.items()}}
    for name, rows in tables.items():
        lines = [line for row, text in rows.items() for line in (f"   * - {row}", f"     - {_escaped(text)}")]
        (folder / f"{name}.rst").write_text("\n".join([".. list-table::", "   :widths: 1 4", "", *lines]) + "\n")
    for kind in catalogue.KINDS:
        table, below = [".. list-table::", "   :widths: 1 4", ""], []
        for name in catalogue.catalogue(kind):
            call, first, body = _entry(kind, name)
            table += [f"   * - :ref:`{name} <{kind}-{name}>`", f"     - {first}"]
            below += ["", f".. _{kind}-{name}:", "", f".. rubric:: {name}", "", ".. code-block:: python", "",
                      f"   {call}", "", *body, ""]
        (folder / f"{kind}.rst").write_text("\n".join([*table, *below]) + "\n")


def setup(app: Sphinx) -> None:
    """Connects the two to the build."""
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    app.connect("builder-inited", _catalogue)
