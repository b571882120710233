"""A deep convolutional GAN (Radford, Metz and Chintala 2016, arXiv:1511.06434) for small images.

The image side is halved down to a base of 4 to 7 pixels: 8 -> 4, 28 -> 14 -> 7, 32 -> 16 -> 8 -> 4. Both networks have
one convolution of stride 2 a halving, batch normalisation everywhere but at the image, ReLU in the generator and leaky
ReLU (slope .2) in the discriminator; weights start from N(0, .02).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmem.errors import InputError

__all__ = ["Discriminator", "Generator", "gan_sides"]

_SMALLEST_SIDE = 8
_STEP = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}


def gan_sides(input_shape: Sequence[int]) -> list[int]:
    """The image sides from the base to the image, for example ``[7, 14, 28]``.

    Raises:
        InputError: If samples are not square images whose side is an even number of at least 8.
    """
    square = len(input_shape) == 3 and input_shape[1] == input_shape[2]
    if not square or input_shape[1] < _SMALLEST_SIDE or input_shape[1] % 2:
        raise InputError(
            "generator",
            f"a DCGAN for samples of shape {list(input_shape)}",
            "it makes square images of an even side from 8; give --generator a function or a folder of pictures",
        )
    sides = [int(input_shape[1])]
    while sides[0] % 2 == 0 and sides[0] >= _SMALLEST_SIDE:
        sides.insert(0, sides[0] // 2)
    return sides


class Generator(nn.Module):
    """Images from noise.

    Args:
        input_shape: (C, H, W) of an image, see :func:`gan_sides`.
        latent: Length of the noise vector.
        width: Channels at half the image side; twice as many a halving below it.
    """

    def __init__(self, input_shape: Sequence[int], latent: int = 64, width: int = 32) -> None:
        super().__init__()
        sides = gan_sides(input_shape)
        depths = [width << place for place in range(len(sides) - 1)][::-1]
        self.latent, self.base = latent, (depths[0], sides[0], sides[0])
        self.stem = nn.Sequential(
            nn.Linear(latent, depths[0] * sides[0] ** 2, bias=False), nn.Unflatten(1, self.base), *_active(depths[0])
        )
        layers: list[nn.Module] = []
        for wider, depth in itertools.pairwise(depths):
            layers += [nn.ConvTranspose2d(wider, depth, **_STEP), *_active(depth)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(depths[-1], int(input_shape[0]), **_STEP), nn.Tanh())
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Images in [-1, 1], [B, C, H, W], of standard normal noise [B, latent]."""
        return self.layers(self.stem(noise))

    @torch.no_grad()
    def images(self, noise: Tensor) -> Tensor:
        """The same as uint8; the module should be in eval mode, so that an image does not depend on its neighbours."""
        return ((self(noise) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Discriminator(nn.Module):
    """How real an image looks: a logit, high for real ones.

    Args:
        input_shape: (C, H, W).
        width: Channels after the first convolution; twice as many after each further one.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        sides = gan_sides(input_shape)
        depths = [int(input_shape[0]), *(width << place for place in range(len(sides) - 1))]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(itertools.pairwise(depths)):
            layers.append(nn.Conv2d(before, after, **_STEP))
            if place > 0:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(depths[-1] * sides[0] ** 2, 1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B] of images in [-1, 1]."""
        return self.layers(images)[:, 0]


def _active(depth: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(depth), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
