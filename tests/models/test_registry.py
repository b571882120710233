"""Networks by name and by import path: right shapes, seeded weights, clear refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastmem.errors import InputError, UnknownNameError
from fastmem.models import MODEL_NAMES, build_model, count_parameters

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 13)]
# A vision transformer takes square images only.
TAKEN = [(name, shape) for name in MODEL_NAMES for shape in SHAPES if name != "vit" or shape[1] == shape[2]]


@pytest.mark.parametrize(("name", "shape"), TAKEN, ids=str)
def test_every_network_takes_every_image(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, shape, 7, seed=0)
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_seed_decides_the_weights_and_nothing_else_does(name: str) -> None:
    torch.manual_seed(1)
    first = build_model(name, (3, 8, 8), 4, seed=11).state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after), "building must not draw from the global generator"
    torch.manual_seed(2)
    again, other = (build_model(name, (3, 8, 8), 4, seed=seed).state_dict() for seed in (11, 12))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "mlp"])
def test_convolutions_refuse_feature_vectors(name: str) -> None:
    with pytest.raises(InputError, match=rf"model: {name} on samples of shape \[64\]; it takes images"):
        build_model(name, (64,), 4, seed=0)


def test_an_unknown_network_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        build_model("resnet-18", (3, 8, 8), 4, seed=0)


def test_options() -> None:
    assert count_parameters(build_model("mlp", (64,), 10, seed=0, hidden=(128,))) == 64 * 128 + 128 + 128 * 10 + 10
    with pytest.raises(InputError, match=r"hiden: no option of model mlp; its options: hidden, activation, dropout"):
        build_model("mlp", (64,), 10, seed=0, hiden=(3,))


def test_counting_leaves_out_what_is_not_trained() -> None:
    model = build_model("mlp", (4,), 2, seed=0, hidden=())
    model.register_buffer("extra", torch.zeros(100))
    assert count_parameters(model) == 10
    next(model.parameters()).requires_grad_(False)
    assert count_parameters(model) == 2


MODULE = """
import torch
from torch import nn

class Both(nn.Linear):
    def __init__(self, input_shape, num_classes, extra=0):
        super().__init__(input_shape[0] + 0 * extra, num_classes)

class Neither(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

class Anything(nn.Linear):
    def __init__(self, **options):
        super().__init__(options["input_shape"][0], options["num_classes"])

class Random(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, num_classes))
    def forward(self, x):
        assert not self.training
        return x @ self.weight

class Wide(nn.Linear):
    def __init__(self):
        super().__init__(4, 9)

class Pair(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
    def forward(self, x):
        return super().forward(x), x

class Fails(nn.Module):
    def __init__(self, num_classes):
        raise RuntimeError("no\\nway")

class Misfit(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

def make(num_classes):
    return nn.Linear(4, num_classes)

def not_a_model():
    return 3

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_own_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_own_models", raising=False)
    return "my_own_models"


@pytest.mark.parametrize("name", ["Both", "Neither", "Anything", "Random", "make"])
def test_a_users_own_is_called_with_what_it_takes(mine: str, name: str) -> None:
    model = build_model(f"{mine}:{name}", (4,), 3, seed=5)
    assert model.training
    again = build_model(f"{mine}:{name}", (4,), 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_options_reach_a_users_own(mine: str) -> None:
    build_model(f"{mine}:Both", (4,), 3, seed=0, extra=2)
    with pytest.raises(InputError, match="width: no option of model my_own_models:Neither; its options: none"):
        build_model(f"{mine}:Neither", (4,), 3, seed=0, width=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wide", r"maps 2 samples to torch.float32 \[2, 9\]; it should give floating-point logits \[2, 3\]"),
        ("Pair", "maps 2 samples to tuple"),
        ("Fails", r"could not be built \(RuntimeError: no way\)"),
        ("Misfit", r"fails on a batch \[2, 4\] \(RuntimeError"),
        ("not_a_model", "gave a int"),
        ("number", "is a int"),
        ("Absent", "has no 'Absent'"),
    ],
)
def test_a_users_own_that_does_not_do(mine: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(f"{mine}:{name}", (4,), 3, seed=0)
    assert "\n" not in str(caught.value)
