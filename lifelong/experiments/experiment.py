"""Experiments: stack, train, store and find the runs of specs on one stream."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lifelong import store
from lifelong.data.stream import Stream
from lifelong.experiments import contract as checks
from lifelong.experiments.learners import Learners
from lifelong.experiments.results import fate, joined, logs, n_lanes, of
from lifelong.learning.engine import Measured, Rhythm, train
from lifelong.learning.imperative import train_object
from lifelong.learning.room import state_bytes, training_bytes
from lifelong.progress import Watcher
from lifelong.provenance import commit, environment
from lifelong.spec import plugins
from lifelong.spec.run import Options, Spec
from lifelong.starts.pretrain import Pretraining
from lifelong.starts.weights import Weights
from lifelong.store.checkpoints import Busy, Workshop
from lifelong.store.files import StoreError
from lifelong.store.records import Run
from lifelong.surroundings import kept
from lifelong.version import __version__

# Bytes of parameters that a processor's cache holds; beyond this, more lanes at once take longer each (reports/speed).
CACHED = 6 * 2**20
WAIT = 1.0  # seconds until a stack that another process trains is looked at again


class Spoilt(RuntimeError):
    """A strategy wrote into the stream that all strategies share."""


@dataclass
class Outcome:
    """The result of an experiment.

    Attributes:
        runs: the runs in the requested order, including those found in the store.
        found: number of runs found in the store.
        failures: a sentence for each run that could not be made.
        damaged: whether one of the failures is a damaged folder of the store.
    """

    runs: list[Run] = field(default_factory=list)
    found: int = 0
    failures: list[str] = field(default_factory=list)
    damaged: bool = False


def run_all(experiments: Iterable[Experiment], root: Path | None = None, watcher: Watcher = Watcher()) -> Outcome:
    """Runs several experiments, one after another, and returns their joint outcome; see `Experiment.run`."""
    total = Outcome()
    for one in experiments:
        outcome = one.run(root, watcher)
        total.runs += outcome.runs
        total.found += outcome.found
        total.failures += outcome.failures
        total.damaged |= outcome.damaged
    return total


@dataclass(frozen=True)
class Experiment:
    """Specs on one stream; made by `prepare`, which checks them before training.

    Attributes:
        specs: complete specs, each once.
        options: options of the runs.
        learners: the learners of the specs.
        named: whether the stream was given as an expression, so that a store can find it again.
        alone: frames of specs that cannot be lanes of one stack although they differ only in real numbers.
    """

    specs: list[Spec]
    options: Options
    learners: Learners
    named: bool = True
    alone: frozenset[str] = frozenset()

    @property
    def stream(self) -> Stream:
        """The stream of all specs."""
        return self.learners.stream

    def run(self, root: Path | None = None, watcher: Watcher = Watcher(), starts: Path | None = None) -> Outcome:
        """Trains the runs that are not in the store at `root`, and returns all requested runs.

        Args:
            root: folder of the store; None stores nothing.
            watcher: receives progress.
            starts: folder of the store of starts, if it is a different one.
        """
        if self.learners.device.type != "cpu":
            watcher.say(self.learners.placed)
        if root:
            self._check_findable()
        outcome = Outcome()
        ready, missing = self._found(root, watcher, outcome)
        missing = self._learned(missing, starts or root, watcher, outcome)
        self._train_all(self._stacks(missing, root), root, watcher, outcome, ready)
        for spec in self.specs:
            made = ready.get(spec.digest)
            if made and spec.tuned and made.about.get("tuned") != spec.tuned:
                ready[spec.digest] = store.note(made, tuned=spec.tuned)
        outcome.runs = [ready[spec.digest] for spec in self.specs if spec.digest in ready]
        return outcome

    def _check_findable(self) -> None:
        """Raises ValueError for objects that a store could not find again."""
        if not self.named:
            raise ValueError(f"the stream {self.stream.name} was given as a Python object, which a store cannot find "
                             "again: name it in an expression, or keep nothing")
        for term in (term for spec in self.specs for term in spec.terms):
            if not term.findable:
                raise ValueError(f"{term.name} was given as a Python object, which a store cannot find again: put it "
                                 "in a file and name it './file.py:name', or keep nothing")

    def _train_all(self, stacks: list[list[Spec]], root: Path | None, watcher: Watcher, outcome: Outcome,
                   ready: dict[str, Run]) -> None:
        """Trains stacks, and adds their runs to `ready`. Stacks that another process trains are waited for."""
        queue = deque(sorted(stacks, key=_of_the_user))  # what could harm others comes last
        spoilt, told, waited = "", set[str](), 0
        while queue:
            stack = queue.popleft()
            if spoilt:
                outcome.failures.append(f"{stack[0].strategy} was not trained, because {spoilt} changed the examples")
                continue
            try:
                # Code of the user may change the working folder, so the store has its full name.
                made = self._elsewhere(stack, root)
                if not made:
                    with kept():
                        made = self._train(stack, root and root.absolute(), watcher)
            except Busy as error:
                if stack[0].digest not in told:
                    watcher.say(f"{stack[0].strategy}: {error}; waiting for it")
                    told.add(stack[0].digest)
                queue.append(stack)
                waited += 1
                if waited >= len(queue):
                    time.sleep(WAIT)
                    waited = 0
                continue
            except Spoilt as error:
                spoilt = stack[0].strategy
                outcome.failures.append(self._failed(stack, error, root))
            except StoreError:
                raise
            except (Exception, SystemExit) as error:
                outcome.failures.append(self._failed(stack, error, root))
            else:
                waited = 0
                for run in made:
                    ready[store.digest(run.spec)] = run
                    watcher.made(run)
            finally:
                watcher.end()

    @staticmethod
    def _elsewhere(stack: list[Spec], root: Path | None) -> list[Run]:
        """The runs of a stack that another process has finished since; none unless all are."""
        try:
            found = [store.find(root, spec.to_json()) for spec in stack] if root else []
        except StoreError:  # a damaged run is left as it is, beside what is trained now
            return []
        return [run for run in found if run] if all(found) else []

    def _found(self, root: Path | None, watcher: Watcher, outcome: Outcome) -> tuple[dict[str, Run], list[Spec]]:
        """The runs in the store at `root`, by digest, and the specs of the missing runs."""
        ready: dict[str, Run] = {}
        missing = []
        for spec in self.specs:
            try:
                run = store.find(root, spec.to_json()) if root else None
            except StoreError as error:
                outcome.failures.append(str(error))
                outcome.damaged = True
                continue
            if run is None:
                missing.append(spec)
            else:
                ready[spec.digest] = run
                outcome.found += 1
                watcher.made(run)
        return ready, missing

    def _learned(self, missing: list[Spec], root: Path | None, watcher: Watcher, outcome: Outcome) -> list[Spec]:
        """Learns the missing starts, and returns the specs whose starts are available."""
        failed = set()
        for name in {str(spec.start_term): None for spec in missing if spec.start_term}:
            start = self.learners.starts[name]
            if isinstance(start, Weights):
                continue
            try:
                self.learners.starts[name] = _learned_once(start, root, watcher, self.options.save_every)
                self.learners.forget_starts()
            except (RuntimeError, ValueError) as error:
                outcome.failures.append(str(error))
                failed.add(name)
        return [spec for spec in missing if str(spec.start_term) not in failed]

    def _stacks(self, missing: list[Spec], root: Path | None) -> list[list[Spec]]:
        """The stacks to train: first the interrupted ones, unchanged, then the others."""
        found = []
        for shop in Workshop.all(root) if root is not None else []:
            keys = {store.digest(spec) for spec in shop.specs}
            if root and all((store.folder(root, spec) / "run.json").exists() for spec in shop.specs):
                shop.close()  # the process was killed after its last run was saved
                continue
            mine = [spec for spec in missing if spec.digest in keys]
            if mine and (stack := self._begun(shop.specs)):
                found.append(stack)
                missing = [spec for spec in missing if spec not in mine]
        groups: dict[str, list[Spec]] = {}
        for spec in missing:
            groups.setdefault(spec.frame, []).append(spec)
        for frame, group in groups.items():
            # In whatever order runs are asked for, the same ones are one stack, which one process at a time trains.
            same = sorted(group, key=lambda spec: spec.digest) if root else group
            found += [[spec] for spec in group] if frame in self.alone else [same]
        return found

    def _begun(self, records: list[Mapping[str, Any]]) -> list[Spec]:
        """The specs of an interrupted stack; empty if its record is not valid, or needs a file not named now.

        A record by itself must not run code.
        """
        own = {spec.digest: spec for spec in self.specs}
        with plugins.trusting(path for spec in self.specs for path in spec.code or {}):
            try:
                stack = [own.get(store.digest(record)) or Spec.from_json(record) for record in records]
                return stack if len({spec.frame for spec in stack}) == 1 else []
            except (ValueError, LookupError, TypeError, OSError, ImportError):
                return []

    def _train(self, stack: list[Spec], root: Path | None, watcher: Watcher) -> list[Run]:
        title = (f"{len(stack)} settings of " if len(stack) > 1 else "") + stack[0].strategy
        if root is None:
            watcher.begin(title)
            return self._runs(stack, self._measure(stack, None, watcher), 0.0, time.monotonic())
        with Workshop(root, [spec.to_json() for spec in stack]).open() as shop:
            watcher.begin(title)
            begun = time.monotonic()
            resume, problems = shop.load()
            for problem in problems:
                watcher.say(problem)
            earlier = resume["seconds"] if resume else 0.0
            here = environment(self.learners.device)
            if resume and resume["environment"] != here:
                watcher.say(f"{title} was begun with {resume['environment']}, goes on with {here}: the last digits may "
                            "differ from an uninterrupted run")

            def save(checkpoint: dict[str, Any]) -> None:
                shop.save({"inner": checkpoint, "environment": here, "seconds": earlier + time.monotonic() - begun})

            measured = self._measure(stack, resume and resume["inner"], watcher, save)
            runs = self._runs(stack, measured, earlier, begun)
            # Existing runs, whole or damaged, are never overwritten.
            new = [run for run in runs if not (store.folder(root, run.spec) / "run.json").exists()]
            saved = [store.load(store.save(root, run)) for run in new]
            shop.close()
        return saved

    def _measure(self, stack: list[Spec], resume: dict[str, Any] | None, watcher: Watcher,
                 save: Callable[[dict[str, Any]], None] | None = None) -> Measured:
        """Trains the lanes of a stack: together if they fit, otherwise in turns; objects one by one."""
        learners, pure = self.learners, self.learners.learner(stack[0]) is not None
        n, n_tasks = len(stack) * self.stream.n_seeds, self.stream.n_tasks
        before = self.stream.fingerprint() if _of_the_user(stack) else []
        most = resume["most"] if resume else self._together(stack, watcher) if pure else 1
        done: list[dict[str, Any]] = list(resume["done"]) if resume else []
        current = resume["current"] if resume else None

        def keep(checkpoint: dict[str, Any]) -> None:
            if save:
                save({"done": done, "current": checkpoint, "most": most})

        def tell(task: int, step: int, steps: int) -> None:
            ended = n_lanes(done)
            watcher.advance((ended + (task + step / steps) / n_tasks * min(most, n - ended)) / n)

        # One rhythm for all turns, so that the seconds between checkpoints are counted across short turns.
        rhythm = Rhythm(self.options.eval_every, self.options.save_every, keep if save else None, tell)
        for first in range(n_lanes(done), n, most):
            part = range(first, min(first + most, n))
            if pure:
                measured = train(learners.lanes(stack, part), learners.budget, rhythm, current)
            else:
                seed = learners.first + first
                measured = train_object(partial(learners.object, stack[0], seed), self.stream, first, seed,
                                        learners.budget, rhythm, learners.device, current, learners.dtype)
            done.append(dict(vars(measured)))
            current = None
        if before != (self.stream.fingerprint() if before else []):
            raise Spoilt("it changed the examples, the labels or the tasks of the stream, which all strategies share: "
                         "make new tensors")
        return joined(done)

    def _together(self, stack: list[Spec], watcher: Watcher) -> int:
        """Number of lanes of a stack trained at once: as many as fit into memory and save time."""
        lanes = self.learners.lanes(stack)
        room, held = self.learners.room, 0 if lanes.host else lanes.stream.x.nbytes
        needed, weights = training_bytes(lanes, self.learners.budget.batch_size)
        most = max(1, min(lanes.n, int((room - held) / needed)))
        fits = most == lanes.n
        if self.learners.device.type == "cpu":
            most = min(most, max(8, CACHED // max(1, weights)))
        turns = -(-lanes.n // most)
        most = -(-lanes.n // turns)
        if not fits:
            watcher.say(f"{lanes.n} lanes take about {lanes.n * needed / 2**30:.2g} GiB, and there is room for "
                        f"{room / 2**30:.2g}: they are trained in {turns} turns of {most} at most")
        return most

    def _runs(self, stack: list[Spec], measured: Measured, earlier: float, begun: float) -> list[Run]:
        n = self.stream.n_seeds
        about = environment(self.learners.device) | {
            "version": __version__, "commit": commit(), "lanes": n * len(stack),
            "seconds": round(earlier + time.monotonic() - begun, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        problem = self.stream.problem
        if problem.score_name != "accuracy":
            about["score"] = {"name": problem.score_name, "percent": problem.percent}
        if self.learners.learner(stack[0]):
            about["state_bytes"] = state_bytes(self.learners.lanes(stack))[0]
        runs = []
        for i, spec in enumerate(stack):
            own = slice(i * n, (i + 1) * n)
            runs.append(Run(spec.to_json(), of(measured, own).accuracy.numpy(), about | fate(measured.diverged[own]),
                            logs(measured, own, self.stream)))
        return runs

    def _failed(self, stack: list[Spec], error: BaseException, root: Path | None) -> str:
        sentence = f"{stack[0].strategy}: {checks.explain(error)}"
        for spec in stack if root else []:
            place = store.folder(root or Path(), spec.to_json()) / "error.txt"
            store.write(place, "".join(traceback.format_exception(error)).encode())
            sentence += f" (traceback: {place})" if spec is stack[0] else ""
        return sentence


def _of_the_user(stack: list[Spec]) -> bool:
    """Whether a stack runs code of the user."""
    return any(term.path or not term.findable for term in (*stack[0].terms, stack[0].optimizer_term))


def _learned_once(start: Pretraining, root: Path | None, watcher: Watcher, save_every: float) -> Weights:
    """A start from the store, or learned now; where another process is learning it, it is waited for."""
    told = False
    while True:
        try:
            return start.found(root) or start.run(root, watcher, save_every)
        except Busy as error:
            if not told:
                watcher.say(f"{error}; waiting for it")
            told = True
            time.sleep(WAIT)
