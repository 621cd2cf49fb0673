"""Every path equals the dense oracle, for every layer and geometry; gradients too."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tensornet as tn
from tensornet.paths.rule import COSTS
from tests.toys import trained

NAMES = ["cp", "dense", "kronecker", "low_rank", "tt", "tucker"]
CONVS = {(1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d}
CONVS |= {(1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d}


@st.composite
def layers(draw):
    """A convolution of any kind and geometry, and an input for it."""
    dims, transposed = draw(st.sampled_from(list(CONVS)))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel = draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    stride = draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    dilation = draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    options = {"stride": tuple(stride), "dilation": tuple(dilation), "groups": groups, "bias": draw(st.booleans())}
    padding = draw(st.lists(st.integers(0, 2), min_size=dims, max_size=dims))
    if transposed:
        options["padding"] = tuple(min(p, k - 1) for p, k in zip(padding, kernel, strict=True))
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        same = options["stride"] == (1,) * dims and draw(st.booleans())
        options["padding"] = "same" if same else tuple(padding)
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    layer = CONVS[dims, transposed](into, out, tuple(kernel), **options)
    return layer.double(), torch.randn(2, into, *[6] * dims, dtype=torch.float64)


def outcome(net, x, parameters):
    """Output and the gradients of input and parameters."""
    x = x.clone().requires_grad_(x.is_floating_point())
    y = net(x)
    generator = torch.Generator(y.device).manual_seed(1)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device).to(y.dtype)
    wanted = [*parameters, *([x] if x.requires_grad else [])]
    return y.detach(), torch.autograd.grad((y * weights).sum(), wanted)


def check_paths(layer, x, name, rank, scale=0.7):
    config = tn.AdaptConfig(name, rank=rank, head="none", scale=scale, targets=r".*")
    net = tn.adapt(nn.Sequential(layer), config)
    task = trained(net.add_task("t"))
    (path,) = (member.target.name for plan, _ in task.tensors() for member in plan.fold.members)
    oracle = net.merged("t")
    net.set_task("t")
    own = list(task.parameters())
    on_weight = outcome(net, x, own)
    net.path = "activations"
    on_activations = outcome(net, x, own)
    for (y, grads), (z, other) in [(on_weight, on_activations)]:
        torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
        for g, h in zip(grads, other, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(on_weight[0], oracle(x).detach(), rtol=1e-10, atol=1e-10)
    # the dense oracle: TensorLy builds the tensor, autograd goes through it
    ((plan, module),) = task.tensors()
    dense = module.reconstruct(module.factors(), module.shape)
    order = plan.fold.order(module.chain)
    wanted = ("in", "out", "kernel") if plan.fold.members[0].target.transposed else ("out", "in", "kernel")
    weight = layer._parameters["weight"]
    delta = dense.permute([order.index(mode) for mode in wanted if mode in order]).reshape(weight.shape)

    def call(inputs):
        plain = net.merged(None)
        return torch.func.functional_call(plain, {f"{path}.weight": weight + scale * delta}, (inputs,))

    expected = outcome(call, x, own)
    torch.testing.assert_close(on_weight[0], expected[0], rtol=1e-10, atol=1e-10)
    for g, h in zip(on_weight[1], expected[1], strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(case=layers(), rank=st.integers(1, 4))
def test_convolutions(name, case, rank):
    check_paths(*case, name, rank)


@pytest.mark.parametrize("name", NAMES)
@given(out=st.integers(1, 6), into=st.integers(1, 6), rank=st.integers(1, 4), bias=st.booleans(), extra=st.booleans())
def test_linear(name, out, into, rank, bias, extra):
    x = torch.randn(*([3, 2] if extra else [3]), into, dtype=torch.float64)
    check_paths(nn.Linear(into, out, bias).double(), x, name, rank)


@pytest.fixture
def launching_is_dear(monkeypatch):
    """The rule of an accelerator, by which layers on the weight are left to plain autograd."""
    monkeypatch.setitem(COSTS, "cpu", replace(COSTS["cpu"], own=1.0))


@pytest.mark.parametrize("name", NAMES)
@given(case=layers(), rank=st.integers(1, 4))
def test_plain_autograd_on_the_weight(launching_is_dear, name, case, rank):
    check_paths(*case, name, rank)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}])
def test_embedding(name, options):
    check_paths(nn.Embedding(7, 4, **options).double(), torch.tensor([[1, 2, 2], [6, 0, 1]]), name, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
def test_lower_precision(name, dtype, tolerance):
    double = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)).double()
    net = tn.adapt(double, tn.AdaptConfig(name, rank=3, head="none"))
    trained(net.add_task("t"))
    net.set_task("t")
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    exact = net(x)
    net.to(dtype)
    for path in ("weight", "activations"):
        net.path = path
        found = net(x.to(dtype))
        assert found.dtype == dtype
        assert float((found.double() - exact).norm().detach() / exact.norm().detach()) < tolerance
    merged = net.merged("t")
    net.path = "weight"
    assert torch.equal(merged(x.to(dtype)), net(x.to(dtype)))


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    net = tn.adapt(
        nn.Sequential(nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(72, 5)), tn.AdaptConfig(name, rank=2, head="none")
    )
    task = trained(net.add_task("t"))
    net.set_task("t")
    x = torch.randn(4, 6, 5, 5)
    merged = net.merged("t")
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = net(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, merged(x)), "W + ΔW is summed in float32, then cast, as autocast does with any weight"
        y.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.parameters())


@pytest.mark.parametrize("path", ["auto", "weight", "activations"])
def test_a_network_on_the_meta_device_gives_shapes(path):
    """Where nothing is computed: how much memory or work a step will take can be asked before there is any."""
    with torch.device("meta"):
        net = tn.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)), tn.AdaptConfig("cp", rank=2))
        task = net.add_task("t", nn.Linear(36, 2))
        x = torch.empty(5, 3, 5, 5)
    net.set_task("t")
    net.path = path
    y = net.train()(x)
    y.sum().backward()
    assert y.shape == net.eval()(x).shape == (5, 2)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in task.parameters())


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)])
def test_autocast_through_the_rank_of_any_layer(layer):
    layer = layer.to(torch.get_default_device())
    net = tn.adapt(nn.Sequential(layer), tn.AdaptConfig("cp", rank=2, head="none", targets=r".*"))
    task = trained(net.add_task("t"))
    net.set_task("t")
    net.path = "activations"
    for x in (torch.randn(2, layer.in_channels, 5, 5), torch.randn(layer.in_channels, 5, 5)):
        exact = net(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            y = net(x)
        assert y.dtype == torch.bfloat16
        assert float((y.float() - exact).norm().detach() / exact.norm().detach()) < 3e-2
        y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in task.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_depth_slices_compute_like_dense_ones(name):
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)), nn.Conv2d(4, 2, 1)).double()
    net = tn.adapt(net, tn.AdaptConfig(name, rank=3, folding="depth", head="none"))
    task = trained(net.add_task("t"))
    assert len(task.plans) == 2
    plan, module = next(task.tensors())
    assert sorted(plan.shape) == sorted((4, 4, 9, 3))
    whole = module.to_tensor()
    order = plan.fold.order(module.chain)
    for i, member in enumerate(plan.fold.members):
        part = whole.select(order.index("depth"), i)
        rest = [mode for mode in order if mode != "depth"]
        dense = part.permute([rest.index(mode) for mode in ("out", "in", "kernel")]).reshape(4, 4, 3, 3)
        torch.testing.assert_close(task.delta(member.target.name), dense, rtol=1e-10, atol=1e-12)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    net.set_task("t")
    y = net(x)
    net.path = "activations"
    torch.testing.assert_close(net(x), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net.merged("t")(x), y, rtol=1e-10, atol=1e-10)


def test_a_new_delta_starts_with_rows_of_unit_norm():
    for name in ("cp", "tucker", "tt", "low_rank"):
        net = tn.adapt(nn.Sequential(nn.Conv2d(64, 64, 3)), tn.AdaptConfig(name, rank=16, head="none"))
        ((_, module),) = net.add_task("t").tensors()
        rows = module.bottleneck(module.factors(), module.shape).rows()
        assert math.isclose(rows.norm(dim=1).mean().item(), 1, rel_tol=0.3)
