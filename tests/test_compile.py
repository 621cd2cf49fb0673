"""One compiled graph serves every task of one config and head width."""

import copy
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import nn

import tensornet as tn
from tensornet.errors import StateError
from tensornet.paths.rule import COSTS
from tests.toys import Encoder, ResNet, Transformer, trained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def graphs(backbone, width, x, config, train=False):
    """How many graphs ten tasks need, each output checked against eager."""
    torch._dynamo.reset()
    net = tn.adapt(backbone.eval(), config)
    for i in range(10):
        trained(net.add_task(f"t{i}", nn.Linear(width, 3)), scale=0.1, seed=i)
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    net.train(train)
    for name in net.tasks:
        net.set_task(name)
        if train:
            compiled(x).square().sum().backward()
            assert all(p.grad is not None for p in net[name].parameters())
        else:
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
    return len(seen)


@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "low_rank"])
@pytest.mark.parametrize("train", [False, True])
def test_one_graph_for_ten_tasks(name, train):
    assert graphs(ResNet(), 8, torch.randn(4, 3, 8, 8), tn.AdaptConfig(name, rank=2), train) == 1


@pytest.mark.parametrize("train", [False, True])
def test_one_graph_where_launching_is_dear(monkeypatch, train):
    monkeypatch.setitem(COSTS, "cpu", replace(COSTS["cpu"], own=1.0))
    assert graphs(ResNet(), 8, torch.randn(4, 3, 8, 8), tn.AdaptConfig("cp", rank=2), train) == 1


@pytest.mark.parametrize("name", ["dense", "kronecker"])
def test_one_graph_without_a_bottleneck(name):
    assert graphs(ResNet(), 8, torch.randn(4, 3, 8, 8), tn.AdaptConfig(name, rank=2)) == 1


def test_one_graph_for_a_transformer_and_depth():
    assert graphs(Transformer(), 8, torch.randint(11, (4, 5)), tn.AdaptConfig("tucker", rank=2, folding="depth")) == 1


@pytest.mark.parametrize("train", [False, True])
def test_one_graph_for_attention_that_no_forward_reaches(train):
    assert graphs(Encoder(), 8, torch.randn(4, 5, 8), tn.AdaptConfig("cp", rank=2), train) == 1


def test_no_grad_and_the_cache_do_not_add_graphs():
    with torch.no_grad():
        assert graphs(ResNet(), 8, torch.randn(4, 3, 8, 8), tn.AdaptConfig("cp", rank=2)) == 1


@pytest.mark.slow
def test_the_real_compiler():
    torch._dynamo.reset()
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig("cp", rank=2))
    compiled = torch.compile(net)
    x = torch.randn(4, 3, 8, 8)
    for i in range(3):
        trained(net.add_task(f"t{i}", nn.Linear(8, 3)), scale=0.1, seed=i)
        net.set_task(f"t{i}")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)


def adapted(rank=2, name="cp"):
    torch._dynamo.reset()
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig(name, rank=rank))
    trained(net.add_task("a", nn.Linear(8, 3)), scale=0.1)
    net.set_task("a")
    return net


@pytest.mark.parametrize(
    ("name", "path", "train"),
    [
        ("cp", "auto", True),
        ("cp", "auto", False),
        ("cp", "activations", False),
        ("tucker", "weight", True),
        ("tt", "auto", True),
    ],
)
def test_gradients_are_those_of_eager(name, path, train):
    net = adapted(name=name).double().train(train)
    net.path = path
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    found = []
    for call in (net, compiled):
        grads = torch.autograd.grad(call(x).square().sum(), [x, *net["a"].parameters()])
        found.append(grads)
    for eager, own in zip(*found, strict=True):
        torch.testing.assert_close(own, eager, rtol=1e-9, atol=1e-9)


def edit_in_place(net):
    with torch.no_grad():
        next(net["a"].deltas.parameters()).mul_(2)


def edit_data(net):
    next(net["a"].deltas.parameters()).data.add_(0.5)


def step(net):
    optimizer = torch.optim.SGD(net["a"].parameters(), 0.1)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def load(net):
    net["a"].load_state_dict({k: v + 0.1 for k, v in net["a"].state_dict().items()})


@pytest.mark.parametrize("edit", [edit_in_place, edit_data, step, load])
@torch.no_grad()
def test_a_compiled_graph_never_reads_a_stale_weight(edit):
    net, x = adapted(), torch.randn(4, 3, 8, 8)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    before = compiled(x)
    assert torch.equal(compiled(x), before)
    with torch.enable_grad():
        edit(net)
    torch.testing.assert_close(compiled(x), net(x))
    assert not torch.allclose(compiled(x), before)


@torch.no_grad()
def test_a_compiled_call_with_other_factors_computes_with_those():
    net, x = adapted(), torch.randn(4, 3, 8, 8)
    other = {key: value + 0.1 for key, value in net.state_dict().items() if "deltas" in key}

    def call(factors, x):
        return torch.func.functional_call(net, factors, (x,))

    compiled = torch.compile(call, backend="aot_eager")
    compiled({}, x)
    torch.testing.assert_close(compiled(other, x), call(other, x))
    torch.testing.assert_close(compiled({}, x), net(x))


@torch.no_grad()
def test_a_copy_is_compiled_with_its_own_weights():
    net, x = adapted(), torch.randn(4, 3, 8, 8)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(x)
    copied = copy.deepcopy(net)
    edit_in_place(copied)
    torch.testing.assert_close(torch.compile(copied, backend="aot_eager", fullgraph=True)(x), copied(x))
    torch.testing.assert_close(compiled(x), net(x))


@torch.no_grad()
def test_an_exported_program_needs_nothing_of_this_process(tmp_path):
    net, x = adapted(), torch.randn(4, 3, 8, 8)
    program = torch.export.export(net, (x,))
    assert "low_rank_layer" not in str(program.graph)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x))


@torch.no_grad()
def test_autocast_under_compile():
    net, x = adapted(), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = torch.compile(net, backend="aot_eager", fullgraph=True)(x), net(x)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample_inside_a_compiled_function():
    net, x = adapted(), torch.randn(4, 3, 8, 8)

    def every(batch):
        return torch.func.vmap(torch.func.grad(lambda sample: net(sample[None]).sum()))(batch)

    torch.testing.assert_close(torch.compile(every, backend="aot_eager")(x), every(x))


def test_older_compilers_meet_nothing_that_they_cannot_trace(monkeypatch):
    def untraceable(kind):
        assert not torch.compiler.is_compiling(), "PyTorch 2.11 breaks the graph here"
        return available(kind)

    available = torch.amp.is_autocast_available
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    assert graphs(ResNet(), 8, torch.randn(4, 3, 8, 8), tn.AdaptConfig("cp", rank=2)) == 1


def three_tasks():
    torch._dynamo.reset()
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig("cp", rank=2))
    for seed, name in enumerate("abc"):
        trained(net.add_task(name, nn.Linear(8, 3)), seed=seed)
    return net.eval()


def test_mixed_batches_of_a_compiled_network_run_as_they_are():
    net, seen = three_tasks(), []
    compiled = torch.compile(net, backend=lambda graph, inputs: seen.append(graph) or graph.forward)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for names in (["a", "b", "a", "c"], ["c", "c", "c", "c"], ["b", "a", "c", None]):
            for row, own in zip(compiled(x, tasks=names), net(x, tasks=names), strict=True):
                torch.testing.assert_close(row, own)
        assert not seen
        for name in net.tasks:
            net.set_task(name)
            torch.testing.assert_close(compiled(x), net(x))
    assert len(seen) == 1


def test_a_mixed_batch_is_not_exported():
    with pytest.raises(StateError, match="a mixed batch cannot be exported"):
        torch.export.export(three_tasks(), (torch.randn(2, 3, 8, 8),), {"tasks": ["a", "b"]})
