"""Saliency maps of standard and robust networks, on photographs and phantoms (slide 24).

The question is the slide's: is there a disease? "retina" are the photographs of RetinaMNIST, grade
0 against grades 1 to 4. "grades" asks for all five of them, for which accuracies are published:
"published" is that of ResNet-18 at 28 pixels (Yang et al., 2023). Beside each accuracy stands
"majority", that of naming the most frequent class of the training.

A map is the gradient by the input of the margin of the predicted class (def-saliency). Measured:
the alignment α of image and map, the linearized distance D̂ and the distance D to the boundary in
ℓ2, found by attacks (chapter 7). For phantoms, whose lesions are known: the lift, how much more
than its share of the eye's pixels the lesions get of the map, and how often the map's peak lies
on one. RetinaMNIST has no masks. "untrained" is the control. Not for clinical use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from experiments.running import Row, Settings
from lib import data
from lib.attacks import attack, robust_accuracy
from lib.balls import L2, LInf
from lib.data import Images, Phantoms
from lib.fairness import classwise_accuracy
from lib.models import cnn, predict
from lib.training import accuracy, adversarial, erm, fit

SETS = ("retina", "phantoms")
KINDS = ("untrained", "standard", "robust")
PUBLISHED = 0.524  # on the five grades; 0.503 to 0.531 by their other methods at 28 pixels


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Saliency of standard and robust networks on RetinaMNIST and on synthetic eyes."""

    datasets = ("retina",)
    size: int = 64
    """Pixels a side of a phantom; those of RetinaMNIST have 28."""
    train_eyes: int = 1000
    """Phantoms to train on; RetinaMNIST has 1080."""
    test_eyes: int = 400
    """Images to test, of each set."""
    clean_epochs: int = 10
    """Epochs on clean images with which both kinds begin."""
    epochs: int = 16
    """Epochs after them, of either kind."""
    batch_size: int = 50
    """Images in a batch."""
    lr: float = 1e-3
    """Adam's learning rate."""
    retina_eps: float = 0.01
    """Radius for RetinaMNIST, l-infinity, in pixel units."""
    phantoms_eps: float = 0.02
    """Radius for the phantoms."""
    attack_steps: int = 3
    """Steps of the attacks in training."""
    test_steps: int = 20
    """Steps of the attacks that test."""
    distances: int = 100
    """Images of each set of which alignment and distances are measured: these take attacks."""
    pictures: int = 3
    """Maps that seed 0 keeps, of the first images (of phantoms, of the first with lesions)."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both sets and three kinds of networks for every seed; ValueError for bad settings."""
    config.check("pictures")
    for seed in range(config.seeds):
        yield "grades-standard", seed
        for which in SETS:
            for kind in KINDS:
                yield f"{which}-{kind}", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network on one set and score its maps of the test images."""
    which, kind = variant.split("-")
    train, test = (images.to(device) for images in _images(config, which, seed))
    eps = config.phantoms_eps if which == "phantoms" else config.retina_eps
    shape = tuple(train.a.shape[1:])
    model = cnn(shape, len(train.classes), mean=0.25, std=0.25, seed=seed).to(device).eval()
    if kind != "untrained":
        _train(config, kind, model, train, eps, seed, checkpoint)
    row = {
        "accuracy": accuracy(model, test),
        "balanced_accuracy": classwise_accuracy(model, test).accuracy.mean().item(),
        "majority": (test.b == train.b.mode().values).double().mean().item(),
    }
    if which == "grades":
        return row | {"published": PUBLISHED}
    g, s = saliency(model, test.a)
    some = slice(config.distances)
    alpha, straight = alignment(test.a[some], g[some]), (s.abs() / _norm(g))[some]
    d = distance(model, test.a[some])
    row |= {
        "robust_accuracy": robust_accuracy(
            model, test.a, test.b, LInf(eps), steps=config.test_steps
        ),
        "alignment": alpha.median().item(),
        "linearized_distance": straight.median().item(),
        "distance": d.median().item(),
        "rank_correlation": rank_correlation(alpha, d),
        "bias_share": ((alpha - straight).abs().median() / straight.median()).item(),
    }
    shown = test
    if isinstance(test, Phantoms):
        sick = test.b == 1
        lift, hit = located(test.a[sick], g[sick], test.mask[sick])
        row |= {"lift": lift.mean().item(), "peak_on_lesion": hit.double().mean().item()}
        shown, g = test[sick], g[sick]
    if seed == 0 and config.pictures:
        maps = g[: config.pictures].abs().sum(1)
        maps /= maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
        row["maps"] = _rounded(maps)
        if variant == "retina-untrained":  # the same for all kinds; phantoms can be drawn again
            row["images"] = _rounded(shown.a[: config.pictures])
    return row


def saliency(model: nn.Module, a: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the margin [n, ...], and the margin [n] of the class that is predicted."""
    a = a.clone().requires_grad_(True)
    first, second = model(a).topk(2, dim=1).values.T
    [g] = torch.autograd.grad((first - second).sum(), a)
    return g, (first - second).detach()


def alignment(a: Tensor, g: Tensor) -> Tensor:
    """``α = |⟨a, g⟩| / ‖g‖₂`` of each image and its map [n]; 0 where the map is 0."""
    return (a * g).flatten(1).sum(1).abs() / _norm(g)


def distance(model: nn.Module, a: Tensor, farthest: float = 8.0, rounds: int = 12) -> Tensor:
    """D, the ℓ2 radius at which an attack begins to succeed [n], by bisection; at most farthest."""
    b = predict(model(a).detach())
    low, high = torch.zeros(len(a), device=a.device), torch.full((len(a),), farthest).to(a)
    for _ in range(rounds):
        radius = (low + high) / 2
        # The boundary knows nothing of the box of pixels.
        worst = attack(model, a, b, L2(radius), steps=12, bounds=(-1e3, 1e3))
        crossed = predict(model(worst).detach()) != b
        low, high = torch.where(crossed, low, radius), torch.where(crossed, radius, high)
    return high


def located(a: Tensor, g: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The lift of each map [n], and whether its peak lies on the mask [n], of the eye's pixels."""
    eye = (a.mean(1) > 0.1) | mask
    weight = g.abs().sum(1) * eye
    inside = (weight * mask).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-12)
    area = mask.sum((1, 2)) / eye.sum((1, 2))
    peak = weight.flatten(1).argmax(1, keepdim=True)
    return inside / area, mask.flatten(1).gather(1, peak)[:, 0]


def rank_correlation(u: Tensor, v: Tensor) -> float:
    """Spearman's: 1 if u and v put the images in the same order; 0 for a constant."""
    if any(len(t.unique()) < 2 for t in (u, v)):
        return 0.0
    return float(spearmanr(u.cpu(), v.cpu()).statistic)


def diseased(images: Images) -> Images:
    """The photographs with two classes: grade 0, and grades 1 to 4."""
    return Images(images.a, (images.b > 0).long(), ("no retinopathy", "retinopathy"))


def _images(config: Config, which: str, seed: int) -> tuple[Images, Images]:
    if which == "phantoms":
        draw = partial(data.fundus_phantoms, size=config.size, seed=seed)
        return draw("train", n=config.train_eyes), draw("test", n=config.test_eyes)
    train, test = data.retina("train"), data.retina("test")[: config.test_eyes]
    return (train, test) if which == "grades" else (diseased(train), diseased(test))


def _train(
    config: Config,
    kind: str,
    model: nn.Module,
    train: Images,
    eps: float,
    seed: int,
    checkpoint: Path,
) -> None:
    """The clean epochs, then those of the kind: a large radius at once is too hard (chapter 7)."""
    numbers = {"batch_size": config.batch_size, "lr": config.lr, "seed": seed}
    part = partial(fit, model, train, evaluate=lambda model: {}, progress=False, **numbers)
    begun = checkpoint.with_name(checkpoint.name.replace(kind, "clean"))  # once for both kinds
    part(erm(), epochs=config.clean_epochs, checkpoint=begun)
    robust = adversarial(partial(attack, ball=LInf(eps), steps=config.attack_steps))
    update = erm() if kind == "standard" else robust
    part(update, epochs=config.epochs, checkpoint=checkpoint)


def _norm(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1).clamp(min=1e-12)


def _rounded(t: Tensor) -> list:
    return t.double().cpu().round(decimals=3).tolist()
