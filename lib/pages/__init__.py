"""What a page uses."""

from lib.pages import exercises, plots
from lib.pages._setup import setup

__all__ = [
    "exercises",
    "plots",
    "setup",
]
