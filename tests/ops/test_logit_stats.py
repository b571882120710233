"""logit_stats and logit_margin: every implementation on this machine against the definition, and its special values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import LogitStats, logit_margin, logit_stats, use_backend
from fastmem.ops._registry import select
from fastmem.ops.reference import logit_stats as reference

from . import oracle
from .implementations import Implementation, implementations, stand_in_for_native
from .strategies import DTYPES, LAYOUTS, PROPERTY, LabelledLogits, far_apart, labelled_logits

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=implementations("logit_stats", torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
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


def check_against_oracle(case: LabelledLogits, device: str) -> None:
    logits, labels = case.build(device)
    logits.requires_grad_()
    stats = logit_stats(logits, labels)
    wide = case.dtype is torch.float64
    # A logit's own rounding bounds what its differences can be known to; the rest is relative.
    relative, eps = (1e-12, 2.3e-16) if wide else (1e-5, 1.2e-7)
    absolute = 4 * eps * (1 + oracle.largest_finite(logits))
    for name, statistic, expected in zip(stats._fields, stats, oracle.logit_stats(logits, labels), strict=True):
        assert statistic.shape == logits.shape[:-1], name
        assert statistic.is_contiguous()
        assert statistic.dtype == (torch.float64 if wide else torch.float32)
        oracle.assert_close(statistic, expected, relative * np.abs(expected) + absolute)
    margin = logit_margin(logits, labels)
    torch.testing.assert_close(margin, stats.margin, rtol=relative, atol=absolute, equal_nan=True)

    check_gradients(logits, labels, stats, relative, absolute)


def check_gradients(logits: Tensor, labels: Tensor, stats: LogitStats, relative: float, absolute: float) -> None:
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(stat.shape, generator=rng, dtype=torch.float64).to(stat) for stat in stats]
    rounding = oracle.unit_roundoff(logits.dtype)
    for used in ([0, 1, 2, 3, 4], [0], [1], [3, 4]):  # which statistics a loss uses
        (gradient,) = torch.autograd.grad(
            [stats[i] for i in used], logits, [weights[i] for i in used], retain_graph=True
        )
        zeros = [weights[i] if i in used else torch.zeros_like(weights[i]) for i in range(5)]
        expected = oracle.logit_stats_gradients(logits, labels, zeros)
        assert gradient.shape == logits.shape
        assert gradient.dtype == logits.dtype
        scale = 5 * sum(weights[i].abs().double().cpu().numpy() for i in used)[..., None]
        # An entropy's gradient has a factor log p, of the logits' own size.
        scale = scale * (1 + oracle.largest_finite(logits) * (4 in used))
        slack = (relative + 6e-8 * (logits.dtype is torch.float16) + absolute) * scale + rounding * np.abs(expected)
        oracle.assert_close(gradient, expected, slack)


@settings(PROPERTY, max_examples=150)
@given(case=labelled_logits())
def test_matches_the_definition(compiled: Implementation, case: LabelledLogits) -> None:
    check_against_oracle(case, compiled.device)


@settings(PROPERTY, max_examples=20)
@given(case=labelled_logits(max_classes=40, max_size=2))
def test_matches_the_definition_in_small(run_on: Implementation, case: LabelledLogits) -> None:
    check_against_oracle(case, run_on.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_classes", [2, 16, 31, 129, 1025])
def test_every_layout_and_dtype(run_on: Implementation, layout: str, dtype: torch.dtype, num_classes: int) -> None:
    shape = (3, 2, num_classes) if not run_on.interpreted else (2, 1, num_classes)
    check_against_oracle(LabelledLogits(shape, (1,), layout, "ordinary", dtype, 3), run_on.device)


def _with(index: int, change: Callable[[Any], Any]) -> Callable[..., tuple[Any, ...]]:
    """The reference's forward pass with one of its five results changed."""

    def forward(*args: Any) -> tuple[Any, ...]:
        return tuple(change(stat) if i == index and stat is not None else stat for i, stat in enumerate(right(*args)))

    right = reference.forward
    return forward


BROKEN_KERNELS = {
    "margin of the first class": {"forward": lambda z, y, m: reference.forward(z, 0 * y, m)},
    "loss by way of the probability": {"forward": _with(1, lambda loss: -torch.log(torch.exp(-loss)))},
    "hinge against all classes": {"forward": _with(2, lambda hinge: hinge.clamp(max=0))},
    "max_prob slightly off": {"forward": _with(3, lambda prob: prob * 0.999)},
    "entropy in bits": {"forward": _with(4, lambda entropy: entropy / np.log(2))},
    "gradient of the margin alone": {"backward": lambda g, z, y: reference.backward((g[0], *[None] * 4), z, y)},
    "finite gradient of an infinite margin": {"backward": lambda g, z, y: reference.backward(g, z, y).nan_to_num()},
}


@pytest.mark.parametrize("broken", BROKEN_KERNELS)
def test_broken_kernels_are_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        LabelledLogits((4, 9), (4,), "contiguous", temper, torch.float32, 5)
        for temper in ("ordinary", "extreme", "masked", "special")
    ]
    stand_in_for_native(monkeypatch, "logit_stats")
    for case in cases:
        check_against_oracle(case, "cpu")
    stand_in_for_native(monkeypatch, "logit_stats", **BROKEN_KERNELS[broken])
    assert any(_fails(case) for case in cases)


def _fails(case: LabelledLogits) -> bool:
    try:
        check_against_oracle(case, "cpu")
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("margin", [-80.0, -30.0, -1.0, 0.0, 1.0, 10.0, 30.0, 80.0])
def test_a_margin_by_hand(run_on: Implementation, margin: float) -> None:
    """Nine equal rivals below the label: log-odds ``margin`` exactly where log p - log(1 - p) is infinite in float32."""
    logits = torch.zeros(1, 10, device=run_on.device)
    logits[0, 4] = margin + np.log(9)
    stats = logit_stats(logits, torch.tensor([4], device=run_on.device))
    expected = [margin, np.logaddexp(0, -margin), margin + np.log(9)]
    for statistic, value in zip(stats, expected, strict=False):
        assert statistic.item() == pytest.approx(value, rel=1e-5, abs=3e-7)


def test_the_textbook_margin_would_fail() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    prob = logits.softmax(-1)[0, 0]
    assert torch.log(prob) - torch.log(1 - prob) == INF
    assert logit_margin(logits, torch.tensor([0])).item() == pytest.approx(40 - np.log(2), rel=1e-6)


# --- special values ---------------------------------------------------------------------------------------------------

#: Row, label, margin (hinge has the same special values), loss, max_prob, entropy.
SPECIAL_ROWS = {
    "absent class": ([0.0, 0.0, -INF], 0, 0.0, np.log(2), 0.5, np.log(2)),
    "label absent": ([-INF, 0.0, 0.0], 0, -INF, INF, 0.5, np.log(2)),
    "only the label": ([0.0, -INF, -INF], 0, INF, 0.0, 1.0, 0.0),
    "only another": ([-INF, 0.0, -INF], 0, -INF, INF, 1.0, 0.0),
    "nothing": ([-INF, -INF, -INF], 0, NAN, NAN, NAN, NAN),
    "NaN at the label": ([NAN, 0.0, 0.0], 0, NAN, NAN, NAN, NAN),
    "NaN elsewhere": ([0.0, 0.0, NAN], 0, NAN, NAN, NAN, NAN),
    "NaN beside -inf at the label": ([-INF, 0.0, NAN], 0, NAN, NAN, NAN, NAN),
    "NaN beside +inf at the label": ([INF, 0.0, NAN], 0, NAN, NAN, NAN, NAN),
    "+inf at the label": ([INF, 0.0, 0.0], 0, INF, 0.0, NAN, NAN),
    "+inf at the label alone": ([INF, -INF, -INF], 0, INF, 0.0, NAN, NAN),
    "+inf elsewhere": ([0.0, 0.0, INF], 0, -INF, INF, NAN, NAN),
    "+inf elsewhere twice": ([0.0, INF, INF], 0, -INF, INF, NAN, NAN),
    "+inf elsewhere, label absent": ([-INF, 0.0, INF], 0, -INF, INF, NAN, NAN),
    "+inf at both": ([INF, 0.0, INF], 0, NAN, NAN, NAN, NAN),
    "far apart": ([1e4, -1e4, -INF], 0, 2e4, 0.0, 1.0, 0.0),
    "far apart, wrong": ([1e4, -1e4, -INF], 1, -2e4, 2e4, 1.0, 0.0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SPECIAL_ROWS)
def test_special_values(run_on: Implementation, case: str, dtype: torch.dtype) -> None:
    row, label, margin, loss, max_prob, entropy = SPECIAL_ROWS[case]
    hinge = margin
    for padding in (0, 70) if not run_on.interpreted else (0,):
        ordinary = [0.5] * (len(row) + padding)
        rows = torch.tensor([ordinary, row + [-INF] * padding, ordinary], dtype=dtype, device=run_on.device)
        logits = rows.clone().requires_grad_()
        labels = torch.full((3,), label, device=run_on.device)
        stats = logit_stats(logits, labels)
        for name, statistic, expected in zip(
            stats._fields, stats, (margin, loss, hinge, max_prob, entropy), strict=True
        ):
            tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5  # 1e4 is no bfloat16
            assert statistic[1].item() == pytest.approx(expected, rel=tolerance, abs=1e-6, nan_ok=True), name
            assert statistic[[0, 2]].isfinite().all(), name
        assert logit_margin(logits, labels)[1].item() == pytest.approx(margin, rel=1e-2, nan_ok=True)
        for used in (stats[:1], stats):
            (gradient,) = torch.autograd.grad(sum(s.sum() for s in used), logits, retain_graph=True)
            assert gradient[[0, 2]].isfinite().all()
            assert gradient[1].isfinite().all() if np.isfinite(margin) else gradient[1].isnan().all()


def test_of_equal_largest_logits_the_first_gets_the_gradient(run_on: Implementation) -> None:
    for num_classes in (5, 40, 100):
        logits = torch.zeros(2, num_classes, device=run_on.device)
        logits[:, [1, 3, 4]] = 2.0
        logits.requires_grad_()
        stats = logit_stats(logits, torch.tensor([1, 0], device=run_on.device))
        (gradient,) = torch.autograd.grad(stats.hinge.sum(), logits, retain_graph=True)
        expected = torch.zeros(2, num_classes)
        expected[0, 1], expected[0, 3] = 1, -1
        expected[1, 0], expected[1, 1] = 1, -1
        assert torch.equal(gradient.cpu(), expected)
        (gradient,) = torch.autograd.grad(stats.max_prob.sum(), logits)
        assert (gradient[:, 1] > 0).all()
        assert (gradient[:, 2:] < 0).all()


def test_a_label_out_of_range_is_nan_in_the_kernel_and_an_error_at_the_door(run_on: Implementation) -> None:
    logits = torch.randn(4, 6, device=run_on.device)
    labels = torch.tensor([0, -1, 6, 2**40], device=run_on.device)
    with pytest.raises(InputError, match=r"labels: holds -1; give classes from 0 to 5"):
        logit_stats(logits, labels)
    with pytest.raises(InputError, match=r"labels: holds 1099511627776; give classes from 0 to 5"):
        logit_margin(logits, labels.abs())
    backend = select("logit_stats", logits, labels, False)
    for statistic in (*backend.forward(logits, labels, False), backend.forward(logits, labels, True)[0]):
        assert statistic.isnan().tolist() == [False, True, True, True]
    ones = torch.ones(4, device=run_on.device)
    gradient = backend.backward((ones, None, None, None, ones), logits, labels)
    assert gradient.isnan().all(-1).tolist() == [False, True, True, True]
    assert gradient[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_no_rows_give_empty_results(run_on: Implementation, shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, device=run_on.device, requires_grad=True)
    stats = logit_stats(logits, torch.zeros(shape[:-1], dtype=torch.int64, device=run_on.device))
    assert all(statistic.shape == shape[:-1] for statistic in stats)
    assert torch.autograd.grad(sum(s.sum() for s in stats), logits)[0].shape == shape


# --- derivatives, size, determinism -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3), (2, 33)])
def test_gradcheck(run_on: Implementation, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=rng, dtype=torch.float64).to(run_on.device).requires_grad_()
    labels = torch.randint(shape[-1], shape[:-1], generator=rng).to(run_on.device)
    fast = run_on.interpreted or logits.numel() > 40
    assert torch.autograd.gradcheck(lambda z: tuple(logit_stats(z, labels)), (logits,), fast_mode=fast)
    assert torch.autograd.gradcheck(lambda z: logit_margin(z, labels), (logits,), fast_mode=fast)


@settings(PROPERTY, max_examples=60)
@given(case=labelled_logits())
def test_the_reference_has_the_same_gradient_by_formula_and_by_differentiation(case: LabelledLogits) -> None:
    """The first is what a machine without native modules runs, the second what use_backend("reference") asks for."""
    logits, labels = case.build("cpu")
    labels = labels[(None,) * (logits.ndim - 1 - labels.ndim)]
    statistics = reference.forward(logits, labels, False)
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(statistic.shape, generator=rng).to(statistic) for statistic in statistics]
    by_formula = reference.backward(weights, logits, labels)
    logits.requires_grad_()
    by_differentiation = torch.autograd.grad(reference.differentiable(logits, labels, False), logits, weights)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}[case.dtype]
    torch.testing.assert_close(by_differentiation[0], by_formula, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_a_strided_upstream_gradient_and_untouched_inputs(run_on: Implementation) -> None:
    logits = torch.randn(4, 3, 6, device=run_on.device).requires_grad_()
    labels = torch.randint(6, (4, 3), device=run_on.device)
    before = logits.detach().clone(), labels.clone()
    weights = torch.randn(3, 4, device=run_on.device).T
    for upstream in (weights, weights[:, :1].expand(4, 3)):
        (gradient,) = torch.autograd.grad(logit_margin(logits, labels), logits, upstream)
        (expected,) = torch.autograd.grad(logit_margin(logits, labels), logits, upstream.contiguous())
        assert torch.equal(gradient, expected)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("num_classes", [16, 128])
def test_offsets_beyond_32_bits(run_on: Implementation, num_classes: int) -> None:
    values = torch.randn(2, num_classes, generator=torch.Generator().manual_seed(0)).bfloat16().to(run_on.device)
    labels = torch.tensor([1, num_classes - 1], device=run_on.device)
    expected = logit_stats(values, labels)
    for strided in far_apart(run_on.device, num_classes):
        strided.copy_(values)
        for statistic, exact in zip(logit_stats(strided, labels), expected, strict=True):
            torch.testing.assert_close(statistic, exact, rtol=1e-6, atol=1e-6)


def test_more_than_2_to_the_31_elements(compiled: Implementation) -> None:
    """One row repeated by a zero stride: 2^31 elements to go through, all of them in a cache."""
    if compiled.backend == "reference":
        pytest.skip("plain PyTorch would hold all of them as float64; it indexes nothing by itself")
    num_classes = 2**16
    rows = 2**15 + 3
    row = torch.randn(1, num_classes, generator=torch.Generator().manual_seed(0)).to(compiled.device)
    labels = torch.tensor([num_classes - 1], device=compiled.device)
    margin = logit_margin(row.expand(rows, num_classes), labels)
    assert margin.shape == (rows,)
    assert (margin == logit_margin(row, labels)).all()


@pytest.mark.parametrize("shape", [(3000, 10), (700, 130), (5, 40_000)], ids=str)
def test_the_same_bits_in_every_run_and_for_any_number_of_threads(
    compiled: Implementation, shape: tuple[int, int]
) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=rng).to(compiled.device).requires_grad_()
    labels = torch.randint(shape[1], shape[:1], generator=rng).to(compiled.device)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            stats = logit_stats(logits, labels)
            runs.append((*stats, *torch.autograd.grad(sum(s.sum() for s in stats), logits)))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_dtype(run_on: Implementation, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 6, device=run_on.device)
    labels = torch.tensor([0, 5, 2, 1], device=run_on.device)
    assert torch.equal(logit_margin(logits, labels.to(dtype)), logit_margin(logits, labels))


@pytest.mark.parametrize("labels_shape", [(4,), (3, 1), (1, 4), (3, 4), (1,), ()], ids=str)
def test_labels_broadcast_over_models(run_on: Implementation, labels_shape: tuple[int, ...]) -> None:
    logits = torch.randn(3, 4, 6, device=run_on.device)
    labels = torch.randint(6, labels_shape, generator=torch.Generator().manual_seed(0)).to(run_on.device)
    shared = logit_stats(logits, labels)
    full = logit_stats(logits, labels.expand(3, 4).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(shared, full, strict=True))


def test_autocast_changes_nothing(run_on: Implementation) -> None:
    logits = torch.randn(4, 6, device=run_on.device).requires_grad_()
    labels = torch.tensor([0, 5, 2, 1], device=run_on.device)
    plain = logit_margin(logits, labels)
    with torch.autocast(run_on.device, dtype=torch.bfloat16):
        assert torch.equal(logit_margin(logits, labels), plain)
