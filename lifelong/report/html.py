"""The report as one self-contained HTML page without scripts, fonts or further files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from lifelong.report.canvas import COLOURS
from lifelong.report.document import Block, Bullets, Cell, Code, Heading, Paragraph, Picture, Table, Words, numbers

# The same hues, lighter, as they read on black.
_DARK = ("#4aa8e0", "#ff8a47", "#2fc79b", "#e3a1c6", "#f2f2f2", "#f0b429", "#8fd0f5")
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#5a5a5a;--line:#d9d9d9;--back:#ffffff;--stripe:#f5f6f8;\
--axis:#333333;--grid:#e4e4e4;LIGHT}
@media (prefers-color-scheme:dark){:root{--ink:#ececec;--soft:#a8a8a8;--line:#3a3a3a;--back:#141414;--stripe:#1d1f22;\
--axis:#bdbdbd;--grid:#303030;DARK}}
@media print{:root{color-scheme:light;--ink:#000000;--soft:#333333;--line:#bbbbbb;--back:#ffffff;--stripe:#ffffff;\
--axis:#333333;--grid:#e4e4e4;LIGHT}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1rem 1.25rem 4rem;background:var(--back);color:var(--ink);\
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.7rem;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;border-top:2px solid var(--line);padding-top:1rem;overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
nav{font-size:.92rem}nav ul{columns:20rem;padding-left:1.2rem;margin:.3rem 0}
a{color:var(--c0)}
p,li{max-width:50rem;overflow-wrap:anywhere}li{margin:.15rem 0}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;border-top:2px solid var(--ink);\
border-bottom:2px solid var(--ink)}
caption{text-align:left;padding:.3rem 0}
th,td{padding:.22rem .6rem;text-align:left;vertical-align:top}
thead th{border-bottom:1px solid var(--ink);font-weight:600;vertical-align:bottom;\
max-width:14rem;overflow-wrap:break-word}
tbody th{font-weight:400;max-width:22rem;min-width:12rem;position:sticky;left:0;background:var(--back)}
tbody tr:nth-child(even)>*{background:var(--stripe)}
.n{text-align:right;white-space:nowrap}thead .n{white-space:normal}
.best{font-weight:700}
ul.note{margin:.2rem 0;padding-left:1.2rem}
.note,figcaption{font-size:.84rem;color:var(--soft);max-width:56rem;overflow-wrap:anywhere}
figure{margin:1.2rem 0}
figure svg{display:block;width:100%;max-width:52rem;height:auto;overflow:visible;fill:var(--c4)}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
figure svg text{fill:var(--ink)}
@media screen{td{max-width:22rem}td code,th code{overflow-wrap:break-word}}
@media (max-width:44rem){body{padding:.5rem .75rem 3rem}figure svg{width:44rem}\
tbody th{position:static;min-width:11rem}}
@media print{body{max-width:none;padding:0;font-size:9pt}.scroll{overflow:visible}nav{display:none}
table{font-size:6.5pt}th,td{padding:1pt 3pt;overflow-wrap:break-word}.n{white-space:normal}\
.note,figcaption{font-size:8pt}\
tbody th{min-width:0;position:static}
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}figure svg{max-width:100%}@page{margin:14mm}}
"""


def page(blocks: Sequence[Block], svgs: Mapping[str, bytes], title: str = "Report") -> str:
    """The blocks as one HTML page, for screens of any width and for print, in the light or dark mode of the reader.

    Args:
        blocks: the blocks.
        svgs: the figures by name, as made by `figures.draw`; missing ones are omitted.
        title: title of the window.
    """
    light, dark = ("".join(f"--c{i}:{colour};" for i, colour in enumerate(some)) for some in (COLOURS, _DARK))
    style = _STYLE.replace("LIGHT", light).replace("DARK", dark)
    headings = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<li><a href="#s{i}">{escape(one.text)}</a></li>' for i, one in enumerate(headings))
    body, contents = [], f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(headings) > 1 else ""
    for block in blocks:
        if isinstance(block, Heading):
            anchor = f' id="s{headings.index(block)}"' if block in headings else ""
            body.append(f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>")
        elif isinstance(block, Picture):
            body.append(_figure(block, svgs[block.name]) if block.name in svgs else "")
        else:
            body.append(_written(block))
    first, *rest = body or [""]
    return ("<!DOCTYPE html>\n" f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<meta name="generator" content="lifelong"><style>{style}</style></head>\n<body>\n<main>\n'
            + "\n".join([first, *rest[:1], contents, *rest[1:]]) + "\n</main>\n</body></html>\n")


def _written(block: Paragraph | Bullets | Table) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{_html(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_html(item)}</li>" for item in block.items) + "</ul>"
    return _table(block)


def _html(text: Words) -> str:
    return "".join(f"<code>{escape(piece)}</code>" if isinstance(piece, Code) else escape(piece) for piece in text)


def _table(table: Table) -> str:
    kinds = [' class="n"' if numeric else "" for numeric in numbers(table)]
    head = "".join(f'<th scope="col"{kind}>{escape(column.title)}</th>'
                   for column, kind in zip(table.columns, kinds, strict=True))
    lines = ["".join(_cell(one, numeric, place == 0) for place, (one, numeric)
                     in enumerate(zip(row, numbers(table), strict=True))) for row in table.rows]
    caption = f"<caption>{_html(table.caption)}</caption>" if table.caption else ""
    note = f'<p class="note">{_html(table.note)}</p>' if table.note else ""
    if table.definitions:
        note += '<ul class="note">' + "".join(f"<li>{_html(one)}</li>" for one in table.definitions) + "</ul>"
    rows = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (f'<div class="scroll" tabindex="0"><table id="{escape(table.name)}">{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>\n{rows}</tbody></table></div>{note}")


def _cell(one: Cell, numeric: bool, first: bool) -> str:
    kinds = " ".join(["n"] * numeric + [one.mark] * bool(one.mark))
    kind = f' class="{kinds}"' if kinds else ""
    text = _html(one.text) + (' <span title="not significantly different from the best">≈</span>'
                              if one.mark == "tied" else "")
    return f'<th scope="row"{kind}>{text}</th>' if first else f"<td{kind}>{text}</td>"


def _figure(picture: Picture, svg: bytes) -> str:
    return (f'<figure><div class="scroll" tabindex="0">{inline(svg.decode(), picture.name, picture.alt)}</div>'
            f"<figcaption>{_html(picture.caption)}</figcaption></figure>")


def inline(svg: str, name: str, alt: str) -> str:
    """An SVG that can be part of a page: with the colours of the page, unique ids, and half its length."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    named = {one: f"{name}-{i}" for i, one in enumerate(sorted(used))}

    def tag(found: re.Match[str]) -> str:
        text = found[0]  # base64 content matches none of these patterns
        text = re.sub(r'\sid="([\w-]+)"', lambda m: f' id="{named[m[1]]}"' if m[1] in used else "", text)
        text = re.sub(r'(url\(|href=")#([\w-]+)', lambda m: f"{m[1]}#{named[m[2]]}", text)
        text = text.replace("xlink:href=", "href=")
        text = re.sub(r"(\.\d\d)\d+", r"\1", text)
        return re.sub(r"#[0-9a-f]{6}\b", lambda m: _COLOUR.get(m[0], m[0]), text)

    svg = re.sub(r"<[^>]*>", tag, svg)
    size = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {size[0] if size else ""} role="img" aria-label="{escape(alt)}">'
    svg = re.sub(r"^<svg[^>]*>", lambda _: opening, svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


_COLOUR = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(COLOURS)}
_COLOUR |= {"#333333": "var(--axis)", "#e4e4e4": "var(--grid)", "#ffffff": "none"}
