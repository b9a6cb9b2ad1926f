"""The operator norm of a layer's linear map: of a matrix, and of a convolution (slides 36, 39)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
    Raises ValueError for other shapes and for values that are not finite.
    """
    weight = weight.detach().double()
    if not torch.isfinite(weight).all():
        raise ValueError("the weight must be finite, got NaN or infinity")
    if weight.dim() == 2 and input_shape is None:
        return float(torch.linalg.matrix_norm(weight, 2))
    if weight.dim() != 4 or input_shape is None or len(input_shape) != 2:
        raise ValueError(
            "needs a matrix [m, n], or a kernel [out, in, kh, kw] and input_shape=(h, w), got "
            f"{list(weight.shape)} and {input_shape}"
        )
    if padding is None:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    shape = (1, weight.shape[1], *input_shape)

    def forward(v: Tensor) -> Tensor:
        return F.conv2d(v, weight, stride=stride, padding=padding)

    size = math.prod(shape)
    if size <= 256:
        matrix = forward(
            torch.eye(size, dtype=torch.float64, device=weight.device).view(size, *shape[1:])
        )
        return float(torch.linalg.matrix_norm(matrix.flatten(1), 2))
    if not weight.any():
        return 0.0
    from scipy.sparse.linalg import LinearOperator, eigsh

    def gram(v: np.ndarray) -> np.ndarray:
        image = torch.as_tensor(v, dtype=torch.float64, device=weight.device).view(shape)
        back = torch.nn.grad.conv2d_input(shape, weight, forward(image), stride, padding)
        return back.flatten().cpu().numpy()

    start = np.random.default_rng(0).normal(size=size)
    operator = LinearOperator((size, size), matvec=gram, dtype=np.float64)
    [square] = eigsh(operator, k=1, v0=start, tol=1e-10, return_eigenvectors=False)
    return math.sqrt(max(square, 0.0))
