"""Membership inference from a handful of known records: learners, episodes and the attack."""

from fastmem.attacks.membership.few_shot.attack import FewShot, FewShotResult
from fastmem.attacks.membership.few_shot.draw import Draw, draw_episodes
from fastmem.attacks.membership.few_shot.episodes import (
    EpisodeScores,
    EpisodeTable,
    episodes,
    run_learner,
    score_records,
)
from fastmem.attacks.membership.few_shot.methods import METHODS, access, make_learner

__all__ = [
    "METHODS",
    "Draw",
    "EpisodeScores",
    "EpisodeTable",
    "FewShot",
    "FewShotResult",
    "access",
    "draw_episodes",
    "episodes",
    "make_learner",
    "run_learner",
    "score_records",
]
