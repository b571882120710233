"""The perceptron against matrix products written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmem.errors import InputError, UnknownNameError
from fastmem.models.mlp import MLP


def test_is_linear_layers_with_relus_between() -> None:
    model = MLP((2, 3, 4), 5, hidden=(7, 6)).double()
    x = torch.randn(9, 2, 3, 4, dtype=torch.float64)
    weights = [parameter.detach().numpy() for parameter in model.parameters()]
    a = x.reshape(9, 24).numpy()
    for i in (0, 2):
        a = np.maximum(a @ weights[i].T + weights[i + 1], 0)
    np.testing.assert_allclose(model(x).detach(), a @ weights[4].T + weights[5], atol=1e-12)


def test_without_hidden_layers_is_linear() -> None:
    model = MLP((6,), 3, hidden=())
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 6), (3,)]


def test_dropout_acts_in_training_alone() -> None:
    model, x = MLP((6,), 3, hidden=(50,), dropout=0.5), torch.randn(4, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_refuses() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MLP((6,), 3, activation="rellu")
    with pytest.raises(InputError, match="hidden"):
        MLP((6,), 3, hidden=(4, 0))
    with pytest.raises(InputError, match="dropout"):
        MLP((6,), 3, dropout=1.0)


def test_batch_norm_stands_before_each_activation() -> None:
    kinds = [type(layer).__name__ for layer in MLP((4,), 3, hidden=(5, 6), batch_norm=True, dropout=0.1).layers]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2, "Linear"]
