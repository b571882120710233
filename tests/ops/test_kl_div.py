"""kl_div: every implementation on this machine against the definition, its accuracy contract and its special values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastmem.ops import kl_div, use_backend
from fastmem.ops._registry import select
from fastmem.ops.reference import kl_div as reference

from . import oracle
from .implementations import Implementation, implementations, stand_in_for_native
from .strategies import DTYPES, LAYOUTS, PROPERTY, LogitPair, far_apart, logit_pairs

INF, NAN = float("inf"), float("nan")
EXAMPLE = torch.zeros(2, 3)


@pytest.fixture(params=implementations("kl_div", EXAMPLE, EXAMPLE))
def run_on(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation in turn, forced."""
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture
def compiled(run_on: Implementation) -> Implementation:
    """Each but Triton's interpreter, which takes milliseconds for what the others do in a microsecond."""
    if run_on.interpreted:
        pytest.skip("Triton's interpreter would take minutes")
    return run_on


# --- against the definition -------------------------------------------------------------------------------------------


def check_against_oracle(pair: LogitPair, device: str) -> None:
    p, q = pair.build(device)
    p.requires_grad_(), q.requires_grad_()
    kl = kl_div(p, q, pair.temperature)
    expected = oracle.kl_div(p, q, pair.temperature)
    assert kl.shape == expected.shape
    assert kl.is_contiguous()
    assert kl.dtype == (torch.float64 if pair.dtype is torch.float64 else torch.float32)

    # Relative, and absolute by what rounding a logit can do: it moves u, and the KL is quadratic in u.
    wide = pair.dtype is torch.float64
    relative, eps = (1e-9, 2.3e-16) if wide else (1e-5, 1.2e-7)
    largest = oracle.largest_finite(p, q) / pair.temperature
    absolute = (1e-17 if wide else 1e-12) + (4 * eps * largest) ** 2
    oracle.assert_close(kl, expected, relative * np.abs(expected) + absolute)

    weights = torch.randn(kl.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(kl)
    dp, dq = torch.autograd.grad(kl, (p, q), weights)
    exact_p, exact_q, norm_p, norm_q = oracle.kl_div_gradients(p, q, pair.temperature, weights)
    rounding = oracle.unit_roundoff(pair.dtype)
    for gradient, exact, norm, operand in ((dp, exact_p, norm_p, p), (dq, exact_q, norm_q, q)):
        assert gradient.shape == operand.shape
        assert gradient.dtype == operand.dtype
        slack = relative * norm + rounding * np.abs(exact) + 6e-8 * (pair.dtype is torch.float16)
        # Rounding lse_p, as large as the logits, moves P in proportion.
        upstream = np.abs(weights.double().cpu().numpy()).max(initial=0)
        oracle.assert_close(gradient, exact, slack + 8 * eps * largest * (upstream + norm))


@settings(PROPERTY, max_examples=150)
@given(pair=logit_pairs())
def test_matches_the_definition(compiled: Implementation, pair: LogitPair) -> None:
    check_against_oracle(pair, compiled.device)


@settings(PROPERTY, max_examples=25)
@given(pair=logit_pairs(max_classes=40, max_size=2))
def test_matches_the_definition_in_small(run_on: Implementation, pair: LogitPair) -> None:
    check_against_oracle(pair, run_on.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_classes", [1, 2, 16, 31, 129, 1025])
def test_every_layout_and_dtype(run_on: Implementation, layout: str, dtype: torch.dtype, num_classes: int) -> None:
    shape = (3, 2, num_classes) if not run_on.interpreted else (2, 1, num_classes)
    check_against_oracle(LogitPair(shape, shape, layout, "padded", "ordinary", dtype, 1.5, 3), run_on.device)


@pytest.mark.parametrize(
    ("p_shape", "q_shape"),
    [
        ((6, 1, 10), (6, 5, 10)),  # one to many
        ((6, 5, 10), (6, 1, 10)),
        ((6, 1, 10), (1, 5, 10)),  # all pairs
        ((10,), (7, 10)),
        ((10,), (10,)),
        ((2, 1, 3, 100), (4, 1, 100)),
    ],
)
def test_broadcasting_reads_and_sums(
    run_on: Implementation, p_shape: tuple[int, ...], q_shape: tuple[int, ...]
) -> None:
    for temper in ("ordinary", "offset"):
        pair = LogitPair(p_shape, q_shape, "contiguous", "contiguous", temper, torch.float32, 1.0, 4)
        check_against_oracle(pair, run_on.device)


BROKEN_KERNELS = {
    "sides swapped": {"forward": lambda p, q, t: reference.forward(q, p, t)},
    "temperature ignored": {"forward": lambda p, q, t: reference.forward(p, q, 1.0)},
    "an absent class of p skipped": {"forward": lambda p, q, t: reference.forward(p.clamp(min=-50), q, t)},
    "gradient without 1/T": {"backward": lambda *a: reference.backward(a[0] * a[7], *a[1:])},
    "gradient of one of the broadcast rows": {
        "backward": lambda g, p, q, *a: reference.backward(g.cumsum(-1).eq(g[..., :1]) * g, p, q, *a)
    },
    "finite gradient of an infinite KL": {"backward": lambda *a: [g.nan_to_num() for g in reference.backward(*a)]},
}


@pytest.mark.parametrize("broken", BROKEN_KERNELS)
def test_broken_kernels_are_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        LogitPair((3, 1, 9), (3, 4, 9), "contiguous", "contiguous", temper, torch.float32, 2.0, 5)
        for temper in ("ordinary", "masked", "special", "offset")
    ] + [LogitPair((4, 9), (4, 9), "contiguous", "contiguous", "close", torch.float32, 1.0, 5)]
    stand_in_for_native(monkeypatch, "kl_div")
    for pair in pairs:
        check_against_oracle(pair, "cpu")
    stand_in_for_native(monkeypatch, "kl_div", **BROKEN_KERNELS[broken])
    assert any(_fails(pair) for pair in pairs)


def _fails(pair: LogitPair) -> bool:
    try:
        check_against_oracle(pair, "cpu")
    except AssertionError:
        return True
    return False


# --- the accuracy contract --------------------------------------------------------------------------------------------


def contract_rows(num_classes: int, offset: float, rows: int) -> tuple[Tensor, Tensor]:
    """Rows of float32 logits whose KL runs from 1e-7 to 50."""
    rng = torch.Generator().manual_seed(num_classes)
    noise = torch.tensor([5e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 12.0]).repeat(rows)[:, None]
    p = 3 * torch.randn(len(noise), num_classes, generator=rng)
    return p, p + noise * torch.randn(p.shape, generator=rng) + offset


def contract_violation(function: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor) -> float:
    """The worst relative error over the rows that the contract covers."""
    exact = oracle.kl_div(p, q, 1.0)
    covered = (exact >= 1e-7) & (exact <= 50)
    assert covered.mean() > 0.7
    assert exact[covered].min() < 1e-6
    assert exact[covered].max() > 5
    error = np.abs(function(p, q).double().cpu().numpy() - exact) / exact
    return float(error[covered].max())


def gradient_violation(function: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor) -> float:
    """The worst error of a row of either gradient, relative to the row's norm."""
    p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
    grad = torch.ones(len(p), device=p.device)
    gradients = torch.autograd.grad(function(p, q), (p, q), grad)
    *exact, norm_p, norm_q = oracle.kl_div_gradients(p, q, 1.0, grad)
    worst = 0.0
    for gradient, expected, norm in zip(gradients, exact, (norm_p, norm_q), strict=True):
        error = np.linalg.norm(gradient.double().cpu().numpy() - expected, axis=-1, keepdims=True)
        worst = max(worst, float((error / norm).max()))
    return worst


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("num_classes", [10, 100, 1000, 50257])
def test_accuracy_contract(run_on: Implementation, num_classes: int, offset: float) -> None:
    if run_on.interpreted and num_classes > 1000 and offset == 0:
        pytest.skip("Triton's interpreter takes half a minute for one of these; the harder one has to do")
    rows = 1 if run_on.interpreted or num_classes > 1000 else 10
    p, q = (operand.to(run_on.device) for operand in contract_rows(num_classes, offset, rows))
    assert contract_violation(kl_div, p, q) <= 1e-5

    assert gradient_violation(kl_div, p, q) <= 1e-5


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_the_contract_catches_the_textbook_form(num_classes: int) -> None:
    def textbook(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    p, q = contract_rows(num_classes, 0.0, 10)
    assert contract_violation(textbook, p, q) > 1e-3
    assert gradient_violation(textbook, p, q) > 1e-4


@pytest.mark.parametrize("peak", [5.0, 20.0, 200.0])
def test_peaked_rows_keep_the_contract(run_on: Implementation, peak: float) -> None:
    """One class holds nearly all the mass, anywhere in the row: a centre taken from elsewhere must not matter."""
    num_classes = 1000
    rng = torch.Generator().manual_seed(0)
    positions = torch.tensor([0, 63, 64, 500, 999]) if not run_on.interpreted else torch.tensor([0, 999])
    p = 3 * torch.randn(len(positions), num_classes, generator=rng)
    p[torch.arange(len(positions)), positions] += peak
    q = p + torch.randn(p.shape, generator=rng)
    exact = oracle.kl_div(p, q, 1.0)
    covered = exact >= 1e-7
    error = np.abs(kl_div(p.to(run_on.device), q.to(run_on.device)).double().cpu().numpy() - exact)
    assert (error[covered] <= 1e-5 * exact[covered]).all()
    assert (error[~covered] <= 1e-12).all()


# --- special values ---------------------------------------------------------------------------------------------------

SPECIAL_ROWS = {
    "p absent: its term is Q_c": ([0.0, 0.0, -INF], [0.0, 0.0, 0.0], np.log(1.5)),
    "both absent": ([0.0, 1.0, -INF], [0.0, 1.0, -INF], 0.0),
    "q absent": ([0.0, 0.0, 0.0], [0.0, 0.0, -INF], INF),
    "q absent where P underflows": ([0.0, 0.0, -1e4], [0.0, 0.0, -INF], INF),
    "each absent in the other": ([0.0, -INF], [-INF, 0.0], INF),
    "NaN in p": ([0.0, NAN, 0.0], [0.0, 0.0, 0.0], NAN),
    "NaN in q": ([0.0, 0.0, 0.0], [0.0, NAN, 0.0], NAN),
    "NaN where the other is absent": ([0.0, -INF, 0.0], [0.0, NAN, 0.0], NAN),
    "+inf in p": ([0.0, INF, 0.0], [0.0, 0.0, 0.0], NAN),
    "+inf in q": ([0.0, 0.0, 0.0], [0.0, INF, 0.0], NAN),
    "+inf in both": ([0.0, INF, 0.0], [0.0, INF, 0.0], NAN),
    "+inf in p, q absent": ([INF, 0.0], [-INF, 0.0], NAN),
    "nothing in p": ([-INF, -INF], [0.0, 0.0], NAN),
    "nothing in q": ([0.0, 0.0], [-INF, -INF], NAN),
    "nothing in either": ([-INF, -INF], [-INF, -INF], NAN),
    "q absent, and a NaN": ([0.0, 0.0, NAN], [0.0, -INF, 0.0], NAN),
    "q absent, and a +inf": ([0.0, 0.0, INF], [0.0, -INF, 0.0], NAN),
    "one class": ([7.0], [-3.0], 0.0),
    "one class, absent": ([-INF], [-3.0], NAN),
    "far apart": ([1e4, -1e4], [-1e4, 1e4], 2e4),
    "certain of the same": ([1e4, -1e4, 0.0], [1e4, -1e4, 0.0], 0.0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SPECIAL_ROWS)
def test_special_values(run_on: Implementation, case: str, dtype: torch.dtype) -> None:
    p_row, q_row, expected = SPECIAL_ROWS[case]
    # Padding with absent classes changes nothing, but reaches the paths for longer rows; ordinary rows stand around.
    for padding in (0, 70) if not run_on.interpreted else (0,):
        absent = [-INF] * padding
        ordinary = [0.5] * (len(p_row) + padding)
        p = torch.tensor([ordinary, p_row + absent, ordinary], dtype=dtype, device=run_on.device, requires_grad=True)
        q = torch.tensor([ordinary, q_row + absent, ordinary], dtype=dtype, device=run_on.device, requires_grad=True)
        kl = kl_div(p, q)
        exact = 2 * p[1, 0].item() if case == "far apart" else expected  # 1e4 is no bfloat16
        torch.testing.assert_close(kl.detach().cpu().double(), torch.tensor([0.0, exact, 0.0]).double(), equal_nan=True)
        for gradient in torch.autograd.grad(kl.sum(), (p, q)):
            assert gradient[[0, 2]].isfinite().all()
            assert gradient[1].isfinite().all() if np.isfinite(expected) else gradient[1].isnan().all()


@pytest.mark.parametrize("num_classes", [2, 10, 40, 1000])
def test_equal_rows_have_no_divergence(run_on: Implementation, num_classes: int) -> None:
    p = 5 * torch.randn(4, num_classes, generator=torch.Generator().manual_seed(0)).to(run_on.device)
    assert (kl_div(p, p.clone()) == 0).all()
    shifted = kl_div(p, p + 64)  # not exact: the sum rounds some logits
    assert ((shifted >= 0) & (shifted < 1e-9)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 1)])
def test_no_rows_give_an_empty_result(run_on: Implementation, shape: tuple[int, ...]) -> None:
    p, q = (torch.zeros(shape, device=run_on.device, requires_grad=True) for _ in range(2))
    kl = kl_div(p, q)
    assert kl.shape == shape[:-1]
    dp, dq = torch.autograd.grad(kl.sum(), (p, q))
    assert dp.shape == dq.shape == shape


def test_an_empty_side_gives_the_shared_side_a_zero_gradient(run_on: Implementation) -> None:
    p = torch.zeros(1, 5, device=run_on.device, requires_grad=True)
    kl = kl_div(p, torch.zeros(0, 5, device=run_on.device))
    assert torch.equal(torch.autograd.grad(kl.sum(), p)[0], torch.zeros_like(p))


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p_shape", "q_shape"), [((2, 5), (2, 5)), ((2, 1, 4), (3, 4)), ((2, 33), (1, 33))])
def test_gradcheck(run_on: Implementation, p_shape: tuple[int, ...], q_shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    p, q = (
        torch.randn(shape, generator=rng, dtype=torch.float64).to(run_on.device).requires_grad_()
        for shape in (p_shape, q_shape)
    )
    fast = run_on.interpreted or p.numel() > 40
    assert torch.autograd.gradcheck(lambda p, q: kl_div(p, q, 1.7), (p, q), fast_mode=fast)
    assert torch.autograd.gradcheck(lambda p: kl_div(p, q.detach()), (p,), fast_mode=fast)
    assert torch.autograd.gradcheck(lambda q: kl_div(p.detach(), q), (q,), fast_mode=fast)


@settings(PROPERTY, max_examples=60)
@given(pair=logit_pairs())
def test_the_reference_has_the_same_gradient_by_formula_and_by_differentiation(pair: LogitPair) -> None:
    """The first is what a machine without native modules runs, the second what use_backend("reference") asks for."""
    p, q = pair.build("cpu")
    saved = reference.forward(p, q, pair.temperature)
    weights = torch.randn(saved[0].shape, generator=torch.Generator().manual_seed(1)).to(saved[0])
    by_formula = reference.backward(weights, p, q, *saved, pair.temperature, True, True)
    p.requires_grad_(), q.requires_grad_()
    kl = reference.differentiable(p, q, pair.temperature)
    assert torch.equal(kl.nan_to_num(nan=-1), saved[0].nan_to_num(nan=-1))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[pair.dtype]
    for a, b in zip(torch.autograd.grad(kl, (p, q), weights), by_formula, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_what_forward_saves_means_the_same_to_every_backward(run_on: Implementation) -> None:
    """A compiled graph may run forward on one implementation and backward on another."""
    p, q = (operand.to(run_on.device) for operand in contract_rows(100, 100.0, 1))
    own = select("kl_div", p, q, 1.0)
    grad = torch.ones(len(p), device=run_on.device)
    expected = own.backward(grad, p, q, *own.forward(p, q, 1.0), 1.0, True, True)
    with use_backend("reference"):
        saved = select("kl_div", p, q, 1.0).forward(p, q, 1.0)
    for gradient, exact in zip(own.backward(grad, p, q, *saved, 1.0, True, True), expected, strict=True):
        assert ((gradient - exact).norm(dim=-1) <= 1e-5 * exact.norm(dim=-1)).all()


def test_only_the_wanted_side_is_computed(run_on: Implementation) -> None:
    p, q = torch.randn(2, 4, 6, device=run_on.device)
    backend = select("kl_div", p, q, 1.0)
    saved = backend.forward(p, q, 1.0)
    dp, dq = backend.backward(torch.ones(4, device=run_on.device), p, q, *saved, 1.0, True, False)
    assert dp.shape == p.shape
    assert dq is None
    dp, dq = backend.backward(torch.ones(4, device=run_on.device), p, q, *saved, 1.0, False, True)
    assert dp is None
    assert dq.shape == q.shape


def test_a_strided_upstream_gradient(run_on: Implementation) -> None:
    p, q = (torch.randn(4, 3, 6, device=run_on.device).requires_grad_() for _ in range(2))
    weights = torch.randn(3, 4, device=run_on.device).T
    for upstream in (weights, weights[:, :1].expand(4, 3)):
        gradients = torch.autograd.grad(kl_div(p, q), (p, q), upstream)
        expected = torch.autograd.grad(kl_div(p, q), (p, q), upstream.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_the_inputs_stay_untouched(run_on: Implementation) -> None:
    p, q = torch.randn(2, 4, 6, device=run_on.device)
    before = p.clone(), q.clone()
    p.requires_grad_(), q.requires_grad_()
    kl_div(p, q).sum().backward()
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


# --- size, determinism ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [16, 128])
def test_offsets_beyond_32_bits(run_on: Implementation, num_classes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(2, num_classes, generator=rng).bfloat16().to(run_on.device)
    other = torch.randn(2, num_classes, generator=rng).bfloat16().to(run_on.device)
    expected = kl_div(values, other), kl_div(other, values)
    for strided in far_apart(run_on.device, num_classes):
        strided.copy_(values)
        torch.testing.assert_close(kl_div(strided, other), expected[0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(kl_div(other, strided), expected[1], rtol=1e-6, atol=1e-9)


def test_more_than_2_to_the_31_elements(compiled: Implementation) -> None:
    """One row repeated by a zero stride: 2^31 elements to go through, all of them in a cache."""
    if compiled.backend == "reference":
        pytest.skip("plain PyTorch would hold all of them as float64; it indexes nothing by itself")
    num_classes = 2**16
    rows = 2**15 + 3
    p, q = 3 * torch.randn(2, 1, num_classes, generator=torch.Generator().manual_seed(0)).to(compiled.device)
    p.requires_grad_()
    one = kl_div(p, q)
    (gradient_of_one,) = torch.autograd.grad(one.sum(), p)
    kl = kl_div(p, q.expand(rows, num_classes))
    assert kl.shape == (rows,)
    assert (kl == one).all()
    (gradient,) = torch.autograd.grad(kl.sum(), p)
    assert ((gradient / rows - gradient_of_one).norm() <= 1e-5 * gradient_of_one.norm()).all()


@pytest.mark.parametrize("shape", [(3000, 10), (700, 130), (5, 40_000)], ids=str)
def test_the_same_bits_in_every_run_and_for_any_number_of_threads(
    compiled: Implementation, shape: tuple[int, int]
) -> None:
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(1, shape[1], generator=rng).to(compiled.device).requires_grad_()  # its gradient sums over all rows
    q = torch.randn(shape, generator=rng).to(compiled.device).requires_grad_()
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            kl = kl_div(p, q)
            runs.append((kl, *torch.autograd.grad(kl.sum(), (p, q))))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# --- arguments --------------------------------------------------------------------------------------------------------


def test_mixed_dtypes_are_promoted(run_on: Implementation) -> None:
    p = torch.randn(3, 5, device=run_on.device).bfloat16().requires_grad_()
    q = torch.randn(3, 5, device=run_on.device).half().requires_grad_()
    kl = kl_div(p, q)
    assert kl.dtype is torch.float32
    torch.testing.assert_close(kl, kl_div(p.float(), q.float()))
    dp, dq = torch.autograd.grad(kl.sum(), (p, q))
    assert (dp.dtype, dq.dtype) == (torch.bfloat16, torch.float16)
    assert kl_div(p.double(), q).dtype is torch.float64


def test_autocast_changes_nothing(run_on: Implementation) -> None:
    p, q = torch.randn(2, 4, 6, device=run_on.device).requires_grad_()
    plain = kl_div(p, q)
    with torch.autocast(run_on.device, dtype=torch.bfloat16):
        cast = kl_div(p, q)
    assert torch.equal(plain, cast)
