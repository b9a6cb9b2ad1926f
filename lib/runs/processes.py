"""One training on several processes: ``torchrun --nproc-per-node 2 -m experiments NAME``.

Every process holds the whole model and the whole data, and draws the same random numbers. Of each
minibatch it computes its rows, and the gradients are averaged, so that up to rounding the run is
that of one process, whatever their number. (An attack that ``lib.training.adversarial`` gives a
generator draws on its own in each process.) Without torchrun there is one process, and each
function below returns what it was given.

    started(device)                the process group, for the duration of a ``with``
    local_rows(t)                  this process's rows of a minibatch
    draw_local_rows(draw, shape)   its rows of what one process would draw for the whole minibatch
    mean_(tensors)                 their mean over the processes, in place
    all_rows(t)                    all processes' rows, in order

Batch norm sees its process's rows alone, unless ``nn.SyncBatchNorm`` replaces it (on GPUs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

# What gloo and nccl say when another process is gone, for which torch has no one type of error.
OF_THE_NETWORK = ("connection", "socket", "timed out", "timeout", "broken pipe", "remote process")


class ProcessLost(RuntimeError):
    """Another process has ended; the message says how to go on."""


def world_size() -> int:
    """How many processes there are.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0; the first one writes checkpoints and records.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def started(device: str = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields this process's device.

    device: "cpu" (gloo) or "cuda" (nccl, one GPU a process). Without torchrun: as it is.
    Raises ValueError for more processes on a machine than GPUs.

    >>> with started("cpu") as device:
    ...     device
    device(type='cpu')
    """
    if "LOCAL_RANK" not in os.environ:
        yield torch.device(device)
        return
    mine = torch.device(device)
    if mine.type == "cuda":
        mine, there = torch.device("cuda", int(os.environ["LOCAL_RANK"])), torch.cuda.device_count()
        if mine.index >= there:
            raise ValueError(f"a GPU is needed for each process, there are {there}")
        torch.cuda.set_device(mine)
    dist.init_process_group("nccl" if mine.type == "cuda" else "gloo")
    try:
        yield mine
    finally:
        dist.destroy_process_group()


def require_divisible(**sizes: int) -> None:
    """ValueError for sizes that the processes cannot share evenly.

    >>> require_divisible(batch_size=7)
    """
    n = world_size()
    for name, size in sizes.items():
        if size % n:
            raise ValueError(
                f"{name} must be a multiple of the {n} processes, got {size}: take "
                f"{max(size - size % n, n)}"
            )


def local_rows(t: Tensor) -> Tensor:
    """This process's rows of t [n, ...], n / world_size() of them; ValueError if uneven.

    >>> local_rows(torch.arange(4))
    tensor([0, 1, 2, 3])
    """
    require_divisible(rows=len(t))
    return t.chunk(world_size())[rank()]


def draw_local_rows(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
) -> Tensor:
    """This process's rows, of this shape, of what one process would draw for all rows.

    draw: (shape, generator=) -> tensor of that shape, such as ``torch.rand`` or ``ball.sample``.

    >>> draw_local_rows(torch.rand, (3, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    return local_rows(draw((shape[0] * world_size(), *shape[1:]), generator=generator))


def generator_for_this_process(generator: torch.Generator) -> torch.Generator:
    """A generator of this process's own, drawn from one that all have alike; alone, that one.

    >>> generator = torch.Generator()
    >>> generator_for_this_process(generator) is generator
    True
    """
    if world_size() == 1:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed) + rank())


@torch.no_grad()
def mean_(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in place. Raises ProcessLost.

    >>> mean_([torch.ones(2)])
    """
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _watched():
        dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def all_rows(t: Tensor) -> Tensor:
    """The rows of all processes, [n · world_size(), ...], as many from each. Raises ProcessLost.

    >>> all_rows(torch.arange(3))
    tensor([0, 1, 2])
    """
    if world_size() == 1:
        return t
    parts = [torch.empty_like(t) for _ in range(world_size())]
    with _watched():
        dist.all_gather(parts, t.contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait until all processes are here. Raises ProcessLost.

    >>> barrier()
    """
    if world_size() > 1:
        with _watched():
            dist.barrier()


@contextmanager
def _watched() -> Iterator[None]:
    """A lost process is told as one; other errors, such as too little memory, stay as they are."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistBackendError | dist.DistNetworkError)
        lost = lost or any(said in str(error).lower() for said in OF_THE_NETWORK)
        if isinstance(error, torch.OutOfMemoryError) or not lost:
            raise
        raise ProcessLost(
            f"process {rank()} lost the others ({str(error).splitlines()[0]}): one of them has "
            "ended. The checkpoint remains; start the run again to go on from it"
        ) from error
