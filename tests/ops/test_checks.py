"""What the operators refuse at the door: one line that names the argument, what was given and what is accepted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from fastmem.errors import InputError
from fastmem.ops import _checks, kl_div, logit_margin, logit_stats

LOGITS = torch.zeros(3, 5)
LABELS = torch.zeros(3, dtype=torch.int64)


class Marked(torch.Tensor):
    """A tensor subclass, as libraries of distributed or named tensors have them."""


def _quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(LOGITS, 0.1, 0, torch.qint8)


#: What no operator takes for its logits: the value, and what the message must say.
NOT_LOGITS = {
    "a list": ([[0.0] * 5] * 3, r"got list; give a torch\.Tensor"),
    "numpy": (np.zeros((3, 5)), "got ndarray; give a torch.Tensor"),
    "subclass": (LOGITS.as_subclass(Marked), "tensor subclass Marked; give a plain torch.Tensor"),
    "sparse": (LOGITS.to_sparse(), r"layout torch\.sparse_coo; give a dense one"),
    "quantised": (_quantised(), r"quantised tensor \(torch\.qint8\); give \.dequantize\(\)"),
    "negative bit": (torch.zeros(3, 5, dtype=torch.complex64).conj().imag, r"negative bit is set; give \.resolve_neg"),
    "conjugate bit": (torch.zeros(3, 5, dtype=torch.complex64).conj(), "conjugate bit is set"),
    "complex": (LOGITS.to(torch.complex64), "got dtype complex64; accepted: float16, bfloat16, float32, float64"),
    "integers": (LOGITS.long(), "got dtype int64; accepted: float16"),
    "float8": (LOGITS.to(torch.float8_e5m2), "got dtype float8_e5m2"),
    "no dimension": (torch.tensor(1.0), r"has shape \[\]; give \[\.\.\., C\]"),
    "no classes": (torch.zeros(3, 0), r"has shape \[3, 0\]; give \[\.\.\., C\]"),
}


@pytest.mark.parametrize("case", NOT_LOGITS)
def test_what_is_not_logits(case: str) -> None:
    value: Any
    value, message = NOT_LOGITS[case]
    with pytest.raises(InputError, match=f"p_logits: .*{message}"):
        kl_div(value, LOGITS)
    with pytest.raises(InputError, match=f"q_logits: .*{message}"):
        kl_div(LOGITS, value)
    for operator in (logit_margin, logit_stats):
        with pytest.raises(InputError, match=f"^logits: .*{message}"):
            operator(value, LABELS)


def test_parameters_and_inference_tensors_are_plain_tensors() -> None:
    assert kl_div(torch.nn.Parameter(LOGITS), LOGITS).shape == (3,)
    with torch.inference_mode():
        made_here = torch.zeros(3, 5)
        assert kl_div(made_here, LOGITS).shape == (3,)
        assert logit_margin(made_here, LABELS).shape == (3,)


@pytest.mark.parametrize(
    ("q_shape", "message"),
    [
        ((3, 4), r"\[3, 4\] against p_logits of \[3, 5\]; the last dimension"),
        ((3, 1), "the last dimension"),
        ((2, 5), r"\[2, 5\] against p_logits of \[3, 5\]; leading dimensions must be equal or 1"),
        ((4, 2, 5), "leading dimensions"),
        ((0, 5), "leading dimensions"),
    ],
)
def test_shapes_that_do_not_broadcast(q_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"q_logits: has shape .*{message}"):
        kl_div(LOGITS, torch.zeros(q_shape))


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (0.0, r"got 0\.0; give a finite number above 0"),
        (-1, "got -1; give"),
        (float("inf"), "got inf"),
        (float("nan"), "got nan"),
        ("1", "got str; give a number"),
        (True, "got bool"),
        (torch.tensor(1.0), "got Tensor"),
        (None, "got NoneType"),
    ],
)
def test_temperatures(temperature: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"temperature: {message}"):
        kl_div(LOGITS, LOGITS, temperature)


@pytest.mark.parametrize("temperature", [2, 2.0, np.float32(2), np.int64(2)])
def test_a_temperature_may_be_any_real_number(temperature: Any) -> None:
    assert kl_div(LOGITS, torch.eye(3, 5), temperature).tolist() == kl_div(LOGITS, torch.eye(3, 5) / 2).tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "got list"),
        (torch.zeros(3), "got dtype float32; accepted: int64"),
        (torch.zeros(3, dtype=torch.bool), "got dtype bool"),
        (torch.zeros(2, dtype=torch.int64), r"has shape \[2\] against logits of \[3, 5\]; .* broadcasts to \[3\]"),
        (torch.zeros(3, 5, dtype=torch.int64), r"has shape \[3, 5\] against"),
        (torch.zeros(1, 3, dtype=torch.int64), r"has shape \[1, 3\] against"),
        (torch.tensor([0, 5, 1]), "holds 5; give classes from 0 to 4"),
        (torch.tensor([0, -100, 1]), "holds -100; give classes from 0 to 4"),
    ],
)
def test_labels(labels: Any, message: str) -> None:
    for operator in (logit_margin, logit_stats):
        with pytest.raises(InputError, match=f"labels: {message}"):
            operator(LOGITS, labels)


def test_one_class_leaves_no_margin() -> None:
    with pytest.raises(InputError, match=r"logits: has shape \[3, 1\]; give \[\.\.\., C\] with at least two classes"):
        logit_margin(torch.zeros(3, 1), LABELS)


def test_two_devices() -> None:
    with pytest.raises(InputError, match=r"q_logits: is on meta but p_logits is on cpu; .*\.to\('cpu'\)"):
        kl_div(LOGITS, LOGITS.to("meta"))
    with pytest.raises(InputError, match="labels: is on cpu but logits is on meta"):
        logit_margin(LOGITS.to("meta"), LABELS)


def test_accumulation_is_never_narrower_than_float32() -> None:
    assert _checks.accumulation_dtype(torch.float64) is torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert _checks.accumulation_dtype(dtype) is torch.float32
