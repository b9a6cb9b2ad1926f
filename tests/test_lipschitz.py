"""lib.lipschitz and lib.pieces against dense matrices, sampling, closed forms and each other."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import models
from lib.balls import L2, LInf
from lib.lipschitz import (
    SLOPES,
    clip_weights_,
    gradient_penalty,
    lipschitz_bound,
    lipschitz_constant,
    lipschitz_lower_bound,
    normalize_spectrally_,
    spectral_norm,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense(kernel, shape, stride=1, padding=1):
    """The matrix of a convolution on [in, h, w], column by column."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=kernel.dtype).reshape(size, *shape)
    return F.conv2d(basis, kernel, stride=stride, padding=padding).flatten(1).T


@pytest.mark.parametrize("shape", [(3, 5), (7, 2), (1, 1), (40, 40)])
def test_a_matrixs_norm_is_its_largest_singular_value(shape):
    W = normal(*shape)
    assert spectral_norm(W) == pytest.approx(np.linalg.norm(W.numpy(), 2), rel=1e-12)
    assert spectral_norm(W.float()) == pytest.approx(np.linalg.norm(W.numpy(), 2), rel=1e-5)


@pytest.mark.parametrize(
    ("kernel", "image", "stride", "padding"),
    [
        ((4, 2, 3, 3), (5, 6), 1, 1),
        ((2, 3, 3, 3), (12, 12), 1, 1),  # by Lanczos
        ((8, 3, 4, 4), (12, 12), 2, 1),
        ((1, 1, 5, 3), (7, 7), 1, (2, 1)),
        ((3, 1, 3, 3), (20, 20), 1, 0),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_convolutions_norm_is_its_dense_matrixs(kernel, image, stride, padding, seed):
    weight = normal(*kernel, seed=seed)
    expected = torch.linalg.matrix_norm(dense(weight, (kernel[1], *image), stride, padding), 2)
    found = spectral_norm(weight, image, stride=stride, padding=padding)
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_by_default_a_convolution_keeps_the_images_size_and_differs_from_its_reshaped_kernel():
    weight = normal(4, 2, 3, 3)
    expected = torch.linalg.matrix_norm(dense(weight, (2, 6, 6)), 2)
    assert spectral_norm(weight, (6, 6)) == pytest.approx(float(expected), rel=1e-10)
    assert abs(spectral_norm(weight.flatten(1)) - float(expected)) > 0.1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kernel", [(3, 2, 3, 3), (1, 1, 3, 3), (2, 4, 1, 3), (4, 1, 5, 5)])
def test_a_convolutions_norm_lies_between_its_kernels_and_the_root_of_the_area_times_it(
    kernel, seed
):
    weight = normal(*kernel, seed=seed)
    reshaped, area = spectral_norm(weight.flatten(1)), kernel[2] * kernel[3]
    norm = spectral_norm(weight, (7, 6))  # prop-convolution-norm
    assert reshaped * (1 - 1e-9) <= norm <= math.sqrt(area) * reshaped * (1 + 1e-9)


@pytest.mark.parametrize("m", [3, 8, 28])
def test_a_blurs_norm_is_its_closed_form(m):
    blur = torch.ones(1, 1, 3, 3)
    expected = (1 + 2 * math.cos(math.pi / (m + 1))) ** 2
    assert spectral_norm(blur, (m, m)) == pytest.approx(expected, rel=1e-9)


def network(*widths, seed=0, act=nn.ReLU):
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(n, m).double()
        with torch.no_grad():
            layer.weight.copy_(normal(m, n, seed=100 * seed + i))
            layer.bias.copy_(normal(m, seed=100 * seed + 50 + i))
        layers += [layer, act()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", [(2, 6, 1), (3, 5, 2), (2, 4, 4, 1)])
def test_the_exact_constant_lies_between_all_gradients_and_the_bound(widths, seed):
    net = network(*widths, seed=seed)
    exact = lipschitz_constant(net)
    a = 3 * normal(20_000, widths[0], seed=seed)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(a)
    sampled = float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())
    assert sampled <= exact * (1 + 1e-9)
    assert exact <= lipschitz_bound(net) * (1 + 1e-9)
    assert exact <= 1.6 * sampled  # small cells may be missed, but not by much
    if widths[-1] == 1:
        assert lipschitz_lower_bound(net, a[:200], steps=0) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_on_the_line_the_exact_constant_is_the_steepest_of_all_segments(seed):
    net = network(1, 9, 1, seed=seed)
    V, v, w = net[0].weight[:, 0].detach(), net[0].bias.detach(), net[2].weight[0].detach()
    kinks = (-v / V).sort().values
    middles = torch.cat([kinks[:1] - 1, (kinks[1:] + kinks[:-1]) / 2, kinks[-1:] + 1])
    slopes = [float((w * V)[V * t + v > 0].sum().abs()) for t in middles]
    assert lipschitz_constant(net) == pytest.approx(max(slopes), rel=1e-12)


@pytest.mark.parametrize(("seed", "outputs"), [*((i, 1) for i in range(40)), (0, 2), (1, 3)])
def test_in_the_plane_the_exact_constant_is_the_steepest_of_all_cells(seed, outputs):
    """Every cell of lines in general position has a corner, and each corner has four cells."""
    net = network(2, 5, outputs, seed=seed)
    V, v, W = net[0].weight.detach(), net[0].bias.detach(), net[2].weight.detach()
    steepest = 0.0
    for i, j in itertools.combinations(range(5), 2):
        corner = torch.linalg.solve(V[[i, j]], -v[[i, j]])
        on = V @ corner + v > 0
        for on[i], on[j] in itertools.product((True, False), repeat=2):
            steepest = max(steepest, np.linalg.svd(W[:, on] @ V[on], compute_uv=False)[0])
    assert lipschitz_constant(net) == pytest.approx(steepest, rel=1e-12)


def test_an_impossible_pattern_of_units_does_not_count():
    """relu(a) − relu(−a) = a: both units are never on at once, and the bound of 2 is not met."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    assert lipschitz_constant(net) == pytest.approx(1)
    assert lipschitz_bound(net) == pytest.approx(2)


@pytest.mark.parametrize(
    "edges",
    [
        [(0, 1), (1, 2), (2, 3)],
        [(i, (i + 1) % 5) for i in range(5)],
        [(i, j) for i in range(2) for j in range(2, 5)],
        [(i, j) for i in range(5) for j in range(i)],
    ],
)
def test_the_constant_of_a_graphs_network_is_the_root_of_its_maximum_cut(edges):
    """prop-max-cut: the rows of the incidence matrix as units, all added up."""
    k = 1 + max(map(max, edges))
    net = nn.Sequential(nn.Linear(len(edges), k, bias=False), nn.ReLU(), nn.Linear(k, 1)).double()
    with torch.no_grad():
        net[0].weight.zero_()
        for e, (i, j) in enumerate(edges):
            net[0].weight[i, e], net[0].weight[j, e] = 1, -1
        net[2].weight.fill_(1)
    cuts = [
        sum(side[i] != side[j] for i, j in edges) for side in itertools.product((0, 1), repeat=k)
    ]
    assert lipschitz_constant(net) == pytest.approx(math.sqrt(max(cuts)), rel=1e-12)


@pytest.mark.parametrize(("bias", "constant"), [(1.0, 0.0), (-1.0, 1.0)])
def test_a_unit_without_weights_is_on_everywhere_or_off_everywhere(bias, constant):
    """relu(1/2 − relu(a) − relu(bias)) on the line: where the constant unit is on, 0."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU()).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, bias]))
        net[2].weight.copy_(torch.tensor([[-1.0, -1.0]]))
        net[2].bias.fill_(0.5)
    assert lipschitz_constant(net) == pytest.approx(constant)


def test_the_bound_of_a_convolutional_network_is_never_exceeded():
    net = models.cnn((1, 8, 8), seed=0).double()
    bound = lipschitz_bound(net, (1, 8, 8))
    a, b = (torch.rand(500, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    ratio = L2(1.0).norm(net(a) - net(b)) / L2(1.0).norm(a - b)
    assert float(ratio.detach().max()) <= bound
    only = nn.Sequential(net[0], net[1])  # a linear map: there the bound is exact
    matrix = dense(net[1].weight.detach(), (1, 8, 8), 2, 1) / models.MNIST_STD
    assert lipschitz_bound(only, (1, 8, 8)) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-6
    )


def test_the_bound_counts_steep_activations_and_refuses_unknown_layers():
    layer = nn.Linear(3, 1).double()
    norm = spectral_norm(layer.weight)
    assert lipschitz_bound(nn.Sequential(layer, nn.Sigmoid())) == pytest.approx(norm / 4)
    assert lipschitz_bound(nn.Sequential(layer, nn.LeakyReLU(3.0))) == pytest.approx(3 * norm)
    assert lipschitz_bound(nn.Sequential(nn.ELU(2.0), layer)) == pytest.approx(2 * norm)
    assert lipschitz_bound(nn.Sequential(nn.ELU(-3.0), layer)) == pytest.approx(3 * norm)
    with pytest.raises(ValueError, match="no bound is known for BatchNorm1d"):
        lipschitz_bound(nn.Sequential(nn.BatchNorm1d(3), layer))
    with pytest.raises(ValueError, match="give input_shape"):
        lipschitz_bound(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="only zero padding"):
        lipschitz_bound(nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), (1, 4, 4))
    with pytest.raises(ValueError, match="Linear and ReLU"):
        lipschitz_constant(nn.Sequential(layer, nn.Tanh()))


ACTIVATIONS = (
    *(nn.ReLU(), models.MaskedReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Identity()),
    *(nn.Softplus(beta=5.0), nn.CELU(), nn.CELU(3.0), nn.ELU(), nn.ELU(0.5), nn.ELU(-3.0)),
    *(nn.LeakyReLU(), nn.LeakyReLU(2.0), nn.LeakyReLU(-2.0)),
    *(nn.Flatten(), nn.Unflatten(1, (1, -1)), models.Normalize((1, 1, 1), 0.5, 0.25)),
)


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_the_slope_of_an_activation_is_the_greatest_of_its_difference_quotients(layer):
    t = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    with torch.no_grad():
        values = layer.double()(t.reshape(-1, 1, 1, 1)).flatten()
    steepest = (values.diff() / t.diff()).abs().max()
    assert lipschitz_bound(nn.Sequential(layer)) == pytest.approx(float(steepest), rel=2e-3)


def test_every_activation_of_the_table_is_tried():
    assert {type(layer) for layer in ACTIVATIONS} == set(SLOPES)


def test_the_search_climbs_to_the_steepest_point_of_a_smooth_function():
    def h(a):  # |h'| = 1 / cosh² <= 1, attained at 0
        return torch.tanh(a[:, 0])

    start = torch.tensor([[1.5], [-2.0]], dtype=torch.float64)
    assert lipschitz_lower_bound(h, start, steps=0) < 0.3
    assert lipschitz_lower_bound(h, start, steps=30) == pytest.approx(1, abs=0.01)
    assert lipschitz_lower_bound(lambda a: 3 * a[:, 0], start) == pytest.approx(3)


REAL, FAKE = normal(50, 4), normal(50, 4, seed=1)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("ball", [L2, LInf])
def test_the_penalty_of_a_linear_critic_is_its_closed_form(slope, one_sided, ball):
    ball = ball(1.0)
    w = normal(4, seed=2)
    w = slope * w / ball.dual_norm(w[None])
    value = gradient_penalty(lambda a: a @ w, REAL, FAKE, 7.0, one_sided=one_sided, ball=ball)
    expected = 7 * (max(slope - 1, 0) if one_sided else slope - 1) ** 2
    assert float(value.detach()) == pytest.approx(expected, abs=1e-12)


def test_the_penalty_looks_at_points_on_the_segments_one_for_each_pair():
    seen = []

    def critic(a):
        seen.append(a.detach())
        return a.square().sum(1) / 2  # gradient a

    value = gradient_penalty(critic, REAL, FAKE, 2.0, generator=torch.Generator().manual_seed(0))
    [z] = seen
    t = ((z - FAKE) / (REAL - FAKE)).round(decimals=9)
    assert (t == t[:, :1]).all() and t.min() >= 0 and t.max() <= 1 and len(t.unique()) == 50
    assert t[:, 0].std() == pytest.approx(1 / math.sqrt(12), rel=0.3)
    assert float(value.detach()) == pytest.approx(float(2 * (z.norm(dim=1) - 1).square().mean()))


def test_the_penaltys_gradient_in_the_critics_weights_is_that_of_finite_differences():
    net = network(4, 5, 1, act=nn.Tanh)
    weight = net[0].weight

    def value():
        return gradient_penalty(net, REAL, FAKE, generator=torch.Generator().manual_seed(0))

    value().backward()
    direction = normal(*weight.shape, seed=3)
    with torch.no_grad():
        weight += 1e-5 * direction
        up = float(value().detach())
        weight -= 2e-5 * direction
        down = float(value().detach())
    assert float((weight.grad * direction).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_the_penalty_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="must agree"):
        gradient_penalty(lambda a: a.sum(1), REAL, FAKE[:3])
    with pytest.raises(ValueError, match="weight must be"):
        gradient_penalty(lambda a: a.sum(1), REAL, FAKE, -1.0)
    with pytest.raises(ValueError, match="one value a sample"):
        gradient_penalty(lambda a: a, REAL, FAKE)


def test_clipping_is_the_projection_of_every_weight():
    net = network(4, 8, 1)
    before = [p.detach().clone() for p in net.parameters()]
    clip_weights_(net, 0.3)
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, LInf(0.3).project(old.reshape(1, -1)).reshape(old.shape))
    assert lipschitz_bound(net) <= 0.3 * math.sqrt(4 * 8) * 0.3 * math.sqrt(8)
    for c in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="c must be"):
            clip_weights_(net, c)


@pytest.mark.parametrize("seed", range(3))
def test_after_spectral_normalization_every_layer_has_norm_one_convolutions_too(seed):
    net = models.cnn((1, 8, 8), seed=seed)
    normalize_spectrally_(net, (1, 8, 8))
    for _ in range(100):
        net(torch.rand(2, 1, 8, 8))
    bound = lipschitz_bound(nn.Sequential(*list(net)[1:]), (1, 8, 8))
    assert bound == pytest.approx(1, rel=2e-2)
    assert bound >= 1 - 1e-5  # power iteration finds at most the norm, so that W / σ has at least 1


def test_spectral_normalization_follows_a_moving_weight_in_training_mode_only():
    net = normalize_spectrally_(nn.Sequential(nn.Linear(6, 4)))
    original = net[0].parametrizations.weight.original
    with torch.no_grad():
        original.copy_(normal(4, 6, seed=5).float())
    net.eval()
    net(torch.zeros(1, 6))
    stale = spectral_norm(net[0].weight)
    net.train()
    for _ in range(200):
        net(torch.zeros(1, 6))
    assert spectral_norm(net[0].weight) == pytest.approx(1, rel=1e-4) and stale > 1.01
    net[0].weight.sum().backward()
    assert original.grad is not None and original.grad.norm() > 0
    state = net.state_dict()
    fresh = normalize_spectrally_(nn.Sequential(nn.Linear(6, 4)))
    fresh.load_state_dict(state)
    assert torch.equal(fresh.eval()[0].weight, net.eval()[0].weight)


@pytest.mark.parametrize("image", [(8, 8), (28, 28)])
def test_layers_of_zeros_have_norm_zero_and_stay_what_they_are(image):
    assert spectral_norm(torch.zeros(2, 1, 3, 3), image) == 0 == spectral_norm(torch.zeros(3, 2))
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 8 * 8, 1))
    for layer in (net[0], net[2]):
        nn.init.zeros_(layer.weight)
    normalize_spectrally_(net, (1, 8, 8))
    net(torch.ones(1, 1, 8, 8)).sum().backward()
    assert torch.isfinite(net(torch.ones(1, 1, 8, 8))).all()
    assert torch.isfinite(net[2].parametrizations.weight.original.grad).all()


@pytest.mark.parametrize(
    ("weight", "shape", "message"),
    [
        (torch.ones(3), None, "needs a matrix"),
        (torch.ones(2, 2, 3, 3), None, "needs a matrix"),
        (torch.ones(2, 2), (3, 3), "needs a matrix"),
        (torch.full((2, 2), math.nan), None, "must be finite real numbers, got NaN"),
    ],
)
def test_bad_weights_get_a_clear_error(weight, shape, message):
    with pytest.raises(ValueError, match=message):
        spectral_norm(weight, shape)


# Magnitudes, failures, and what is left as it was.


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_operator_norms_scale_to_the_ends_of_float64(scale):
    kernel = normal(2, 1, 3, 3)
    for weight, image in ((normal(4, 3), None), (kernel, (5, 5)), (kernel, (20, 20))):
        expected = spectral_norm(weight, image)
        assert spectral_norm(scale * weight, image) / scale == pytest.approx(expected, rel=1e-9)


def test_a_kernel_that_meets_only_padding_has_norm_zero():
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 0] = 1.0  # looks at the row above, and there is one row
    assert spectral_norm(kernel, (1, 400)) == 0.0
    assert spectral_norm(kernel, (2, 400)) == pytest.approx(3, abs=1e-3)


def test_weights_of_any_real_type_are_taken_and_others_refused():
    assert spectral_norm(torch.tensor([[3, 0], [4, 0]])) == pytest.approx(5)
    assert spectral_norm(torch.tensor([[3.0, 4.0]]).bfloat16()) == pytest.approx(5)
    with pytest.raises(ValueError, match=r"finite real numbers, got torch\.complex64"):
        spectral_norm(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="needs a matrix"):
        spectral_norm(torch.ones(0, 2))
    with pytest.raises(ValueError, match=r"kernel \[3, 3\] must fit in the image \(2, 5\)"):
        spectral_norm(torch.ones(1, 1, 3, 3), (2, 5), padding=0)
    assert spectral_norm(torch.ones(1, 1, 3, 3), (3, 3), padding=0) == pytest.approx(3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-14, 1e-7, 1e7, 1e14])
def test_the_exact_constant_has_no_scale_of_its_own(seed, scale):
    net = network(2, 6, 4, 1, seed=seed)
    expected = lipschitz_constant(net)
    linear = net[0], net[2], net[4]
    with torch.no_grad():
        for layer in linear:  # h(a) becomes s h(a/s): the same slopes
            layer.bias *= scale
    assert lipschitz_constant(net) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        net[0].weight *= scale  # then s² h(a/s)
        for layer in linear:
            layer.bias *= scale
    assert lipschitz_constant(net) == pytest.approx(scale * expected, rel=1e-9)


@pytest.mark.parametrize("status", [1, 2, 3, 4])
def test_a_linear_program_that_fails_leaves_no_exact_constant(status, monkeypatch):
    import scipy.optimize

    solve, calls = scipy.optimize.linprog, []

    def failing(*args, **settings):
        found = solve(*args, **settings)
        calls.append(found)
        if len(calls) == 5:
            found.status, found.message = status, "numerical difficulties"
        return found

    monkeypatch.setattr(scipy.optimize, "linprog", failing)
    with pytest.raises(RuntimeError, match="no exact constant is known: numerical difficulties"):
        lipschitz_constant(network(2, 6, 1))


def test_the_exact_constant_refuses_what_it_does_not_know():
    for layers in ([], [nn.ReLU()], [nn.Linear(2, 1), nn.Tanh()], [nn.Conv2d(1, 1, 1)]):
        model = nn.Sequential(*layers)
        with pytest.raises(ValueError, match="of Linear and ReLU layers, got"):
            lipschitz_constant(model)
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.bias, math.nan)
    with pytest.raises(ValueError, match="weights must be finite"):
        lipschitz_constant(nn.Sequential(layer))


@pytest.mark.parametrize("seed", range(3))
def test_the_lower_bound_is_the_largest_gradient_at_the_starts_and_grows_with_the_steps(seed):
    net = network(3, 8, 1, seed=seed, act=nn.Tanh)
    start = normal(20, 3, seed=seed)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(start)
    sampled = float(jacobians.detach().flatten(1).norm(dim=1).max())
    assert lipschitz_lower_bound(net, start, steps=0) == pytest.approx(sampled, rel=1e-12)
    found = lipschitz_lower_bound(net, start)
    assert sampled * 1.001 < found <= lipschitz_bound(net)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"step_size": 0.0}, "step_size must be finite and > 0, got 0.0"),
        ({"step_size": math.nan}, "step_size must be finite and > 0"),
        ({"start": torch.ones(2, 3, dtype=torch.int64)}, "start must hold floats, got torch.int64"),
        ({"start": torch.ones(0, 3)}, "one point or more"),
        ({"model": lambda a: a}, r"one value a sample, got \[2, 3\] for 2"),
        ({"model": lambda a: a.detach().sum(1)}, "no gradient: is it detached"),
    ],
)
def test_the_lower_bound_is_never_zero_for_a_wrong_reason(settings, message):
    arguments = {"model": lambda a: a.sum(1), "start": torch.ones(2, 3)} | settings
    with pytest.raises(ValueError, match=message):
        lipschitz_lower_bound(**arguments)


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_model_without_a_finite_gradient_has_no_lower_bound(slope):
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        lipschitz_lower_bound(lambda a: slope * a.sum(1), torch.ones(2, 3))


def test_the_lower_bound_looks_at_a_module_in_evaluation_mode_and_leaves_it_as_it_was():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    net.double().train()
    net[2].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    start = normal(5, 3)
    with torch.inference_mode():
        found = lipschitz_lower_bound(net, start, steps=3)
    assert [m.training for m in net] == [True, True, False, True] and net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not start.requires_grad and all(x.grad is None for x in net.parameters())
    matrix = net[3].weight @ net[1].weight / math.sqrt(1 + net[0].eps)
    assert found == pytest.approx(float(matrix.detach().norm()), rel=1e-9)


def test_the_bound_does_not_move_a_normalized_model_in_training_mode():
    net = normalize_spectrally_(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)))
    with torch.no_grad():
        net[0].parametrizations.weight.original.copy_(normal(4, 6, seed=5))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert lipschitz_bound(net) == lipschitz_bound(net) > 1
    assert normalize_spectrally_(net) is net and net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


# The penalty's defaults and refusals.


def test_by_default_the_penalty_weighs_ten_and_pays_for_flat_critics_too():
    flat, steep = (
        float(gradient_penalty(lambda a, s=s: s * a[:, 0], REAL, FAKE).detach()) for s in (0.5, 3)
    )
    assert flat == pytest.approx(10 * 0.25) and steep == pytest.approx(10 * 4)
    assert float(gradient_penalty(lambda a: 3 * a[:, 0], REAL, FAKE, 0.0).detach()) == 0
    by_l2 = gradient_penalty(lambda a: a.sum(1), REAL, FAKE)
    wide = gradient_penalty(lambda a: a.sum(1), REAL, FAKE, ball=L2(7.0))
    assert float(by_l2.detach()) == float(wide.detach()) == pytest.approx(10)  # (√4 − 1)²


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (REAL, FAKE.float()),
        (REAL.long(), FAKE.long()),
        (REAL, FAKE.to("meta")),
        (REAL[:0], FAKE[:0]),
        (REAL, FAKE[:, :3]),
    ],
)
def test_the_penalty_refuses_samples_that_do_not_agree(real, fake):
    with pytest.raises(ValueError, match="real and fake must agree: floats"):
        gradient_penalty(lambda a: a.sum(1), real, fake)


@pytest.mark.parametrize("weight", [-1e-9, math.nan, math.inf])
def test_the_penalty_refuses_a_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="weight must be finite and >= 0, got"):
        gradient_penalty(lambda a: a.sum(1), REAL, FAKE, weight)


def test_the_penalty_refuses_a_critic_without_a_gradient():
    with pytest.raises(ValueError, match="no gradient: is it detached"):
        gradient_penalty(lambda a: a.sum(1).detach(), REAL, FAKE)
    with pytest.raises(ValueError, match="c must be finite"):
        clip_weights_(nn.Linear(1, 1), math.inf)


def test_the_penalty_s_points_do_not_depend_on_torch_s_default_type():
    def critic(a):
        return a.square().sum(1)

    def value():
        generator = torch.Generator().manual_seed(0)
        return float(gradient_penalty(critic, REAL, FAKE, generator=generator).detach())

    expected = value()
    torch.set_default_dtype(torch.float64)
    try:
        assert value() == expected
    finally:
        torch.set_default_dtype(torch.float32)
