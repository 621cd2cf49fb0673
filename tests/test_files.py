"""Tasks on disk: exact, atomic, described by themselves, and refused when anything is off."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save
from torch import nn

import analysis
import tensornet as tn
from tensornet import atomic, files
from tensornet.errors import MismatchError, NameTakenError, NonFiniteError, ShapeError, StateError, TaskFileError, WriteError
from tests.toys import Encoder, ResNet, Transformer, trained


def network(seed=0, **config):
    torch.manual_seed(seed)
    return tn.adapt(ResNet().eval(), tn.AdaptConfig(**({"decomposition": "cp", "rank": 2} | config)))


@pytest.fixture
def saved(tmp_path):
    net = network()
    trained(net.add_task("t", nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 3))))
    net.save_task("t", tmp_path / "t")
    return net, tmp_path / "t"


@pytest.mark.parametrize("decomposition", tn.decompositions())
@pytest.mark.parametrize("folding", ["layer", "depth"])
def test_round_trip_is_bit_identical(decomposition, folding, tmp_path):
    net = network(decomposition=decomposition, folding=folding, scale=0.5)
    task = trained(net.add_task("t", nn.Linear(8, 3)))
    net.save_task("t", tmp_path / "t")
    other = network(decomposition="none")
    loaded = other.load_task(tmp_path / "t")
    assert loaded.config == task.config
    mine, theirs = task.state_dict(), loaded.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine)
    x = torch.randn(2, 3, 8, 8)
    with net.task("t"), other.task("t"):
        assert torch.equal(net(x), other(x))
    other.save_task("t", tmp_path / "u")
    assert (tmp_path / "t/task.safetensors").read_bytes() == (tmp_path / "u/task.safetensors").read_bytes()


@pytest.mark.parametrize("backbone", [Transformer, Encoder])
def test_other_architectures(backbone, tmp_path):
    torch.manual_seed(0)
    first = tn.adapt(backbone().eval(), tn.AdaptConfig("tt", rank=2))
    trained(first.add_task("t", nn.Linear(8, 3)))
    first.save_task("t", tmp_path / "t")
    torch.manual_seed(0)
    second = tn.adapt(backbone().eval())
    second.load_task(tmp_path / "t")
    x = torch.randint(11, (2, 5)) if backbone is Transformer else torch.randn(2, 5, 8)
    with first.task("t"), second.task("t"):
        assert torch.equal(first(x), second(x))


def test_the_file_is_readable_without_the_backbone(saved):
    net, path = saved
    file = tn.read_task(path)
    assert file.name == "t"
    assert file.parameter_counts() == net["t"].parameter_counts()
    for (plan, module), (other, own) in zip(file.tensors, net["t"].tensors(), strict=True):
        assert plan == other
        assert torch.equal(module.to_tensor(), own.to_tensor())
        member = file.record.tensors[plan.fold.name].members[0]
        weight = net.backbone.get_submodule(member.module)._parameters["weight"]
        assert member.norm == pytest.approx(weight.double().norm().item())
    assert [p.fold.members[0].target.order for p, _ in file.tensors] == sorted(
        p.fold.members[0].target.order for p, _ in file.tensors
    )


def test_the_file_holds_the_task_and_nothing_else(saved):
    net, path = saved
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "task.json", "task.safetensors"]
    tensors = load_file(path / "task.safetensors")
    assert sum(t.numel() for k, t in tensors.items() if k.startswith("delta/")) == net["t"].parameter_counts()["deltas"]
    assert "delta/layer1.0.conv1/factor_0" in tensors
    assert "norm/layer1.0.bn1/running_mean" in tensors
    assert "head/1.weight" in tensors
    assert {key.split("/")[0] for key in tensors} == {"delta", "norm", "head"}
    assert "library_name: tensornet" in (path / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_mapped_to_another_dtype(saved, dtype):
    net, path = saved
    other = network()
    other.to(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = other.load_task(path)
    assert any("another dtype" in str(w.message) for w in caught)
    wanted = net["t"].to(dtype).state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in loaded.state_dict().items())
    (_, module), *_ = tn.read_task(path, dtype=dtype).tensors
    assert next(module.parameters()).dtype == dtype


def test_every_mismatch_is_listed_at_once(saved):
    _, path = saved
    backbone = ResNet(width=8)
    backbone.layer1[0].conv1 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
    backbone.layer1[1].bn2 = nn.Identity()
    backbone.layer2[0].down = nn.Identity()
    with pytest.raises(MismatchError) as caught:
        tn.adapt(backbone).load_task(path)
    text = str(caught.value)
    for words in ("hash", "layer1.0.conv1", "(8, 8, 5, 5)", "layer1.1.bn2", "layer2.0.down"):
        assert words in text
    assert len(caught.value.mismatches) >= 4


def test_another_backbone_of_the_same_shape_is_refused(saved):
    _, path = saved
    with pytest.raises(MismatchError, match="hash"):
        network(seed=1).load_task(path)
    net = network()
    with torch.no_grad():
        net.backbone.bn1.running_mean += 1e-3
    with pytest.raises(MismatchError, match="hash"):
        net.load_task(path)
    assert net.tasks == ()
    head = network()
    with torch.no_grad():
        head.backbone.fc.weight += 1
    head.load_task(path)


def test_names_on_loading(saved):
    net, path = saved
    with pytest.raises(NameTakenError):
        net.load_task(path)
    net.load_task(path, "again")
    assert net.tasks == ("t", "again")


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("flip") / "t"
    net = network()
    net.add_task("t")
    net.save_task("t", path)
    data = bytearray((path / "task.safetensors").read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    (path / "task.safetensors").write_bytes(data)
    with pytest.raises(TaskFileError, match="changed or cut short"):
        tn.read_task(path)


@given(keep=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["task.json", "task.safetensors"]))
def test_truncated_files_are_refused(tmp_path_factory, keep, name):
    path = tmp_path_factory.mktemp("cut") / "t"
    net = network()
    net.add_task("t")
    net.save_task("t", path)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(keep * (len(data) - 2))])
    with pytest.raises(TaskFileError):
        tn.read_task(path)


def sign(path, record, tensors):
    """Write a record and tensors that belong together: what somebody who means harm can do."""
    content = json.dumps({key: value for key, value in record.items() if key != "sha256"}, sort_keys=True)
    data = save(tensors, {"record": hashlib.sha256(content.encode()).hexdigest()})
    (path / "task.safetensors").write_bytes(data)
    (path / "task.json").write_text(json.dumps(record | {"sha256": hashlib.sha256(data).hexdigest()}))


def edit(path, change):
    record = json.loads((path / "task.json").read_text())
    change(record)
    sign(path, record, load((path / "task.safetensors").read_bytes()))


def test_an_edited_record_is_noticed(saved):
    _, path = saved
    text = (path / "task.json").read_text()
    (path / "task.json").write_text(text.replace('"scale": 1.0', '"scale": 5.0'))
    with pytest.raises(TaskFileError, match="it was changed"):
        tn.read_task(path)


TENSOR = "layer1.0.conv1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format_version=2), "upgrade"),
        (lambda r: r.update(format="other"), "does not describe a task"),
        (lambda r: r.update(name="../../etc"), "cannot name a task"),
        (lambda r: r.update(surprise=1), "surprise"),
        (lambda r: r.pop("backbone"), "backbone"),
        (lambda r: r["config"].update(rank=-1), "rank"),
        (lambda r: r["tensors"][TENSOR].update(shape=[10**9, 10**9, 9]), "cannot have|elements"),
        (lambda r: r["tensors"][TENSOR].update(ranks=10**6), "factors"),
        (lambda r: r["tensors"][TENSOR].update(ranks=0), "greater than 0"),
        (lambda r: r["tensors"][TENSOR].update(scale=float("nan")), "finite"),
        (lambda r: r["tensors"][TENSOR].update(decomposition="nothing"), "unknown decomposition"),
        (lambda r: r["tensors"][TENSOR].update(shared=["factor_0"]), "outside this file"),
        (lambda r: r["tensors"][TENSOR].update(members=[]), "no members"),
        (lambda r: r["tensors"][TENSOR]["members"][0].update(slice={"depth": 3}), "make up"),
        (lambda r: r["tensors"][TENSOR]["members"][0].update(shape=[8, 8, 5, 5]), "make up"),
        (lambda r: r["tensors"].pop(TENSOR), "is in task.safetensors and not in task.json"),
        (lambda r: r["norms"].update({"layer9": "BatchNorm2d"}), "has no tensors"),
        (lambda r: r["norms"].pop("bn1"), "not in task.json"),
    ],
)
def test_hostile_or_newer_records(saved, change, words):
    _, path = saved
    edit(path, change)
    with pytest.raises(tn.TensornetError, match=words):
        tn.read_task(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["head"]["layers"]["1"].update(out_features=10**12), "settings"),
        (lambda r: r["head"]["layers"]["1"].update(out_features=4), "tensors"),
        (lambda r: r["head"].update(type="os.system"), "cannot describe"),
        (lambda r: r["head"].update(layers={"__class__": {"type": "Identity"}}), "cannot be built"),
    ],
)
def test_hostile_heads(saved, change, words):
    net, path = saved
    edit(path, change)
    with pytest.raises(TaskFileError, match=words):
        net.load_task(path, "u")
    assert net.tasks == ("t",)


def test_hostile_tensors(saved):
    net, path = saved
    tensors = load((path / "task.safetensors").read_bytes())

    def rewrite(changed):
        sign(path, json.loads((path / "task.json").read_text()), changed)

    rewrite(tensors | {"head/1.bias": torch.full((3,), float("nan"))})
    with pytest.raises(TaskFileError, match="NaN"):
        tn.read_task(path)
    rewrite(tensors | {"../../etc/passwd": torch.zeros(1)})
    with pytest.raises(TaskFileError, match="passwd"):
        tn.read_task(path)
    for key in ("head/1.weight", f"delta/{TENSOR}/factor_0", "norm/bn1/weight"):
        for dtype in (torch.int64, torch.complex64):
            rewrite(tensors | {key: tensors[key].to(dtype)})
            with pytest.raises(TaskFileError, match=r"floating-point numbers were expected|should have the tensors"):
                net.load_task(path, "u")
    rewrite({k: t for k, t in tensors.items() if k != f"delta/{TENSOR}/factor_1"})
    with pytest.raises(TaskFileError, match="factor_1"):
        tn.read_task(path)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '{"format": "tensornet-task"}', "[" * 100_000, "\x00"])
def test_json_that_is_none(saved, text):
    _, path = saved
    (path / "task.json").write_text(text)
    with pytest.raises(TaskFileError):
        tn.read_task(path)


def test_folders_that_are_no_tasks(tmp_path):
    with pytest.raises(TaskFileError, match="is no task folder"):
        tn.read_task(tmp_path)
    with pytest.raises(TaskFileError, match="is no task folder"):
        tn.read_task(tmp_path / "absent")


def test_nan_is_not_written(tmp_path):
    net = network()
    task = net.add_task("t")
    with torch.no_grad():
        next(task.parameters())[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="diverge"):
        net.save_task("t", tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_and_other_things_stay(saved, tmp_path):
    net, path = saved
    with torch.no_grad():
        next(net["t"].parameters()).zero_()
    net.save_task("t", path)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    for place in ("folder", "file"):
        target = tmp_path / place
        if place == "folder":
            target.mkdir()
            (target / "precious").write_text("x")
        else:
            target.write_text("x")
        with pytest.raises(WriteError, match="choose another place"):
            net.save_task("t", target)
    assert (tmp_path / "folder/precious").read_text() == "x"


def test_what_else_is_in_the_folder_of_a_task_stays(saved, tmp_path):
    net, path = saved
    (path / "notes.txt").write_text("x")
    net.save_task("t", path / "inside")
    (tmp_path / "link").symlink_to(path, target_is_directory=True)
    with torch.no_grad():
        next(net["t"].parameters()).zero_()
    net.save_task("t", tmp_path / "link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", path.name]
    assert (tmp_path / "link").is_symlink()
    assert (path / "notes.txt").read_text() == "x"
    tn.read_task(path / "inside")
    factors = [factor for _, module in tn.read_task(path).tensors for factor in module.parameters()]
    assert not factors[0].any()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_or_an_interrupt_leaves_what_was_there(saved, tmp_path, monkeypatch, failure, call):
    net, path = saved
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    calls = []

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise failure
        return original(*args)

    if call == "fsync":
        original = os.fsync
        monkeypatch.setattr(atomic.os, "fsync", fail)
    else:
        original = Path.rename
        monkeypatch.setattr(Path, "rename", fail)
    expected = WriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        net.save_task("t", path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_custom_heads_need_the_module(tmp_path):
    class Odd(nn.Linear):
        pass

    net = network()
    net.add_task("t", Odd(8, 3))
    net.save_task("t", tmp_path / "t")
    other = network()
    with pytest.raises(TaskFileError, match="pass head="):
        other.load_task(tmp_path / "t")
    head = other.load_task(tmp_path / "t", head=Odd(8, 3)).head
    assert torch.equal(head.weight, net["t"].head.weight)


def test_hundred_tasks_load_into_one_backbone(tmp_path):
    net = network()
    net.add_task("t")
    net.save_task("t", tmp_path / "t")
    for i in range(30):
        net.load_task(tmp_path / "t", f"t{i}")
    x = torch.randn(1, 3, 8, 8)
    for i in (0, 29):
        with net.task(f"t{i}"):
            net(x)
    assert len(net.tasks) == 31


class Gamma(nn.BatchNorm2d):
    """A norm that saves its weight under a name of its own."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "gamma"] = destination.pop(prefix + "weight")


def test_a_norm_that_names_its_tensors_in_its_own_way_reads_back(tmp_path):
    def made():
        torch.manual_seed(0)
        return tn.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), Gamma(4), nn.Flatten(), nn.Linear(16, 2)).eval())

    net = made()
    with torch.no_grad():
        net.add_task("t", nn.Linear(16, 2)).own_norms()["1"].weight.fill_(7.0)
    net.save_task("t", tmp_path / "t")
    assert (made().load_task(tmp_path / "t").own_norms()["1"].weight == 7).all()


def test_a_norm_of_a_task_is_made_like_any_of_its_class():
    norm = network().add_task("t", nn.Linear(8, 3)).own_norms()
    (kind,) = {type(layer) for layer in norm.values()}
    made = kind(5)
    assert made.weight.shape == (5,)
    assert isinstance(made, nn.BatchNorm2d)


def test_what_the_outputs_stand_for_is_in_the_file(tmp_path):
    net = network()
    task = trained(net.add_task("t", nn.Linear(8, 3)))
    task.classes = ("dog", "guitar", "été")
    net.save_task("t", tmp_path / "t")
    assert tn.read_task(tmp_path / "t").record.classes == ["dog", "guitar", "été"]
    assert "dog, guitar, été" in (tmp_path / "t/README.md").read_text("utf-8")
    loaded = network().load_task(tmp_path / "t")
    assert loaded.classes == ("dog", "guitar", "été")
    analysis.prune(tmp_path / "t", tmp_path / "small", keep=1)
    assert network().load_task(tmp_path / "small").classes == loaded.classes
    changed = (tmp_path / "t/task.json").read_text().replace("guitar", "violin")
    (tmp_path / "t/task.json").write_text(changed)
    with pytest.raises(TaskFileError, match="it was changed"):
        tn.read_task(tmp_path / "t")


@pytest.mark.parametrize("classes", ["dog", ("dog", 2, "cat"), ("dog", "cat")])
def test_classes_that_no_head_could_have_are_refused(classes, tmp_path):
    net = network()
    net.add_task("t", nn.Linear(8, 3)).classes = classes
    with pytest.raises(StateError, match=r"classes should be names|3 outputs; got 2 classes"):
        net.save_task("t", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_files_of_before_there_were_classes_are_read(saved):
    _, path = saved
    record = json.loads((path / "task.json").read_text())
    assert record.pop("classes") is None
    sign(path, record, load((path / "task.safetensors").read_bytes()))
    analysis.prune(path, path / "small", keep=2)
    assert network().load_task(path / "small").classes is None


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "padding": "same", "bias": False, "groups": 2}])
def test_a_convolution_is_a_head_too(options, tmp_path):
    def network():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        return tn.adapt(backbone.eval(), tn.AdaptConfig("cp", rank=2, head="2"))

    net = network()
    head = nn.Conv2d(8, 4, **({"kernel_size": 1} | options))
    trained(net.add_task("t", head)).classes = ("sky", "road", "tree", "car")
    net.save_task("t", tmp_path / "t")
    other = network()
    other.load_task(tmp_path / "t")
    x = torch.randn(2, 3, 8, 8)
    with net.task("t"), other.task("t"):
        assert torch.equal(net(x), other(x))
    with pytest.raises(ShapeError, match=r"the head takes 6 features, the backbone's '2' takes 8: make it nn.Conv2d\(8, …"):
        net.add_task("u", nn.Conv2d(6, 4, 1))


def test_a_task_that_is_written_anew_while_it_is_read(saved, monkeypatch):
    net, path = saved
    read, times = Path.read_bytes, []

    def slowly(file):
        data = read(file)
        if file.name == files.JSON and not times:
            times.append(file.name)
            with torch.no_grad():
                net["t"].head[1].bias.add_(1)
            net.save_task("t", path)
        return data

    monkeypatch.setattr(Path, "read_bytes", slowly)
    assert torch.equal(tn.read_task(path).head["1.bias"], net["t"].head[1].bias)


def test_a_task_that_is_between_two_versions(saved, monkeypatch):
    _, path = saved
    aside, coming = path.with_name(".t.old"), path.with_name(".t.new")
    coming.mkdir()
    path.rename(aside)
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: aside.exists() and aside.rename(path))
    assert tn.read_task(path).name == "t"
    path.rename(aside)
    coming.rmdir()
    aside.rename(aside.with_name("elsewhere"))
    with pytest.raises(TaskFileError, match="is no task folder"):  # at once: nothing is coming
        tn.read_task(path)


def test_a_task_is_replaced_where_the_new_one_is_whole(saved):
    net, path = saved
    x = torch.randn(2, 3, 8, 8)
    net.eval().set_task("t")
    before = net(x)
    with torch.no_grad():
        net["t"].head[1].bias.add_(1)
    assert not torch.equal(net(x), before)
    assert net.load_task(path, replace=True) is net["t"]
    assert torch.equal(net(x), before)
    assert net.tasks == ("t",)
    with pytest.raises(NameTakenError):
        net.load_task(path)
    (path / "task.safetensors").write_bytes(b"")
    with pytest.raises(TaskFileError):
        net.load_task(path, replace=True)
    assert torch.equal(net(x), before)


def test_tasks_that_are_loaded_in_inference_mode_can_be_trained(saved):
    net, path = saved
    head = nn.Linear(8, 3)
    with torch.inference_mode():
        net.load_task(path, "lazy")
        net.add_task("new", head)
    for name in ("lazy", "new"):
        net[name].load_state_dict(net[name].state_dict())
        with net.task(name):
            net(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_backbone_that_has_changed_is_told_when_a_task_is_saved(saved):
    net, path = saved
    net.load_state_dict(net.state_dict())
    net.save_task("t", path)  # the same values
    with torch.no_grad():
        net.backbone.conv1.weight[0, 0, 0, 0] += 1e-6
        net.backbone.bn1.running_mean.add_(1)
    with pytest.warns(
        UserWarning, match=r"2 tensors of the backbone have changed since .*\(conv1.weight, bn1.running_mean\)"
    ):
        net.save_task("t", path)
    half = network().bfloat16()
    half.add_task("t", nn.Linear(8, 3, dtype=torch.bfloat16))
    half.save_task("t", path)  # another dtype is none


@pytest.mark.parametrize("other", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)])
def test_a_norm_of_another_kind_is_not_saved(other, saved):
    net, path = saved
    layer = next(iter(net["t"].norms))
    net["t"].norms[layer] = other
    with pytest.raises(StateError, match=f"task 't': its norm .* is a {type(other).__name__} with .* has a BatchNorm2d"):
        net.save_task("t", path)
    assert tn.read_task(path).name == "t"


def test_a_backbone_that_has_changed_behind_the_counters_has_another_hash(saved):
    net, path = saved
    before = net.identity()["stored"]
    net.backbone.conv1.weight.data.add_(1)
    assert net.identity()["stored"] != before
    with pytest.warns(UserWarning, match="have changed since it was adapted"):
        net.save_task("t", path)


@pytest.mark.parametrize("act", ["read", "write"])
def test_a_writer_that_is_killed_between_two_versions_leaves_the_one_before(saved, act, monkeypatch):
    net, path = saved
    (path / "notes.txt").write_text("mine")
    before = net["t"].state_dict()
    path.rename(path.with_name(".t.0badcafe.old"))  # as far as it came
    path.with_name(".t.0badcafe").mkdir()
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    if act == "write":
        net.save_task("t", path)
    file = tn.read_task(path)
    assert all(torch.equal(tensor, before[f"head.{name}"]) for name, tensor in file.head.items())
    assert (path / "notes.txt").read_text() == "mine"


def test_a_task_that_was_read_is_loaded_without_its_folder(saved):
    net, path = saved
    file = tn.read_task(path)
    one, two = net.load_task(file, "one"), net.load_task(file, "two")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), net["t"].state_dict().values(), strict=True))
    held = {tensor.data_ptr() for tensor in two.state_dict().values()}
    assert not held & {tensor.data_ptr() for tensor in (*one.state_dict().values(), *file.tensors[0][1].factors().values())}


def test_files_and_folders_have_the_rights_that_the_process_gives(saved, tmp_path):
    net, _ = saved
    before = os.umask(0o027)
    try:
        net.save_task("t", tmp_path / "u")
    finally:
        os.umask(before)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("u", "u/task.json")] == ["0o750", "0o640"]


def test_classes_that_are_no_list_are_refused(saved, tmp_path):
    net, _ = saved
    net["t"].classes = 3
    with pytest.raises(StateError, match="its classes should be names"):
        net.save_task("t", tmp_path / "u")


def test_what_is_moved_aside_of_another_task_is_left_alone(saved, monkeypatch):
    net, path = saved
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    other = path.with_name(f".{path.name}.v2.0badcafe.old")
    path.rename(other)
    with pytest.raises(TaskFileError, match="is no task folder"):
        tn.read_task(path)
    net.save_task("t", path)
    assert tn.read_task(other).name == "t"


def test_a_version_that_a_killed_writer_did_not_tidy_up_does_not_come_back(saved, monkeypatch):
    net, path = saved
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    stale = path.with_name(f".{path.name}.0badcafe.old")
    shutil.copytree(path, stale)
    (stale / "notes.txt").write_text("mine")
    net.save_task("t", path)
    assert not stale.exists()
    assert (path / "notes.txt").read_text() == "mine"
    shutil.rmtree(path)
    with pytest.raises(TaskFileError, match="is no task folder"):
        tn.read_task(path)


def test_several_writers_of_one_folder_all_write(tmp_path):
    path = tmp_path / "t"
    atomic.write_folder(path, {"m": "0"}, mark="m")
    (path / "notes.txt").write_text("mine")

    def write(number):
        for i in range(50):
            atomic.write_folder(path, {"m": f"{number} {i}", "other": "x" * i}, mark="m")

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(4))) == [None] * 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t"]
    assert sorted(entry.name for entry in path.iterdir()) == ["m", "notes.txt", "other"]


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_what_is_no_name_of_a_file_is_refused(path):
    with pytest.raises(WriteError, match="cannot write"):
        atomic.write_file(path, "")
