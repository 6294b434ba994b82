"""Converts torch modules into networks, including their batch normalisation, dropout and buffers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lifelong.networks.interception import Pass, Refused
from lifelong.networks.net import Net, Params
from lifelong.vmap import lifted


def from_module(make: Callable[[], nn.Module], x: Tensor, outputs: int | None = None) -> Net:
    """The network that `make()` builds; every lane gets its own weights, drawn as the module draws them.

    The module is called with a batch [B, *shape] and returns scores [B, C]. A method `features(x)` may return its last
    hidden layer [B, F], which learners without gradients need. `Net.apply` is the module after `eval()`, `Net.train`
    the module after `train()`, with these differences:

    - Batch normalisation uses the statistics of the batch's real examples. The running statistics are parameters of
      the network, named as the module's buffers and listed in `Net.still`.
    - Dropout uses the random numbers of the step instead of torch's global generator, so that a run can be stacked and
      resumed. This holds for all dropout functions of `torch.nn.functional`, for the layers that call them, and for
      the dropout of attention.
    - All other buffers, and parameters with `requires_grad=False`, are constants shared by all lanes: they stay as they
      are, and strategies do not see them. They follow the device and the precision of the examples; integers stay
      integers. Random ones are drawn once, from a fixed seed.

    Args:
        make: builds the module, with weights drawn from torch's global generator.
        x: two or more examples [B, *shape] to try the module on.
        outputs: number of scores that the module must return for each example; None for any number.

    Raises:
        ValueError: the module needs more than a batch of examples, or does not return scores; all its parameters are
            frozen; its training changes buffers other than by batch normalisation, or draws random numbers other than
            by dropout; or its batch normalisation keeps no running statistics, or averages them over all batches
            (`momentum=None`).
    """
    training = _drawn(make, 0).train()
    name = type(training).__name__
    _check(training, name)
    answering = copy.deepcopy(training).eval()
    learned, tried = _tried(training, x, name, outputs, torch.tensor([0.5], dtype=torch.float64))
    answered, _ = _tried(answering, x, name, outputs)
    still = tuple(k for k, _ in training.named_buffers() if k in tried.statistics)
    trained = {k: p.requires_grad for k, p in training.named_parameters()}
    owned = [*(k for k, moves in trained.items() if moves), *still]
    if trained and not any(trained.values()):
        raise ValueError(f"{name} has nothing to train: none of its parameters has requires_grad=True")
    linear = [layer for layer, m in training.named_modules() if isinstance(m, nn.Linear)]
    head = tuple(k for k in owned if linear and k.rpartition(".")[0] == linear[-1])
    hidden = _Features(answering) if _has_features(answering, x, name) else None

    def init(g: torch.Generator) -> Params:
        module = _drawn(make, int(torch.randint(2**62, (), generator=g, device="cpu")))
        return {k: p.detach().clone() for k, p in _tensors(module) if k in owned}

    def apply(params: Params, x: Tensor) -> Tensor:
        return _called(answering, Pass(params, still), x)

    def train(params: Params, x: Tensor, real: Tensor, u: Tensor | None = None) -> tuple[Tensor, Params]:
        # On a CPU the check is cheap: if all examples are real, torch's fused normalisation is used.
        every = x.device.type == "cpu" and not lifted() and bool(real.all())
        this = Pass(params, still, None if every else real, u)
        scores = _called(training, this, x)
        return scores, {k: this.running[k].detach() for k in still}

    def features(params: Params, x: Tensor) -> Tensor:
        assert hidden is not None
        return _called(hidden, Pass(params, still), x)

    def fresh(params: Params, x: Tensor) -> tuple[Tensor, Params]:
        assert hidden is not None
        this = Pass(params, still, own=True)
        z = _called(hidden, this, x)
        return z, {k: this.statistics.get(k, params[k]).detach() for k in still}

    trains = still or tried.draws or not torch.equal(learned, answered)
    return Net(init, apply, features if hidden else None, head, fresh=fresh if hidden and still else None,
               still=still, train=train if trains else None, draws=1 if tried.draws else 0)


def _drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return *module.named_parameters(), *module.named_buffers()


class _Features(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.features(x)  # type: ignore[operator]


def _called(module: nn.Module, this: Pass, x: Tensor) -> Tensor:
    """The output of `module`, or of the module inside a `_Features`, for `x` with the parameters of a pass."""
    prefix = "module." if isinstance(module, _Features) else ""
    dtype = x.dtype if x.is_floating_point() else next(p.dtype for k, p in this.params.items() if k not in this.still)
    tensors = {prefix + k: p for k, p in this.params.items()}
    for name, constant in _tensors(module):
        if name not in tensors:
            tensors[name] = constant.to(x.device, dtype if constant.is_floating_point() else constant.dtype)
    with this:
        return torch.func.functional_call(module, tensors, (x,))


# ---- checks


class _Trial(Pass):
    """A pass that raises Refused if it draws random numbers other than those of the step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        out = super().__torch_function__(func, types, args, kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            raise Refused(f"draws random numbers by {func.__name__}, which could not be repeated when a run is "
                          "resumed: only dropout, by layers or functions of torch.nn, is given the step's own")
        return out


def _tried(module: nn.Module, x: Tensor, name: str, outputs: int | None = None,
           u: Tensor | None = None) -> tuple[Tensor, Pass]:
    """The scores of some examples, and the pass; ValueError if the module does something that a network cannot do."""
    before = {k: (b, b._version) for k, b in module.named_buffers()}
    this = _Trial({k: b for k, (b, _) in before.items()}, before, torch.ones(len(x), dtype=torch.bool), u)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), this:
            scores = module(x)
    except Refused as error:
        raise ValueError(f"{name} {error}") from None
    except Exception as error:
        raise ValueError(f"{name} cannot be applied to a batch of {len(x)} examples, {list(x.shape)}: "
                         f"{type(error).__name__}: {error}") from error
    after = dict(module.named_buffers())
    for k in before.keys() | after.keys():
        if k not in before or after.get(k) is not before[k][0] or after[k]._version != before[k][1]:
            raise ValueError(f"{name} changes its buffer {k} when it is called, which a network can do with the "
                             "statistics of batch normalisation alone: make it a constant")
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(x):
        said = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise ValueError(f"{name} must return scores [{len(x)}, classes] for {len(x)} examples, and returned {said}")
    check_outputs(scores, name, outputs)
    return scores, this


def check_outputs(scores: Tensor, name: str, outputs: int | None) -> None:
    """Refuses scores [B, C] of another number of classes than `outputs`."""
    if outputs is not None and scores.shape[-1] != outputs:
        raise ValueError(f"{name} returns {scores.shape[-1]} scores for each example, but the stream has {outputs} "
                         f"output units: make the last layer of size n_classes")


def _has_features(module: nn.Module, x: Tensor, name: str) -> bool:
    """Whether `module.features` returns the last hidden layer; in many modules it returns maps [B, C, H, W]."""
    if not hasattr(module, "features"):
        return False
    try:
        with torch.no_grad():
            z = module.features(x)  # type: ignore[operator]
    except Exception as error:
        raise ValueError(f"{name}.features cannot be applied to a batch of {len(x)} examples, {list(x.shape)}: "
                         f"{type(error).__name__}: {error}") from error
    return isinstance(z, Tensor) and z.dim() == 2 and len(z) == len(x)


def _check(module: nn.Module, name: str) -> None:
    """Raises ValueError for layers that are not supported, and removes the counts of batches of the others."""
    if any(nn.parameter.is_lazy(p) for _, p in _tensors(module)):
        raise ValueError(f"{name} has lazy layers, whose sizes are unknown before the first batch: give their sizes")
    needed = [p.name for p in inspect.signature(module.forward).parameters.values()
              if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if len(needed) > 1:
        raise ValueError(f"{name} takes several inputs ({', '.join(needed)}), and a network is given the examples "
                         "alone: give the others a default")
    for layer, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            if norm.track_running_stats and norm.momentum is None:
                raise ValueError(f"{name}.{layer} averages its statistics over all batches (momentum=None), for which "
                                 "a network keeps no count: give it a momentum, for example 0.1")
            norm.num_batches_tracked = None  # would change in place, and only that average needs it
