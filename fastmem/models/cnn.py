"""The two-convolution network of membership-inference papers (Salem et al. 2019; Hintersdorf et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.models.mlp import is_altered
from fastmem.ops.conv_relu_max_pool import conv_relu_max_pool
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
        dropout: Share of the hidden layer's units dropped in training, and half of it of the pooled maps.
        batch_norm: Normalise over the batch before each ReLU.
    """

    channels_last = True  # gives the same function, faster

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 32,
        hidden: int = 128,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise InputError(
                "model", f"cnn on samples of shape {list(input_shape)}", "it takes images [C, H, W] of at least 4 x 4"
            )
        if not 0 <= dropout < 1:
            raise InputError("dropout", f"{dropout}", "give a share from 0 to below 1")
        depth, height, width = input_shape
        self.dropout = dropout
        self.norm1 = nn.BatchNorm2d(channels) if batch_norm else None
        self.norm2 = nn.BatchNorm2d(channels) if batch_norm else None
        self.norm3 = nn.BatchNorm1d(hidden) if batch_norm else None
        self.conv1 = nn.Conv2d(depth, channels, 5, padding=2)
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=2)
        self.hidden = nn.Linear(channels * (height // 4) * (width // 4), hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        x = _pooled(x, self.conv1, self.norm1)
        x = _pooled(x, self.conv2, self.norm2)
        x = self.hidden(self._drop(x.flatten(1), self.dropout / 2))
        x = F.relu(x if self.norm3 is None else self.norm3(x))
        return self.output(self._drop(x, self.dropout))

    def _drop(self, x: Tensor, share: float) -> Tensor:
        return F.dropout(x, share, self.training) if share else x


def _pooled(x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Tensor:
    """Convolution, ReLU and pooling; in one where nobody looks at or replaces what the convolution gives."""
    if norm is not None:
        # Normalised before it is pooled: a negative scale turns the order round.
        return relu_max_pool(norm(convolution(x)))
    if type(convolution) is not nn.Conv2d or convolution.bias is None or is_altered(convolution):
        return relu_max_pool(convolution(x))
    return conv_relu_max_pool(x, convolution.weight, convolution.bias, (2, 2))
