"""The benchmark command runs, and shows every contender; its numbers are never asserted."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[1] / "reports" / "speed" / "benchmark.py"


def test_quick_benchmark_shows_every_contender(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "LIFELONG_DATA"}
    sizes = ["--tasks", "2", "--examples", "40", "--seeds", "1,2", "--methods", "finetune,er"]
    done = subprocess.run([sys.executable, COMMAND, "--quick", "--repeats", "1", "--part", "train", "--out", tmp_path,
                           *sizes], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "quick-train-mlp-batch10-cpu.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| finetune", "| er"))]
    expected = ["plain torch loop", "Avalanche, no metrics", "Avalanche, usual metrics", "lifelong, S=1",
                "lifelong, S=2"]
    for method in ("| finetune", "| er"):
        assert {row[1] for row in rows if row[0] == method} == set(expected)
    if importlib.util.find_spec("avalanche") is None:
        assert "Avalanche skipped" in text
        assert all(row[2] == "skipped" for row in rows if row[1].startswith("Avalanche"))
    for word in ("commit", "torch", "processor", "not timed", "random pixels"):
        assert word in text
    with (tmp_path / "quick-train-mlp-batch10-cpu.csv").open() as file:
        assert all(float(row["value"]) >= 0 for row in csv.DictReader(file))


@pytest.mark.slow
def test_images_are_counted_for_every_contender(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "LIFELONG_DATA"}
    done = subprocess.run([sys.executable, COMMAND, "--quick", "--repeats", "1", "--part", "images", "--out", tmp_path],
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "quick-images.md").read_text()
    for contender in ("torchvision DataLoader, 0 workers", "torchvision DataLoader, 2 workers", "lifelong, S=1",
                      "lifelong, S=1, gathered ahead", "lifelong, S=10", "finetune", "er(capacity=1000)"):
        assert f"| {contender} |" in text
    assert "1,000 generated JPEGs" in text
