"""The commands in reports/ still work: each is run with a budget that says nothing about its numbers."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
from conftest import mnist_files
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("reports/*/run.sh"))
NEEDS_OMNIGLOT = ("omniglot", "o600", "g600", "few-shot")
# The MNIST and the tiny-imagenet-100 that these tests see: random images.
SIZES: dict[str, Any] = {"mnist": {"train": 2000, "t10k": 1000}, "tiny": {"train": 20, "val": 2, "test": 4}, "images": 12}
SIZES["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in mnist_files(SIZES["mnist"]).items()}
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
    with forking.command(tmp_path_factory.mktemp("command"), json.dumps(SIZES)) as folder:
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Omniglot that LIFELONG_DATA has, and random images in the formats of MNIST and tiny-imagenet-100."""
    folder, g = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files(SIZES["mnist"]).items():
        (raw / name).write_bytes(content)
    names = (f"n{c:08}" for c in itertools.count())
    for part, classes in SIZES["tiny"].items():
        for name in itertools.islice(names, classes):
            (own := folder / "tiny-imagenet-100" / part / name).mkdir(parents=True)
            for i, image in enumerate(g.integers(0, 256, (SIZES["images"], 64, 64, 3), np.uint8)):
                Image.fromarray(image).save(own / f"{i}.png", compress_level=0)
    omniglot = Path(os.environ.get("LIFELONG_DATA", ".")).resolve() / "omniglot"
    if omniglot.exists():
        (folder / "omniglot").symlink_to(omniglot)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_a_reports_command_runs(script: Path, tmp_path: Path, command: Path, data: Path) -> None:
    if any(word in script.parent.name for word in NEEDS_OMNIGLOT) and not (data / "omniglot").exists():
        pytest.skip("needs Omniglot in the folder that LIFELONG_DATA names")
    cache = {"LIFELONG_CACHE": str(data / "cache")} if "imagenet" in script.parent.name else {}
    environment = os.environ | cache | {"LIFELONG_DATA": str(data), "PATH": os.pathsep.join([str(command), str(Path(sys.executable).parent),
                                                         os.environ["PATH"]])}
    small, more = OWN.get(script.parent.name, (SMALL, {}))
    done = subprocess.run(["sh", str(script), str(tmp_path / "runs"), *small],
                          cwd=ROOT, env=environment | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
