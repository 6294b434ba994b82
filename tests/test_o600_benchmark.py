"""The benchmark of reports/o600 runs, and both of its ways have one meta-gradient."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "reports/o600/benchmark.py"


@pytest.mark.parametrize("net", ["oml", "anml"])
def test_the_official_way_and_this_one_are_the_same_mathematics(net: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--net", net, "--width", "4", "--pairs", "1", "--lanes", "2"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"meta-gradients, float32: (\S+)", done.stdout)[1]) < 1e-3
    assert done.stdout.count("\n| official") == 3
