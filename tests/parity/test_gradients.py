"""Per-sample gradients and their sums as Opacus 1.6.0 and BackPACK 1.7.1 computed them, in float64 to 1e-12.

Two values differ on purpose: Opacus gives the ``padding_idx`` row of an embedding a gradient where autograd gives none
(the stored network has no such row), and BackPACK's squared norms ignore ``groups`` (left out of the stored arrays).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.ops.grad_stats import grad_stats
from fastmem.ops.per_sample_grads import per_sample_grads

EXACT = 1e-12


class Sequences(nn.Module):
    """Embedding, hidden layer and output at each of seven positions."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc1, self.fc2 = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(self.emb(ids))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 5))


def convolutions(norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        *([nn.GroupNorm(4, 8)] if norm else []),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(300, 4),
    )


NETWORKS = {
    "grad_opacus_mlp": mlp,
    "grad_opacus_conv": lambda: convolutions(norm=True),
    "grad_opacus_seq": Sequences,
    "grad_backpack_mlp": mlp,
    "grad_backpack_conv": lambda: convolutions(norm=False),
}


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a sample, summed over positions."""
    found = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")
    return found.view(len(target), -1).sum(1)


@pytest.fixture(params=list(NETWORKS))
def published(request: pytest.FixtureRequest, shared_reference: Path) -> tuple[str, dict[str, Tensor], nn.Module]:
    with np.load(shared_reference / f"{request.param}.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    model = NETWORKS[request.param]()
    model.load_state_dict({name.removeprefix("param/"): v for name, v in arrays.items() if name.startswith("param/")})
    return request.param, arrays, model.double()


def named(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(f"{prefix}/"): value for name, value in arrays.items() if name.startswith(f"{prefix}/")}
    assert found
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_gradients_and_sums(published: tuple[str, dict[str, Tensor], nn.Module]) -> None:
    source, arrays, model = published
    opacus = source.startswith("grad_opacus")
    x = arrays["x"] if source.endswith("seq") else arrays["x"].double()
    gradients = per_sample_grads(model, loss_fn, x, arrays["y"])
    found = grad_stats(model, loss_fn, x, arrays["y"], ("norm", "sum", "sum_sq", "sum_abs"))
    for name, expected in named(arrays, "grad_sample" if opacus else "grad_batch_sum").items():
        assert_close(gradients[name], expected)
    for name, expected in named(arrays, "grad" if opacus else "grad_sum").items():
        assert_close(found.sum[name], expected)
    for name, expected in named(arrays, "sum_sq" if opacus else "sum_grad_squared_sum").items():
        assert_close(found.sum_sq[name], expected)
    if opacus:
        assert_close(found.norm, arrays["norm_total"])
        assert_close(found.norm, arrays["norm_total_fast"])
        for name, expected in named(arrays, "sum_abs").items():
            assert_close(found.sum_abs[name], expected)


@pytest.mark.parametrize("published", ["grad_backpack_mlp", "grad_backpack_conv"], indirect=True)
def test_norms_and_variances_by_parameter(published: tuple[str, dict[str, Tensor], nn.Module]) -> None:
    _, arrays, model = published
    x, y = arrays["x"].double(), arrays["y"]
    for name, expected in named(arrays, "batch_l2_sum").items():
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key == name)
        assert_close(grad_stats(model, loss_fn, x, y, ("norm",)).norm.square(), expected)
    model.requires_grad_(True)
    found = grad_stats(model, loss_fn, x, y, ("sum", "sum_sq"))
    for name, expected in named(arrays, "variance_sum").items():
        assert_close(found.sum_sq[name] / len(y) - (found.sum[name] / len(y)).square(), expected)
