"""The arithmetic of the GPU kernels, compiled for the CPU: csrc/common against mpmath and float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .host_build import CSRC, shared_library

WIDTHS = {"f32": np.float32, "f64": np.float64}
#: What is left of the accuracy of each width after a row's worth of operations.
ROUNDING = {"f32": 1e-6, "f64": 2e-15}
PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(shared_library("kernel_math.so", [CSRC / "tests" / "kernel_math.cpp"], [CSRC])))


class Arithmetic:
    """The library in one width, on numpy arrays."""

    def __init__(self, library: ctypes.CDLL, width: str) -> None:
        self.dtype = WIDTHS[width]
        self._scalar = ctypes.c_float if width == "f32" else ctypes.c_double
        self._function: Callable[[str], Any] = lambda name: getattr(library, f"{name}_{width}")

    def centred_difference(self, p: Any, q: Any, centre: float, temperature: float) -> np.ndarray:
        p, q = self._array(p), self._array(q)
        out = np.empty_like(p)
        self._function("centred_difference")(
            self._at(p),
            self._at(q),
            ctypes.c_int64(len(p)),
            self._scalar(centre),
            ctypes.c_double(temperature),
            self._at(out),
        )
        return out

    def series(self, name: str, x: Any) -> np.ndarray:
        x = self._array(x)
        out = np.empty_like(x)
        self._function(name)(self._at(x), ctypes.c_int64(len(x)), self._at(out))
        return out

    def kl_of_parts(self, p: Any, q: Any, ends: list[int], temperature: float = 1.0) -> tuple[bool, np.ndarray]:
        p, q, out = self._array(p), self._array(q), np.empty(4, self.dtype)
        cuts = np.asarray(ends, np.int64)
        regular = self._function("kl_of_parts")(
            self._at(p),
            self._at(q),
            self._at(cuts),
            ctypes.c_int64(len(ends)),
            ctypes.c_double(temperature),
            self._at(out),
        )
        return bool(regular), out

    def kl_of_terms(self, p: Any, q: Any, temperature: float = 1.0) -> np.ndarray:
        p, q, out = self._array(p), self._array(q), np.empty(4, self.dtype)
        self._function("kl_of_terms")(
            self._at(p), self._at(q), ctypes.c_int64(len(p)), ctypes.c_double(temperature), self._at(out)
        )
        return out

    def kl_gradients(self, p: Any, q: Any, row: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        p, q = self._array(p), self._array(q)
        dp, dq = np.empty_like(p), np.empty_like(q)
        self._function("kl_gradients")(
            self._at(p),
            self._at(q),
            ctypes.c_int64(len(p)),
            ctypes.c_double(temperature),
            self._at(row),
            self._at(dp),
            self._at(dq),
        )
        return dp, dq

    def logit_statistics(self, others: Any, logit: float, ends: list[int]) -> np.ndarray:
        others, out = self._array(others), np.empty(5, self.dtype)
        cuts = np.asarray(ends, np.int64)
        self._function("logit_statistics")(
            self._at(others), self._at(cuts), ctypes.c_int64(len(ends)), self._scalar(logit), self._at(out)
        )
        return out

    def _array(self, values: Any) -> np.ndarray:
        return np.ascontiguousarray(values, self.dtype)

    @staticmethod
    def _at(values: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(values.ctypes.data)


@pytest.fixture(scope="module", params=list(WIDTHS))
def arithmetic(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Arithmetic:
    return Arithmetic(library, request.param)


def rounding(arithmetic: Arithmetic) -> float:
    return ROUNDING["f32" if arithmetic.dtype is np.float32 else "f64"]


# --- by element -------------------------------------------------------------------------------------------------------


def test_phi_series_against_mpmath(arithmetic: Arithmetic) -> None:
    v = arithmetic.dtype(np.concatenate([np.linspace(-0.5, 0.5, 41), [1e-3, -1e-6, 1e-9]]))
    with mpmath.workdps(40):
        exact = [float(mpmath.mpf(float(x)) + mpmath.expm1(-mpmath.mpf(float(x)))) for x in v]
    np.testing.assert_allclose(arithmetic.series("phi_series", v), exact, rtol=rounding(arithmetic))


def test_log1p_remainder_against_mpmath(arithmetic: Arithmetic) -> None:
    x = arithmetic.dtype(np.concatenate([np.linspace(-0.25, 0.25, 41), [1e-4, -1e-7]]))
    with mpmath.workdps(40):
        exact = [float(mpmath.mpf(float(y)) - mpmath.log1p(mpmath.mpf(float(y)))) for y in x]
    np.testing.assert_allclose(arithmetic.series("log1p_remainder", x), exact, rtol=rounding(arithmetic))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_a_difference_keeps_what_its_own_rounding_takes(
    arithmetic: Arithmetic, offset: float, temperature: float
) -> None:
    """Relative to the centred difference itself, which is far below the operands; the plain difference is not."""
    rng = np.random.default_rng(0)
    p = (3 * rng.standard_normal(200) + offset).astype(arithmetic.dtype)
    q = (3 * rng.standard_normal(200)).astype(arithmetic.dtype)
    inverse = Fraction(float(arithmetic.dtype(1 / temperature)))
    exact_w = [(Fraction(float(a)) - Fraction(float(b))) * inverse for a, b in zip(p, q, strict=True)]
    centre = float(arithmetic.dtype(float(exact_w[17])))  # the element at 17 all but vanishes
    exact = np.array([float(w - Fraction(centre)) for w in exact_w])
    got = arithmetic.centred_difference(p, q, centre, temperature)
    eps = float(np.finfo(arithmetic.dtype).eps)
    # The second term: how well 1/T times T is 1 in two numbers of this width.
    np.testing.assert_array_less(np.abs(got - exact), 4 * eps * np.abs(exact) + 4 * eps**2 * max(offset, 10))
    if offset == 1e4 and temperature == 1.0 and arithmetic.dtype is np.float32:
        plain = (p - q) - centre
        assert np.abs(plain - exact).max() > 1000 * np.abs(got - exact).max()


# --- by row -----------------------------------------------------------------------------------------------------------


def exact_kl(p: np.ndarray, q: np.ndarray, temperature: float) -> float:
    p, q = p.astype(np.longdouble) / temperature, q.astype(np.longdouble) / temperature
    log_p = p - np.logaddexp.reduce(p)
    u = log_p - (q - np.logaddexp.reduce(q))
    return float(np.sum(np.exp(log_p) * (u + np.expm1(-u))))


@st.composite
def cut_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], float]:
    """A row of float32 logits within the accuracy contract, peaked or not, and any cut of it into parts."""
    classes = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = draw(st.sampled_from([0.1, 3.0, 10.0])) * rng.standard_normal(classes)
    p[rng.integers(classes)] += draw(st.sampled_from([0.0, 5.0, 30.0]))
    q = p + draw(st.sampled_from([1e-3, 1e-2, 0.3, 3.0])) * rng.standard_normal(classes)
    offset = draw(st.sampled_from([0.0, 100.0]))
    ends = sorted({*draw(st.lists(st.integers(1, classes), max_size=12)), classes})
    return p.astype(np.float32), (q + offset).astype(np.float32), ends, draw(st.sampled_from([1.0, 2.0, 0.7]))


@PROPERTY
@given(row=cut_rows())
def test_a_row_may_be_cut_in_any_way(
    library: ctypes.CDLL, row: tuple[np.ndarray, np.ndarray, list[int], float]
) -> None:
    p, q, ends, temperature = row
    exact = exact_kl(p, q, temperature)
    for width, tolerance in (("f32", 1e-5), ("f64", 1e-11)):
        regular, (kl, lse_p, *_) = Arithmetic(library, width).kl_of_parts(p, q, ends, temperature)
        assert regular or exact > 60
        if not regular:
            continue
        assert abs(kl - exact) <= tolerance * exact + (1e-12 if width == "f32" else 1e-17)
        wide = p.astype(np.float64) / temperature
        assert lse_p == pytest.approx(np.logaddexp.reduce(wide), rel=1e-6 if width == "f32" else 1e-14, abs=1e-6)


@PROPERTY
@given(row=cut_rows())
def test_term_by_term_gives_the_same(
    library: ctypes.CDLL, row: tuple[np.ndarray, np.ndarray, list[int], float]
) -> None:
    p, q, _, temperature = row
    exact = exact_kl(p, q, temperature)
    kl = Arithmetic(library, "f32").kl_of_terms(p, q, temperature)[0]
    assert abs(kl - exact) <= 1e-5 * exact + 1e-12


def test_merging_about_one_fixed_centre_would_not_do(library: ctypes.CDLL) -> None:
    """The contract's peaked rows catch a kernel that keeps the centre of the first part it saw."""
    rng = np.random.default_rng(0)
    p = (3 * rng.standard_normal(1000)).astype(np.float32)
    p[900] += 25
    q = (p + 0.05 * rng.standard_normal(1000)).astype(np.float32)
    exact = exact_kl(p, q, 1.0)

    e = np.exp(p - p.max())
    w = p - q
    v = w - w[:64].mean()  # float32 throughout
    first, second = (e * v).sum() / e.sum(), (e * (v + np.expm1(-v))).sum() / e.sum()
    fixed = first + np.log1p(second - first)
    _, (kl, *_) = Arithmetic(library, "f32").kl_of_parts(p, q, [*range(64, 1000, 64), 1000])
    assert abs(kl - exact) <= 1e-5 * exact
    assert abs(fixed - exact) > 1e-3 * exact


@pytest.mark.parametrize("regular", [True, False], ids=["from sums", "from terms"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_gradients_within_their_row_norm(library: ctypes.CDLL, noise: float, offset: float, regular: bool) -> None:
    rng = np.random.default_rng(1)
    p = (3 * rng.standard_normal(500)).astype(np.float32)
    q = (p + noise * rng.standard_normal(500) + offset).astype(np.float32)
    arithmetic = Arithmetic(library, "f32")
    row = arithmetic.kl_of_parts(p, q, [100, 333, 500])[1] if regular else arithmetic.kl_of_terms(p, q)
    log_p, log_q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64)) for x in (p, q))
    u = log_p - log_q
    exact_p, exact_q = np.exp(log_p) * (u - exact_kl(p, q, 1.0)), np.exp(log_q) - np.exp(log_p)
    for got, exact in zip(arithmetic.kl_gradients(p, q, row), (exact_p, exact_q), strict=True):
        assert np.linalg.norm(got - exact) <= 1e-5 * np.linalg.norm(exact)


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0, 0, -INF], [0, 0, 0], math.log(1.5)),
        ([0, 1, -INF], [0, 1, -INF], 0.0),
        ([0, 0, 0], [0, 0, -INF], INF),
        ([0, 0, -1e4], [0, 0, -INF], INF),
        ([0, NAN, 0], [0, 0, 0], NAN),
        ([0, -INF, 0], [0, NAN, 0], NAN),
        ([0, INF, 0], [0, 0, 0], NAN),
        ([0, 0, 0], [0, INF, 0], NAN),
        ([-INF, -INF], [0, 0], NAN),
        ([0, 0], [-INF, -INF], NAN),
        ([1e4, -1e4], [-1e4, 1e4], 2e4),
    ],
)
def test_rows_of_special_values(arithmetic: Arithmetic, p: list[float], q: list[float], expected: float) -> None:
    regular, _ = arithmetic.kl_of_parts(p, q, [len(p)])
    assert not regular  # the sums do not pretend to know
    np.testing.assert_allclose(arithmetic.kl_of_terms(p, q)[0], expected, rtol=1e-6)


# --- statistics of logits ---------------------------------------------------------------------------------------------


@st.composite
def labelled_rows(draw: st.DrawFn) -> tuple[np.ndarray, float, list[int]]:
    classes = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    others = draw(st.sampled_from([0.1, 3.0, 30.0])) * rng.standard_normal(classes)
    logit = draw(st.sampled_from([0.0, 5.0, -5.0, 60.0, -60.0])) + float(rng.standard_normal())
    ends = sorted({*draw(st.lists(st.integers(1, classes), max_size=8)), classes})
    return others.astype(np.float32), float(np.float32(logit)), ends


@PROPERTY
@given(row=labelled_rows())
def test_statistics_of_parts(library: ctypes.CDLL, row: tuple[np.ndarray, float, list[int]]) -> None:
    others, logit, ends = row
    z = np.append(others.astype(np.longdouble), np.longdouble(logit))
    log_prob = z - np.logaddexp.reduce(z)
    margin = logit - np.logaddexp.reduce(z[:-1])
    exact = [margin, np.logaddexp(0, -margin), logit - z[:-1].max(), np.exp(log_prob.max())]
    exact.append(-np.sum(np.exp(log_prob) * log_prob))
    for width, eps in (("f32", 1.2e-7), ("f64", 2.3e-16)):
        got = Arithmetic(library, width).logit_statistics(others, logit, ends)
        slack = 4 * eps * (1 + np.abs(z).max())
        np.testing.assert_allclose(got, np.asarray(exact, np.float64), rtol=40 * eps, atol=float(slack))


def test_a_certain_label_keeps_a_loss_and_an_entropy(arithmetic: Arithmetic) -> None:
    """Where 1 - p_y rounds to nothing: margin 40 over nine equal rivals."""
    got = arithmetic.logit_statistics(np.zeros(9), 40 + math.log(9), [4, 9])
    with mpmath.workdps(40):
        margin = mpmath.mpf(float(arithmetic.dtype(40 + math.log(9)))) - mpmath.log(9)
        loss = mpmath.log1p(mpmath.exp(-margin))
        entropy = loss + (margin + mpmath.log(9)) * mpmath.exp(-margin) / (1 + mpmath.exp(-margin))
    np.testing.assert_allclose(got[[0, 1, 4]], [float(margin), float(loss), float(entropy)], rtol=2e-5)
    assert got[3] == 1
