"""Numbers from scores: ROC and its intervals, M scores and their nulls. Higher score = more likely a member, everywhere."""

from fastmem.metrics.audit import AuditMetrics, audit_metrics
from fastmem.metrics.intervals import clopper_pearson
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

__all__ = [
    "LABEL_VARIANTS",
    "LEVELS",
    "PRIORS",
    "VARIANTS",
    "Answers",
    "AuditMetrics",
    "MScore",
    "MembershipMetrics",
    "MemorisationTest",
    "PerTarget",
    "Roc",
    "TprAtFpr",
    "Transfer",
    "audit_metrics",
    "clopper_pearson",
    "image_tests",
    "level_key",
    "m_score",
    "membership_metrics",
    "memorisation_test",
    "nulls_needed",
    "pairs_needed",
    "rank_p_value",
    "roc",
    "score_features",
]
