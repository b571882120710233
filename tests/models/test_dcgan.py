"""Shapes of the two networks, and that an image does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch

from fastmem.errors import InputError
from fastmem.models.dcgan import Discriminator, Generator, gan_sides


@pytest.mark.parametrize(("side", "sides"), [(8, [4, 8]), (28, [7, 14, 28]), (32, [4, 8, 16, 32])])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_of_the_papers(side: int, sides: list[int], channels: int) -> None:
    shape = (channels, side, side)
    assert gan_sides(shape) == sides
    images = Generator(shape, latent=5, width=4)(torch.randn(3, 5))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert Discriminator(shape, width=4)(images).shape == (3,)


@pytest.mark.parametrize("shape", [(64,), (1, 8, 10), (1, 6, 6), (1, 27, 27)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^generator: a DCGAN for samples of shape"):
        gan_sides(shape)


def test_images_are_bytes_of_their_own_noise() -> None:
    generator = Generator((1, 8, 8), latent=5, width=4)
    generator(torch.randn(64, 5))
    generator.eval()
    noise = torch.randn(6, 5)
    images = generator.images(noise)
    assert images.dtype == torch.uint8
    assert torch.equal(images[2:3], generator.images(noise[2:3]))
