"""Steps of perceptrons against torch.optim.SGD on autograd's gradients, in float64, on every instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import explain
from fastmem.ops.mlp_sgd import Dense, Rule, Visit, mlp_sgd

from .implementations import taken, ways

WAYS = ways("mlp_sgd")
RULES = {
    "plain": Rule(),
    "momentum": Rule(momentum=0.9),
    "all": Rule(momentum=0.8, nesterov=True, weight_decay=0.05, label_smoothing=0.2),
}
# Widths around registers and panels of every instruction set; batches that end within a tile.
NETWORKS = {
    "linear": ((3, 2), (1, 2)),
    "small": ((7, 5, 3), (6, 7, 1)),
    "digits": ((64, 128, 10), (64, 63)),
    "odd": ((131, 33, 65, 17), (31, 18, 67)),
    "wide": ((300, 130, 101), (13,)),
    "deep": ((16, 8, 9, 10, 11, 12), (20, 20)),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernel on each instruction set."""
    with taken(request.param):
        yield request.param


def make(widths: tuple[int, ...], sizes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Visit:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layers = [
        Dense(*(part.to(dtype) for part in (normal(b, a) / a**0.5, normal(b), normal(b, a) / 10, normal(b) / 10)))
        for a, b in itertools.pairwise(widths)
    ]
    x = normal(50, widths[0]).to(dtype)
    y = torch.randint(0, widths[-1], (50,), generator=generator)
    rows = torch.randint(0, 50, (sum(sizes) + 5,), generator=generator)
    bounds = torch.tensor([3, *(3 + end for end in itertools.accumulate(sizes))])
    rates = torch.linspace(0.1, 0.02, len(sizes), dtype=torch.float64)
    return Visit(layers, x, y, rows, bounds, rates)


def by_autograd(visit: Visit, rule: Rule) -> list[float]:
    parameters = [part.requires_grad_() for layer in visit.layers for part in (layer.weight, layer.bias)]
    speeds = [part for layer in visit.layers for part in (layer.weight_speed, layer.bias_speed)]
    optimizer = torch.optim.SGD(
        parameters, momentum=rule.momentum, nesterov=rule.nesterov, weight_decay=rule.weight_decay, fused=False
    )
    for parameter, speed in zip(parameters, speeds, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = speed
    losses = []
    for (begin, end), rate in zip(itertools.pairwise(visit.bounds.tolist()), visit.rates.tolist(), strict=True):
        h = visit.x[visit.rows[begin:end]]
        for place, layer in enumerate(visit.layers):
            h = F.linear(h.relu() if place else h, layer.weight, layer.bias)
        loss = F.cross_entropy(h, visit.y[visit.rows[begin:end]], label_smoothing=rule.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    for parameter in parameters:
        parameter.requires_grad_(False)
    return losses


def parts(visit: Visit) -> dict[str, Tensor]:
    return {
        f"{place}.{field.name}": getattr(layer, field.name)
        for place, layer in enumerate(visit.layers)
        for field in fields(layer)
    }


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("widths", "sizes"), NETWORKS.values(), ids=NETWORKS)
def test_is_torch_sgd(way: str, widths: tuple[int, ...], sizes: tuple[int, ...], rule: Rule) -> None:
    found, expected = make(widths, sizes), make(widths, sizes)
    losses = mlp_sgd([found], rule)[0]
    torch.testing.assert_close(losses.tolist(), by_autograd(expected, rule), rtol=1e-12, atol=1e-13)
    speeds_too = rule.momentum > 0  # without, torch keeps none
    for name, value in parts(expected).items():
        if speeds_too or "speed" not in name:
            torch.testing.assert_close(parts(found)[name], value, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize(("widths", "sizes"), NETWORKS.values(), ids=NETWORKS)
def test_float32_stays_near_float64(way: str, widths: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    found, exact = make(widths, sizes, dtype=torch.float32), make(widths, sizes)
    losses = mlp_sgd([found], RULES["all"])[0]
    torch.testing.assert_close(losses.tolist(), by_autograd(exact, RULES["all"]), rtol=1e-5, atol=0)
    for name, value in parts(exact).items():
        torch.testing.assert_close(parts(found)[name].double(), value, rtol=1e-4, atol=2e-6, msg=name)


def test_several_models_give_what_each_gives_alone_bit_for_bit(way: str) -> None:
    if way == "reference":
        pytest.skip("PyTorch's products may round differently with other threads or addresses")
    cases = [make((9, 20, 4), (8, 9), seed, torch.float32) for seed in range(5)]
    alone = [make((9, 20, 4), (8, 9), seed, torch.float32) for seed in range(5)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    losses = mlp_sgd(cases, RULES["all"])
    torch.set_num_threads(before)
    for case, single, loss in zip(cases, alone, losses, strict=True):
        assert torch.equal(mlp_sgd([single], RULES["all"])[0], loss)
        assert all(torch.equal(value, parts(single)[name]) for name, value in parts(case).items())


def test_steps_in_one_visit_or_in_several_are_the_same_bit_for_bit(way: str) -> None:
    if way == "reference":
        pytest.skip("PyTorch's products may round differently with other threads or addresses")
    whole, apart = (make((9, 20, 4), (8, 9, 8), 1, torch.float32) for _ in range(2))
    losses = mlp_sgd([whole], RULES["all"])[0]
    for step in range(3):
        one = replace(apart, bounds=apart.bounds[step : step + 2], rates=apart.rates[step : step + 1])
        assert torch.equal(mlp_sgd([one], RULES["all"])[0], losses[step : step + 1])
    assert all(torch.equal(value, parts(apart)[name]) for name, value in parts(whole).items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_the_loss(way: str, value: float) -> None:
    visit = make((9, 20, 4), (8,), dtype=torch.float32)
    visit.x[visit.rows[5], 2] = value
    assert mlp_sgd([visit], Rule())[0].isnan().all()


def test_large_logits_neither_overflow_nor_vanish(way: str) -> None:
    visit = make((3, 2), (8,))
    for layer in visit.layers:
        layer.weight.mul_(1e4)
    found, expected = mlp_sgd([visit], Rule())[0], make((3, 2), (8,))
    expected.layers[0].weight.mul_(1e4)
    torch.testing.assert_close(found.tolist(), by_autograd(expected, Rule()), rtol=1e-12, atol=0)


def test_the_oracle_notices_another_momentum() -> None:
    found, expected = make((9, 20, 4), (8, 8)), make((9, 20, 4), (8, 8))
    mlp_sgd([found], Rule(momentum=0.9))
    by_autograd(expected, Rule(momentum=0.89))
    assert float((found.layers[0].weight - expected.layers[0].weight).abs().max()) > 1e-5


WRONG = {
    "x": {"x": torch.zeros(50, 9, 1)},
    "weight": {"x": torch.zeros(50, 8, dtype=torch.float64)},
    "rows": {"rows": torch.full((21,), 50)},
    "y": {"y": torch.full((50,), 4)},
    "bounds": {"bounds": torch.tensor([0, 22])},
    "rates": {"rates": torch.zeros(2, dtype=torch.float64)},
}


@pytest.mark.parametrize(("argument", "change"), WRONG.items(), ids=WRONG)
def test_refuses_what_would_read_or_write_elsewhere(argument: str, change: dict) -> None:
    with pytest.raises(InputError) as caught:
        mlp_sgd([replace(make((9, 20, 4), (16,)), **change)], Rule())
    assert caught.value.argument == argument


def test_explains_itself() -> None:
    remarks = explain("mlp_sgd").remarks
    assert {"reference", "cpu"} <= remarks.keys()
