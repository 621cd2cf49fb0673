"""Sums W + ΔW that are made together are what each layer alone would make, in every use that autograd allows."""

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensornet as tn
from tensornet.paths import branch
from tensornet.paths.rule import COSTS
from tests.toys import ResNet, Transformer, trained

NAMES = ["cp", "low_rank", "tt", "tucker"]


@pytest.fixture(autouse=True)
def launching_is_dear(monkeypatch):
    """The rule of an accelerator, by which layers on the weight are left to plain autograd."""
    device = torch.get_default_device().type
    monkeypatch.setitem(COSTS, device, replace(COSTS[device], own=1.0))


@pytest.fixture
def taken(monkeypatch):
    """The sums that layers took, each as whether there was one."""
    found = []

    def made_for(*args):
        found.append(own := real(*args))
        return own

    real = branch.made_for
    monkeypatch.setattr(branch, "made_for", made_for)
    return found


def network(backbone, name="cp", **options):
    torch.manual_seed(0)
    net = tn.adapt(backbone, tn.AdaptConfig(name, rank=2, scale=0.7, norms="shared", **options)).train()
    task = trained(net.add_task("t"), scale=0.3)
    net.set_task("t")
    return net, list(task.parameters())


def outcome(net, parameters, x):
    y = net(x)
    return y, torch.autograd.grad(y.square().sum(), parameters)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_as_alone(name, layout, taken):
    net, parameters = network(ResNet().double().to(memory_format=layout), name)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alone = outcome(net, parameters, x)
    assert all(own is None for own in taken)
    layers = len(taken)
    taken.clear()
    torch.testing.assert_close(outcome(net, parameters, x), alone)
    assert len(taken) == layers
    assert all(own is not None for own in taken)
    taken.clear()
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)  # another call
    torch.testing.assert_close(net(x), net.merged("t").eval()(x))
    assert all(own is None for own in taken)


@pytest.mark.parametrize("name", ["dense", "kronecker"])
def test_without_a_bottleneck_nothing_is_made(name, taken):
    net, parameters = network(ResNet().double(), name)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(outcome(net, parameters, x), outcome(net, parameters, x))
    assert not taken


@pytest.mark.parametrize("folding", ["layer", "depth"])
def test_transformers(folding, taken):
    net, parameters = network(Transformer().double(), folding=folding)
    x = torch.randint(11, (3, 5))
    alone = outcome(net, parameters, x)
    taken.clear()
    torch.testing.assert_close(outcome(net, parameters, x), alone)
    assert any(own is not None for own in taken) == (folding == "layer")  # slices of one tensor are not stacked


def no_farther(found, alone, exact):
    """Rounding may differ, and leads no farther from the exact outcome."""
    for g, h, e in zip((found[0], *found[1]), (alone[0], *alone[1]), (exact[0], *exact[1]), strict=True):
        assert (g - e).norm() < 1.5 * (h - e).norm() + 1e-2 * e.norm()


def test_bfloat16_under_autocast(taken):
    net, parameters = network(ResNet())
    x = torch.randn(2, 3, 8, 8)
    exact = outcome(net, parameters, x)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        alone = outcome(net, parameters, x)
        taken.clear()
        found = outcome(net, parameters, x)
    assert all(own.dtype == torch.bfloat16 for own in taken)
    no_farther(found, alone, exact)


def test_a_bfloat16_network(taken):
    net, parameters = network(ResNet().bfloat16())
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    alone = outcome(net, parameters, x)
    found = outcome(net, parameters, x)
    assert taken[-1].dtype == torch.bfloat16
    net.float()
    no_farther(found, alone, outcome(net, parameters, x.float()))


def test_gradients_of_gradients(taken):
    layers = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
    net, parameters = network(nn.Sequential(*layers).double())
    x = torch.randn(3, 4, dtype=torch.float64)

    def second():
        first = torch.autograd.grad(net(x).square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    alone = second()
    taken.clear()
    torch.testing.assert_close(second(), alone)
    assert any(own is not None for own in taken)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, unused=True):
        return self.left(x), self.right(x), self.unused(x) if unused else None


@pytest.mark.parametrize("name", NAMES)
def test_each_part_may_have_a_backward_of_its_own(name, taken):
    net, parameters = network(Towers().double(), name, head="none")
    x = torch.randn(3, 4, dtype=torch.float64)
    net(x)[0].sum().backward()
    alone = [None if p.grad is None else p.grad.clone() for p in parameters]
    assert any(g is None for g in alone)
    net.zero_grad()
    left, right, _ = net(x)
    assert taken[-1] is not None
    left.sum().backward()
    for p, g in zip(parameters, alone, strict=True):
        torch.testing.assert_close(p.grad, g)
    right.sum().backward()
    assert sum(p.grad is None for p in parameters) == sum(g is None for g in alone) // 2
    net.zero_grad()
    sum(y.sum() for y in net(x, unused=False)[:2]).backward()
    assert sum(p.grad is None for p in parameters) == sum(g is None for g in alone) // 2


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(whole, reentrant, taken):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x).relu()
            return self.second(x) if whole else checkpoint(self.second, x, use_reentrant=reentrant)

    net, parameters = network(Checkpointed().double(), head="none")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    run = (lambda x: checkpoint(net, x, use_reentrant=reentrant)) if whole else net
    grads = []
    for _ in range(3):
        net.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in parameters])
    torch.testing.assert_close(grads[0], grads[2])
    assert any(own is not None for own in taken) == (not whole or reentrant)


def test_factors_changed_between_calls_are_seen(taken):
    net, parameters = network(ResNet().double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        net(x).square().sum().backward()
        with torch.no_grad():
            for p in parameters:
                p.add_(0.01)
    net.add_task("other")
    for name in ("other", "t"):
        net.set_task(name)
        torch.testing.assert_close(net(x), net.merged(name).eval()(x))
    assert taken[-1] is not None


def test_one_thread_does_not_take_what_another_made(taken):
    net, parameters = network(ResNet().double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alone = outcome(net, parameters, x)[1]
    found = {}

    def run(i):
        found[i] = [outcome(net, parameters, x)[1] for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert any(own is not None for own in taken)
    for every in found.values():
        for own in every:
            torch.testing.assert_close(own, alone)


def test_frozen_factors_and_no_gradients(taken):
    net, parameters = network(ResNet().double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = net.merged("t").eval()(x)
    frozen = parameters[::2]
    alone = outcome(net, parameters[1::2], x)[1]
    for p in frozen:
        p.requires_grad_(False)
    net(x)
    torch.testing.assert_close(outcome(net, parameters[1::2], x)[1], alone)
    for p in parameters:
        p.requires_grad_(False)
    torch.testing.assert_close(net(x), expected)
    assert taken[-1] is not None
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)


def test_weights_that_are_elsewhere_until_their_layer_is_called(taken):
    """As offloading and sharding do it."""
    net, parameters = network(ResNet().double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alone = outcome(net, parameters, x)
    for layer in (module for module in net.backbone.modules() if isinstance(module, nn.Conv2d)):
        weight, away = layer._parameters["weight"], layer._parameters["weight"].data
        weight.data = torch.empty(0, dtype=torch.float64)
        layer.register_forward_pre_hook(lambda _, x, weight=weight, away=away: setattr(weight, "data", away.clone()))
        layer.register_forward_hook(lambda _, x, y, weight=weight: setattr(weight, "data", torch.empty(0).double()))
    for _ in range(3):
        torch.testing.assert_close(net(x), alone[0])
    assert taken
    assert all(own is None for own in taken)


def test_a_task_that_is_set_on_the_way_through():
    net, _ = network(ResNet().double())
    trained(net.add_task("other"), scale=0.3, seed=1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = []
    for whole in (False, True):
        net.set_task("t")
        if whole:
            net(x)
        handle = net.backbone.layer1.register_forward_pre_hook(lambda *_: net.set_task("other"))
        found.append(net(x))
        handle.remove()
    torch.testing.assert_close(found[1], found[0])
    net.set_task("t")
    assert (net(x) - found[0]).abs().max() > 1e-3


def test_graphs_are_let_go(taken):
    net, _ = network(ResNet().double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):
        net(x).sum().backward()
    made = [weakref.ref(own) for own in taken if own is not None]
    assert made
    gc.collect()
    gc.disable()
    try:
        taken.clear()
        assert all(own() is None for own in made)
    finally:
        gc.enable()


class Unlearnt(torch.autograd.Function):
    """Takes part in the graph and has no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


def test_no_gradient_at_all(taken):
    net, parameters = network(Towers().double(), head="none")
    x = torch.randn(3, 4, dtype=torch.float64)
    for _ in range(2):
        sum(Unlearnt.apply(y).sum() for y in net(x)).backward()
    assert taken[-1] is not None
    assert all(p.grad is None for p in parameters)
