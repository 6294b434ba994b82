"""What every test starts from: one thread, so that bits repeat; and the command line as a shell calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong import cli
from lifelong.learning.losses import Loss, Slice

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: two with two threads each stand in their own way


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out, but only tests that are marked `drawn` encode them, which takes longer than all the rest."""
    if not request.node.get_closest_marker("drawn"):
        from lifelong.report import canvas

        monkeypatch.setattr(canvas, "encoded", lambda figure, kind: b"<svg/>")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def lifelong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`lifelong WORDS...` as the shell calls it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["lifelong", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return Said(int(code or 0), said.out, said.err)  # type: ignore[call-overload]

    return call


def refused(said: Said, *words: str) -> None:
    """Exit 2, and one plain sentence that has all `words` in it."""
    assert said.code == 2, said
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lifelong: "), said.err
    assert "Traceback" not in said.err and "object at 0x" not in said.err
    for word in words:
        assert word in lines[0]


def value_of(loss: Loss, *examples: Slice, competing: Tensor | None = None) -> Tensor:
    """The value of a loss without penalties, computed by torch's own functions from the slices that it is about."""
    total = sum((*loss.values, *loss.free), torch.zeros((), dtype=torch.float64))
    for one in examples:
        scores = one.scores if competing is None else one.scores.masked_fill(~competing, -torch.inf)
        if one.name in loss.entropies:
            total = total + (F.cross_entropy(scores, one.y, reduction="none") * loss.entropies[one.name]).sum()
    return total


def mnist_files(sizes: dict[str, int]) -> dict[str, bytes]:
    """Four files in MNIST's format with random images and labels 0, 1, ..., 9, 0, ..."""
    found, draw = {}, np.random.default_rng(0)
    for part, n in sizes.items():
        for kind, array in (("images-idx3", draw.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10)):
            header = np.array([2048 + array.ndim, *array.shape], dtype=">i4").tobytes()
            found[f"{part}-{kind}-ubyte"] = header + array.astype(np.uint8).tobytes()
    return found
