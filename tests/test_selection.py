"""The choice per layer: exact, honest about its errors, and usable as a config."""

import copy
import itertools
import tomllib
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from safetensors.torch import save_file
from torch import nn

import analysis
import tensornet as tn
from analysis.selection.calibration import calibrate
from analysis.selection.candidates import Measure
from analysis.selection.changes import Change, changes
from analysis.selection.knapsack import pack
from tensornet.errors import ConfigError, MismatchError, NonFiniteError, RankError, TaskFileError
from tensornet.extraction import extract_task
from tensornet.training.adapting import fresh_head
from tests.toys import ResNet, Transformer, trained

NAMES = ["cp", "tucker", "tt", "low_rank"]
FEW = (1, 2, 4, 8)


def pair(kind=ResNet, scale=0.1, seed=0):
    """A network and what it became."""
    torch.manual_seed(seed)
    base = kind().eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(scale * torch.randn_like(p))
        for name, buffer in tuned.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1)
    return base, tuned


# ---- the knapsack ----------------------------------------------------------------------------------------------------


def least(errors, costs, budget):
    """The least error within a budget, of all choices."""
    every = itertools.product(*(range(len(e)) for e in errors))
    feasible = [p for p in every if sum(c[i] for c, i in zip(costs, p, strict=True)) <= budget]
    return min(sum(e[i] for e, i in zip(errors, p, strict=True)) for p in feasible)


groups = st.lists(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 20)), max_size=4), min_size=1, max_size=4)


@given(groups=groups, budget=st.integers(0, 60))
def test_the_knapsack_is_exact(groups, budget):
    errors = [[10.0, *(e for e, _ in options)] for options in groups]
    costs = [[0, *(c for _, c in options)] for options in groups]
    packed, best = pack(errors, costs, budget), least(errors, costs, budget)
    assert packed.error == pytest.approx(best, abs=1e-7)
    assert packed.cost <= budget
    assert packed.bound <= packed.error
    assert packed.bound == pytest.approx(best, abs=1e-4)


magnitudes = st.floats(-9, 6).map(lambda power: 10**power)
uneven = st.lists(st.lists(st.tuples(magnitudes, st.integers(1, 20)), max_size=4), min_size=1, max_size=4)


@given(groups=uneven, budget=st.integers(0, 60))
def test_the_knapsack_is_exact_also_in_what_is_left_of_large_errors(groups, budget):
    errors = [[2e6, *(e for e, _ in options)] for options in groups]
    costs = [[0, *(c for _, c in options)] for options in groups]
    packed, best = pack(errors, costs, budget), least(errors, costs, budget)
    assert packed.cost <= budget
    assert packed.error == pytest.approx(best, rel=1e-6)
    assert packed.bound <= best * (1 + 1e-9)
    assert packed.gap < 1e-6


def test_the_solver_prints_nothing(capfd):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        costs = [[0, *torch.randint(10, 900, (20,), generator=generator).tolist()] for _ in range(20)]
        errors = [[1.0, *(1 / (1 + c / 100) for c in own[1:])] for own in costs]
        pack(errors, costs, 1500)
    assert capfd.readouterr().out == ""


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.05, 0.2, 700])
def test_a_plan_is_within_its_budget_and_no_worse_than_any_single_choice(budget):
    base, tuned = pair()
    plan = analysis.choose(base, tuned, budget, NAMES, ranks=FEW)
    assert plan.parameters == plan.cost <= plan.budget
    assert plan.budget == (700 if budget == 700 else int(budget * plan.whole))
    assert plan.bound <= plan.error <= plan.uniform.error
    assert plan.gap < 1e-6
    assert plan.uniform.cost <= plan.budget
    assert isinstance(plan.table, pd.DataFrame)
    assert list(plan.table.index) == [t.name for t in (p.fold.members[0].target for p in tn.adapt(ResNet()).plans)]
    assert plan.table["cost"].sum() == plan.cost


def test_errors_are_those_of_the_deltas_that_are_extracted():
    base, tuned = pair()
    plan = analysis.choose(base, tuned, 0.2, NAMES, ranks=FEW)
    net = tn.adapt(copy.deepcopy(base))
    with pytest.warns(UserWarning, match="tensors changed that this task does not hold"):
        task = extract_task(net, "t", tuned, plan.config(), plan.decompositions)
    total = lost = 0.0
    for layer, row in plan.table.iterrows():
        delta = (tuned.get_submodule(layer).weight - base.get_submodule(layer).weight).detach().double()
        found = task.delta(layer).detach().double() if row["decomposition"] != "none" else torch.zeros_like(delta)
        error = float((delta - found).square().sum())
        assert row["error"] == pytest.approx(error, rel=1e-4, abs=1e-9)
        total, lost = total + float(delta.square().sum()), lost + error
    assert plan.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_calibrated_errors_are_those_of_the_layers_outputs():
    base, tuned = pair()
    x = torch.randn(6, 3, 9, 9)
    plan = analysis.choose(base, tuned, 0.2, ["cp", "tucker", "kronecker"], calibration=x, ranks=FEW)
    inputs = {}
    for name, module in tuned.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out, name=name: inputs.update({name: args[0].detach()}))
    with torch.no_grad():
        tuned(x)
    for layer, row in plan.table.iterrows():
        conv = tuned.get_submodule(layer)
        delta = (conv.weight - base.get_submodule(layer).weight).detach()
        found = torch.zeros_like(delta)
        if layer in plan.decompositions:
            dense = plan.decompositions[layer].to_tensor().detach()
            found = dense.reshape(delta.shape)
        run = lambda weight, conv=conv, layer=layer: F.conv2d(inputs[layer], weight, None, conv.stride, conv.padding)
        wanted = run(delta - found).square().sum() / run(conv.weight.detach()).square().sum()
        assert row["error"] == pytest.approx(float(wanted), rel=1e-3)


def test_calibration_weighs_what_the_layer_sees():
    """Half of the channels are silent: with calibration no rank is spent on them."""
    base = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3)).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight[:, 4:] += 10 * torch.randn(8, 4)
        tuned[0].weight[:, 0] += torch.randn(8)
    x = torch.cat([torch.randn(50, 4), 1e-4 * torch.randn(50, 4)], dim=1)
    for weighed, small in ((None, False), (x, True)):
        plan = analysis.choose(base, tuned, 16, ["low_rank"], calibration=weighed)
        found = plan.decompositions["0"].to_tensor().detach()
        seen = (tuned[0].weight - base[0].weight).detach()[:, :4] - found[:, :4]
        assert (float(seen.norm()) < 0.05) == small


@pytest.mark.parametrize("unit", ["parameters", "bytes", "multiply_adds"])
def test_units(unit):
    base, tuned = pair()
    x = torch.randn(4, 3, 8, 8)
    plan = analysis.choose(base, tuned, 0.2, NAMES, ranks=FEW, calibration=x, unit=unit)
    assert plan.cost <= plan.budget == int(0.2 * plan.whole)
    if unit == "bytes":
        assert plan.cost == 4 * plan.parameters
    if unit == "multiply_adds":
        positions = {"layer2.0.conv1": 16, "layer2.0.conv2": 16, "layer2.0.down": 16}
        convolutions = {name: m for name, m in base.named_modules() if isinstance(m, nn.Conv2d)}
        assert plan.whole == sum(m.weight.numel() * positions.get(name, 64) for name, m in convolutions.items())


def test_transformers_and_depthwise_layers():
    base, tuned = pair(Transformer)
    plan = analysis.choose(base, tuned, 0.2, calibration=torch.randint(0, 11, (5, 7)))
    assert plan.cost <= plan.budget
    assert "embed" not in plan.table.index

    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, padding="same"), nn.Conv1d(8, 6, 3)
            self.d, self.fc = nn.ConvTranspose2d(6, 4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.c(self.b(self.a(x)).flatten(2))
            return self.fc(self.d(x[..., None]).mean((2, 3)))

    base, tuned = pair(Depthwise)
    plan = analysis.choose(base, tuned, 0.5, calibration=torch.randn(4, 3, 5, 5))
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("cp", rank=2))
    with pytest.warns(UserWarning, match="does not hold"):
        extract_task(net, "t", tuned, plan.config(), plan.decompositions)


def test_exact_output_errors_of_grouped_convolutions():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(36, 2)).eval()
    x, delta = torch.randn(7, 6, 6, 6), torch.randn_like(layer.weight)
    (target,) = [t.fold.members[0].target for t in tn.adapt(copy.deepcopy(network)).plans]
    change = Change(target, delta, layer.weight.detach())
    seen = calibrate(network, x, [change])
    energy = Measure(change, seen["0"]).energy
    run = lambda weight: F.conv2d(x, weight, None, 2, 1, 1, 2).square().sum()
    assert energy == pytest.approx(float(run(delta) / run(layer.weight.detach())), rel=1e-4)


def test_files_tasks_and_gradients_are_sources_too(tmp_path):
    base, tuned = pair()
    save_file(base.state_dict(), tmp_path / "a.safetensors")
    save_file(tuned.state_dict(), tmp_path / "b.safetensors")
    by_file = analysis.choose(tmp_path / "a.safetensors", str(tmp_path / "b.safetensors"), 0.1, NAMES, ranks=FEW)
    by_module = analysis.choose(base, tuned, 0.1, NAMES, ranks=FEW)
    assert by_file.error == pytest.approx(by_module.error, rel=1e-6)
    assert dict(by_file.table["decomposition"]) == dict(by_module.table["decomposition"])
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense"))
    trained(net.add_task("t"), 0.05)
    net.save_task("t", tmp_path / "t")
    by_task = analysis.choose(None, tmp_path / "t", 0.1, NAMES, ranks=FEW)
    assert by_task.cost <= by_task.budget
    assert len(by_task.table) == len(net.plans)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found = analysis.gradients(base, [(x, y)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    F.cross_entropy(base(x), y).backward()
    for change in found:
        torch.testing.assert_close(change.delta, -base.get_submodule(change.target.module).weight.grad)
    assert analysis.choose(None, found, 0.1, NAMES, ranks=FEW).cost <= int(0.1 * sum(c.delta.numel() for c in found))


def test_a_plan_is_a_config(tmp_path):
    base, tuned = pair()
    plan = analysis.choose(base, tuned, 0.1, ranks=FEW)
    plan.save(tmp_path / "plan.toml")
    for layers in (
        tmp_path / "plan.toml",
        str(tmp_path / "plan.toml"),
        tomllib.loads(plan.to_toml())["layers"],
        plan.layers,
    ):
        config = tn.AdaptConfig("none", layers=layers)
        assert config == plan.config()
        assert tn.AdaptConfig.from_json(config.to_json()) == config
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("none", layers=tmp_path / "plan.toml"))
    assert sum(p.numel() for p in net.add_task("t").deltas.parameters()) == plan.parameters
    with pytest.raises(ConfigError, match="is no plan"):
        tn.AdaptConfig(layers=tmp_path / "absent.toml")
    (tmp_path / "other.toml").write_text("layers = 3")
    with pytest.raises(ConfigError, match="is no plan"):
        tn.AdaptConfig(layers=tmp_path / "other.toml")


def test_a_colour_of_a_plan_means_one_thing():
    from analysis.figures import plan_figure

    plan = analysis.choose(*pair(), 0.2, ["cp", "tucker", "kronecker"], ranks=FEW)
    upper, lower = plan_figure(plan).axes
    bars = {container.get_label(): container[0].get_facecolor() for container in upper.containers}
    lines = {line.get_label().removesuffix(", one rank everywhere"): to_rgba(line.get_color()) for line in lower.get_lines()}
    assert bars
    assert all(lines[name] == colour for name, colour in bars.items() if name in lines)
    assert lines["chosen per layer"] not in bars.values()
    assert len(set(bars.values())) == len(bars)


def test_any_registered_decomposition_is_a_candidate():
    base, tuned = pair()
    plan = analysis.choose(base, tuned, 1.0)
    assert plan.error < 1e-3, "dense buys everything"
    assert set(plan.curve.columns) == {"plan", *tn.decompositions()}
    best = plan.curve["plan"].cummin().ffill()
    for name in tn.decompositions():
        alone = plan.curve[name].dropna()
        assert (best[alone.index] <= alone + 1e-6).all(), "no decomposition alone is below the plan at its cost"


def test_refusals(tmp_path):
    base, tuned = pair()
    other = ResNet(width=4)
    with pytest.raises(MismatchError, match=r"conv1.weight: \(8, 3, 3, 3\) in the base, \(4, 3, 3, 3\) in the tuned"):
        analysis.choose(base, other, 0.1)
    save_file({"x.weight": torch.zeros(3, 3), "z.weight": torch.zeros(2, 3)}, tmp_path / "x.safetensors")
    save_file({"y.weight": torch.ones(3, 3), "z.weight": torch.zeros(2, 3)}, tmp_path / "y.safetensors")
    with pytest.raises(MismatchError, match=r"y.weight: only in the tuned"):
        analysis.choose(tmp_path / "x.safetensors", tmp_path / "y.safetensors", 0.1)
    with pytest.raises(ConfigError, match=r"pass \['cp'\]"):
        analysis.choose(base, tuned, 0.1, decompositions="cp")
    with pytest.raises(TaskFileError, match="nothing changed"):
        analysis.choose(base, base, 0.1)
    with pytest.raises(TaskFileError, match="give its base too"):
        analysis.choose(None, tuned, 0.1)
    with pytest.raises(TaskFileError, match="cannot be read"):
        analysis.choose(tmp_path / "absent.safetensors", tuned, 0.1)
    with pytest.raises(RankError, match="the cheapest delta of any layer costs"):
        analysis.choose(base, tuned, 3)
    for budget in (0, -1, 1.5, True, "5%", float("nan")):
        with pytest.raises(ConfigError, match="budget"):
            analysis.choose(base, tuned, budget)
    with pytest.raises(ConfigError, match="in one of parameters"):
        analysis.choose(base, tuned, 0.1, unit="euros")
    with pytest.raises(ConfigError, match="give calibration data"):
        analysis.choose(base, tuned, 0.1, unit="multiply_adds")
    save_file(base.state_dict(), tmp_path / "a.safetensors")
    save_file(tuned.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="as a module"):
        analysis.choose(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 0.1, calibration=torch.randn(1))
    with pytest.raises(ConfigError, match="at least one decomposition"):
        analysis.choose(base, tuned, 0.1, [])
    broken = copy.deepcopy(tuned)
    with torch.no_grad():
        broken.conv1.weight[0] = float("nan")
        broken.layer1[0].conv2.weight[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"2 layers: conv1, layer1.0.conv2"):
        analysis.choose(base, broken, 0.1)
    with pytest.raises(NonFiniteError, match="calibration data gives NaN"):
        analysis.choose(base, tuned, 0.1, calibration=torch.full((1, 3, 8, 8), float("nan")))


# ---- extraction ------------------------------------------------------------------------------------------------------


def test_a_dense_extraction_is_the_tuned_network(tmp_path):
    base, tuned = pair()
    with torch.no_grad():
        tuned.layer2[0].down.bias.copy_(base.layer2[0].down.bias)
    tuned.fc = nn.Linear(8, 3)
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense"))
    extract_task(net, "t", tuned)
    net.save_task("t", tmp_path / "t")
    net.set_task("t")
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(net.eval()(x), tuned(x), rtol=1e-4, atol=1e-5)


def test_extraction_with_depth_folding_and_scale():
    base, tuned = pair()
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense", folding="depth", scale=0.5))
    with pytest.warns(UserWarning, match="does not hold"):
        task = extract_task(net, "t", tuned.state_dict())
    delta = tuned.layer1[0].conv1.weight - base.layer1[0].conv1.weight
    torch.testing.assert_close(task.delta("layer1.0.conv1"), delta)


def test_extraction_tells_of_embeddings_that_it_leaves_behind():
    base = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6, bias=False), nn.Flatten(), nn.Linear(12, 3))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer in tuned[:2]:
            layer.weight += 0.1
    with pytest.warns(UserWarning, match=r"1 tensors changed that this task does not hold, .*: 0\.weight"):
        extract_task(tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense")), "t", tuned)
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense", targets=".*"))
    extract_task(net, "t", tuned)  # a warning would be an error
    net.set_task("t")
    x = torch.randint(9, (4, 2))
    assert torch.allclose(net(x), tuned(x), atol=1e-6)


@pytest.mark.parametrize("bias", [(False, True), (True, False), (False, False)])
def test_heads_with_and_without_a_bias_are_taken_as_they_are(bias):
    base, tuned = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, n, bias=b)) for n, b in zip((3, 5), bias, strict=True))
    tuned[0].bias = base[0].bias
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense"))
    extract_task(net, "t", tuned)
    net.set_task("t")
    x = torch.randn(2, 4)
    torch.testing.assert_close(net(x), tuned(x))
    assert (fresh_head(net, 7).bias is not None) == bias[0]


def test_extraction_refuses_and_leaves_nothing():
    base, tuned = pair()
    net = tn.adapt(copy.deepcopy(base))
    with pytest.raises(MismatchError, match=r"conv1\.weight"):
        extract_task(net, "t", ResNet(width=4))
    broken = copy.deepcopy(tuned)
    with torch.no_grad():
        broken.conv1.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"conv1\.weight of the tuned network"):
        extract_task(net, "t", broken)
    wrapped = {f"module.{name}": tensor for name, tensor in tuned.state_dict().items()}
    with pytest.raises(MismatchError, match=r"behind the prefix 'module\.'"):
        extract_task(net, "t", wrapped)
    assert net.tasks == ()
    odd = tn.adapt(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))), tn.AdaptConfig(head="1"))
    wider = {
        k: torch.zeros(2 * v.shape[0], *v.shape[1:]) if k.startswith("1") else v
        for k, v in odd.backbone.state_dict().items()
    }
    lines = r"\n  - 1\.0\.weight: \(6, 4\), not \(3, 4\)\n  - 1\.0\.bias: \(6,\), not \(3,\)$"
    with pytest.raises(MismatchError, match=f"tuned head is not of the kind of the backbone's:{lines}"):
        extract_task(odd, "t", wider)
    assert odd.tasks == ()


class Own(nn.Linear):
    """A linear layer of another class."""


def with_head(head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), head)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda: nn.Conv2d(8, 5, 1), lambda: nn.Conv2d(8, 5, 1)),
        (lambda: nn.Conv2d(8, 5, 3, padding="same"), lambda: nn.Conv2d(8, 7, 3, padding="same", bias=False)),
        (lambda: nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)), None),
        (lambda: Own(6, 5), lambda: Own(6, 7)),
    ],
)
def test_heads_that_are_not_linear_are_taken_over(before, after):
    torch.manual_seed(0)
    base, tuned = with_head(before()).eval(), with_head((after or before)()).eval()
    tuned[0].bias = base[0].bias
    net, calls = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense", head="2")), []
    net.backbone[2].register_forward_hook(lambda *_: calls.append(1))
    task = extract_task(net, "t", tuned)
    net.eval().set_task("t")
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(net(x), tuned(x))
    assert calls == [1], "a hook of the backbone's head is around the task's, and nowhere else"
    assert all(p.requires_grad for p in task.head.parameters())
    unknown = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("none", layers={"0": "dense"}))
    if after is not None and base[2].weight.shape == tuned[2].weight.shape:
        with pytest.warns(UserWarning, match=r"does not hold, and stay the backbone's: .*2\.weight"):
            extract_task(unknown, "t", tuned)


def test_a_plan_that_leaves_a_layer_out_on_purpose_says_nothing():
    base, tuned = with_head(nn.Conv2d(8, 5, 1, bias=False)), with_head(nn.Conv2d(8, 5, 1, bias=False))
    tuned[0].bias = base[0].bias
    net = tn.adapt(base, tn.AdaptConfig("none", layers={"0": "dense", "2": "none"}))
    extract_task(net, "t", tuned)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(x)))


def test_changes_of_a_tied_weight_come_once():
    assert [change.target.name for change in changes(*pair(Tied))] == ["a"]


# ---- what reviews found ------------------------------------------------------------------------------------------------


class Attentive(nn.Module):
    """PyTorch's attention, whose output projection no call reaches, called with keywords."""

    def __init__(self):
        super().__init__()
        self.up, self.attn, self.down, self.fc = (
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 2),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.up(input=x)
        return self.fc(self.down(self.attn(query=x, key=x, value=x)[0]).mean(1))


@pytest.mark.parametrize("width", [8, 6])
def test_projections_of_attention_are_weighed_by_what_each_sees(width):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, width)
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True, kdim=width, vdim=width)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            memory = 100 * self.kv(x)
            return self.fc(self.attn(self.q(x), memory, value=memory)[0].mean(1))

    network, x = Cross().eval(), torch.randn(16, 5, 8)
    tuned = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = [change for change in changes(network, tuned) if change.target.module == "attn"]
    seen = calibrate(network, x, own)
    q, memory = network.q(x).flatten(0, 1), 100 * network.kv(x).flatten(0, 1)
    moments = {"q_proj_weight": q.T @ q, "k_proj_weight": memory.T @ memory, "v_proj_weight": memory.T @ memory}
    if width == 8:
        moments["in_proj_weight"] = (q.T @ q + 2 * memory.T @ memory) / 3
    for change in own:
        if change.target.parameter in moments:
            found = seen[change.target.name]
            torch.testing.assert_close(found.moment[0] / found.applied, moments[change.target.parameter].detach() / len(q))


def test_attention_can_be_planned_calibrated_extracted_and_pruned(tmp_path):
    base, tuned = pair(Attentive)
    x = torch.randn(6, 5, 4)
    plan = analysis.choose(base, tuned, 0.6, ["low_rank", "cp"], calibration=x)
    assert {"attn.in_proj_weight", "attn.out_proj"} <= set(plan.table.index)
    net = tn.adapt(copy.deepcopy(base))
    with pytest.warns(UserWarning, match="does not hold"):
        task = extract_task(net, "t", tuned, plan.config(), plan.decompositions)
    assert task.parameter_counts()["deltas"] == plan.parameters
    net.save_task("t", tmp_path / "t")
    pruned = analysis.prune(tmp_path / "t", tmp_path / "small", keep=1)
    net.load_task(tmp_path / "small", "small")
    again = net.add_task("again", nn.Linear(8, 3), net["small"].config)
    assert again.parameter_counts() == net["small"].parameter_counts()
    assert len(pruned.removed) == (plan.table["decomposition"] != "none").sum() - 1


def test_a_task_folder_is_calibrated_like_the_network_it_makes(tmp_path):
    base, _ = pair()
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig("dense"))
    trained(net.add_task("t"), 0.1)
    net.save_task("t", tmp_path / "t")
    x = torch.randn(4, 3, 8, 8)
    by_folder = analysis.choose(base, tmp_path / "t", 0.2, NAMES, ranks=FEW, calibration=x)
    by_module = analysis.choose(base, net.merged("t").eval(), 0.2, NAMES, ranks=FEW, calibration=x)
    assert by_folder.error == pytest.approx(by_module.error, rel=1e-5)
    assert by_folder.table["error"].max() < 1
    with pytest.raises(ConfigError, match="leave out the base"):
        analysis.choose("nowhere.safetensors", tmp_path / "t", 0.2)
    with pytest.raises(MismatchError):
        analysis.choose(pair(seed=5)[0], tmp_path / "t", 0.2)


def test_the_head_in_files_and_of_a_config(tmp_path):
    state = {"encoder.weight": torch.zeros(6, 6), "classifier.weight": torch.zeros(4, 6)}
    save_file(state, tmp_path / "a.safetensors")
    save_file({"encoder.weight": torch.ones(6, 6), "classifier.weight": torch.ones(3, 6)}, tmp_path / "b.safetensors")
    save_file({"encoder.weight": torch.ones(6, 6), "classifier.weight": torch.ones(4, 6)}, tmp_path / "c.safetensors")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    assert list(analysis.choose(a, b, 30, ["cp"]).table.index) == ["encoder"], "another shape tells the head"
    assert list(analysis.choose(a, c, 30, ["cp"]).table.index) == ["classifier"], "or it is the last by name"
    assert list(analysis.choose(a, c, 30, ["cp"], head="classifier").table.index) == ["encoder"]
    with pytest.raises(ConfigError, match=r"no module 'clasifier'. Did you mean .*'classifier'"):
        analysis.choose(a, c, 30, ["cp"], head="clasifier")
    parts = {
        "classifier.0.weight": torch.zeros(4, 6),
        "classifier.0.bias": torch.zeros(4),
        "classifier.2.weight": torch.ones(3, 4),
    }
    for name, values in (("d", torch.zeros(6, 6)), ("e", torch.ones(6, 6))):
        save_file({"encoder.weight": values} | parts, tmp_path / f"{name}.safetensors")
    d, e = tmp_path / "d.safetensors", tmp_path / "e.safetensors"
    assert list(analysis.choose(d, e, 30, ["cp"], head="classifier").table.index) == ["encoder"], "a head of several layers"
    with pytest.raises(TaskFileError, match=r"nothere: there is no such file or folder"):
        analysis.choose(None, tmp_path / "nothere", 30)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(6, 3), nn.Linear(6, 6)

        def forward(self, x):
            return self.head(self.body(x))

    base, tuned = pair(Two)
    net = tn.adapt(copy.deepcopy(base), tn.AdaptConfig(head="head", norms="shared"))
    plan = analysis.choose(base, tuned, 0.9, ["cp"], head="head")
    assert list(plan.table.index) == ["body"]
    with pytest.warns(UserWarning, match=r"body\.bias"):
        extract_task(net, "t", tuned, plan.config(net.default_config), plan.decompositions)


def test_multiply_adds_count_every_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.a(self.a(x)))

    plan = analysis.choose(*pair(Twice), 1.0, ["cp"], calibration=torch.randn(5, 8), unit="multiply_adds")
    assert plan.whole == 2 * 64


def test_multiply_adds_of_a_transposed_convolution_are_those_of_its_inputs():
    from torch.utils.flop_counter import FlopCounterMode

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.fc = nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.up(x).mean((2, 3)))

    base, tuned = pair(Up)
    x = torch.randn(2, 8, 10, 10)
    plan = analysis.choose(base, tuned, 1.0, ["cp"], calibration=x, unit="multiply_adds")
    with FlopCounterMode(display=False) as counter:
        base.up(x[:1])
    assert plan.whole == counter.get_total_flops() // 2


def test_bytes_of_a_task_are_those_of_its_factors(tmp_path):
    net = tn.adapt(ResNet().bfloat16(), tn.AdaptConfig("dense"))
    trained(net.add_task("a", nn.Linear(8, 3, dtype=torch.bfloat16)))
    net.save_task("a", tmp_path / "a")
    numbers = net["a"].parameter_counts()["deltas"]
    assert analysis.choose(None, tmp_path / "a", 0.5, ["cp"], unit="bytes", ranks=FEW).whole == 2 * numbers


def test_gradients_of_unused_layers_and_of_no_data():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.idle, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.a(x))

    found = analysis.gradients(Idle(), [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))])
    assert {change.target.name: bool(change.delta.any()) for change in found} == {"a": True, "idle": False}
    with pytest.raises(tn.TensornetError, match="no batch"):
        analysis.gradients(Idle(), [])


def test_odd_names_survive_the_plan(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("😀", 'a"b', "c d+e-f", "g\\h"):
                self.add_module(name, nn.Linear(6, 6))
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            for name, layer in self.named_children():
                x = layer(x) if name != "fc" else x
            return self.fc(x)

    base, tuned = pair(Odd)
    plan = analysis.choose(base, tuned, 0.9, ["low_rank"])
    plan.save(tmp_path / "p.toml")
    net = tn.adapt(base, tn.AdaptConfig("none", layers=tmp_path / "p.toml"))
    assert [p.fold.members[0].target.name for p in net.plans] == [n for n in plan.table.index if n in plan.decompositions]
    assert len(net.plans) == 4


def test_multiply_adds_of_attention_are_those_of_all_its_projections():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.attention(x, x, x)[0].mean(1))

    plan = analysis.choose(*pair(Attending), 1.0, ["cp"], calibration=torch.randn(3, 17, 8), unit="multiply_adds")
    assert plan.whole == 17 * (3 * 64 + 64)


def test_a_layer_that_puts_out_zeros_has_no_relative_error():
    base, tuned = pair()
    with torch.no_grad():
        tuned.layer1[0].conv1.weight.zero_()
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1 puts out nothing but zeros"):
        analysis.choose(base, tuned, 0.5, ["cp"], calibration=torch.randn(2, 3, 8, 8), ranks=FEW)
    assert analysis.choose(base, tuned, 0.5, ["cp"], ranks=FEW).error < 1


def test_a_plan_of_files_is_a_config_also_where_there_are_embeddings(tmp_path):
    base = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[1].weight += torch.randn(6, 6)
    for name, network in (("a", base), ("b", tuned)):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    plan = analysis.choose(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 0.9, ["cp"])
    plan.save(tmp_path / "p.toml")
    assert "none" in (tmp_path / "p.toml").read_text()
    net = tn.adapt(base, tn.AdaptConfig("none", layers=tmp_path / "p.toml"))
    assert [p.fold.name for p in net.plans] == ["1"]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_tensors_of_a_plan_are_taken_with_any_scale_and_no_other_rank(scale):
    base, tuned = pair()
    plan = analysis.choose(base, tuned, 0.3, ["cp"], ranks=FEW)
    net = tn.adapt(copy.deepcopy(base), replace(plan.config(), scale=scale))
    with pytest.warns(UserWarning, match="does not hold"):
        task = extract_task(net, "t", tuned, None, plan.decompositions)
    (name, made), *_ = plan.decompositions.items()
    torch.testing.assert_close(task.delta(name), made.to_tensor().reshape(task.delta(name).shape), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"cp of rank 1 is configured; got CP\("):
        extract_task(net, "u", tuned, tn.AdaptConfig("cp", rank=1), plan.decompositions)
    assert net.tasks == ("t",)


def test_extraction_of_one_layer_and_of_a_norm_in_two_places():
    base, tuned = nn.Linear(6, 6), nn.Linear(6, 6)
    tuned.bias = base.bias
    net = tn.adapt(base, tn.AdaptConfig("dense", head="none"))
    task = extract_task(net, "t", tuned)
    assert torch.allclose(base._parameters["weight"] + task.delta(""), tuned.weight, atol=1e-6)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.a, self.fc = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.m = self.n

        def forward(self, x):
            return self.fc(self.m(self.a(self.n(x))))

    base = Shared()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.n.weight += 1
    extract_task(tn.adapt(base), "t", tuned)  # a warning would be an error


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_budget_is_not_spent_on_rounding(calibrated):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 24, bias=False), nn.Linear(24, 4))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer, rank in ((tuned[0], 3), (tuned[1], 2)):
            layer.weight += torch.randn(len(layer.weight), rank) @ torch.randn(rank, layer.weight.shape[1])
    plan = analysis.choose(base, tuned, 1.0, ["low_rank", "dense"], torch.randn(64, 32) if calibrated else None)
    assert list(plan.table["parameters"]) == [3 * 64, 2 * 56]
    assert plan.error == plan.bound == 0


def test_changes_of_double_precision_are_not_rounded_away():
    base, tuned = (network.double() for network in pair(scale=1e-9))
    found = changes(base, tuned)
    weights = dict(tuned.named_parameters())
    for change in found:
        own = weights[change.target.key] - dict(base.named_parameters())[change.target.key]
        torch.testing.assert_close(change.delta, own.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(("budget", "said"), [(1.5, "a share in"), (0, "a positive number"), (True, "a positive number")])
def test_a_budget_is_looked_at_before_anything_is_run(budget, said):
    def never():
        raise AssertionError("calibrated")
        yield

    base, tuned = pair()
    with pytest.raises(ConfigError, match=said):
        analysis.choose(base, tuned, budget, calibration=never())
