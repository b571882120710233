"""``fastmem audit``: which records of a pool can an attacker name as training data of a model?"""

from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.audit.run import AuditInterruptedError, AuditResult, run_audit

__all__ = ["AuditConfig", "AuditInterruptedError", "AuditResult", "run_audit"]
