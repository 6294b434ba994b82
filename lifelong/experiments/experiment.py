"""From what was asked for to runs: every setting and seed, stacked, trained, stored, found again."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lifelong import __version__, store
from lifelong.data.augment import NONE
from lifelong.data.stream import Stream
from lifelong.experiments import contract as checks
from lifelong.experiments.compose import compose
from lifelong.learning.engine import Measured, Rhythm, train
from lifelong.learning.imperative import Training, train_object
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.room import free
from lifelong.learning.schedule import Budget
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.networks.precision import in_bfloat16
from lifelong.randomness import generator
from lifelong.spec import expression
from lifelong.spec.run import Options, Setting
from lifelong.starts.install import encoded, installed, only_head
from lifelong.starts.weights import Weights
from lifelong.store.checkpoints import Busy, Workshop
from lifelong.store.files import StoreError
from lifelong.store.records import Run

if TYPE_CHECKING:
    from lifelong.starts.pretrain import Pretraining

from lifelong.progress import Watcher
from lifelong.provenance import commit, environment

# Bytes of parameters that a processor's cache holds: beyond, more lanes at once take longer each (reports/speed).
CACHED = 6 * 2**20


@dataclass
class Outcome:
    """What came of an experiment.

    Attributes:
        runs: in the order asked for, those found among them.
        found: how many had been there already.
        failures: a sentence for each run that could not be made.
        damaged: whether one of these is a damaged folder of the store.
    """

    runs: list[Run] = field(default_factory=list)
    found: int = 0
    failures: list[str] = field(default_factory=list)
    damaged: bool = False


def _line(stream: Stream, net: Net) -> Net:
    """A linear layer on a stream of features, which begins as the output layer of `net`."""
    line = mlp(stream.shape, stream.n_classes, ())

    def init(g: torch.Generator) -> Params:
        params = net.init(g)
        return {name: params[own] for name, own in zip(line.head, net.head, strict=True)}

    return line._replace(init=init)


@dataclass(frozen=True)
class Experiment:
    """Everything that was asked for; made by `prepare`, which checks it before anything is trained."""

    stream: Stream
    settings: list[Setting]
    options: Options
    budget: Budget
    device: torch.device
    named: bool = True  # whether the stream was named in an expression
    starts: dict[str, Weights | Pretraining] = field(default_factory=dict)  # by the start's expression
    first: int = 0  # the number of the stream's first seed
    trying: bool = False  # whether a step is only tried, so that one example's features stand for all
    _installed: dict[str, tuple[Stream, Initialization]] = field(default_factory=dict)

    def run(self, root: Path | None = None, watcher: Watcher = Watcher(), starts: Path | None = None) -> Outcome:
        """Trains what is not in the store at `root` yet, and returns every run asked for.

        Args:
            root: of the store; None keeps nothing.
            watcher: is told of progress.
            starts: of the store that starts are kept in, if it is another.
        """
        if self.device.type != "cpu":
            watcher.say(self.placed)
        outcome, ready = Outcome(), {}
        missing = []
        if root and not self.named:
            raise ValueError(f"the stream {self.stream.name} was given as a Python object, which a store cannot find "
                             "again: name it in an expression, or keep nothing")
        for setting in self.settings if root else []:
            if nameless := [term.name for term in setting.terms if not term.findable]:
                raise ValueError(f"{nameless[0]} was given as a Python object, which a store cannot find again: put it "
                                 "in a file and name it './file.py:name', or keep nothing")
        for setting in self.settings:
            try:
                run = store.find(root, setting.spec) if root else None
            except StoreError as error:
                outcome.failures.append(str(error))
                outcome.damaged = True
                continue
            if run is None:
                missing.append(setting)
            else:
                ready[store.digest(setting.spec)] = run
                outcome.found += 1
                watcher.made(run)
        missing = self._learned(missing, starts or root, watcher, outcome)
        for stack in self._stacks(missing, root):
            try:
                for run in self._train(stack, root, watcher):
                    ready[store.digest(run.spec)] = run
                    watcher.made(run)
            except Busy as error:
                outcome.failures.append(str(error))
            except StoreError:
                raise
            except (Exception, SystemExit) as error:
                outcome.failures.append(self._failed(stack, error, root))
            finally:
                watcher.end()
        for setting in self.settings:
            key = store.digest(setting.spec)
            if key in ready and setting.tuned and ready[key].about.get("tuned") != setting.tuned:
                ready[key] = store.note(ready[key], tuned=setting.tuned)
        outcome.runs = [ready[key] for s in self.settings if (key := store.digest(s.spec)) in ready]
        return outcome

    def _learned(self, missing: list[Setting], root: Path | None, watcher: Watcher,
                 outcome: Outcome) -> list[Setting]:
        """The settings whose starts are there, once those that were not have been learned."""
        failed = set()
        for name in {s.start: None for s in missing if s.start}:
            start = self.starts[name or ""]
            if isinstance(start, Weights):
                continue
            try:
                self.starts[name or ""] = start.found(root) or start.run(root, watcher, self.options.save_every)
                self._installed.clear()
            except (Busy, RuntimeError, ValueError) as error:
                outcome.failures.append(str(error))
                failed.add(name)
        return [s for s in missing if s.start not in failed]

    def _stacks(self, missing: list[Setting], root: Path | None) -> list[list[Setting]]:
        """What is trained at once: first whatever was interrupted, in the stacks that it was begun in."""
        found = []
        for shop in Workshop.all(root) if root is not None else []:
            keys = {store.digest(spec) for spec in shop.specs}
            if root and all((store.folder(root, spec) / "run.json").exists() for spec in shop.specs):
                shop.close()  # it was killed between its last run and its end
                continue
            mine = [s for s in missing if store.digest(s.spec) in keys]
            if mine:
                found.append([self._again(spec, mine[0]) for spec in shop.specs])
                missing = [s for s in missing if s not in mine]
        groups: dict[str, list[Setting]] = {}
        for setting in missing:
            groups.setdefault(setting.frame, []).append(setting)
        for group in groups.values():
            found += [group] if len(group) == 1 or self._fits(group) else [[setting] for setting in group]
        return found

    def _again(self, spec: Mapping[str, Any], like: Setting) -> Setting:
        return Setting(expression.parse(spec["strategy"]), like.model,
                       expression.parse(spec["optimizer"], "optimizers")[0], spec)

    def _fits(self, group: list[Setting]) -> bool:
        """Whether settings that differ in real numbers can be lanes; one that branches on such a number cannot."""
        if not isinstance(self.make(group[0])({}), Learner):
            return False
        try:
            checks.probe(self.lanes(group), self.budget)
        except checks.Impure:
            return False
        return True

    def installed(self, setting: Setting) -> tuple[Stream, Initialization | None]:
        """The stream as a setting learns from it, and the start that it goes on from, if that was learned.

        Where nothing of a start moves but the output layer, every example's features are computed once, and the stream
        is one of features.
        """
        if setting.start is None:
            return self.stream, None
        # Augmented images have other features each time.
        pixels = self.stream.augment != NONE or any(getattr(thing, "pixels", False) for thing in self._parts(setting))
        key = f"{setting.start} {pixels}"
        if key not in self._installed:
            self._installed[key] = self._install(setting, pixels)
        return self._installed[key]

    def _parts(self, setting: Setting) -> list[Any]:
        context = {"shape": self.stream.shape, "n_classes": self.stream.n_classes, "n_tasks": self.stream.n_tasks,
                   "net": mlp(self.stream.shape, self.stream.n_classes)}
        return [expression.build(term, context) for term in setting.terms if not term.learned]

    @property
    def room(self) -> float:
        """Bytes that training may take on the device."""
        return 0.8 * free(self.device) if self.options.memory is None else self.options.memory * 2**30

    @cached_property
    def host(self) -> bool:
        """Whether the examples stay in the host's memory, for half of the room on the device does not hold them."""
        return self.device.type != "cpu" and self.stream.x.nbytes > self.room / 2

    @property
    def placed(self) -> str:
        """A sentence on where the examples are."""
        what = f"{len(self.stream.x):,} examples, {self.stream.x.nbytes / 2**30:.2g} GiB,"
        if not self.host:
            return f"{what} are on the {self.device.type} device"
        return (f"{what} stay in the host's memory, for the {self.device.type} device has room for "
                f"{self.room / 2**30:.2g}: batches are gathered ahead")

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, examples and losses."""
        return torch.float64 if self.options.dtype == "float64" else torch.float32

    def _precise(self, net: Net) -> Net:
        return in_bfloat16(net) if self.options.dtype == "bfloat16" else net

    def _install(self, setting: Setting, pixels: bool) -> tuple[Stream, Initialization]:
        stream, start = self.stream, self.starts[setting.start or ""]
        weights = start if isinstance(start, Weights) else start.untrained()
        use = next(term for term in setting.terms if term.learned).resolved()
        net = installed(weights, stream.shape, stream.n_classes, stream.scenario, adapt=use["adapt"],
                        head=use["head"], length=use["length"], power=use["power"], quarter_turns=use["quarter_turns"],
                        device=self.device, dtype=self.dtype)
        if only_head(net) and stream.warp is None and not pixels:
            rows = torch.cat([stream.train.flatten(), stream.test.flatten()])
            used = torch.unique(rows[rows >= 0] % len(stream.y))[:1 if self.trying else None]
            x = encoded(net, stream.pool(self.device, self.dtype, self.host), used).cpu()
            stream = replace(stream, x=x, shape=tuple(x.shape[1:]), scale=1.0, mean=None, std=None)
            net = _line(stream, net)
        beside = set(weights.params) - set(shapes_of(weights.net(stream.n_classes)))
        if use["length"] or use["power"] != 1 or use["quarter_turns"] != 1:
            beside = set()  # it was learned about the features as they are
        return stream, Initialization(lambda net, seed: net.init(generator(seed, "init")), net=self._precise(net),
                                      learned={k: weights.params[k].to(self.device) for k in sorted(beside)})

    def context(self, setting: Setting, seed: int = 0) -> dict[str, Any]:
        """What a factory may ask for by name."""
        stream, start = self.installed(setting)
        facts = {"shape": stream.shape, "n_classes": stream.n_classes, "n_tasks": stream.n_tasks}
        if start:
            training = Training(setting.optimizer, self.budget, stream.scenario == "task", self.dtype)
            return facts | {"net": start.net, "start": start, "learned": start.learned, "seed": seed,
                            "device": self.device, "training": training}
        model = expression.build(setting.model, facts)
        if isinstance(model, nn.Module):
            examples = torch.randn(3, *stream.shape, generator=generator("examples"))
            model = from_module(lambda: expression.build(setting.model, facts), examples)
        if not isinstance(model, Net):
            raise ValueError(f"{setting.model.name} makes a {type(model).__name__}, not a torch module")
        if model.still and model.train is None:
            raise ValueError(f"{setting.model}: {model.still[0]} is moved by no gradient, and the network does not say "
                             "by what: give its Net a `train`, or use norm='group'")
        training = Training(setting.optimizer, self.budget, self.stream.scenario == "task", self.dtype)
        return facts | {"net": self._precise(model), "seed": seed, "device": self.device, "training": training}

    def make(self, setting: Setting, seed: int = 0) -> Callable[[Mapping[Any, Any]], Any]:
        """(values of real hyper-parameters) -> the learner of a setting."""
        context = self.context(setting, seed)

        def make(hyper: Mapping[Any, Any]) -> Any:
            outer = {name: value for (place, name), value in hyper.items() if place == "optimizer"}
            inner = {key: value for key, value in hyper.items() if key[0] != "optimizer"}
            return compose(setting.terms, context, expression.build(setting.optimizer, {}, **outer), inner)

        return make

    def lanes(self, stack: list[Setting], part: slice = slice(None)) -> Lanes:
        """Every seed of every setting of a stack, setting after setting; or a part of them."""
        seeds = range(self.first, self.first + self.stream.n_seeds)
        values = {key: [setting.reals[key] for setting in stack] for key in stack[0].reals}
        differ = {key: [v for v in value for _ in seeds] for key, value in values.items() if len(set(value)) > 1}
        at = [s for _ in stack for s in range(len(seeds))][part]
        stream = self.installed(stack[0])[0]
        return Lanes(stream, seeds, at, self.make(stack[0]), {k: v[part] for k, v in differ.items()}, self.device,
                     self.dtype, stacked=len(at) > 1, host=self.host and stream.x is self.stream.x)

    def _train(self, stack: list[Setting], root: Path | None, watcher: Watcher) -> list[Run]:
        title = (f"{len(stack)} settings of " if len(stack) > 1 else "") + stack[0].spec["strategy"]
        watcher.begin(title)
        if root is None:
            return self._runs(stack, self._measure(stack, None, watcher), 0.0, time.monotonic())
        with Workshop(root, [setting.spec for setting in stack]).open() as shop:
            begun = time.monotonic()
            resume, problems = shop.load()
            for problem in problems:
                watcher.say(problem)
            earlier = resume["seconds"] if resume else 0.0
            if resume and resume["environment"] != environment(self.device):
                watcher.say(f"{title} was begun with {resume['environment']}, goes on with "
                            f"{environment(self.device)}: the last digits may differ from an uninterrupted run")

            def save(checkpoint: dict[str, Any]) -> None:
                shop.save({"inner": checkpoint, "environment": environment(self.device),
                           "seconds": earlier + time.monotonic() - begun})

            measured = self._measure(stack, resume and resume["inner"], watcher, save)
            runs = self._runs(stack, measured, earlier, begun)
            # What was there before, whole or damaged, is never written over.
            new = [run for run in runs if not (store.folder(root, run.spec) / "run.json").exists()]
            kept = [store.load(store.save(root, run)) for run in new]
            shop.close()
        return kept

    def _measure(self, stack: list[Setting], resume: dict[str, Any] | None, watcher: Watcher,
                 save: Callable[[dict[str, Any]], None] | None = None) -> Measured:
        """Trains a stack's lanes: together where they fit, else in turn; objects one by one."""
        pure = isinstance(self.make(stack[0])({}), Learner)
        n, n_tasks = len(stack) * self.stream.n_seeds, self.stream.n_tasks
        most = resume["most"] if resume else self._together(stack, watcher) if pure else 1
        done: list[dict[str, Any]] = list(resume["done"]) if resume else []
        current = resume["current"] if resume else None

        def keep(checkpoint: dict[str, Any]) -> None:
            if save:
                save({"done": done, "current": checkpoint, "most": most})

        def tell(task: int, step: int, steps: int) -> None:
            ended = _lanes(done)
            watcher.advance((ended + (task + step / steps) / n_tasks * min(most, n - ended)) / n)

        # One for all turns: where each is shorter than the seconds between checkpoints, these are counted on.
        rhythm = Rhythm(self.options.eval_every, self.options.save_every, keep if save else None, tell)
        for first in range(_lanes(done), n, most):
            part = slice(first, min(first + most, n))
            if pure:
                measured = train(self.lanes(stack, part), self.budget, rhythm, current)
            else:
                seed = self.first + first
                measured = train_object(partial(self.make(stack[0], seed), {}), self.stream, first, seed, self.budget,
                                        rhythm, self.device, current, self.dtype)
            done.append(dict(vars(measured)))
            current = None
        return _joined(done)

    def _together(self, stack: list[Setting], watcher: Watcher) -> int:
        """How many lanes of a stack are trained at once: as fit into memory, and pay."""
        lanes = self.lanes(stack)
        room, held = self.room, 0 if lanes.host else lanes.stream.x.nbytes
        needed, weights = lanes.needed(self.budget.batch_size)
        most = max(1, min(lanes.n, int((room - held) / needed)))
        fits = most == lanes.n
        if self.device.type == "cpu":
            most = min(most, max(8, CACHED // max(1, weights)))
        turns = -(-lanes.n // most)
        most = -(-lanes.n // turns)
        if not fits:
            watcher.say(f"{lanes.n} lanes take about {lanes.n * needed / 2**30:.2g} GiB, and there is room for "
                        f"{room / 2**30:.2g}: they are trained in {turns} turns of {most} at most")
        return most

    def _runs(self, stack: list[Setting], measured: Measured, earlier: float, begun: float) -> list[Run]:
        n = self.stream.n_seeds
        about = environment(self.device) | {
            "version": __version__, "commit": commit(), "lanes": n * len(stack),
            "seconds": round(earlier + time.monotonic() - begun, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if isinstance(self.make(stack[0])({}), Learner):
            about["state_bytes"] = self.lanes(stack).size()[0]
        runs = []
        for i, setting in enumerate(stack):
            own = slice(i * n, (i + 1) * n)
            tables = replace(measured, values=measured.values[:, own], loss=measured.loss[own])
            logs = {"loss": measured.loss[own].numpy(), "steps": measured.steps[own].numpy()}
            several = self.stream.scenario == "class" and bool((self.stream.classes.sum(-1) > 1).any())
            if several and not self.stream.ordered:  # the tasks of an ordered stream are where it was measured
                logs["accuracy_task"] = tables.told.numpy()
            if self.stream.retention:
                logs["accuracy_train"] = tables.retained.numpy()
            if len(measured.curve):
                logs |= {"curve": measured.curve[:, own].transpose(0, 1).numpy(),
                         "curve_step": measured.curve_step.numpy()}
            fate = _status(measured.diverged[own])
            runs.append(Run(setting.spec, tables.accuracy.numpy(), about | fate, logs))
        return runs

    def _failed(self, stack: list[Setting], error: BaseException, root: Path | None) -> str:
        sentence = f"{stack[0].spec['strategy']}: {checks.explain(error)}"
        for setting in stack if root else []:
            place = store.folder(root or Path(), setting.spec) / "error.txt"
            store.write(place, "".join(traceback.format_exception(error)).encode())
            sentence += f" (traceback: {place})" if setting is stack[0] else ""
        return sentence


def _lanes(parts: list[dict[str, Any]]) -> int:
    """How many lanes the parts of a stack have together."""
    return sum(len(part["loss"]) for part in parts)


def _joined(parts: list[dict[str, Any]]) -> Measured:
    """What was measured of lanes that were trained in turn."""
    merged = {k: torch.cat([part[k] for part in parts]) for k in ("loss", "diverged", "steps")}
    merged["place"] = max((part["place"] for part in parts), key=len)  # where all lanes diverged there are fewer
    merged["values"] = torch.cat([F.pad(part["values"], (0, len(merged["place"]) - len(part["place"])),
                                        value=torch.nan) for part in parts], 1)
    places = sorted({tuple(place) for part in parts for place in part["curve_step"].tolist()})
    n, n_tasks = merged["loss"].shape
    curve, first = torch.full((len(places), n, n_tasks), torch.nan, dtype=torch.float64), 0
    for part in parts:  # one whose tasks are shorter has fewer points
        last = first + len(part["loss"])
        for point, place in zip(part["curve"], part["curve_step"].tolist(), strict=True):
            curve[places.index(tuple(place)), first:last] = point
        first = last
    return Measured(**merged, curve=curve, curve_step=torch.tensor(places, dtype=torch.int64).view(-1, 2))


def _status(diverged: torch.Tensor) -> dict[str, Any]:
    bad = {seed: at for seed, at in enumerate(diverged.tolist()) if at[0] >= 0}
    if not bad:
        return {"status": "done", "note": ""}
    where = "; ".join(f"seed {seed} at task {task}, step {step}" for seed, (task, step) in bad.items())
    note = f"loss or scores not finite: {where}; a smaller step size or strength may help"
    return {"status": "diverged", "note": note}
