"""Tasks as adapters of PEFT: what its own classes load computes what the task computes."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import tensornet as tn
from tensornet.errors import StateError, UnknownNameError, WriteError
from tests.toys import Encoder, ResNet, Transformer, trained

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:peft")


def exported(backbone, path, config, head=None):
    """The adapted network, what PEFT makes of its exported task, and what was written."""
    plain = copy.deepcopy(backbone)
    net = tn.adapt(backbone, config).eval()
    trained(net.add_task("a", head))
    net.set_task("a")
    layers = tn.export_task(net, "a", path)
    return net, peft.PeftModel.from_pretrained(plain, str(path)).eval(), layers


def same(net, model, x):
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)


class Embedded(Encoder):
    """An encoder layer after a linear one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.head = self._modules.pop("head")  # the last one

    def forward(self, x):
        return super().forward(self.embed(x))


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt", "low_rank"])
@pytest.mark.parametrize("backbone", [ResNet, Transformer, Embedded])
def test_peft_computes_the_task(decomposition, backbone, tmp_path):
    x = torch.randn(4, 3, 8, 8) if backbone is ResNet else torch.randn(4, 5, 8)
    x = torch.randint(11, (4, 5)) if backbone is Transformer else x
    classes = 5 if backbone is ResNet else 4
    config = tn.AdaptConfig(decomposition, rank=2, scale=0.5)
    net, model, layers = exported(backbone().eval(), tmp_path / "a", config, nn.Linear(8, classes))
    same(net, model, x)
    with model.disable_adapter():
        net.set_task(None)
        same(net, model, x)
    lost = [layer.layer for layer in layers if layer.rank is None and "linear" in layer.layer]
    assert bool(lost) == (backbone is Embedded), (
        "a fused encoder layer would read the weight of a LoRA layer without its LoRA"
    )
    stored = load_file(tmp_path / "a/adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(layer.parameters for layer in layers)
    assert {layer.rank for layer in layers} == {2, None}


def test_peft_merges_it_into_ordinary_layers(tmp_path):
    net, model, _ = exported(ResNet().eval(), tmp_path / "a", tn.AdaptConfig("tucker", rank=3), nn.Linear(8, 5))
    same(net, model.merge_and_unload(), torch.randn(3, 3, 8, 8))


class Odd(nn.Module):
    """Layers that PEFT's LoRA would compute wrongly or refuse, and paths that end in one another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 3, padding=2, dilation=2), "conv_": nn.Conv2d(6, 6, 1)})
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.mirrored = nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect", stride=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.norm, self.other_norm = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.inner["conv_"](self.inner["conv"](self.norm(self.conv(x)).relu()))
        return self.fc(self.other_norm(self.up(self.mirrored(self.depthwise(x)))).mean((2, 3)))


@pytest.mark.parametrize("norms", ["task", ["other_norm"], r"norm", "shared"])
def test_what_lora_cannot_say_is_written_whole(norms, tmp_path):
    net, model, layers = exported(Odd().eval(), tmp_path / "a", tn.AdaptConfig("cp", rank=2, norms=norms), nn.Linear(4, 2))
    same(net, model, torch.randn(2, 3, 8, 8))
    found = {layer.layer: layer.rank for layer in layers}
    assert {layer for layer, rank in found.items() if rank is not None} == {"conv", "inner.conv_"}
    assert {"inner.conv", "depthwise", "mirrored", "up", "fc"} <= found.keys()
    assert ("other_norm" in found) == (norms != "shared"), "the path of one norm ends as that of the other: both, or neither"
    assert ("norm" in found) == (norms in ("task", "norm"))
    assert list(found) == [path for path, _ in net.backbone.named_modules() if path in found], "in network order"


@given(st.sampled_from(["cp", "tucker", "tt", "low_rank"]), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))
def test_every_layer_has_its_own_rank(decomposition, first, second, kernel):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.block = nn.Conv2d(4, 6, kernel), nn.ModuleDict({"conv": nn.Conv2d(6, 6, kernel)})
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.block["conv"](self.conv(x)).mean((2, 3)))

    layers = {"conv": {"rank": first}, "block.conv": {"rank": second}}
    net = tn.adapt(Two().eval(), tn.AdaptConfig(decomposition, layers=layers))
    trained(net.add_task("a", nn.Linear(6, 3)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tn.export_task(net, "a", folder / "a")
        model = peft.PeftModel.from_pretrained(net.merged(None), str(folder / "a")).eval()
        net.set_task("a")
        same(net, model, torch.randn(2, 4, 7, 7))


def test_refusals(tmp_path):
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig("kronecker", rank=2))
    net.add_task("a", nn.Linear(8, 5))
    with pytest.raises(StateError, match="no delta that PEFT's LoRA can say"):
        tn.export_task(net, "a", tmp_path / "a")
    net.add_task("b", nn.Sequential(nn.ReLU(), nn.Linear(8, 5)), tn.AdaptConfig("cp", rank=2))
    with pytest.raises(StateError, match=r"its 'fc' has the tensors 1.weight, 1.bias"):
        tn.export_task(net, "b", tmp_path / "a")
    with pytest.raises(UnknownNameError):
        tn.export_task(net, "c", tmp_path / "a")
    alone = tn.adapt(nn.Linear(4, 4))
    alone.add_task("a")
    with pytest.raises(StateError, match="one layer, which PEFT cannot replace"):
        tn.export_task(alone, "a", tmp_path / "a")
    net.add_task("d", config=tn.AdaptConfig("cp", rank=2))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="holds other things"):
        tn.export_task(net, "d", tmp_path / "a")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "notes.txt"]


def test_the_config_says_the_ranks_by_whole_paths(tmp_path):
    config = tn.AdaptConfig("cp", rank=2, layers={"conv1": {"rank": 3}})
    exported(ResNet().eval(), tmp_path / "a", config, nn.Linear(8, 5))
    written = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["rank_pattern"]) == (2, 2, {"^conv1": 3})
    assert written["alpha_pattern"] == written["rank_pattern"]
    assert "fc" in written["modules_to_save"]


class Nested(nn.Module):
    """A layer inside another whose path ends in that of a third."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out_proj = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        return self.fc(self.out_proj(self.attention(x, x, x)[0]).mean(1))


def test_layers_that_peft_cannot_tell_apart_are_refused(tmp_path):
    net = tn.adapt(Nested(), tn.AdaptConfig("cp", rank=2))
    net.add_task("a", nn.Linear(8, 3))
    with pytest.raises(StateError, match=r"attention\.out_proj lies in attention, and PEFT can keep but one"):
        tn.export_task(net, "a", tmp_path / "a")


def test_a_layer_in_two_places_is_refused(tmp_path):
    block = nn.Linear(8, 8)
    net = tn.adapt(nn.Sequential(nn.Linear(8, 8), block, nn.ReLU(), block, nn.Linear(8, 2)), tn.AdaptConfig("cp", rank=2))
    net.add_task("a", nn.Linear(8, 3))
    with pytest.raises(StateError, match="1 is also called 3, and PEFT reaches but one"):
        tn.export_task(net, "a", tmp_path / "a")


def test_the_card_names_the_head_that_the_backbone_needs_if_any(tmp_path):
    exported(ResNet().eval(), tmp_path / "a", tn.AdaptConfig("cp", rank=2), nn.Linear(8, 5))
    assert "`fc.weight` of shape (5, 8)" in (tmp_path / "a/README.md").read_text()
    exported(ResNet().eval(), tmp_path / "b", tn.AdaptConfig("cp", rank=2, targets=".*"))
    assert "of shape" not in (tmp_path / "b/README.md").read_text(), "a delta of the backbone's own head"
