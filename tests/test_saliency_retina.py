"""The measures of experiments.saliency_retina, against closed forms and scipy."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from experiments import saliency_retina as module
from lib import data


def affine(seed, classes=3, p=12):
    """A model of ``classes`` affine outputs on images [n, 3, 2, 2]."""
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(p, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, p, generator=rng))
        model[1].bias.copy_(torch.randn(classes, generator=rng))
    return model.eval()


@pytest.mark.parametrize("seed", range(3))
def test_maps_alignment_and_distance_of_affine_outputs_are_those_of_the_closed_forms(seed):
    model = affine(seed)
    W, w = (t.detach() for t in (model[1].weight, model[1].bias))
    a = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(seed + 10))
    h = a.flatten(1) @ W.T + w
    c, j = h.topk(2, dim=1).indices.T
    g, s = module.saliency(model, a)
    assert torch.allclose(g.flatten(1), W[c] - W[j], atol=1e-5)
    assert torch.allclose(s, h.gather(1, c[:, None])[:, 0] - h.gather(1, j[:, None])[:, 0])
    alpha = ((W[c] - W[j]) * a.flatten(1)).sum(1).abs() / (W[c] - W[j]).norm(dim=1)
    assert torch.allclose(module.alignment(a, g), alpha, atol=1e-5)
    # The boundary is the nearest of the hyperplanes on which another output is as large.
    gaps = h.gather(1, c[:, None]) - h
    lengths = (W[c][:, None] - W[None]).norm(dim=2)
    nearest = (gaps / lengths).nan_to_num(torch.inf).min(1).values
    found = module.distance(model, a)
    assert (found > nearest - 1e-4).all()  # an attack never crosses before the boundary
    two = affine(seed, classes=2)
    g, s = module.saliency(two, a)
    exact = s.abs() / g.flatten(1).norm(dim=1)
    assert torch.allclose(module.distance(two, a), exact, atol=8 / 2**11)


def test_a_map_is_scored_on_the_eyes_pixels_alone():
    a = torch.zeros(3, 3, 4, 4)
    a[:, :, 1:3] = 0.5  # the eye: two rows of four; the rest is black
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, 1, :2] = True  # a quarter of it
    g = torch.zeros(3, 3, 4, 4)
    g[0] = -0.1  # the same everywhere
    g[1, :, 1, :2] = torch.tensor([-1.0, 2.0])  # on the lesion alone, of both signs
    g[2, 0, 2, 3] = 3.0  # three parts beside it, one part on it, in channels of both signs
    g[2, :2, 1, 0] = torch.tensor([0.5, -0.5])
    g[1:, :, 0] = 9.0  # on the black frame
    lift, hit = module.located(a, g, mask)
    assert torch.allclose(lift, torch.tensor([1.0, 4.0, 1.0]))
    assert hit[1:].tolist() == [True, False]


def test_the_rank_correlation_is_spearmans():
    u, v = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    v = v + u
    assert module.rank_correlation(u, v) == pytest.approx(spearmanr(u, v).statistic)
    assert module.rank_correlation(u[:1], v[:1]) == 0


def test_the_rank_correlation_gives_ties_their_mean_rank_and_a_constant_none():
    """By hand: the ranks 1.5, 1.5, 3.5, 3.5 against 1, 2, 3, 4 have the correlation 2 / √5."""
    u, v = torch.tensor([0.2, 0.2, 0.9, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert module.rank_correlation(u, v) == pytest.approx(2 / 5**0.5)
    assert module.rank_correlation(torch.ones(4), v) == 0
    assert module.rank_correlation(v, torch.ones(4)) == 0


def test_the_question_is_grade_0_against_all_others_beside_the_majority(monkeypatch, tmp_path):
    b = {"train": [0, 0, 0, 1, 2, 3, 4], "test": [0, 0, 1, 2, 3, 4, 4, 4]}

    def retina(split):
        a = torch.rand(len(b[split]), 3, 28, 28, generator=torch.Generator().manual_seed(0))
        return data.Images(a, torch.tensor(b[split]), data.GRADES)

    monkeypatch.setattr(data, "retina", retina)
    two = module.diseased(retina("train"))
    assert two.b.tolist() == [0, 0, 0, 1, 1, 1, 1] and len(two.classes) == 2
    settings = {"clean_epochs": 1, "epochs": 1, "test_steps": 1, "distances": 2, "pictures": 0}
    config, cpu = module.Config(seeds=1, **settings), torch.device("cpu")
    grades = module.measure(config, "grades-standard", 0, cpu, tmp_path / "grades-standard-0.pt")
    assert grades["majority"] == 2 / 8 and grades["published"] == 0.524  # grade 0 is the commonest
    disease = module.measure(config, "retina-untrained", 0, cpu, tmp_path / "retina-untrained-0.pt")
    assert disease["majority"] == 6 / 8 and "published" not in disease  # disease is
    assert 0 <= disease["robust_accuracy"] <= disease["accuracy"] <= 1


@pytest.mark.parametrize("name", ["clean_epochs", "epochs", "test_eyes", "distances", "pictures"])
def test_settings_out_of_range_are_refused_before_anything_runs(name):
    with pytest.raises(ValueError, match=f"{name} must be >= ., got -1"):
        list(module.cells(module.Config(**{name: -1})))
