"""Starts that are learned: sources, the learning loop, files, and their use in sums."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Command, refused
from lifelong.strategies.starts import supervised
from lifelong.streams.glyphs import drawings

import lifelong
from lifelong.data.source import Source
from lifelong.experiments import contract as checks
from lifelong.experiments.prepare import Options, prepare
from lifelong.learning.learner import Initialization
from lifelong.learning.optim import sgd
from lifelong.networks.mlp import mlp
from lifelong.spec import catalogue, plugins
from lifelong.starts import recipe as start
from lifelong.starts.install import installed, only_head
from lifelong.starts.pretrain import Pretraining, make_source, parse
from lifelong.starts.recipe import Recipe, learn
from lifelong.starts.weights import Weights, begun, load, save
from lifelong.store.checkpoints import Workshop

LEARNED = "supervised(steps=3, batch=4)"


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source("glyphs(classes=6)")


@pytest.fixture(scope="module")
def file(tmp_path_factory, source):
    """A start learned for three steps on six glyphs."""
    path = tmp_path_factory.mktemp("start") / "s.safetensors"
    todo = Pretraining(parse("supervised(steps=3, batch=4, model='conv4(width=4)')"), source)
    save(path, todo.run(None, lifelong.progress.Watcher()))
    return path


def sampler(source, *names):
    return source.sampler(lifelong.randomness.generator(*names))


# ---- sources


def test_a_way_is_different_classes_with_different_examples(source):
    rows = sampler(source, 1).classes(5, 20)
    _, y = sampler(source, 1).fetch(rows)
    assert rows.flatten().unique().numel() == 100
    assert bool((y == y[:, :1]).all()) and y[:, 0].unique().numel() == 5
    x, _ = sampler(source, 1).fetch(rows)
    assert x.shape == (5, 20, 1, 28, 28) and 0 <= float(x.min()) < float(x.max()) <= 1


@pytest.mark.parametrize(("count", "each", "what"), [(7, 1, "glyphs-v1 has 6 classes, fewer than the 7 requested"),
                                                     (2, 21, "glyphs-v1 has 20 examples per class, fewer than the 21")])
def test_more_than_there_is_is_refused(source, count, each, what):
    with pytest.raises(ValueError, match=what):
        sampler(source, 0).classes(count, each)


def test_any_draws_without_repetition_while_it_can(source):
    rows = sampler(source, 3).any_rows(120)
    assert rows.unique().numel() == 120
    assert sampler(source, 3).any_rows(121).numel() == 121


def test_turned_characters_are_classes_of_their_own():
    plain, turned = make_source("glyphs(classes=3)"), make_source("glyphs(classes=3, turned=True)")
    assert (plain.n_classes, turned.n_classes) == (3, 12)
    drawer = sampler(turned, 0)
    x, y = drawer.fetch(turned.rows[0, :, 0])
    assert y.tolist() == list(range(12))
    upright, _ = sampler(plain, 0).fetch(plain.rows[0, :, 0])
    for quarter in range(4):
        torch.testing.assert_close(x[3 * quarter:3 * quarter + 3], upright.rot90(quarter, (-2, -1)))


def test_domains_share_their_classes_and_differ_in_their_pixels():
    source = make_source("rotated-digits(domains=3)")
    assert (source.domains, source.n_classes) == (3, 10)
    x, y = sampler(source, 0).fetch(source.rows[:, :, 0])
    assert y.tolist() == [list(range(10))] * 3
    assert not torch.equal(x[0], x[1])


def test_a_source_shows_no_character_of_a_stream():
    assert not torch.equal(drawings(2), drawings(2, 1_000_000))
    torch.testing.assert_close(drawings(3)[1:], drawings(2, 1))


# ---- learning


def line(target: float, lr: float = 0.1, steps: int = 120) -> Recipe:
    """One number that descends (w - target)^2."""
    return Recipe("mlp", steps, lambda sampler: {"target": torch.tensor(target)},
                  lambda net, params, episode: ((params["w"] - episode["target"]).square().sum(), {}),
                  lambda step: sgd(lr), extra_params=lambda net, params: {"w": torch.zeros(1)})


def test_learning_descends_the_objective_step_by_step(source):
    params, logs = learn(line(1.0), mlp((28, 28), 2, ()), source)
    left = 0.8 ** np.arange(120)  # w moves by 2 lr of what is missing
    np.testing.assert_allclose(logs["loss"].numpy(), left**2, rtol=1e-4, atol=1e-9)
    assert float(params["w"]) == pytest.approx(1 - 0.8**120, abs=1e-6)


def test_what_a_loss_does_not_touch_stays(source):
    net = mlp((28, 28), 2, ())
    params, _ = learn(line(1.0, steps=3), net, source)
    begun = net.init(lifelong.randomness.generator(0, "init"))
    assert torch.equal(params["head.weight"], begun["head.weight"])


def test_an_outer_loop_that_diverges_stops_and_says_at_which_step(source):
    with pytest.raises(start.Diverged, match=r"not finite at step \d+ of 400"):
        learn(line(1.0, lr=3.0, steps=400), mlp((28, 28), 2, ()), source)


def test_parameters_that_the_last_step_broke_are_no_start(source):
    with pytest.raises(start.Diverged, match="w was not finite after step 1 of 1"):
        learn(line(1e10, lr=1e30, steps=1), mlp((28, 28), 2, ()), source)


def test_the_statistics_of_a_start_are_the_mean_of_fifty_batches_of_its_source(source):
    seen: list[int] = []

    def fresh(params, x):
        seen.append(len(x))
        return x.flatten(1), {"norm.mean": torch.tensor([float(len(seen))])}

    net = mlp((28, 28), 2, ())._replace(fresh=fresh, still=("norm.mean",))
    params = {"norm.mean": torch.zeros(1, dtype=torch.float64), "head.weight": torch.ones(2)}
    after = start.set_statistics(net, params, sampler(source, 0))
    assert seen == [256] * 50
    assert after["norm.mean"].tolist() == [25.5] and after["norm.mean"].dtype == torch.float64  # (1 + 50) / 2
    assert after["head.weight"] is params["head.weight"]


@pytest.mark.parametrize("text", ["supervised(steps=60, batch=32, cosine=20.0, lr=0.01, model='mlp')",
                                  "gemcl_features(steps=8, way=10, shots=3, queries=3, model='mlp')"])
def test_an_output_layer_that_can_be_kept_is_what_was_learned(text):
    source = make_source("rotated-digits(domains=3)")
    weights = Pretraining(parse(text), source).run(None, lifelong.progress.Watcher())
    x, y = source.sampler(lifelong.randomness.generator(0)).fetch(source.rows.flatten())
    net = weights.net(10)
    right = (net.apply(weights.params, x).argmax(-1) == y).float().mean()
    assert float(right) > 0.5
    if "cosine" in text:
        z, rows = net.features(weights.params, x), weights.params["head.weight"]
        alike = torch.nn.functional.cosine_similarity(z[:, None], rows[None], dim=-1)
        assert torch.equal(alike.argmax(-1), net.apply(weights.params, x).argmax(-1))


def test_from_a_checkpoint_it_goes_on_to_the_same_bits(source):
    recipe = Pretraining(parse("supervised(steps=120, batch=4, model='mlp(hidden=(4,))')"), source)
    kept = []
    whole, logs = learn(recipe.recipe, recipe.net, source, save=lambda c: kept.append(copy.deepcopy(c)),
                        save_every=0.0)
    assert {50, 100} <= {checkpoint["step"] for checkpoint in kept}  # after a second, too
    assert logs.keys() == {"loss", "accuracy"} and 0 < float(logs["accuracy"].mean()) <= 1
    for checkpoint in kept:
        again, same = learn(recipe.recipe, recipe.net, source, resume=checkpoint)
        torch.testing.assert_close(logs, same, rtol=0, atol=0)
        for k, p in whole.items():
            assert torch.equal(p, again[k]), k


def test_bfloat16_is_near_float32_and_keeps_parameters_in_float32(source):
    todo = Pretraining(parse("supervised(steps=5, batch=4, model='conv4(width=4)')"), source)
    _, a = learn(todo.recipe, todo.net, source)
    rough, b = learn(todo.recipe, todo.net, source, precision="bfloat16")
    assert {p.dtype for p in rough.values()} == {torch.float32}
    torch.testing.assert_close(a["loss"], b["loss"], rtol=0.05, atol=0.0)
    assert not torch.equal(a["loss"], b["loss"])


def test_a_start_can_begin_with_the_parameters_of_another(file, source):
    former = load(file)
    todo = Pretraining(parse(f"supervised(steps=1, batch=4, lr=1e-12, begin='{file}')"), source)
    weights = todo.run(None, lifelong.progress.Watcher())
    assert weights.about["model"] == "conv4(width=4)"
    torch.testing.assert_close(weights.params, former.params, rtol=0, atol=1e-9)
    assert weights.about["begun"]["sha256"] == former.about["sha256"] and weights.about["begun"]["steps"] == 3
    assert todo.spec["begun"] == weights.about["begun"]
    assert "begun" not in Pretraining(parse("supervised(steps=1)"), source).spec


def test_beginning_with_a_start_of_other_classes_keeps_all_but_its_output_layer_and_counts_what_it_has_seen(file):
    other = make_source("glyphs(classes=4, first=20)")
    former = load(file)
    with pytest.raises(AssertionError):  # of as many, but other, classes it is another
        same = Pretraining(parse(f"supervised(steps=1, begin='{file}')"), make_source("glyphs(classes=6, first=20)"))
        torch.testing.assert_close(same.untrained().params["head.weight"], former.params["head.weight"])
    todo = Pretraining(parse(f"supervised(steps=1, batch=4, lr=1e-12, begin='{file}')"), other)
    weights = todo.run(None, lifelong.progress.Watcher())
    assert weights.params["head.weight"].shape[0] == 4
    torch.testing.assert_close(weights.params["conv3.weight"], former.params["conv3.weight"], rtol=0, atol=1e-9)
    assert set(weights.about["content"]) == other.content | set(former.about["content"])


def test_beginning_with_another_network_is_refused(file, source):
    with pytest.raises(ValueError, match=r"cannot begin with supervised, which is of conv4\(width=4\): it has no"):
        Pretraining(parse(f"supervised(steps=1, begin='{file}', model='mlp')"), source)


# ---- files


def test_a_file_tells_what_the_start_was_learned_on_and_how(file):
    weights = load(file)
    about = weights.about
    assert about["source"] == "glyphs-v1" and about["source_options"]["classes"] == 6
    assert {"steps": 3, "batch": 4, "lr": 0.001}.items() <= about["hyper"].items()
    assert about["model"] == "conv4(width=4)"
    assert about["version"] == lifelong.__version__ and len(about["content"]) == 6
    assert weights.params["conv0.weight"].shape == (4, 1, 3, 3)


def damage(file, tmp_path, change):
    data = bytearray(file.read_bytes())
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(bytes(change(data)))
    return path


@pytest.mark.parametrize("change", [lambda d: d[:len(d) // 2], lambda d: d[:4], lambda d: b"", lambda d: b"no start",
                                    lambda d: d[:-1] + bytes([d[-1] ^ 1])])
def test_a_damaged_file_is_refused_in_one_sentence(file, tmp_path, change):
    path = damage(file, tmp_path, change)
    with pytest.raises(ValueError, match=f"{path.name} (is damaged|holds weights)") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_every_flipped_byte_of_the_weights_is_noticed(file, tmp_path):
    size = len(file.read_bytes())
    for at in range(size - 1, size - 400, -7):
        def flip(data, at=at):
            data[at] ^= 0x10
            return data
        with pytest.raises(ValueError, match="damaged"):
            load(damage(file, tmp_path, flip))


def test_weights_under_other_names_are_not_those_that_were_written(file, tmp_path):
    with safetensors.safe_open(file, "pt") as opened:
        about, named = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    assert "conv0.bias" in named
    other = {k.replace("conv0.bias", "conv0.bia"): p for k, p in named.items()}  # in the same order
    safetensors.torch.save_file(other, tmp_path / "other.safetensors", about)
    with pytest.raises(ValueError, match="its weights are not those that were written"):
        load(tmp_path / "other.safetensors")


def test_weights_of_another_architecture_are_refused(file, tmp_path):
    weights = load(file)
    lost = {k: p for k, p in weights.params.items() if k != "conv1.bias"}
    with pytest.raises(ValueError, match=r"does not fit conv4\(width=4\): conv1.bias should have shape \(4,\), but is missing"):
        installed(Weights(lost, weights.about), (1, 28, 28), 5, "class")
    with pytest.raises(ValueError, match=r"learned on examples of shape \(1, 28, 28\), but the stream's examples have shape"):
        installed(weights, (3, 28, 28), 5, "class")


# ---- in use


def test_what_moves_is_what_was_asked_for(file):
    weights = load(file)
    g = lifelong.randomness.generator(7)
    every = installed(weights, (1, 28, 28), 9, "class", adapt="all").init(g)
    assert torch.equal(every["conv2.weight"], weights.params["conv2.weight"])
    assert every["head.weight"].shape[0] == 9
    head = installed(weights, (1, 28, 28), 6, "class", adapt="head")
    assert set(head.init(g)) == {"head.weight", "head.bias"}
    assert not torch.equal(head.init(g)["head.weight"], weights.params["head.weight"])
    zero = installed(weights, (1, 28, 28), 9, "class", adapt="all", head="zero").init(g)
    assert zero["head.weight"].shape[0] == 9 and not any(zero[k].any() for k in ("head.weight", "head.bias"))
    assert torch.equal(zero["conv2.weight"], weights.params["conv2.weight"])
    kept = installed(weights, (1, 28, 28), 6, "class", adapt="head", head="kept")
    assert torch.equal(kept.init(g)["head.weight"], weights.params["head.weight"])
    with pytest.raises(ValueError, match="6 output units, but the stream needs 9"):
        installed(weights, (1, 28, 28), 9, "class", head="kept")


def test_the_network_of_a_start_is_drawn_once_a_lane_and_never_to_learn_its_names(file, monkeypatch):
    weights, drawn, of_weights = load(file), [], Weights.net

    def counting(net):
        def init(g):
            params = net.init(g)
            drawn.append(params["head.weight"].device.type)
            return params

        return net._replace(init=init)

    monkeypatch.setattr(Weights, "net", lambda self, n_classes: counting(of_weights(self, n_classes)))
    begun(weights.net(6), weights, known=True)
    assert not only_head(installed(weights, (1, 28, 28), 9, "class", adapt="all"))
    net = installed(weights, (1, 28, 28), 9, "class", adapt="head", head="new", quarter_turns=4)
    assert only_head(net)
    for seed in range(3):
        assert net.init(lifelong.randomness.generator(seed))["head.weight"].shape == (9, 4 * 16)
    assert drawn.count("cpu") == 3


def test_an_installed_network_answers_as_the_learned_one(file):
    weights, x = load(file), torch.rand(3, 1, 28, 28)
    whole = weights.net(6)
    for adapt in ("head", "all"):
        net = installed(weights, (1, 28, 28), 6, "class", adapt=adapt, head="kept")
        params = net.init(torch.Generator())
        torch.testing.assert_close(net.apply(params, x), whole.apply(weights.params, x))
    scaled = installed(weights, (1, 28, 28), 6, "class", adapt="head", length=10.0)
    torch.testing.assert_close(scaled.features({}, x).norm(dim=-1), torch.full((3,), 10.0))


def asked(file, *terms, **options):
    return prepare("split-glyphs(tasks=2, classes_per_task=2)", [" + ".join([f"supervised(file='{file}'{more})", *rest])
                   for more, *rest in terms], Options(seeds=2, epochs=1, **options))


def test_features_computed_once_give_what_computing_them_each_time_gives(file, monkeypatch):
    def scores():
        experiment = asked(file, ("", "er(capacity=4)"), ("", "ncm"), ("", "ewc"), dtype="float64")
        return [run.accuracy for run in experiment.run().runs], experiment

    fast, experiment = scores()
    assert experiment.learners.lanes([experiment.specs[0]]).stream.shape == (4 * 2 * 2,)
    monkeypatch.setattr(lifelong.experiments.learners, "only_head", lambda net: False)
    slow, experiment = scores()
    assert experiment.learners.lanes([experiment.specs[0]]).stream.shape == (1, 28, 28)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_features_are_computed_for_a_run_that_is_there(file, tmp_path, monkeypatch):
    asked(file, ("", "er(capacity=4)")).run(tmp_path)
    sizes, real = [], lifelong.experiments.learners.encoded
    monkeypatch.setattr(lifelong.experiments.learners, "encoded",
                        lambda net, pool, used: sizes.append(len(used)) or real(net, pool, used))
    assert asked(file, ("", "er(capacity=4)")).run(tmp_path).found == 1
    assert sizes == [1]  # of one example, to try a step
    asked(file, ("", "er(capacity=5)")).run(tmp_path)
    assert sizes == [1, 1, 80]


def test_a_part_that_makes_pixels_up_sees_pixels(file):
    experiment = asked(file, ("", "dgr"))
    assert experiment.learners.lanes(experiment.specs).stream.shape == (1, 28, 28)


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A network of one's own, in a file, whose output layer has names of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("""
import torch
from lifelong.networks.mlp import mlp

def renamed(shape, n_classes):
    net = mlp(shape, n_classes, (8,))
    own = {"out.w": "head.weight", "out.b": "head.bias"}
    def back(params):
        return {own.get(k, k): p for k, p in params.items()}
    def init(g):
        return dict(zip(["hidden0.weight", "hidden0.bias", *own], net.init(g).values()))
    return net._replace(init=init, apply=lambda p, x: net.apply(back(p), x), vjp=None, head=tuple(own),
                        features=lambda p, x: net.features(back(p), x))
""")
    return tmp_path / "net.py"


def test_a_network_of_ones_own_is_as_good_as_one_of_the_catalogue(network, source):
    runs = []
    for model in ("mlp(hidden=(8,))", "./net.py:renamed"):
        todo = Pretraining(parse(f"supervised(steps=3, batch=4, model='{model}')"), source)
        save(Path("own.safetensors"), todo.run(None, lifelong.progress.Watcher()))
        runs.append([run.accuracy for run in asked("own.safetensors", ("",), (", quarter_turns=2", "er"), (", adapt='all'",),
                                                   dtype="float64").run().runs])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert todo.spec["sources"] == {"./net.py": plugins.file_digest("./net.py")}
    (setting,) = asked("own.safetensors", ("",)).specs
    assert setting.code == todo.spec["sources"]
    network.write_text(network.read_text() + "# other\n")
    assert Pretraining(parse("supervised(model='./net.py:renamed')"), source).spec["sources"] != todo.spec["sources"]
    with pytest.raises(ValueError, match=r"learned with the network in ./net.py, and ./net.py has changed since"):
        asked("own.safetensors", ("",))
    network.unlink()
    with pytest.raises(LookupError, match=r"supervised was learned as ./net.py:renamed: there is no file ./net.py; paths"):
        asked("own.safetensors", ("",))


def test_a_linear_network_on_warped_images_is_moved_by_the_gradient_of_what_it_answers_with(tmp_path):
    source = make_source("rotated-digits(domains=3)")
    todo = Pretraining(parse("supervised(steps=3, model='mlp(hidden=())')"), source)
    weights = todo.run(None, lifelong.progress.Watcher())
    for more in ({"power": 3.0}, {"quarter_turns": 2}, {"length": 10.0}):
        net = installed(weights, source.shape, 10, "domain", adapt="head", dtype=torch.float64, **more)
        assert net.vjp is None, more
    assert installed(weights, source.shape, 10, "domain", adapt="all").vjp is not None
    save(tmp_path / "linear.safetensors", weights)
    run = lifelong.run("rotated-digits", f"supervised(file='{tmp_path / 'linear.safetensors'}', quarter_turns=2, head='new')",
                       seeds=1, steps=2, overlap=True)
    assert run.accuracy.shape[0] == 1


def test_only_what_moves_is_trained(file):
    experiment = asked(file, (", adapt='all'",), ("",))
    sizes = [set(experiment.learners.lanes([setting]).init()["params"]) for setting in experiment.specs]
    assert len(sizes[0]) == 18 and sizes[1] == {"head.weight", "head.bias"}


def test_a_whole_learner_learns_on_a_starts_network(file):
    run = lifelong.run("split-glyphs(tasks=2, classes_per_task=2)", f"supervised(file='{file}') + ncm", seeds=1)
    other = lifelong.run("split-glyphs(tasks=2, classes_per_task=2)", "ncm", seeds=1, model="conv4(width=4)")
    assert not np.array_equal(run.accuracy, other.accuracy)
    with pytest.raises(ValueError, match="ncm is a whole learner"):
        prepare("split-glyphs", [f"supervised(file='{file}') + ncm + er"], Options(seeds=1))


def test_a_start_that_is_not_there_yet_is_learned_once_and_kept(tmp_path):
    told = []

    class Watcher(lifelong.progress.Watcher):
        def begin(self, title):
            told.append(title)

    def go():
        experiment = prepare("split-glyphs(tasks=2, classes_per_task=2)",
                             ["supervised(steps=3, source='glyphs(classes=6)') + er"], Options(seeds=1, epochs=1))
        return experiment.run(tmp_path, Watcher()).runs[0]

    first = go()
    assert told[0] == "learning supervised(steps=3)" and len(told) == 2
    (kept,) = tmp_path.glob("pretrain-glyphs-v1-supervised-*.safetensors")
    assert first.spec["start"]["strategy"] == "supervised(steps=3)"
    shutil.rmtree(first.about["folder"])
    again = go()
    assert len(told) == 3  # the start was found
    np.testing.assert_array_equal(first.accuracy, again.accuracy)
    assert load(kept).about["steps"] == 3


@pytest.mark.parametrize(("stream", "strategy", "options", "what"), [
    ("split-digits", "supervised", {}, "split-digits-v1 names no source"),
    ("split-digits", "supervised(source='rotated-digits', model='mlp')", {}, "was learned on 10 of the classes that"),
    ("split-glyphs", "supervised", {"model": "mlp"}, "brings its own network"),
    ("split-glyphs", "supervised + supervised(lr=0.1)", {}, "a sum can have one start"),
    ("split-glyphs", "supervised(adapt='body')", {}, "adapt must be one of 'head', 'ungated', 'all'"),
    ("split-glyphs", "supervised(file='none.safetensors')", {}, "there is no file none.safetensors"),
    ("split-glyphs", "supervised(source='glyph')", {}, "there is no source called 'glyph'; did you mean glyphs"),
    ("split-glyphs", "supervised(source='permuted-digits', model='mlp')", {}, r"shape \(1, 8, 8\)"),
])
def test_what_makes_no_sense_is_refused_before_anything_is_learned(stream, strategy, options, what):
    with pytest.raises((ValueError, LookupError, OSError), match=what):
        prepare(stream, [strategy], Options(seeds=1, **options))


def test_whoever_insists_may_test_on_what_was_learned_on_and_the_record_says_so():
    experiment = prepare("split-digits", ["supervised(source='rotated-digits', model='mlp', steps=2)"],
                         Options(seeds=1, epochs=1, overlap=True))
    assert experiment.specs[0].to_json()["overlap"] == 10
    assert experiment.run().runs[0].spec["overlap"] == 10


def test_what_was_learned_on_things_without_names_is_recorded_as_unknown(lifelong, file, tmp_path):
    former = load(file)
    save(tmp_path / "mine.safetensors", Weights(former.params, dict(former.about) | {"content": []}))
    (setting,) = asked(tmp_path / "mine.safetensors", ("",)).specs
    assert setting.to_json()["overlap"] == "unknown" and "overlap" not in asked(file, ("",)).specs[0].to_json()
    assert "no names of classes" in lifelong("list", "mine.safetensors").out


def test_what_the_start_that_learning_begins_with_has_seen_counts_as_seen(file, tmp_path):
    former = load(file)
    save(tmp_path / "seen.safetensors", Weights(former.params, dict(former.about) | {"content": ["glyphs/0"]}))
    strategy = f"supervised(steps=1, begin='{tmp_path / 'seen.safetensors'}', source='glyphs(classes=6)')"
    with pytest.raises(ValueError, match=r"was learned on 1 of the classes .* for example glyphs/0"):
        prepare("split-glyphs", [strategy], Options(seeds=1))
    experiment = prepare("split-glyphs", [strategy], Options(seeds=1, overlap=True))
    assert experiment.specs[0].to_json()["overlap"] == 1


def test_a_file_of_another_start_is_refused(file, tmp_path):
    weights = load(file)
    save(tmp_path / "other.safetensors", Weights(weights.params, dict(weights.about) | {"start": "oml"}))
    with pytest.raises(ValueError, match=r"other.safetensors holds a start oml, not supervised: write oml\(file=...\)"):
        asked(tmp_path / "other.safetensors", ("",))


@pytest.mark.parametrize(("typed", "what"), [
    ("lr=0.1", "lr applies while a start is learned, but .* was already learned with lr=0.001; leave lr out"),
    ("model='mlp'", r"model applies while .* was already learned with model='conv4\(width=4\)'"),
    ("source='nonsense'", "source applies while .* was already learned from glyphs-v1; leave source out")])
def test_beside_a_file_only_how_it_is_used_can_be_said(file, typed, what):
    with pytest.raises(ValueError, match=what):
        asked(file, (", " + typed,))
    assert asked(file, (", steps=3, length=10.0",)).specs  # what is said of it is true


def test_batch_normalisation_that_nobody_would_set_is_refused(source, file):
    with pytest.raises(ValueError, match="oml does not set the statistics of batch normalisation that resnet has"):
        Pretraining(parse("oml(model='resnet')"), source)


@pytest.mark.parametrize("strategy", ["supervised", "supervised + er + ewc", "supervised + ncm"])
def test_what_is_added_to_a_start_keeps_the_contract(strategy):
    assert not checks.failures(strategy)


def test_a_starts_numbers_are_no_lanes():
    assert not catalogue.is_real(supervised, "lr")
    assert isinstance(supervised(), Initialization)


# ---- the command


def test_the_command_writes_the_file_and_finds_it_again(lifelong, tmp_path):
    words = ("pretrain", "glyphs(classes=6)", LEARNED, "--out", "s.safetensors")
    said = lifelong(*words)
    assert said.code == 0 and "3 steps on glyphs-v1" in said.out and "s.safetensors" in said.out
    first = (tmp_path / "s.safetensors").read_bytes()
    (kept,) = (tmp_path / "runs").glob("*.safetensors")
    assert load(kept).about["loss"] and not list((tmp_path / "runs").glob(".stacks"))
    assert lifelong(*words, "--quiet") == (0, "", "")
    assert (tmp_path / "s.safetensors").read_bytes() == first


def test_a_file_can_be_looked_into(lifelong, file, tmp_path):
    said = lifelong("list", file)
    assert said.code == 0 and "glyphs-v1" in said.out and "6 names, glyphs/1000000 to glyphs/1000005" in said.out
    assert json.loads(lifelong("list", file, "--json").out)["steps"] == 3
    (tmp_path / "no.safetensors").write_bytes(b"no start")
    refused(lifelong("list", "no.safetensors"), "no.safetensors is damaged or no start")
    refused(lifelong("list", "none.safetensors"), "there is no file none.safetensors")
    refused(lifelong("list", "./none.py:mine"), "there is no file ./none.py")


@pytest.mark.parametrize(("words", "what"), [
    (("glyphs", "er"), "'er' is not a learned start; choose one of"),
    (("glyphs", "supervised(steps=0)"), "supervised: steps must be 1 or more, got 0"),
    (("glyphs", "supervised(lr=[0.1,0.2])"), "supervised: lr takes one value"),
    (("glyps", "supervised"), "there is no source called 'glyps'; did you mean glyphs"),
    (("glyphs(first=-1)", "supervised"), "glyphs: first must be 0 or more, got -1"),
    (("glyphs(classes=0)", "supervised"), "classes must be a whole number of 1 or more, got 0"),
    (("glyphs", "supervised", "--precision", "half"), "--precision must be one of"),
    (("glyphs", "supervised", "--out", "nowhere/s.safetensors"), "there is no folder nowhere"),
    (("glyphs", "supervised", "--out", "s.pt"), "--out must be a file such as s.safetensors, got s.pt"),
    (("glyphs", "supervised(model='er')"), "there is no model called 'er'; it is one of the strategies"),
])
def test_what_the_command_refuses(lifelong, tmp_path, words, what):
    refused(lifelong("pretrain", *words), what)
    assert not list(tmp_path.iterdir())


def test_a_start_that_another_process_learns_is_left_to_it(lifelong, tmp_path):
    todo = Pretraining(parse(LEARNED), make_source("glyphs(classes=6)"))
    with Workshop(tmp_path / "runs", [todo.spec]).open():
        refused(lifelong("pretrain", "glyphs(classes=6)", LEARNED, "--quiet"), "another process is training this")


def test_a_divergence_names_the_last_good_checkpoint(lifelong, tmp_path):
    (tmp_path / "mine.py").write_text("""
import torch
from lifelong.learning.optim import sgd
from lifelong.starts.recipe import Recipe, pretrained

@pretrained()
def blows(steps: int = 400, lr: float = 1.3):
    "A number that runs away."
    return Recipe("mlp", steps, lambda sampler: {},
                  lambda net, params, episode: (params["w"].square().sum(), {"odd": torch.tensor(torch.nan)}),
                  lambda step: sgd(lr), extra_params=lambda net, params: {"w": torch.ones(1)})
""")
    said = lifelong("pretrain", "glyphs(classes=6)", "./mine.py:blows", "--save-every", "0", "--quiet")
    assert "A number that runs away." in lifelong("list", "./mine.py:blows").out
    fine = lifelong("pretrain", "glyphs(classes=6)", "./mine.py:blows(lr=0.1)").out
    assert '"./mine.py:blows(file=' in fine and "odd nan at the first and nan at the last step" in fine
    refused(said, "diverged", "the last good checkpoint is")
    named = said.err.split("the last good checkpoint is ")[1].split(";")[0]
    checkpoint = torch.load(tmp_path / named, weights_only=True)["content"]["inner"]
    assert checkpoint["logs"]["loss"][:checkpoint["step"]].isfinite().all()
    assert json.loads((tmp_path / named).with_name("stack.json").read_text())["specs"][0]["strategy"]


# ---- files from strangers


EVIL = "open('ran', 'w').close()\nfrom lifelong.networks.mlp import mlp\ndef net(shape, n_classes): return mlp(shape, n_classes)\n"


def rewritten(file: Path, **changes: Any) -> dict[str, Any]:
    """Writes a start's file anew with other facts about it, as somebody who knows how would; returns the facts before."""
    weights = load(file)
    save(file, Weights(weights.params, {**weights.about, **changes}))
    return dict(weights.about)


@pytest.fixture
def learned(lifelong: Command) -> Path:
    assert lifelong("pretrain", "glyphs", "supervised(steps=2, batch=4, model='mlp')", "--out", "own.safetensors", "--quiet").code == 0
    Path("evil.py").write_text(EVIL)
    return Path("own.safetensors")


USES = {"run": ["run", "split-glyphs", "supervised(file='own.safetensors')", "--seeds", "1", "--steps", "1", "--quiet"],
        "fewshot": ["fewshot", "glyphs(first=500, classes=50)", "own.safetensors", "--episodes", "2"],
        "pretrain": ["pretrain", "glyphs", "supervised(steps=1, batch=4, begin='own.safetensors')", "--quiet"],
        "list": ["list", "own.safetensors"]}


@pytest.mark.parametrize("changes", [{"model": "./evil.py:net"}, {"strategy": "./evil.py:net"}])
@pytest.mark.parametrize("use", USES)
def test_the_file_of_a_start_runs_no_python_file_until_it_is_trusted(use: str, changes: dict[str, str], learned: Path,
                                                                     lifelong: Command) -> None:
    rewritten(learned, **changes)
    said = lifelong(*USES[use])
    assert not Path("ran").exists(), "a file that only a record names has been run"
    if said.code:
        refused(said, "./evil.py is named in a record", "--trust")
    if use in ("run", "pretrain") and "model" in changes:
        assert said.code == 2 and lifelong(*USES[use], "--trust").code == 0 and Path("ran").exists()


def test_what_a_start_says_of_itself_is_covered_by_a_digest(learned: Path) -> None:
    content, about = bytearray(learned.read_bytes()), dict(load(learned).about)
    end, noticed, tried = 8 + int.from_bytes(content[:8], "little"), 0, range(8, 2000, 7)
    assert tried.stop < end
    for at in tried:
        content[at] ^= 1
        learned.write_bytes(content)
        try:
            assert dict(load(learned).about) == about, f"the byte {at} is not covered"
        except ValueError:
            noticed += 1
        content[at] ^= 1
    assert noticed > 0.9 * len(tried)  # the others are white space


@pytest.mark.parametrize("use", ["run", "pretrain"])
def test_a_network_of_another_size_is_refused_before_it_takes_memory(use: str, learned: Path, lifelong: Command) -> None:
    rewritten(learned, model="mlp(hidden=(1000000000,))")
    refused(lifelong(*USES[use]), "hidden0.weight", "1000000000")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float, learned: Path, lifelong: Command) -> None:
    weights = load(learned)
    weights.params["head.bias"][0] = value
    save(learned, weights)
    refused(lifelong(*USES["run"]), "own.safetensors", "head.bias", "not finite")
