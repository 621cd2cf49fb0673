"""The step that keeps its input alone: every way equals autograd through the dense weight, and the rule is a rule."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tensornet as tn
from tensornet.bench.training import saved_for_backward
from tensornet.decompositions import Bottleneck
from tensornet.lean import ordinary
from tensornet.norms import own_copy
from tensornet.paths.layers import operation
from tensornet.paths.lowrank import LowRankLayer
from tensornet.paths.rule import COSTS, PATHS, Call, Path, choose
from tests.toys import ResNet, Transformer, trained

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def drawn(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


@st.composite
def cases(draw):
    """A stock layer, an input for it, a bottleneck of one of the forms that decompositions give, and a scale."""
    rows, into, out, rank, inner = (draw(st.integers(1, 4)) for _ in range(5))
    dims = draw(st.sampled_from([0, 1, 2, 2, 3]))
    if dims == 0:
        layer = nn.Linear(into, out, bias=draw(st.booleans()))
        x = torch.randn(*[rows] * draw(st.integers(0, 3)), into)
        parts = Bottleneck(drawn(out, rank), None, drawn(rank, into))
    else:
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
        padding = draw(st.sampled_from([0, 1, "same"])) if max(kernel) > 1 else 0
        options = {"dilation": draw(st.integers(1, 2)), "bias": draw(st.booleans())}
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
        options["stride"] = 1 if padding == "same" else draw(st.integers(1, 2))
        layer = CONVS[dims](into, out, kernel, padding=padding, **options)
        x = torch.randn(rows, into, *[draw(st.sampled_from([5, 6]))] * dims)
        if dims == 2 and draw(st.booleans()):
            x = x.contiguous(memory_format=torch.channels_last)
        places = math.prod(kernel)
        parts = draw(
            st.sampled_from(
                [
                    Bottleneck(drawn(out, rank), drawn(rank, places), drawn(rank, into)),
                    Bottleneck(drawn(out, rank), drawn(rank, inner, places), drawn(inner, into)),
                    Bottleneck(drawn(out, rank), drawn(rank, into, places), None),
                ]
            )
        )
    return layer.double().requires_grad_(False), x.double(), parts, draw(st.sampled_from([1.0, -0.7]))


def by_rank(layer, parts, scale, path):
    """The layer with its delta, as the step computes it."""
    own = operation(layer)
    return lambda x: LowRankLayer.apply(own.padded(x), *parts, layer.weight, layer.bias, scale, own, path)


def by_weight(layer, parts, scale):
    """The layer with its delta, as its own forward computes it."""
    weight = layer.weight + scale * (parts.out @ parts.rows()).reshape(layer.weight.shape)
    return lambda x: torch.func.functional_call(layer, {"weight": weight}, (x,))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.forward} {path.inputs} {path.factors}")
@given(case=cases(), learned=st.booleans())
def test_every_path_is_the_layer_with_the_sum_as_its_weight(path, case, learned):
    layer, x, parts, scale = case
    x.requires_grad_(learned)  # the first layer of a network gets an input that is not
    factors = [part for part in parts if part is not None] + ([x] if learned else [])
    outcomes = []
    for call in (by_rank(layer, parts, scale, path), by_weight(layer, parts, scale)):
        y = call(x)
        cotangent = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), dtype=y.dtype, device=y.device)
        outcomes.append([y, *torch.autograd.grad((y * cotangent).sum(), factors)])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.forward} {path.inputs} {path.factors}")
@given(case=cases())
def test_what_follows_may_change_the_output_in_place(path, case):
    layer, x, parts, scale = case
    factors = [part for part in parts if part is not None]
    call = by_rank(layer, parts, scale, path)
    expected = torch.autograd.grad(call(x).relu().sum(), factors)
    for found, own in zip(torch.autograd.grad(call(x).relu_().sum(), factors), expected, strict=True):
        torch.testing.assert_close(found, own)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.forward} {path.inputs} {path.factors}")
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_of_gradients(path, kernel):
    layer = nn.Conv2d(3, 4, kernel, padding=kernel // 2).double().requires_grad_(False)
    parts = Bottleneck(drawn(4, 2), drawn(2, kernel * kernel), drawn(2, 3))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def call(x, out, core, into):
        return by_rank(layer, Bottleneck(out, core, into), 0.5, path)(x)

    noise = 0 if x.device.type == "cpu" else 1e-8
    assert torch.autograd.gradcheck(call, (x, *parts), nondet_tol=noise)
    assert torch.autograd.gradgradcheck(call, (x, *parts), nondet_tol=noise)


@pytest.mark.parametrize("name", ["cp", "tt", "low_rank"])
def test_nothing_is_saved_beyond_what_the_frozen_network_saves(name):
    def saved(adapted):
        net = ResNet()
        x = torch.randn(4, 3, 16, 16)
        if not adapted:
            net.requires_grad_(False)
            for module in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.Linear)):
                module.requires_grad_(True)
            return saved_for_backward(net.train(), x)
        net = tn.adapt(net, tn.AdaptConfig(name, rank=3))
        trained(net.add_task("t", nn.Linear(8, 5)))
        net.set_task("t")
        return saved_for_backward(net.train(), x)

    if torch.get_default_device().type != "cpu":
        pytest.skip("on an accelerator plain autograd keeps W + ΔW of layers with many places")
    assert saved(adapted=True) <= 1.001 * saved(adapted=False)


@pytest.mark.parametrize("backbone", [ResNet, Transformer])
@pytest.mark.parametrize("path", ["auto", "weight", "activations"])
def test_eval_gives_the_same_bits_with_and_without_gradients(backbone, path):
    net = tn.adapt(backbone(), tn.AdaptConfig("cp", rank=3))
    trained(net.add_task("t", nn.Linear(8, 5)))
    net.set_task("t")
    net.path = path
    net.eval()
    x = torch.randn(4, 3, 16, 16) if backbone is ResNet else torch.randint(11, (4, 5))
    with torch.no_grad():
        kept = net(x)
        assert torch.equal(net(x), kept)
    assert torch.equal(net(x), kept)
    torch.testing.assert_close(net.merged("t").eval()(x), kept, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_of_functions_see_the_same_network():
    net = tn.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).double(), tn.AdaptConfig("cp", rank=2))
    trained(net.add_task("t", nn.Linear(64, 2).double()))
    net.set_task("t")
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    one = torch.autograd.functional.jacobian(net, x)
    torch.testing.assert_close(torch.func.jacrev(net)(x), one)
    torch.testing.assert_close(torch.func.jacfwd(net)(x), one)


# ---- the rule ----

CALLS = st.builds(
    Call,
    outputs=st.integers(1, 10**5),
    inputs=st.integers(1, 10**5),
    out=st.integers(1, 2048),
    into=st.integers(1, 2048),
    kernel=st.sampled_from([1, 9, 49]),
    rank_out=st.integers(1, 64),
    rank_in=st.integers(1, 64),
    core=st.sampled_from(["none", "diagonal", "full"]),
)


@given(call=CALLS, device=st.sampled_from(["cpu", "cuda"]))
def test_the_rule_takes_the_cheapest_of_all_paths(call, device):
    costs = COSTS[device]
    totals = {path: costs.total(call, path) for path in PATHS}
    assert min(totals.values()) > 0
    assert totals[choose(call, costs)] == min(totals.values())
    assert choose(call, costs, "output on the weight").forward == "weight"
    assert choose(call, costs, "activations") == Path("rank", "rank", "rank")


def test_where_launching_is_dear_thin_layers_of_many_places_are_left_to_plain_autograd():
    costs = COSTS["cuda"]
    image = Call(200_000, 200_000, 256, 64, 1, 8, 8, "none")
    assert costs.plain(choose(image, costs))
    tokens = Call(65_536, 65_536, 8192, 8192, 1, 8, 8, "none")
    assert choose(tokens, costs).factors == "rank"
    assert not COSTS["cpu"].plain(choose(image, COSTS["cpu"]))


def test_few_places_go_through_the_rank_and_many_places_of_a_small_kernel_on_the_weight():
    late = Call(64, 64, 512, 512, 9, 8, 8, "diagonal")
    early = Call(50_000, 50_000, 64, 64, 1, 8, 8, "none")
    assert choose(late, COSTS["cpu"]).forward == "rank"
    assert choose(early, COSTS["cpu"]).forward == "weight"
    wide = Call(50_000, 50_000, 64, 64, 1, 64, 64, "none")
    assert choose(early, COSTS["cpu"]).factors == "rank"
    assert choose(wide, COSTS["cpu"]).factors == "weight"


# ---- copies of norms ----


class Shifted(nn.BatchNorm2d):
    """A norm with a tensor that is no parameter and no buffer."""

    def __init__(self, width):
        super().__init__(width)
        self.extra = torch.ones(width)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.LayerNorm([4, 2]), Shifted(4)])
def test_a_copied_norm_is_a_deep_copy_without_hooks(norm):
    norm.eps = 0.25
    if norm._buffers:
        norm.running_mean.normal_()
    norm.register_forward_hook(lambda *_: None)
    norm.requires_grad_(False).eval()
    copied, deep = own_copy(norm), copy.deepcopy(norm)
    assert isinstance(copied, type(norm))
    assert type(ordinary(copy.deepcopy(copied))) is type(norm)
    assert copied.eps == 0.25
    assert copied.training
    assert not copied._forward_hooks
    assert vars(ordinary(copy.deepcopy(copied))).keys() == vars(deep).keys()
    again = own_copy(copied)  # a norm that was copied out of a task, in a backbone
    assert type(again) is type(copied)
    for name, tensor in norm.state_dict().items():
        own = copied.state_dict()[name]
        assert torch.equal(own, tensor)
        assert own.data_ptr() != tensor.data_ptr()
    assert all(p.requires_grad for p in copied.parameters())
