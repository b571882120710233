"""ResNet-18 with the stem for small images."""

from __future__ import annotations

import pytest
import torch

import fastmem.models.resnet as resnet
from fastmem.errors import InputError
from fastmem.models import build_model, count_parameters


def test_has_the_size_known_from_the_literature() -> None:
    assert count_parameters(build_model("resnet18", (3, 32, 32), 10, seed=0)) == 11_173_962


def test_keeps_the_resolution_in_its_stem() -> None:
    model = build_model("resnet18", (3, 32, 32), 10, seed=0)
    seen = {}
    for name in ("layer1", "layer4"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: tuple(out.shape[-2:])}))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == {"layer1": (32, 32), "layer4": (4, 4)}


def test_without_torchvision_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(resnet, "import_torchvision", missing)
    with pytest.raises(InputError, match=r"resnet18 comes from torchvision \(No module.*install torchvision, or take"):
        build_model("resnet18", (3, 32, 32), 10, seed=0)
