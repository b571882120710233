"""The Laplace approximation equals the package's own predictions, and knows what it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastmem.defenses.laplace import LastLayerLaplace, require_linear_output, require_package
from fastmem.errors import InputError


@pytest.fixture(scope="module")
def package() -> Any:
    try:
        return require_package()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def fitted(package: Any, request: pytest.FixtureRequest) -> LastLayerLaplace:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4, bias=request.param))
    x, y = torch.randn(200, 6), torch.randint(0, 4, (200,))
    held_out = torch.randn(50, 6), torch.randint(0, 4, (50,))
    return LastLayerLaplace(model, (6,)).fit(x, y, held_out, 5 * torch.randn(50, 6))


def test_variances_are_those_of_the_package(fitted: LastLayerLaplace) -> None:
    x = 3 * torch.randn(30, 6)
    jacobians, _ = fitted._laplace.backend.last_layer_jacobians(x)
    expected = fitted._laplace.functional_variance(jacobians).diagonal(dim1=1, dim2=2)
    _, features = fitted._laplace.model.forward_with_features(x)
    torch.testing.assert_close(fitted._variance(features), expected, rtol=1e-4, atol=1e-5)


def test_predictions_are_those_of_the_package(fitted: LastLayerLaplace) -> None:
    x = 3 * torch.randn(30, 6)
    expected = fitted._laplace(x, pred_type="glm", link_approx="probit")
    torch.testing.assert_close(fitted.logits(x).softmax(dim=1), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(fitted.logits(x)[3:4], fitted.logits(x[3:4])) or torch.allclose(
        fitted.logits(x)[3:4], fitted.logits(x[3:4]), rtol=1e-5
    )


def test_far_away_it_does_not_know(fitted: LastLayerLaplace) -> None:
    """An ordinary network grows surer without end; the probit approximation comes to a limit."""
    x = torch.randn(40, 6)
    plain, _ = fitted._laplace.model.forward_with_features(1e4 * x)
    assert plain.softmax(dim=1).max(dim=1).values.median() > 0.999
    assert fitted.logits(1e4 * x).softmax(dim=1).max(dim=1).values.median() < 0.999
    assert 1 <= fitted.prior_variance <= 1000.001


class _Softmaxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(dim=1)), "ends in LogSoftmax"),
        (nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 4, 1), nn.Flatten()), "ends in Flatten"),
        (_Softmaxed(), "changes the output of its last layer"),
    ],
)
def test_a_model_without_a_linear_output_is_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(InputError, match=f"^calibrations: laplace, but .*{reason}"):
        require_linear_output(model, (6,))


def test_the_last_layer_is_found_and_the_model_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 4)).train()
    assert require_linear_output(model, (6,)) == "2"
    assert model.training
    assert not model[2]._forward_hooks


def test_not_before_it_is_fitted(package: Any) -> None:
    with pytest.raises(InputError, match="not fitted"):
        LastLayerLaplace(nn.Sequential(nn.Linear(6, 4)), (6,)).logits(torch.zeros(1, 6))
