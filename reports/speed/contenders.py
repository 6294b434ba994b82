"""What is compared: the same training by a plain torch loop, by Avalanche, and by this engine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifelong.data import build
from lifelong.data.stream import Stream
from lifelong.experiments.prepare import prepare
from lifelong.learning import engine
from lifelong.learning.engine import Measured, Rhythm
from lifelong.learning.lanes import Lanes
from lifelong.learning.schedule import Budget
from lifelong.randomness import generator
from lifelong.spec.run import Options

RATE, CAPACITY, STRENGTH = 0.01, 500, 10.0
MODELS = {"mlp": "mlp(hidden=(100, 100))", "conv4": "conv4(width=32)"}
METHODS = {
    "finetune": "finetune",
    "er": f"er(capacity={CAPACITY})",
    "ewc": f"ewc(strength={STRENGTH})",
    "ewc-online": f"ewc(strength={STRENGTH}, mode='online')",
    "er-class-balanced": f"er(capacity={CAPACITY}, memory='class-balanced')",
    "agem": "agem(capacity=1000, reference=256)",
    "lwf": "lwf",
    "si": "si(strength=1.0)",
    "derpp": f"derpp(capacity={CAPACITY}, alpha=0.1, beta=0.5)",
}
HAS_AVALANCHE = importlib.util.find_spec("avalanche") is not None


class Spent(NamedTuple):
    """Seconds of one training, all tasks together, and how many of these went into what follows a task's last step."""

    total: float
    ends: float


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        name: as printed.
        seeds: trained at once.
        run: does the work once, from the beginning, and says how long that took.
    """

    name: str
    seeds: int
    run: Callable[[], Spent]


@dataclass(frozen=True)
class Case:
    """The stream, network and budget that all contenders share."""

    model: str = "mlp"
    batch: int = 10
    tasks: int = 5
    examples: int = 1000
    test_examples: int = 1000
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """Steps of one training."""
        return self.tasks * -(-self.examples // self.batch)

    @property
    def real(self) -> bool:
        """Whether the digits are MNIST's; else random pixels stand in, of the same shapes."""
        return bool(os.environ.get("LIFELONG_DATA"))

    def stream(self, seeds: int) -> Stream:
        """Rotated digits for `seeds` seeds."""
        if self.real:
            from lifelong.streams.mnist import rotated_gem

            return rotated_gem(range(seeds), tasks=self.tasks, examples=self.examples,
                               test_examples=self.test_examples)
        images = random_images(10 * self.examples, self.test_examples, 28)
        return build.rotated("random-pixels-v1", range(seeds), images, tasks=self.tasks, examples=self.examples)

    @cached_property
    def tensors(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Seed 0's images, already rotated, and labels of each task, on the device: what the others train on."""
        stream = self.stream(1)
        pool = stream.pool().lane({k: v[0] for k, v in stream.lanes([0]).items()})
        kinds = {"train": stream.train[0], "test": stream.test[0]}
        return {kind: [tuple(t.to(self.device) for t in pool.fetch(rows)) for rows in tasks]  # type: ignore[misc]
                for kind, tasks in kinds.items()}

    def network(self) -> nn.Module:
        """The network as torch modules."""
        if self.model == "mlp":
            net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(),
                                nn.Linear(100, 10))
        else:
            blocks = [[nn.Conv2d(1 if i == 0 else 32, 32, 3, stride=2, padding=1), nn.GroupNorm(1, 32), nn.ReLU()]
                      for i in range(4)]
            net = nn.Sequential(*[layer for block in blocks for layer in block], nn.Flatten(), nn.Linear(128, 10))
        return net.to(self.device)


def random_images(train: int, test: int, side: int) -> build.Images:
    """Images of random pixels with labels 0..9, for machines without data."""
    g, n = generator("random-pixels"), train + test
    x = torch.randint(0, 256, (n, 1, side, side), generator=g).to(torch.uint8)
    return build.Images(x, torch.arange(n) % 10, torch.arange(train), torch.arange(train, n), scale=1 / 255)


def now(device: str) -> float:
    """Seconds on a clock, after the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- the plain loop


class PlainFinetune:
    """A training step as the torch tutorials write it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step()

    def end(self, x: Tensor, y: Tensor, batch: int) -> None:
        pass


class PlainEr(PlainFinetune):
    """A reservoir in two tensors, filled example by example; one forward pass for the batch and what is replayed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.x: Tensor | None = None
        self.y: Tensor | None = None
        self.seen = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.x is None or self.y is None:
            return super().loss(x, y)
        pick = torch.randint(0, min(self.seen, CAPACITY), (len(x),), device=x.device)
        scores = self.net(torch.cat([x, self.x[pick]]))
        return F.cross_entropy(scores[: len(x)], y) + F.cross_entropy(scores[len(x):], self.y[pick])

    def step(self, x: Tensor, y: Tensor) -> None:
        super().step(x, y)
        if self.x is None or self.y is None:
            self.x, self.y = x.new_zeros(CAPACITY, *x.shape[1:]), y.new_zeros(CAPACITY)
        for i in range(len(x)):
            place = self.seen if self.seen < CAPACITY else random.randrange(self.seen + 1)
            if place < CAPACITY:
                self.x[place], self.y[place] = x[i], y[i]
            self.seen += 1


class PlainDerpp(PlainFinetune):
    """The reservoir keeps scores too; one forward pass for the batch and the two draws that are replayed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.kept: list[Tensor] = []
        self.seen = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        n, filled = len(x), min(self.seen, CAPACITY)
        if self.kept:
            first, second = (torch.randint(0, filled, (n,), device=x.device) for _ in range(2))
            scores = self.net(torch.cat([x, self.kept[0][first], self.kept[0][second]]))
            loss = (F.cross_entropy(scores[:n], y) + 0.1 * F.mse_loss(scores[n:2 * n], self.kept[2][first])
                    + 0.5 * F.cross_entropy(scores[2 * n:], self.kept[1][second]))
        else:
            scores = self.net(x)
            loss = F.cross_entropy(scores, y)
            self.kept = [t.new_zeros(CAPACITY, *t.shape[1:]) for t in (x, y, scores.detach())]
        loss.backward()
        self.optimizer.step()
        new = (x, y, scores[:n].detach())
        for i in range(n):
            place = self.seen if self.seen < CAPACITY else random.randrange(self.seen + 1)
            if place < CAPACITY:
                for kept, value in zip(self.kept, new, strict=True):
                    kept[place] = value[i]
            self.seen += 1


class PlainEwc(PlainFinetune):
    """A quadratic penalty around the latest task's parameters; its Fisher from gradients of batches, squared."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        total = super().loss(x, y)
        for name, p in self.net.named_parameters() if self.fisher else ():
            total = total + STRENGTH / 2 * (self.fisher[name] * (p - self.anchor[name]) ** 2).sum()
        return total

    def end(self, x: Tensor, y: Tensor, batch: int) -> None:
        named = dict(self.net.named_parameters())
        fisher = {name: torch.zeros_like(p) for name, p in named.items()}
        for part, labels in zip(x.split(batch), y.split(batch), strict=True):
            grads = torch.autograd.grad(F.cross_entropy(self.net(part), labels), list(named.values()))
            for name, g in zip(named, grads, strict=True):
                fisher[name] += g**2 * len(part) / len(x)
        self.fisher = fisher
        self.anchor = {name: p.detach().clone() for name, p in named.items()}


PLAIN: dict[str, type[PlainFinetune]] = {"finetune": PlainFinetune, "er": PlainEr, "ewc": PlainEwc,
                                         "derpp": PlainDerpp}


def plain(case: Case, method: str) -> Contender:
    """A loop over tensors in memory: one permutation a task, one index_select a step."""

    def run() -> Spent:
        torch.manual_seed(0)
        learner, ends, start = PLAIN[method](case.network()), 0.0, now(case.device)
        for x, y in case.tensors["train"]:
            for rows in torch.randperm(len(x), device=x.device).split(case.batch):
                learner.step(x.index_select(0, rows), y.index_select(0, rows))
            before = now(case.device)
            learner.end(x, y, case.batch)
            ends += now(case.device) - before
        return Spent(now(case.device) - start, ends)

    return Contender("plain torch loop", 1, run)


# ---- Avalanche


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No output and no warnings: Avalanche re-enables its deprecation warnings at every call, so none is shown."""
    with (open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null),
          warnings.catch_warnings(), patch.object(warnings, "showwarning", lambda *args, **kwargs: None)):
        warnings.simplefilter("ignore")
        yield


def _evaluator(metrics: bool) -> Any:
    from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
    from avalanche.logging import InteractiveLogger
    from avalanche.training.plugins import EvaluationPlugin

    if not metrics:
        return EvaluationPlugin(loggers=[])
    every = {"minibatch": True, "epoch": True, "experience": True, "stream": True}
    return EvaluationPlugin(accuracy_metrics(**every), loss_metrics(**every),
                            forgetting_metrics(experience=True, stream=True), loggers=[InteractiveLogger()])


def avalanche_benchmark(case: Case) -> Any:
    """The stream as an Avalanche benchmark of tensors."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as dataset

    tasks = {kind: [dataset(x, y, task_labels=0) for x, y in pairs] for kind, pairs in case.tensors.items()}
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(**tasks)))


def avalanche_strategy(case: Case, method: str, metrics: bool, eval_batch: int | None = None) -> Any:
    """A strategy of Avalanche's own with the shared network, optimizer and batch."""
    from avalanche.training import supervised as s
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer

    torch.manual_seed(0)
    net = case.network()
    common = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=RATE),
              "criterion": nn.CrossEntropyLoss(), "train_mb_size": case.batch,
              "train_epochs": 1, "eval_mb_size": eval_batch, "device": case.device, "evaluator": _evaluator(metrics)}
    if method == "er-class-balanced":
        rule = ClassBalancedBuffer(CAPACITY, adaptive_size=True)
        return s.Naive(**common, plugins=[ReplayPlugin(CAPACITY, storage_policy=rule)])
    makers: dict[str, Callable[..., Any]] = {
        "finetune": s.Naive,
        "er": lambda **c: s.Replay(mem_size=CAPACITY, **c),
        "ewc": lambda **c: s.EWC(ewc_lambda=STRENGTH, mode="separate", **c),
        "ewc-online": lambda **c: s.EWC(ewc_lambda=STRENGTH, mode="online", decay_factor=1.0, **c),
        "agem": lambda **c: s.AGEM(patterns_per_exp=1000 // case.tasks, sample_size=256, **c),
        "lwf": lambda **c: s.LwF(alpha=1.0, temperature=2.0, **c),
        "si": lambda **c: s.SynapticIntelligence(si_lambda=1.0, **c),
        "derpp": lambda **c: s.DER(mem_size=CAPACITY, batch_size_mem=case.batch, alpha=0.1, beta=0.5, **c),
    }
    return makers[method](**common)


def avalanche(case: Case, method: str, metrics: bool) -> Contender:
    """Avalanche, one experience a task; class-balanced replay gets one a batch, since it has no other online form."""

    def run() -> Spent:
        with quiet():
            from avalanche.benchmarks import split_online_stream

            strategy, benchmark = avalanche_strategy(case, method, metrics), avalanche_benchmark(case)
            ends: list[float] = []
            strategy._after_training_exp = _timed(strategy._after_training_exp, ends, case.device)
            online = method == "er-class-balanced"
            start = now(case.device)
            for task in benchmark.train_stream:
                for part in split_online_stream([task], case.batch) if online else [task]:
                    strategy.train(part, num_workers=0, pin_memory=False)
            return Spent(now(case.device) - start, sum(ends))

    return Contender("Avalanche, usual metrics" if metrics else "Avalanche, no metrics", 1, run)


def _timed(inner: Callable[..., Any], into: list[float], device: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now(device)
        out = inner(*args, **kwargs)
        into.append(now(device) - start)
        return out

    return timed


# ---- this engine


def lanes_of(case: Case, expression: str, seeds: int, stream: Stream | None = None,
             dtype: str = "float32") -> tuple[Lanes, Budget]:
    """A stack of `seeds` seeds as the engine trains it."""
    options = Options(seeds=seeds, epochs=1, batch_size=case.batch, model=MODELS[case.model],
                      optimizer=f"sgd(lr={RATE})", device=case.device, dtype=dtype)
    experiment = prepare(stream or case.stream(seeds), [expression], options)
    return experiment.learners.lanes(experiment.specs), experiment.learners.budget


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Inside, the engine's evaluation answers 0 at once.

    Raises:
        RuntimeError: where it was never asked, for then what was timed is not what is written about it.
    """
    asked = []

    def nothing(lanes: Lanes, state: Any, tasks: range) -> tuple[Tensor, Tensor]:
        asked.append(1)
        none = torch.zeros(lanes.n, len(tasks), dtype=torch.float64)
        return none, none.clone()

    with patch.object(engine, "evaluate", nothing):
        yield
    if not asked:
        raise RuntimeError("the engine no longer calls engine.evaluate: the benchmark must be adapted")


def beginning(lanes: Lanes) -> dict[str, Any]:
    """The checkpoint from which training begins, so that drawing the parameters is not timed."""
    measured = dict(vars(Measured.nothing(lanes.n, lanes.stream.n_tasks)))
    return {"state": lanes.init(), "task": 0, "step": 0, "measured": measured}


def ours(case: Case, method: str, seeds: int, dtype: str = "float32") -> Contender:
    """`engine.train` without its evaluations: plans, batches, steps, the reading of losses, the ends of tasks."""
    lanes, budget = lanes_of(case, METHODS[method], seeds, dtype=dtype)
    end_task = Lanes.end_task

    def run() -> Spent:
        ends: list[float] = []
        begin = beginning(lanes)
        with unmeasured(), patch.object(Lanes, "end_task", _timed(end_task, ends, case.device)):
            start = now(case.device)
            engine.train(lanes, budget, Rhythm(), begin)
            return Spent(now(case.device) - start, sum(ends))

    return Contender(f"lifelong, S={seeds}", seeds, run)


def trainers(case: Case, method: str, seeds: list[int]) -> tuple[list[Contender], list[str]]:
    """The contenders for a method, and a sentence about each that is left out."""
    left_out = [] if method in PLAIN else [f"{method}: no plain loop was written for it"]
    found = [plain(case, method)] if method in PLAIN else []
    if HAS_AVALANCHE:
        found += [avalanche(case, method, metrics) for metrics in (False, True)]
    else:
        left_out.append(f"{method}: Avalanche skipped, for it is not installed here")
    return found + [ours(case, method, s) for s in seeds], left_out
