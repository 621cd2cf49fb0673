"""Backbones and heads that are built otherwise than most, and calls that meet them."""

import copy
import functools
import gc
import io
import pickle
import threading
import warnings
import weakref
from abc import ABC
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensornet as tn
from tensornet.attach import Attached
from tensornet.backbones import load_weights
from tensornet.errors import (
    BackboneError,
    ConfigError,
    MismatchError,
    MissingExtraError,
    NonFiniteError,
    RecipeError,
    ShapeError,
    StateError,
    TargetError,
    TaskFileError,
    UnknownNameError,
    WriteError,
)
from tensornet.heads import describe
from tensornet.training.adapting import save_network
from tests.toys import trained


def adapted(backbone, width=8, classes=3, **config):
    net = tn.adapt(backbone.eval(), tn.AdaptConfig(**({"rank": 2} | config)))
    for seed, name in enumerate("ab"):
        trained(net.add_task(name, None if width is None else nn.Linear(width, classes + seed)), seed=seed)
    return net


def check_rows(net, x, names=("a", "b", "a", None), **options):
    rows = net(x, tasks=list(names), **options)
    for i, name in enumerate(names):
        with net.task(name):
            torch.testing.assert_close(rows[i], net(x, **options)[i], rtol=1e-4, atol=1e-5)


def check_forward_tasks(net, x):
    before = x.clone()
    outputs = net.forward_tasks(x, ["a", "b"])
    assert torch.equal(x, before), "the input stays as it was"
    for name, y in outputs.items():
        with net.task(name):
            torch.testing.assert_close(y, net(x.clone()), rtol=1e-4, atol=1e-5)


def net_of(**parts):
    """A module with these parts whose forward is the one called `call`."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                if name != "call":
                    setattr(self, name, part)

        def forward(self, *args, **kwargs):
            return parts["call"](self, *args, **kwargs)

    return Net()


@pytest.mark.parametrize("shared", ["layer", "norm", "alias of the head"])
def test_a_module_at_two_places(shared):
    if shared == "layer":
        block = nn.Linear(6, 6)
        backbone = nn.Sequential(block, nn.Tanh(), block, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    elif shared == "norm":
        norm = nn.BatchNorm1d(8)
        backbone = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 8), norm, nn.Linear(8, 5))
    else:
        head = nn.Linear(8, 5)
        backbone = net_of(f=nn.Linear(6, 8), fc=head, classifier=head, call=lambda s, x: s.classifier(F.relu(s.f(x))))
    net = adapted(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    x = torch.randn(4, 6)
    check_rows(net, x)
    check_forward_tasks(net, x)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    for name in "ab":
        with net.task(name):
            torch.testing.assert_close(net.merged(name).eval()(x), net(x))


def test_the_probe_leaves_nothing_behind():
    def call(self, x):
        z = self.f(x)
        if self.pos is None or self.pos.shape[0] != x.shape[1]:
            self.pos = torch.arange(x.shape[1], device=x.device).float()[:, None]
        return self.fc((z + self.pos).mean(1))

    net = adapted(net_of(f=nn.Linear(6, 8), fc=nn.Linear(8, 5), pos=None, call=call))
    calls = []
    net.backbone.f.register_forward_hook(lambda module, inputs, output: calls.append(output.device.type))
    check_rows(net, torch.randn(4, 4, 6))
    assert set(calls) == {"cpu"}


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:0. no delta can be added")
def test_buffers_never_move(backbone):
    net = tn.adapt(backbone(), tn.AdaptConfig(rank=1, head="1" if len(list(backbone())) == 2 else None))
    net.add_task("a")
    for name in (None, "a"):
        net.set_task(name)
        net.train()
        before = net.identity()
        net(torch.randn(8, 6))
        assert net.identity() == before


def test_only_the_owner_of_a_buffer_stays_in_eval_mode():
    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.drop, self.fc = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)
            self.register_buffer("position", torch.zeros(8))

        def forward(self, x):
            return self.fc(self.drop(self.f(x) + self.position))

    for backbone in (Embedding(), nn.Sequential(Embedding(), nn.Linear(3, 3))):
        net = tn.adapt(backbone, tn.AdaptConfig(rank=1))
        net.add_task("a")
        for mode in (True, False):
            net.train(mode)
            dropouts = [m.training for m in net.modules() if isinstance(m, nn.Dropout)]
            assert dropouts == [mode]
        plain = net.merged("a")
        assert not any("_slot" in vars(m) for m in plain.modules())
        net.eval()
        torch.testing.assert_close(plain.eval()(torch.ones(2, 6)), net(torch.ones(2, 6)))
        assert len(net(torch.ones(2, 6), tasks=["a", None])) == 2


def test_forwards_that_were_replaced():
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 5))
    backbone[1].forward = lambda x: x * 2
    net = adapted(backbone)
    x = torch.randn(4, 6)
    y = net(x)
    check_forward_tasks(net, x)
    assert torch.equal(net(x), y)
    replaced = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    replaced[1].forward = lambda x: x
    with pytest.raises(StateError, match="replaced the forward"):
        tn.adapt(replaced)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, x: s.fc(torch.mul(*F.relu(s.f(torch.cat([x, x.flip(1)]))).chunk(2))),
        lambda s, x: s.fc(s.f(x.repeat_interleave(2, 0)).view(-1, 2, 8).mean(1)),
        lambda s, x: F.softmax(s.fc(F.relu(s.f(x))), -1),
        lambda s, x: s.fc(F.relu(F.linear(x, F.normalize(s.f.weight), s.f.bias))),
        lambda s, x: s.fc(torch.cat([s.f(part) for part in x.split(1)])),
    ],
    ids=["stacked", "repeated", "softmax after the head", "weight read outside", "split"],
)
def test_networks_whose_rows_move(call):
    net = adapted(net_of(f=nn.Linear(6, 8), fc=nn.Linear(8, 5), call=call))
    x = torch.randn(4, 6)
    check_rows(net, x)
    check_rows(net, x, ("a", None, None, "a"))
    check_forward_tasks(net, x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prefixes_and_inputs_that_are_edited_in_place(mode):
    def call(self, x):
        x.sub_(1.0)
        x = self.patch(x)
        x += 1
        return self.fc((x + self.b(x)).mean((2, 3)))

    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "b": nn.Conv2d(8, 8, 3, padding=1), "fc": nn.Linear(8, 5)}
    net = adapted(net_of(**parts, call=call), exclude=["patch"])
    with mode():
        check_forward_tasks(net, torch.randn(2, 3, 8, 8))


class Notes:
    """An object of which nobody knows what it holds."""

    def __init__(self):
        self.values = []


@pytest.mark.parametrize("kind", ["dict", "object", "inputs"])
def test_prefixes_that_are_told_in_containers_which_the_network_edits(kind):
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Linear(6, 8)

        def forward(self, x, notes=None):
            y = torch.tanh(self.c(x["x"] if kind == "inputs" else x))
            if kind == "dict":
                return {"x": y}
            if kind == "object":
                notes.values.append(y)
            else:
                x["x"] = y
            return None

    def call(self, x, notes=None):
        if kind == "dict":
            d = self.stem(x)
            d["x"] = torch.tanh(self.mid(d["x"]))
            return self.fc(d["x"])
        if kind == "object":
            self.stem(x, notes)
            return self.fc(torch.tanh(self.mid(notes.values.pop())))
        d = {"x": x}
        self.stem(d)
        return self.fc(torch.tanh(self.mid(d["x"])))

    net = adapted(net_of(stem=Stem(), mid=nn.Linear(8, 8), fc=nn.Linear(8, 5), call=call), targets=["mid"])
    x = torch.randn(2, 6)
    given = {"notes": Notes()} if kind == "object" else {}
    outputs = net.forward_tasks(x, ["a", "b"], **given)
    for name, y in outputs.items():
        with net.task(name):
            torch.testing.assert_close(y, net(x, **given))


def test_a_relu_in_place_whose_output_is_not_used_is_no_prefix():
    def call(self, x):
        x = self.a(x)
        self.relu(x)
        return self.fc(self.b(x))

    parts = {"a": nn.Linear(6, 8), "relu": nn.ReLU(inplace=True), "b": nn.Linear(8, 8), "fc": nn.Linear(8, 5)}
    check_forward_tasks(adapted(net_of(**parts, call=call), targets=["b"]), torch.randn(4, 6))


def test_a_call_of_another_thread_takes_no_part_in_forward_tasks():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 5)), targets=["2"])
    mine, *others = torch.randn(3, 2, 6)
    alone = {name: net.merged(name).eval() for name in "ab"}
    with ThreadPoolExecutor(1) as thread:
        answers = []

        def meanwhile(module, inputs):
            if threading.current_thread() is threading.main_thread():  # in both runs, after the shared layer
                answers.append(thread.submit(net, others[len(answers)]).result())

        net.backbone[2].register_forward_pre_hook(meanwhile)
        outputs = net.forward_tasks(mine, ["a", "b"])
    for name, answer, other in zip("ab", answers, others, strict=True):
        torch.testing.assert_close(outputs[name], alone[name](mine))
        torch.testing.assert_close(answer, alone[name](other))


def test_attention_whose_output_projection_alone_is_adapted():
    parts = {"attn": nn.MultiheadAttention(8, 2, batch_first=True), "fc": nn.Linear(8, 5)}
    net = adapted(net_of(**parts, call=lambda s, x: s.fc(s.attn(x, x, x)[0].mean(1))), targets=["out_proj"])
    check_forward_tasks(net, torch.randn(2, 4, 8))
    check_rows(net, torch.randn(4, 4, 8))


def test_blocks_that_are_called_norms_are_not_norms():
    class PreNormBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.norm, self.fc1 = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.gain * self.fc1(self.norm(x))

    class NormLinear(nn.Linear):
        pass

    class NormedLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return F.linear(F.normalize(x), F.normalize(self.weight))

    layers = (NormLinear(6, 8), PreNormBlock(), NormedLinear(), nn.Linear(8, 3))
    net = tn.adapt(nn.Sequential(*layers).eval(), tn.AdaptConfig(rank=1))
    assert set(net.add_task("a").own_norms()) == {"1.norm"}
    x = torch.randn(3, 6)
    y = net(x)
    trained(net["a"])
    net.set_task("a")
    net.add_task("b")
    net.set_task("b")
    assert torch.equal(net(x), y), "a task that is added while another is set is new all the same"


def test_hooks_of_a_norm_run_once():
    backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    backbone[1].register_forward_hook(lambda module, inputs, output: output * 2)
    net = tn.adapt(backbone, tn.AdaptConfig(rank=1))
    x = torch.randn(3, 6)
    y = net(x)
    net.add_task("a")
    net.set_task("a")
    assert torch.equal(net(x), y)


@pytest.mark.parametrize(
    "head",
    [
        lambda: (lambda act: nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3)))(nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"), nn.LayerNorm(8, bias=False), nn.Linear(8, 3, bias=False)),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.01, affine=False), nn.Tanh(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Dropout(0.3), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.GroupNorm(2, 8, bias=False), nn.BatchNorm1d(8, bias=False), nn.Linear(8, 3)),
        lambda: functools.reduce(lambda inner, _: nn.Sequential(inner), range(6), nn.Linear(8, 3)),
    ],
)
def test_heads_are_rebuilt_as_they_were(head, tmp_path):
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval(), tn.AdaptConfig(rank=1))
    trained(net.add_task("a", head()))
    net.save_task("a", tmp_path / "a")
    net.load_task(tmp_path / "a", "b")
    assert repr(net["a"].head) == repr(net["b"].head)
    x = torch.randn(3, 6)
    net.eval()
    with net.task("a"):
        y = net(x)
    with net.task("b"):
        assert torch.equal(net(x), y)


def test_a_head_with_shared_parameters_is_not_rebuilt(tmp_path):
    layer = nn.Linear(8, 8)
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval(), tn.AdaptConfig(rank=1))
    net.add_task("a", nn.Sequential(layer, nn.Tanh(), layer))
    net.save_task("a", tmp_path / "a")
    with pytest.raises(tn.TensornetError, match="pass head="):
        net.load_task(tmp_path / "a", "b")


def test_a_task_that_uses_the_backbones_head_needs_that_head(tmp_path):
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    net.add_task("a")
    net.save_task("a", tmp_path / "a")
    with torch.no_grad():
        net.backbone[2].weight.mul_(2)
    with pytest.raises(tn.TensornetError, match="own head, which has other values"):
        net.load_task(tmp_path / "a", "b")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norms", ["task", "shared"])
def test_batch_norms_without_running_statistics(affine, norms):
    norm = nn.BatchNorm1d(8, affine=affine, track_running_stats=False)
    net = adapted(nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 5)), norms=norms)
    x = torch.randn(6, 6)
    names = ["a", "b", "a", "b", "b", "a"]
    rows = net(x, tasks=names)
    for name in "ab":
        index = [i for i, n in enumerate(names) if n == name]
        with net.task(name):
            torch.testing.assert_close(torch.stack([rows[i] for i in index]), net(x[index]))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("several", ["mixed", "forward_tasks"])
def test_checkpointing_with_several_tasks_says_that_it_cannot(reentrant, several):
    def call(self, x):
        return self.fc(checkpoint(self.f, x, use_reentrant=reentrant))

    net = adapted(net_of(f=nn.Linear(6, 8), fc=nn.Linear(8, 5), call=call))
    x = torch.randn(2, 6, requires_grad=True)
    y = net(x, tasks=["a", "b"]) if several == "mixed" else list(net.forward_tasks(x, ["a", "b"]).values())
    with pytest.raises(StateError, match="activation checkpointing"):
        sum(row.sum() for row in y).backward()
    with net.task("a"):
        net(x).sum().backward()


def test_weights_that_are_standardised():
    class Standardised(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            weight = (weight - weight.mean()) / weight.std()
            return super()._conv_forward(x, weight, bias)

    net = adapted(nn.Sequential(Standardised(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    x = torch.randn(4, 3, 6, 6)
    check_rows(net, x)
    net.set_task("a")
    y = net(x)
    net.path = "activations"
    torch.testing.assert_close(net(x), y)


def test_layers_that_are_called_by_keyword():
    net = adapted(net_of(f=nn.Linear(6, 8), fc=nn.Linear(8, 5), call=lambda s, x: s.fc(s.f(input=x))))
    x = torch.randn(4, 6)
    net.set_task("a")
    y = net(x)
    net.path = "activations"
    torch.testing.assert_close(net(x), y)
    check_rows(net, x)


def test_pickles_and_copies():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
    net.set_task("a")
    x = torch.randn(3, 6)
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(other(x), net(x))
        other.set_task("b")
        assert not torch.equal(other(x)[:, :3], net(x))


def test_what_is_kept_goes_into_no_file_and_no_copy():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
    net.set_task("a")
    x, file = torch.randn(3, 6), io.BytesIO()
    with torch.no_grad():
        expected = net(x)
    assert net.backbone[0]._slot.cache
    torch.save(net, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert not read.backbone[0]._slot.cache
    assert not copy.deepcopy(net).backbone[0]._slot.cache
    with torch.no_grad():
        assert torch.equal(read(x), expected)


def test_a_task_that_is_removed_leaves_nothing_behind():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    net.set_task("a")
    with torch.no_grad():
        net(torch.randn(3, 6))
    factors = [weakref.ref(p) for p in net["a"].deltas.parameters()]
    net.remove_task("a")
    gc.collect()
    assert factors
    assert all(factor() is None for factor in factors)


def test_layers_that_are_replaced_after_adapting_are_noticed():
    def convolutional():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)), nn.Flatten())

    x = torch.randn(2, 3, 3, 3)
    net = adapted(convolutional(), width=None)
    net.set_task("a")
    expected = net(x)
    net.backbone[1][1] = nn.Identity()  # no task reaches for a dropout
    assert torch.equal(net(x), expected)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    for act in (lambda: converted(x), lambda: converted.set_task("b"), lambda: converted(x, tasks=["a", "b"])):
        with pytest.raises(StateError, match=r"1\.0: this BatchNorm2d was replaced"):
            act()
    net.backbone[1] = nn.Sequential(nn.BatchNorm2d(4))  # above a layer that tasks reach for
    with pytest.raises(StateError, match="1: this Sequential was replaced"):
        net(x)


@pytest.mark.parametrize("set_before", [True, False])
def test_modules_of_a_task_that_are_replaced_are_those_that_count(set_before, tmp_path):
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
    x = torch.randn(3, 6)
    if set_before:
        net.set_task("a")
        net(x)
    norm = net["a"].norms["1"] = copy.deepcopy(net["a"].norms["1"])
    delta = net["a"].deltas["0"] = copy.deepcopy(net["a"].deltas["0"])
    with torch.no_grad():
        norm.bias.add_(1)
        delta.factor_0.mul_(2)
    if not set_before:
        net.set_task("a")
    y = net(x)
    y.sum().backward()
    assert norm.weight.grad is not None
    assert delta.factor_0.grad is not None
    net.save_task("a", tmp_path / "a")
    net.load_task(tmp_path / "a", "again")
    net.set_task("again")
    torch.testing.assert_close(net.eval()(x), y)


def test_averages_of_weights_leave_the_backbone_as_it_is():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
    averaged = torch.optim.swa_utils.AveragedModel(net)
    before = {key: value.clone() for key, value in averaged.module.state_dict().items()}
    with pytest.raises(StateError, match=r"reestimate\(net, task, inputs\)"):
        torch.optim.swa_utils.update_bn([torch.randn(4, 6)], averaged)
    assert all(torch.equal(value, before[key]) for key, value in averaged.module.state_dict().items())


def test_a_buffer_at_the_root_leaves_a_new_network_in_train_mode():
    backbone = net_of(f=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), fc=nn.Linear(8, 5), call=lambda s, x: s.fc(s.norm(s.f(x))))
    backbone.register_buffer("mean", torch.zeros(6))
    net = tn.adapt(backbone.train())
    task = net.add_task("a")
    assert net.training
    assert task.norms["norm"].training


def test_hooks_around_norms_and_heads_are_those_of_a_merged_copy():
    backbone, seen = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), []
    backbone[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    backbone[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    net, x = adapted(backbone), torch.randn(3, 6)
    net.set_task("a")
    torch.testing.assert_close(net.merged("a").eval()(x), net(x))
    assert len(seen) == 2


def test_layers_with_a_lock_are_copied_as_they_ask_for():
    class Locked(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.lock = threading.Lock()

        def __getstate__(self):
            return {key: value for key, value in self.__dict__.items() if key != "lock"}

    net = adapted(nn.Sequential(Locked(6, 8), nn.Linear(8, 5)))
    net.set_task("a")
    x = torch.randn(2, 6)
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))
    torch.testing.assert_close(net.merged("a").eval()(x), net(x))


def test_weights_that_are_computed_from_others_are_told():
    def backbone():
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 8), nn.Linear(8, 5))

    with pytest.warns(UserWarning, match="^0: no delta can be added"):
        net = tn.adapt(backbone())
    assert [p.fold.name for p in net.plans] == ["1"]
    with pytest.raises(TargetError, match="nothing to adapt: 0: no delta can be added"):
        tn.adapt(backbone(), tn.AdaptConfig(targets=["0"]))
    for silent in ({"exclude": ["0"]}, {"layers": {"0": "none"}}, {"decomposition": "none", "layers": {"1": "cp"}}):
        net = tn.adapt(backbone(), tn.AdaptConfig(**silent))
    tn.adapt(nn.Sequential(nn.Linear(6, 6), backbone()), tn.AdaptConfig(head="1"))
    net.add_task("a")
    net.set_task("a")
    with pytest.raises(StateError, match="'weight' of this ParametrizedLinear is no parameter any more"):
        nn.utils.parametrizations.weight_norm(net.backbone[1])


def test_a_trace_without_gradients_is_the_network():
    net, x = adapted(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))), torch.randn(2, 6)
    net.set_task("a")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated, and blind to branches
        traced = torch.jit.trace(net, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), net(x))


def test_complex_weights_are_refused():
    with pytest.raises(TargetError, match="0: its numbers are complex"):
        tn.adapt(nn.Sequential(nn.Linear(4, 4, dtype=torch.cfloat), nn.Linear(4, 2)))


def test_states_that_are_no_tensors_and_parameters_that_are_no_real_numbers(tmp_path):
    class Extra(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.order = nn.Parameter(torch.arange(sizes[1]), requires_grad=False)

        def get_extra_state(self):
            return {"amax": 1.0}

        def set_extra_state(self, state):
            pass

    backbone = nn.Sequential(Extra(6, 8), nn.Linear(8, 5))
    tuned = copy.deepcopy(backbone)
    net = adapted(backbone)
    net.save_task("a", tmp_path / "a")
    net.load_task(tmp_path / "a", "again")
    tn.extract_task(net, "tuned", tuned)
    plain = net.merged("a")
    assert plain[0].weight.requires_grad
    save_network(plain, tmp_path / "plain.safetensors")
    load_weights(copy.deepcopy(plain), tmp_path / "plain.safetensors", optional={"0.order"})


def test_a_head_that_is_assigned_while_its_task_is_set():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    net.set_task("a")
    x = torch.randn(2, 6)
    for head, width in ((nn.Linear(8, 7), 7), (None, 5)):
        net["a"].head = head
        y = net(x)
        assert y.shape == (2, width)
        torch.testing.assert_close(torch.stack(net(x, tasks=["a", "a"])), y)


def test_a_stride_that_is_set_after_adapting():
    net = adapted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), width=None)
    net.set_task("a")
    x = torch.randn(2, 3, 8, 8)
    wide = net(x)
    for stride in ((2, 2), 2, [2, 2]):
        net.backbone[0].stride = stride
        with net.task("a"):
            y = net(x)
            with torch.no_grad():
                torch.testing.assert_close(net(x), y)
        torch.testing.assert_close(y, wide.unflatten(1, (4, 6, 6))[:, :, ::2, ::2].flatten(1))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_statistics_inside_a_scripted_module_never_move():
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm1d(8)))
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), scripted, nn.Linear(8, 5)).train())
    before = copy.deepcopy(scripted.state_dict())
    net(torch.randn(4, 6))
    net.train()
    net(torch.randn(4, 6))
    for name, tensor in scripted.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("admitted", [False, True])
def test_a_layer_whose_forward_was_replaced_leaves_the_rest_as_it_was(admitted):
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5))
    first = tn.AdaptConfig(rank=1, targets=["0"]) if admitted else tn.AdaptConfig(rank=1)
    net = tn.adapt(backbone, first) if admitted else None
    backbone[1].forward = functools.partial(nn.Linear.forward, backbone[1])
    with pytest.raises(StateError, match="1: something has replaced the forward of this Linear"):
        tn.adapt(backbone) if net is None else net.add_task("a", config=tn.AdaptConfig(rank=1))
    del backbone[1].forward
    if net is None:
        net = tn.adapt(backbone, first)
    net.add_task("a", config=tn.AdaptConfig(rank=1))
    assert len(net["a"].plans) == 2


def test_factors_of_several_tasks_at_once_without_gradients():
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), width=None)
    x = torch.randn(3, 6)
    both = {
        f"_tasks.a.{name}": torch.stack([p.detach(), net["b"].get_parameter(name).detach()])
        for name, p in net["a"].named_parameters()
    }
    net.set_task("a")
    with torch.no_grad():
        y = torch.func.vmap(lambda own: torch.func.functional_call(net, own, (x,)))(both)
    for name, own in zip("ab", y, strict=True):
        with net.task(name):
            torch.testing.assert_close(net(x), own)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_forward_mode_derivatives_of_factors_need_no_gradients():
    net = adapted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), width=None)
    net.set_task("a")
    x, name = torch.randn(2, 3, 4, 4), "_tasks.a.deltas.0.factor_0"
    factor = net.get_parameter(name).detach()
    derivatives = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(factor, torch.ones_like(factor))
            y = torch.func.functional_call(net, {name: dual}, (x,))
            derivatives.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    assert derivatives[0].abs().max() > 0
    torch.testing.assert_close(derivatives[1], derivatives[0])


def test_a_delta_of_a_head_that_is_replaced_is_not_made():
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1, targets=".*"))
    assert list(net.add_task("own", nn.Linear(8, 2)).plans) == ["0"]
    assert list(net.add_task("backbone").plans) == ["0", "1"]


def test_a_refused_backbone_can_be_repaired_and_adapted():
    backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    with torch.no_grad():
        backbone[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        tn.adapt(backbone)
    with torch.no_grad():
        backbone[0].weight[0, 0] = 0
    tn.adapt(backbone).add_task("a")


def test_a_head_of_several_layers_has_no_deltas_inside():
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), head), tn.AdaptConfig(rank=1, head="1"))
    assert list(net.add_task("a", nn.Linear(8, 2)).plans) == ["0"]


def test_heads_that_answer_otherwise():
    class Dictionary(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).eval(), tn.AdaptConfig(rank=1))
    net.add_task("a", Dictionary(8, 3))
    net.add_task("b", nn.Sequential(nn.Linear(8, 6), nn.Unflatten(1, (2, 3))))
    rows = net(torch.randn(3, 6), tasks=["a", "b", None])
    assert rows[0]["logits"].shape == (3,)
    assert [rows[1].shape, rows[2].shape] == [(2, 3), (5,)]


def test_heads_of_several_outputs_learn_in_one_batch():
    class Two(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.first, self.second = nn.Linear(8, classes), nn.Linear(8, 2)

        def forward(self, x):
            return self.first(x), self.second(x)

    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), width=None)
    for i, name in enumerate("cd"):
        trained(net.add_task(name, Two(3 + i)), seed=i)
    net.train()
    x, alone = torch.randn(4, 6), copy.deepcopy(net)
    rows = net(x, tasks=["c", "d", "c", "d"])
    for i, name in enumerate("cd"):
        with alone.task(name):
            expected = alone(x[i::2])
        for part in (0, 1):
            torch.testing.assert_close(torch.stack([row[part] for row in rows[i::2]]), expected[part])
    sum(part.square().sum() for row in rows for part in row).backward()
    assert all(p.grad is not None for p in net["c"].head.parameters())
    own, other = (dict(n["d"].named_buffers()) for n in (net, alone))
    assert own
    for name, buffer in own.items():
        torch.testing.assert_close(buffer, other[name])


def test_heads_are_not_shared():
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    head = nn.Linear(8, 3)
    net.add_task("a", head)
    for taken in (head, net.backbone[1]):
        with pytest.raises(StateError, match="pass a copy"):
            net.add_task("b", taken)
    net.add_task("b", copy.deepcopy(head))


@pytest.mark.parametrize(
    "made",
    [
        copy.deepcopy,
        lambda own: type(own)(8, 5),
        lambda own: nn.Sequential(nn.Dropout(0.0), copy.deepcopy(own)),
    ],
    ids=["copy", "type", "copy inside"],
)
def test_a_head_made_of_the_backbones_own_trains_and_is_saved_as_any(made, tmp_path):
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    net.add_task("first")
    net.set_task("first")
    task = net.add_task("a", made(net.backbone[1]))
    before = [p.clone() for p in task.head.parameters()]
    assert not any(isinstance(module, Attached) for module in task.head.modules())
    net.set_task("a")
    net.eval().train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    net(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(before, task.head.parameters(), strict=True))
    assert not any(p.requires_grad for p in net.backbone.parameters())
    net.save_task("a", tmp_path / "a")
    again = net.load_task(tmp_path / "a", "b")
    assert all(torch.equal(*pair) for pair in zip(task.head.parameters(), again.head.parameters(), strict=True))
    given = net.load_task(tmp_path / "a", "c", head=made(net.backbone[1])).head
    assert not any(isinstance(module, Attached) for module in given.modules())
    assert torch.equal(next(given.parameters()), next(task.head.parameters()))


def test_a_copy_of_a_head_of_several_layers_is_trainable_and_a_frozen_head_is_told():
    net = tn.adapt(
        nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))), tn.AdaptConfig(head="1")
    )
    task = net.add_task("a", copy.deepcopy(net.backbone[1]))
    assert all(p.requires_grad for p in task.head.parameters())
    assert type(task.head) is nn.Sequential
    frozen = nn.Linear(8, 5).requires_grad_(False)
    with pytest.warns(UserWarning, match=r"task 'b': nothing in its head is trainable"):
        net.add_task("b", frozen)
    assert not frozen.weight.requires_grad
    net.add_task("c", nn.Identity())


def test_the_type_of_an_adapted_layer_makes_ordinary_layers():
    net = tn.adapt(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)), tn.AdaptConfig(rank=1)
    )
    for layer, arguments in ((net.backbone[0], (3, 4, 1)), (net.backbone[1], (4,)), (net.backbone[3], (4, 2))):
        made = type(layer)(*arguments)
        assert type(made) is layer._base
        assert all(p.requires_grad for p in made.parameters())
        made.eval().train()
        assert repr(made) == repr(layer._base(*arguments))
    assert isinstance(pickle.loads(pickle.dumps(net)).backbone[0], Attached)


@pytest.mark.parametrize("head", [nn.Conv2d(8, 5, 1), nn.ConvTranspose2d(8, 5, 2)])
def test_a_head_of_another_place_is_told_so(head):
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    with pytest.raises(ShapeError, match=r"cannot take the place of the backbone's '1', a Linear: say which layer"):
        net.add_task("a", head)
    dense = tn.adapt(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)), tn.AdaptConfig(rank=1, head="1"))
    with pytest.raises(ShapeError, match=r"cannot take the place of the backbone's '1', a Conv2d"):
        dense.add_task("a", nn.Linear(8, 5))


DENSE_HEADS = [
    lambda: nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)),
    lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 1, 1)),
    lambda: nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 1), nn.PixelShuffle(2), nn.Sigmoid()
    ),
    lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d((None, 2)), nn.Dropout2d(0.2), nn.LeakyReLU(0.3), nn.Conv2d(8, 2, 1), nn.ReLU6()
    ),
]


@pytest.mark.parametrize("head", DENSE_HEADS)
def test_dense_heads_are_rebuilt_as_they_were(head, tmp_path):
    net = tn.adapt(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)).eval(), tn.AdaptConfig(rank=1, head="1"))
    trained(net.add_task("a", head()))
    net.save_task("a", tmp_path / "a")
    net.load_task(tmp_path / "a", "b")
    assert repr(net["a"].head) == repr(net["b"].head)
    x = torch.randn(2, 3, 6, 6)
    net.eval()
    with net.task("a"):
        y = net(x)
    with net.task("b"):
        assert torch.equal(net(x), y)


def test_a_head_that_is_given_takes_the_dtype_of_the_backbone(tmp_path):
    class Own(nn.Linear):
        pass

    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).bfloat16(), tn.AdaptConfig(rank=1))
    net.add_task("a", Own(8, 3).bfloat16())
    net.save_task("a", tmp_path / "a")
    assert net.load_task(tmp_path / "a", "b", head=Own(8, 3)).head.weight.dtype == torch.bfloat16
    assert "b" in net
    assert "c" not in net
    assert 3 not in net


def test_loading_into_a_head_that_is_taken_leaves_that_as_it_was(tmp_path):
    class Own(nn.Linear):
        pass

    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), Own(8, 3)), tn.AdaptConfig(rank=1, head="1"))
    head = Own(8, 3)
    net.add_task("a", Own(8, 3))
    net.add_task("b", head)
    net.save_task("a", tmp_path / "a")
    for taken in (head, net.backbone[1]):
        before = [(p.clone(), p.requires_grad) for p in taken.parameters()]
        with pytest.raises(StateError, match="pass a copy"):
            net.load_task(tmp_path / "a", "c", head=taken)
        for p, (values, trainable) in zip(taken.parameters(), before, strict=True):
            assert torch.equal(p, values)
            assert p.requires_grad == trainable


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_heads_whose_state_is_not_the_stock_one_are_custom(tmp_path):
    class Noted(nn.Linear):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    net.add_task("a", nn.utils.weight_norm(nn.Linear(8, 3)))
    net.save_task("a", tmp_path / "a")
    with pytest.raises(TaskFileError, match="pass head="):
        net.load_task(tmp_path / "a", "b")
    net.load_task(tmp_path / "a", "b", head=nn.utils.weight_norm(nn.Linear(8, 3)))
    net.add_task("c", Noted(8, 3))
    with pytest.raises(StateError, match="head/_extra_state is a dict"):
        net.save_task("c", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_file_made_without_a_head_says_so_where_there_is_one(tmp_path):
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    net = tn.adapt(copy.deepcopy(backbone), tn.AdaptConfig(rank=1, head="none"))
    net.add_task("a")
    net.save_task("a", tmp_path / "a")
    with pytest.raises(MismatchError, match=r"no head \(head='none'\) expected; this network's is '1'"):
        tn.adapt(backbone).load_task(tmp_path / "a")


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("task", "x", ["a"]),
        MismatchError("a task", ["one", "two"]),
        RecipeError("recipe", ["one"]),
        MissingExtraError("training", "train", "lightning"),
        WriteError("cannot write"),
        StateError("no"),
    ],
)
def test_errors_come_back_from_a_worker_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_masks_of_infinity_in_a_head_are_kept(tmp_path):
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(8, 3)
            self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))

    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), tn.AdaptConfig(rank=1))
    net.add_task("a", Masked())
    net.save_task("a", tmp_path / "a")
    assert net.load_task(tmp_path / "a", "b", head=Masked()).head.mask[1] == float("-inf")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda net, m: tn.adapt(m, {"rank": 4}), ConfigError),
        (lambda net, m: tn.adapt(nn.Linear), BackboneError),
        (lambda net, m: tn.adapt("resnet18"), BackboneError),
        (lambda net, m: net.add_task("c", config={"rank": 2}), ConfigError),
        (lambda net, m: net.add_task("c", 7), ShapeError),
        (lambda net, m: net.add_task("c", nn.Linear), ShapeError),
        (lambda net, m: net.add_task("c", tn.AdaptConfig()), ShapeError),
        (lambda net, m: net.add_task("c", nn.Linear(8, 3).double()), ShapeError),
        (lambda net, m: net.add_task("c", nn.LazyLinear(3)), ShapeError),
        (lambda net, m: net.set_task(3), UnknownNameError),
        (lambda net, m: net.set_task(net["a"]), UnknownNameError),
        (lambda net, m: net[None], UnknownNameError),
        (lambda net, m: net["a"].delta("nope"), UnknownNameError),
        (lambda net, m: net(torch.randn(2, 6), tasks=3), ShapeError),
        (lambda net, m: net(torch.randn(2, 6), tasks="ab"), ShapeError),
        (lambda net, m: net(torch.randn(2, 6), tasks=[["a"], ["a"]]), ShapeError),
        (lambda net, m: net.forward_tasks(torch.randn(2, 6), None), ShapeError),
        (lambda net, m: tn.AdaptConfig.from_json(None), ConfigError),
        (lambda net, m: net.save_task("a", "x" * 300), tn.TensornetError),
        (lambda net, m: net.load_task("x" * 300), tn.TensornetError),
        (lambda net, m: net.save_task("a", "a\0b"), tn.TensornetError),
        (lambda net, m: tn.adapt(nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d(), nn.Linear(3, 3))), TargetError),
    ],
)
def test_mistakes_are_named(call, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = adapted(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    with pytest.raises(error) as caught:
        call(net, nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    assert isinstance(caught.value, tn.TensornetError)
    assert net.tasks == ("a", "b")


def test_a_base_without_a_dict_before_the_module_is_told_and_nothing_is_attached():
    class Shift(ABC, nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("by", torch.ones(4))

    class Own(Shift):
        pass

    backbone = nn.Sequential(nn.BatchNorm1d(4), Own(), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(StateError, match=r"1: a Own cannot be given a slot, because Shift has ABC before .* put ABC last"):
        tn.adapt(backbone)
    backbone[1] = nn.Identity()
    assert tn.adapt(backbone).training, "nothing was attached"


def test_classes_that_note_their_subclasses_note_none_of_ours():
    noted = []

    class Noting(nn.Module):
        def __init_subclass__(cls, *, word, **options):
            super().__init_subclass__(**options)
            noted.append(word)

    class Shift(Noting, word="shift"):
        def __init__(self):
            super().__init__()
            self.register_buffer("by", torch.ones(4))

        def forward(self, x):
            return x + self.by

    class Norm(nn.BatchNorm1d, Noting, word="norm"):
        pass

    net = adapted(nn.Sequential(Shift(), Norm(4), nn.Linear(4, 8), nn.Linear(8, 5)))
    check_rows(net, torch.randn(4, 4))
    assert noted == ["shift", "norm"]


def test_every_way_to_give_forward_tasks_its_inputs():
    net = adapted(net_of(a=nn.Linear(4, 8), fc=nn.Linear(8, 5), call=lambda s, x, y=0.0: s.fc(torch.tanh(s.a(x) + y))))
    x, names = torch.randn(2, 4), ["a", "b"]
    expected = net.forward_tasks(x, names, y=1.0)
    for found in (
        net.forward_tasks(x, tasks=names, y=1.0),
        net.forward_tasks(x, 1.0, names),
        net.forward_tasks(y=1.0, x=x, tasks=names),
    ):
        assert all(torch.equal(found[name], expected[name]) for name in names)
    with pytest.raises(ShapeError, match="the names of tasks are missing"):
        net.forward_tasks()
    with pytest.raises(ShapeError, match="tasks must be a list of names"):
        net.forward_tasks(x)


def test_a_head_deeper_than_a_file_describes_is_custom():
    head = functools.reduce(lambda inner, _: nn.Sequential(inner), range(40), nn.Linear(8, 3))
    assert describe(head) == {"type": "custom"}


def test_a_head_behind_a_batch_norm_has_to_have_the_width_of_the_backbones():
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    with pytest.raises(ShapeError, match="8"):
        net.add_task("a", nn.Sequential(nn.BatchNorm1d(9), nn.Linear(9, 3)))


def test_every_hook_of_a_head_is_left_off_its_copy():
    calls = []
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)))
    backbone[1].register_full_backward_pre_hook(lambda module, g: calls.append("pre"))
    backbone[1].register_full_backward_hook(lambda module, g, out: calls.append("post"))
    tuned = copy.deepcopy(backbone)
    net = tn.adapt(backbone, tn.AdaptConfig(rank=1, head="1"))
    tn.extract_task(net, "a", tuned)
    net.set_task("a")
    net(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert calls == ["pre", "post"]
