"""The commands in reports/ still work: each is run with a budget that says nothing about its numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("reports/*/run.sh"))
NEEDS_DATA = ("mnist", "omniglot")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_a_reports_command_runs(script: Path, tmp_path: Path) -> None:
    if any(word in script.parent.name for word in NEEDS_DATA) and not os.environ.get("LIFELONG_DATA"):
        pytest.skip("needs the data that LIFELONG_DATA names")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    small = ["--steps", "2", "--seeds", "2", "--tasks", "2", "--quiet"]
    done = subprocess.run(["sh", str(script), str(tmp_path / "runs"), *small],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
