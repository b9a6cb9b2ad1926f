"""lib.gan._objectives: values and losses by formula, the three constraints, and JSD."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from lib.gan import gan_objective, js_divergence, point_critic, wgan_objective

REAL, FAKE = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 3.0, -1.0])


def sigmoid(t):
    return 1 / (1 + np.exp(-t.double().numpy()))


def test_the_wasserstein_objective_by_formula():
    objective = wgan_objective(point_critic())
    assert objective.critic_value(REAL, FAKE).item() == pytest.approx(-0.5 / 3 - 2 / 3)
    assert objective.generator_loss(FAKE).item() == pytest.approx(-2 / 3)


def test_each_constraint_acts_in_its_own_place():
    objectives = {name: wgan_objective(point_critic(), name) for name in ("clip", "penalty")}
    assert objectives["clip"].penalty is None and objectives["penalty"].constrain is None
    spectral = wgan_objective(point_critic(), "spectral")
    assert spectral.penalty is None and spectral.constrain is None
    critic = point_critic()
    wgan_objective(critic, "clip", clip=0.03).constrain()
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) == pytest.approx(0.03)


@pytest.mark.parametrize("slope, share", [(3.0, 4), (0.5, 0.25)])
@pytest.mark.parametrize("penalty", [0.0, 2.5])
def test_the_penalty_by_formula(slope, share, penalty):
    """A linear critic of slope s pays λ (s − 1)², and one-sided nothing below 1."""
    critic = torch.nn.Linear(1, 1)
    with torch.no_grad():
        critic.weight.fill_(slope)
    real, fake = torch.ones(4, 1), torch.zeros(4, 1)
    for sided, expected in ((False, share), (True, share if slope > 1 else 0)):
        objective = wgan_objective(critic, penalty=penalty, one_sided=sided)
        assert objective.penalty(real, fake).item() == pytest.approx(penalty * expected)


def test_the_vanilla_objective_by_formula():
    value = np.log(sigmoid(REAL)).mean() + np.log(1 - sigmoid(FAKE)).mean()
    losses = {
        "saturating": np.log(1 - sigmoid(FAKE)).mean(),
        "non-saturating": -np.log(sigmoid(FAKE)).mean(),
    }
    for loss, expected in losses.items():
        objective = gan_objective(loss)
        assert objective.critic_value(REAL, FAKE).item() == pytest.approx(value, abs=1e-6)
        assert objective.generator_loss(FAKE).item() == pytest.approx(expected, abs=1e-6)
        assert objective.penalty is None and objective.constrain is None
    huge = torch.tensor([1e4, -1e4])  # sure logits: no log 0
    assert torch.isfinite(gan_objective().critic_value(huge, huge))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"constraint": "none"}, "constraint must be one of clip, penalty, spectral, got 'none'"),
        ({"clip": 0.0}, "clip must be finite and > 0, got 0.0"),
        ({"clip": math.inf}, "clip must be finite and > 0, got inf"),
        ({"penalty": -1.0}, r"penalty must be finite and >= 0, got -1\.0"),
        ({"penalty": math.nan}, "penalty must be finite and >= 0, got nan"),
    ],
)
def test_other_constraints_and_numbers_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        wgan_objective(point_critic(), **change)


def test_another_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss must be one of saturating, non-.*, got 'hinge'"):
        gan_objective("hinge")


# --- Jensen and Shannon --------------------------------------------------------------------

distributions = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda v: sum(v) > 0.1)


@given(distributions, st.randoms(use_true_random=False))
def test_the_divergence_agrees_with_scipy_is_symmetric_and_at_most_log_2(p, random):
    q = random.sample(p, len(p))
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)
    value = js_divergence(p, q)
    with np.errstate(invalid="ignore"):  # of equal ones, scipy may take the root of -1e-17
        assert value == pytest.approx(np.nan_to_num(jensenshannon(p, q)) ** 2, abs=1e-12)
    assert value == pytest.approx(js_divergence(torch.as_tensor(q), torch.as_tensor(p)), abs=1e-15)
    assert 0 <= value <= math.log(2) + 1e-12


def test_the_divergence_by_hand():
    p, q = [0.5, 0.5], [0.9, 0.1]
    m = [0.7, 0.3]
    half = [sum(a * math.log(a / c) for a, c in zip(v, m, strict=True)) / 2 for v in (p, q)]
    assert js_divergence(np.array(p), np.array(q)) == pytest.approx(sum(half), abs=1e-15)
    assert js_divergence(np.array([1.0, 0, 0]), np.array([0, 0.5, 0.5])) == math.log(2)
    assert js_divergence(np.array([0.0, 1]), np.array([0.0, 1])) == 0
    assert js_divergence(np.array([1.0, 5e-324]), np.array([1.0, 0])) == 0
    assert js_divergence(np.array([1 + 9e-7, 0]), np.array([0, 1 + 9e-7])) == math.log(2)
    rng = np.random.default_rng(0)
    for p in rng.dirichlet(np.ones(5), 200):  # rounding never makes it negative
        q = p * (1 + 1e-9 * rng.normal(size=5))
        assert js_divergence(p, q / q.sum()) >= 0


@pytest.mark.parametrize(
    "p, q, said",
    [
        ([0.5, 0.5], [1.0], "must both be"),
        ([], [], "must both be"),
        ([[1.0]], [[1.0]], "must both be"),
        ([0.5, 0.6], [0.5, 0.5], "p must be >= 0 and add up to 1"),
        ([0.5, 0.5], [1.5, -0.5], "q must be >= 0 and add up to 1"),
        ([math.nan, 0.5], [0.5, 0.5], "p must be >= 0 and add up to 1"),
    ],
)
def test_what_is_no_distribution_is_refused(p, q, said):
    with pytest.raises(ValueError, match=said):
        js_divergence(np.array(p), np.array(q))
