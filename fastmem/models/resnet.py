"""ResNet-18 for small images: torchvision's network with the stem that CIFAR work uses (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastmem.compat import import_torchvision
from fastmem.errors import InputError

__all__ = ["resnet18"]


def resnet18(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1 and no max pooling: 11.2 million weights at 10 classes.

    Args:
        input_shape: (C, H, W), any size from 1 x 1.
        num_classes: Width of the output.

    Raises:
        InputError: If samples are not images, or torchvision does not import.
    """
    if len(input_shape) != 3:
        raise InputError("model", f"resnet18 on samples of shape {list(input_shape)}", "it takes images [C, H, W]")
    try:
        models = import_torchvision().models
    except ImportError as error:
        raise InputError(
            "model", f"resnet18 comes from torchvision ({error})", "install torchvision, or take wrn28-2 or cnn"
        ) from error
    model = models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.channels_last = True
    return model
