"""What a page uses."""

from lib.pages import exercises, interactive, plots
from lib.pages._setup import setup

__all__ = [
    "exercises",
    "interactive",
    "plots",
    "setup",
]
