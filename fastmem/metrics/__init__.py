"""Numbers from scores: ROC and its intervals. Higher score = more likely a member, everywhere."""

from fastmem.metrics.audit import AuditMetrics, audit_metrics
from fastmem.metrics.intervals import clopper_pearson
from fastmem.metrics.membership import LEVELS, PRIORS, MembershipMetrics, TprAtFpr, level_key, membership_metrics
from fastmem.metrics.roc import Roc, roc
from fastmem.metrics.targets import PerTarget, Transfer

__all__ = [
    "LEVELS",
    "PRIORS",
    "AuditMetrics",
    "MembershipMetrics",
    "PerTarget",
    "Roc",
    "TprAtFpr",
    "Transfer",
    "audit_metrics",
    "clopper_pearson",
    "level_key",
    "membership_metrics",
    "roc",
]
