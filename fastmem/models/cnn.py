"""The two-convolution network of membership-inference papers (Salem et al. 2019; Hintersdorf et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.ops.relu_max_pool import relu_max_pool

__all__ = ["CNN"]


class CNN(nn.Module):
    """Twice a 5x5 convolution (same padding), ReLU and 2x2 max pooling; then a hidden layer and the output.

    At 3 x 32 x 32 the hidden layer reads 2,048 values, as published; at 1 x 28 x 28 it reads 1,568.

    Args:
        input_shape: (C, H, W), at least 4 pixels high and wide.
        num_classes: Width of the output.
        channels: Width of both convolutions.
        hidden: Width of the hidden layer.
    """

    channels_last = True  # gives the same function, faster

    def __init__(self, input_shape: Sequence[int], num_classes: int, channels: int = 32, hidden: int = 128) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise InputError(
                "model", f"cnn on samples of shape {list(input_shape)}", "it takes images [C, H, W] of at least 4 x 4"
            )
        depth, height, width = input_shape
        self.conv1 = nn.Conv2d(depth, channels, 5, padding=2)
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=2)
        self.hidden = nn.Linear(channels * (height // 4) * (width // 4), hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        x = relu_max_pool(self.conv1(x))
        x = relu_max_pool(self.conv2(x))
        return self.output(F.relu(self.hidden(x.flatten(1))))
