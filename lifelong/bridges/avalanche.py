"""The bridge to Avalanche 0.6.0: its strategies as learners, its benchmarks as streams, and streams as its benchmarks.

No other module imports Avalanche, and this module is imported only when it is used.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import pkgutil
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifelong.data.stream import Stream
from lifelong.learning import optim
from lifelong.learning.imperative import Training
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.spec import catalogue, expression
from lifelong.spec.run import OptionError


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Drops the warnings of Avalanche's own code in a block; issues all other warnings when the block ends.

    Avalanche's deprecated functions put their own filter before all others at every call, so no filter silences them.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    for w in heard:
        if not w.filename.startswith(os.path.join(os.path.dirname(avalanche.__file__), "")):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its direct and indirect imports warn too
        import avalanche
        from avalanche.benchmarks import CLScenario, DatasetExperience, EagerCLStream
        from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as _dataset
        from avalanche.core import SupervisedPlugin
        from avalanche.models import MultiTaskModule, SCRModel
        from avalanche.models.base_model import BaseModel
        from avalanche.training import supervised
        from avalanche.training.plugins import EvaluationPlugin, RWalkPlugin
        from avalanche.training.templates.base import BaseTemplate
except ImportError as error:
    raise ImportError(f"this needs Avalanche, which is not installed here ({error}): pip install "
                      "\"lifelong[avalanche]\"") from error

VERSION: str = avalanche.__version__

# ---- tasks as experiences of Avalanche


class Experience(DatasetExperience):  # type: ignore[misc]
    """A task in the form that old and new strategies need: label, classes, benchmark, and a replaceable dataset.

    Its classes are a list and its items (x, int, int), because LwF, DER, MER, iCaRL and La-MAML accept nothing else.
    """

    def __init__(self, x: Tensor, y: Tensor, number: int, label: int, units: Sequence[int],
                 seen: Sequence[int]) -> None:
        super().__init__(dataset=_dataset(x, y, task_labels=label), current_experience=number)
        self.benchmark: Any = None
        self.task_label, self.task_labels = label, [label]
        self.classes_in_this_experience, self.previous_classes = list(units), list(seen)
        self.classes_seen_so_far = sorted({*seen, *units})

    @property
    def dataset(self) -> Any:
        """The training data, items (x, y, task label)."""
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        self._dataset = value


def to_benchmark(stream: Stream, seed: int = 0) -> Any:
    """The stream of one seed as an Avalanche benchmark with `train_stream` and `test_stream`, one experience per task.

    Task labels are the task numbers in task-incremental streams, else 0. The benchmark works with all strategies and
    metrics of Avalanche that take tensors. It has `n_classes_per_exp` and `classes_order`, which iCaRL reads, if no
    class is in two tasks. The examples of all tasks are fetched at once, so warped streams take T times the memory of
    the pool.

    Args:
        stream: the stream.
        seed: index of the seed in the stream, 0..S-1.

    Raises:
        ValueError: the stream has no such seed.
    """
    if not 0 <= seed < stream.n_seeds:
        raise ValueError(f"{stream.name} has seeds 0 to {stream.n_seeds - 1}, got {seed}")
    pool = stream.pool().lane({name: value[0] for name, value in stream.lanes([seed]).items()})
    own = [units.nonzero().flatten().tolist() for units in stream.classes[seed]]

    def experience(task: int, rows: Tensor) -> Experience:
        x, y = pool.fetch(rows[rows >= 0])
        seen = sorted({unit for earlier in own[:task] for unit in earlier})
        return Experience(x, y, task, task if stream.scenario == "task" else 0, y.unique().tolist(), seen)

    streams = [EagerCLStream(kind, [experience(task, rows) for task, rows in enumerate(tasks)])
               for kind, tasks in (("train", stream.train[seed]), ("test", stream.test[seed]))]
    benchmark = CLScenario(streams)
    benchmark.n_classes = stream.n_classes
    if int(stream.classes[seed].sum()) == stream.n_classes:
        benchmark.n_classes_per_exp = [len(units) for units in own]
        benchmark.classes_order = [unit for units in own for unit in units]
    for one in streams:
        one.benchmark = benchmark
        for each in one:
            each.benchmark = benchmark
    return benchmark


# ---- benchmarks of Avalanche as streams


def from_benchmark(benchmark: Any, seeds: int | Sequence[int] = 1, name: str = "avalanche") -> Stream:
    """An Avalanche benchmark of labelled tensors as a stream with one task per experience of its `train_stream`.

    Every example is stored once, after its evaluation transform. Classes are renumbered without gaps. If the task
    labels of the experiences differ, the stream is task-incremental, with separate output units for each label;
    otherwise it is domain-incremental if all tasks have the same classes, and else class-incremental. If `test_stream`
    is one experience, each task is tested on its examples of the task's training classes.

    Args:
        benchmark: the benchmark, with `train_stream` and `test_stream`.
        seeds: number of seeds, or the seeds; they share the benchmark's classes and order and differ in all else.
        name: name of the stream.

    Raises:
        ValueError: examples are not tensors of one shape, an experience has several task labels, or there is neither
            one test experience nor one for each task.
    """
    n_seeds = seeds if isinstance(seeds, int) else len(seeds)
    with _calm(), torch.random.fork_rng(devices=[]):
        train, test = ([_examples(e, f"{name}: {kind} experience {i}") for i, e in enumerate(one)]
                       for kind, one in (("train", benchmark.train_stream), ("test", benchmark.test_stream)))
    told = len({label for _, _, label in train}) > 1
    _check_experiences(name, train, test, told)
    n, whole = len(train), len(test) < len(train)
    if whole:
        x, y, label = test[0]
        known = torch.isin(y, torch.cat([y for _, y, _ in train]))
        test = [(x[known], y[known], label)]

    pairs = [[(label if told else 0, c) for c in y.tolist()] for _, y, label in [*train, *test]]
    unit = {pair: i for i, pair in enumerate(sorted({pair for one in pairs for pair in one}))}
    units = [torch.tensor([unit[pair] for pair in one]) for one in pairs]
    places = list(torch.arange(sum(map(len, units))).split([len(one) for one in units]))
    classes = torch.zeros(n, len(unit), dtype=torch.bool)
    asked = []
    for task in range(n):
        at = n if whole else n + task
        classes[task, units[task] if whole else torch.cat([units[task], units[at]])] = True
        asked.append(places[at][classes[task][units[at]]])
    train_rows, test_rows = (nn.utils.rnn.pad_sequence(own, True, -1).expand(n_seeds, -1, -1)
                             for own in (places[:n], asked))
    x = torch.cat([x for x, _, _ in [*train, *test]])
    scenario = "task" if told else "domain" if bool((classes == classes[:1]).all()) else "class"
    return Stream(name, x, torch.cat(units), train_rows, test_rows, classes.expand(n_seeds, -1, -1),
                  tuple(x.shape[1:]), scenario)


def _check_experiences(name: str, train: list[tuple[Tensor, Tensor, int]], test: list[tuple[Tensor, Tensor, int]],
                       told: bool) -> None:
    if len(test) not in (1, len(train)):
        raise ValueError(f"{name}: there are {len(train)} train and {len(test)} test experiences; one test experience "
                         "is needed, or one for each of train")
    if told and [label for _, _, label in train] != [label for _, _, label in test]:
        raise ValueError(f"{name}: the tasks have labels of their own, so test experiences need the same, in the same "
                         "order")
    if len({tuple(x.shape[1:]) for x, _, _ in [*train, *test]}) > 1:
        raise ValueError(f"{name}: the experiences' examples differ in shape")


def _examples(experience: Any, name: str) -> tuple[Tensor, Tensor, int]:
    """The examples, classes and task label of an experience."""
    labels = sorted(set(getattr(experience, "task_labels", None) or [0]))
    if len(labels) > 1:
        raise ValueError(f"{name} has several task labels: {', '.join(map(str, labels))}")
    data = experience.dataset.eval()
    items = [data[i] for i in range(len(data))]
    if not items or not all(isinstance(item[0], Tensor) and item[0].shape == items[0][0].shape for item in items):
        raise ValueError(f"{name}: examples must be tensors of one shape; give the benchmark a transform that makes "
                         "them, such as torchvision's ToTensor")
    return torch.stack([item[0] for item in items]), torch.tensor([int(item[1]) for item in items]), int(labels[0])


# ---- strategies of Avalanche as learners

_REFUSED = {
    "AETraining": "it trains an autoencoder, not a classifier",
    "AR1": "it brings a network of its own (MobileNet)",
    "BiC": "Avalanche 0.6.0 gives torch's MultiStepLR an argument (verbose) that torch no longer takes",
    "ExpertGateStrategy": "it needs a network of its own (a pretrained AlexNet for each task)",
    "JointTraining": "it must be given all tasks at once; `joint` does the same here",
    "LearningToPrompt": "it brings a network of its own (a pretrained vision transformer)",
    "ObjectDetectionTemplate": "it trains a detector, not a classifier",
    "PNNStrategy": "it needs a network of its own (progressive columns)",
    "PackNet": "it prunes torch layers, and a network here is a function of its parameters",
    "VAETraining": "it trains an autoencoder, not a classifier",
}
# These strategies compute scores without giving the network the task, so all units compete in training.
_BLIND = {"CoPE", "DER", "FeatureReplay", "GSS_greedy", "GenerativeReplay"}
# The arguments that the bridge provides; all other arguments of a strategy that are plain values are its
# hyper-parameters.
_FILLED = {"self", "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "eval_mb_size", "device",
           "plugins", "evaluator", "eval_every", "peval_mode", "feature_extractor", "classifier", "slda_model",
           "input_size", "num_classes", "n_classes", "p_size", "buffer_transform", "cwr_layer_name", "last_layer_name"}


@cache
def classes() -> Mapping[str, type]:
    """Avalanche's strategies by name; LaMAML is the second of its two versions, which needs no further package.

    RWalk, which is only a plugin in Avalanche, is that plugin on Naive.
    """
    found: dict[str, type] = {"RWalk": RWalkPlugin}
    with _calm():
        for file in pkgutil.iter_modules(supervised.__path__):
            module = importlib.import_module(f"{supervised.__name__}.{file.name}")
            found |= {name: value for name, value in vars(module).items() if inspect.isclass(value)
                      and issubclass(value, BaseTemplate) and value.__module__ == module.__name__}
    return found


@cache
def factory(name: str) -> Callable[..., Any]:
    """The factory of learners of Avalanche's strategy `name`; its parameters are the strategy's hyper-parameters.

    Raises:
        LookupError: unknown name; the message suggests the nearest ones.
        ValueError: the strategy cannot be run here; the message gives the reason.
    """
    known = classes()
    if name not in known:
        near = catalogue.nearest(name, known)
        raise LookupError(f"Avalanche {VERSION} has no strategy called {name!r}; "
                          + (f"did you mean {near}?" if near else f"it has {', '.join(sorted(known))}"))
    if name in _REFUSED:
        raise ValueError(f"avalanche.{name} cannot be run here: {_REFUSED[name]}")
    strategy = known[name]
    settable, needed = _hyper_parameters(strategy)

    def make(net: Net, shape: tuple[int, ...], n_classes: int, n_tasks: int, seed: int, device: torch.device,
             training: Training, online: bool = False, **hyper: Any) -> Learner:
        missing = [key for key in needed if hyper.get(key) is None]
        if missing:
            raise ValueError(f"avalanche.{name} needs a value for {' and '.join(missing)}: avalanche.{name}"
                             f"({', '.join(f'{key}=...' for key in missing)})")
        if net.still:
            raise ValueError(f"avalanche.{name} trains what a gradient moves, which the statistics of batch "
                             "normalisation are not: use a network with norm='group'")
        if net.draws:
            raise ValueError(f"avalanche.{name} trains a network as it answers, without dropout: use a network "
                             "without dropout")
        return Learner(strategy, hyper, net, shape, n_classes, n_tasks, seed, device, training, online)

    context = [p for p in inspect.signature(make).parameters.values() if p.kind is not p.VAR_KEYWORD]
    every = [p.replace(kind=p.KEYWORD_ONLY) for p in (*context, *settable)]
    make.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    make.__name__ = f"avalanche.{name}"
    required = f"    {', '.join(needed)}: required; there is no default.\n" if needed else ""
    make.__doc__ = (f"{name} of Avalanche {VERSION}.\n\nArgs:\n    online: whether every batch is an experience, "
                    f"instead of every task.\n{required}\nThe docstring in Avalanche:\n\n"
                    f"{inspect.getdoc(strategy) or ''}")
    return make


def _hyper_parameters(strategy: type) -> tuple[list[inspect.Parameter], list[str]]:
    """A strategy's hyper-parameters that are plain values, and the names of those without a default."""
    found, needed = [], []
    for key, p in inspect.signature(strategy.__init__).parameters.items():  # type: ignore[misc]
        kind = _kind(p)
        if key in _FILLED or p.kind is p.VAR_KEYWORD or kind is None:
            continue
        if p.default is p.empty:
            needed.append(key)
        default = None if p.default is p.empty else p.default
        found.append(inspect.Parameter(key, p.KEYWORD_ONLY, default=default, annotation=kind))
    return found, needed


def _kind(p: inspect.Parameter) -> str | None:
    """The type of a parameter's default, or else of its annotation, as the registry writes it; None if not plain."""
    plain = {bool: "bool", int: "int", float: "float", str: "str"}
    if type(p.default) in plain:
        # An integer default may have a float annotation; otherwise the type of the default counts.
        return "float" if p.annotation is float else plain[type(p.default)]
    choices = [plain[c] for c in (typing.get_args(p.annotation) or (p.annotation,)) if c in plain]
    return f"{choices[0]} | None" if choices and p.default is None else choices[0] if choices else None


class _Parameters(nn.Module):
    """The parameters of a network under their own names, and a function of them."""

    def __init__(self, params: Params, apply: Callable[[Params, Tensor], Tensor]) -> None:
        super().__init__()
        self._apply_net = apply
        for name, value in params.items():
            *path, leaf = name.split(".")
            home: nn.Module = self
            for word in path:
                if word not in home._modules:
                    home.add_module(word, nn.Module())
                home = home.get_submodule(word)
            home.register_parameter(leaf, nn.Parameter(value.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_net(dict(self.named_parameters()), x)


class Network(nn.Module, BaseModel):  # type: ignore[misc]
    """A `Net` as a torch module, initialised as the learners of this project with the same seed.

    If the scores are a linear layer of `Net.features`, that layer is the module `classifier` and the layers below it
    are `features`; otherwise the whole network is `classifier` and `features` is None.
    """

    def __init__(self, net: Net, shape: tuple[int, ...], seed: int) -> None:
        super().__init__()
        params = net.init(generator(seed, "init"))
        head = [params[name] for name in net.head]
        self.features: nn.Module | None = None
        self.classifier: nn.Module = _Parameters(params, net.apply)
        self.width = 0
        if net.features is None or [p.dim() for p in head] != [2, 1]:
            return
        x = torch.rand(2, *shape, generator=generator("bridge"))
        hidden = net.features(params, x)
        if hidden.dim() == 2 and torch.allclose(net.apply(params, x), F.linear(hidden, *head), 1e-4, 1e-5):
            self.width = hidden.shape[1]
            self.features = _Parameters({k: p for k, p in params.items() if k not in net.head}, net.features)
            self.classifier = nn.Linear(self.width, len(head[0]))
            self.classifier.load_state_dict({"weight": head[0], "bias": head[1]})

    def get_features(self, x: Tensor) -> Tensor:
        """The last hidden layer, under the name that LFL uses."""
        if self.features is None:
            raise ValueError("the network does not say what its last hidden layer is: give it a method features(x)")
        return self.features(x)

    def forward(self, x: Tensor, task_labels: Any = None) -> Any:
        """Scores [B, C]; task labels are ignored."""
        return self.classifier(x if self.features is None else self.features(x))


class TaskNetwork(Network, MultiTaskModule):  # type: ignore[misc]
    """A `Network` that is given the task: for a task that was learned, only its own units compete.

    All other units are set to -1000, as in Avalanche's multi-head classifiers.
    """

    def __init__(self, net: Net, shape: tuple[int, ...], seed: int, n_tasks: int, n_classes: int) -> None:
        super().__init__(net, shape, seed)
        self.units: Tensor
        self.known_train_tasks_labels: set[int] = set()
        self.register_buffer("units", torch.zeros(n_tasks, n_classes, dtype=torch.bool))

    def adaptation(self, experience: Any) -> None:
        """Records the units of a task before it is learned."""
        if self.training:
            self.known_train_tasks_labels.add(experience.task_label)
            self.units[experience.task_label, experience.classes_in_this_experience] = True

    def forward(self, x: Tensor, task_labels: Any = None) -> Any:
        """Scores [B, C] of examples with task labels; without labels, {task: scores} for the learned tasks."""
        if task_labels is None:
            return {task: self.forward_single_task(x, task) for task in sorted(self.known_train_tasks_labels)}
        own = self.units[task_labels]
        return super().forward(x).masked_fill(~own & own.any(-1, keepdim=True), -1000.0)

    def forward_single_task(self, x: Tensor, task_label: int) -> Any:
        """Scores [B, C] of examples of one task."""
        return self.forward(x, torch.full((len(x),), task_label, device=x.device))


class _Steps(SupervisedPlugin):  # type: ignore[misc]
    """Reports the loss of every step, and ends the training of a task after `most` steps unless that is None."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most, self.done, self.tell = most, 0, lambda loss: None

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.done += 1
        self.tell(strategy.loss)
        if self.over:
            strategy.stop_training()

    @property
    def over(self) -> bool:
        """Whether all steps of the task are done."""
        return self.most is not None and self.done >= self.most


class _Scores(SupervisedPlugin):  # type: ignore[misc]
    """Stores the scores of a strategy after all its own plugins have run."""

    def after_eval_exp(self, strategy: Any, **_: Any) -> None:
        self.answer = strategy.mb_output.detach()


class Learner:
    """An Avalanche strategy as an object that learns a whole task at a time, with its own loop.

    A task is one experience or, with `online`, one experience per batch, as in Avalanche's `split_online_stream`.
    """

    classes = True

    def __init__(self, strategy: type, hyper: Mapping[str, Any], net: Net, shape: tuple[int, ...], n_classes: int,
                 n_tasks: int, seed: int, device: torch.device, training: Training, online: bool = False) -> None:
        self.name, self.n_classes, self.told, self.device = strategy.__name__, n_classes, training.told, device
        if training.dtype != torch.float32:
            raise OptionError(f"avalanche.{self.name} is trained in float32: leave dtype out", "dtype")
        self.batch_size, self.online = training.budget.batch_size, online
        self.network = (TaskNetwork(net, shape, seed, n_tasks, n_classes) if training.told and self.name not in _BLIND
                        else Network(net, shape, seed)).to(device)
        self.steps, self.scores = _Steps(training.budget.steps), _Scores()
        self.untrained: nn.Module | None = copy.deepcopy(self.network)
        self.seen: list[int] = []
        self.sizes: list[int] = []
        plugins: list[Any] = [self.steps, self.scores]
        try:
            with _calm():
                if issubclass(strategy, SupervisedPlugin):
                    plugins.append(strategy(**hyper))
                    strategy, hyper = supervised.Naive, {}
                self.strategy = strategy(**self._given(strategy, shape, training), **hyper, plugins=plugins)
            if self.name == "GenerativeReplay":
                self.strategy.generator_strategy.evaluator.loggers.clear()  # it would print every step
        except (AssertionError, TypeError, NotImplementedError) as error:
            raise ValueError(f"avalanche.{self.name}: {str(error) or 'it refuses these arguments'}") from error

    def _given(self, strategy: type, shape: tuple[int, ...], training: Training) -> dict[str, Any]:
        """The arguments that are not hyper-parameters, as far as the strategy takes them."""
        wanted = inspect.signature(strategy.__init__).parameters  # type: ignore[misc]
        network, budget = self.network, training.budget
        split = {"feature_extractor", "slda_model", "cwr_layer_name", "last_layer_name"} & wanted.keys()
        if (split or self.name in ("LFL", "SCR")) and network.features is None:
            raise ValueError(f"avalanche.{self.name} needs a network that says what its last hidden layer is: a module "
                             "with a method features(x) and a linear layer after it")
        if self.name == "GenerativeReplay" and tuple(shape) != (1, 28, 28):
            raise ValueError(f"avalanche.{self.name} generates images of [1, 28, 28]; here examples are {list(shape)}")
        model: nn.Module = network
        if self.name == "SCR":
            head = nn.Sequential(nn.Linear(network.width, network.width), nn.ReLU(), nn.Linear(network.width, 128))
            model = SCRModel(network.features, head).to(self.device)
        given = {
            "model": model, "optimizer": _optimizer(training.optimizer, model.parameters()), "device": self.device,
            "train_mb_size": budget.batch_size, "eval_mb_size": 512,
            "train_epochs": budget.epochs if budget.steps is None else 1 if self.online else budget.steps,
            "evaluator": EvaluationPlugin(loggers=[]),
            "feature_extractor": network.features, "classifier": network.classifier, "slda_model": network.features,
            "input_size": network.width if "slda_model" in wanted else list(shape), "num_classes": self.n_classes,
            "n_classes": self.n_classes, "p_size": self.n_classes, "buffer_transform": None,
            "cwr_layer_name": "classifier", "last_layer_name": "classifier",
        }
        if "criterion" in wanted:  # a copy, because all seeds share a default, and FeatureReplay's has a state
            default = wanted["criterion"].default
            given["criterion"] = nn.CrossEntropyLoss() if default is inspect.Parameter.empty else copy.deepcopy(default)
        return {key: value for key, value in given.items() if key in wanted}

    def learn_task(self, x: Tensor, y: Tensor, task: int, tell: Callable[[Any], None]) -> None:
        """Trains on a task with the strategy's own loop, in an order that the strategy draws."""
        self.untrained = None
        self.steps.tell, self.steps.done = tell, 0
        x, y = x.cpu(), y.cpu()
        units = y.unique().tolist()
        if self.name == "ICaRL" and (self.online or set(units) & set(self.seen)):
            raise ValueError("avalanche.ICaRL needs classes of their own in every task, and a whole task at a time")
        for rows in self._parts(len(y)):
            with _calm():
                self.strategy.train(self._experience(x[rows], y[rows], task, units), eval_streams=[])
            if self.steps.over:
                break

    def _parts(self, n: int) -> Iterator[Tensor]:
        """The examples of each experience of a task: all, or one batch each; in repeated passes if steps are given."""
        if not self.online:
            yield torch.arange(n)
            return
        before = -1
        while self.steps.done > before:
            before = self.steps.done
            yield from torch.randperm(n).split(self.batch_size)
            if self.steps.most is None:
                return

    def _experience(self, x: Tensor, y: Tensor, task: int, units: list[int]) -> Experience:
        experience = Experience(x, y, task, task if self.told else 0, units, self.seen)
        experience.origin_stream = SimpleNamespace(name="train")
        new = [unit for unit in units if unit not in self.seen]
        self.seen, self.sizes = self.seen + new, [*self.sizes, len(new)]
        # iCaRL reads the classes so far, in order of arrival, and the number of new classes of each experience.
        experience.benchmark = SimpleNamespace(classes_order=self.seen,
                                               n_classes_per_exp=[*self.sizes, self.n_classes - len(self.seen)])
        return experience

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Scores [n, C]; before the first task those of the network, because not every strategy can predict then."""
        labels = torch.full((len(x),), task or 0, device=x.device)
        if self.untrained is not None:
            return self.untrained.eval()(x, labels)
        strategy, batch = self.strategy, [x, torch.zeros_like(labels), labels]
        kept = {name: getattr(strategy, name) for name in ("mbatch", "mb_output", "loss")}  # a task may be in progress
        strategy.make_eval_dataloader = lambda **_: setattr(strategy, "dataloader", [batch])
        with _calm():
            strategy.eval([Experience(x[:1].cpu(), batch[1][:1].cpu(), task or 0, task or 0, [0], self.seen)])
        vars(strategy).update(kept)
        return F.pad(self.scores.answer, (0, self.n_classes - self.scores.answer.shape[1]), value=-torch.inf)


def _optimizer(term: expression.Term, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch.optim optimizer equivalent to one of this project."""
    v = term.resolved()
    if term.factory is optim.sgd:
        return torch.optim.SGD(parameters, v["lr"], v["momentum"], weight_decay=v["weight_decay"])
    if term.factory is optim.adam:
        return torch.optim.Adam(parameters, v["lr"], (v["beta1"], v["beta2"]), v["eps"], v["weight_decay"])
    raise ValueError(f"Avalanche's strategies are trained by torch.optim, which has no {term.name}: use sgd or adam")


def _bridged(kind: str, name: str) -> Callable[..., Any]:
    if kind != "strategies":
        raise LookupError(f"Avalanche's {kind} cannot be used here, only its strategies")
    return factory(name)


BRIDGE = catalogue.Bridge(_bridged, "avalanche-lib")
