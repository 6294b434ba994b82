"""Who may import whom, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {str(p.relative_to(ROOT)): p for package in ("lifelong", "strategies", "streams")
         for p in sorted((ROOT / package).rglob("*.py"))}
LIGHT = ("lifelong/__init__.py", "lifelong/cli.py", "lifelong/metrics.py", "lifelong/registry.py", "lifelong/store.py",
         *(p for p in FILES if p.startswith("lifelong/report/")))
DRAWN = ("lifelong/report/figures.py", "lifelong/report/canvas.py", "lifelong/report/mosaic.py")
HEAVY = {"torch", "torchvision", "avalanche", "sklearn"}


def imports(body: list[ast.stmt], inside: bool = True) -> Iterator[str]:
    """Dotted names imported by `body`; without `inside`, only what runs when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside or not isinstance(node, (ast.FunctionDef, ast.If)):
            yield from imports([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], inside)


def found(path: str, inside: bool = True) -> set[str]:
    return set(imports(ast.parse(FILES[path].read_text()).body, inside))


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES)
def test_a_package_imports_only_what_lies_below_it(path):
    package = Path(path).parts[0]
    above = {"strategies", "streams"} - ({package} if package != "lifelong" else set())
    assert not roots(found(path)) & above
    if package != "lifelong":  # its own siblings are files of other families
        assert package not in roots(found(path))


@pytest.mark.parametrize("path", FILES)
def test_only_the_bridges_import_avalanche_and_only_figures_matplotlib(path):
    assert Path(path).name == "avalanche.py" or "avalanche" not in roots(found(path))
    assert path in DRAWN or "matplotlib" not in roots(found(path))
    assert "lifelong/cluster/" in path or "ray" not in roots(found(path))


@pytest.mark.parametrize("path", LIGHT)
def test_what_the_command_line_starts_with_loads_nothing_heavy(path):
    assert not roots(found(path, inside=False)) & HEAVY


def test_metrics_need_numpy_alone():
    known = roots(found("lifelong/metrics.py", inside=False))
    assert "numpy" in known and not known & (HEAVY | {"lifelong", "scipy", "pandas", "matplotlib"})


@pytest.mark.parametrize("path", [p for p in FILES if p.startswith("lifelong/report/")])
def test_reports_need_metrics_and_the_store_alone(path):
    own = {".".join(name.split(".")[:2]) for name in found(path) if name.startswith("lifelong.")}
    assert own <= {"lifelong.metrics", "lifelong.store", "lifelong.report"}
