"""lib.gan._targets: the mixtures by their moments and by KS tests, and modes by counting."""

import math

import pytest
import torch
from scipy.stats import kstest

from lib.gan import eight_gaussians, means, modes, spiral

SEEDS = (0, 1, 2)


def drawn(of, n, seed):
    return of(n, torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_eight_gaussians_have_their_means_weights_and_deviation(seed):
    a = drawn(eight_gaussians, 40_000, seed)
    distance, k = torch.cdist(a, means().double()).min(1)
    share = k.bincount(minlength=8) / len(a)
    assert (share - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 * 7 / 8 / len(a))
    assert means().norm(dim=1) == pytest.approx([math.sqrt(2)] * 8)
    z = (a - means()[k]) / 0.07  # squared, exponential with mean 2
    assert kstest(distance.square().numpy() / 0.0049, "expon", (0, 2)).pvalue > 1e-3
    assert kstest(z[:, 0].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_the_spiral_is_two_turns_at_even_angles(seed):
    a = drawn(spiral, 20_000, seed)
    t = torch.linspace(0, 4 * math.pi, 4001).double()
    curve = torch.stack([t.cos(), t.sin()], 1) * (t / (2 * math.pi))[:, None]
    distance, nearest = torch.cdist(a, curve).min(1)
    assert 0.045 < distance.square().mean().sqrt() < 0.053 and distance.max() < 0.05 * 5.5
    assert kstest(t[nearest].numpy() / (4 * math.pi), "uniform").statistic < 0.02


def test_a_seed_says_all_of_a_sample():
    for of in (eight_gaussians, spiral):
        assert torch.equal(drawn(of, 5, 1), drawn(of, 5, 1))
        assert not torch.equal(drawn(of, 5, 1), drawn(of, 5, 2))
        with pytest.raises(ValueError, match="n must be >= 1, got 0"):
            of(0)


def test_modes_counts_the_gaussians_that_are_found():
    centers = means()
    assert modes(centers) == (8, 1.0)
    assert modes(centers[:3].repeat(10, 1)) == (3, 1.0)
    assert modes(torch.zeros(4, 2)) == (0, 0.0)
    rare = centers[:1].repeat(991, 1)
    assert modes(torch.cat([rare, centers[1:2].repeat(9, 1)])) == (1, 1.0)
    assert modes(torch.cat([rare[:990], centers[1:2].repeat(10, 1)])) == (2, 1.0)
    edge = centers[:2] + torch.tensor([[0.27, 0.0], [0.0, 0.29]])
    assert modes(edge) == (1, 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_true_samples_are_near_as_often_as_the_formula_says(seed):
    found, near = modes(drawn(eight_gaussians, 20_000, seed))
    assert found == 8
    assert near == pytest.approx(1 - math.exp(-8), abs=6e-4)


@pytest.mark.parametrize("points", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(0, 2)])
def test_other_shapes_are_refused(points):
    with pytest.raises(ValueError, match=r"points must be \[n, 2\] with n >= 1"):
        modes(points)


def test_points_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        modes(torch.tensor([[math.nan, 0.0]]))
