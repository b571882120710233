"""The report of whatever study a run folder holds."""

from __future__ import annotations

from pathlib import Path

from fastmem.report.artifacts import load_summary
from fastmem.report.audit import write_audit_report
from fastmem.report.canary import write_canary_report
from fastmem.report.few_shot import write_few_shot_report
from fastmem.report.reconstruct import write_reconstruct_report
from fastmem.report.rewind import write_rewind_report
from fastmem.report.trust import write_trust_report

__all__ = ["write_report"]

_WRITERS = {
    "audit": write_audit_report,
    "attack": write_audit_report,
    "canary": write_canary_report,
    "few-shot": write_few_shot_report,
    "reconstruct": write_reconstruct_report,
    "rewind": write_rewind_report,
    "trust": write_trust_report,
}


def write_report(run_dir: str | Path) -> Path:
    """Draw the report of a finished run again; the same files give the same bytes.

    Args:
        run_dir: The run's folder.

    Returns:
        The file written: ``report.html`` in the same folder, self-contained.

    Raises:
        StoreError: A file is missing, corrupt, of a newer fastmem or of an unknown study, or cannot be written.
    """
    summary = load_summary(Path(run_dir))
    study = summary.text("study", "audit")
    if study not in _WRITERS:
        raise summary.wrong("study", f"one of {', '.join(_WRITERS)}")
    return _WRITERS[study](run_dir)
