"""Generator steps a second with the gradient penalty: lib.gan against a plain loop (slide 40).

    python benchmarks/gan.py

One thread, one process, the two in turn; CPU time, medians over the rounds. The plain loop passes
real, fake and interpolated points through the critic one after the other, differentiates twice by
autograd, and steps with torch's Adam as it comes; its critic has torch's ReLU. Both train MLPs of
two hidden layers of 512 on the eight Gaussians, from the same weights, with five critic steps a
generator step.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.speed import CRITIC_STEPS, PENALTY, plain_wgan
from lib.gan import eight_gaussians, gaussian, point_critic, point_generator, train_wgan
from lib.transport import wasserstein

WIDTH, STEPS, ROUNDS = 512, 20, 7
BATCHES = (64, 128, 256)
REAL = eight_gaussians(20_000, torch.Generator().manual_seed(0))


def players(seed: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    hidden = (WIDTH, WIDTH)
    return point_generator(hidden=hidden, seed=seed), point_critic(hidden=hidden, seed=seed + 100)


def plain(h: torch.nn.Module, d: torch.nn.Module, batch_size: int, steps: int) -> None:
    plain_wgan(h, d, REAL, batch_size, steps)


def ours(h: torch.nn.Module, d: torch.nn.Module, batch_size: int, steps: int) -> None:
    train_wgan(
        *(h, d, REAL, gaussian(2), "penalty"),
        penalty=PENALTY,
        steps=steps,
        critic_steps=CRITIC_STEPS,
        batch_size=batch_size,
        evaluate_every=0,
        progress=False,
    )


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, width {WIDTH}, generator steps a second of CPU")
    print(f"{'batch':>6} {'plain':>8} {'ours':>8} {'ours / plain, each round'}")
    for batch_size in BATCHES:
        speed: dict[str, list[float]] = {"plain": [], "ours": []}
        for seed in range(-1, ROUNDS):
            for train in (plain, ours):
                pair = players(max(seed, 0))
                start = time.process_time()
                train(*pair, batch_size, STEPS)
                if seed >= 0:  # the first round warms up
                    speed[train.__name__].append(STEPS / (time.process_time() - start))
        ratios = sorted(b / a for a, b in zip(speed["plain"], speed["ours"], strict=True))
        medians = [statistics.median(speed[name]) for name in ("plain", "ours")]
        print(
            f"{batch_size:6} {medians[0]:8.2f} {medians[1]:8.2f}  median "
            f"{statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    target = eight_gaussians(1000, torch.Generator().manual_seed(1))
    for train in (plain, ours):  # they learn alike
        h, d = players(0)
        torch.manual_seed(0)
        train(h, d, 128, 200)
        with torch.no_grad():
            distance = wasserstein(h(gaussian(2)(1000, torch.Generator().manual_seed(2))), target)
        print(f"W1 after 200 steps, {train.__name__:5}: {distance:.3f}")


if __name__ == "__main__":
    main()
