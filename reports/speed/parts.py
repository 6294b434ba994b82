"""The parts of the benchmark beside training: evaluation, growth, start-up, a grid in one stack, a profile."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import (
    HAS_AVALANCHE,
    METHODS,
    MODELS,
    RATE,
    Case,
    Contender,
    avalanche_benchmark,
    avalanche_strategy,
    beginning,
    lanes_of,
    now,
    ours,
    quiet,
    random_images,
    unmeasured,
)
from tables import Record, Table, number, ratio

from lifelong.data import build
from lifelong.experiments.prepare import prepare
from lifelong.learning.engine import Rhythm, evaluate, train
from lifelong.learning.lanes import Lanes
from lifelong.learning.schedule import batches, plan, whole_task
from lifelong.spec.run import Options
from lifelong.vmap import tree

# ---- evaluation


def evaluation(record: Record, case: Case, quick: bool) -> None:
    """Samples per second of measuring every task."""
    case = Case(case.model, case.batch, case.tasks, case.examples, 200 if quick else 1000, case.device)
    runs: dict[str, Callable[[], float]] = {"plain forward pass, batch 1,000": partial(_plain_pass, case)}
    for seeds in (1, 10):
        lanes, _ = lanes_of(case, "finetune", seeds)
        runs[f"lifelong, S={seeds}"] = partial(_our_pass, lanes, lanes.init(), case)
    for batch in (1, 1000) if HAS_AVALANCHE else ():
        name = f"Avalanche, usual metrics, batch {batch:,}" + (" (its templates' default)" if batch == 1 else "")
        runs[name] = partial(_avalanche_pass, case, batch)
    values = record.compare("evaluate", case.model, runs, "samples/s")
    baseline = next(iter(values.values()))
    table = Table(f"Evaluation: {case.model}, {case.tasks} tasks of {case.test_examples:,} images, {case.device}",
                  ["contender", "", "samples/s", "x plain forward pass"],
                  [[name, "", number(statistics.median(v)), ratio(v, baseline)] for name, v in values.items()])
    table.notes = ["plain: rotated float images in memory, forward, argmax, one count read at the end; lifelong: "
                   "engine.evaluate, which gathers bytes and rotates them first; samples are images times seeds."]
    if not HAS_AVALANCHE:
        table.notes.append("Avalanche skipped, for it is not installed here")
    record.add(table)


@torch.no_grad()
def _plain_pass(case: Case) -> float:
    net, tasks = case.network(), case.tensors["test"]
    start, hits = now(case.device), torch.zeros((), dtype=torch.int64, device=case.device)
    for x, y in tasks:
        for part, labels in zip(x.split(1000), y.split(1000), strict=True):
            hits += (net(part).argmax(1) == labels).sum()
    hits.item()
    return sum(len(y) for _, y in tasks) / (now(case.device) - start)


def _our_pass(lanes: Lanes, state: Any, case: Case) -> float:
    start = now(case.device)
    evaluate(lanes, state)
    return lanes.n * case.tasks * case.test_examples / (now(case.device) - start)


def _avalanche_pass(case: Case, batch: int) -> float:
    with quiet():
        strategy, benchmark = avalanche_strategy(case, "finetune", True, batch), avalanche_benchmark(case)
        start = now(case.device)
        strategy.eval(benchmark.test_stream, num_workers=0, pin_memory=False)
        return case.tasks * case.test_examples / (now(case.device) - start)


# ---- growth


GROWING = ["er", "ewc-online", "ewc", "er-class-balanced", "agem", "derpp", "si"]


def growth(record: Record, case: Case, quick: bool) -> None:
    """Steps per second and bytes of state as the tasks go on."""
    n_tasks = 50 if quick else 100
    at = [1, 10, 50] + ([] if quick else [100])
    images = random_images(2000, 100, 8)
    stream = build.permuted("random-permuted-v1", range(1), images, tasks=n_tasks, examples=200 if quick else 1000)
    table = Table(f"Growth: mlp on {n_tasks} tasks of permuted random 8x8 images, batch 10, S=1, {case.device}",
                  ["method", "", *(f"steps/s at task {t}" for t in at), *(f"bytes at task {t}" for t in at)])
    small = Case(batch=10, device=case.device)
    rates: dict[str, list[list[float]]] = {m: [] for m in GROWING}
    sizes: dict[str, list[int]] = {}
    with record.console.status("growth") as status:
        for i in range(record.repeats):
            for method in GROWING:
                status.update(f"growth {method}: round {i + 1} of {record.repeats}")
                per_task, sizes[method] = _per_task(small, method, stream)
                # The median of three tasks: a single one is a tenth of a second.
                rates[method].append([statistics.median(per_task[max(0, t - 2):max(0, t - 2) + 3]) for t in at])
    for method, rounds in rates.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        for t, values in zip(at, zip(*rounds, strict=True), strict=True):
            record.keep("growth", f"{method}, task {t}", {"lifelong, S=1": list(values)}, "steps/s")
        table.rows.append([method, "", *map(number, medians), *(f"{sizes[method][t - 1]:,}" for t in at)])
    table.notes = ["steps/s: the median of three tasks around the one named, without ends of tasks and evaluations; "
                   "bytes: of the whole state, parameters included."]
    record.add(table)


def _per_task(case: Case, method: str, stream: Any) -> tuple[list[float], list[int]]:
    """Steps/s inside each task, and the bytes of the state after it."""
    lanes, budget = lanes_of(case, METHODS[method], 1, stream)
    begun, rates, sizes = [0.0], [], []

    def tell(task: int, step: int, steps: int) -> None:
        if step == 1:
            begun[0] = now(case.device)
        if step == steps:
            rates.append((steps - 1) / (now(case.device) - begun[0]))

    def save(checkpoint: dict[str, Any]) -> None:
        leaves: list[int] = []
        tree(lambda leaf: leaves.append(leaf.numel() * leaf.element_size()), checkpoint["state"])
        sizes.append(sum(leaves))

    begin = beginning(lanes)
    with unmeasured():
        train(lanes, budget, Rhythm(save_every=1e9, save=save, tell=tell), begin)
    return rates, sizes


# ---- start-up

_FIRST_STEP = """
from lifelong.data import build
from lifelong.experiments.prepare import prepare
from lifelong.learning.schedule import batches, plan
from lifelong.spec.run import Options
import torch
images = build.Images(torch.zeros(100, 1, 8, 8), torch.arange(100) % 10, torch.arange(90), torch.arange(90, 100))
e = prepare(build.permuted("zeros-v1", range(5), images, tasks=1), ["er"], Options(device="cpu"))
lanes = e.learners.lanes(e.specs)
number, batch = next(iter(batches(lanes, plan(lanes.stream, lanes.seeds, 0, "task", e.learners.budget), 0, 0)))
lanes.observe(lanes.init(), batch)
"""


def startup(record: Record) -> None:
    """Wall seconds from the shell to an answer."""
    program = Path(sys.executable).with_name("lifelong")
    shell = [str(program)] if program.exists() else [sys.executable, "-c", "from lifelong.cli import main; main()"]
    commands = {
        "python, doing nothing": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import lifelong": [sys.executable, "-c", "import lifelong"],
        "lifelong --help": [*shell, "--help"],
        "lifelong list": [*shell, "list"],
        "first step of er, S=5": [sys.executable, "-c", _FIRST_STEP],
    }
    values = record.compare("startup", "wall", {k: partial(_wall, v) for k, v in commands.items()}, "s")
    record.add(Table("Start-up: wall seconds of a new process", ["what", "", "median", "least", "most"],
                     [[name, "", *(f"{f(v):.2f}" for f in (statistics.median, min, max))]
                      for name, v in values.items()]))


def _wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


# ---- precision


def precision(record: Record, case: Case, method: str, seeds: list[int]) -> None:
    """Steps per second with the network in bfloat16 beside float32."""
    table = Table(f"Precision: {method}, {case.tasks} tasks of {case.examples:,}, {case.device}",
                  ["network", "batch", "S", "float32", "bfloat16", "bfloat16 x float32"],
                  notes=["seed-steps/s of engine.train without its evaluations; ratios within a round: median (least "
                         "to most)."])
    for model in MODELS:
        for batch in (10, 128):
            here = replace(case, model=model, batch=batch)
            for s in seeds:
                runs = {dtype: partial(_trained, ours(here, method, s, dtype), here)
                        for dtype in ("float32", "bfloat16")}
                rates = record.compare("precision", f"{method}, {model}, batch {batch}, S={s}", runs, "seed-steps/s")
                medians = [number(statistics.median(v)) for v in rates.values()]
                table.rows.append([model, str(batch), str(s), *medians, ratio(rates["bfloat16"], rates["float32"])])
    record.add(table)


def _trained(contender: Contender, case: Case) -> float:
    return contender.seeds * case.steps / contender.run().total


# ---- a grid as one stack


def grid(record: Record, case: Case, quick: bool) -> None:
    """A grid of strengths and seeds as one stack, as a stack for each strength, and run by run; all seconds counted."""
    n = 3 if quick else 10
    strengths = [float(10 ** (i / 2 - 1)) for i in range(n)]
    case = Case(case.model, case.batch, min(case.tasks, 2), case.examples, 100, case.device)
    options = Options(seeds=n, epochs=1, batch_size=case.batch, model=MODELS[case.model],
                      optimizer=f"sgd(lr={RATE})", device=case.device)
    experiment = prepare(case.stream(n), [f"ewc(strength=[{', '.join(map(str, strengths))}])"], options)
    learners = experiment.learners

    def all_at_once() -> float:
        return _seconds([learners.lanes(experiment.specs)], learners.budget, case.device)

    def in_turns() -> float:
        start = now(case.device)
        experiment.run(None)
        return now(case.device) - start

    def by_strength() -> float:
        return _seconds([learners.lanes([s]) for s in experiment.specs], learners.budget, case.device)

    def one_by_one() -> float:
        alone = [Lanes(learners.stream, range(n), [seed], learners.make(s), {}, learners.device, stacked=False)
                 for s in experiment.specs for seed in range(n)]
        return _seconds(alone, learners.budget, case.device)

    names = [f"one stack of {n * n} lanes", "as `lifelong run` stacks them", f"{n} stacks of {n} lanes",
             f"{n * n} runs one by one"]
    values = record.compare("grid", f"{n} strengths x {n} seeds", dict(zip(names, (
        all_at_once, in_turns, by_strength, one_by_one), strict=True)), "s")
    rows = [[name, "", number(statistics.median(v)), ratio(values[names[-1]], v)] for name, v in values.items()]
    record.add(Table(f"Grid: ewc, {n} strengths x {n} seeds, {case.model}, batch {case.batch}, {case.tasks} tasks of "
                     f"{case.examples:,}, {case.device}", ["how", "", "seconds", "x one by one"], rows,
                     ["counted: drawing parameters, training, Fisher, evaluation; not counted: making the stream."]))


def _seconds(stacks: list[Lanes], budget: Any, device: str) -> float:
    start = now(device)
    for lanes in stacks:
        train(lanes, budget)
    return now(device) - start


# ---- profile

_KINDS = {  # of operations, by what their names begin with
    "products and convolutions": ("mm", "addmm", "bmm", "baddbmm", "mkldnn", "convolution", "thnn", "_convolution"),
    "gathers and sorting": ("gather", "index", "topk", "sort", "scatter", "cat", "stack", "_index"),
    "views": ("view", "slice", "select", "split", "unsqueeze", "squeeze", "expand", "transpose", "t", "as_strided",
              "detach", "narrow", "unbind", "permute", "alias", "_unsafe_view", "reshape", "flatten", "movedim",
              "chunk", "unflatten", "_reshape_alias", "conj", "resolve_conj", "mT", "numpy_T", "matrix_H"),
}


def profile(record: Record, case: Case, methods: list[str], seeds: list[int], top: int = 8) -> None:
    """Where the time of one step goes: kinds of operations, then what is no operation; and the costliest ones."""
    kinds = [*_KINDS, "elementwise, sums, copies"]
    table = Table(f"Profile: {case.model}, batch {case.batch}, {case.device}",
                  ["method", "S", "us a step", *kinds, "Python, lift, autograd", "operations a step"])
    table.notes = ["us a step: without the profiler, the least; shares: of a step under the profiler, "
                   "in which every operation and every line of Python takes longer, small ones most.",
                   "every operation's time, and every gap's between two, is its median over the steps, so that other "
                   "work on the machine does not count; Python, lift, autograd: the gaps."]
    costliest = Table("The costliest operations", ["method", "S", "us a step under the profiler (calls)"])
    for method in methods:
        for s in seeds:
            wall, spent, gaps = _profiled(record, case, method, s)
            shares = dict.fromkeys(kinds, 0.0)
            for name, times in spent.items():
                shares[_kind(name)] += sum(times)
            whole = sum(shares.values()) + gaps
            table.rows.append([method, str(s), number(wall),
                               *(f"{v / whole:.0%}" for v in (*shares.values(), gaps)),
                               number(sum(map(len, spent.values())))])
            some = sorted(spent, key=lambda name: -sum(spent[name]))[:top]
            costliest.rows.append([method, str(s), ", ".join(
                f"{name} {number(sum(spent[name]))} ({len(spent[name])})" for name in some)])
    record.add(table)
    record.add(costliest)


def _kind(name: str) -> str:
    for kind, names in _KINDS.items():
        if name.rstrip("_") in names or (kind.startswith("products") and name.startswith(names[5:])) or (
                kind.startswith("gathers") and name.startswith(names)):
            return kind
    return "elementwise, sums, copies"


def _profiled(record: Record, case: Case, method: str, seeds: int) -> tuple[float, dict[str, list[float]], float]:
    """Microseconds: of a step without the profiler; of every call of every operation in a step; of all that is none."""
    lanes, budget = lanes_of(case, METHODS[method], seeds)
    state = lanes.init()
    # In the second task, where memories are filled and penalties pull.
    for _, batch in batches(lanes, plan(lanes.stream, lanes.seeds, 0, lanes.learner.data, budget), 0, 0):
        state, _ = lanes.observe(state, batch)
    state = lanes.end_task(state, whole_task(lanes, 0))
    todo = [b for _, b in batches(lanes, plan(lanes.stream, lanes.seeds, 1, lanes.learner.data, budget), 1, 0)][:50]

    def steps() -> list[float]:
        nonlocal state
        found = []
        for batch in todo:
            start = now(case.device)
            state, _ = lanes.observe(state, batch)
            found.append(1e6 * (now(case.device) - start))
        return found

    steps()
    wall = min(least for _ in range(record.repeats) for least in steps())
    record.keep("profile", method, {f"lifelong, S={seeds}": [wall]}, "us a step")
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if case.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as seen:
        steps()
    events = sorted((e for e in seen.events() if e.name.startswith("aten::")), key=lambda e: e.time_range.start)
    own = torch.tensor([e.self_cpu_time_total for e in events]).view(len(todo), -1).median(0).values.tolist()
    spent: dict[str, list[float]] = {}
    for event, each in zip(events, own, strict=False):
        spent.setdefault(event.name.removeprefix("aten::"), []).append(each)
    outer = [e.time_range for e in events if e.cpu_parent is None or not e.cpu_parent.name.startswith("aten::")]
    between = torch.tensor([b.start - a.end for a, b in zip(outer, [*outer[1:], outer[-1]], strict=True)])
    return wall, spent, float(between.view(len(todo), -1).median(0).values.clamp(min=0).sum())
