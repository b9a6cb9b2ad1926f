"""The operator norm of a layer's linear map: of a matrix, and of a convolution (slides 36, 39)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.grad import conv2d_input

from lib.checks import check_counts, check_tensor

Array = NDArray[np.float64]


@torch.no_grad()
def spectral_norm(
    weight: Tensor,
    input_shape: tuple[int, int] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
) -> float:
    """``max ‖W v‖₂ over ‖v‖₂ <= 1``, the Lipschitz constant of ``v -> W v`` (slides 36, 39).

    weight: a matrix [m, n]; or a kernel [out, in, kh, kw] with input_shape = (h, w), whose map
    [in, h, w] -> [out, ...] is the zero-padded convolution (padding None: kh // 2, kw // 2).
    Float64 inside; a matrix by its singular values, a convolution by those of its matrix or,
    where that is large, by the Lanczos method on its Gram operator to a relative 1e-10.
    Raises ValueError for other shapes, complex weights, values that are not finite and a kernel
    that is larger than the padded image.

    >>> import torch
    >>> from lib.lipschitz import spectral_norm
    >>> round(spectral_norm(torch.ones(2, 3)), 4)  # √6
    2.4495
    >>> round(spectral_norm(torch.ones(1, 1, 3, 3), (28, 28)), 4)  # a blur: less than 9
    8.9298
    """
    check_tensor("weight", weight)
    if weight.is_complex() or not torch.isfinite(weight).all():
        got = weight.dtype if weight.is_complex() else "NaN or infinity"
        raise ValueError(f"the weight must be finite real numbers, got {got}")
    weight = weight.detach().double()
    if weight.dim() == 2 and input_shape is None and weight.numel():
        return float(torch.linalg.matrix_norm(weight, 2))
    if weight.dim() != 4 or input_shape is None or len(input_shape) != 2 or not weight.numel():
        raise ValueError(
            "needs a matrix [m, n], or a kernel [out, in, kh, kw] and input_shape=(h, w), got "
            f"{list(weight.shape)} and {input_shape}"
        )
    if padding is None:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    around = padding if isinstance(padding, tuple | list) else (padding, padding)
    for name, least, pair in (("input_shape", 0, input_shape), ("padding", 0, around)):
        for size in pair:
            check_counts(least, **{name: size})
    for step in stride if isinstance(stride, tuple | list) else (stride,):
        check_counts(stride=step)
    sizes = zip(input_shape, around, weight.shape[2:], strict=True)
    if any(size < 1 or size + 2 * p < k for size, p, k in sizes):
        raise ValueError(
            f"the kernel {list(weight.shape[2:])} must fit in the image {tuple(input_shape)} with "
            f"its padding {tuple(around)}"
        )
    peak = float(weight.abs().max())
    if peak == 0:
        return 0.0
    unit = math.ldexp(1.0, math.frexp(peak)[1] - 1)  # of two: dividing by it is exact
    return unit * _convolution_norm(weight / unit, tuple(input_shape), stride, around)


def _convolution_norm(
    weight: Tensor,
    input_shape: tuple[int, ...],
    stride: int | tuple[int, int],
    padding: tuple[int, int],
) -> float:
    """The norm of the convolution with a kernel whose largest entry is about 1."""
    shape = (1, weight.shape[1], *input_shape)

    def forward(v: Tensor) -> Tensor:
        return F.conv2d(v, weight, stride=stride, padding=padding)

    size = math.prod(shape)
    if size <= 256:
        basis = torch.eye(size, dtype=torch.float64, device=weight.device)
        matrix = forward(basis.view(size, *shape[1:])).flatten(1)
        return float(torch.linalg.matrix_norm(matrix, 2))
    from scipy.sparse.linalg import LinearOperator, eigsh

    def gram(v: Array) -> Array:
        image = torch.as_tensor(v, dtype=torch.float64, device=weight.device).view(shape)
        back = conv2d_input(shape, weight, forward(image), stride, padding)
        return back.flatten().cpu().numpy()

    start = np.random.default_rng(0).normal(size=size)
    if not gram(start).any():  # the padding is all that the kernel's entries meet
        return 0.0
    operator = LinearOperator((size, size), matvec=gram, dtype=np.float64)
    [square] = eigsh(operator, k=1, v0=start, tol=1e-10, return_eigenvectors=False)
    return math.sqrt(max(square, 0.0))
