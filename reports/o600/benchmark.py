"""A meta-iteration of OML and ANML, and a meta-test of 600 classes, as the official code does them and here.

`python reports/o600/benchmark.py --net oml --width 64 --size 28 --pairs 5`. The official way is written anew from its
description: one image at a time, the whole network in every inner step, OML's meta loss before and after every inner
step, PNG files decoded at every iteration (the starting of data loader processes is left out); at meta-test the whole
network forward and backward at every step, and all images again through the network to measure. Pixels are noise.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lifelong.strategies import oml as starts
from PIL import Image

from lifelong.data import build
from lifelong.data.pool import Pool
from lifelong.data.source import Source
from lifelong.learning.composition import gradient_learner
from lifelong.learning.engine import train
from lifelong.learning.lanes import Lanes
from lifelong.learning.optim import adam
from lifelong.learning.schedule import Budget
from lifelong.machine import keep_pages
from lifelong.networks.conv import anml_net, oml_net
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net
from lifelong.provenance import environment
from lifelong.randomness import generator
from lifelong.starts.install import encoded
from lifelong.starts.recipe import Recipe, learn

UNITS, LENGTHS, SWEEP, RUNS = 1000, (10, 50, 100, 200, 300, 400, 500, 600), 8, 50
Params = dict[str, torch.Tensor]


def noise(size: int, classes: int) -> Source:
    x = torch.randint(256, (classes * 20, 1, size, size), generator=generator("pixels"), dtype=torch.uint8)
    rows = torch.arange(classes * 20)
    return Source("noise", x, rows // 20, rows.view(1, classes, 20), (1, size, size), 1 / 255)


# ---- the official way, from its description


def decoded(count: int, size: int, file: bytes) -> None:
    """The drawings of one iteration, from their files."""
    for _ in range(count):
        with Image.open(io.BytesIO(file)) as image:
            np.array(image.convert("L").resize((size, size)))


def scores(name: str, params: Params, x: torch.Tensor) -> torch.Tensor:
    """The whole network; batch normalisation meets whatever batch it is given."""
    def stack(prefix: str, x: torch.Tensor) -> torch.Tensor:
        for i in range(3):
            x = F.conv2d(x, params[f"{prefix}conv{i}.weight"])
            x = F.batch_norm(x, None, None, params[f"{prefix}norm{i}.weight"], params[f"{prefix}norm{i}.bias"], True)
            x = F.max_pool2d(x.relu(), 2) if i < 2 else x.relu()
        return x.flatten(1)

    if name == "anml":
        mask = F.linear(stack("gate.", x), params["gate.out.weight"], params["gate.out.bias"]).sigmoid()
        phi = stack("", x) * mask
    else:
        phi = x
        for i, stride in enumerate((2, 1, 2, 1, 2, 2) if x.shape[-1] == 84 else (2, 1, 1, 1, 1, 1)):
            phi = F.conv2d(phi, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=stride).relu()
        phi = phi.flatten(1)
    return F.linear(phi, params["head.weight"], params["head.bias"])


def official(name: str, params: Params, episode: dict[str, Any], lr: float) -> torch.Tensor:
    """The meta loss of one iteration, ready for `backward`."""
    x, y, k, first = (episode[key] for key in ("x", "y", "trajectory", "first_query"))
    fast, losses = params, []
    moving = [n for n in params if n.startswith("head") or (name == "anml" and not n.startswith("gate"))]

    def meta() -> torch.Tensor:
        if name == "anml":
            answers = scores(name, fast, x[first:first + 1])
            for i in range(first + 1, len(x)):
                answers = torch.cat([answers, scores(name, fast, x[i:i + 1])])
            return F.cross_entropy(answers, y[first:])
        return F.cross_entropy(scores(name, fast, x[first:]), y[first:])

    if name == "oml":
        losses.append(meta())
    for j in range(k):
        loss = F.cross_entropy(scores(name, fast, x[j:j + 1]), y[j:j + 1])
        # ANML asks for the gradients of all weights, also of those that stay.
        wanted = list(fast) if name == "anml" else moving
        grads = dict(zip(wanted, torch.autograd.grad(loss, [fast[n] for n in wanted], create_graph=name == "oml"),
                         strict=True))
        fast = {n: p - lr * grads[n] if n in moving else p for n, p in fast.items()}
        if name == "oml":
            losses.append(meta())
    return losses[-1] if losses else meta()


# ---- both


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds: other work on the machine counts less than in the time on a clock."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def pairs(count: int, contenders: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each contender's values, in turn, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(count + 1):
        for name, run in contenders.items():
            value = run()
            if i:
                found[name].append(value)
    return found


def table(title: str, unit: str, found: dict[str, list[float]]) -> None:
    base = next(iter(found.values()))
    print(f"\n{title}\n\n| way | {unit} | official / this, median of pairs (least to most) |\n| --- | ---: | ---: |")
    for name, values in found.items():
        ratios = [a / b for a, b in zip(base, values, strict=True)]
        print(f"| {name} | {statistics.median(values):.4g} | {statistics.median(ratios):.3g} ({min(ratios):.3g} to "
              f"{max(ratios):.3g}) |")


def iteration(name: str, net: Net, recipe: Recipe, source: Source, count: int, lr: float) -> None:
    first = {k: p.clone() for k, p in net.init(generator(0, "init")).items()}
    file = io.BytesIO()
    Image.fromarray(np.zeros((105, 105), np.uint8)).convert("1").save(file, "PNG")
    leaves = {k: p.clone().requires_grad_() for k, p in first.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=1e-4)
    sampler = source.sampler(generator(0, "episode"))
    episode = recipe.draw(sampler)
    ours, _ = recipe.loss(net, leaves, episode)
    theirs = official(name, leaves, episode, lr)
    own, whole = (torch.cat([g.flatten() for g in torch.autograd.grad(v, list(leaves.values()))])
                  for v in (ours, theirs))
    print(f"relative difference of the meta-gradients, float32: {float((own - whole).norm() / whole.norm()):.2g}")

    def step() -> None:
        episode = recipe.draw(sampler)
        decoded(len(episode["x"]), source.shape[-1], file.getvalue())
        optimizer.zero_grad()
        official(name, leaves, episode, lr).backward()
        optimizer.step()

    def mine(precision: str) -> float:
        begin = {"params": {k: p.clone() for k, p in first.items()}, "step": 0, "logs": {}}
        begin["optimizer"] = recipe.optimizer(0).init(first)
        return seconds(lambda: learn(recipe, net, source, resume=begin, precision=precision))

    found = pairs(count, {"official": lambda: seconds(step), "lifelong": lambda: mine("float32"),
                          "lifelong, bfloat16": lambda: mine("bfloat16")})
    table(f"A meta-iteration of {name}", "seconds", found)


def meta_test(name: str, net: Net, source: Source, count: int, lanes: int) -> None:
    params = {k: p.requires_grad_() for k, p in net.init(generator(0, "init")).items()}
    optimizer = torch.optim.Adam([params[k] for k in net.head], lr=1e-3)
    pool = Pool(source.x, source.y, source.shape, torch.ones(1, UNITS, dtype=torch.bool), scale=source.scale)
    still = {k: p.detach() for k, p in params.items()}
    installed = net._replace(features=lambda own, x: net.features(still | own, x) if net.features else x)
    steps, measured, some = 20, 64, 256

    def official_steps() -> None:
        for i in range(steps):
            x, y = pool.fetch(torch.tensor([i]))
            optimizer.zero_grad()
            F.cross_entropy(scores(name, params, x), y).backward()
            optimizer.step()

    def official_measuring() -> None:
        with torch.no_grad():  # ANML one by one, OML in batches of 32
            for rows in torch.arange(measured).split(1 if name == "anml" else 32):
                scores(name, still, pool.fetch(rows)[0])

    width = still["head.weight"].shape[1]
    x = torch.rand(13 * 20, width, generator=generator("features"))
    rows = torch.arange(len(x)).view(-1, 20)
    images = build.Images(x, rows.flatten() // 20, rows[:, :15].flatten(), rows[:, 15:].flatten())
    stream = build.stretches("features", [0], images, lengths=(12,), units=UNITS, boundaries=False)
    head = mlp((width,), UNITS, ())
    stack = Lanes(stream, [0], [0] * lanes, lambda own: gradient_learner(head, adam(**own), {}),
                  {"lr": [1e-3 / (i + 1) for i in range(lanes)]}, stacked=True)

    def official_run() -> float:
        """All lengths of one step size and seed, each by itself."""
        step, measure = seconds(official_steps) / steps, seconds(official_measuring) / measured
        return sum(LENGTHS) * (15 * step + 20 * measure)

    def ours() -> tuple[float, float]:
        """Of all runs together the features, and of one run everything else, with its measurements."""
        encode = seconds(lambda: encoded(installed, replace(pool, x=pool.x[:some], y=pool.y[:some]))) / some * 659 * 20
        whole = seconds(lambda: train(stack, Budget(1, 1)))
        state = stack.init()
        looked = seconds(lambda: [stack.predict(state, stream.x.expand(lanes, -1, -1), torch.tensor(0))
                                  for _ in range(4)]) / (4 * len(stream.x) * lanes)
        # The 8 stretches hold up to 500 test and 1,500 training images each, and are measured after every stretch.
        return encode, whole / (180 * lanes) * 9000 + looked * (9 * 8 * 500 + 36 * 1500)

    def several(runs: int) -> float:
        encode, each = ours()
        return encode + runs * each

    runs = SWEEP * 5 + RUNS
    found = pairs(count, {"official, one run": official_run, "lifelong, one run": lambda: several(1)})
    table(f"A meta-test of {name} at {len(LENGTHS)} lengths to 600 classes: one step size, one seed; extrapolated from "
          f"{steps} steps, {measured} images, and 180 steps of {lanes} lanes", "seconds", found)
    found = pairs(count, {f"official, {runs} runs": lambda: runs * official_run(),
                          f"lifelong, {runs} runs": lambda: several(runs)})
    table(f"The same with {SWEEP} step sizes on 5 search streams and {RUNS} test streams", "seconds", found)


def main(words: list[str] | None = None) -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--net", choices=["oml", "anml"], default="oml")
    ask.add_argument("--width", type=int, default=64)
    ask.add_argument("--size", type=int, default=28)
    ask.add_argument("--pairs", type=int, default=5)
    ask.add_argument("--lanes", type=int, default=8)
    ask.add_argument("--part", choices=["iteration", "test", "all"], default="all")
    args = ask.parse_args(words)
    torch.set_num_threads(1)
    keep_pages()
    shape = (1, args.size, args.size)
    net = (oml_net(shape, UNITS, args.width) if args.net == "oml"
           else anml_net(shape, UNITS, args.width, max(1, args.width * 7 // 16)))
    recipe = (starts.oml if args.net == "oml" else starts.anml)(steps=1).recipe
    about = environment(torch.device("cpu"))
    print(f"{args.net}, width {args.width}, {args.size}x{args.size} pixels, {UNITS} units; processor seconds of one "
          f"thread, {args.pairs} pairs; {about['processor']}, torch {about['torch']}")
    source = noise(args.size, 100)
    if args.part != "test":
        iteration(args.net, net, recipe, source, args.pairs, 0.03 if args.net == "oml" else 0.1)
    if args.part != "iteration":
        meta_test(args.net, net, source, args.pairs, args.lanes)


if __name__ == "__main__":
    main()
