"""Batches: a tensor ``[n, ...]`` holds n samples, each treated alone."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from lib.checks import check_tensor

NARROW = (torch.float16, torch.bfloat16)


def check_batch(v: Tensor, name: str = "v") -> None:
    """ValueError unless v holds floats, in samples [n, ...] of one entry or more."""
    if not isinstance(v, Tensor) or v.is_meta:
        check_tensor(name, v)
    if not v.is_floating_point():
        raise ValueError(f"{name} must hold floats, got {v.dtype}: pass {name}.float()")
    if v.dim() == 0 or 0 in v.shape[1:]:
        raise ValueError(
            f"{name} must be a batch [n, ...] of samples with one entry or more, got "
            f"{list(v.shape)}: pass a single sample as {name}[None]"
        )


def check_finite(v: Tensor, name: str) -> None:
    """ValueError for NaN and infinity."""
    # The sum takes one pass where all is well; large finite entries may overflow it.
    if not math.isfinite(v.detach().sum()) and not torch.isfinite(v).all():
        wrong = int((~torch.isfinite(flatten(v))).any(1).sum())
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {wrong} of {len(v)} samples: leave "
            "them out"
        )


def flatten(v: Tensor) -> Tensor:
    """[n, ...] -> [n, p]; [n] -> [n, 1]."""
    return v.unsqueeze(-1).flatten(1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ..., 1], to meet a batch ``like`` [n, ...]."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def widened(v: Tensor) -> Tensor:
    """v in float32 if its type is narrower: squares and long sums need the range and the digits."""
    return v.float() if v.dtype in NARROW else v


@cache
def safe_range(dtype: torch.dtype) -> tuple[float, float]:
    """Between these the square of a norm loses nothing that matters to under- or overflow."""
    kind = torch.finfo(dtype)
    least = kind.tiny**0.5 / kind.eps
    return least, 1 / least


def in_safe_range(norms: Tensor) -> bool:
    """Whether the squares of all these norms are safe."""
    if not len(norms):
        return True
    least, most = safe_range(norms.dtype)
    low, high = norms.detach().aminmax()
    return least < float(low) and float(high) < most


def l2_norm(v: Tensor) -> Tensor:
    """``‖v‖₂`` of each sample, [n, ...] -> [n], whatever its size; in float32 at least."""
    v = flatten(widened(v))
    norm = torch.linalg.vector_norm(v, dim=1)
    if not v.is_cuda and in_safe_range(norm):  # a GPU would have to wait for the answer
        return norm
    least, most = safe_range(v.dtype)
    safe, kind = (norm > least) & (norm < most), torch.finfo(v.dtype)
    peak = v.detach().abs().amax(1, keepdim=True).clamp(kind.tiny, kind.max)
    return torch.where(safe, norm, torch.linalg.vector_norm(v / peak, dim=1) * peak[:, 0])
