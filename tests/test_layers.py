"""Who may import whom, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {str(p.relative_to(ROOT)): p for package in ("lifelong", "strategies", "streams")
         for p in sorted((ROOT / package).rglob("*.py"))}

# Folder of `lifelong`: the folders that it may import. Modules that lie beside the folders are the ground.
LAYERS = {
    "spec": "",
    "store": "spec",
    "report": "spec store",
    "data": "spec",
    "networks": "spec",
    "learning": "spec data networks",
    "starts": "spec store data networks learning",
    "bridges": "spec data networks learning",
    "experiments": "spec store data networks learning starts",
    "strategies": "spec data networks learning starts",
    "streams": "spec data",
    "cli": "spec store report starts experiments",
}
GROUND = {"files", "machine", "surroundings", "metrics", "randomness", "vmap", "progress", "provenance", "version"}

LIGHT = ("lifelong/__init__.py", "lifelong/files.py", "lifelong/metrics.py",
         *(p for p in FILES if p.startswith(("lifelong/cli/", "lifelong/report/", "lifelong/spec/", "lifelong/store/"))))
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


def room(path: str) -> str:
    """The folder of `lifelong` that a file is in, or its own name where it lies beside the folders."""
    parts = Path(path).with_suffix("").parts
    return parts[0] if parts[0] != "lifelong" else parts[1]


def own(path: str, inside: bool = True) -> set[str]:
    """The folders and modules of `lifelong` that a file imports."""
    names = {name.split(".")[1] for name in found(path, inside) if name.startswith("lifelong.")}
    return names & (set(LAYERS) | GROUND)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LAYERS])
def test_a_folder_imports_only_what_lies_below_it(path):
    assert own(path) <= {room(path), *LAYERS[room(path)].split()} | GROUND


@pytest.mark.parametrize("name", sorted(GROUND))
def test_the_ground_stands_on_nothing(name):
    assert own(f"lifelong/{name}.py") <= GROUND


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in ("strategies", "streams")])
def test_strategies_and_streams_do_not_import_their_siblings(path):
    assert room(path) not in own(path)
    assert not roots(found(path)) & {"strategies", "streams"}  # they are installed inside lifelong, and only there


def module(path: str) -> str:
    dotted = ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")
    return dotted if dotted.startswith("lifelong") else f"lifelong.{dotted}"


def test_no_file_imports_itself_by_way_of_others():
    files = {module(path): path for path in FILES}
    arrows = {name: {target for one in found(path) for target in [one if one in files else one.rpartition(".")[0]]
                     if target in files} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name):], name))}"
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in files:
        visit(name, ())


def test_every_folder_is_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    assert packages == {module(path) for path in FILES if path.endswith("__init__.py")}
    assert set(LAYERS) == {name.split(".")[1] for name in packages if "." in name}


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
