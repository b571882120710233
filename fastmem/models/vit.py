"""A vision transformer for small images (Dosovitskiy et al. 2021, arXiv:2010.11929): torchvision's, of small width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastmem.compat import import_torchvision
from fastmem.errors import InputError

__all__ = ["vit"]


def vit(
    input_shape: Sequence[int],
    num_classes: int,
    patch: int | None = None,
    depth: int = 4,
    heads: int = 4,
    width: int = 64,
    dropout: float = 0.0,
) -> nn.Module:
    """Patches of the image as words of a pre-norm transformer encoder.

    Args:
        input_shape: (C, H, W), square.
        num_classes: Width of the output.
        patch: Side of a patch, a divisor of H; by default 4, or 7 where 4 does not divide it, or 2.
        depth: Encoder blocks.
        heads: Attention heads.
        width: Of a word, a multiple of the heads; the perceptron of a block is twice as wide.
        dropout: Share dropped in training.

    Raises:
        InputError: If samples are not square images, the patch does not divide them, or torchvision does not import.
    """
    if len(input_shape) != 3 or input_shape[1] != input_shape[2]:
        raise InputError(
            "model", f"vit on samples of shape {list(input_shape)}", "it takes images [C, H, H], square ones"
        )
    channels, side, _ = input_shape
    if patch is None:
        patch = next((size for size in (4, 7, 2) if side % size == 0 and side > size), 1)
    if patch < 1 or side % patch:
        raise InputError("patch", f"{patch} for images of {side} x {side}", "give a divisor of the side")
    if depth < 1 or heads < 1 or width < heads or width % heads:
        raise InputError("width", f"{width} with {heads} heads and depth {depth}", "give a multiple of the heads")
    if not 0 <= dropout < 1:
        raise InputError("dropout", f"{dropout}", "give a share from 0 to below 1")
    try:
        models = import_torchvision().models
    except ImportError as error:
        raise InputError(
            "model", f"vit comes from torchvision ({error})", "install torchvision, or take wrn28-2 or cnn"
        ) from error
    model = models.VisionTransformer(
        side, patch, depth, heads, width, 2 * width, dropout=dropout, num_classes=num_classes
    )
    # Its own takes three channels; the initial values are as torchvision draws them for three.
    fan = channels * patch * patch
    model.conv_proj = nn.Conv2d(channels, width, patch, patch)
    nn.init.trunc_normal_(model.conv_proj.weight, std=fan**-0.5)
    nn.init.zeros_(model.conv_proj.bias)  # type: ignore[arg-type]
    # torchvision starts the last layer at zero, in which no gradient reaches the others at first.
    nn.init.trunc_normal_(model.heads.head.weight, std=width**-0.5)
    return model
