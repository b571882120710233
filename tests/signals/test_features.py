"""Features of a layer by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmem.errors import UnknownNameError
from fastmem.models import build_model
from fastmem.signals.features import layer_names, record_features

_NORMALISATION = torch.zeros(1), torch.ones(1)


def test_the_penultimate_layer_is_what_the_last_linear_one_reads() -> None:
    model = build_model("mlp", (1, 4, 4), 3, 0, hidden=(7, 5))
    x = torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8)
    found = record_features(model, x, ("penultimate", "logits", "layers.4"), _NORMALISATION)
    with torch.no_grad():
        hidden = model.layers[:-1](x.float() / 255)  # type: ignore[index, operator]
        np.testing.assert_allclose(found["penultimate"], hidden, atol=1e-6)
        np.testing.assert_allclose(found["logits"], model(x.float() / 255), atol=1e-6)
    np.testing.assert_allclose(found["layers.4"].clip(min=0), found["penultimate"], atol=1e-6)


def test_maps_of_an_image_are_averaged() -> None:
    model = build_model("cnn", (1, 8, 8), 3, 0, channels=6)
    found = record_features(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ("conv1",), _NORMALISATION)
    assert found["conv1"].shape == (2, 6)
    assert model.training  # as it was


def test_an_unknown_layer_lists_the_names() -> None:
    model = build_model("cnn", (1, 8, 8), 3, 0)
    assert layer_names(model) == ["conv1", "conv2", "hidden", "output"]
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'conv1'.*conv1, conv2, hidden, logits, output, penultimate"
    ):
        record_features(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ("conv_1",), _NORMALISATION)
