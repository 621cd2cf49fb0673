"""One compiled graph serves every task of one config and head width."""

import pytest
import torch
import torch._dynamo
from torch import nn

import tensornet as tn
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
