"""Smaller tasks: what is removed is removed exactly, and what stays is untouched."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import analysis
import tensornet as tn
from analysis.norm_layers import norm_changes
from analysis.norms import layer_norms
from analysis.pruning import _near, pruned_file
from tensornet.decompositions.base import Rung
from tensornet.errors import ConfigError, MismatchError, TaskFileError, WriteError
from tests.toys import ResNet, trained


def network(config=None, seed=0):
    torch.manual_seed(seed)
    return tn.adapt(ResNet(), config or tn.AdaptConfig("cp", rank=3)).eval()


@pytest.fixture
def saved(tmp_path):
    net = network()
    trained(net.add_task("a", nn.Linear(8, 3)), seed=1)
    net.save_task("a", tmp_path / "a")
    return net.eval(), tmp_path / "a"


def loaded(folder):
    net = network()
    net.load_task(folder)
    net.set_task("a")
    return net.eval()


def test_below_the_threshold_is_gone_and_the_rest_is_bit_equal(saved, tmp_path):
    net, folder = saved
    norms = layer_norms(tn.read_task(folder), "delta")
    limit = sorted(norms.values())[3]
    pruned = analysis.prune(folder, tmp_path / "small", threshold=limit)
    assert pruned.removed == [layer for layer in norms if norms[layer] < limit]
    assert len(pruned.removed) == 3, "what lies strictly below"
    small = loaded(tmp_path / "small")
    for layer, norm in norms.items():
        weight, task = net.backbone.get_submodule(layer)._parameters["weight"], small["a"]
        own = small.backbone.get_submodule(layer)
        if norm < limit:
            assert torch.equal(own.weight, weight), "a pruned layer computes exactly what the backbone computes"
        else:
            assert torch.equal(task.delta(layer), net["a"].delta(layer))
    left = sum(p.numel() for p in small["a"].deltas.parameters())
    assert left == pruned.table["parameters"].sum() == pruned.file.parameter_counts()["deltas"]
    assert small["a"].config.to_dict() == tn.read_task(tmp_path / "small").config.to_dict()


def test_a_pruned_task_can_be_made_afresh_from_its_config(saved, tmp_path):
    _, folder = saved
    analysis.prune(folder, tmp_path / "small", keep=4)
    small = loaded(tmp_path / "small")
    again = small.add_task("again", nn.Linear(8, 3), small["a"].config)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small["a"].named_parameters()}
    small.save_task("a", tmp_path / "resaved")
    assert (tmp_path / "resaved/task.safetensors").read_bytes() == (tmp_path / "small/task.safetensors").read_bytes()


@given(keep=st.integers(0, 9))
def test_keep_and_budget(keep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task") / "a"
    net = network()
    trained(net.add_task("a"), seed=2)
    net.save_task("a", folder)
    file = tn.read_task(folder)
    norms = layer_norms(file, "delta")
    pruned = pruned_file(file, keep=keep)
    kept = [layer for layer in norms if layer not in pruned.removed]
    assert len(kept) == min(keep, len(norms))
    assert not kept or min(norms[layer] for layer in kept) >= max([norms[r] for r in pruned.removed], default=0)
    budget = pruned.file.parameter_counts()["deltas"]
    assert pruned_file(file, budget=budget).removed == pruned.removed
    if budget > 0:
        assert pruned_file(file, budget=budget - 1).file.parameter_counts()["deltas"] < budget


@pytest.mark.parametrize("config", [("cp", 6), ("tucker", 5), ("tt", 5), ("low_rank", 5), ("kronecker", 4)])
def test_energy_keeps_its_share_in_fewer_parameters(config, tmp_path):
    name, rank = config
    net = network(tn.AdaptConfig(name, rank=rank))
    task = trained(net.add_task("a"), seed=3)
    with torch.no_grad():  # as training does: a few strong directions, the rest small
        for _, module in task.tensors():
            low = type(module).from_tensor(module.to_tensor(), 1).to_tensor()
            noisy = low + 0.02 * low.norm() * torch.randn(low.shape) / low.numel() ** 0.5
            for own, new in zip(module.parameters(), type(module).from_tensor(noisy, rank).parameters(), strict=True):
                own.copy_(new)
    net.save_task("a", tmp_path / "a")
    pruned = analysis.prune(tmp_path / "a", tmp_path / "b", energy=0.99)
    assert pruned.table["parameters"].sum() < 0.7 * pruned.table["parameters_before"].sum()
    small = loaded(tmp_path / "b") if name == "cp" else network(tn.AdaptConfig(name, rank=rank))
    if name != "cp":
        small.load_task(tmp_path / "b")
    for layer in pruned.table.index:
        before, after = net["a"].delta(layer).double(), small["a"].delta(layer).double()
        assert (before - after).square().sum() <= 0.0101 * before.square().sum()
    untouched = analysis.prune(tmp_path / "a", energy=1.0)
    assert untouched.table["parameters"].sum() <= untouched.table["parameters_before"].sum()
    assert not untouched.removed
    for (plan, found), (own, module) in zip(untouched.file.tensors, task.tensors(), strict=True):
        assert plan.fold.name == own.fold.name
        torch.testing.assert_close(found.to_tensor(), module.to_tensor(), atol=1e-4, rtol=1e-3)


def test_a_tensor_of_many_layers_loses_members(tmp_path):
    net = network(tn.AdaptConfig("cp", rank=2, folding="depth"))
    trained(net.add_task("a"), seed=4)
    net.save_task("a", tmp_path / "a")
    pruned = analysis.prune(tmp_path / "a", tmp_path / "b", keep=3)
    other = network()
    other.load_task(tmp_path / "b")
    other.set_task("a")
    for layer in pruned.table.index:
        own, base = other.backbone.get_submodule(layer).weight, net.backbone.get_submodule(layer)._parameters["weight"]
        if layer in pruned.removed:
            assert torch.equal(own, base)
        else:
            assert torch.equal(other["a"].delta(layer), net["a"].delta(layer))


def test_norms_that_hardly_changed_are_returned_and_the_prefix_grows(saved, tmp_path):
    net, folder = saved
    with torch.no_grad():
        net["a"].own_norms()["bn1"].load_state_dict(net.backbone.bn1.state_dict())
    net.save_task("a", folder)
    changes = norm_changes(tn.read_task(folder), net.backbone)
    assert changes["bn1"] == 0
    assert all(change > 0 for layer, change in changes.items() if layer != "bn1")
    pruned = analysis.prune(folder, tmp_path / "b", keep=2, norms=0.01, backbone=net.backbone)
    assert list(pruned.returned) == ["bn1"]
    small = loaded(tmp_path / "b")
    assert "bn1" not in small["a"].own_norms()
    small.add_task("b", nn.Linear(8, 3), small["a"].config)
    x, calls = torch.randn(4, 3, 8, 8), []
    before = small.backbone.bn1.forward
    small.backbone.bn1.__dict__["forward"] = lambda x: calls.append("bn1") or before(x)
    outputs = small.forward_tasks(x, ["a", "b"])
    assert "conv1" in pruned.removed
    assert len(calls) == 1, "conv1 and bn1 are shared now, and so computed once"
    torch.testing.assert_close(outputs["a"], small(x))
    torch.testing.assert_close(small(x), small.merged("a").eval()(x))


def test_the_change_of_a_norm_is_that_of_its_output(tmp_path):
    net = network()
    task = trained(net.add_task("a"), seed=5)
    net.save_task("a", tmp_path / "a")
    own, shared = task.own_norms()["bn1"].eval(), ResNet().bn1.eval()
    shared.load_state_dict(net.backbone.bn1.state_dict())
    x = (own.running_mean + own.running_var.sqrt() * torch.randn(200_000, 8))[:, :, None, None]
    with torch.no_grad():
        mine, theirs = own(x), shared(x)
    wanted = float((mine - theirs).square().sum() / mine.square().sum()) ** 0.5
    assert norm_changes(tn.read_task(tmp_path / "a"), net.backbone)["bn1"] == pytest.approx(wanted, rel=0.02)


def test_refusals(saved, tmp_path):
    net, folder = saved
    with pytest.raises(ConfigError, match="give one of threshold, keep, budget and energy; got none"):
        analysis.prune(folder, tmp_path / "b")
    with pytest.raises(ConfigError, match="got threshold, keep"):
        analysis.prune(folder, tmp_path / "b", threshold=1.0, keep=2)
    with pytest.raises(TaskFileError, match=r"removes every delta of 'a': the largest norm is .* keep=0"):
        analysis.prune(folder, tmp_path / "b", threshold=1e9)
    for wrong in (
        {"threshold": -1},
        {"threshold": float("nan")},
        {"keep": 1.5},
        {"budget": -3},
        {"budget": 1.5},
        {"energy": 2},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            analysis.prune(folder, tmp_path / "b", **wrong)
    with pytest.raises(ConfigError, match="with the backbone"):
        analysis.prune(folder, keep=1, norms=0.1)
    with pytest.raises(ConfigError, match="one norm per layer"):
        analysis.prune(folder, keep=1, kind="factor")
    with pytest.raises(MismatchError, match="does not belong to this backbone"):
        analysis.prune(folder, keep=1, norms=0.1, backbone=ResNet(width=4))
    net.add_task("bare", config=tn.AdaptConfig("none"))
    net.save_task("bare", tmp_path / "bare")
    with pytest.raises(TaskFileError, match="no deltas: nothing to prune"):
        analysis.prune(tmp_path / "bare", keep=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        analysis.prune(folder, tmp_path / "file", keep=1)
    (tmp_path / "a" / "task.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(TaskFileError):
        analysis.prune(folder, keep=1)
    assert not (tmp_path / "b").exists(), "nothing is half-written"


@given(energy=st.sampled_from([0.5, 0.8, 0.9, 0.99]), seed=st.integers(0, 9))
def test_tucker_and_trains_get_the_fewest_parameters(energy, seed):
    from analysis.pruning import _rounded
    from tensornet.decompositions import TT, Spectrum, Tucker
    from tests.test_ladder import decaying

    for cls in (Tucker, TT):
        tensor = decaying(8, 6, 5, seed=seed, power=1.5)
        made = cls.from_tensor(tensor, 8)
        found = _rounded(made, energy)
        size = float(made.to_tensor().detach().square().sum())
        assert (found.to_tensor() - made.to_tensor()).detach().square().sum() <= (1 - energy + 1e-9) * size
        spectrum, counts = Spectrum(made.to_tensor().detach()), []
        for ranks in torch.cartesian_prod(
            *(torch.arange(1, n + 1) for n in ((8, 6, 5) if cls is Tucker else (8, 5)))
        ).tolist():
            whole = ranks if cls is Tucker else [ranks[0], 6, ranks[1]]
            if spectrum.energy - float(spectrum.captured[tuple(r - 1 for r in whole)]) <= (1 - energy) * size:
                counts.append(cls.parameter_count((8, 6, 5), tuple(ranks)))
        assert cls.parameter_count(found.shape, found.rank) <= min(counts)


def test_norms_alone_and_zero_deltas(saved, tmp_path):
    net, folder = saved
    alone = analysis.prune(folder, norms=1e9, backbone=net.backbone)
    assert alone.removed == []
    assert alone.file.config.norms == "shared"
    trained(net.add_task("norms", nn.Linear(8, 3), tn.AdaptConfig("none")))
    net.save_task("norms", tmp_path / "norms")
    only = analysis.prune(tmp_path / "norms", tmp_path / "fewer", norms=1e9, backbone=net.backbone)
    assert (only.removed, len(only.table), only.file.config.norms) == ([], 0, "shared")
    assert set(only.returned) == set(net["norms"].own_norms())
    with pytest.raises(TaskFileError, match="no deltas"):
        analysis.prune(tmp_path / "norms", keep=1)
    net.add_task("new", nn.Linear(8, 3))
    net.save_task("new", tmp_path / "new")
    with pytest.raises(TaskFileError, match="every delta of 'new' is zero"):
        analysis.prune(tmp_path / "new", energy=0.9)


def test_a_pruned_config_wins_over_patterns_that_were_there(tmp_path):
    config = tn.AdaptConfig("cp", rank=2, layers={"conv1": {"rank": 3}, ".*": {"rank": 2}})
    net = network(config)
    trained(net.add_task("a"), seed=6)
    net.save_task("a", tmp_path / "a")
    pruned = analysis.prune(tmp_path / "a", tmp_path / "b", keep=1)
    fresh = network(pruned.file.config)
    assert [plan.fold.name for plan in fresh.plans] == [plan.fold.name for plan, _ in pruned.file.tensors]


class GemmaNorm(nn.Module):
    """A norm that is no module of PyTorch's, and whose weight is what it is beyond one."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.gamma)


@pytest.mark.parametrize(("moved", "change"), [(0.01, 0.01 / 1.01), (4.0, 0.8)])
def test_the_change_of_a_norm_of_another_library_is_measured(moved, change, tmp_path):
    backbone = nn.Sequential(nn.Linear(8, 8), GemmaNorm(8), nn.Linear(8, 2))
    net = tn.adapt(backbone)
    task = net.add_task("a", nn.Linear(8, 3))
    with torch.no_grad():
        task.own_norms()["1"].gamma += moved
    net.save_task("a", tmp_path / "a")
    found = norm_changes(tn.read_task(tmp_path / "a"), net.merged(None))
    assert found["1"] == pytest.approx(change, rel=1e-6)


def test_norms_are_pruned_on_the_backbone_in_another_dtype(tmp_path):
    backbone = ResNet()
    net = tn.adapt(copy.deepcopy(backbone).bfloat16(), tn.AdaptConfig("cp", rank=2))
    trained(net.add_task("a", nn.Linear(8, 3).bfloat16()))
    net.save_task("a", tmp_path / "a")
    pruned = analysis.prune(tmp_path / "a", keep=1, norms=0.0, backbone=backbone)
    assert len(pruned.removed) > 1


def test_a_rank_that_was_found_is_kept_where_a_longer_ladder_does_worse():
    class Unsteady:
        @staticmethod
        def cheapest(spectrum, allowed):
            return None

        @staticmethod
        def ladder(spectrum, ranks, seed):
            return [Rung(rank, 1 / rank if len(ranks) == 1 else 1.0, {}) for rank in ranks]

    found = _near(Unsteady, None, 0.25, 16)
    assert [rung.rank for rung in found if rung.error <= 0.25] == [4]


def test_the_task_that_is_pruned_is_not_written_over(saved, tmp_path):
    _, folder = saved
    before = (folder / "task.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, tmp_path / "link"):
        with pytest.raises(ConfigError, match="is the task that is pruned, and would be gone"):
            analysis.prune(folder, out, keep=2)
    assert (folder / "task.safetensors").read_bytes() == before
