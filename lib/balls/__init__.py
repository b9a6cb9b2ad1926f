"""Norm balls, with a box (slides 7, 8, 11, 12)."""

from lib.balls._ball import Ball, check_ball
from lib.balls._balls import L1, L2, LInf
from lib.balls._box import Bound, check_box, clip, room

__all__ = [
    "L1",
    "L2",
    "Ball",
    "Bound",
    "LInf",
    "check_ball",
    "check_box",
    "clip",
    "room",
]
