"""A step with a penalty outside a box against arithmetic written out, and torch's own optimisers, on every backend."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor

import fastmem
from fastmem.errors import InputError
from fastmem.ops.boxed_step import boxed_step_
from fastmem.ops.triton import interpreted

BACKENDS = ["reference", "cpu", "triton"]
TOLERANCE = {torch.float32: {"rtol": 2e-6, "atol": 1e-7}, torch.float64: {"rtol": 1e-13, "atol": 1e-14}}
S = 4
RATE, LOW, HIGH = [0.1, 0.02, 0.5, 0.3], [-1.0, -math.inf, -0.2, 0.4], [1.0, math.inf, 0.2, math.inf]
KEEP = [1.0, 1.0, 0.0, 1.0]


@pytest.fixture(autouse=True)
def forced(request: pytest.FixtureRequest):
    backend = request.getfixturevalue("backend") if "backend" in request.fixturenames else "auto"
    if (reason := fastmem.explain("boxed_step").remarks.get(backend, "")).startswith("not avail"):
        pytest.skip(reason)
    if backend == "triton" and not interpreted():
        pytest.skip("Triton's kernels take CPU tensors in its interpreter only (TRITON_INTERPRET=1)")
    with fastmem.use_backend(backend):
        yield


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(len(shape))
    numbers = {name: torch.randn(S, *shape, dtype=dtype) for name in ("x", "gradient", "moment", "square")}
    numbers["square"] = numbers["square"].abs()
    per_problem = {"rate": RATE, "low": LOW, "high": HIGH, "keep": KEEP, "spread": [3.0, 1.0, 20.0, 1.5]}
    return numbers | {name: torch.tensor(values, dtype=dtype) for name, values in per_problem.items()}


def one_by_one(given: dict[str, Tensor], weight: float, adam: bool) -> dict[str, list[float]]:
    """Every element on its own, in Python's floats."""
    after: dict[str, list[float]] = {"x": [], "moment": [], "square": []}
    for s in range(S):
        rate, low, high, keep, spread = (float(given[name][s]) for name in ("rate", "low", "high", "keep", "spread"))
        elements = (given[name][s].flatten().tolist() for name in ("x", "gradient", "moment", "square"))
        for x, g, moment, square in zip(*elements, strict=True):
            g += 2 * weight * (max(x - high, 0) - max(low - x, 0))
            if adam:
                moment = 0.9 * keep * moment + (1 - 0.9) * g
                square = 0.999 * keep * square + (1 - 0.999) * g * g
                x -= rate * moment / (math.sqrt(square) * spread + 1e-8)
            else:
                moment = 0.7 * keep * moment + g
                x -= rate * moment
            for name, value in (("x", x), ("moment", moment), ("square", square)):
                after[name].append(value)
    return after


def stepped(given: dict[str, Tensor], weight: float, adam: bool) -> dict[str, Tensor]:
    """What is left in memory after the step."""
    memory = {name: value.clone() for name, value in given.items()}
    options = {name: memory[name] for name in ("rate", "low", "high", "keep", *(("square", "spread") if adam else ()))}
    boxed_step_(memory["x"], memory["gradient"], memory["moment"], **options, weight=weight, momentum=0.7)
    for name in ("gradient", "rate", "low", "high", "keep", "spread"):
        torch.testing.assert_close(memory[name], given[name], rtol=0, atol=0, equal_nan=True)
    return memory


@pytest.mark.parametrize("adam", [False, True], ids=["momentum", "adam"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 1, 37), (1100,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_element_moves_as_written(backend: str, dtype: torch.dtype, shape: tuple[int, ...], adam: bool) -> None:
    given = problem(shape, dtype)
    found = stepped(given, 5.0, adam)
    expected = one_by_one(given, 5.0, adam)
    for name in ("x", "moment", *(("square",) if adam else ())):
        exact = torch.tensor(expected[name], dtype=torch.float64).view(S, *shape)
        torch.testing.assert_close(found[name].double(), exact, **TOLERANCE[dtype])
    if not adam:
        assert torch.equal(found["square"], given["square"])


@pytest.mark.parametrize("adam", [False, True], ids=["momentum", "adam"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_step_of_torch_s_optimisers_on_the_penalised_objective(backend: str, adam: bool) -> None:
    given = problem((50,), torch.float64)
    x, moment, square = (torch.zeros_like(given["x"]) for _ in range(3))
    x.copy_(given["x"])
    theirs = given["x"].clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1) if adam else torch.optim.SGD([theirs], lr=0.1, momentum=0.7)
    low, high, ones = (torch.full((S,), value, dtype=torch.float64) for value in (-0.5, 0.4, 1.0))
    for t in range(1, 8):
        optimizer.zero_grad()
        slope = given["gradient"] * t
        penalty = 5 * ((theirs - 0.4).relu().square() + (-0.5 - theirs).relu().square())
        ((slope * theirs).sum() + penalty.sum()).backward()
        optimizer.step()
        rate = ones * (0.1 / (1 - 0.9**t) if adam else 0.1)
        more = {"square": square, "spread": ones * (1 - 0.999**t) ** -0.5} if adam else {}
        boxed_step_(x, slope, moment, rate=rate, low=low, high=high, keep=ones, weight=5.0, momentum=0.7, **more)
    torch.testing.assert_close(x, theirs.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("adam", [False, True], ids=["momentum", "adam"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_problem_of_rate_0_is_left_alone_and_nan_stays_where_it_is(backend: str, adam: bool) -> None:
    given = problem((9,), torch.float32)
    given["rate"][1] = 0
    for name in ("gradient", "moment", "square"):
        given[name][1] = math.nan
    given["gradient"][0, 3] = math.nan
    given["x"][3, 5] = math.nan
    found = stepped(given, 1.0, adam)
    assert torch.equal(found["x"][1], given["x"][1])
    assert found["moment"][1].tolist() == [0.0] * 9
    assert not adam or found["square"][1].tolist() == [0.0] * 9
    assert found["x"].isnan().nonzero().tolist() == [[0, 3], [3, 5]]


@pytest.mark.parametrize("shape", [(0,), (3, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_move(backend: str, shape: tuple[int, ...]) -> None:
    assert stepped(problem(shape, torch.float32), 1.0, True)["x"].shape == (S, *shape)


def test_the_same_bits_by_any_number_of_threads_and_on_every_instruction_set() -> None:
    if fastmem.explain("boxed_step").remarks["cpu"].startswith("not avail"):
        pytest.skip("the CPU kernels are not built")
    native = importlib.import_module("fastmem._cpu")
    given = problem((30_001,), torch.float32)
    threads, chosen = torch.get_num_threads(), native.isa()
    found = []
    try:
        with fastmem.use_backend("cpu"):
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(stepped(given, 1.0, True)["x"])
            for isa in native.isas():
                native.set_isa(isa)
                found.append(stepped(given, 1.0, True)["x"])
    finally:
        torch.set_num_threads(threads)
        native.set_isa(chosen)
    assert all(torch.equal(found[0], each) for each in found[1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate": torch.ones(S - 1)}, r"give \[4\]"),
        ({"low": torch.zeros(S).double()}, "low"),
        ({"square": None}, "square"),
        ({"spread": None}, "spread"),
        ({"moment": torch.zeros(9, S).T}, "contiguous"),
        ({"gradient": torch.zeros(S, 8)}, "gradient"),
        ({"x": torch.zeros(S, 9).half()}, "x"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Tensor | None], words: str) -> None:
    with pytest.raises(InputError, match=words):
        boxed_step_(**(problem((9,), torch.float32) | changes))
