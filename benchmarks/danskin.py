"""One direction of lib.danskin beside the published formulation: one interleaved run, one thread.

``python benchmarks/danskin.py [--json FILE]`` takes k = 10 attacks of PGD-7 on a batch of 100
digits and times, on the same perturbations,

    gradients   k batches one after another, against one graph over k·100 samples and k backward
                passes that retain it
    simplex     the exact point from the k x k products, against 100 accelerated projected gradient
                steps from the uniform weights (FISTA with momentum j/(j + 3), step 1/‖GGᵀ‖₂)
    both        the two, with the products, from the perturbations to the min-norm point
    memory      the greatest growth of the resident set in a fresh process that does the gradients

and one step of adversarial training over the passes that it is made of. Times are medians of the
process's CPU time, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib import attacks, data, models, training
from lib.balls import LInf
from lib.danskin import gradients, min_norm_point

BALL, K, STEPS, BATCH = LInf(0.1), 10, 7, 100
SHORT = 20  # runs in a row of what takes a millisecond
ARCHITECTURES = {"mlp": models.mlp, "cnn": models.cnn}


def published_gradients(model: nn.Module, inputs: Tensor, b: Tensor) -> Tensor:
    """The k gradients of the k mean losses of one graph over all k·m samples: [k, p]."""
    losses = attacks.cross_entropy(model(inputs.flatten(0, 1)), b.repeat(len(inputs)))
    rows = []
    for loss in losses.view(len(inputs), -1).mean(1):
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def accelerated(products: Tensor, steps: int = 100) -> Tensor:
    """FISTA for ``min ½ wᵀ P w`` over the simplex, from the uniform weights: [k, k] -> [k]."""
    k = len(products)
    counts = torch.arange(1, k + 1)
    w = before = torch.full((k,), 1 / k, dtype=products.dtype)
    step = 1 / torch.linalg.matrix_norm(products, ord=2)
    for j in range(steps):
        v = w + j / (j + 3) * (w - before)
        v = v - step * (products @ v)
        # The projection on the simplex subtracts the threshold that leaves a sum of 1.
        ordered = v.sort(descending=True).values
        thresholds = (ordered.cumsum(0) - 1) / counts
        last = (ordered > thresholds).sum() - 1
        before, w = w, (v - thresholds[last]).clamp_(min=0)
    return w


def factor(products: Tensor) -> Tensor:
    """k vectors [k, k] with these inner products: what ``min_norm_point`` has left to solve."""
    values, vectors = torch.linalg.eigh(products.double())
    return vectors * values.clamp(min=0).sqrt()


def perturbed(model: nn.Module, a: Tensor, b: Tensor, seed: int = 0) -> Tensor:
    """k attacked batches [k, m, ...] by PGD-7 from random starts."""
    generator, low, high = torch.Generator().manual_seed(seed), -a, 1 - a
    f, inputs = attacks.loss_of(model, a, b), []
    for _ in range(K):
        start = BALL.project(BALL.sample(tuple(a.shape), generator), low, high)
        step_size = 2.5 * BALL.eps / STEPS
        inputs.append(a + attacks.pga(f, start, BALL, step_size, STEPS, low, high, steepest=True))
    return torch.stack(inputs).clamp(0, 1)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each run, all taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if turn:  # the first is to warm up
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return 4096 * pages


def growth(method: str, name: str) -> int:
    """How far the resident set rises in this process, a fresh one, during one gradient phase.

    One small pass before loads what torch loads once. A sampling thread sees the peak.
    """
    model = ARCHITECTURES[name]().eval()
    inputs = torch.rand(K, BATCH, 1, 28, 28)
    b = torch.arange(BATCH) % 10
    phase = {"ours": gradients, "published": published_gradients}[method]
    phase(model, inputs[:1, :1].clone(), b[:1])
    begin = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(2e-4):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = phase(model, inputs, b)
    peak = max(peak, resident())
    done.set()
    watcher.join()
    assert rows.shape[0] == K
    return peak - begin


def memory(method: str, name: str) -> float:
    """The median growth of three processes, in MiB."""
    command = [sys.executable, __file__, "--growth", method, name]
    found = [int(subprocess.check_output(command, text=True)) for _ in range(3)]
    return statistics.median(found) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--growth", nargs=2, help=argparse.SUPPRESS)  # used by memory
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.growth:
        return print(growth(*arguments.growth))
    train, figures = data.digits("train", seed=0), {}
    a, b = train.a[:BATCH], train.b[:BATCH]
    adversarial = training.adversarial(functools.partial(attacks.attack, ball=BALL, steps=STEPS))
    for name, architecture in ARCHITECTURES.items():
        model = architecture(seed=0)
        training.fit(model, train, training.erm(), epochs=2, progress=False)
        model.eval()
        inputs = perturbed(model, a, b)
        G = gradients(model, inputs, b)
        P = G @ G.T
        R = factor(P)
        published, ours = accelerated(P, 100) @ G, min_norm_point(G) @ G
        converged = accelerated(P.double(), 5_000).float() @ G
        _, residual = min_norm_point(G, return_residual=True)

        def passes(model=model) -> None:
            """What a step consists of: 7 passes to the input and the last without, then x's."""
            for _ in range(STEPS):
                z = a.clone().requires_grad_()
                torch.autograd.grad(attacks.cross_entropy(model(z), b).sum(), z)
            with torch.no_grad():
                attacks.cross_entropy(model(a), b)
            training.erm()(model, a, b)

        seconds = interleaved(
            {
                "gradients, published": lambda m=model, z=inputs: published_gradients(m, z, b),
                "gradients": lambda m=model, z=inputs: gradients(m, z, b),
                "simplex, published": lambda P=P: [accelerated(P) for _ in range(SHORT)],
                "simplex": lambda R=R: [min_norm_point(R) for _ in range(SHORT)],
                "both, published": lambda m=model, z=inputs: (
                    accelerated((rows := published_gradients(m, z, b)) @ rows.T) @ rows
                ),
                "both": lambda m=model, z=inputs: min_norm_point(rows := gradients(m, z, b)) @ rows,
                "attacks": lambda m=model: perturbed(m, a, b),
            },
            arguments.repeats,
        )
        for which in ("simplex", "simplex, published"):
            seconds[which] /= SHORT
        steps = interleaved(
            {"step": lambda m=model: adversarial(m, a, b), "passes": passes}, 5 * arguments.repeats
        )
        figures[name] = {
            "seconds": seconds,
            "MiB": {method: memory(method, name) for method in ("published", "ours")},
            "cosine": float(torch.cosine_similarity(ours.double(), converged.double(), dim=0)),
            "cosine at 100 steps": float(torch.cosine_similarity(ours, published, dim=0)),
            "norm over ours at 100 steps": float(published.norm() / ours.norm()),
            "residual": residual,
            "adversarial step over its passes": steps["step"] / steps["passes"],
        }

    print(f"k = {K} attacks, PGD-{STEPS}, batch {BATCH}; torch {torch.__version__}, one thread\n")
    print(f"{'':34}" + "".join(f"{name:>12}" for name in figures) + f"{'goal':>9}")

    def row(title: str, values: list[str], goal: str = "") -> None:
        print(f"{title:34}" + "".join(f"{value:>12}" for value in values) + f"{goal:>9}")

    for part, goal in (("gradients", ">= 4x"), ("simplex", ">= 10x"), ("both", "")):
        for which in (f"{part}, published", part):
            row(which, [f"{1e3 * f['seconds'][which]:.2f} ms" for f in figures.values()])
        ratios = [f["seconds"][f"{part}, published"] / f["seconds"][part] for f in figures.values()]
        row("  ratio", [f"{ratio:.1f}x" for ratio in ratios], goal)
    row("the k attacks", [f"{1e3 * f['seconds']['attacks']:.0f} ms" for f in figures.values()])
    for which in ("published", "ours"):
        row(f"memory, {which}", [f"{f['MiB'][which]:.1f} MiB" for f in figures.values()])
    ratios = [f["MiB"]["ours"] / f["MiB"]["published"] for f in figures.values()]
    row("  ours over published", [f"{ratio:.2f}" for ratio in ratios], "< 0.5")
    row(
        "cosine, published run to its end",
        [f"{f['cosine']:.8f}" for f in figures.values()],
        "> 0.9999",
    )
    row("cosine at 100 steps", [f"{f['cosine at 100 steps']:.6f}" for f in figures.values()])
    row(
        "norm over ours at 100 steps",
        [f"{f['norm over ours at 100 steps']:.6f}" for f in figures.values()],
    )
    row("KKT residual of ours", [f"{f['residual']:.0e}" for f in figures.values()])
    row(
        "adversarial step over its passes",
        [f"{f['adversarial step over its passes']:.3f}" for f in figures.values()],
        "<= 1.05",
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
