"""The small vision transformer."""

from __future__ import annotations

import pytest
import torch

from fastmem.errors import InputError
from fastmem.models import build_model


@pytest.mark.parametrize(("shape", "words"), [((1, 8, 8), 4), ((1, 28, 28), 49), ((3, 32, 32), 64), ((2, 6, 6), 9)])
def test_it_takes_images_of_any_channels(shape: tuple[int, ...], words: int) -> None:
    model = build_model("vit", shape, 5, seed=1)
    assert model(torch.randn(3, *shape)).shape == (3, 5)
    assert model.encoder.pos_embedding.shape[1] == words + 1  # type: ignore[union-attr, index]
    again = build_model("vit", shape, 5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_gradients_reach_every_weight_from_the_start() -> None:
    model = build_model("vit", (1, 8, 8), 4, seed=0, depth=2, width=16, heads=2)
    model(torch.randn(6, 1, 8, 8)).logsumexp(1).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    for shape, options, word in (
        ((64,), {}, "square"),
        ((1, 8, 6), {}, "square"),
        ((1, 8, 8), {"patch": 3}, "patch"),
        ((1, 8, 8), {"heads": 3}, "width"),
        ((1, 8, 8), {"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(InputError, match=word):
            build_model("vit", shape, 4, 0, **options)
