"""experiments.rates: the distances, what is kept of them, and settings that make no sense."""

from math import asinh, sqrt

import pytest
import torch

from experiments import rates
from lib.runs import checkpoints

CPU = torch.device("cpu")
EXPECTED = {1: 1 / 3, 2: (2 + sqrt(2) + 5 * asinh(1)) / 15}  # of two points of the unit cube


@pytest.mark.parametrize("p", EXPECTED)
def test_samples_of_one_point_are_as_far_apart_as_two_uniform_points(p, tmp_path):
    config = rates.Config(dimensions=(p,), smallest=1, largest=(2,), repeats=(600,))
    for seed in range(3):
        row = rates.measure(config, f"dimension-{p}", seed, CPU, tmp_path / f"{seed}.pt")
        assert row["n"] == [1, 2]
        assert row["w1"][0] == pytest.approx(EXPECTED[p], abs=4 * row["deviation"][0] / sqrt(600))


@pytest.mark.parametrize("p, repeats, low, high", [(1, 800, -0.55, -0.45), (3, 30, -0.40, -0.31)])
def test_the_slope_is_that_of_the_theory(p, repeats, low, high, tmp_path):
    config = rates.Config(dimensions=(p,), smallest=32, largest=(256,), repeats=(repeats,))
    for seed in range(3):
        row = rates.measure(config, f"dimension-{p}", seed, CPU, tmp_path / f"{seed}.pt")
        assert low < row["slope"] < high


def test_distances_that_are_kept_are_not_computed_again(tmp_path, monkeypatch):
    config = rates.Config(dimensions=(2,), smallest=4, largest=(16,), repeats=(3,))
    path, wasserstein, seen = tmp_path / "kept.pt", rates.wasserstein, []

    def counted(x, y):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append((len(x), wasserstein(x, y)))
        return seen[-1][1]

    monkeypatch.setattr(rates, "wasserstein", counted)
    with pytest.raises(KeyboardInterrupt):
        rates.measure(config, "dimension-2", 0, CPU, path)
    assert [n for n, _ in seen] == [4, 4, 4, 8, 8]
    assert list(checkpoints.load(path).values()) == [w1 for _, w1 in seen[:3]]
    monkeypatch.setattr(rates, "wasserstein", wasserstein)
    stopped = rates.measure(config, "dimension-2", 0, CPU, path)
    assert stopped == rates.measure(config, "dimension-2", 0, CPU, tmp_path / "whole.pt")
    monkeypatch.setattr(rates, "wasserstein", None)
    assert stopped == rates.measure(config, "dimension-2", 0, CPU, path)


def test_one_number_holds_for_all_dimensions_and_several_for_one_each():
    def sizes(**settings):
        config = rates.Config(dimensions=(1, 3), smallest=4, **settings)
        return [rates._plan(config, p) for p in config.dimensions]

    assert sizes(largest=(16,), repeats=(2,)) == [{4: 2, 8: 2, 16: 2}] * 2
    assert sizes(largest=(33, 8), repeats=(5, 6)) == [{4: 5, 8: 5, 16: 5, 32: 5}, {4: 6, 8: 6}]
    many, one = sizes(largest=(32,), repeats=(5, 6), few=16)  # few pairs of many points
    assert many == {4: 5, 8: 5, 16: 5, 32: 5} and one == {4: 6, 8: 6, 16: 1, 32: 1}


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"dimensions": (2, 2)}, "dimensions must be >= 1 and differ"),
        ({"dimensions": (0,)}, "dimensions must be >= 1 and differ"),
        ({"largest": (512, 512)}, "largest must hold 1 number or 7"),
        ({"largest": (64,)}, "largest >= 2 smallest"),
        ({"repeats": (0,)}, "repeats >= 1"),
        ({"largest": (10**6,)}, "GB are free: take a smaller one"),
    ],
)
def test_settings_that_make_no_sense_or_do_not_fit_are_refused_before_anything_runs(settings, said):
    with pytest.raises(ValueError, match=said):
        list(rates.cells(rates.Config(**settings)))
