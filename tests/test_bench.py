"""The benchmark on a tiny network: that it measures what it says; how long things take is no test."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from tensornet.bench import fit
from tensornet.bench.clock import interleaved, ratio
from tensornet.bench.contenders import FULL, LIMIT, contenders, rank_of_equal_size, twin
from tensornet.bench.measures import MEASURES
from tensornet.bench.place import Workplace
from tensornet.bench.setups import SETUPS, find_setup
from tensornet.bench.tables import TITLES
from tensornet.bench.training import saved_for_backward
from tensornet.config import AdaptConfig
from tensornet.peers import adapted_layers
from tensornet.plan import parameter_total, plan
from tensornet.targets import find_head
from tests.commands import ran, refused, tensornet

SHORT = ["--setup", "tiny", "--repeats", "2", "--threads", "1"]


def test_from_the_command_line_and_again(tmp_path):
    measures = ["training", "inference", "mixed", "switching", "prefix", "tasks", "number"]
    words = [word for measure in measures for word in ("--measure", measure)]
    out = tmp_path / "bench"
    tensornet("bench", *SHORT, *words, "--out", out)
    found = json.loads((out / "bench.json").read_text())
    assert list(found["measures"]["tiny"]) == measures
    assert {"processor", "threads", "versions"} <= set(found["machine"])
    for rows in found["measures"]["tiny"].values():
        assert all(row["seconds"] > 0 for row in rows)
    by_name = {row["contender"]: row for row in found["measures"]["tiny"]["training"]}
    assert next(iter(by_name)) == LIMIT
    assert list(by_name)[-1] == FULL
    assert by_name["CP 8"]["saved_ratio"] <= 1.04
    assert by_name[LIMIT]["multiply_adds"] < by_name["CP 8"]["multiply_adds"] < by_name["CP 50"]["multiply_adds"]
    for picture in ("training.png", "scaling-tiny.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    page = (out / "bench.md").read_text()
    assert all(TITLES[measure].lower() in page for measure in measures)
    # what was measured is kept, and other settings measure anew
    part = out / "parts" / "tiny.mixed.json"
    kept = part.read_text()
    threads = torch.get_num_threads()
    again = json.loads(ran("bench", *SHORT, *words, "--out", out, "--json"))
    assert again["measures"] == found["measures"]
    ran("bench", *SHORT, "--repeats", "3", "--threads", "2", "--measure", "mixed", "--out", out)
    assert part.read_text() != kept
    told = json.loads(kept)
    part.write_text("")
    ran("bench", *SHORT, "--measure", "mixed", "--out", out)
    assert json.loads(part.read_text())["rows"], "what a full disk has cut short is measured anew"
    part.write_text(json.dumps(told | {"machine": told["machine"] | {"processor": "another"}}))
    ran("bench", *SHORT, "--measure", "mixed", "--out", out)
    assert json.loads(part.read_text())["machine"] == told["machine"], "what another machine measured is measured here anew"
    assert torch.get_num_threads() == threads


def test_mistakes_are_named(tmp_path):
    out = ["--out", tmp_path]
    assert "tiny" in refused("bench", "--setup", "tinny", *out)
    for device in ("nowhere", "meta"):
        assert f"device '{device}' cannot be used here" in refused("bench", "--device", device, *out)
    assert "training" in refused("bench", "--setup", "tiny", "--measure", "trainning", *out)
    assert "CP 8" in refused("bench", "--setup", "tiny", "--contender", "CP8", *out)
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_is_not_there_is_left_out(tmp_path):
    found = json.loads(ran("bench", "--setup", "mobilenet-128", "--measure", "mixed", "--out", tmp_path, "--json"))
    assert found["measures"] == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_other_measures(monkeypatch):
    # the graphs are counted; the real compiler, which takes a minute, is tested elsewhere
    asked = []

    def compiler(graph, inputs, **options):
        asked.append(options.get("config_patches", {}))
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compiler)
    setup = find_setup("tiny")
    place = Workplace(setup, setup.build(None), "cpu", 2)
    weighed = MEASURES["memory"](place)[0]
    adapted = sum(m.weight.nbytes for m in place.backbone.modules() if isinstance(m, nn.Conv2d))
    whole = sum(p.nbytes for p in place.backbone.parameters())
    assert weighed["bytes"] > weighed["expected_bytes"] == whole + 100 * weighed["file_bytes"] + adapted
    compiled = {row["contender"]: row for row in MEASURES["compiled"](place)}
    assert all(row["graphs"] == 1 for name, row in compiled.items() if name.endswith("compiled"))
    monkeypatch.setattr("tensornet.bench.operations.SMALLEST", 0.0)  # list every operation, however busy the machine is
    spent = MEASURES["operations"](place)
    for name in (LIMIT, "CP 8"):
        *parts, whole = [row for row in spent if row["contender"] == name]
        assert whole["operation"] == "all together"
        assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"])
    assert any(row["operation"].endswith("bmm") for row in spent if row["contender"] == "CP 8")
    asked.clear()
    steps = {row["contender"]: row for row in MEASURES["compiled-training"](replace(place, only=("CP 8",)))}
    assert [options["triton.cudagraphs"] for options in asked] == [True, True], "two networks, one graph each"
    assert list(steps) == [LIMIT, f"{LIMIT}, compiled", "CP 8", "CP 8, compiled"]
    assert steps[LIMIT]["ratio"] == steps[f"{LIMIT}, compiled"]["ratio"] == 1
    assert ["eager_ratio" in row for row in steps.values()] == [False, True, False, True]
    ranks = MEASURES["rank"](place)
    work = [row["multiply_adds"] for row in ranks]
    assert work == sorted(work)
    assert {row["contender"] for row in MEASURES["size"](place)} == {"limit", "CP 8"}


def test_every_contender_trains_all_of_its_parameters_and_leaves_the_backbone():
    setup = find_setup("tiny")
    backbone = setup.build(None)
    head = backbone.get_submodule(find_head(backbone, None))
    shared = sum(p.numel() for p in head.parameters()) + sum(
        p.numel() for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()
    )
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for name, maker in contenders().items():
        made = maker(twin(backbone))
        made.model(setup.inputs(2)).sum().backward()
        assert all(p.grad is not None for p in made.trained), name
        assert len({id(p) for p in made.trained}) == len(made.trained), name
        assert made.parameters() == shared if name == LIMIT else made.parameters() > shared, name
        trainable = {id(p) for p in made.model.parameters() if p.requires_grad}
        assert {id(p) for p in made.trained} >= trainable, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_equal_sizes_are_equal_within_a_rank():
    backbone = find_setup("tiny").build(None)
    head = find_head(backbone, None)

    def total(name, rank):
        return parameter_total(plan(backbone, AdaptConfig(name, rank=rank), head))

    for name in ("tucker", "tt"):
        rank = rank_of_equal_size(backbone, name, ("cp", 8))
        assert all(
            abs(total(name, rank) - total("cp", 8)) <= abs(total(name, other) - total("cp", 8)) for other in (1, 8, 20)
        )


def test_the_residual_network_has_the_shapes_of_torchvisions(torchvision):
    ours, theirs = SETUPS["resnet50-64"].build(None), torchvision.models.resnet50(num_classes=10)
    shapes = [tuple(ours.get_submodule(path).weight.shape) for path in adapted_layers(ours, find_head(ours, None))]
    wanted = [tuple(m.weight.shape) for m in theirs.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sorted(shapes) == sorted(wanted)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_fitting_finds_the_costs_that_samples_were_made_from():
    costs = (2e-5, 3e-11, 4e-10)
    made = [fit.Sample(p, n, costs[0] + costs[1] * p + costs[2] * n) for p in (1e3, 1e5, 1e7) for n in (1e2, 1e4, 1e6)]
    found, error = fit._fitted(made)
    assert error < 1e-6
    assert (found.call, found.product, found.number) == pytest.approx(costs, rel=1e-4)


def test_fitting_on_this_machine(monkeypatch):
    monkeypatch.setattr(fit, "_PLACES", fit._PLACES[:1])
    monkeypatch.setattr(fit, "_CHANNELS", fit._CHANNELS[:2])
    found = json.loads(ran("bench", "--fit", "--repeats", "1", "--json"))
    assert set(found) == {"thin", "dense", "depthwise", "build"}
    for cost in found.values():
        assert all(value >= 0 for value in cost.values())
        assert cost["call"] + cost["product"] + cost["number"] > 0


def test_fitting_off_the_cpu_asks_what_a_step_of_our_own_costs_more(monkeypatch):
    taken = {"own": 5.0, "plain": 2.0}
    monkeypatch.setattr(fit, "typical", lambda run, repeats, device: (run(), taken[run.__name__])[1])
    drawn = fit.Drawn("cpu", torch.float32)
    assert fit._own(drawn, 1) == 3.0
    taken["own"] = 1.0
    assert fit._own(drawn, 1) == 0.0, "noise"


def test_contenders_take_turns():
    order = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert "".join(order) == "ab" + "ab" * 3
    assert [len(own) for own in taken.values()] == [3, 3]
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_a_set_up_with_the_channels_last_has_them_last_throughout():
    setup = SETUPS["resnet50-224-last"]
    images, weight = (
        setup.inputs(2, size=8),
        setup.build(None).get_parameter("model.resnet.embedder.embedder.convolution.weight"),
    )
    for tensor in (images, weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_what_is_saved_is_let_go():
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    seen = []
    layers[1].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    gc.disable()
    try:
        assert saved_for_backward(layers, torch.randn(3, 4)) > 0
        assert seen[0]() is None
    finally:
        gc.enable()
