"""Configs are data: checked, and JSON both ways."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tensornet as tn
from tensornet.config import Choice
from tensornet.errors import ConfigError, RankError, ShapeError, StateError, UnknownNameError
from tensornet.foldings import Fold, layer
from tensornet.registry import FOLDINGS

names = st.sampled_from(["cp", "tucker", "tt", "low_rank", "kronecker", "dense"])
ranks = st.one_of(st.integers(1, 99), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
sizes = st.one_of(
    st.fixed_dictionaries({"rank": ranks}), st.fixed_dictionaries({"budget": st.floats(0.001, 1)}), st.just({})
)
choices = st.builds(lambda name, size: {"decomposition": name, **size}, names, sizes)
patterns = st.one_of(st.text("ab.*", min_size=1), st.lists(st.text("ab", min_size=1)).map(tuple))
configs = st.builds(
    lambda name, size, layers, targets, exclude, norms, scale: tn.AdaptConfig(
        name, **size, layers=layers, targets=targets, exclude=exclude, norms=norms, scale=scale
    ),
    names,
    sizes,
    st.dictionaries(st.text("ab.*", min_size=1), st.one_of(choices, st.just("none"))),
    st.one_of(st.none(), patterns),
    patterns,
    st.one_of(st.sampled_from(["task", "shared"]), patterns),
    st.floats(0.1, 10),
)


@given(config=configs)
def test_json_both_ways(config):
    assert tn.AdaptConfig.from_json(config.to_json()) == config
    again = tn.AdaptConfig.from_dict(config.to_dict())
    assert again == config
    assert hash(again) == hash(config)


def test_the_order_of_layers_counts():
    layers = {".*1": Choice("tt"), "conv.*": Choice("tucker")}
    one = tn.AdaptConfig(layers=layers)
    other = tn.AdaptConfig(layers=dict(reversed(layers.items())))
    assert one == tn.AdaptConfig(layers=dict(layers))
    assert one != other
    assert one != one.to_dict()
    net = tn.adapt(nn.ModuleDict({"conv1": nn.Linear(4, 4), "fc": nn.Linear(4, 2)}), one)
    kinds = [p.decomposition for c in (None, other) for p in net.add_task("b" if c else "a", config=c).plans.values()]
    assert kinds == ["tucker", "tt"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"rank": 0}, RankError, "rank must be a positive int or a tuple of them; got 0"),
        ({"rank": -3}, RankError, "got -3"),
        ({"rank": 2.0}, RankError, "got 2.0"),
        ({"rank": True}, RankError, "got True"),
        ({"rank": "8"}, RankError, "got '8'"),
        ({"rank": (2, 0)}, RankError, "got 0"),
        ({"rank": ()}, RankError, r"got \(\)"),
        ({"rank": 2, "budget": 0.1}, ConfigError, "not both"),
        ({"budget": 0.0}, ConfigError, r"in \(0, 1\]; got 0.0"),
        ({"budget": 1.5}, ConfigError, "got 1.5"),
        ({"budget": float("nan")}, ConfigError, "got nan"),
        ({"decomposition": "pc"}, UnknownNameError, "unknown decomposition 'pc'. Did you mean 'cp'"),
        ({"folding": "layers"}, UnknownNameError, "Did you mean 'layer'"),
        ({"layers": {"conv1": {"ranks": 2}}}, ConfigError, "Did you mean 'rank'"),
        ({"layers": {"conv1": {"rank": -1}}}, RankError, r"layers\['conv1'\].*got -1"),
        ({"layers": {"conv1": 3}}, ConfigError, "got 3"),
        ({"layers": ["conv1"]}, ConfigError, "layers must map"),
        ({"targets": 3}, ConfigError, "targets must be a list"),
        ({"norms": [1]}, ConfigError, "norms must be"),
        ({"head": 3}, ConfigError, "head must be"),
        ({"scale": float("inf")}, ConfigError, "finite"),
        ({"scale": 0}, ConfigError, "never train"),
    ],
)
def test_refusals(settings, error, words):
    with pytest.raises(error, match=words):
        tn.AdaptConfig(**settings)
    if "budget" not in settings:  # NaN is not JSON
        with pytest.raises(tn.TensornetError):
            tn.AdaptConfig.from_dict(settings)


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match=r"unknown setting 'ranks'\. Did you mean 'rank'"):
        tn.AdaptConfig.from_dict({"ranks": 3})
    with pytest.raises(ConfigError, match="JSON"):
        tn.AdaptConfig.from_json("{")
    with pytest.raises(ConfigError, match="table of settings"):
        tn.AdaptConfig.from_json("3")


def test_it_is_frozen_and_has_the_defaults_of_the_paper():
    config = tn.AdaptConfig()
    assert (config.decomposition, config.rank, config.folding, config.norms, config.scale) == ("cp", 8, "layer", "task", 1.0)
    with pytest.raises(AttributeError):
        config.rank = 2
    assert tn.AdaptConfig(budget=0.1).rank is None


def test_a_size_for_a_layer_without_a_decomposition_is_no_choice():
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    config = tn.AdaptConfig("none", layers={"0": {"rank": 2}})
    with pytest.raises(ConfigError, match=r"layers\['0'\] gives a size and no decomposition.*as in \{'decomposition': 'cp'"):
        tn.adapt(backbone, config)
    net = tn.adapt(backbone, tn.AdaptConfig("none", layers={"0": {"decomposition": "cp", "rank": 2}, "1": "none"}))
    assert [plan.fold.name for plan in net.plans] == ["0"]


LAYERS = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("folding", "words"),
    [
        (lambda ts: None, "should give a list of folds with members; got None"),
        (lambda ts: [Fold("x", ts[0].modes(), ())], "should give a list of folds with members"),
        (lambda ts: layer(ts[1:]), "should place every target once; it does not: 0"),
        (lambda ts: layer([*ts, ts[1]]), "should place every target once; it does not: 1"),
        (lambda ts: [Fold(f"stack{i}", *own) for i, own in enumerate(parts(ts))], "calls two tensors 'stack0'"),
        (lambda ts: [Fold("x", *own) for own in parts(ts)], "calls two tensors 'x'"),
    ],
)
def test_a_folding_places_every_weight_once_under_a_name_of_its_own(folding, words, monkeypatch):
    monkeypatch.setitem(FOLDINGS._items, "odd", folding)
    config = tn.AdaptConfig("cp", rank=2, folding="odd", layers={"2": {"decomposition": "tt", "rank": 2}})
    with pytest.raises(ShapeError, match=f"the folding 'odd' {words}"):
        tn.adapt(copy.deepcopy(LAYERS), config)


def parts(targets):
    return [(fold.modes, fold.members) for fold in layer(targets)]


def test_a_task_keeps_its_name():
    net = tn.adapt(copy.deepcopy(LAYERS), tn.AdaptConfig("cp", rank=2))
    task = net.add_task("a")
    with pytest.raises(StateError, match=r"task 'a' keeps its name: save it, load it as load_task\(path, name='b'\)"):
        task.name = "b"
    assert task.name == "a"
    assert copy.deepcopy(task).name == "a"


def test_a_backbone_without_numbers_is_named(tmp_path):
    net = tn.adapt(copy.deepcopy(LAYERS), tn.AdaptConfig("cp", rank=2))
    net.add_task("a")
    net.save_task("a", tmp_path / "a")
    empty = tn.adapt(copy.deepcopy(LAYERS).to("meta"), tn.AdaptConfig("cp", rank=2))
    with pytest.raises(StateError, match="has no numbers yet: load its weights first"):
        empty.load_task(tmp_path / "a")
    empty.backbone.load_state_dict(net.backbone.state_dict(), assign=True)
    assert empty.load_task(tmp_path / "a").name == "a"
