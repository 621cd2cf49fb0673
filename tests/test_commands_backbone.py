"""Verbs that need a backbone take its weights and the arguments that it is built with, as a recipe does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensornet as tn
from tensornet.backbones import load_backbone
from tests.commands import HUB, ran, refused
from tests.toys import trained

SOURCE, OPTIONS = "hub:hub:tiny", {"classes": 3}


@pytest.fixture
def made(tmp_path):
    """A backbone with three classes and weights of its own, and a task of it whose norms hardly changed."""
    (tmp_path / "hub").symlink_to(HUB)
    torch.manual_seed(1)
    backbone = load_backbone(SOURCE, root=tmp_path, options=OPTIONS)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_file(backbone.state_dict(), tmp_path / "own.safetensors")
    net = tn.adapt(backbone, tn.AdaptConfig("cp", rank=2), name=SOURCE)
    trained(net.add_task("t", nn.Linear(32, 2)))
    for name, norm in net["t"].own_norms().items():
        norm.load_state_dict(net.backbone.get_submodule(name).state_dict())
    net.save_task("t", tmp_path / "t")
    return net, ("--data", tmp_path, "--weights", "own.safetensors", "--option", "classes=3"), tmp_path


def test_merge(made):
    net, own, folder = made
    ran("merge", folder / "t", *own, "--out", folder / "m.safetensors")
    found = load_file(folder / "m.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in net.merged("t").state_dict().items())
    assert "do not fit the network" in refused("merge", folder / "t", *own[:4], "--out", folder / "n.safetensors")
    said = refused("merge", folder / "t", "--data", folder, "--option", "width=2", "--out", folder / "n.safetensors")
    assert "cannot be built: TypeError" in said
    assert "options of its recipe's [backbone] are --option here" in said


def test_export(made):
    _, own, folder = made
    told = json.loads(ran("export", folder / "t", *own, "--out", folder / "lora", "--json"))
    written = load_file(folder / "lora/adapter_model.safetensors")
    assert sum(layer["parameters"] for layer in told["layers"]) == sum(tensor.numel() for tensor in written.values())
    assert "LoRA" in ran("export", folder / "t", *own, "--out", folder / "lora")
    assert "do not fit the network" in refused("export", folder / "t", *own[:4], "--out", folder / "no")
    assert not (folder / "no").exists()


def test_extract(made):
    net, own, folder = made
    tuned = load_backbone(SOURCE, root=folder, options=OPTIONS, weights="own.safetensors")
    with torch.no_grad():
        tuned[0].weight += 0.1
    save_file(tuned.state_dict(), folder / "tuned.safetensors")
    ran("extract", folder / "tuned.safetensors", "--backbone", SOURCE, *own, "--rank", 1, "--out", folder / "e")
    net.load_task(folder / "e", "e")
    x = torch.randn(2, 3, 12, 12)
    net.set_task("e")
    assert torch.allclose(net.eval()(x), tuned.eval()(x), atol=1e-4)


def test_prune(made):
    _, own, folder = made
    said = json.loads(ran("prune", folder / "t", "--norms", 0.05, *own, "--out", folder / "p", "--json"))
    assert said["norms_returned"].keys() == {"1", "4"}
    assert "which only --norms looks at" in refused("prune", folder / "t", "--keep", 1, *own, "--out", folder / "q")
    unnamed = tn.adapt(
        load_backbone(SOURCE, root=folder, options=OPTIONS, weights="own.safetensors"), tn.AdaptConfig(rank=2)
    )
    trained(unnamed.add_task("t", nn.Linear(32, 2)))
    unnamed.save_task("t", folder / "u")
    said = refused("prune", folder / "u", "--norms", 0.05, *own, "--out", folder / "q")
    assert "--backbone names it where the task does not" in said
    ran("prune", folder / "u", "--norms", 0.05, "--backbone", SOURCE, *own, "--out", folder / "q")


def test_merge_a_head_of_a_kind_that_no_file_describes(made):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Sequential(nn.Linear(32, 4), nn.BatchNorm1d(4)), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.scale * self.inner(x)

    net, own, folder = made
    trained(net.add_task("odd", Odd()))
    net.save_task("odd", folder / "odd")
    ran("merge", folder / "odd", *own, "--out", folder / "m.safetensors")
    found, wanted = load_file(folder / "m.safetensors"), net.merged("odd").state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_extract_takes_a_head_that_is_named(made):
    _, own, folder = made
    backbone = load_backbone(SOURCE, root=folder, options=OPTIONS, weights="own.safetensors")
    head = [path for path, module in backbone.named_modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        backbone.get_submodule(head).weight += 1
    save_file(backbone.state_dict(), folder / "tuned.safetensors")
    args = ("extract", folder / "tuned.safetensors", "--backbone", SOURCE, *own, "--decomposition", "none")
    told = json.loads(ran(*args, "--head", head, "--out", folder / "e", "--json"))
    assert told["parameters"]["head"] == sum(p.numel() for p in backbone.get_submodule(head).parameters())


def test_the_parameters_of_layers_are_together_those_of_the_deltas(tmp_path):
    net = tn.adapt(
        nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3)), nn.Flatten(), nn.Linear(64, 2)),
        tn.AdaptConfig("cp", rank=1, folding="depth", targets=r"[012]"),
    )
    trained(net.add_task("t"))
    net.save_task("t", tmp_path / "t")
    told = json.loads(ran("inspect", tmp_path / "t", "--json"))
    shares = [tensor["parameters"] for tensor in told["tensors"]]
    assert told["parameters"]["deltas"] == 4 + 4 + 9 + 3 == sum(shares)
    assert max(shares) - min(shares) <= 1


def test_count_and_inspect(made):
    _, own, folder = made
    counted = [
        json.loads(ran("inspect", "--count", SOURCE, "--data", folder, "--rank", 1, *option, "--json"))["base"]
        for option in ((), own[4:])
    ]
    assert counted[0] == counted[1], "the head is no part of the backbone"
    assert "cannot be built: TypeError" in refused("inspect", "--count", SOURCE, "--data", folder, "--option", "widht=2")
    assert "expected key=value" in refused("inspect", "--count", SOURCE, "--option", "width", code=2)
    assert "--rank, --tasks: only with --count" in refused("inspect", folder / "t", "--rank", 3, "--tasks", 2, code=2)
