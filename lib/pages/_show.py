"""What a page says and shows beside its figures: sentences with computed numbers, and code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable


def say(text: str) -> None:
    """Display Markdown whose numbers the page has computed, as a sentence of the page.

    >>> say(f"The error rises from {7:.0f} % to {62:.0f} %.")  # doctest: +SKIP
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be Markdown, got {text!r}")
    _markdown(" ".join(text.split("\n")) if "\n\n" not in text and "|" not in text else text)


def source(*functions: Callable) -> None:
    """Display the code of functions of the library, without their docstrings.

    >>> from lib.attacks import fgsm
    >>> source(fgsm)  # doctest: +SKIP
    """
    for function in functions:
        if not inspect.isfunction(inspect.unwrap(function) if callable(function) else function):
            raise ValueError(f"functions must be written in Python, got {function!r}")
    _markdown("```python\n" + "\n\n\n".join(map(_code, functions)) + "\n```")


def _code(function: Callable) -> str:
    """The definition of a function, its docstring and decorators left out."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    [tree] = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.FunctionDef)
    documented = ast.get_docstring(tree) is not None
    kept = lines[tree.lineno - 1 : tree.body[0].lineno - 1]  # up to the docstring or the body
    first = tree.body[0].end_lineno if documented else tree.body[0].lineno - 1
    return "\n".join([*kept, *lines[first:]])


def _markdown(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))
