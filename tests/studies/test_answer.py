"""The sentence says what the numbers say, by the attack that the rule names, and warns of a control that is off."""

from __future__ import annotations

from typing import Any

import pytest

from fastmem.attacks import ATTACKS
from fastmem.studies.answer import answer_sentence, control_warnings, headline_key, strongest_key

_REFERENCES = dict.fromkeys(ATTACKS, True) | {"loss": False}


def _entry(tpr: float, low: float, high: float, auc: float = 0.6, resolvable: bool = True) -> dict[str, Any]:
    level = {"tpr": tpr, "low": low, "high": high, "realised_fpr": 0.01, "resolvable": resolvable}
    chance = {"tpr": 0.0101, "low": 0.008, "high": 0.012, "realised_fpr": 0.01, "resolvable": resolvable}
    control = {"auc": 0.501, "auc_low": 0.49, "auc_high": 0.51, "tpr_at_fpr": {"0.01": chance}}
    return {
        "title": "An attack",
        "auc": auc,
        "auc_low": auc - 0.01,
        "auc_high": auc + 0.01,
        "tpr_at_fpr": {"0.01": level},
        "controls": {"shuffled": control, "never_saw": control},
    }


def test_a_clear_leak_is_called_memorisation() -> None:
    attacks = {"lira_online": _entry(0.31, 0.30, 0.33)}
    sentence = answer_sentence(attacks, 64, _REFERENCES)
    assert sentence == (
        "An attacker with 63 shadow models names 31.0% of the training records (30.0-33.0%) at 1.0% false positives by "
        "An attack (chance 1.0%; shuffled membership 1.0%; models that never saw them 1.0%): this model memorises."
    )


def test_a_small_leak_is_called_small() -> None:
    assert "leaks a little" in answer_sentence({"lira_online": _entry(0.02, 0.015, 0.025)}, 64, _REFERENCES)


def test_nothing_found_is_said_without_promising_safety() -> None:
    sentence = answer_sentence({"lira_online": _entry(0.011, 0.008, 0.014, auc=0.505)}, 64, _REFERENCES)
    assert sentence.startswith("No memorisation was found")
    assert "may still find some" in sentence


def test_a_leak_that_only_the_ranking_shows_is_not_called_none() -> None:
    sentence = answer_sentence({"lira_online": _entry(0.04, 0.0, 0.11, auc=0.845)}, 8, _REFERENCES)
    assert "probability 0.845 (0.835-0.855)" in sentence
    assert "this model leaks; it names 4.0% of the training records (0.0-11.0%) at 1.0% false positives" in sentence


def test_too_few_records_are_answered_by_the_auc() -> None:
    found = answer_sentence({"lira_online": _entry(0.5, 0.1, 0.9, resolvable=False)}, 64, _REFERENCES)
    assert "0.600" in found
    assert "too few records" in found
    nothing = answer_sentence({"lira_online": _entry(0.5, 0.1, 0.9, auc=0.505, resolvable=False)}, 64, _REFERENCES)
    assert nothing.startswith("No memorisation was found")


def test_the_headline_follows_the_rule_and_not_the_result() -> None:
    attacks = {
        "loss": _entry(0.9, 0.8, 0.95),
        "lira_online": _entry(0.3, 0.2, 0.4),
        "lira_online_fixed": _entry(0, 0, 0),
    }
    assert headline_key(attacks, 64) == "lira_online"
    assert headline_key(attacks, 62) == "lira_online_fixed"
    assert strongest_key(attacks) == "loss"
    assert "strongest of 3 attacks 90.0%, An attack" in answer_sentence(attacks, 64, _REFERENCES)


@pytest.mark.parametrize("key", ATTACKS)
def test_any_single_attack_can_carry_the_sentence(key: str) -> None:
    sentence = answer_sentence({key: _entry(0.31, 0.30, 0.33)}, 16, _REFERENCES)
    assert ("without shadow models" in sentence) == (key == "loss")


def test_a_level_that_cannot_be_resolved_does_not_make_the_strongest() -> None:
    attacks = {"loss": _entry(0.9, 0.8, 0.95, resolvable=False), "rmia_online": _entry(0.1, 0.05, 0.2)}
    assert strongest_key(attacks) == "rmia_online"


def test_a_control_off_chance_is_a_warning_and_one_by_luck_is_not() -> None:
    lucky, broken = _entry(0.3, 0.2, 0.4), _entry(0.3, 0.2, 0.4)
    lucky["controls"] = {"shuffled": {"auc": 0.511, "auc_low": 0.501, "auc_high": 0.521}}
    broken["controls"] = {"never_saw": {"auc": 0.42, "auc_low": 0.41, "auc_high": 0.43}}
    assert control_warnings({"lira_online": lucky}) == []
    (warning,) = control_warnings({"lira_online": broken})
    assert "never saw" in warning
    assert "0.420" in warning
