"""Gradient-based meta-learning starts: MAML, first-order MAML, Meta-SGD, ANIL and Reptile."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler, Source
from lifelong.learning.optim import adam, falling, sgd
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least
from lifelong.starts.recipe import Recipe, episode_features, episode_scores, pretrained, set_statistics

Loss = Callable[[Net, Params, Episode], tuple[Tensor, dict[str, Tensor]]]
Answer = Callable[[Net, Params, Tensor, Tensor, Tensor, int], Tensor]
MODEL = "conv4(width=64, norm='batch')"
RATE = "rate."  # prefix of the names of learned step sizes


@pretrained()
def maml(steps: int = 5000, way: int = 5, shots: int = 1, queries: int = 1, tasks: int = 32, inner: int = 1,
         rate: float = 0.4, lr: float = 0.001, fall: bool = False, test_inner: int = 3) -> Recipe:
    """MAML: an initialisation from which a few gradient steps on a task's support examples classify its queries.

    Minimises the mean over tasks of L_query(p - rate * grad L_support(p)) and differentiates through the inner
    gradient (second order).

    Args:
        steps: steps of the outer loop, 1 or more; the paper's 60,000 take hours on a CPU.
        way: classes of a task, 2 or more; a task of a source of several domains has all classes of one domain.
        shots: support examples of each class, 1 or more.
        queries: query examples of each class, 1 or more; the paper has as many as `shots`.
        tasks: tasks per outer step, 1 or more.
        inner: gradient steps on the support examples, 1 or more.
        rate: step size of the inner loop, above 0.
        lr: step size of Adam in the outer loop, above 0.
        fall: whether `lr` decays to 0 along half a cosine, which suits a short budget; in the paper it is constant.
        test_inner: gradient steps on the support examples in few-shot evaluation, 1 or more.

    Source: Finn et al. 2017, arXiv:1703.03400, algorithm 2, with the paper's numbers for Omniglot, 5-way 1-shot; for
        20-way use `way=20, tasks=16, inner=5, rate=0.1, test_inner=5`. The paper's batch normalisation keeps no
        running statistics, so queries are classified together (transductively). Here each query is classified by
        itself, with the statistics of the adapted network on the support examples; few-shot evaluation reports the
        transductive accuracy separately.
    """
    return _maml("maml", steps, way, shots, queries, tasks, inner, rate, lr, fall, test_inner)


@pretrained()
def fomaml(steps: int = 5000, way: int = 5, shots: int = 1, queries: int = 1, tasks: int = 32, inner: int = 1,
           rate: float = 0.4, lr: float = 0.001, fall: bool = False, test_inner: int = 3) -> Recipe:
    """First-order MAML: the outer gradient is the gradient of the query loss at the adapted parameters.

    Args:
        steps, way, shots, queries, tasks, inner, rate, lr, fall, test_inner: as in `maml`.

    Source: Finn et al. 2017, arXiv:1703.03400, section 5.2.
    """
    return _maml("fomaml", steps, way, shots, queries, tasks, inner, rate, lr, fall, test_inner, first=True)


@pretrained()
def meta_sgd(steps: int = 5000, way: int = 5, shots: int = 1, queries: int = 1, tasks: int = 32, inner: int = 1,
             rate: float = 0.05, lr: float = 0.001, fall: bool = False, test_inner: int = 1) -> Recipe:
    """Meta-SGD: MAML that also learns one inner step size per parameter; a learned step size may become negative.

    Args:
        rate: initial value of every step size, above 0.
        steps, way, shots, queries, tasks, inner, lr, fall, test_inner: as in `maml`.

    Source: Li et al. 2017, arXiv:1707.09835, algorithm 1. The paper draws the initial step sizes from [0.005, 0.1] (as
        far as we remember); here they are all equal.
    """
    return _maml("meta_sgd", steps, way, shots, queries, tasks, inner, rate, lr, fall, test_inner, learned=True)


@pretrained(adapt="head")
def anil(steps: int = 5000, way: int = 5, shots: int = 1, queries: int = 1, tasks: int = 32, inner: int = 1,
         rate: float = 0.4, lr: float = 0.001, fall: bool = False, test_inner: int = 3) -> Recipe:
    """ANIL ("almost no inner loop"): MAML whose inner loop updates the output layer only.

    The features of a task are therefore computed once.

    Args:
        steps, way, shots, queries, tasks, inner, rate, lr, fall, test_inner: as in `maml`.

    Source: Raghu et al. 2020, arXiv:1909.09157, second order, with MAML's numbers for Omniglot.
    """
    _check(way, shots, queries, tasks, inner, rate, lr, test_inner)

    def learned(net: Net, params: Params, z: Tensor, y: Tensor, count: int) -> Params:
        head = {k: params[k] for k in net.head}
        for _ in range(count):
            grads = torch.func.grad(lambda head: F.cross_entropy(_linear(net, head, z), y))(head)
            head = {k: p - rate * grads[k] for k, p in head.items()}
        return head

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        def one(x: Tensor, query: Tensor) -> Tensor:
            z, query_z = episode_features(net, params, x), episode_features(net, params, query)
            return _linear(net, learned(net, params, z, episode["y"], inner), query_z)

        return _mean_loss(torch.vmap(one)(episode["x"], episode["query"]), episode["query_y"])

    def answer(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        z, statistics = _features_and_statistics(net, params, x)
        params = params | statistics
        head = learned(net, _narrow(net, params, way, "anil"), z, y, test_inner)
        assert net.features is not None
        return _linear(net, head, net.features(params, query))

    return _recipe(steps, way, shots, queries, tasks, lr, fall, loss, answer, full_precision=False)


@pretrained()
def reptile(steps: int = 5000, way: int = 5, shots: int = 10, tasks: int = 5, inner: int = 5, batch: int = 10,
            rate: float = 0.001, lr: float = 1.0, test_inner: int = 50, test_batch: int = 5) -> Recipe:
    """Reptile: an initialisation that moves towards the parameters that each task's training ends at.

    p <- p + lr * mean over tasks of (trained - p). It needs no queries and no second derivatives.

    Args:
        steps: steps of the outer loop, 1 or more; the paper's 100,000 take hours on a CPU.
        way: classes of a task, 2 or more; a task of a source of several domains has all classes of one domain.
        shots: examples of each class of a task, 1 or more.
        tasks: tasks per outer step, 1 or more.
        inner: steps of Adam (beta1 = 0) on a task, 1 or more.
        batch: examples per inner step, 1 or more; the steps cycle through the task's examples.
        rate: step size of the inner loop, above 0.
        lr: first outer step size, above 0; it decays linearly to 0.
        test_inner, test_batch: inner steps and examples per inner step in few-shot evaluation, 1 or more.

    Source: Nichol et al. 2018, arXiv:1803.02999, and the command in the authors' code for Omniglot, 5-way; for 20-way
        use `way=20, inner=10, batch=20, rate=0.0005, test_batch=10`. The code carries Adam's second moments from task
        to task; here they start at 0 in every task, so that a step depends on its episode alone.
    """
    at_least(2, way=way)
    at_least(1, shots=shots, tasks=tasks, inner=inner, batch=batch, test_inner=test_inner, test_batch=test_batch)
    above(0, rate=rate, lr=lr)

    def learned(net: Net, params: Params, x: Tensor, y: Tensor, count: int, size: int) -> Params:
        """The parameters after `count` steps of Adam on `size` examples each, cycling through `x` [n, *shape]."""
        fast = {k: p for k, p in params.items() if k not in net.still}
        square = {k: torch.zeros_like(p) for k, p in fast.items()}
        for step in range(count):
            at = torch.arange(step * size, (step + 1) * size, device=x.device) % len(x)
            part, units = x.index_select(0, at), y.index_select(0, at)
            grads = torch.func.grad(lambda fast, part, units: F.cross_entropy(
                episode_scores(net, params | fast, part), units))(fast, part, units)
            square = {k: 0.999 * square[k] + 0.001 * g * g for k, g in grads.items()}
            root = (1 - 0.999 ** (step + 1)) ** 0.5
            fast = {k: p - rate * grads[k] / (square[k].sqrt() / root + 1e-8) for k, p in fast.items()}
        return fast

    def draw(sampler: Sampler) -> Episode:
        rows = torch.stack([sampler.task(way, shots) for _ in range(tasks)])
        y = torch.arange(rows.shape[1]).repeat_interleave(shots).expand(tasks, -1)
        order = torch.rand(y.shape, generator=sampler.g).argsort(1)
        x, _ = sampler.fetch(rows.flatten(1).gather(1, order))
        return {"x": x, "y": y.gather(1, order).to(x.device)}

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        begin = {k: p.detach() for k, p in params.items()}
        ends = torch.vmap(lambda x, y: learned(net, begin, x, y, inner, batch))(episode["x"], episode["y"])
        # The gradient of this loss is p - mean(trained), so a step of SGD is Reptile's update.
        return torch.stack([(params[k] * (begin[k] - end.mean(0))).sum() for k, end in ends.items()]).sum(), {}

    def answer(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        # The support examples come class by class; a batch should have one example of each class.
        turn = torch.arange(len(x), device=x.device).view(way, -1).mT.flatten()
        params = _narrow(net, params, way, "reptile")
        return _query_scores(net, params | learned(net, params, x[turn], y[turn], test_inner, test_batch), x, query)

    return Recipe(MODEL, steps, draw, loss, lambda step: sgd(lr * (1 - step / steps)), finish=set_statistics,
                  answer=answer, units=_units(way), full_precision=True)


def _maml(name: str, steps: int, way: int, shots: int, queries: int, tasks: int, inner: int, rate: float, lr: float,
          fall: bool, test_inner: int, first: bool = False, learned: bool = False) -> Recipe:
    _check(way, shots, queries, tasks, inner, rate, lr, test_inner)

    def adapted(net: Net, params: Params, x: Tensor, y: Tensor, count: int) -> Params:
        fast = {k: p for k, p in params.items() if k not in net.still and not k.startswith(RATE)}
        for _ in range(count):
            at = {k: p.detach() for k, p in fast.items()} if first else fast
            grads = torch.func.grad(lambda fast: F.cross_entropy(episode_scores(net, params | fast, x), y))(at)
            fast = {k: p - (params[RATE + k] if learned else rate) * grads[k] for k, p in fast.items()}
        return fast

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        def one(x: Tensor, query: Tensor) -> Tensor:
            return episode_scores(net, params | adapted(net, params, x, episode["y"], inner), query)

        return _mean_loss(torch.vmap(one)(episode["x"], episode["query"]), episode["query_y"])

    def answer(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        params = _narrow(net, params, way, name)
        return _query_scores(net, params | adapted(net, params, x, y, test_inner), x, query)

    def rates(net: Net, params: Params) -> Params:
        return {RATE + k: torch.full_like(p, rate) for k, p in params.items() if learned and k not in net.still}

    return _recipe(steps, way, shots, queries, tasks, lr, fall, loss, answer, extra_params=rates)


def _check(way: int, shots: int, queries: int, tasks: int, inner: int, rate: float, lr: float,
           test_inner: int) -> None:
    at_least(2, way=way)
    at_least(1, shots=shots, queries=queries, tasks=tasks, inner=inner, test_inner=test_inner)
    above(0, rate=rate, lr=lr)


def _recipe(steps: int, way: int, shots: int, queries: int, tasks: int, lr: float, fall: bool, loss: Loss,
            answer: Answer, extra_params: Callable[[Net, Params], Params] = lambda net, params: {},
            full_precision: bool = True) -> Recipe:
    def draw(sampler: Sampler) -> Episode:
        rows = torch.stack([sampler.task(way, shots + queries) for _ in range(tasks)])
        x, _ = sampler.fetch(rows)
        units = torch.arange(rows.shape[1], device=x.device)
        return {"x": x[:, :, :shots].flatten(1, 2), "y": units.repeat_interleave(shots),
                "query": x[:, :, shots:].flatten(1, 2), "query_y": units.repeat_interleave(queries)}

    return Recipe(MODEL, steps, draw, loss, lambda step: adam(lr * (falling(step, steps) if fall else 1)),
                  extra_params=extra_params, finish=set_statistics, answer=answer, units=_units(way),
                  full_precision=full_precision)


def _units(way: int) -> Callable[[Source], int]:
    return lambda source: way if source.domains == 1 else source.n_classes


def _mean_loss(scores: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy and accuracy of the tasks' query scores [T, m, C]; all tasks have the same units `y` [m]."""
    y = y.expand(len(scores), -1)
    return F.cross_entropy(scores.flatten(0, 1), y.flatten()), {"accuracy": (scores.argmax(-1) == y).float().mean()}


def _linear(net: Net, head: Params, z: Tensor) -> Tensor:
    return F.linear(z, *(head[k] for k in net.head))


def _narrow(net: Net, params: Params, way: int, name: str) -> Params:
    """`params` with only the first `way` units of the output layer."""
    units = len(params[net.head[0]])
    if way > units:
        raise ValueError(f"this {name} has {units} output units and cannot distinguish {way} classes; learn it with "
                         f"way={way}")
    return {k: p[:way] if k.removeprefix(RATE) in net.head else p for k, p in params.items()}


def _features_and_statistics(net: Net, params: Params, x: Tensor) -> tuple[Tensor, Params]:
    """The features of support examples, and their statistics if the network has batch normalisation."""
    return net.fresh(params, x) if net.fresh else (episode_features(net, params, x), {})


def _query_scores(net: Net, params: Params, x: Tensor, query: Tensor) -> Tensor:
    """Scores of queries by adapted parameters; batch normalisation uses the statistics of support examples `x`."""
    return net.apply(params | _features_and_statistics(net, params, x)[1], query)
