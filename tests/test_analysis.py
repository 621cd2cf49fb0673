"""Tables and figures from task folders alone."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import analysis
import tensornet as tn
from analysis.commands.amounts import amount
from analysis.figures import layer_lines, layer_norms_figure, save_figure, similarity_map
from analysis.figures.canvas import line_styles, short
from analysis.similarity import LEADING, overall, shareable, similarity
from analysis.sweep import _spread
from tensornet.commands.output import print_table
from tensornet.errors import ConfigError, TaskFileError, WriteError
from tests.toys import ResNet, trained


@pytest.fixture
def folders(tmp_path):
    torch.manual_seed(0)
    net = tn.adapt(ResNet(), tn.AdaptConfig("tucker", rank=2, scale=0.5))
    trained(net.add_task("a", nn.Linear(8, 3)), seed=1)
    trained(net.add_task("b", config=tn.AdaptConfig("cp", rank=3, folding="depth", targets=r"layer.*conv.")), seed=2)
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        net.save_task(path.name, path)
    return net, paths


@pytest.mark.parametrize("kind", ["delta", "relative", "per_parameter"])
def test_norms_are_those_of_the_dense_deltas(folders, kind):
    net, paths = folders
    table = analysis.norms(paths, kind=kind)
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["a", "b"]
    assert list(table.index) == [plan.fold.name for plan in net.plans], "layers are in network order"
    for name in ("a", "b"):
        for layer, found in table[name].dropna().items():
            weight = net.backbone.get_submodule(layer)._parameters["weight"]
            norm = net[name].delta(layer).double().norm().item()
            wanted = {
                "delta": norm,
                "relative": norm / weight.double().norm().item(),
                "per_parameter": norm / math.sqrt(weight.numel()),
            }
            assert found == pytest.approx(wanted[kind], rel=1e-5)
    assert table["b"].isna().sum() == 2


def test_one_path_and_equal_names(folders, tmp_path):
    net, paths = folders
    assert list(analysis.norms(str(paths[0])).columns) == ["a"]
    net.save_task("a", tmp_path / "again")
    assert list(analysis.norms([paths[0], tmp_path / "again"]).columns) == [str(paths[0]), str(tmp_path / "again")]


def test_refusals(folders, tmp_path):
    _, paths = folders
    with pytest.raises(ConfigError, match="kind must be one of delta"):
        analysis.norms(paths, kind="size")
    with pytest.raises(TaskFileError, match="no task folder was given"):
        analysis.norms([])
    torch.manual_seed(9)
    other = tn.adapt(ResNet())
    other.add_task("c")
    other.save_task("c", tmp_path / "c")
    with pytest.raises(TaskFileError, match="tasks of different backbones"):
        analysis.norms([*paths, tmp_path / "c"])
    other.add_task("d", config=tn.AdaptConfig("none"))
    other.save_task("d", tmp_path / "d")
    with pytest.raises(TaskFileError, match="no deltas"):
        analysis.norms([tmp_path / "d"])


def test_figures(folders, tmp_path):
    _, paths = folders
    figure = layer_lines(analysis.norms(paths), "title", "label")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == list(analysis.norms(paths).index)
    for suffix in ("png", "svg", "pdf"):
        save_figure(figure, tmp_path / f"f.{suffix}")
        assert (tmp_path / f"f.{suffix}").stat().st_size > 1000
    with pytest.raises(WriteError, match="cannot write"):
        save_figure(figure, tmp_path / "absent" / "f.png")
    assert not list(tmp_path.glob(".f*"))


def test_a_legend_names_every_line_in_its_colour():
    table = pd.DataFrame({name: [1.0, 2.0] for name in ("_hidden", "alpha", "beta")}, index=["conv1", "conv2"])
    figure = layer_lines(table, "title", "label")
    legend, lines = figure.legends[0], figure.axes[0].get_lines()
    assert [text.get_text() for text in legend.get_texts()] == ["_hidden", "alpha", "beta"]
    assert [handle.get_color() for handle in legend.get_lines()] == [line.get_color() for line in lines]


def _many(count):
    rng = np.random.default_rng(0)
    layers = [f"conv{i}" for i in range(5)]
    return pd.DataFrame({f"task{i}": rng.random(5) for i in range(count)}, index=layers)


def test_norms_of_fifty_tasks_are_a_map_with_a_row_for_each(tmp_path):
    few, many = _many(20), _many(50)
    assert len(layer_norms_figure(few, "title", "label").axes[0].get_lines()) == 20
    figure = layer_norms_figure(many, "title", "label")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(many.columns)
    assert [t.get_text() for t in axes.get_xticklabels()] == list(many.index)
    assert np.array_equal(axes.images[0].get_array(), many.to_numpy().T)
    save_figure(figure, tmp_path / "f.png")
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes)), "names do not touch"


@pytest.mark.parametrize(("count", "longest"), [(24, 72), (160, 50), (400, 30)])
def test_long_names_of_many_layers_leave_room_for_the_lines(count, longest):
    names = [f"{'x' * longest}.{i}.conv" for i in range(count)]
    for figure in (
        layer_lines(pd.DataFrame({"a": np.arange(count)}, index=names), "title", "label"),
        layer_norms_figure(pd.DataFrame({f"t{i}": np.arange(count) for i in range(30)}, index=names), "title", "label"),
    ):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert axes.get_window_extent().height > 2.5 * figure.dpi
        labels = axes.get_xticklabels()
        assert all(label.get_text().endswith(name.rsplit("x.")[-1]) for label, name in zip(labels, names, strict=True))
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes)), "names do not touch"


def test_short_names_are_told_apart():
    blocks = [
        f"model.vision.encoder.layers.{i}.attention.{part}_projection" for i in range(12) for part in ("query", "value")
    ]
    assert short(blocks)[0] == "…0.attention.query_projection"
    ends = [f"a{i}.{'x' * 50}" for i in range(3)] + [f"{'y' * 60}.{i}" for i in range(3)]
    assert all(len(name) <= 36 for name in short(ends))
    assert len(set(short(ends))) == 6
    middles = [f"{'x' * 30}.{i}.{'y' * 30}.a" for i in range(2)] + ["stem"]
    assert short(middles) == middles, "shorter they would look alike"
    assert short(["conv1", "conv2"]) == ["conv1", "conv2"]
    assert short([]) == []


def test_no_two_of_many_lines_look_alike():
    assert len(set(line_styles(28))) == 28


def test_a_legend_takes_no_room_from_the_lines():
    heights = []
    for count in (2, 20):
        figure = layer_norms_figure(_many(count), "title", "label")
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]


@pytest.mark.parametrize("count", [4, 10, 11, 40])
def test_the_likeness_of_many_tasks_is_shown_by_task_not_by_pair(count):
    names = [f"task{i}" for i in range(count)]
    rng = np.random.default_rng(0)
    square = pd.DataFrame(np.eye(count), index=names, columns=names)
    found = list(itertools.combinations(names, 2))
    layers = pd.DataFrame(rng.uniform(-1, 1, (3, len(found))), index=list("xyz"), columns=pd.MultiIndex.from_tuples(found))
    figure = similarity_map(square, layers, "title", "cosine")
    assert max(figure.get_size_inches()) < 30
    below = next(axes for axes in figure.axes if axes.get_xlabel() == "layer, in network order")
    labels, shown = [t.get_text() for t in below.get_yticklabels()], below.images[0].get_array()
    if count <= 10:
        assert labels == [f"{a} – {b}" for a, b in found]
    else:
        assert sorted(labels) == sorted(names)
        own = layers[[pair for pair in found if "task3" in pair]].mean(axis=1)
        assert np.allclose(shown[labels.index("task3")], own)


@pytest.mark.parametrize("columns", [1, 3, 50])
def test_a_wide_table_goes_on_below(columns, capsys):
    header = ["layer", *(f"a task with the number {i}" for i in range(columns))]
    print_table("task[v2]", header, [["conv1", *(f"{i}.5" for i in range(columns))]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "task[v2]"
    assert all(len(line) <= 160 for line in lines)
    cells = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines if line.startswith(("┃", "│"))]
    heads, rows = cells[::2], cells[1::2]
    assert [cell for head in heads for cell in head[1:]] == header[1:]
    assert [cell for row in rows for cell in row[1:]] == [f"{i}.5" for i in range(columns)]
    assert {head[0] for head in heads} == {"layer"}
    assert {row[0] for row in rows} == {"conv1"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("20000", 20000), ("20_000", 20000), ("1,234,567", 1234567), ("5%", 0.05), ("7.5%", 0.075), ("0.05", 0.05)],
)
def test_amounts(text, value):
    assert amount(text) == pytest.approx(value)
    assert type(amount(text)) is type(value)


@pytest.mark.parametrize("text", ["7,5%", "7,500%", "0,05", "0,050", "12,34", "5 percent", ""])
def test_amounts_that_could_be_read_in_two_ways(text):
    with pytest.raises(ConfigError, match="a budget is a number such as 20000"):
        amount(text)


@pytest.mark.parametrize("kinds", [("cp", "cp"), ("tucker", "low_rank"), ("tt", "kronecker")])
def test_likeness_is_that_of_the_dense_deltas(kinds, tmp_path):
    net = tn.adapt(ResNet())
    for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True)):
        config = tn.AdaptConfig(kind, rank=2, scale=0.5 + seed, head=net.head_path)
        trained(net.add_task(name, nn.Linear(8, 3), config), seed=seed)
        net.save_task(name, tmp_path / name)
    folders = [tmp_path / "a", tmp_path / "b"]
    dense = {name: {layer: net[name].delta(layer).detach().double() for layer in net[name].plans} for name in "ab"}

    def cosine(a, b):
        return float((a * b).sum() / (a.norm() * b.norm()))

    def space(delta, mode):
        u, s, _ = torch.linalg.svd(delta.movedim(mode, 0).flatten(1), full_matrices=False)
        energy = s.square().cumsum(0)
        return u[:, : int((energy < LEADING * energy[-1]).sum()) + 1]

    for layer in dense["a"]:
        a, b = dense["a"][layer], dense["b"][layer]
        assert similarity(folders).loc[layer, ("a", "b")] == pytest.approx(cosine(a, b), abs=1e-5)
        for mode, side in enumerate(("output", "input")):
            p, q = space(a, mode), space(b, mode)
            wanted = float((p.T @ q).square().sum()) / min(p.shape[1], q.shape[1])
            assert similarity(folders, kind=side).loc[layer, ("a", "b")] == pytest.approx(wanted, abs=1e-4)
    whole = {name: torch.cat([delta.flatten() for delta in deltas.values()]) for name, deltas in dense.items()}
    assert overall(folders).loc["a", "b"] == pytest.approx(cosine(whole["a"], whole["b"]), abs=1e-5)
    shared = shareable(folders, least=-10.0)
    assert set(shared["layer"]) == set(dense["a"])
    for row in shared.itertuples():
        channels = dense["a"][row.layer].shape[row.side == "input"]
        assert row.chance == pytest.approx(max(row.dimensions) / channels)
        assert row.excess == pytest.approx((row.overlap - row.chance) / (1 - row.chance))


def test_thresholds_of_a_sweep_are_finite():
    assert _spread([0.1, 0.2, float("inf"), float("nan")])[-1] == pytest.approx(0.202)
    assert all(map(math.isfinite, _spread([float("inf")])))


def test_a_figure_below_a_file_is_no_figure(folders, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="cannot write"):
        save_figure(layer_lines(analysis.norms(folders[1]), "title", "label"), tmp_path / "file" / "f.png")
    assert (tmp_path / "file").read_text() == "mine"
