"""A small network, trained enough to have something to forget, and its records."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.defenses import Records


@dataclass
class Trained:
    model: nn.Module
    initial: dict[str, Tensor]
    members: Records
    reference: Records


def train_small(dtype: torch.dtype = torch.float32, batch_norm: bool = False) -> Trained:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        norm = [nn.BatchNorm1d(7)] if batch_norm else []
        model = nn.Sequential(nn.Linear(6, 7), *norm, nn.ReLU(), nn.Linear(7, 3)).to(dtype)
        initial = {name: value.clone() for name, value in model.state_dict().items()}
        x, y = torch.randn(60, 6, dtype=dtype), torch.randint(0, 3, (60,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[:40]), y[:40]).backward()
            optimizer.step()
        optimizer.zero_grad()
    return Trained(model.eval(), initial, Records(x[:40], y[:40]), Records(x[40:], y[40:]))


@pytest.fixture
def trained() -> Trained:
    return train_small()


@pytest.fixture
def trained64() -> Trained:
    return train_small(torch.float64)


@pytest.fixture
def trained_norm() -> Trained:
    return train_small(batch_norm=True)
