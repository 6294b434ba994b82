"""Every number of a page against one made here from the raw arrays, by numpy and scipy, with nothing of this project's."""

from __future__ import annotations

import ast
import html
import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy import stats

from lifelong import metrics, report, store
from lifelong.report.document import Block, Bullets, Code, Column, Heading, Paragraph, Picture, Table
from lifelong.report.document import cell as cell_of
from lifelong.report.document import markdown as to_markdown
from lifelong.store.records import Run

STRATEGIES = {"finetune": 8, "er": 8, "er + ewc(strength=1)": 8, "ewc(strength=1)": 6, "si": 8, "joint": 8}
LOWER = ("forgetting", "intransigence")


def made(root: Path) -> dict[tuple[str, str], np.ndarray]:
    """Runs of six strategies on two streams of three tasks, saved in `root`; and their arrays. One seed has diverged."""
    rng, arrays = np.random.default_rng(3), {}
    for stream, (strategy, seeds) in itertools.product(("one-v1", "two-v1"), STRATEGIES.items()):
        level = {"finetune": 0.5, "er": 0.7, "er + ewc(strength=1)": 0.72, "joint": 0.9}.get(strategy, 0.6)
        a = np.clip(rng.normal(level, 0.04, (seeds, 1, 1)) + rng.normal(0, 0.05, (seeds, 4, 3)), 0, 1)
        logs = {"steps": np.full((seeds, 3), 40)}
        diverged = strategy == "si" and stream == "two-v1"
        if diverged:
            a[1, 2:] = np.nan
        arrays[stream, strategy] = a
        hyper = {"strategy": [{"capacity": 50}], "model": {"hidden": [10]}, "optimizer": {"lr": 0.1}}
        spec = {"format": 1, "stream": stream, "stream_options": {"scenario": "domain", "tasks": 3}, "strategy": strategy,
                "model": "mlp", "optimizer": "sgd", "epochs": 2, "batch_size": 16, "seeds": seeds, "hyper": hyper}
        about = {"status": "diverged" if diverged else "done", "note": "", "device": "cpu", "seconds": 24.0, "lanes": seeds,
                 "state_bytes": 1_500_000, "finished": "2026-11-20T10:00:00Z"}
        store.save(root, Run(spec, a, about, logs))
    return arrays


class Page(HTMLParser):
    """Tables as rows of texts by their ids, and list items."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.items: list[str] = []
        self.best: dict[str, set[tuple[int, int]]] = {}
        self.rows: list[list[str]] = []
        self.into: list[str] | None = None
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "action", "xlink:href")]
        if tag == "table":
            self.name = given["id"]
            self.rows = self.tables[self.name] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.into = self.rows[-1]
            if "best" in str(given.get("class")).split():
                self.best.setdefault(self.name, set()).add((len(self.rows) - 1, len(self.rows[-1]) - 1))
        elif tag == "li":
            self.items.append("")
            self.into = self.items

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li"):
            self.into = None

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    arrays = made(root)
    runs = report.select([root]).runs
    blocks = report.document(runs, reference="er", other=["gem", "continuum"])
    return arrays, runs, report.page(blocks, {})


@pytest.fixture(scope="module")
def page(shown):
    return Page(shown[2])


# ---- the same, once more


def mine(arrays: dict[tuple[str, str], np.ndarray], stream: str, strategy: str) -> dict[str, np.ndarray]:
    """Every metric of a run [S], as loops over the equations."""
    a, best = arrays[stream, strategy], arrays[stream, "joint"]
    last, tasks = a.shape[-1], range(1, a.shape[-1] + 1)
    found = {
        "average accuracy": [np.mean([m[last, k - 1] for k in tasks]) for m in a],
        "average incremental accuracy": [np.mean([np.mean(m[t, :t]) for t in tasks]) for m in a],
        "forgetting": [np.mean([max(m[t, k - 1] for t in range(1, last)) - m[last, k - 1] for k in range(1, last)])
                       for m in a],
        "backward transfer": [np.mean([m[last, k - 1] - m[k, k - 1] for k in range(1, last)]) for m in a],
        "forward transfer": [np.mean([m[k - 1, k - 1] - m[0, k - 1] for k in range(2, last + 1)]) for m in a],
        "learning accuracy": [np.mean([m[k, k - 1] for k in tasks]) for m in a],
        "Final Accuracy": [np.mean(m[last]) for m in a],
        "Backward": [sum(m[last, k - 1] - m[k, k - 1] for k in tasks) / last for m in a],
        "Forward": [sum(m[k - 1, k - 1] - m[0, k - 1] for k in range(2, last + 1)) / last for m in a],
        "accuracy": [np.mean(m[last]) for m in a],
        "average_incremental_accuracy": [np.mean([np.mean(m[t, :t]) for t in tasks]) for m in a],
        "accuracy_A": [np.mean([m[t, k - 1] for t in tasks for k in range(1, t + 1)]) for m in a],
        "backward_transfer": [(m[3, 0] - m[1, 0]) / 3 for m in a],  # of t = 3 and k <= t - 2 there is k = 1 alone
        "forward_transfer": [(m[2, 0] + m[3, 0] + m[3, 1]) / 3 for m in a],
        "forgetting (Continuum)": [(m[1, 0] - m[3, 0]) / 2 for m in a],  # task 1, best of row 1 alone
    }
    if strategy != "joint":
        found["intransigence"] = [np.mean([best[s][k, k - 1] - m[k, k - 1] for k in tasks]) for s, m in enumerate(a)]
    return {name: np.array(values) for name, values in found.items()}


def numbers(text: str) -> list[tuple[float, float]]:
    """Every number of a text, and half of what its last digit stands for."""
    found = re.findall(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text.replace("\u2212", "-"))
    return [(float(one.replace(",", "")), 0.5 * 10.0 ** -len(one.partition(".")[2])) for one in found]


def close(text: str, *expected: float) -> None:
    """The numbers of `text` are the expected ones, to the digits that it shows."""
    found = numbers(text)
    assert len(found) == len(expected), (text, expected)
    for (value, half), one in zip(found, expected, strict=True):
        assert abs(value - one) <= half + 1e-9, (text, expected)


def interval(values: np.ndarray) -> float:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(high - low) / 2


def cell(text: str, values: np.ndarray) -> None:
    """A cell `mean ± half width`, with `(n/S)` where seeds are missing."""
    kept = values[~np.isnan(values)]
    expected = [100 * kept.mean(), 100 * interval(kept)]
    close(text.replace("≈", ""), *expected, *([len(kept), len(values)] if len(kept) < len(values) else []))


def flips(d: np.ndarray) -> float:
    """Two-sided p of all sign flips."""
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=len(d))]
    return float(np.mean([s >= abs(d.sum()) - 1e-12 for s in sums]))


def holm(p: list[float]) -> list[float]:
    order, found, top = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        top = max(top, min(1.0, (len(p) - rank) * p[i]))
        found[i] = top
    return found


def needed(effect: float, level: float, tests: int) -> int:
    """Seeds by trying one after the other, with scipy's noncentral t."""
    for n in range(2, 100_000):
        edge, centre = stats.t.ppf(1 - level / 2, n - 1), abs(effect) * math.sqrt(n)
        found = stats.nct.sf(edge, n - 1, centre) + np.nan_to_num(stats.nct.cdf(-edge, n - 1, centre))  # 0 is NaN there
        if found >= 0.8 and 2 * tests / 2**n <= 0.05:
            return n
    raise AssertionError


# ---- the tests


def test_every_table_of_the_page_is_checked_here(page):
    kinds = {re.sub(r"^(one|two)-v1-domain-", "", name) for name in page.tables}
    assert kinds == {"metrics", "as-gem", "as-continuum", "comparisons", "tasks", "settings", "provenance",
                     "across-streams"}
    assert len(page.tables) == 2 * 7 + 1


@pytest.mark.parametrize("stream", ["one-v1", "two-v1"])
@pytest.mark.parametrize("kind", ["metrics", "as-gem", "as-continuum"])
def test_means_and_intervals_are_those_of_the_arrays(shown, page, stream, kind):
    header, *rows = page.tables[f"{stream}-domain-{kind}"]
    assert len(rows) == 6
    for label, *texts in rows:
        found = mine(shown[0], stream, label.removesuffix(" (diverged)"))
        for name, text in zip(header[1:], texts, strict=True):
            if name == "seeds":
                close(text, len(found["average accuracy"]))
            elif (label, name) == ("joint", "intransigence"):
                assert text == "–"
            else:
                cell(text, found["forgetting (Continuum)" if (kind, name) == ("as-continuum", "forgetting") else name])


@pytest.mark.parametrize("stream", ["one-v1", "two-v1"])
def test_accuracy_of_each_task_is_that_of_the_arrays(shown, page, stream):
    _, *rows = page.tables[f"{stream}-domain-tasks"]
    for label, *texts in rows:
        for k, text in enumerate(texts):
            cell(text, shown[0][stream, label.removesuffix(" (diverged)")][:, -1, k])


def compared(arrays, stream: str) -> dict[tuple[str, str], tuple[np.ndarray, float, float, int]]:
    """By strategy and metric: differences to er, p, p after Holm, seeds needed."""
    found = {}
    for metric in ("average accuracy", "forgetting"):
        d = {}
        for strategy in STRATEGIES:
            values, other = (mine(arrays, stream, name)[metric] for name in (strategy, "er"))
            if strategy != "er" and not np.isnan(values).any():
                d[strategy] = values - other[:len(values)]
        p = [flips(one) for one in d.values()]
        for (strategy, one), raw, adjusted in zip(d.items(), p, holm(p), strict=True):
            n = needed(one.mean() / one.std(ddof=1), 0.05 / len(d), len(d))
            found[strategy, metric] = one, raw, adjusted, n
    return found


@pytest.mark.parametrize("stream", ["one-v1", "two-v1"])
def test_comparisons_are_those_of_scipy(shown, page, stream):
    expected = compared(shown[0], stream)
    _, *rows = page.tables[f"{stream}-domain-comparisons"]
    left_out = [row for row in rows if "not measured" in row[3]]
    assert [row[0] for row in left_out] == (["si", "si"] if stream == "two-v1" else [])
    assert len(rows) == 10
    for strategy, reference, metric, *texts in (row for row in rows if row not in left_out):
        d, p, adjusted, n = expected[strategy, metric]
        assert reference == "er"
        close(texts[0], 100 * d.mean())
        close(texts[1], 100 * (d.mean() - interval(d)), 100 * (d.mean() + interval(d)))
        close(texts[2], len(d))
        assert (float(texts[3]), float(texts[4])) == (pytest.approx(p, rel=0.05), pytest.approx(adjusted, rel=0.05))
        close(texts[5], d.mean() / d.std(ddof=1))
        close(texts[6], n)


def test_sentences_hold_the_same_numbers(shown, page):
    said = [item for item in page.items if "points" in item]
    every = [(stream, *key, *value) for stream in ("one-v1", "two-v1")
             for key, value in compared(shown[0], stream).items()]
    assert len(said) == len(every) == 18
    for text, (_, strategy, metric, d, _, adjusted, n) in zip(said, every, strict=True):
        assert text.startswith(f"{strategy} ")
        more = bool(d.mean() > 0)
        assert {"average accuracy": ("lower", "higher"), "forgetting": ("less", "more")}[metric][more] in text
        size, ends = re.match(r".*?([\d.]+) points", text)[1], re.search(r"interval (\S+) to (\S+),", text)
        close(size, 100 * abs(d.mean()))
        low, high = sorted(100 * (1 if more else -1) * (d.mean() + s * interval(d)) for s in (-1, 1))
        close(ends[1], low), close(ends[2], high)
        assert f"{len(d)} seeds" in text
        if adjusted <= 0.05:
            assert text.endswith(").") and "p = " in text
        else:
            assert f"about {max(n, len(d) + 1)} seeds would" in text


@pytest.mark.parametrize("stream", ["one-v1", "two-v1"])
def test_the_best_is_marked_and_whatever_is_not_told_from_it(shown, page, stream):
    header, *rows = page.tables[f"{stream}-domain-metrics"]
    for column, name in enumerate(header[1:-1], 1):
        values = {row[0]: mine(shown[0], stream, row[0])[name] for row in rows
                  if row[0] != "joint" and "diverged" not in row[0]}
        top = (min if name in LOWER else max)(values, key=lambda label, v=values: v[label].mean())
        both = {label: min(len(v), len(values[top])) for label, v in values.items() if label != top}
        p = [flips(values[label][:n] - values[top][:n]) for label, n in both.items()]
        short = max(holm([2 / 2**n for n in both.values()])) > 0.05
        tied = set() if short else {label for label, q in zip(both, holm(p), strict=True) if q > 0.05}
        assert {row[0] for row in rows if "≈" in row[column]} == tied
        marked = page.best[f"{stream}-domain-metrics"]
        assert {row[0] for i, row in enumerate(rows, 1) if (i, column) in marked} == {top}


def test_ranks_across_streams_are_those_of_scipy(shown, page):
    header, *rows = page.tables["across-streams"]
    labels = [label for label in STRATEGIES if label != "si"]  # it diverged on one of them
    means = np.array([[mine(shown[0], s, label)["average accuracy"].mean() for label in labels]
                      for s in ("one-v1", "two-v1")])
    ranks = stats.rankdata(-means, axis=1)
    assert len(header) == 4 and {row[0] for row in rows} == set(labels)
    for label, mean, *each in rows:
        close(mean, ranks[:, labels.index(label)].mean())
        assert [float(text) for text in each] == list(ranks[:, labels.index(label)])


def test_settings_and_provenance_are_those_of_the_records(shown, page):
    for stream in ("one-v1", "two-v1"):
        header, *rows = page.tables[f"{stream}-domain-provenance"]
        for row in rows:
            run = next(r for r in shown[1] if r.spec["stream"] == stream
                       and r.spec["strategy"] == row[0].removesuffix(" (diverged)"))
            said = dict(zip(header, row, strict=True))
            seeds = run.spec["seeds"]
            assert said["seeds"] == ", ".join(map(str, range(seeds))) and run.about["folder"].endswith(said["run"])
            close(said["seconds"], 24)
            close(said["seconds per seed"], 24 / seeds)
            assert float(said["steps per second"]) == pytest.approx(120 * seeds / 24, rel=0.005)
            close(said["state (MB)"], 1.5)
            if "joint" in row[0] or "cumulative" in row[0]:  # which have all of them at hand
                assert said["stored examples"] == "–"
            else:
                close(said["stored examples"], 50)
            assert said["status"] == run.about["status"] and said["lanes"] == str(seeds)
        header, *rows = page.tables[f"{stream}-domain-settings"]
        assert all(dict(zip(header, row, strict=True)) | {"strategy": ""} == {
            "strategy": "", "hyper-parameters": "capacity=50", "model": "mlp(hidden=[10])", "optimizer": "sgd(lr=0.1)",
            "epochs": "2", "batch size": "16", "seeds": str(STRATEGIES[row[0].removesuffix(" (diverged)")])}
            for row in rows)


def test_the_lines_of_figures_are_the_means_of_the_arrays(shown):
    from lifelong.report import canvas, figures

    group = report.groups(shown[1])[0]
    drawn = figures.curves(group, canvas.looks([group])).axes[0].lines
    lines = {line.get_label(): line.get_ydata() for line in drawn if line.get_label() in STRATEGIES}
    assert set(lines) == set(STRATEGIES)
    for strategy, ys in lines.items():
        a = shown[0]["one-v1", strategy]
        np.testing.assert_allclose(ys, [100 * np.mean([m[t, :t].mean() for m in a]) for t in (1, 2, 3)])
    forgot = {line.get_label(): line.get_ydata() for line in figures.forgetting(group, canvas.looks([group])).axes[0].lines}
    a = shown[0]["one-v1", "er"]
    np.testing.assert_allclose(forgot["er"], [100 * np.mean(a[:, 1, 0] - a[:, 2, 0]), 100 * np.mean(
        mine(shown[0], "one-v1", "er")["forgetting"])])


# ---- the page itself


def test_the_page_needs_nothing_else_and_runs_nothing(page, shown):
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "@import" not in shown[2] and "http://" not in shown[2].replace("http://www.w3.org", "")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page, and all files, of runs whose names are markup everywhere."""
    folder = tmp_path_factory.mktemp("hostile")
    name = "./<script>alert(1)</script>.py:a_b&c%d$e#|`f`"
    runs = []
    for strategy, seeds in ((name, 3), ("_x\\y{z}~^ 学\n" + 99 * "long", 2)):
        a = np.random.default_rng(seeds).random((seeds, 3, 2))
        spec = {"stream": "<b>_&%", "stream_options": {"scenario": "domain"}, "strategy": strategy, "seeds": seeds}
        note = "<img src=x onerror=alert(2)>"
        runs.append(Run(spec, a, {"status": "diverged", "note": note, "seconds": 1, "lanes": 1, "commit": "<i>"}))
    report.write(runs, folder, damaged=["<b>damaged</b> & more"], other=["mammoth"], only=["curves"])
    return folder, name


def test_names_that_are_markup_stay_names(hostile):
    folder, name = hostile
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not {"script", "img", "b", "i"} & set(page.tags)
    assert any(row[0].startswith(name) for table in page.tables.values() for row in table)
    assert "onerror" in text and "<img" not in text
    assert not re.search(r"(?<!\\)<(script|img|b|i)\b", re.sub(r"`+ ?.*?`+", "", (folder / "report.md").read_text()))


def test_latex_leaves_no_letter_that_means_something_unescaped(hostile):
    files = list((hostile[0] / "tables").glob("*.tex"))
    assert files
    for file in files:
        text = re.sub(r"(?m)^%.*\n", "", file.read_text())
        rest = re.sub(r"\\(?:[&%$#_{}]|\\|[A-Za-z]+(?:\{\})?)|\$\\[A-Za-z]+\$|\$-\$|\$\^2\$", "", text)
        assert not re.search(r"[%$#_~^<>|\"`\\]", re.sub(r"tab:[^}]*|~", "", rest)), file.name
        rows = re.findall(r"(?m)^(?!\\).*\\\\$", text)
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1, "as many cells in every row"
        assert all(line in text for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{"))


NAMES = ["split-omniglot (part='background')[all](https://x.y)", "[a](b) ![c](d) [e][f] ](", "*a* **b** _c_ __init__ __x _ _",
         "a_b a__b foo__ (_d_) *e", "~~f~~ ~g~ $h$ $i$", "j|k||l", "<b>m</b> <https://n.o> &lt; &copy; p&q", "`r` ``s ` \\` \\ \\*"]


def rendered(blocks: list[Block]) -> tuple[str, set[str]]:
    """What a reader of Markdown sees of blocks, and the tags of their text that blocks and Code do not make."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(to_markdown(blocks))
    made = {"h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code"}
    return html.unescape(re.sub("<[^>]*>", "", page)), set(re.findall(r"<(\w+)", page)) - made


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_names_as_they_were_typed_and_reads_no_markup_in_them(name):
    for piece in (name, Code(name)):
        table = Table("t", ("Of ", piece), (Column(name), Column("n")), ((cell_of(piece), cell_of((piece, "."))),), ("By ", piece))
        for blocks in ([Heading(2, name)], [Paragraph(("On ", piece, ", ", name, "."))], [Bullets((("x ", piece),))], [table]):
            text, tags = rendered(blocks)
            assert not tags and name in text, (blocks, text)


def test_the_pictures_of_markdown_are_links_whatever_they_are_called():
    page = MarkdownIt("commonmark").render(to_markdown(
        [Picture("a-curves", ("A caption.",), f"Curves: {name}") for name in NAMES], "figures"))
    assert re.findall(r'<a href="([^"]*)"', page) == ["figures/a-curves.svg"] * len(NAMES)
    assert [html.unescape(alt) for alt in re.findall(r'alt="([^"]*)"', page)] == [f"Curves: {name}" for name in NAMES]


def written_beyond_ascii() -> set[str]:
    """Every letter beyond ASCII of the strings of the report's code and of the definitions, docstrings aside."""
    found: set[str] = set()
    own = [path for path in Path(report.__file__).parent.glob("*.py") if path.name != "latex.py"]
    for path in [*own, Path(metrics.__file__)]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docs = {id(n.body[0].value) for n in nodes if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)
                and isinstance(n.body[0], ast.Expr)}
        found |= {letter for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
                  for letter in n.value if not letter.isascii()}
    return found


def a_table(text: str) -> Table:
    return Table("a_b", (text,), (Column(text), Column("n", ("",))), (
        (cell_of(Code(text)), cell_of(text, 1, mark="best")), (cell_of(Code("[x]*")), cell_of("2", 2, mark="tied"))), (text,))


def test_latex_has_a_command_for_every_letter_that_a_report_writes():
    letters = written_beyond_ascii()
    assert set("±–≈≤≥∞Σí") <= letters
    text = report.latex(a_table("".join(sorted(letters))))
    assert text.isascii() and text.startswith("% \\usepackage{booktabs, textcomp}\n\\begin{table}")


def test_latex_writes_what_a_user_types_as_commands_and_names_what_has_none():
    # Worked by hand from the LaTeX Companion: accents over a dotless i, Greek in mathematics, no dash out of two hyphens.
    for typed, written in {"é": r"\'{e}", "e\u0301": r"\'{e}", "í": r"\'{\i}", "ç": r"\c{c}", "Å": r"\r{A}", "α": r"$\alpha$",
                           "σς": r"$\sigma$$\varsigma$", "ΩΑ": r"$\Omega$A", "--x": "-{}-x", "–": "--", "5²": "5$^2$",
                           "a\x1bb": "ab", "µ": r"$\mu$", "ß": r"\ss{}", '"': r"\char34{}"}.items():
        assert rf"\texttt{{{written}}} & " in report.latex(a_table(typed)), typed
    assert report.latex(a_table("学 in 山")).splitlines()[1] == "% xelatex or lualatex, with a font that has 学山"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH")
def test_latex_takes_every_table(hostile, tmp_path):
    """Letters of every kind, and tables of hostile names, with what the tables say that they need and nothing else."""
    typed = "".join(sorted(written_beyond_ascii())) + "".join(map(chr, range(32, 127))) + "éíĵçåñžőαςΩΑµß -- ,, << ?` 5²½→"
    texts = [report.latex(a_table(typed)), *(file.read_text() for file in sorted((hostile[0] / "tables").glob("*.tex")))]
    texts = [re.sub("[^ -~\n]", "", text) + "\\clearpage\n" for text in texts]  # which need another engine, and say so
    (tmp_path / "a.tex").write_text("\n".join([r"\documentclass{article}", r"\usepackage{booktabs, textcomp}",
                                               r"\begin{document}", *texts, r"\end{document}"]))
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "a.log").read_text(errors="replace")


CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_real_browser_draws_the_page(shown, tmp_path):
    """With a figure of the page's widths, in a browser without a network: what it laid out, and a screenshot."""
    report.write(shown[1][:3], tmp_path, only=["curves"])
    text = (tmp_path / "report.html").read_text()
    probe = ("<script>const wide=[...document.querySelectorAll('body *')].filter(e=>!e.closest('.scroll')&&"
             "e.getBoundingClientRect().right>innerWidth+1).map(e=>e.tagName);document.title=JSON.stringify({wide,"
             "figures:[...document.querySelectorAll('figure svg')].map(e=>e.getBoundingClientRect().width),"
             "texts:[...document.querySelectorAll('figure svg text')].map(e=>e.textContent),rows:"
             "document.querySelectorAll('tbody tr').length})</script>")
    (tmp_path / "probed.html").write_text(text.replace("</body>", probe + "</body>"))
    shot = tmp_path / "page.png"
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    dumped = subprocess.run([*words, "--window-size=390,800", "--dump-dom", f"--screenshot={shot}",
                             f"file://{tmp_path / 'probed.html'}"], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(re.search(r"<title>(.*?)</title>", dumped.stdout)[1].replace("&gt;", ">").replace("&amp;", "&"))
    assert found["wide"] == [], "nothing but what scrolls is wider than the screen of a phone"
    assert len(found["figures"]) == 1 and found["figures"][0] > 500
    assert {"tasks learned", "er"} <= set(found["texts"])
    assert found["rows"] > 10
