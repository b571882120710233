"""Numbers from scores: ROC and its intervals, Log-MIA, M scores and their nulls. Higher score = more likely a member."""

from fastmem.metrics.audit import AuditMetrics, audit_metrics
from fastmem.metrics.calibration import Reliability, expected_calibration_error, overconfidence_error, reliability
from fastmem.metrics.entanglement import Agreement, agreement, entanglement
from fastmem.metrics.intervals import clopper_pearson
from fastmem.metrics.log_mia import LogMia, LogMiaValue, log_mia, log_mia_over_targets
from fastmem.metrics.log_mia_null import log_mia_null, tp_from_log_mia
from fastmem.metrics.m_score import LABEL_VARIANTS, VARIANTS, Answers, MScore, m_score, score_features
from fastmem.metrics.membership import LEVELS, PRIORS, MembershipMetrics, TprAtFpr, level_key, membership_metrics
from fastmem.metrics.memorisation import (
    MemorisationTest,
    image_tests,
    memorisation_test,
    nulls_needed,
    pairs_needed,
    rank_p_value,
)
from fastmem.metrics.roc import Roc, roc
from fastmem.metrics.targets import PerTarget, Transfer
from fastmem.metrics.trust import DecisionRule, Rate, TrustMetrics, fewest_errors, trust_metrics, youden

__all__ = [
    "LABEL_VARIANTS",
    "LEVELS",
    "PRIORS",
    "VARIANTS",
    "Agreement",
    "Answers",
    "AuditMetrics",
    "DecisionRule",
    "LogMia",
    "LogMiaValue",
    "MScore",
    "MembershipMetrics",
    "MemorisationTest",
    "PerTarget",
    "Rate",
    "Reliability",
    "Roc",
    "TprAtFpr",
    "Transfer",
    "TrustMetrics",
    "agreement",
    "audit_metrics",
    "clopper_pearson",
    "entanglement",
    "expected_calibration_error",
    "fewest_errors",
    "image_tests",
    "level_key",
    "log_mia",
    "log_mia_null",
    "log_mia_over_targets",
    "m_score",
    "membership_metrics",
    "memorisation_test",
    "nulls_needed",
    "overconfidence_error",
    "pairs_needed",
    "rank_p_value",
    "reliability",
    "roc",
    "score_features",
    "tp_from_log_mia",
    "trust_metrics",
    "youden",
]
