"""Small backbones with the parts that real ones have."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(width, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Residual, in-place, functional parts between the modules, a head of 5 classes."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.layer2 = nn.Sequential(Block(width, 2))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((-2, -1)))


class Attention(nn.Module):
    """Fused qkv, as in most vision transformers."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Transformer(nn.Module):
    """Token embedding, two pre-norm blocks, mean pooling, a head of 4 classes."""

    def __init__(self, width=8, vocabulary=11, classes=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attn": Attention(width),
                    "norm2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
                }
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x).mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder layer, whose attention reads weights that no forward call reaches."""

    def __init__(self, width=8, classes=4, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.encoder = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        if not self.batch_first:
            x = x.transpose(0, 1)
        y = self.encoder(x)
        return self.head(y.mean(1 if self.batch_first else 0))


def trained(task, scale=0.3, seed=0):
    """Give a task values as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in task.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu").to(p) * scale
            p.copy_(noise if name.startswith("deltas") else p + noise)
        for name, b in task.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator, device="cpu").to(b.dtype) * scale)
            if name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator, device="cpu").to(b.dtype) + 0.5)
    return task
