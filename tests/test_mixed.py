"""Batches of several tasks: the rows of a task are those rows alone."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tensornet as tn
from tensornet import mixed
from tensornet.errors import ShapeError, UnknownNameError
from tensornet.probe import probe
from tensornet.rows import split_rows
from tests.toys import Encoder, ResNet, Transformer, trained

DECOMPOSITIONS = ["cp", "tucker", "tt", "low_rank", "kronecker", "dense"]


def network(backbone, width, decomposition="cp", **config):
    net = tn.adapt(backbone.double().eval(), tn.AdaptConfig(decomposition, rank=2, **config))
    for seed, (name, classes) in enumerate({"a": 3, "b": 6, "c": 3}.items()):
        trained(net.add_task(name, nn.Linear(width, classes).double()), scale=0.2, seed=seed)
    net.add_task("own")
    return net


def alone(net, x, names):
    """Each task's rows as one batch of that task."""
    rows = {}
    for name in dict.fromkeys(names):
        index = [i for i, n in enumerate(names) if n == name]
        with net.task(name):
            rows |= dict(zip(index, net(x[index]), strict=True))
    return [rows[i] for i in range(len(names))]


def check(net, x, names):
    before = net.active
    for found, wanted in zip(net(x, tasks=names), alone(net, x, names), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert net.active == before


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
@pytest.mark.parametrize("path", ["auto", "weight"])
@given(names=st.lists(st.sampled_from(["a", "b", "c", "own", None]), min_size=1, max_size=7))
def test_rows_in_eval(decomposition, path, names):
    net = network(ResNet(), 8, decomposition)
    net.path = path
    check(net, torch.randn(len(names), 3, 8, 8, dtype=torch.float64), names)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_rows_under_autocast(decomposition):
    net, names = network(ResNet(), 8, decomposition).float(), ["a", "b", "c", None, "a"]
    x = torch.randn(len(names), 3, 8, 8)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        found, wanted = net(x, tasks=names), alone(net, x, names)
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own, other, rtol=3e-2, atol=3e-2 * float(other.abs().max()))


@pytest.mark.parametrize("path", ["auto", "weight"])
def test_one_step_of_training(path):
    names = ["a", "b", "a", "c", "b", "a", "c"]
    x = torch.randn(len(names), 3, 8, 8, dtype=torch.float64)
    mixed, single = network(ResNet(), 8), network(ResNet(), 8)
    single.load_state_dict(mixed.state_dict())
    mixed.path = path
    mixed.train(), single.train()
    loss = sum(row.square().sum() for row in mixed(x, tasks=names))
    loss.backward()
    sum(row.square().sum() for row in alone(single, x, names)).backward()
    for name in ("a", "b", "c"):
        for (key, p), q in zip(mixed[name].named_parameters(), single[name].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
        for p, q in zip(mixed[name].buffers(), single[name].buffers(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_the_shared_layers_run_once():
    net = network(ResNet(), 8)
    calls = []
    net.backbone.layer1[0].relu.register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(4, 3, 8, 8, dtype=torch.float64), tasks=["a", "b", "c", "a"])  # the probe runs first, twice
    calls.clear()
    net(torch.randn(4, 3, 8, 8, dtype=torch.float64), tasks=["a", "b", "c", "a"])
    assert len(calls) == 2, "one pass: the block's ReLU is called twice in it"


def test_token_inputs_and_fused_qkv():
    net = network(Transformer(), 8, "tt", targets=r"embed|.*qkv|.*proj|.*mlp.*")
    check(net, torch.randint(11, (5, 6)), ["a", "b", "a", None, "c"])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("length", [5, 10])
def test_attention_that_cannot_be_routed_runs_task_by_task(batch_first, length):
    net = network(Encoder(batch_first=batch_first), 8)
    x = torch.randn(5, length, 8, dtype=torch.float64)
    check(net, x, ["a", "b", "a", "c", "b"])


def test_sequence_first_layers_are_noticed():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.mix(x.transpose(0, 1)).transpose(0, 1).mean(1))

    net = network(SequenceFirst(), 4)
    check(net, torch.randn(4, 4, 4, dtype=torch.float64), ["a", "b", "c", "a"])
    check(net, torch.randn(3, 6, 4, dtype=torch.float64), ["a", "b", "c"])


def test_few_kinds_of_batches_are_remembered(monkeypatch):
    monkeypatch.setattr(mixed, "_REMEMBERED", 3)

    class Warm(ResNet):
        def forward(self, x, temperature):
            return super().forward(x) / temperature

    net = network(Warm(), 8)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for temperature in (0.5, 1.5):
        rows = net(x, temperature, tasks=["a", "b"])
        for i, name in enumerate("ab"):
            with net.task(name):
                torch.testing.assert_close(rows[i], net(x, temperature)[i])
    assert len(net._mixed._routes) == 1
    for size in range(4, 9):
        net(torch.randn(2, 3, 4, size, dtype=torch.float64), 1.0, tasks=["a", "b"])
    assert len(net._mixed._routes) == 3


def test_layers_after_the_head():
    class Scaled(ResNet):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    net = network(Scaled(), 8)
    rows = net(torch.randn(3, 3, 8, 8, dtype=torch.float64), tasks=["a", "b", "c"])
    assert [row.shape for row in rows] == [(3,), (6,), (3,)]
    check(net, torch.randn(3, 3, 8, 8, dtype=torch.float64), ["a", "b", "c"])


def test_refusals():
    net = network(ResNet(), 8)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(ShapeError, match="2 names for 3 rows"):
        net(x, tasks=["a", "b"])
    with pytest.raises(UnknownNameError, match="Did you mean"):
        net(x, tasks=["a", "b", "ow"])
    assert net.active is None


@pytest.mark.parametrize("exclude", [(), r"conv1|layer1.*"])
def test_forward_tasks(exclude):
    norms = "task" if not exclude else r"layer2.*"
    net = network(ResNet(), 8, exclude=exclude, norms=norms)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    outputs = net.forward_tasks(x, ["a", "b", "c"])
    assert list(outputs) == ["a", "b", "c"]
    assert net.active is None
    for name, y in outputs.items():
        with net.task(name):
            torch.testing.assert_close(y, net(x), rtol=1e-10, atol=1e-10)


def test_forward_tasks_computes_the_common_prefix_once():
    net = network(ResNet(), 8, targets=r"layer2.*", norms="shared")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    counts = {"prefix": 0, "rest": 0}

    def count(key):
        def hook(module, inputs):
            counts[key] += 1

        return hook

    before = net.backbone.layer1[0].conv1.forward

    def counted(*args):
        counts["prefix"] += 1
        return before(*args)

    net.backbone.layer1[0].conv1.__dict__["forward"] = counted
    net.backbone.layer2[0].conv2.register_forward_pre_hook(count("rest"))
    outputs = net.forward_tasks(x, ["a", "b", "c"])
    assert counts == {"prefix": 1, "rest": 3}
    for name, y in outputs.items():
        with net.task(name):
            torch.testing.assert_close(y, net(x), rtol=1e-10, atol=1e-10)


def test_forward_tasks_gradients_and_in_place_prefix():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.relu, self.b, self.head = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            y += 1
            z = self.relu(y)
            z *= 2
            return self.head(self.b(z))

    net = network(InPlace(), 4, targets=["b"])
    x = torch.randn(3, 4, dtype=torch.float64)
    outputs = net.forward_tasks(x, ["a", "b"])
    for name, y in outputs.items():
        with net.task(name):
            torch.testing.assert_close(y, net(x), rtol=1e-12, atol=1e-12)
        grads = torch.autograd.grad(y.square().sum(), list(net[name].deltas.parameters()))
        assert all(g.any() for g in grads)


class Reader(nn.Module):
    """Reads as many steps of each row as a list or an array says."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x, lengths, names=()):
        h = torch.tanh(self.fc1(x))
        self.read = list(names)
        return self.fc(torch.stack([row[: int(n)].mean(0) for row, n in zip(h, lengths, strict=True)]))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("names", ["cacc", "abba"])  # heads of one width, and of two
def test_lists_and_arrays_with_one_item_per_row_go_with_their_rows(kind, names):
    net = network(Reader(), 4)
    x, lengths = torch.randn(4, 5, 4, dtype=torch.float64), [5, 1, 2, 4]
    rows = net(x, kind(lengths), tasks=list(names))
    for i, (name, length) in enumerate(zip(names, lengths, strict=True)):
        with net.task(name):
            torch.testing.assert_close(rows[i], net(x[i : i + 1], [length])[0])


def test_texts_go_with_their_rows_and_tuples_stay():
    net = network(Reader(), 4)
    x, lengths, texts = torch.randn(4, 5, 4, dtype=torch.float64), [5, 5, 5, 5], ["first", "second", "third", "fourth"]
    net(x, lengths, texts, tasks=["a", "c", "a", "c"])
    assert net.backbone.read == ["first", "third", "second", "fourth"]
    net(x, lengths, tuple(texts), tasks=["a", "c", "a", "c"])
    assert net.backbone.read == texts


@dataclass(frozen=True)
class Found:
    logits: torch.Tensor
    boxes: list
    cache: object
    note: str = "of all"


class Cache:
    pass


class Finder(nn.Module):
    """Gives what ``answer`` makes of its logits."""

    def __init__(self, answer):
        super().__init__()
        self.fc1, self.fc, self.answer = nn.Linear(4, 4), nn.Linear(4, 5), answer

    def forward(self, x):
        return self.answer(self.fc(self.fc1(x)))


def test_objects_in_an_output_are_taken_apart_or_are_none():
    net = network(Finder(lambda y: {"found": Found(y, [{"box": row[:2], "at": row[0].item()} for row in y], Cache())}), 4)
    x = torch.randn(4, 4, dtype=torch.float64)
    for name, row, own in zip("acca", net(x, tasks=list("acca")), x, strict=True):
        with net.task(name):
            alone = net(own[None])["found"]
        torch.testing.assert_close(row["found"].logits, alone.logits[0])
        torch.testing.assert_close(row["found"].boxes, alone.boxes[0])
        assert row["found"].cache is None
        assert row["found"].note == "of all"


def test_arrays_and_texts_in_an_output_are_of_their_rows():
    net = network(Finder(lambda y: {"best": y.detach().argmax(1).numpy(), "text": [f"{row[0].item():.6f}" for row in y]}), 4)
    x = torch.randn(4, 4, dtype=torch.float64)
    for name, row, own in zip("acca", net(x, tasks=list("acca")), x, strict=True):
        with net.task(name):
            alone = net(own[None])
        assert (row["best"], row["text"]) == (alone["best"][0], alone["text"][0])


@pytest.mark.parametrize(("answer", "said"), [(lambda y: {y}, "got a set"), (lambda y: [y.sum()], r"got shape \(\) for")])
def test_an_output_that_cannot_be_taken_apart_is_refused(answer, said):
    with pytest.raises(ShapeError, match=said):
        network(Finder(answer), 4)(torch.randn(4, 4, dtype=torch.float64), tasks=list("acca"))


def test_finding_out_how_to_serve_a_batch_leaves_the_callers_objects_alone():
    class Diary:
        def __init__(self):
            self.seen = []

    class Writer(Finder):
        def forward(self, x, diary):
            diary.seen.append(self.fc1(x))
            return self.fc(diary.seen[-1])

    diary = Diary()
    network(Writer(None), 4)(torch.randn(4, 4, dtype=torch.float64), diary, tasks=list("acca"))
    assert [h.device.type for h in diary.seen] == ["cpu"]


class Talker(nn.Module):
    """Two shared layers and a head; ``way`` says what its forward does with them."""

    def __init__(self, way):
        super().__init__()
        self.fc1, self.drop, self.fc2, self.fc, self.way = (
            nn.Linear(4, 4),
            nn.Dropout(0.5),
            nn.Linear(4, 4),
            nn.Linear(4, 5),
            way,
        )

    def forward(self, x):
        h = self.fc2(torch.tanh(self.drop(self.fc1(x))))
        return self.way(self, x, h)


def told(self, x, h):
    return self.fc(h if bool((x < 1e9).all()) else -h)


def sorts(self, x, h):
    order = sorted(range(len(x)), key=x[:, 0].tolist().__getitem__)
    back = sorted(range(len(x)), key=order.__getitem__)
    return self.fc(torch.tanh(self.fc2(h[order]))[back])


def asks_for_ever(self, x, h):
    while not (x < 1e9).all():
        h = h + 1
    return self.fc(h)


WAYS = {
    "a dict": (lambda self, x, h: {"logits": self.fc(h), "hidden": (h,), "loss": None}, 1, 1),
    "asks for yes or no": (told, 1, 1),
    "asks for ever": (asks_for_ever, 2, 2),
    "sorts its rows": (sorts, 4, 4),
    "looks at the dtype": (lambda self, x, h: self.fc(h.to(self.fc1.weight.dtype)), 1, 1),
    "computes with a weight": (lambda self, x, h: self.fc(h + x @ self.fc1.weight), 2, 2),
    "goes on from the head": (lambda self, x, h: self.fc(h).log_softmax(1), 1, 2),
    "goes on beside the head": (
        lambda self, x, h: {"logits": (y := self.fc(h)), "p": y.softmax(1)},
        1,
        2,
    ),
    "changes the head's output": (lambda self, x, h: self.fc(h).mul_(2), 1, 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", ["acca", "abba"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_how_often_the_shared_layers_run(way, names, mode):
    forward, alike, unlike = WAYS[way]
    net, calls = network(Talker(forward), 4), []
    net.backbone.fc2.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    with mode():
        rows = net(x + 0, tasks=list(names))
    assert len(calls) == (alike if names == "acca" else unlike)
    assert torch.equal(torch.get_rng_state(), before)
    for name, row, own in zip(names, rows, x, strict=True):
        with torch.no_grad(), net.task(name):
            alone = net(own[None])
        wanted = split_rows(alone, 1)[0]
        torch.testing.assert_close(row, wanted)


def test_batch_norms_without_a_bias():
    net = tn.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, bias=False), nn.Flatten(), nn.Linear(16, 2)).eval())
    for seed, name in enumerate("ab"):
        trained(net.add_task(name), seed=seed)
    net.eval()
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        rows = net(x, tasks=["a", "b"])
        for i, name in enumerate("ab"):
            with net.task(name):
                torch.testing.assert_close(rows[i], net(x[i : i + 1])[0])


def test_rows_of_one_task_go_the_way_that_is_set(monkeypatch):
    net = network(ResNet(), 8)
    net.eval()
    ways = []
    fill = net._slots.fill
    monkeypatch.setattr(net._slots, "fill", lambda contents, way: ways.append(way) or fill(contents, way))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for path, way in (("auto", "weight"), ("weight", "weight"), ("activations", "activations")):
        net.path = path
        ways.clear()
        with torch.no_grad():
            net(x, tasks=["a", "a"])
        assert ways[0] == way


def test_tasks_that_change_different_layers_share_one_answer(monkeypatch):
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig(rank=2))
    for seed, (name, layer) in enumerate({"a": "conv1", "b": r".*conv1", "c": r".*conv2", "d": ".*"}.items()):
        config = tn.AdaptConfig("none", norms="shared", layers={layer: tn.Choice("cp", 2)})
        trained(net.add_task(name, nn.Linear(8, 3), config), seed=seed)
    net.eval()
    x = torch.randn(2, 3, 8, 8)
    probed = []
    monkeypatch.setattr(mixed, "probe", lambda *args: probed.append(args) or probe(*args))
    with torch.no_grad():
        for names in itertools.combinations("abcd", 2):
            rows = net(x, tasks=names)
            for i, name in enumerate(names):
                with net.task(name):
                    torch.testing.assert_close(rows[i], net(x)[i])
    assert len(probed) == 1
