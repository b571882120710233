"""The answer's words follow the test, and never the image-level one."""

from __future__ import annotations

from typing import Any

import pytest

from fastmem.studies.canary.answer import answer_sentence, headline_variant, own_sentence


def cell(p: float, copies: int = 1, regularise: str = "none") -> dict[str, Any]:
    paired = {"effect": 0.2, "low": 0.1, "high": 0.3, "n": 20, "p_value": p, "p_sign_flip": p}
    sensitivity = {"t": {"canary": {"share": 1.0}, "null": {"share": 1.0}}}
    entry = {"title": "log-ratio", "paired": paired, "sensitivity": sensitivity}
    return {"regularise": regularise, "copies": copies, "variants": {"log_ratio": entry}}


def test_a_trace() -> None:
    text = answer_sentence([cell(0.001)], "log_ratio", 1000, 0.05)
    assert text.startswith("A mark on one training record in 1,000 leaves a trace: models that saw it score +0.2 nats")
    assert "20 seed-matched pairs" in text
    assert "p = 0.001" in text


def test_no_trace_although_every_image_test_rejects() -> None:
    text = answer_sentence([cell(0.4)], "log_ratio", 1000, 0.05)
    assert text.startswith("No trace was found of a mark on one training record in 1,000")
    assert "may be chance" in text


def test_other_settings_are_counted() -> None:
    cells = [cell(0.4), cell(0.001, 100), cell(0.01, regularise="dropout"), cell(0.9, regularise="augment")]
    text = answer_sentence(cells, "log_ratio", 1000, 0.05)
    assert text.endswith("In 2 of 3 other settings there is one too: no regulariser with 100 marked, dropout.")
    assert "In none of 1 other settings" in answer_sentence([cell(0.4), cell(0.5)], "log_ratio", 10, 0.05)


@pytest.mark.parametrize(("p", "start"), [(0.05, "This model looks as if"), (0.3, "No trace of the mark was found")])
def test_a_model_of_ones_own(p: float, start: str) -> None:
    entry = {"title": "KL contrast", "value": 1.0, "rank_p": p, "n_null": 19, "control_rank_p": 0.1, "n_controls": 25}
    text = own_sentence({"kl_contrast": entry}, "kl_contrast", 0.05)
    assert text.startswith(start)
    assert "among 19 models that never saw the mark" in text
    assert "25 control marks" in text


def test_the_headline_does_not_look_at_results() -> None:
    assert headline_variant(["prob_diff", "kl_contrast", "log_ratio"]) == "log_ratio"
    assert headline_variant(["prob_diff", "kl_contrast"]) == "kl_contrast"
    assert headline_variant(["prob_diff_max"]) == "prob_diff_max"
