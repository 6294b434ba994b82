"""The part of the benchmark about photographs: from cache to step, and what of them is in memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tables import Record, Table, number, ratio
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from lifelong.data.build import Images, split
from lifelong.data.files import folder, members
from lifelong.learning.composition import gradient_learner
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import AUGMENT
from lifelong.learning.optim import sgd
from lifelong.learning.schedule import Budget, batches, plan
from lifelong.networks.mlp import mlp

MEAN, STD = (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)
CROP = "crop(padding=4) + flip"
_SIDE = 64


def images(record: Record, batch: int, quick: bool) -> None:
    """Images per second, as float batches ready for a step; and the peak memory of a run on 60,000 images."""
    count = 256 if quick else 4096
    with _photographs(1000 if quick else 5000) as (root, what):
        start = time.perf_counter()
        x, y = _decoded(root)
        spent = time.perf_counter() - start
        np.save(root / "cache.npy", x)
        mapped = torch.from_numpy(np.load(root / "cache.npy", mmap_mode="c"))
        runs: dict[str, Callable[[], float]] = {
            f"torchvision DataLoader, {workers} workers": partial(_loaded, root / "jpeg", batch, workers, count)
            for workers in (0, 2)}
        for seeds, host in ((1, False), (1, True), (10, False)):
            name = f"lifelong, S={seeds}" + (", gathered ahead" if host else "")
            runs[name] = partial(_fetched, _lanes(mapped, y, seeds, host), batch, count)
        rates = record.compare("images", f"batch {batch}", runs, "images/s")
    first, second = list(rates.values())[:2]
    table = Table(f"Images: {what}, batch {batch}", ["contender", "", "images/s", "x 0 workers", "x 2 workers"],
                  [[name, "", number(statistics.median(v)), ratio(v, first), ratio(v, second)]
                   for name, v in rates.items()])
    table.notes = [
        f"{count:,} images a round to float32 batches, cropped (padding 4), flipped, normalised by channel; no "
        "network.",
        "torchvision: ImageFolder, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, shuffled; the workers are "
        "started before the clock and keep running (persistent_workers).",
        "lifelong: the order of rows, random numbers, the gather from a memory-mapped uint8 array, crop, flip and "
        "normalisation; images are counted over all seeds. 'gathered ahead': on a thread, as where the device has no "
        "room for the examples.",
        f"not timed: decoding once into the array, {len(y) / spent:,.0f} images/s by PIL in one process."]
    record.add(table)
    _memory(record, quick)


@contextmanager
def _photographs(most: int) -> Iterator[tuple[Path, str]]:
    """A folder whose `jpeg` has `most` JPEGs in a folder a class, and what they are."""
    with tempfile.TemporaryDirectory() as name:
        root, there = Path(name), folder() / "tiny-imagenet-100" / "train.zip"
        if there.is_file():
            with zipfile.ZipFile(there) as archive:
                wanted = [m for m in members(archive, 2**30) if m.filename.lower().endswith(".jpeg")][:most]
                for member in wanted:
                    path = root / "jpeg" / Path(member.filename).parent.name / Path(member.filename).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
            yield root, f"{len(wanted):,} photographs of tiny-imagenet-100, {_SIDE}x{_SIDE} JPEG"
            return
        g = np.random.default_rng(0)
        for i in range(most):
            path = root / "jpeg" / f"class{i % 10}" / f"{i}.jpeg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(g.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        yield root, f"{most:,} generated JPEGs of {_SIDE}x{_SIDE} (LIFELONG_DATA has no tiny-imagenet-100)"


def _decoded(root: Path) -> tuple[np.ndarray, torch.Tensor]:
    data = datasets.ImageFolder(root / "jpeg")
    x = np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path, _ in data.samples])
    return x, torch.tensor(data.targets)


_LOADERS: dict[tuple[Any, ...], DataLoader[Any]] = {}


def _loaded(jpegs: Path, batch: int, workers: int, count: int) -> float:
    key = (jpegs, batch, workers)
    if key not in _LOADERS:
        change = transforms.Compose([transforms.RandomCrop(_SIDE, 4), transforms.RandomHorizontalFlip(),
                                     transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        _LOADERS[key] = DataLoader(datasets.ImageFolder(jpegs, change), batch, shuffle=True, num_workers=workers,
                                   drop_last=True, persistent_workers=workers > 0)
    seen, there = 0, iter(_LOADERS[key])
    next(there)  # workers are up
    start = time.perf_counter()
    while seen < count:
        for x, _ in there:
            seen += len(x)
            if seen >= count:
                break
        else:
            there = iter(_LOADERS[key])
    spent = time.perf_counter() - start
    for _ in there:  # what is on its way belongs to no round
        pass
    return seen / spent


def _lanes(x: torch.Tensor, y: torch.Tensor, seeds: int, host: bool) -> Lanes:
    rows = torch.arange(len(y))
    first = torch.cat([rows[y == c][:1] for c in range(int(y.max()) + 1)])
    rest = rows[~torch.isin(rows, first)]
    stream = split("photographs-v1", range(seeds), Images(x, y, rest, first, 1 / 255), tasks=1, mean=MEAN, std=STD,
                   augment=CROP)
    learner = gradient_learner(mlp(stream.shape, stream.n_classes, ()), sgd(), {})
    return Lanes(stream, range(seeds), range(seeds), lambda hyper: learner, stacked=seeds > 1, host=host)


def _fetched(lanes: Lanes, batch: int, count: int) -> float:
    seen, start = 0, time.perf_counter()
    todo = plan(lanes.stream, lanes.seeds, 0, "task", Budget(batch, steps=-(-count // (batch * lanes.n))))
    for _, now in batches(lanes, todo, 0, 0):
        x, _ = lanes.fetch(now.rows, u=now.u[AUGMENT])
        seen += x.shape[:-3].numel()
    return seen / (time.perf_counter() - start)


# ---- memory

_RUN = """
import hashlib, sys
import numpy as np, torch
import lifelong
from lifelong.data.build import Images, split
file, steps, strategy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
mapped = np.load(file, mmap_mode="c")
hashlib.sha256(mapped.data).digest()  # every page is touched, as when a cache is checked
y = torch.arange(len(mapped)) % 100
rows = torch.arange(len(mapped))
stream = split("sixty-v1", [0], Images(torch.from_numpy(mapped), y, rows[100:], rows[:100], 1 / 255), tasks=2,
               mean=(0.5,) * 3, std=(0.25,) * 3, augment="crop(padding=4) + flip")
run = lifelong.run(stream, strategy, model="resnet18", steps=steps, batch_size=10)
assert run.about["status"] == "done"
"""
_BARE = "import torch"
# Not ru_maxrss, which a process takes over from the one that started it.
_SAY = """
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def _memory(record: Record, quick: bool) -> None:
    shape = (600 if quick else 60_000, 3, 84, 84)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "x.npy"
        made = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
        g = np.random.default_rng(0)
        for first in range(0, len(made), 1000):
            made[first:first + 1000] = g.integers(0, 256, (1000, *shape[1:]), dtype=np.uint8)[:len(made) - first]
        made.flush()
        del made
        peaks = {"import torch, doing nothing": _peak(_BARE)}
        for strategy in ("finetune", "er(capacity=1000)"):
            peaks[strategy] = _peak(_RUN, str(file), "2" if quick else "20", strategy)
        size = file.stat().st_size / 2**30
    record.keep("memory", f"{shape[0]} images", {name: [peak] for name, peak in peaks.items()}, "GiB")
    rows = [[name, "", f"{peak:.2f}", f"{peak - size:.2f}" if peak > size else "-"] for name, peak in peaks.items()]
    record.add(Table(f"Memory: resnet18 on {shape[0]:,} images of 84x84, {size:.2f} GiB memory-mapped",
                     ["what", "", "peak, GiB", "beyond the images"], rows,
                     ["VmHWM of a child process, in which every page of the images was touched before the run: 2 "
                      "tasks of 20 steps, batch 10, er with 10 rehearsed, augmented, 100 images tested on three times, "
                      "one thread."]))


def _peak(code: str, *words: str) -> float:
    done = subprocess.run([sys.executable, "-c", code + _SAY, *words], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 2**20
