"""The one form in which the data sets hand over their images (slides 5, 10, 22 and 24)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lib.checks import check_tensor


@dataclass(frozen=True, eq=False)
class Images:
    """n labeled images; ``images[:100]``, or any index of a tensor, selects some of them.

    a: pixels in [0, 1], a float tensor [n, c, h, w]
    b: labels, an int64 tensor [n] of numbers below ``len(classes)``
    classes: the names of the classes

    A subclass may add tensors [n, ...]: they are selected and moved along with a and b.
    Raises ValueError where these do not hold.

    >>> import torch
    >>> from lib.data import Images
    >>> images = Images(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]), ("no", "yes"))
    >>> len(images), images[images.b == 1].a.shape
    (4, torch.Size([2, 1, 8, 8]))
    """

    a: Tensor
    b: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        a, b = self.a, self.b
        check_tensor("a", a)
        check_tensor("b", b)
        if a.dim() != 4 or not a.is_floating_point():
            raise ValueError(f"a must be float [n, c, h, w], got {a.dtype} {list(a.shape)}")
        if b.dtype != torch.int64 or b.shape != a.shape[:1]:
            raise ValueError(f"b must be int64 [{len(a)}], got {b.dtype} {list(b.shape)}")
        if a.numel() == 0:
            return
        low, high = (float(end) for end in a.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise ValueError(f"pixels must be in [0, 1], got [{low}, {high}]: divide by 255?")
        low, high = (int(end) for end in b.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, got {low} to {high}: {self.classes} "
                "names the classes"
            )

    def __len__(self) -> int:
        return len(self.b)

    def __getitem__(self, index: int | slice | list | np.ndarray | Tensor) -> Self:
        """The chosen images; a single index gives a batch of one."""
        try:
            single = self.b[index].dim() == 0
        except IndexError:
            raise IndexError(f"index must be one of {len(self)} images, got {index!r}") from None
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"index must be a number, a slice, or a tensor or list of some, got {index!r}"
            ) from None
        return self._each(lambda part: part[index][None] if single else part[index])

    def to(self, device: str | torch.device) -> Self:
        """The same images on a device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {n: change(p) for n, p in parts.items() if torch.is_tensor(p)}
        return replace(self, **tensors)


def check_images(data: object) -> None:
    """ValueError for data in another form than Images.

    >>> from lib.data import check_images
    >>> check_images(([0.5], [1]))
    Traceback (most recent call last):
    ValueError: data must be Images, got tuple: pass lib.data.Images(a, b, classes)
    """
    if not isinstance(data, Images):
        got = type(data).__name__
        raise ValueError(f"data must be Images, got {got}: pass lib.data.Images(a, b, classes)")


def check_split(split: str, *known: str) -> None:
    """Raise ValueError unless split is one of the known names."""
    if split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}, got {split!r}")
