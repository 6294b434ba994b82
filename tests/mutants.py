"""Faults put into the code on purpose, and the tests that must notice each of them.

    python tests/mutants.py [WORDS...]

puts every fault whose name contains one of WORDS (all, where none are given) by itself into a copy of the checkout, runs
the tests that are meant to notice it, and prints `killed`, or `survived` where they pass. It exits with 1 where a fault
survived or no test was run. A fault is one replacement of a text that occurs exactly once in its file, which
`test_mutants.py` checks in every run of the tests.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("lifelong", "strategies", "streams", "tests", "docs", "reports", "README.md", "setup.cfg", "ruff.toml",
          "CHANGELOG.md")


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        name: what is wrong with the code that has it.
        file: where it is, from the root of the checkout.
        old, new: the text that is there, and the one that takes its place.
        tests: the test file that must notice it; and, for speed, the words of pytest's -k that choose among its tests.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, str]


def occurrences(mutant: Mutant, root: Path = ROOT) -> int:
    """How often the text that a fault replaces is in its file."""
    return (root / mutant.file).read_text().count(mutant.old)


MUTANTS = [
    # ---- streams and pools
    Mutant("what is trained on may be tested on", "lifelong/data/stream.py",
           "if bool(both.any()):", "if False:", ("tests/test_stream.py", "tested_on")),
    Mutant("a stream is not checked", "lifelong/data/stream.py",
           "        self._check_examples()\n        self._check_rows()\n        self._check_units()\n", "",
           ("tests/test_stream.py", "")),
    Mutant("examples of another variant count as other examples", "lifelong/data/stream.py",
           "example = int((asked[asked >= 0] % len(self.y))[both][0])", "example = int(asked[asked >= 0][both][0])",
           ("tests/test_stream.py", "variant")),
    Mutant("a stream may be padded anywhere", "lifelong/data/stream.py",
           "(rows[..., 1:] >= 0) & (rows[..., :-1] < 0)", "(rows[..., 1:] >= 0) & (rows[..., :-1] < -1)",
           ("tests/test_stream.py", "padded")),
    Mutant("a seed without an example of a task goes unnoticed beside one that has some", "lifelong/data/stream.py",
           "(rows >= 0).sum(-1).min(0).values == 0", "(rows >= 0).sum(-1).max(0).values == 0",
           ("tests/test_stream.py", "without_an_example")),
    Mutant("a table of labels may lead to a negative unit", "lifelong/data/stream.py",
           "wrong |= (unit < 0) | (unit >= self.n_classes)", "wrong |= unit >= self.n_classes",
           ("tests/test_stream.py", "table_of_labels")),
    Mutant("channels are shifted before they are scaled", "lifelong/data/pool.py",
           ".mul_(self.scale).add_(self.shift)", ".add_(self.shift).mul_(self.scale)",
           ("tests/test_stream.py", "normalised")),
    Mutant("all units compete in a task-incremental stream", "lifelong/data/pool.py",
           "self.classes.to(self.dtype)) > 0", "self.classes.to(self.dtype)) >= 0",
           ("tests/test_stream.py", "compete")),
    Mutant("an angle is drawn from the next task's range", "lifelong/data/build.py",
           "180 * (draws + torch.arange(tasks)) / tasks", "180 * (draws + 1 + torch.arange(tasks)) / tasks",
           ("tests/test_build.py", "angles")),
    Mutant("the last window of a crop is never cut", "lifelong/data/augment.py",
           "(u * (2 * padding + 1)).long()", "(u * (2 * padding)).long()", ("tests/test_augment.py", "window or crop")),
    Mutant("arrays decoded from another source are taken from the cache", "lifelong/data/files.py",
           'manifest["source"] != source or ', "", ("tests/test_data.py", "")),
    Mutant("the same examples of a class are drawn every time", "lifelong/data/source.py",
           "order = torch.rand(rows.shape, generator=self.g).argsort(1)[:, :count]",
           "order = torch.arange(count).expand(len(rows), count)", ("tests/test_start.py", "way or any or source")),
    # ---- what steps are given
    Mutant("all parts share one block of random numbers", "lifelong/learning/schedule.py",
           'generator=generator(seed, "u", name, task, start)', 'generator=generator(seed, "u", task, start)',
           ("tests/test_schedule.py", "")),
    Mutant("every pass over a task has one order", "lifelong/learning/schedule.py",
           'f"{name}/{e}"', 'f"{name}"', ("tests/test_schedule.py", "shuffled")),
    Mutant("numbers made of neighbouring numbers are alike", "lifelong/randomness.py",
           "* -0x61C8864680B583EB) + _mixed(state)", "* -0x61C8864680B583EB) + state", ("tests/test_randomness.py", "")),
    # ---- the engine
    Mutant("short lanes do not wait", "lifelong/learning/engine.py",
           "state = tree(partial(_where, going), after, before)", "state = after", ("tests/test_engine.py", "wait")),
    Mutant("short lanes do not wait, for the contract", "lifelong/learning/engine.py",
           "state = tree(partial(_where, going), after, before)", "state = after",
           ("tests/test_contract.py", "seeds_do_not_mix and (er or joint)")),
    Mutant("the loss of a lane that waits counts", "lifelong/learning/engine.py",
           "logs = {k: torch.where(going, v, 0.0) for k, v in logs.items()}", "logs = dict(logs)",
           ("tests/test_engine.py", "wait")),
    Mutant("task-incremental learners are asked among all classes", "lifelong/learning/engine.py",
           'told if stream.scenario == "task" else answered', "answered", ("tests/test_engine.py", "told_at_test")),
    # ---- memories and optimizers
    Mutant("ties of a class-balanced memory go to the smaller rank", "lifelong/learning/memory.py",
           "(group.gather(0, order)) + (1 - rank) / 4", "(group.gather(0, order)) + rank / 4",
           ("tests/test_memory.py", "fed_in_batches")),
    Mutant("a ring keeps one example too many of a class", "lifelong/learning/memory.py",
           " < share, seen", " <= share, seen", ("tests/test_memory.py", "ring")),
    Mutant("greedy trades for examples that are like the rest", "lifelong/learning/memory.py",
           "(c < 1) & (", "(", ("tests/test_memory.py", "greedy")),
    Mutant("Adam's eps is inside the root", "lifelong/learning/optim.py",
           "p.sub_(mean / (square.sqrt() / _spread(root, g) + _spread(eps, g)) * _spread(size, g))",
           "p.sub_(mean / (square / _spread(root, g)**2 + _spread(eps, g)).sqrt() * _spread(size, g))",
           ("tests/test_optim.py", "")),
    Mutant("the gradient of a hidden layer goes through ReLU as it is", "lifelong/networks/mlp.py",
           "torch.ops.aten.threshold_backward(grad @ params[weight], inputs[i], 0)", "grad @ params[weight]",
           ("tests/test_engine.py", "derivatives_by_hand")),
    # ---- what is kept
    Mutant("run.json is written before accuracy.npz", "lifelong/store/records.py",
           '[(place / "accuracy.npz", arrays.getvalue()), (place / "run.json", _written(run.spec, about))]',
           '[(place / "run.json", _written(run.spec, about)), (place / "accuracy.npz", arrays.getvalue())]',
           ("tests/test_store.py", "")),
    Mutant("accuracies that were changed are read", "lifelong/store/records.py",
           'if hashlib.sha256(data).hexdigest() != about.get("sha256"):', "if False:",
           ("tests/test_store.py", "damaged_run")),
    Mutant("the checkpoint before the last is not kept", "lifelong/store/checkpoints.py",
           "kept = [self.good] if self.good else self._pointer()[0][:1]", "kept = list[dict[str, str]]()",
           ("tests/test_store.py", "checkpoint")),
    Mutant("a run's default and the same value typed are two runs", "lifelong/spec/expression.py",
           "if k in self.given and self.given[k] != v)", "if k in self.given)", ("tests/test_registry.py", "")),
    # ---- numbers and reports
    Mutant("forgetting counts the last row among the best", "lifelong/metrics.py",
           "np.where(early & np.isnan(a), -np.inf, a)[..., :-1, :]", "np.where(early & np.isnan(a), -np.inf, a)",
           ("tests/test_metrics.py", "forgetting or worked_by_hand")),
    Mutant("sums that are equal on paper are not reached by sign flips", "lifelong/metrics.py",
           "- 1e-9 * np.abs(d).sum()", "+ 1e-9 * np.abs(d).sum()", ("tests/test_metrics.py", "p_value or flips or wins")),
    Mutant("Holm's p-values may fall", "lifelong/metrics.py",
           "np.maximum.accumulate(np.minimum(1.0, np.arange(len(order), 0, -1) * p[order]))",
           "np.minimum(1.0, np.arange(len(order), 0, -1) * p[order])", ("tests/test_metrics.py", "holm")),
    Mutant("runs are paired by place, not by seed", "lifelong/report/statistics.py",
           "a, b = (np.array([values[seed] for seed in both])", "a, b = (np.array(list(values.values())[:len(both)])",
           ("tests/test_statistics.py", "")),
    Mutant("the largest forgetting is the best", "lifelong/report/statistics.py",
           "(min if metric in LOWER else max)(found", "max(found", ("tests/test_statistics.py", "")),
    # ---- tuning and starts
    Mutant("examples that validate are drawn across classes", "lifelong/experiments/held_out.py",
           "own = there[stream.y[there] == one]", "own = there", ("tests/test_tuning.py", "training_part or rotation")),
    Mutant("every seed validates on the same examples", "lifelong/experiments/held_out.py",
           "_drawn(stream, rows, FIRST + s)", "_drawn(stream, rows, FIRST)",
           ("tests/test_tuning.py", "examples_of_its_own")),
    Mutant("the statistics of a start are of one batch", "lifelong/starts/recipe.py",
           "batches: int = 50", "batches: int = 1", ("tests/test_start.py", "statistics_of_a_start")),
    Mutant("every step of a start sees the same episode", "lifelong/starts/recipe.py",
           'generator(seed, "episode", step)', 'generator(seed, "episode")', ("tests/test_start.py", "")),
    Mutant("weights may change their names unnoticed", "lifelong/starts/weights.py",
           'f"{name}{p.dtype}{tuple(p.shape)}"', 'f"{p.dtype}{tuple(p.shape)}"', ("tests/test_start.py", "other_names")),
    Mutant("a gate moves where only the rest should", "lifelong/starts/install.py",
           'not name.startswith("gate")', "True", ("tests/test_install.py", "gate")),
    # ---- the contract
    Mutant("pads may count", "lifelong/experiments/contract.py",
           "if (gap := _difference(*states)) > 1e-12:", "if (gap := _difference(*states)) > 1e12:",
           ("tests/test_contract.py", "catches and pads")),
    Mutant("what is kept outside the state goes unnoticed before a run", "lifelong/experiments/contract.py",
           "        _forgets(lanes, few)\n", "", ("tests/test_contract.py", "outside_its_state_is_refused")),

    # ---- the step, lanes and strategies
    Mutant("states of parts may share memory with parameters", "lifelong/learning/step.py",
           "return value.clone() if value.untyped_storage().data_ptr() in taken else value", "return value",
           ("tests/test_engine.py", "")),
    Mutant("a loss that depends on no parameter is not counted", "lifelong/learning/step.py",
           "return value + free, gradient, {}", "return value, gradient, {}", ("tests/test_engine.py", "diverges")),
    Mutant("kept test examples are of the wrong seed", "lifelong/learning/lanes.py",
           "x, y = x.index_select(0, at), y.index_select(0, at)", "x, y = x[:len(at)], y[:len(at)]",
           ("tests/test_engine.py", "kept_test_examples")),
    Mutant("the gradients are forgotten where a lane's memory is estimated", "lifelong/learning/room.py",
           "return 2 * state + 2 * params +", "return 2 * state + params +", ("tests/test_engine.py", "takes")),
    Mutant("what is frozen has a place in the optimizer's state", "lifelong/learning/composition.py",
           "self.optimizer.init(self.trained(params | more))", "self.optimizer.init(params | more)",
           ("tests/test_engine.py", "freezes")),
]


def copied(place: Path) -> None:
    """Puts what tests need into a folder, importable from there."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, symlinks=True, ignore=shutil.ignore_patterns(
                "__pycache__", "runs", "*.pdf", "report.html"))
        else:
            shutil.copy2(source, place / name)
    for package in ("strategies", "streams"):  # as they are installed; else they would come from the checkout
        (place / "lifelong" / package).symlink_to(place / package)


def noticed(mutant: Mutant, place: Path) -> str:
    """What the tests said of a fault in the copy at `place`: killed, survived, or why nothing can be said."""
    assert occurrences(mutant, place) == 1, f"{mutant.name}: what it replaces is not in {mutant.file} once"
    if code := _passed(place, *mutant.tests):
        return f"not tested: without it pytest ends with {code}"
    file = place / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        code = _tested(place, *mutant.tests)
    finally:
        file.write_text(text)
    return {0: "survived", 1: "killed"}.get(code, f"not tested: pytest ends with {code}")


@functools.cache
def _passed(place: Path, tests: str, words: str) -> int:
    """The exit code of the tests where nothing is wrong."""
    return _tested(place, tests, words)


def _tested(place: Path, tests: str, words: str) -> int:
    """The exit code of pytest in a process of its own, which has torch but nothing of the checkout loaded."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        os.chdir(place)
        sys.path[0] = os.environ["PYTHONPATH"] = str(place)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = int(pytest.main(["-x", "-n", "0", "-p", "no:cacheprovider", f"--rootdir={place}", tests, "-k", words]))
    finally:
        os._exit(code)


def main(words: list[str]) -> int:
    """Tries the faults that are asked for; 0 where all were killed."""
    import torch  # noqa: F401  # once, before the forks

    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for mutant in MUTANTS:
            if not words or any(word in mutant.name for word in words):
                said = noticed(mutant, Path(folder))
                alive += said != "killed"
                print(f"{said:>8}  {mutant.name}", flush=True)
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
