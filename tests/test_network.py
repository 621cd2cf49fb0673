"""The life of a task, and what must not move meanwhile."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import tensornet as tn
from tensornet.errors import (
    ConfigError,
    NameTakenError,
    NonFiniteError,
    RankError,
    ShapeError,
    StateError,
    TargetError,
    UnknownNameError,
)
from tensornet.paths import branch
from tensornet.paths.lowrank import chosen
from tensornet.paths.rule import COSTS, Cost
from tests.toys import Encoder, ResNet, Transformer, trained


def images(n=4):
    return torch.randn(n, 3, 8, 8)


def resnet(**config):
    backbone = ResNet()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
    return tn.adapt(backbone.eval(), tn.AdaptConfig(**({"decomposition": "cp", "rank": 3} | config)))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def train(net, name, x, steps=3):
    net.train()
    net.set_task(name)
    optimizer = torch.optim.AdamW(net[name].parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    net.eval()


@pytest.mark.parametrize("decomposition", tn.decompositions())
@pytest.mark.parametrize("folding", ["layer", "depth"])
def test_a_new_task_changes_nothing_and_learns(decomposition, folding):
    net = resnet(decomposition=decomposition, folding=folding)
    x = images()
    before = net(x)
    task = net.add_task("t")
    net.set_task("t")
    for path in ("weight", "activations"):
        net.path = path
        assert torch.equal(net(x), before)
    net(x).square().mean().backward()
    for _, module in task.tensors():
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_training_leaves_the_backbone_and_other_tasks_bit_identical():
    net = resnet()
    x = images()
    trained(net.add_task("a", nn.Linear(8, 3)), seed=1)
    net.add_task("b", nn.Linear(8, 2))
    before, own = state(net.backbone), net(x)
    with net.task("a"):
        a = net(x)
    train(net, "b", x)
    assert same(state(net.backbone), before)
    with net.task("a"):
        assert torch.equal(net(x), a)
    net.set_task(None)
    net.train()
    assert torch.equal(net(x), own), "without a task, running statistics are used in train mode too"
    assert same(state(net.backbone), before)
    net.remove_task("b")
    net.eval()
    with net.task("a"):
        assert torch.equal(net(x), a)


def test_task_norms_move_and_shared_ones_do_not():
    net = resnet(norms=r"layer1\..*")
    task = net.add_task("t")
    assert set(task.own_norms()) == {f"layer1.{i}.bn{j}" for i in range(2) for j in (1, 2)}
    shared = state(net.backbone)
    before = task.own_norms()["layer1.0.bn1"].running_mean.clone()
    train(net, "t", images())
    assert not torch.equal(task.own_norms()["layer1.0.bn1"].running_mean, before)
    assert same(state(net.backbone), shared)
    assert resnet(norms="shared").add_task("t").parameter_counts()["norms"] == 0


def test_layer_and_group_norms_are_owned_too():
    net = tn.adapt(Transformer().eval(), tn.AdaptConfig("tt", rank=2))
    task = net.add_task("t")
    assert len(task.own_norms()) == 5
    group = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.Flatten(1), nn.Linear(144, 2)
    )
    assert set(tn.adapt(group).add_task("t").own_norms()) == {"1", "2"}


def test_names_paths_and_types_are_kept():
    backbone = ResNet()
    keys, kinds = list(backbone.state_dict()), {p: type(m).__name__ for p, m in backbone.named_modules()}
    net = tn.adapt(backbone)
    trained(net.add_task("t", nn.Linear(8, 3)))
    net.set_task("t")
    merged = net.merged("t")
    for module in (net.backbone, merged):
        assert list(module.state_dict()) == keys
        assert {p: type(m).__name__ for p, m in module.named_modules()} == kinds
        assert isinstance(module.get_submodule("layer1.0.conv1"), nn.Conv2d)
        assert isinstance(module.get_submodule("bn1"), nn.BatchNorm2d)
    assert not any("tensornet" in type(m).__module__ or "_slot" in vars(m) for m in merged.modules())
    assert type(merged) is ResNet
    assert all(p.requires_grad for p in merged.parameters())
    assert not any(p.requires_grad for p in net.backbone.parameters())


def test_merged_is_bit_equal():
    net = resnet()
    trained(net.add_task("t", nn.Linear(8, 3)))
    x = images()
    with net.task("t"):
        assert torch.equal(net.merged("t")(x), net(x))
    assert torch.equal(net.merged(None)(x), net(x))


def test_first_and_later_calls_and_grad_modes_are_bit_equal():
    net = resnet(decomposition="tucker")
    task = trained(net.add_task("t", nn.Linear(8, 3)))
    net.set_task("t")
    x = images()
    first = net(x).detach()
    with torch.no_grad():
        assert torch.equal(net(x), first)
        assert torch.equal(net(x), first)
    with torch.inference_mode():
        assert torch.equal(net(x), first)
        assert torch.equal(net(x), first)
    net(x).sum().backward()
    assert any(p.grad is not None for p in task.parameters())


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "kronecker"])
def test_what_lies_with_the_channels_last_stays_so(decomposition):
    net = resnet(decomposition=decomposition)
    x = images().contiguous(memory_format=torch.channels_last)
    task = trained(net.add_task("t"))
    net.set_task("t")
    net(x).square().sum().backward()
    gradients = [p.grad for p in task.deltas.parameters()]
    task.zero_grad()
    with torch.no_grad():
        plain = net(x)
    net.to(memory_format=torch.channels_last)
    layer, merged = net.backbone.layer1[0].conv1, net.merged("t")
    first = net(x).detach()
    with torch.no_grad():
        assert torch.equal(net(x), first)
        assert torch.equal(merged(x), first)
        assert torch.allclose(first, plain, atol=1e-5)
        for weight in (layer.weight, merged.layer1[0].conv1.weight):
            assert weight.is_contiguous(memory_format=torch.channels_last)
    net(x).square().sum().backward()
    for parameter, gradient in zip(task.deltas.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max())


def fused_step_of_the_backbone(net):
    weight = net.backbone.layer1[0].conv1._parameters["weight"]
    weight.grad = torch.ones_like(weight)
    version = weight._version
    torch.optim.SGD([weight], lr=0.1, fused=True).step()
    assert weight._version == version, "the version counter would have told it"


@pytest.mark.parametrize(
    "edit",
    [
        lambda net, task: torch.optim.SGD(task.parameters(), lr=0.5).step(),
        lambda net, task: torch.optim.AdamW(task.parameters(), lr=0.5, fused=True).step(),
        lambda net, task: torch.optim.AdamW(task.parameters(), lr=0.5, foreach=True).step(),
        lambda net, task: fused_step_of_the_backbone(net),
        lambda net, task: task.load_state_dict(
            {k: v + 1 if v.is_floating_point() else v for k, v in task.state_dict().items()}
        ),
        lambda net, task: [p.mul_(2) for p in task.parameters()],
        lambda net, task: [p.data.mul_(2) for p in task.parameters()],
        lambda net, task: [p.data[..., :1].neg_() for p in task.deltas.parameters()],
        lambda net, task: [setattr(p, "data", p.data.clone().mul_(2)) for p in task.deltas.parameters()],
        lambda net, task: [setattr(p, "data", p.data.flip(0)) for p in task.deltas.parameters()],
        lambda net, task: net.double(),
        lambda net, task: setattr(next(task.deltas.parameters()), "data", torch.randn_like(next(task.deltas.parameters()))),
        lambda net, task: net.set_task("other"),
        lambda net, task: net.set_task(None),
    ],
    ids=[
        "optimizer",
        "fused optimizer",
        "foreach optimizer",
        "fused optimizer of the backbone",
        "load_state_dict",
        "in place",
        "data in place",
        "part of data",
        "other memory",
        "flipped",
        "dtype",
        "data",
        "other task",
        "no task",
    ],
)
def test_a_cached_weight_is_never_stale(edit, request):
    net = resnet()
    behind = request.node.callspec.id in ("data in place", "part of data")
    if behind and net.backbone.fc.weight.device.type != "cpu":
        pytest.skip("goes round the version counters, which are all that is looked at on an accelerator")
    task = trained(net.add_task("t"))
    trained(net.add_task("other"), seed=5)
    net.set_task("t")
    x = images()
    net(x).square().sum().backward()
    with torch.no_grad():
        before = net(x)
        edit(net, task)
        x = x.to(net.backbone.fc.weight.dtype)
        after = net(x)
        assert torch.equal(after, net.merged(net.active)(x))
        assert not torch.equal(after, before.to(after.dtype))


def test_what_is_kept_is_dropped_between_training_and_evaluation():
    net = resnet()
    net.add_task("t")
    net.set_task("t")
    slot = net.backbone.conv1._slot
    with torch.no_grad():
        net(images())
        kept = slot.cache["weight"]
        net.eval()(images())
        assert slot.cache["weight"] is kept
        net.train()
        assert not slot.cache


def test_deepcopy_is_independent():
    net = resnet()
    trained(net.add_task("t"))
    net.set_task("t")
    x = images()
    y = net(x)
    other = copy.deepcopy(net)
    assert torch.equal(other(x), y)
    train(other, "t", x)
    assert torch.equal(net(x), y)
    assert not torch.equal(other(x), y)
    other.set_task(None)
    assert torch.equal(net(x), y)


def test_moves_with_dtype():
    net = resnet()
    trained(net.add_task("t"))
    net.set_task("t")
    x = images()
    y = net(x)
    net.double()
    torch.testing.assert_close(net(x.double()).float(), y, rtol=1e-4, atol=1e-4)
    assert all(t.dtype == torch.float64 for t in net["t"].parameters())


def test_activation_checkpointing_inside_the_backbone():
    class Plain(ResNet):
        def forward(self, x):
            x = self.layer1(self.bn1(self.conv1(x)))
            return self.fc(self.layer2(x).mean((-2, -1)))

    class Checkpointed(ResNet):
        def forward(self, x):
            x = checkpoint_sequential(self.layer1, 2, self.bn1(self.conv1(x)), use_reentrant=False)
            return self.fc(self.layer2(x).mean((-2, -1)))

    plain, other = tn.adapt(Plain().eval()), tn.adapt(Checkpointed().eval())
    other.backbone.load_state_dict(plain.backbone.state_dict())
    x, grads = images(), []
    for net in (plain, other):
        torch.manual_seed(1)
        task = trained(net.add_task("t", nn.Linear(8, 3)))
        net.set_task("t")
        grads.append(torch.autograd.grad(net(x).square().sum(), list(task.parameters())))
    for g, h in zip(*grads, strict=True):
        torch.testing.assert_close(g, h)


def test_gradient_accumulation():
    net = resnet(norms="shared")
    task = trained(net.add_task("t"))
    net.set_task("t")
    x = images(6)
    whole = torch.autograd.grad(net(x).square().sum(), list(task.parameters()))
    for part in x.split(2):
        net(part).square().sum().backward()
    for p, g in zip(task.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-4)


def test_multihead_attention_gets_its_gradients():
    net = tn.adapt(Encoder().eval(), tn.AdaptConfig("cp", rank=2))
    task = net.add_task("t", nn.Linear(8, 3))
    names = set(task.plans)
    assert {"encoder.self_attn.in_proj_weight", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2"} == names
    trained(task)
    net.set_task("t")
    x = torch.randn(3, 5, 8)
    y = net(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in task.deltas.parameters())
    merged = net.merged("t")
    torch.testing.assert_close(merged(x), y)
    assert not any(module._forward_pre_hooks for module in merged.modules())
    torch.testing.assert_close(copy.deepcopy(net)(x), y)
    with torch.no_grad():
        assert torch.equal(net(x), y), "the fused encoder layer, which skips the norms' forward, must not run"
        with torch.inference_mode():
            assert torch.equal(net(x), y)
    unequal = tn.adapt(
        nn.ModuleDict({"m": nn.MultiheadAttention(8, 2, kdim=4, vdim=6)}), tn.AdaptConfig(head="none", rank=1)
    )
    assert {f"m.{k}_proj_weight" for k in "qkv"} | {"m.out_proj"} == set(unequal.add_task("t").plans)


def test_tied_weights_get_one_delta():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(torch.relu(self.a(x))))

    net = tn.adapt(Tied(), tn.AdaptConfig(rank=2))
    task = trained(net.add_task("t"))
    assert list(task.plans) == ["a"]
    net.set_task("t")
    x = torch.randn(3, 4)
    merged = net.merged("t")
    assert merged.a.weight is merged.b.weight
    assert torch.equal(merged(x), net(x))
    torch.testing.assert_close(net.backbone.b.weight, net.backbone._modules["b"]._parameters["weight"] + task.delta("b"))


def test_parameter_groups_and_repr():
    net = resnet()
    task = net.add_task("t", nn.Linear(8, 3))
    assert {name.split(".")[0] for name, _ in task.named_parameters()} == {"deltas", "norms", "head"}
    counts = task.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in task.parameters())
    assert counts["head"] == 27
    assert "'t'" in repr(task)
    assert "cp 3" in repr(task)
    assert "t: " in repr(net)
    assert "Linear" in repr(task)


def test_context_manager_restores_what_was_set():
    net = resnet()
    net.add_task("a")
    net.add_task("b")
    net.set_task("a")
    with net.task("b") as task:
        assert task is net["b"]
        assert net.active == "b"
        with pytest.raises(ZeroDivisionError), net.task(None):
            raise ZeroDivisionError
        assert net.active == "b"
    assert net.active == "a"
    with net.task("b"):
        net.remove_task("a")
    assert net.active is None


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "train", "keys", "a b", "é", "backbone", "deltas"])
def test_names_that_look_like_modules_are_handled(name, tmp_path):
    net = resnet()
    trained(net.add_task(name))
    net.set_task(name)
    y = net(images(1))
    assert net.tasks == (name,)
    net.save_task(name, tmp_path / name)
    net.remove_task(name)
    net.load_task(tmp_path / name)
    assert net.tasks == (name,)
    assert y.shape == (1, 5)


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", ".", "..", "a\nb", "/etc", "a\\b", ".hidden", "x" * 200, 3, None, "end.", " a"]
)
def test_names_that_are_paths_are_refused(name):
    with pytest.raises(NameTakenError, match="cannot name a task"):
        resnet().add_task(name)


def test_refusals_name_the_thing():
    net = resnet()
    net.add_task("sketch")
    with pytest.raises(NameTakenError, match="already"):
        net.add_task("sketch")
    with pytest.raises(UnknownNameError, match="Did you mean 'sketch'"):
        net.set_task("sketsh")
    with pytest.raises(KeyError):
        net.remove_task("nothing")
    with pytest.raises(ShapeError, match=r"takes 9 features, the backbone's 'fc' takes 8"):
        net.add_task("wide", nn.Linear(9, 2))
    assert net.tasks == ("sketch",)
    with pytest.raises(StateError, match="adapted already"):
        tn.adapt(net.backbone)
    with pytest.raises(ConfigError, match="path must be"):
        net.path = "both"
    with pytest.raises(ShapeError, match="no head"):
        tn.adapt(nn.Sequential(nn.Conv2d(3, 3, 3))).add_task("t", nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"targets": ["conv9"]}, TargetError, "'conv9' matches no layer. Did you mean"),
        ({"targets": "layer1"}, TargetError, "matches no layer"),
        ({"targets": "(("}, TargetError, "not a regular expression"),
        ({"exclude": ["nothing"]}, TargetError, "exclude"),
        ({"layers": {"layer9.*": "tt"}}, TargetError, "layers"),
        ({"norms": ["bn7"]}, TargetError, "norms"),
        ({"head": "classifier"}, TargetError, "no module 'classifier'"),
        ({"exclude": ".*"}, TargetError, "nothing to adapt"),
        ({"decomposition": "tucker", "rank": (9, 9, 9)}, RankError, "conv1"),
        ({"rank": None, "budget": 1e-6}, RankError, "needs"),
    ],
)
def test_configs_that_do_not_suit_the_backbone(config, error, words):
    backbone = ResNet()
    before = [type(m) for m in backbone.modules()]
    with pytest.raises(error, match=r"(?s).*" + words.replace("(", r"\(")) as caught:
        tn.adapt(backbone, tn.AdaptConfig(**({"rank": 2} | config)))
    assert isinstance(caught.value, tn.TensornetError)
    assert [type(m) for m in backbone.modules()] == before, "a refusal leaves the backbone as it was"


def test_broken_backbones_are_refused():
    backbone = ResNet()
    with torch.no_grad():
        backbone.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer1\.0\.conv1"):
        tn.adapt(backbone)
    with pytest.raises(TargetError, match="max_norm"):
        tn.adapt(nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)), tn.AdaptConfig(rank=1, targets=["0"]))
    with pytest.raises(TargetError, match="lazy"):
        tn.adapt(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))


def test_plans_per_layer():
    net = resnet(
        layers={
            r"layer1\..*": {"decomposition": "tucker", "rank": 2},
            r"layer1\.0\..*": {"decomposition": "tt", "rank": (2, 2)},
            r".*\.down": "none",
            "conv1": {"budget": 0.5},
        }
    )
    task = net.add_task("t")
    kinds = {name: plan.decomposition for name, plan in task.plans.items()}
    assert kinds["layer1.0.conv1"] == "tt"
    assert kinds["layer1.1.conv2"] == "tucker"
    assert kinds["layer2.0.conv1"] == "cp"
    assert kinds["conv1"] == "cp"
    assert "layer2.0.down" not in kinds
    assert task.plans["conv1"].parameters <= 0.5 * 8 * 3 * 9
    other = net.add_task("dense", config=tn.AdaptConfig("dense"))
    trained(task), trained(other)
    x = images()
    for name in ("t", "dense"):
        with net.task(name):
            torch.testing.assert_close(net(x), net.merged(name)(x))


def test_no_deltas_at_all():
    net = resnet(decomposition="none")
    counts = net.add_task("t", nn.Linear(8, 2)).parameter_counts()
    assert counts["deltas"] == 0
    assert counts["norms"] > 0


def test_one_linear_layer_alone():
    with pytest.raises(TargetError, match="head='none'"):
        tn.adapt(nn.Sequential(nn.Linear(3, 2)))
    tn.adapt(nn.Sequential(nn.Linear(3, 2)), tn.AdaptConfig(head="none")).add_task("t")


def test_same_seed_same_bytes(tmp_path):
    written = []
    for i in range(2):
        torch.manual_seed(7)
        net = resnet(decomposition="tt")
        net.add_task("t", nn.Linear(8, 3))
        train(net, "t", images())
        net.save_task("t", tmp_path / str(i))
        written.append([(tmp_path / str(i) / name).read_bytes() for name in ("task.json", "task.safetensors", "README.md")])
    assert written[0] == written[1]


def test_a_task_of_the_name_of_the_backbone_is_counted_apart():
    net = resnet()
    size = sum(p.numel() for p in net.backbone.parameters())
    own = net.add_task("backbone").parameter_counts()["total"]
    assert net.parameter_counts() == {"backbone": size}
    assert f"{size:,} parameters; the untouched backbone is set\n  backbone: {own:,} parameters" in repr(net)


def test_a_path_that_is_refused_leaves_the_one_of_before():
    net = resnet()
    net.add_task("t")
    net.backbone.conv1 = nn.Conv2d(3, 8, 3, padding=1)
    with pytest.raises(StateError, match="was replaced"):
        net.path = "weight"
    assert net.path == "auto"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_on_the_weight_gradients_of_inputs_are_too(mode, monkeypatch):
    monkeypatch.setitem(COSTS, "cpu", replace(COSTS["cpu"], build=Cost(1.0, 0.0, 0.0)))  # the rule would not
    taken = []
    monkeypatch.setattr(branch, "chosen", lambda *args: taken.append(chosen(*args)) or taken[-1])
    net = resnet()
    getattr(net, mode)()
    net.add_task("t")
    net.path = "weight"
    net.set_task("t")
    net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert taken
    assert all((path.forward, path.inputs) == ("weight", "weight") for path in taken)
