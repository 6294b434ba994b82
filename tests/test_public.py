"""The package as a user has it: what `import lifelong` offers, its types, and what a wheel holds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_readme import block

import lifelong

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"lifelong": "lifelong", "strategies": "lifelong/strategies", "streams": "lifelong/streams"}

# ---- names


def test_dir_and_star_give_the_public_names():
    names: dict[str, object] = {}
    exec("from lifelong import *", names)
    assert set(names) - {"__builtins__"} == set(lifelong.__all__)
    assert dir(lifelong) == sorted([*lifelong.__all__, "__version__"])
    assert {"run", "prepare", "Options", "Run", "Stream", "Part", "View", "Learner", "Initialization", "failures", "metrics",
            "report", "cross_entropy", "quadratic", "squared_error", "rehearse", "reservoir", "class_balanced", "ring",
            } <= set(lifelong.__all__)


def test_type_checkers_and_python_are_given_the_same_names():
    block = next(node for node in ast.parse(Path(lifelong.__file__).read_text()).body if isinstance(node, ast.If))
    typed = {(alias.name, alias.asname): node.module for node in block.body for alias in node.names}
    assert typed == {(name, name): module for name, module in lifelong._MODULES.items()}


@pytest.mark.parametrize("name", lifelong.__all__)
def test_every_public_name_is_the_object_of_its_module_and_says_what_it_is(name):
    found = getattr(lifelong, name)
    assert found.__doc__ and getattr(found, "__name__", name).rpartition(".")[2] == name
    assert found is getattr(lifelong, name)


@pytest.mark.parametrize(("typo", "near"), [("Prt", "Part"), ("rums", "run"), ("option", "Options"), ("metric", "metrics")])
def test_a_typo_gets_the_name_that_was_meant(typo, near):
    with pytest.raises(AttributeError, match=f"module 'lifelong' has no attribute '{typo}'; did you mean .*{near}"):
        getattr(lifelong, typo)
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        lifelong.zzz


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("use", ["pass", "lifelong.metrics.average_accuracy", "lifelong.report.write", "lifelong.Options()",
                                 "lifelong.Run", "dir(lifelong)", "lifelong.__version__"])
def test_what_needs_no_torch_loads_none(use):
    done = fresh(f"import sys, lifelong\n{use}\nassert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_submodules_can_be_imported_by_themselves():
    done = fresh("import lifelong.learning.losses as losses, lifelong\nassert losses.cross_entropy is lifelong.cross_entropy")
    assert done.returncode == 0, done.stderr


# ---- an installed wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network."""
    pytest.importorskip("setuptools", minversion="77", reason="a wheel is built by setuptools 77 or later")
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel\nbuild_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the wheel is installed, beside everything that it needs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (place,) = (folder / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(place)  # which for a wheel of Python files alone is all that pip does
    (place / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    return folder / "bin" / "python"


Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(python: Path, tmp_path: Path) -> Call:
    """Runs `python WORDS...` in an empty folder, with the lifelong of the wheel."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *words], cwd=tmp_path, env=clean, capture_output=True, text=True)

    return run


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == {"lifelong/py.typed"} | {f"{target}/{path.relative_to(ROOT / folder)}" for folder, target in SOURCES.items()
                                             for path in (ROOT / folder).rglob("*.py")}
    assert wheel.name.startswith(f"lifelong-{lifelong.__version__}-py3-none-any")


def test_an_installed_lifelong_runs_beside_the_users_own_streams_and_strategies(call, python, tmp_path):
    (tmp_path / "streams").mkdir()
    for file in ("streams/__init__.py", "strategies.py"):
        (tmp_path / file).write_text("raise RuntimeError('this file is the user\\'s own, and not to be imported')\n")
    done = call("-m", "lifelong", "run", "rotated-digits", "finetune", "er + ewc", "--seeds", "2", "--steps", "2", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    where = call("-c", "import lifelong; print(lifelong.__file__)").stdout
    assert where.startswith(str(python.parent.parent)), "it was the wheel that ran"
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 2
    version = call("-m", "lifelong", "--version").stdout
    assert version.startswith(f"lifelong {lifelong.__version__}, torch "), "what is installed has no commit"


# ---- types

API = """
from collections.abc import Callable
from pathlib import Path

import lifelong
from lifelong import Options, Part, Run, metrics

one: Run = lifelong.run("split-digits", Part(), seeds=2, steps=1)
mean, half = metrics.mean_interval(metrics.average_accuracy(one.accuracy))
assert one.accuracy.shape == (2, 6, 5) and one.about["status"] == "done" and 0 < mean < 1
outcome = lifelong.prepare("split-digits", ["er(capacity=100)"], Options(seeds=2, steps=1)).run(Path("runs"))
runs: list[Run] = outcome.runs
text: str = lifelong.report.markdown([one, *runs], reference="er(capacity=100)")
check: Callable[[str], list[str]] = lifelong.failures
"""
WRONG = """
import lifelong
from lifelong import Prt
lifelong.rum("split-digits", "er")
seeds: str = lifelong.Options().seeds
lifelong.Options(sedes=3)
lifelong.Part(init=lambda view: view.staet)
"""
# What lifelong needs is not followed: torch alone would take most of a minute.
CONFIG = """
[mypy]
strict = True
[mypy-torch.*,scipy.*,matplotlib.*,pandas.*,PIL.*,sklearn.*,rich.*]
follow_imports = skip
follow_imports_for_stubs = True
"""


def test_mypy_accepts_a_users_files_and_finds_their_mistakes(call, python, tmp_path):
    pytest.importorskip("mypy", reason="types are checked by mypy")
    strategy = re.sub(r"def (\w+)\(view\):", r"def \1(view: View) -> Any:", block("# mine.py\n"))
    files = {"mine.py": f"from typing import Any\nfrom lifelong import View\n{strategy}", "api.py": API, "wrong.py": WRONG,
             "mypy.ini": CONFIG}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = call("-m", "mypy", "--cache-dir", os.devnull, "mine.py", "api.py", "wrong.py")
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(": error:")[0] for line in lines] == [f"wrong.py:{n}" for n in (3, 4, 5, 6, 7)], done.stdout + done.stderr
    for line, word in zip(lines, ("Prt", "rum", '"int"', "sedes", "staet"), strict=True):
        assert word in line


def test_the_file_that_mypy_accepts_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(API, "api.py", "exec"), {})
