"""Networks for the tests of lth_sparse.nn.channels: each exercises another way in which channels are coupled."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention as it is often written: one layer for q, k and v, heads split off by a view."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads, self.fused = heads, fused
        self.register_buffer("causal", torch.ones(16, 16).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            part.view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
            scores = torch.where(self.causal[:length, :length], scores, float("-inf"))
            y = F.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class HandWritten(nn.Module):
    """A small GPT: embeddings (tied to the head), positions, blocks before their norms."""

    def __init__(self, width: int = 24, heads: int = 3, tokens: int = 19, fused: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.ModuleList(Attention(width, heads, fused) for _ in range(2))
        self.up = nn.Linear(width, 37)
        self.down = nn.Linear(37, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions[:, : x.shape[1]]
        for norm, attention in zip(self.norms, self.attention, strict=False):
            x = x + attention(norm(x))
            x = x + self.down(F.gelu(self.up(x)))
        return self.head(self.norms[2](x))


class Gated(nn.Module):
    """SwiGLU: one layer's outputs are halved and the halves multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(9, 16)
        self.up = nn.Linear(16, 2 * 11)
        self.down = nn.Linear(11, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = self.up(x).chunk(2, dim=-1)
        return self.head(x + self.down(F.silu(a) * b))


class Squeezed(nn.Module):
    """Depthwise, grouped and pointwise convolutions, PReLU, GroupNorm, InstanceNorm, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.prelu = nn.PReLU(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.instance = nn.InstanceNorm2d(12, affine=True)
        self.grouped = nn.Conv2d(12, 18, 3, groups=3)
        self.group_norm = nn.GroupNorm(3, 18)
        self.widen = nn.Conv2d(18, 36, 1, groups=18)
        self.squeeze = nn.Conv2d(36, 5, 1)
        self.excite = nn.Conv2d(5, 36, 1)
        self.head = nn.Linear(36 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.depthwise(self.prelu(self.stem(x))))
        x = F.relu(self.widen(self.group_norm(self.grouped(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(F.adaptive_avg_pool2d(x * gate, 2).flatten(1))


class Shuffled(nn.Module):
    """ShuffleNet's unit: half of the channels pass, the other half is convolved, and both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for _ in range(2):
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, self.branch(right)], dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x).mean((2, 3))


class Dense(nn.Module):
    """DenseNet's concatenations, a padded shortcut (ResNet's option A), and channels beside the model's input."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 7, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(7)
        self.two = nn.Conv2d(10, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.three = nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.norm1(self.one(x)))], 1)
        x = self.norm2(torch.cat([self.two(x), x], 1))
        y = self.three(F.relu(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(y.amax((2, 3)))


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 14, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(14) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 4))
        self.channels = nn.Sequential(nn.Linear(14, 23), nn.GELU(), nn.Linear(23, 14))
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(x.mean(1))


class Vision(nn.Module):
    """ViT: patches, a class token, one view for q, k and v of all heads with norms of their own, a scaled branch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 5, 12))
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.out = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, length, width = x.shape
        x = torch.cat((self.token.expand(n, -1, -1), x), 1) + self.positions
        qkv = self.qkv(self.norm(x)).reshape(n, length + 1, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        x = x + self.scale * self.out(y.transpose(1, 2).reshape(n, length + 1, width))
        return self.head(x[:, 0])


def encoder() -> nn.Module:
    """torch's own transformer blocks, before and after the norm."""
    blocks = [
        nn.TransformerEncoderLayer(16, 4, 30, dropout=0.0, batch_first=True, norm_first=first)
        for first in (False, True)
    ]
    return nn.Sequential(nn.Linear(6, 16), *blocks, nn.Linear(16, 3))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere: norms and running statistics that start alike would hide a wrong permutation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
                tensor.copy_(tensor + noise if tensor.dim() > 1 else noise + 1.0)
    return model
