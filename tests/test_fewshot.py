"""Few-shot evaluation: episodes, accuracies worked by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelong.streams import digits, glyphs
from torch import Tensor

from lifelong import cli, store
from lifelong.data.source import Source
from lifelong.metrics import mean_interval
from lifelong.networks.conv import conv4
from lifelong.networks.net import Net, Params
from lifelong.starts import fewshot
from lifelong.starts.fewshot import Evaluation, transductive
from lifelong.starts.recipe import nearest_mean
from lifelong.starts.weights import Weights, save

pytestmark = pytest.mark.usefixtures("undrawn")


def points(values: list[list[float]], name: str = "points-v1") -> Source:
    """Examples of one number; `values` are those of each class."""
    x = torch.tensor(values).view(-1, 1)
    k, n = len(values), len(values[0])
    return Source(name, x, torch.arange(k).repeat_interleave(n), torch.arange(k * n).view(1, k, n), (1,),
                  content=frozenset(f"points/{c}" for c in range(k)))


def start(model: str = "mlp(hidden=())", shape: tuple[int, ...] = (1,), content: tuple[str, ...] = (),
          strategy: str = "supervised", units: int = 2) -> Weights:
    """A start as it is drawn; of `mlp(hidden=())` the features are the example itself."""
    about: dict[str, Any] = {"start": strategy.split("(")[0], "strategy": strategy, "model": model, "units": units,
                             "shape": list(shape), "content": list(content), "source": "elsewhere-v1",
                             "source_options": {}, "steps": 1, "domains": 1}
    net = Weights({}, about, trusted=True).net(units)
    return Weights(net.init(torch.Generator().manual_seed(0)), about, trusted=True)


def evaluation(source: Source, weights: Weights, **options: Any) -> Evaluation:
    return Evaluation(source, weights, **({"way": 2, "shots": 1, "queries": 2, "episodes": 40} | options))


def accuracies(made: Evaluation) -> np.ndarray:
    """Of every episode, by its own rows and a loop."""
    found = []
    for rows in made.rows():
        x = made.source.x[rows].flatten(2).squeeze(-1).numpy()
        centres = x[:, :made.shots].mean(1)
        right = [np.argmin((value - centres) ** 2) == c for c in range(made.way) for value in x[c, made.shots:]]
        found.append(np.mean(right))
    return np.array(found)


def test_classes_apart_are_told_apart_and_equal_ones_are_not() -> None:
    apart = evaluation(points([[0.0, 0.1, 0.2], [5.0, 5.1, 5.2], [9.0, 9.1, 9.2]]), start()).run()
    assert (apart["accuracy"], apart["half_width"], apart["transductive"]) == (1.0, 0.0, None)
    # Equal scores: the first class is answered, and half of the queries are of it.
    assert evaluation(points([[1.0] * 3, [1.0] * 3]), start()).run()["accuracy"] == 0.5


def test_accuracy_and_interval_are_those_of_a_loop_over_the_episodes() -> None:
    made = evaluation(points([[0.0, 1.0, 4.0, 2.0], [2.0, 3.0, 1.0, 5.0], [3.5, 0.5, 6.0, 7.0]]), start(), way=3,
                      shots=2, episodes=50)
    by_hand = accuracies(made)
    assert 0.2 < by_hand.mean() < 0.9
    found = made.run()
    mean, half = mean_interval(by_hand)
    assert (found["accuracy"], found["half_width"]) == pytest.approx((float(mean), float(half)))
    # 1.96 and a little more, for it is a t interval.
    assert found["half_width"] == pytest.approx(2.0096 * by_hand.std(ddof=1) / 50**0.5, rel=1e-4)


def test_episodes_are_drawn_by_seed_and_the_first_are_the_same_however_many() -> None:
    source = points([[float(c + 10 * i) for i in range(6)] for c in range(7)])
    many, few, other = (evaluation(source, start(), episodes=n, seed=s).rows() for n, s in ((30, 0), (5, 0), (5, 1)))
    assert torch.equal(many[:5], few) and not torch.equal(few, other)
    assert many.shape == (30, 2, 3)
    for rows in many:
        assert len(set(rows.flatten().tolist())) == 6 and all(len(set((own // 6).tolist())) == 1 for own in rows)
        assert len(set((rows[:, 0] // 6).tolist())) == 2


def test_features_computed_once_give_what_every_episode_would(monkeypatch: pytest.MonkeyPatch) -> None:
    source = glyphs.source(classes=6, turned=True)
    weights = start("conv4(width=4)", (1, 28, 28))
    seen: list[int] = []

    def counted(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        seen.append(x.dim())
        return nearest_mean(net, params, x, y, query, way)

    made = evaluation(source, weights, way=5, queries=4, episodes=30)
    once = made.run()
    monkeypatch.setattr(fewshot, "own_answer", lambda weights: counted)
    assert made.run()["accuracy"] == once["accuracy"]
    assert set(seen) == {4}  # images, where the other saw features
    assert (once["answer"], made.run()["answer"]) == ("nearest mean of features", "its own")


def test_an_answer_that_cannot_be_lifted_goes_episode_by_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        assert net.features is not None
        if float(x.sum()) > -1:  # reads a number
            return nearest_mean(net, params, x, y, query, way)
        return query

    source = points([[0.0, 1.0, 4.0, 2.0], [2.0, 3.0, 1.0, 5.0]])
    expected = evaluation(source, start()).run()["accuracy"]
    monkeypatch.setattr(fewshot, "own_answer", lambda weights: stubborn)
    assert evaluation(source, start()).run()["accuracy"] == expected


def test_transductive_batch_normalisation_is_reported_apart() -> None:
    source, weights = glyphs.source(classes=6), start("conv4(width=4, norm='batch')", (1, 28, 28))
    made = evaluation(source, weights, way=3, episodes=20)
    found = made.run()
    assert found["transductive"]["accuracy"] != found["accuracy"]
    net, right = conv4((1, 28, 28), 2, 4, norm="batch"), []
    assert net.fresh is not None
    for rows in made.rows():
        x = source.sampler(torch.Generator()).fetch(rows)[0]
        z = net.fresh(weights.params, torch.cat([x[:, 0], x[:, 1:].flatten(0, 1)]))[0]
        right.append(float(((z[3:, None] - z[:3]).norm(dim=-1).argmin(1) == torch.arange(3).repeat_interleave(2))
                           .float().mean()))
    assert found["transductive"]["accuracy"] == pytest.approx(np.mean(right), abs=0.02)
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(transductive(net).apply(weights.params, x), torch.nn.functional.linear(
        net.fresh(weights.params, x)[0], weights.params["head.weight"], weights.params["head.bias"]))


def test_a_start_with_an_answer_of_its_own_is_asked() -> None:
    source = glyphs.source(classes=8)
    weights = start("conv4(width=4, norm='batch')", (1, 28, 28), strategy="maml(test_inner=1)", units=3)
    found = evaluation(source, weights, way=3, episodes=10).run()
    assert found["answer"] == "its own" and 0.2 < found["accuracy"] < 1
    with pytest.raises(ValueError, match="has 3 output units"):
        evaluation(source, weights, way=4, episodes=10).run()


def test_an_episode_of_several_domains_is_one_of_them() -> None:
    source = digits.rotations(domains=3)
    weights = start("mlp(hidden=(8,))", (1, 8, 8))
    assert evaluation(source, weights, way=10, episodes=10).run()["accuracy"] > 0.2
    with pytest.raises(ValueError, match=r"^way must be 10, got 5: .* an episode has all classes of one"):
        evaluation(source, weights, way=5)


THREE = points([[0.0, 1.0, 2.0]] * 3)


@pytest.mark.parametrize(("options", "said"), [
    ({"shots": 2, "queries": 2}, "points-v1 has 3 examples per class, fewer than the 4 requested"),
    ({"way": 4}, "points-v1 has 3 classes, fewer than the 4 requested"),
    ({"way": 1}, "^way must be 2 or more"), ({"shots": 0}, "^shots must be 1"),
    ({"queries": 0}, "^queries must be 1"), ({"episodes": 1}, "^episodes must be 2"),
])
def test_what_the_source_cannot_give_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluation(THREE, start(), **options)


def test_a_start_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"examples of shape \(3,\), but those of points-v1 have shape \(1,\)"):
        evaluation(THREE, start(shape=(3,)))
    with pytest.raises(ValueError, match=r"learned on 1 of the classes of points-v1, for example points/2.*allow it with overlap"):
        evaluation(THREE, start(content=("points/2", "other/1")))
    assert evaluation(THREE, start(content=("points/2",)), overlap=True).run()["overlap"] == 1


# ---- the command


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`lifelong fewshot WORDS...` as the shell calls it: exit code, output, complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lifelong", "fewshot", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


FEW = ("--way", "3", "--queries", "2", "--episodes", "10")


def test_the_command_prints_both_numbers_and_json(said: Any) -> None:
    save(Path("a.safetensors"), start("conv4(width=4, norm='batch')", (1, 28, 28), strategy="protonet"))
    code, out, err = said("glyphs(classes=6)", "protonet(file='a.safetensors')", *FEW, "--quiet")
    assert code == 0 and "3-way 1-shot" in out and "t interval over 10 episodes" in out and not err
    assert "each query by itself" in out and "transductive batch normalisation" in out
    code, out, _ = said("glyphs(classes=6)", "a.safetensors", *FEW, "--json")
    found = json.loads(out)
    assert code == 0 and (found["way"], found["episodes"], found["interval"]) == (3, 10, "95 % t over episodes")
    assert set(found["transductive"]) == {"accuracy", "half_width"} and len(found["sha256"]) == 64


def test_what_was_asked_before_is_found_and_not_measured_again(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("a.safetensors"), start("conv4(width=4, norm='batch')", (1, 28, 28), strategy="protonet"))
    words = ("glyphs(classes=6)", "a.safetensors", *FEW, "--json")
    first = json.loads(said(*words, "--no-transductive")[1])
    assert first["transductive"] is None
    both = json.loads(said(*words)[1])
    assert both["transductive"] and both["accuracy"] == first["accuracy"], "it was not known yet"
    (file,) = Path("runs/fewshot").iterdir()
    assert store.load_evaluation(file) == both
    measured = Evaluation.run
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("measured again"))
    assert json.loads(said(*words)[1]) == json.loads(said(*words, "--no-transductive")[1]) == both
    code, out, _ = said(*words[:-1])
    assert code == 0 and f"reused from {file}" in out
    monkeypatch.setattr(Evaluation, "run", measured)
    assert said(*words[:-1], "--seed", "1")[0] == 0
    save(Path("a.safetensors"), start("conv4(width=4, norm='batch', down='pool')", (1, 28, 28), strategy="protonet"))
    assert "kept in" in said(*words[:-1])[1], "other weights in the file are another start"
    assert len(list(Path("runs/fewshot").iterdir())) == 3
    file.write_text("{}")
    save(Path("a.safetensors"), start("conv4(width=4, norm='batch')", (1, 28, 28), strategy="protonet"))
    code, out, err = said(*words)
    assert (code, out, file.read_text()) == (3, "", "{}") and file.name in err and len(err.splitlines()) == 1


def test_a_start_of_a_file_that_has_changed_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = ("from lifelong.starts.recipe import Recipe, pretrained\n@pretrained(adapt='head')\ndef mine(steps: int = 1):\n"
            "    return Recipe('conv4', steps, None, None, None)\n")
    asked = []
    for more in ("", "# an answer of its own, say\n"):
        Path("mine.py").write_text(code + more)
        asked.append(evaluation(THREE, start(strategy="./mine.py:mine")).question)
    assert asked[0] != asked[1] and asked[0] | {"sources": 0} == asked[1] | {"sources": 0}


def test_a_start_is_learned_first_where_it_names_its_source(said: Any) -> None:
    words = ("glyphs(classes=6, turned=True)", "protonet(source='digits', steps=1)")
    code, _, err = said(*words, *FEW)
    assert code == 2 and "no source called 'digits'" in err
    code, out, _ = said("glyphs(classes=6)", "supervised(source='glyphs(classes=4)', steps=1, model='conv4(width=2)')",
                        *FEW, "--overlap", "--store", "kept")
    assert code == 0 and "learned on 4 of these classes" in out and list(Path("kept").rglob("*.safetensors"))


def test_what_cannot_be_asked_is_refused_before_a_start_is_learned(said: Any) -> None:
    for words, part in [(("supervised(source='glyphs(classes=9)')",), "was learned on 6 of the classes"),
                        (("maml(source='glyphs(first=9, classes=9)')", "--way", "6"), "this maml has 5 output units"),
                        (("fomaml(source='glyphs(first=9, classes=9)')", "--way", "6"), "this fomaml has 5"),
                        (("supervised(source='glyphs(classes=9)', length=3.0)",), "length applies to streams only")]:
        code, out, err = said("glyphs(classes=6)", *words)
        assert (code, out) == (2, "") and part in err and len(err.splitlines()) == 1
        assert not Path("runs").exists()


def test_a_start_of_float64_is_asked_in_float64(said: Any) -> None:
    weights = start("conv4(width=4)", (1, 28, 28))
    save(Path("a.safetensors"), Weights({k: p.double() for k, p in weights.params.items()}, weights.about))
    code, out, err = said("glyphs(classes=6)", "a.safetensors", *FEW, "--quiet")
    assert (code, err) == (0, "") and "each query by itself" in out


def test_wrong_words_get_one_sentence(said: Any, tmp_path: Path) -> None:
    save(Path("a.safetensors"), start("conv4(width=4)", (1, 28, 28), strategy="protonet"))
    damaged = bytearray(Path("a.safetensors").read_bytes())
    damaged[-1] ^= 1
    Path("damaged.safetensors").write_bytes(damaged)
    Path("short.safetensors").write_bytes(damaged[:400])
    for words, part in [
        (("glyphs(classes=6)", "nowhere.safetensors"), "there is no file"),
        (("glyphs(classes=6)", "damaged.safetensors"), "is damaged"),
        (("glyphs(classes=6)", "short.safetensors"), "is damaged"),
        (("glyphs(classes=6)", "maml(file='a.safetensors')"), "holds a start protonet, not maml"),
        (("glyphs(classes=6)", "maml"), "maml needs a source"),
        (("glyphs(classes=6)", "random"), "not a learned start"),
        (("glyphs(classes=6)", "a.safetensors", "--way", "7"), "glyphs-v1 has 6 classes, fewer than the 7 requested"),
        (("glyphs(classes=6)", "a.safetensors", "--queries", "20"), "glyphs-v1 has 20 examples per class, fewer than the 21 requested"),
        (("rotated-digits(domains=2)", "a.safetensors"), "of shape"),
        (("glyphs(classes=6)", "a.safetensors", "--way", "many"), "--way"),
    ]:
        code, _, err = said(*words)
        assert (code, len(err.strip().splitlines())) == (2, 1), (words, err)
        assert part in err, (words, err)
