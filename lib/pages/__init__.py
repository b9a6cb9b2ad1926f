"""What a page uses: set-up, sentences and code, plots, interactive figures, exercises."""

from lib.pages import exercises, interactive, plots
from lib.pages._setup import setup
from lib.pages._show import say, source

__all__ = [
    "exercises",
    "interactive",
    "plots",
    "say",
    "setup",
    "source",
]
