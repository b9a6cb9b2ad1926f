"""lib.models: sizes and values against closed forms, an independent forward pass, and refusals."""

from math import prod, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import models

BUILDERS = {
    "linear": models.linear,
    "mlp": models.mlp,
    "cnn": models.cnn,
    "resnet18": models.resnet18,
    "resnet8": models.resnet8,
}

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def count(model):
    return sum(p.numel() for p in model.parameters())


def layers(model, kind):
    return [layer for layer in model.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (models.linear(), 784 * 10 + 10),
        (models.mlp(), 784 * 200 + 200 + 200 * 10 + 10),
        (models.cnn(), 16 * 16 + 16 + 32 * 256 + 32 + 1568 * 100 + 100 + 1010),
        (models.resnet18(), 11_173_962),  # the published count of CIFAR-10's ResNet-18
        (models.resnet18(norm="group"), 11_173_962),
        # Stem, 16-16, 16-32 and its shortcut, 32-64 and its; scale and shift of each; 10 classes.
        (
            models.resnet8(),
            (9 * (3 * 16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 16 * 32 + 32 * 64)
            + 2 * (3 * 16 + 3 * 32 + 3 * 64)
            + 650,
        ),
    ],
    ids=["linear", "mlp", "cnn", "resnet18", "resnet18-group", "resnet8"],
)
def test_parameter_counts_are_the_known_ones_and_those_of_the_docstrings(model, parameters):
    assert count(model) == parameters
    assert any(f"{parameters:,}" in (build.__doc__ or "") for build in BUILDERS.values())


@examples
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.integers(1, 8), max_size=3),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_linear_and_mlp_give_one_logit_a_class_for_every_shape(shape, hidden, classes, n):
    a = torch.rand(n, *shape)
    assert models.linear(shape, classes).forward(a).shape == (n, classes)
    assert models.mlp(shape, hidden, classes).forward(a).shape == (n, classes)


@examples
@given(st.integers(1, 4), st.integers(4, 33), st.integers(4, 33), st.integers(1, 5))
def test_cnn_gives_one_logit_a_class_for_every_image_size(channels, height, width, classes):
    model = models.cnn((channels, height, width), classes)
    assert model(torch.rand(3, channels, height, width)).shape == (3, classes)


def test_linear_is_w_times_the_normalized_pixels_plus_bias():
    model = models.linear((2, 3, 4), 5, mean=(0.2, 0.7), std=(0.5, 0.25), seed=3).double()
    weight, bias = (p.detach().numpy() for p in model[-1].parameters())
    a = np.random.default_rng(0).random((6, 2, 3, 4))
    normalized = np.stack([(a[:, 0] - 0.2) / 0.5, (a[:, 1] - 0.7) / 0.25], 1)
    expected = normalized.reshape(6, -1) @ weight.T + bias
    mean, std = model[0].mean, model[0].std  # 0.2 and 0.7 are float32 inside
    assert torch.allclose(mean.flatten(), torch.tensor([0.2, 0.7]).double(), atol=1e-7)
    assert std.flatten().tolist() == [0.5, 0.25]
    np.testing.assert_allclose(model(torch.from_numpy(a)).detach().numpy(), expected, atol=1e-6)


def test_linear_without_bias_and_normalization_is_the_inner_product_of_slide_8():
    model = models.linear((3,), 1, bias=False, mean=0, std=1)
    with torch.no_grad():
        model[-1].weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
    a = torch.tensor([[0.5, 0.25, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    assert model(a).flatten().tolist() == [0.5 - 0.5 + 3.0, 0.0]
    (gradient,) = torch.autograd.grad(model(a).sum(), a)
    assert gradient.tolist() == [[1.0, -2.0, 3.0]] * 2  # in pixel units


@pytest.mark.parametrize("name", BUILDERS)
def test_models_normalize_inside(name):
    """A model with mean m and std s at a is the same model without them at (a − m) / s."""
    build = BUILDERS[name]
    shape = (3, 32, 32) if name.startswith("resnet") else (1, 28, 28)
    a = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    plain, normalizing = build(mean=0.0, std=1.0).eval(), build(mean=0.25, std=0.5).eval()
    assert torch.allclose(normalizing(a), plain((a - 0.25) / 0.5), atol=1e-5)
    assert not torch.allclose(normalizing(a), plain(a), atol=1e-2)


def test_the_default_normalization_is_that_of_the_data_set():
    a = torch.rand(5, 3, 8, 8)
    expected = (a - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    ).view(3, 1, 1)
    assert torch.equal(models.resnet18()[0](a), expected)
    for model in (models.linear(), models.mlp(), models.cnn()):
        assert torch.allclose(model[0](a[:, :1]), (a[:, :1] - 0.1307) / 0.3081, atol=1e-6)


def test_mean_and_std_are_saved_with_the_model_but_not_trained():
    model = models.cnn(mean=0.5, std=0.25)
    assert {"0.mean", "0.std"} <= model.state_dict().keys()
    assert not {"0.mean", "0.std"} & dict(model.named_parameters()).keys()
    assert model.double()[0].std.dtype == torch.float64


@pytest.mark.parametrize("name", BUILDERS)
def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_untouched(name):
    build = BUILDERS[name]

    def weights(seed):
        return torch.cat([p.detach().flatten() for p in build(seed=seed).parameters()])

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(7), first)
    assert not torch.equal(weights(8), first)


def test_resnet_convolutions_start_with_he_initialization():
    """Normal with variance 2 / (channels out · kernel size), He et al. (2015), as in ResNets."""
    kernels = [layer.weight for layer in layers(models.resnet18(), torch.nn.Conv2d)]
    assert len(kernels) == 1 + 16 + 3
    for weight in kernels:
        std = sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
        # A sample's standard deviation is off by about std / sqrt(2 n); 5 of them are allowed.
        assert abs(weight.std().item() - std) < 5 * std / sqrt(2 * weight.numel())
        assert abs(weight.mean().item()) < 5 * std / sqrt(weight.numel())
        assert weight.abs().max() > 2.5 * std  # a uniform law of this variance ends at 1.73 std


def reference_resnet(state, a, activation, norm, width, stages, blocks):
    """The forward pass of He et al. (2016), written from the paper with torch's functions."""
    tensors = iter(state)

    def convolve(a, stride):
        weight = next(tensors)
        a = F.conv2d(a, weight, stride=stride, padding=weight.shape[-1] // 2)
        scale, shift = next(tensors), next(tensors)
        if norm == "group":
            return F.group_norm(a, min(32, a.shape[1]), scale, shift)
        mean, variance, _ = next(tensors), next(tensors), next(tensors)
        return F.batch_norm(a, mean, variance, scale, shift)

    mean, std = next(tensors), next(tensors)
    a = activation(convolve((a - mean) / std, 1))
    for stage in range(stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            residual = convolve(activation(convolve(a, stride)), 1)
            a = activation(residual + (convolve(a, stride) if stride == 2 else a))
        assert a.shape[1:] == (width << stage, 32 >> stage, 32 >> stage)
    return F.linear(a.mean((2, 3)), next(tensors), next(tensors))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("celu", F.celu)])
@pytest.mark.parametrize(
    ("build", "form"), [(models.resnet18, (64, 4, 2)), (models.resnet8, (16, 3, 1))]
)
def test_resnets_are_the_networks_of_the_paper(build, form, activation, function, norm):
    model = build(7, activation=activation, norm=norm).double()
    generator = torch.Generator().manual_seed(0)
    for layer in layers(model, (torch.nn.BatchNorm2d, torch.nn.GroupNorm)):
        for tensor in layer.state_dict().values():  # so that no scale is 1 and no shift is 0
            if tensor.dim():
                tensor.uniform_(0.5, 1.5, generator=generator)
    a = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = reference_resnet(model.state_dict().values(), a, function, norm, *form)
        assert torch.allclose(model.eval()(a), expected, rtol=1e-10, atol=1e-10)
    assert expected.abs().max() > 1e-3


def test_with_group_norm_no_sample_sees_another_and_with_batch_norm_only_in_training():
    a = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for norm, training, alone in (
            ("group", True, True),
            ("group", False, True),
            ("batch", True, False),
            ("batch", False, True),
        ):
            model = models.resnet18(norm=norm).train(training)
            same = torch.allclose(model(a)[:2], model(a[:2]), atol=1e-3)
            assert same == alone, (norm, training)


def jumps(model, points):
    """The largest change of the derivative between neighbors of a fine grid."""
    a = points[:, None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(a).sum(), a)
    return slope.diff(dim=0).abs().max().item()


def test_celu_networks_have_continuous_gradients_and_relu_networks_do_not():
    points = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for seed in range(3):
        smooth = models.mlp((1,), (30,), 1, activation="celu", mean=0.5, std=0.2, seed=seed)
        kinked = models.mlp((1,), (30,), 1, activation="relu", mean=0.5, std=0.2, seed=seed)
        assert jumps(smooth.double(), points) < 0.02 < 0.1 < jumps(kinked.double(), points)
    for build in (models.cnn, models.resnet18):
        assert not layers(build(activation="celu"), torch.nn.ReLU)
        assert len(layers(build(activation="celu"), torch.nn.CELU)) == len(
            layers(build(), torch.nn.ReLU)
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.mlp(activation="gelu"),
            "activation must be one of relu, masked relu, celu, got 'gelu'",
        ),
        (lambda: models.cnn(activation="ReLU"), "activation must be one of"),
        (lambda: models.resnet18(norm="layer"), "norm must be one of batch, group, got 'layer'"),
        (lambda: models.linear(classes=0), r"classes must hold whole numbers >= 1, got \(0,\)"),
        (lambda: models.resnet18(-1), "classes must hold"),
        (lambda: models.mlp(hidden=(10, 0)), r"hidden must hold whole numbers >= 1, got \(10, 0\)"),
        (lambda: models.cnn(classes=0), r"classes must hold whole numbers >= 1, got \(0,\)"),
        (lambda: models.mlp(hidden=200), "hidden must hold whole numbers >= 1, got 200"),
        (lambda: models.mlp(28), "shape must hold whole numbers >= 1, got 28"),
        (lambda: models.linear((0, 2)), "shape must hold"),
        (lambda: models.linear((2.5,)), "shape must hold"),
        (lambda: models.linear(()), "shape must hold at least one"),
        (lambda: models.cnn((28, 28)), r"shape must be \(channels, height, width\)"),
        (lambda: models.cnn((1, 3, 28)), "4x4 or more"),
        (lambda: models.linear(std=0.0), r"std must be > 0, got \[0.0\]"),
        (lambda: models.resnet18(std=(0.1, 0.1, -0.1)), "std must be > 0"),
        (lambda: models.linear(std=float("nan")), "std must be finite"),
        (lambda: models.linear(mean=float("inf")), "mean must be finite"),
        (lambda: models.resnet18(mean=(0.5, 0.5)), "hold one for each of 3 channels, got 2"),
    ],
)
def test_bad_settings_are_refused_with_what_was_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.resnet18(), (2, 1, 32, 32)),  # gray images would broadcast to three channels
        (models.cnn(), (2, 3, 28, 28)),
        (models.cnn(), (1, 28, 28)),  # one image without its batch dimension
        (models.mlp(), (2, 784)),
    ],
)
def test_batches_of_another_form_are_refused(model, shape):
    with pytest.raises(ValueError, match="the model expects a batch"):
        model(torch.rand(shape))


def test_flattened_width_is_the_product_of_the_shape():
    assert models.mlp((3, 5, 7))[2].in_features == prod((3, 5, 7))


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_the_masked_relu_is_relu_up_to_its_left_out_second_derivative(seed):
    """Values, gradients, and the gradient of a gradient penalty, whose hidden path is all zeros."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(20, 3, generator=generator)
    found = []
    for activation in ("relu", "masked relu"):
        model = models.mlp((3,), (8, 8), 1, activation=activation, mean=0.0, std=1.0, seed=seed)
        z = a.clone().requires_grad_()
        values = model(z)
        [g] = torch.autograd.grad(values.sum(), z, create_graph=True)
        loss = (g.norm(dim=1) - 1).square().mean() + values.mean()
        weights = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        found.append([values, g, *weights])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert torch.equal(found[0][0], found[1][0])


def test_at_its_kink_the_masked_relu_has_relu_s_slope():
    slopes = []
    for layer in (torch.nn.ReLU(), models.MaskedReLU()):
        a = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
        slopes.append(torch.autograd.grad(layer(a).sum(), a)[0].tolist())
    assert slopes[0] == slopes[1] == [0, 0, 1]


def test_the_prediction_is_the_largest_logit_or_the_sign_of_a_single_one_and_none_for_nan():
    nan = float("nan")
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 3.0], [-1.0, nan, 2.0], [-9.0, -7.0, -8.0]])
    assert models.predict(logits).tolist() == [1, 0, -1, 1]
    single = torch.tensor([[-0.5], [0.0], [0.5], [nan]])
    assert models.predict(single).tolist() == [0, 0, 1, -1]
    assert models.predict(single).dtype == torch.int64
    assert models.predict(torch.zeros(0, 3)).tolist() == []
    for wrong in (torch.zeros(3), torch.zeros(3, 0), torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match=r"logits must be \[n, classes\], got"):
            models.predict(wrong)
