"""What each page does first, so that it runs alike everywhere."""

from __future__ import annotations

import os

import torch


def setup() -> torch.device:
    """One thread, the house style of figures, and the device that the page computes on.

    The device is the CPU, or what the environment variable COURSE_DEVICE names, for example
    ``COURSE_DEVICE=cuda``. Matplotlib's backend stays, so that what a reader plots is shown.
    Raises RuntimeError when that device is not at hand.

    >>> from lib.pages import setup
    >>> setup().type in ("cpu", "cuda", "mps")
    True
    """
    from lib.pages import plots

    torch.set_num_threads(1)  # pages are small: more threads cost more than they bring
    plots.use_style()
    name = os.environ.get("COURSE_DEVICE", "cpu")
    try:
        device = torch.device(name)
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        raise RuntimeError(
            f"COURSE_DEVICE={name} is not at hand ({str(error).splitlines()[0]}); "
            "unset it to run on the CPU"
        ) from error
    return device
