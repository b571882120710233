"""Wide residual network with pre-activation blocks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import InputError

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """WRN-``depth``-``widen``: a 3x3 stem, three groups of (depth - 4) / 6 blocks, pooling and a linear output.

    Args:
        input_shape: (C, H, W).
        num_classes: Width of the output.
        depth: Number of convolutions along the path, 6 n + 4.
        widen: Factor on the widths 16, 32 and 64 of the groups.
        dropout: Share of activations dropped between the two convolutions of a block.
    """

    channels_last = True

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, depth: int = 28, widen: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise InputError("model", f"wrn28-2 on samples of shape {list(input_shape)}", "it takes images [C, H, W]")
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise InputError("depth, widen", f"{depth}, {widen}", "depth is 10, 16, 22, 28, ..., widen at least 1")
        self.stem = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width = 16
        for group, size in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for position in range((depth - 4) // 6):
                stride = 2 if group > 0 and position == 0 else 1
                blocks.append(_Block(width, size, stride, dropout))
                width = size
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.output = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.output(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))); where the shape changes, a 1x1 convolution of ReLU(norm(x)) for x."""

    def __init__(self, width: int, size: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, size, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(size)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.dropout = dropout
        same = width == size and stride == 1
        self.shortcut = None if same else nn.Conv2d(width, size, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        residual = F.relu(self.norm2(self.conv1(active)))
        if self.dropout:
            residual = F.dropout(residual, self.dropout, self.training)
        return self.conv2(residual) + (x if self.shortcut is None else self.shortcut(active))
