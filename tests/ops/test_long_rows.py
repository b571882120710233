"""Rows so long that GPU kernels cut them into segments: masks, peaks and special values wherever they fall."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastmem.ops import kl_div, logit_stats, use_backend

from .implementations import Implementation, implementations

EXAMPLE = torch.zeros(2, 3)
LABELS = torch.zeros(2, dtype=torch.int64)
CLASSES = 9_000
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=implementations("kl_div", EXAMPLE, EXAMPLE))
def on_pairs(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture(params=implementations("logit_stats", EXAMPLE, LABELS))
def on_logits(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    with use_backend(request.param.backend):
        yield request.param


def masked(p: Tensor, q: Tensor) -> None:
    """A vocabulary padded on both sides, and stretches that only one of them masks."""
    for x in (p, q):
        x[..., 2000:4600] = -INF
        x[..., -1000:] = -INF
    p[..., 100:200] = -INF
    p[..., 4600:7000] = -INF


def masked_from_the_start(p: Tensor, q: Tensor) -> None:
    """All p but a few in the middle absent: whole segments have no weight of their own."""
    p[..., :4300] = -INF
    p[..., 4400:] = -INF


def peaked(p: Tensor, q: Tensor) -> None:
    # Nearly all the mass on one class; the KL stays above 1e-7, where the accuracy contract begins.
    p[..., 6_111] += 25
    q[..., 6_111] += 23


def far_offset(p: Tensor, q: Tensor) -> None:
    q += 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [masked, masked_from_the_start, peaked, far_offset])
def test_divergence_of_long_rows(
    on_pairs: Implementation, change: Callable[[Tensor, Tensor], None], dtype: torch.dtype
) -> None:
    if on_pairs.interpreted and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter would take long")
    rng = torch.Generator().manual_seed(0)
    p = 3 * torch.randn(2, CLASSES, generator=rng)
    q = p + 0.3 * torch.randn(2, CLASSES, generator=rng)
    change(p, q)
    p, q = (x.to(on_pairs.device, dtype).requires_grad_() for x in (p, q))
    kl = kl_div(p, q)
    gradients = torch.autograd.grad(kl.sum(), (p, q))
    with use_backend("reference"):
        exact = kl_div(p.double(), q.double())
        exact_gradients = torch.autograd.grad(exact.sum(), (p, q))
    assert exact.isfinite().all()
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=0)
    rounding = 1e-5 if dtype is torch.float32 else 2**-8
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert ((gradient - expected).norm(dim=-1) <= rounding * expected.norm(dim=-1)).all()


@pytest.mark.parametrize("place", [0, 4499, CLASSES - 1])
def test_special_values_in_long_rows(on_pairs: Implementation, place: int) -> None:
    p = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    q = p.clone()
    p[0, place], q[1, place], q[2, place], p[3, place] = NAN, NAN, -INF, INF
    p, q = (x.to(on_pairs.device).requires_grad_() for x in (p, q))
    kl = kl_div(p, q)
    torch.testing.assert_close(kl.detach().cpu(), torch.tensor([NAN, NAN, INF, NAN, 0.0]), equal_nan=True)
    for gradient in torch.autograd.grad(kl.sum(), (p, q)):
        assert gradient[:4].isnan().all()
        assert gradient[4].isfinite().all()


def test_statistics_of_long_rows(on_logits: Implementation) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, CLASSES, generator=rng)
    labels = torch.randint(CLASSES, (6,), generator=rng)
    logits[0, labels[0]] += 30  # certain
    logits[1, 2500:4700] = -INF
    logits[2, :-1] = -INF  # one class but the label, or none
    labels[1], labels[2], labels[3] = 0, CLASSES - 2, 4700
    logits[3, 6_000] = INF
    logits[4, CLASSES - 1] = NAN
    logits, labels = logits.to(on_logits.device).requires_grad_(), labels.to(on_logits.device)
    stats = logit_stats(logits, labels)
    weights = torch.tensor([1.0, 0.5, -0.3, 2.0, 0.7])
    (gradient,) = torch.autograd.grad([s.sum() * w for s, w in zip(stats, weights, strict=True)], logits)
    with use_backend("reference"):
        exact = logit_stats(logits.double(), labels)
        (expected,) = torch.autograd.grad([s.sum() * w for s, w in zip(exact, weights, strict=True)], logits)
    for name, statistic, value in zip(stats._fields, stats, exact, strict=True):
        torch.testing.assert_close(statistic.double(), value, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)
    torch.testing.assert_close(gradient, expected, rtol=2e-5, atol=1e-6, equal_nan=True)


def test_the_first_of_equal_rivals_across_segments(on_logits: Implementation) -> None:
    logits = torch.zeros(2, CLASSES)
    logits[:, [2000, 4700, 8000]] = 1.0
    logits = logits.to(on_logits.device).requires_grad_()
    stats = logit_stats(logits, torch.tensor([4700, 2000], device=on_logits.device))
    (gradient,) = torch.autograd.grad(stats.hinge.sum(), logits)
    expected = torch.zeros(2, CLASSES)
    expected[0, 4700], expected[0, 2000] = 1, -1
    expected[1, 2000], expected[1, 4700] = 1, -1
    assert torch.equal(gradient.cpu(), expected)
