"""Expressions are read and written back, never evaluated; a mistake gets a sentence that names it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.experiments.compose import compose
from lifelong.experiments.prepare import make_stream
from lifelong.learning.composition import GradientLearner
from lifelong.learning.learner import Initialization
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Part
from lifelong.networks.mlp import mlp
from lifelong.spec import catalogue, expression, plugins
from lifelong.spec.expression import Term, parse, written
from lifelong.spec.run import Options


def shape(text: str, kind: str = "strategies") -> list[tuple[str, dict[str, Any]]]:
    return [(term.name, dict(term.given)) for term in parse(text, kind)]


# ---- reading and writing


@pytest.mark.parametrize(("text", "terms"), [
    ("er", [("er", {})]),
    ("er()", [("er", {})]),
    (" er ( capacity = 200 ) ", [("er", {"capacity": 200})]),
    ("er(capacity=200) + ewc(strength=50)", [("er", {"capacity": 200}), ("ewc", {"strength": 50.0})]),
    ("er+(ewc+lwf)", [("er", {}), ("ewc", {}), ("lwf", {})]),
    ("er(memory='class-balanced', replay=3)", [("er", {"memory": "class-balanced", "replay": 3})]),
    ("ewc(strength=-0.0)", [("ewc", {"strength": 0.0})]),
    ("ewc(strength=[1, 10.5])", [("ewc", {"strength": [1.0, 10.5]})]),
    ("random + er", [("random", {}), ("er", {})]),
])
def test_an_expression_is_read_as_terms(text, terms):
    assert shape(text) == terms


def test_numbers_become_the_type_that_is_declared():
    (ewc,) = parse("ewc(strength=3, samples=7)")
    assert type(ewc.given["strength"]) is float and type(ewc.given["samples"]) is int


@pytest.mark.parametrize(("text", "canonical"), [
    ("er(capacity=500)+ewc( strength=50.0 )", "er + ewc(strength=50)"),
    ("ewc(mode='separate')", "ewc"),
    ("er(replay=3, capacity=5)", "er(capacity=5, replay=3)"),
    ("ewc(strength=1e-5)", "ewc(strength=1e-05)"),
    ("ewc(strength=0.1234567891)", "ewc(strength=0.1234567891)"),
    ("ewc(strength=[1,10.0])", "ewc(strength=[1, 10])"),
    ("er(memory=\"class-balanced\")", "er(memory='class-balanced')"),
])
def test_it_is_written_without_defaults_in_one_way(text, canonical):
    assert written(parse(text)) == canonical
    assert written(parse(canonical)) == canonical


@settings(max_examples=100, deadline=None)
@given(strength=st.floats(0, 1e300), capacity=st.integers(1, 10**12), samples=st.integers(0, 9),
       mode=st.sampled_from(["separate", "online"]), temperatures=st.lists(st.floats(1e-300, 1e9), min_size=1))
def test_what_is_written_reads_back_as_the_same_values(strength, capacity, samples, mode, temperatures):
    text = (f"er(capacity={capacity}) + ewc(strength={strength!r}, samples={samples}, mode={mode!r}) "
            f"+ lwf(temperature={temperatures!r})")
    terms = parse(text)
    again = parse(written(terms))
    assert [t.resolved() for t in again] == [t.resolved() for t in terms]
    assert again[1].given.get("strength", 10.0) == strength


@pytest.mark.parametrize(("text", "kind", "hidden"), [
    ("mlp(hidden=(256, 128))", "models", (256, 128)), ("mlp(hidden=[256, 128])", "models", (256, 128)),
    ("mlp(hidden=())", "models", ()), ("mlp(hidden=[])", "models", ()), ("mlp(hidden=(3,))", "models", (3,)),
])
def test_a_list_for_a_sequence_is_one_value(text, kind, hidden):
    (term,) = parse(text, kind)
    assert term.given["hidden"] == hidden and isinstance(term.given["hidden"], tuple)
    assert parse(str(term), kind)[0].resolved() == term.resolved()


def test_lists_make_a_grid():
    grid = expression.settings(parse("er(capacity=[10, 20]) + ewc(strength=[1, 2, 3], samples=4)"))
    assert [written(terms) for terms in grid] == [
        f"er(capacity={c}) + ewc(strength={s}, samples=4)" for c in (10, 20) for s in (1, 2, 3)]
    assert [str(terms[0]) for terms in expression.settings(parse("mlp(hidden=[(10,), (20, 5)])", "models"))] == [
        "mlp(hidden=(10,))", "mlp(hidden=(20, 5))"]


@pytest.mark.parametrize(("text", "name"), [
    ("split-digits", "split-digits"), ("split-digits-v1", "split-digits-v1"), ("split-digits(tasks=3)", "split-digits"),
    ("rotated-mnist-gem", "rotated-mnist-gem")])
def test_streams_have_hyphens(text, name):
    (term,) = parse(text, "streams")
    assert term.name == name and term.factory is catalogue.lookup("streams", name.removesuffix("-v1"))


def test_another_version_of_a_stream_is_not_this_one():
    with pytest.raises(LookupError, match="split-digits-v9"):
        make_stream("split-digits-v9", Options(seeds=1))


# ---- mistakes


@pytest.mark.parametrize(("text", "kind", "words"), [
    ("ewq", "strategies", ["strategy", "'ewq'", "did you mean ewc"]),
    ("finetun + er", "strategies", ["did you mean finetune"]),
    ("split-digit", "streams", ["stream", "did you mean", "split-digits"]),
    ("zzzzzz", "strategies", ["'zzzzzz'", "known: ", "er", "lwf"]),
    ("mlp", "strategies", ["one of the models"]),
    ("er.ewc", "strategies", ["no framework called 'er'", "known: avalanche"]),
    ("adm", "optimizers", ["optimizer", "adam"]),
    ("er(capasity=3)", "strategies", ["er has no hyper-parameter 'capasity'", "did you mean capacity"]),
    ("er(qqq=3)", "strategies", ["'qqq'", "it has capacity, replay, memory"]),
    ("finetune(capacity=3)", "strategies", ["finetune", "none"]),
    ("ncm(net=3)", "strategies", ["ncm has no hyper-parameter 'net'"]),
])
def test_an_unknown_name_gets_the_nearest(text, kind, words):
    with pytest.raises(LookupError) as error:
        parse(text, kind)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("text", "words"), [
    ("er(capacity='a')", ["er: capacity must be an integer", "'a'"]),
    ("er(capacity=1.5)", ["capacity must be an integer", "1.5"]),
    ("er(capacity=True)", ["capacity must be an integer", "True"]),
    ("er(capacity=None)", ["capacity must be an integer", "None"]),
    ("er(capacity=(1, 2))", ["capacity must be an integer"]),
    ("er(capacity=[[1, 2]])", ["capacity must be an integer"]),
    ("er(capacity=[10, 'a'])", ["capacity must be an integer", "'a'"]),
    ("er(capacity={1: 2})", ["capacity must be an integer"]),
    ("er(memory=3)", ["memory must be a string"]),
    ("ewc(strength='10')", ["strength must be a number"]),
    ("ewc(strength=True)", ["strength must be a number"]),
    ("ewc(strength=1e999)", ["strength must be a", "number"]),
    ("ewc(strength=nan)", ["strength must be a plain value"]),
    ("ewc(strength=[])", ["strength", "empty list"]),
    ("ewc(strength=10**3)", ["strength must be a plain value"]),
    ("er(200)", ["er", "name=value"]),
    ("er(*[1])", ["er", "name=value"]),
    ("er(**{'capacity': 3})", ["er", "name=value"]),
    ("er(capacity=1, capacity=2)", ["capacity"]),
    ("er + ", ["cannot read 'er + '", "er(capacity=200)"]),
    ("", ["cannot read"]),
    ("er - ewc", ["cannot read"]),
    ("er(capacity=200", ["cannot read"]),
    ("er; ewc", ["cannot read"]),
    ("2 * er", ["cannot read"]),
    ("er\0", ["cannot read"]),
    ("(" * 5000 + "er", ["cannot read"]),
    ("+".join(["er"] * 20000), ["cannot read"]),
])
def test_a_mistake_gets_a_sentence_that_names_it(text, words):
    with pytest.raises(ValueError) as error:
        parse(text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["mlp(hidden=100)", "mlp(hidden='wide')", "mlp(hidden=('a',))", "mlp(hidden=(1.5,))",
                                  "mlp(hidden=(True,))", "mlp(hidden=None)"])
def test_a_sequence_of_the_wrong_kind_is_refused_by_name(text):
    with pytest.raises(ValueError, match="hidden"):
        expression.build(parse(text, "models")[0], {"shape": (8,), "n_classes": 6})


@pytest.mark.parametrize(("text", "words"), [
    ("er(capacity=0)", "er: capacity must be 1 or more, got 0"), ("er(capacity=-5)", "capacity"),
    ("er(replay=-1)", "replay"), ("er(memory='circle')", "memory must be one of"), ("ewc(strength=-1)", "strength"),
    ("ewc(decay=-0.5)", "decay"), ("ewc(decay=1.5)", "decay"), ("ewc(mode='x')", "mode"), ("ewc(labels='x')", "labels"),
    ("lwf(temperature=0)", "temperature"), ("agem(capacity=0)", "agem: capacity"), ("agem(reference=0)", "reference"),
    ("slda(shrinkage=0)", "shrinkage"), ("slda(shrinkage=1.5)", "shrinkage"),
])
def test_a_value_outside_its_documented_range_is_refused_by_name(text, words):
    with pytest.raises(ValueError, match=words):
        expression.build(parse(text)[0], {"net": mlp((8,), 6), "n_classes": 6})


# ---- nothing is evaluated


@pytest.mark.parametrize("text", [
    "__import__('os').system('touch {mark}')", "__import__('os')", "er(capacity=__import__('os').system('touch {mark}'))",
    "er(capacity=[open('{mark}', 'w')])", "(lambda: open('{mark}', 'w'))()", "er if open('{mark}', 'w') else ewc",
    "[er for er in open('{mark}', 'w')]", "er(capacity=f'{{open(\"{mark}\", \"w\")}}')", "(er := ewc)",
    "er(memory=().__class__.__bases__[0].__subclasses__())", "eval('1')", "exec", "print",
])
def test_text_is_never_evaluated(text, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises((ValueError, LookupError)):
        parse(text.format(mark=mark))
    assert not mark.exists()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="er+wc(=)1.'[] ,capacity_0f\\-*{}:\n\"#", max_size=30))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_text_is_read_or_refused(text):
    try:
        terms = parse(text)
    except (ValueError, LookupError) as error:
        assert str(error)
    else:
        assert [t.resolved() for t in parse(written(terms))] == [t.resolved() for t in terms]


# ---- files


def a_file(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_a_catalogue_of_its_own(tmp_path):
    file = a_file(tmp_path, "from lifelong import Part\ndef mine(strength: float = 1.0):\n    return Part()\n")
    terms = parse(f"{file}:mine(strength=2)+er")
    assert [t.name for t in terms] == ["mine", "er"]
    assert terms[0].path == str(file) and isinstance(expression.build(terms[0], {}), Part)
    assert written(terms) == f"{file}:mine(strength=2) + er"
    assert written(parse(written(terms))) == written(terms)


def test_a_file_named_in_quotes_is_a_value(tmp_path):
    net = a_file(tmp_path, "def mine():\n    pass\n", "it's.py")
    (term,) = parse(f'supervised(model="{net}:mine")')
    assert term.given == {"model": f"{net}:mine"}
    assert parse(written([term]))[0].given == term.given


def test_a_file_is_what_it_is_now_though_its_size_and_time_are_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    answers = []
    for number in (1, 2):
        file = a_file(tmp_path, f"def mine():\n    return {number}\n")
        os.utime(file, (0, 0))
        answers.append(parse(f"{file}:mine")[0].factory())
    assert answers == [1, 2] and not (tmp_path / "__pycache__").exists()


def test_a_file_keeps_its_own_futures(tmp_path):
    file = a_file(tmp_path, "def mine(strength: float = 1.0):\n    pass\n")
    assert parse(f"{file}:mine")[0].factory.__annotations__ == {"strength": float}


def test_a_file_is_found_from_the_folder_one_is_in(tmp_path, monkeypatch):
    a_file(tmp_path, "from lifelong import Part\ndef mine():\n    return Part()\n")
    monkeypatch.chdir(tmp_path)
    assert written(parse("./mine.py:mine + mine.py:mine")) == "./mine.py:mine + mine.py:mine"


@pytest.mark.parametrize(("code", "name", "kind", "words"), [
    (None, "mine", LookupError, ["there is no file", "mine.py"]),
    ("def other(): ...\n", "othr", LookupError, ["mine.py has no 'othr'", "other"]),
    ("mine = 3\n", "mine", LookupError, ["mine.py has no 'mine'"]),
    ("1 / 0\n", "mine", ImportError, ["mine.py does not import", "ZeroDivisionError"]),
    ("def mine(:\n", "mine", ImportError, ["mine.py does not import", "SyntaxError"]),
    ("raise SystemExit(0)\n", "mine", ImportError, ["mine.py does not import", "SystemExit"]),
    ("import nosuchmodule\n", "mine", ImportError, ["nosuchmodule"]),
])
def test_a_file_that_cannot_serve_says_why(code, name, kind, words, tmp_path):
    if code is not None:
        a_file(tmp_path, code)
    with pytest.raises(kind) as error:
        parse(f"{tmp_path / 'mine.py'}:{name}")
    for word in words:
        assert word in str(error.value)
    assert not any(m.startswith("lifelong_file_") and getattr(sys.modules[m], "__file__", "") == str(
        tmp_path / "mine.py") for m in sys.modules) or kind is LookupError


def test_a_hyper_parameter_without_a_default_is_refused(tmp_path):
    file = a_file(tmp_path, "def mine(strength): ...\n")
    with pytest.raises(TypeError, match="'strength' needs a default"):
        parse(f"{file}:mine(strength=3)")


def test_a_file_that_changed_is_read_again(tmp_path):
    code = "from lifelong import Part\ndef mine():\n    return Part(draws={})\n"
    file = a_file(tmp_path, code.format(1))
    before = plugins.file_digest(str(file))
    assert expression.build(parse(f"{file}:mine")[0], {}).draws == 1
    a_file(tmp_path, code.format(22))
    os.utime(file, (1, 1))
    assert plugins.file_digest(str(file)) != before
    assert expression.build(parse(f"{file}:mine")[0], {}).draws == 22


@pytest.mark.parametrize("statement", ["import {0} as h; SIZE = h.SIZE", "from {0} import SIZE", "from {0} import one; SIZE = one.SIZE",
                                       "def mine():\n    from {0} import SIZE\nmine()\nfrom {0} import SIZE"])
def test_modules_that_a_file_imports_are_part_of_it(statement, tmp_path, monkeypatch, request):
    name = f"helper_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(tmp_path / "lib")
    (tmp_path / "lib" / name).mkdir(parents=True)
    inner, top = tmp_path / "lib" / name / "one.py", tmp_path / "lib" / name / "__init__.py"
    inner.write_text("import json, torch\nSIZE = 1\n")
    top.write_text("from .one import SIZE\n")
    file = a_file(tmp_path, statement.format(name) + "\nfrom lifelong import Part\ndef mine(): return Part(draws=SIZE)\n")

    def drawn() -> int:
        return expression.build(parse(f"{file}:mine")[0], {}).draws

    assert drawn() == 1
    before, joint = plugins.digests(str(file)), plugins.file_digest(str(file))
    assert [*before] == [str(file), *(str(tmp_path / "lib" / name / each) for each in ("__init__.py", "one.py"))]
    assert drawn() == 1 and plugins.file_digest(str(file)) == joint
    inner.write_text("import json, torch\nSIZE = 22\n")
    assert drawn() == 22, "it is not what was imported before the module changed"
    after = plugins.digests(str(file))
    assert {path for path in before if before[path] != after[path]} == {str(inner)} and plugins.file_digest(str(file)) != joint


@pytest.mark.parametrize("folder", ["my files", "a+b", "f(1)", "x=1,2", "Grüße", "it's", "C:"])
@pytest.mark.parametrize("quoted", ["{path}:mine", "{path!r}:mine", "'{path}:mine'", "er + {path}:mine(strength=2.0)"])
def test_a_file_may_be_in_any_folder(folder, quoted, tmp_path, monkeypatch):
    if "'" in folder and "'{" in quoted:
        pytest.skip("quotes within the same quotes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.py").write_text("def mine(strength: float = 1.0): ...\n")
    path = f"./{folder}/mine.py"
    terms = parse(quoted.format(path=path))
    assert (terms[-1].path, terms[-1].name) == (path, "mine")
    os.chdir("/")  # what a record has can be read where there is no such file
    with pytest.raises(LookupError, match="there is no file"):
        parse(written(terms))
    os.chdir(tmp_path)
    assert written(parse(written(terms))) == written(terms)


# ---- sums


def sum_of(text: str) -> Any:
    return compose(parse(text), {"net": mlp((8,), 6), "n_classes": 6, "shape": (8,)}, sgd())


@pytest.mark.parametrize(("text", "words"), [
    ("er + ncm", ["ncm", "whole learner", "er"]), ("random + random", ["one start"]),
    ("joint + cumulative", ["one bound"]), ("ncm + slda", ["ncm", "slda"]),
])
def test_a_sum_that_makes_no_sense_is_refused(text, words):
    with pytest.raises(ValueError) as error:
        sum_of(text)
    for word in words:
        assert word in str(error.value)


def test_parts_of_one_name_get_numbers_of_their_own(tmp_path):
    file = a_file(tmp_path, "from lifelong import Part\ndef er_more():\n    return Part(draws=1)\n")
    assert list(sum_of("er + er + er").draws(4)) == ["er", "er_2", "er_3"]
    assert list(sum_of("er + ewc").draws(4)) == ["er", "ewc"]
    # A part added to a sum leaves the random numbers of the others alone, whatever it is called.
    assert list(sum_of(f"{file}:er_more + er").draws(4)) == ["er_more", "er"]


def test_a_factory_must_make_something_that_learns():
    with pytest.raises(ValueError, match="makes a int"):
        compose([Term("three", lambda: 3)], {"net": mlp((8,), 6)}, sgd())


def test_a_start_alone_is_a_strategy():
    assert isinstance(sum_of("random"), GradientLearner)
    assert isinstance(expression.build(parse("random")[0], {}), Initialization)


def test_context_is_filled_in_and_hyper_parameters_are_the_rest():
    def factory(net: Any, n_classes: int, widths: Sequence[int] = (1,), lr=0.1, name="x", *rest: int, **more: int):
        return n_classes

    assert list(catalogue.hyper_parameters(factory)) == ["widths", "lr", "name"]
    assert catalogue.is_real(factory, "lr") and not catalogue.is_real(factory, "name")
    assert expression.build(Term("factory", factory), {"net": None, "n_classes": 4, "seed": 1}) == 4


def test_a_misspelt_start_is_told_what_it_may_have_meant():
    with pytest.raises(LookupError, match="called 'supervized'; did you mean supervised"):
        parse("supervized + er")
