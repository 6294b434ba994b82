"""The commands in reports/ still work: each is run with a budget that says nothing about its numbers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forking
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("reports/*/run.sh"))
NEEDS_DATA = {"omniglot": "omniglot", "o600": "omniglot", "g600": "omniglot", "tiny-imagenet-100": "tiny-imagenet-100",
              "few-shot": "omniglot"}
IMAGES = {"train": 2000, "t10k": 1000}  # of the MNIST that these tests see
SMALL = ["--steps", "2", "--seeds", "2", "--tasks", "2", "--quiet"]
# Where lengths of time are no options of `lifelong run`, a script takes them from the environment.
OWN: dict[str, tuple[list[str], dict[str, str]]] = {"o600": (["--steps", "2"], {
    "WIDTH": "2", "GATE": "2", "STEPS": "2", "SEEDS": "2", "TRIED": "1", "LRS": "[0.01, 0.001]", "WHICH": "oml",
    "LENGTHS": "(1, 3)", "SOURCE": "omniglot(classes=30)",
    "SEARCH": "omniglot-o600(part='background', first=30, classes=9, lengths=(2,))"}), "g600": ([], {
    "WHICH": "supervised", "STEPS": "2", "EPISODES": "2", "LENGTHS": "(3,)", "MODEL": "resnet(widths=(2, 4))",
    "TURNED": "omniglot(classes=30, turned=True)",
    "SEARCH": "omniglot-g600(part='background', first=30, lengths=(4,), size=28)"}), "split-omniglot": ([], {
    "BUDGET": "--steps 2", "WHICH": "oml", "SHAPES": "2,2", "SEEDS": "2", "TRIED": "1", "MODEL": "oml_net(width=2)", "RATES": "[0.1, 0.01]",
    "OML": "classes=1, shots=3, others=0, remember=4, steps=2", "FIRST": "30", "SOURCE": "omniglot(classes=30)"}),
    "domains": ([], {"WHICH": "rotated", "STARTS": "none oml", "STEPS": "2", "SEEDS": "2", "TRIED": "1",
                     "RATES": "[0.01, 0.1]", "STRENGTHS": "0.5", "MODEL": "mlp(hidden=(4,))",
                     "MORE": ", tasks=2, examples=20"}),
    "tiny-imagenet-100": (["tiny"], {}), "sums": (SMALL, {"WHICH": "split"})}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with forking.command(tmp_path_factory.mktemp("command"), ",".join(map(str, IMAGES.values()))) as folder:
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets that LIFELONG_DATA has, and in place of MNIST random images in its format."""
    folder, g = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in IMAGES.items():
        for kind, values in (("images-idx3", g.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10)):
            header = np.array([8 << 8 | values.ndim, *values.shape], dtype=">i4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    if given := os.environ.get("LIFELONG_DATA"):
        for name in {*NEEDS_DATA.values()}:
            if (found := Path(given).resolve() / name).exists():
                (folder / name).symlink_to(found)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_a_reports_command_runs(script: Path, tmp_path: Path, command: Path, data: Path) -> None:
    for word, name in NEEDS_DATA.items():
        if word in script.parent.name and not (data / name).exists():
            pytest.skip(f"needs {name} in the folder that LIFELONG_DATA names")
    environment = os.environ | {"LIFELONG_DATA": str(data), "PATH": os.pathsep.join([str(command), str(Path(sys.executable).parent),
                                                         os.environ["PATH"]])}
    small, more = OWN.get(script.parent.name, (SMALL, {}))
    done = subprocess.run(["sh", str(script), str(tmp_path / "runs"), *small],
                          cwd=ROOT, env=environment | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
