"""``fastmem attack``: membership attacks on answers that are already there."""

from fastmem.studies.attack.config import AttackConfig
from fastmem.studies.attack.run import run_attack

__all__ = ["AttackConfig", "run_attack"]
