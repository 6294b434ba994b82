"""Times this engine beside a plain torch loop and Avalanche: `python reports/speed/benchmark.py --help`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from contenders import HAS_AVALANCHE, METHODS, MODELS, Case, Contender, trainers
from images import images
from parts import evaluation, grid, growth, precision, profile, startup
from rich.console import Console
from tables import Record, Table, machine, number, ratio, write

from lifelong.machine import keep_pages

PLAIN, WITH_METRICS = "plain torch loop", "Avalanche, usual metrics"
TIMED = [
    "timed, for all: choosing the examples of a step, the step, and what follows a task (Fisher, memories), over all "
    "tasks; not timed: imports, data preparation, drawing the parameters, evaluation.",
    "plain torch loop: rotated float images of one task at a time in memory, one index_select a step; its losses are "
    "never read. er: a reservoir filled example by example, one forward pass. ewc: penalty of the latest task alone, "
    "Fisher from squared gradients of batches (as Avalanche's, and cheaper than per-example).",
    "Avalanche: strategy.train(experience), num_workers=0, tensors in memory, its own data loader; er is Replay, whose "
    "memory is filled after a task and used from the second on; ewc is EWC(mode='separate'), a penalty a task; "
    "er-class-balanced trains on one batch an experience, its only online form; derpp is DER with beta, whose "
    "remembered scores are made at the end of a task.",
    "lifelong: engine.train without its evaluations: plans and random numbers, gathering from all digits as bytes and "
    "rotating them at every step, the reading of every loss; ewc has an exact per-example Fisher over all ten labels.",
    "seed-steps/s: steps times seeds over seconds. Ratios are taken within a round: median (least to most).",
]


def training(record: Record, case: Case, methods: list[str], seeds: list[int]) -> None:
    """Seed-steps per second of every contender, method by method."""
    pixels = "rotated MNIST" if case.real else "random pixels in the shapes of rotated MNIST (LIFELONG_DATA is not set)"
    table = Table(f"Training: {case.model}, batch {case.batch}, {case.tasks} tasks of {case.examples:,}, {case.device}",
                  ["method", "contender", "seed-steps/s", "end of a task, ms", "x plain loop", "x Avalanche, metrics"],
                  notes=[f"{pixels}; {record.repeats} rounds after one that is not counted; SGD, lr 0.01.", *TIMED])
    for method in methods:
        contenders, left_out = trainers(case, method, seeds)
        ends: dict[str, list[float]] = {c.name: [] for c in contenders}
        runs = {c.name: partial(_rate, c, case, ends[c.name]) for c in contenders}
        rates = record.compare("train", method, runs, "seed-steps/s")
        record.keep("train", method, {name: values[1:] for name, values in ends.items()}, "ms at the end of a task")
        for name, values in rates.items():
            table.rows.append([method, name, number(statistics.median(values)),
                               number(statistics.median(ends[name][1:])), ratio(values, rates.get(PLAIN)),
                               ratio(values, rates.get(WITH_METRICS))])
        if not HAS_AVALANCHE:
            table.rows += [[method, name, "skipped", "-", "-", "-"]
                           for name in ("Avalanche, no metrics", WITH_METRICS)]
        table.notes += left_out
    record.add(table)


def _rate(contender: Contender, case: Case, ends: list[float]) -> float:
    spent = contender.run()
    ends.append(1000 * spent.ends / case.tasks)
    return contender.seeds * case.steps / spent.total


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    add = parser.add_argument
    add("--part", default="all",
        choices=["train", "evaluate", "growth", "startup", "grid", "precision", "images", "profile", "all"])
    add("--quick", action="store_true", help="smaller: to see that it works, not for figures")
    add("--repeats", type=int, default=5, help="rounds that count")
    add("--threads", type=int, default=1, help="of torch, for every contender")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--seeds", type=numbers, default=[1, 10, 32], help="stack sizes S, for example 1,10,32")
    add("--methods", default="finetune,er,ewc,derpp", help="of: " + ", ".join(METHODS))
    add("--model", default="mlp", choices=list(MODELS))
    add("--batch", type=int, default=10)
    add("--tasks", type=int, help="of the stream; 5, with --quick 2")
    add("--examples", type=int, help="of a task; 1,000, with --quick 200")
    add("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    if unknown := [m for m in args.methods if m not in METHODS]:
        parser.error(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if args.repeats < 1 or args.batch < 1 or args.threads < 1 or min(args.seeds) < 1:
        parser.error("--repeats, --batch, --threads and every one of --seeds must be 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but there is no CUDA device here")
    args.tasks = args.tasks or (2 if args.quick else 5)
    args.examples = args.examples or (200 if args.quick else 1000)
    return args


def main() -> None:
    """Runs the parts asked for, each into files of its own."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    keep_pages()  # as `lifelong run` does; for every contender
    about, console = machine(args.device, args.threads), Console(width=None if sys.stdout.isatty() else 140)
    case = Case(args.model, args.batch, args.tasks, args.examples, device=args.device)
    shape = f"{args.model}-batch{args.batch}-{args.device}"
    parts: dict[str, tuple[str, Callable[[Record], None]]] = {
        "train": (f"train-{shape}", lambda record: training(record, case, args.methods, args.seeds)),
        "evaluate": (f"evaluate-{args.model}-{args.device}", lambda record: evaluation(record, case, args.quick)),
        "growth": (f"growth-{args.device}", lambda record: growth(record, case, args.quick)),
        "startup": ("startup", startup),
        "grid": (f"grid-{shape}", lambda record: grid(record, case, args.quick)),
        "precision": (f"precision-{args.device}", lambda record: precision(record, case, args.methods[0], args.seeds)),
        "images": ("images", lambda record: images(record, args.batch, args.quick)),
        "profile": (f"profile-{shape}", lambda record: profile(record, case, args.methods, args.seeds)),
    }
    for name, (file, part) in parts.items():
        if args.part not in (name, "all") or (name in ("precision", "images", "profile") and args.part == "all"):
            continue
        start, record = time.perf_counter(), Record(args.repeats, console)
        part(record)
        paths = write(args.out, ("quick-" if args.quick else "") + file, about, record.tables, record.observations)
        console.print(f"{name}: {time.perf_counter() - start:.0f} s; {', '.join(map(str, paths))}", highlight=False)


if __name__ == "__main__":
    main()
