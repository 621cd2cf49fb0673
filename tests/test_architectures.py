"""Real architectures, and the published counts."""

import pytest
import torch
from torch import nn

import tensornet as tn
from tensornet.counting import count_tasks
from tests.toys import trained


def check(backbone, x, config, width, tasks=("a", "b")):
    backbone.eval()
    with torch.no_grad():
        before = backbone(x)
    net = tn.adapt(backbone, config)
    for i, name in enumerate(tasks):
        net.add_task(name, nn.Linear(width, 3 + i))
    with torch.no_grad():
        assert torch.equal(net(x), before)
        for i, name in enumerate(tasks):
            trained(net[name], scale=0.05, seed=i)
        rows = net(x, tasks=[tasks[i % len(tasks)] for i in range(len(x))])
        for i, name in enumerate(tasks):
            with net.task(name):
                y = net(x)
            torch.testing.assert_close(net.merged(name)(x), y, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(rows[i], y[i], rtol=1e-3, atol=1e-3)
    net.train()
    net.set_task(tasks[0])
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net[tasks[0]].parameters())
    return net


def test_resnet50_counts_are_the_published_ones(torchvision):
    with torch.device("meta"):
        backbone = torchvision.models.resnet50()
    five = count_tasks(backbone, tn.AdaptConfig("cp", rank=50), tasks=5)
    assert (five.base, five.deltas, five.norms) == (23_454_912 + 53_120, 50 * 49_320, 53_120)
    assert round(five.ratio, 3) == 1.536
    assert round(count_tasks(backbone, tn.AdaptConfig("cp", rank=1), tasks=1).ratio, 4) == 1.0044


def test_resnet50(torchvision):
    torch.manual_seed(0)
    net = check(torchvision.models.resnet50(), torch.randn(2, 3, 64, 64), tn.AdaptConfig("cp", rank=8), 2048)
    assert net.head_path == "fc"
    assert len(net.plans) == 53
    assert len(net["a"].own_norms()) == 53


def test_mobilenet_v3_has_its_head_in_a_sequential(torchvision):
    net = check(torchvision.models.mobilenet_v3_small(), torch.randn(2, 3, 32, 32), tn.AdaptConfig("tucker", rank=4), 1024)
    assert net.head_path == "classifier.3"


def test_torchvision_vision_transformer(torchvision):
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
    nn.init.normal_(vit.heads.head.weight)
    net = check(vit, torch.randn(2, 3, 32, 32), tn.AdaptConfig("tt", rank=4), 16)
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in net["a"].plans


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_s3_tiny_224"])
def test_timm(timm, name):
    options = {"img_size": 32, "num_classes": 5, "pretrained": False} if "convnext" not in name else {"num_classes": 5}
    if "swin" in name:
        options |= {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4}
    else:
        options |= {"depths": (1, 1, 1, 1)} if "convnext" in name else {"depth": 2}
    backbone = timm.create_model(name, **options)
    config = tn.AdaptConfig("cp", rank=4, exclude=r".*cpb_mlp.*") if "cpb" in str(backbone) else tn.AdaptConfig("cp", rank=4)
    check(backbone, torch.randn(2, 3, 32, 32), config, backbone.num_features)


def test_transformers_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4
    )
    net = tn.adapt(transformers.BertForSequenceClassification(config).eval(), tn.AdaptConfig("cp", rank=2))
    assert net.head_path == "classifier"
    for i, name in enumerate("ab"):
        trained(net.add_task(name, nn.Linear(16, 3 + i)), scale=0.05, seed=i)
    inputs = {"input_ids": torch.randint(50, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    with torch.no_grad():
        rows = net(**inputs, tasks=["a", "b", "a", "b"])
        for i, name in enumerate("abab"):
            with net.task(name):
                torch.testing.assert_close(rows[i]["logits"], net(**inputs)["logits"][i], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("folding", ["layer", "depth"])
def test_transformers_gpt2(folding, tmp_path):
    """Its linear layers have their weights the other way round."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0
    )

    def network():
        torch.manual_seed(0)
        return tn.adapt(transformers.GPT2ForSequenceClassification(config).eval(), tn.AdaptConfig("cp", 2, folding=folding))

    net = network()
    assert "transformer.h.1.mlp.c_fc" in {member.target.name for plan in net.plans for member in plan.fold.members}
    trained(net.add_task("a", nn.Linear(16, 3)), scale=0.1)
    net.save_task("a", tmp_path / "a")
    x = torch.randint(1, 50, (4, 7))
    net.set_task("a")
    y = net(x).logits
    y.sum().backward()
    assert all(p.grad is not None for p in net["a"].parameters())
    with torch.no_grad():
        torch.testing.assert_close(net.merged("a")(x).logits, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x, tasks=["a", None, "a", None])[0]["logits"], y[0], rtol=1e-4, atol=1e-5)
        other = network()
        other.load_task(tmp_path / "a")
        other.set_task("a")
        assert torch.equal(other(x).logits, net(x).logits)


def test_the_real_backbones(data):
    for entry, width, size in (("resnet20", 64, 32), ("mobilenet_v2_035", 1280, 64)):
        backbone = tn.load_backbone(f"hub:backbones:{entry}", root=data)
        net = check(backbone, torch.randn(2, 3, size, size), tn.AdaptConfig("cp", rank=4), width)
        if entry == "resnet20":
            counts = tn.AdaptConfig("cp", rank=16)
            task = net.add_task("sixteen", nn.Linear(64, 7), counts).parameter_counts()
            assert (task["deltas"], task["norms"]) == (23_776, 1_376)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_classifiers_of_transformers_serve_a_mixed_batch_in_one_pass(kind):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}
    if kind == "bert":
        backbone = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **small))
        ids, lengths = torch.randint(1, 50, (6, 7)), torch.tensor([7, 3, 5, 7, 2, 4])
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(7) < lengths[:, None]).long()}
    else:
        backbone = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **small))
        inputs = {"pixel_values": torch.randn(6, 3, 8, 8)}
    net = tn.adapt(backbone.eval(), tn.AdaptConfig(rank=2))
    for i, name in enumerate("abc"):
        trained(net.add_task(name, nn.Linear(16, 2 + i)), seed=i)
    calls, names = [], list("abcabc")
    next(m for path, m in net.backbone.named_modules() if path.endswith(".0")).register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    with torch.no_grad():
        rows = net.eval()(**inputs, tasks=names)
        assert calls == [1]
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            with net.task(name):
                alone = net(**{key: value[i : i + 1] for key, value in inputs.items()})
            torch.testing.assert_close(row.logits, alone.logits[0], rtol=1e-4, atol=1e-5)
