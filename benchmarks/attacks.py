"""lib.attacks beside foolbox, torchattacks and ART: one interleaved run, one thread.

``python benchmarks/attacks.py [--json FILE]``; README.md here says how to install the peers.
``python benchmarks/attacks.py --autoattack`` compares robust accuracies with AutoAttack's alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib import attacks, data, models, training
from lib.balls import L2, Ball, LInf

warnings.simplefilter("ignore")  # the peers' own

BALLS = {"linf": LInf(0.1), "l2": L2(1.5)}
LARGE = {"linf": LInf(0.3), "l2": L2(3.0)}  # hardly a sample of an undefended model is left
ARCHITECTURES = {"mlp": models.mlp, "cnn": models.cnn}
EFFORTS = {"default": {}, "thorough": {"steps": 40}, "masked": {"steps": 50}}
SATURATED = 30.0  # times what a trained tanh layer was given
Attack = Callable[[Tensor, Tensor], Tensor]


def trained(name: str, ball: Ball | None, seed: int) -> nn.Module:
    """A digit model, by plain training, or against three steps of attack if a ball is given."""
    model, train = ARCHITECTURES[name](seed=seed), data.digits("train", seed=seed)
    plain = training.erm()

    def adversarial(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        model.eval()
        a = attacks.attack(model, a, b, ball, steps=3)
        model.train()
        return plain(model, a, b)

    epochs = {"mlp": 8, "cnn": 4}[name]
    update = adversarial if ball else plain
    training.fit(model, train, update, epochs=epochs, seed=seed, progress=False)
    return model


def peers(model: nn.Module, norm: str, eps: float, steps: int | None = None) -> dict[str, Attack]:
    """Each library's attack at our radius, its default or of steps: (a, b) -> inputs."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    infinite = norm == "linf"
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    projected = foolbox.attacks.LinfPGD if infinite else foolbox.attacks.L2PGD
    pgd = projected(steps=steps) if steps else projected()
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )
    art = ProjectedGradientDescent(
        classifier,
        norm=np.inf if infinite else 2,
        eps=eps,
        eps_step=eps / 3,
        max_iter=steps or 100,
        batch_size=1000,
        verbose=False,
    )
    if infinite:
        torchattack = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps or 10)
    else:
        torchattack = torchattacks.PGDL2(model, eps=eps, alpha=eps / 5, steps=steps or 10)
    apgd = torchattacks.APGD(model, norm="Linf" if infinite else "L2", eps=eps, steps=20)
    return {
        f"foolbox {pgd.steps}": lambda a, b: pgd(wrapped, a, b, epsilons=eps)[1],
        "ART 100": lambda a, b: torch.as_tensor(art.generate(a.numpy(), b.numpy())),
        "torchattacks 10": torchattack,
        "APGD 20": apgd,  # returns the clean input where it does not fool
        "APGD 20, best loss": lambda a, b: apgd.perturb(a, b, best_loss=True)[1],
    }


def cpu_seconds(run: Callable, *arguments: object) -> tuple[float, object]:
    begin = time.process_time()
    result = run(*arguments)
    return time.process_time() - begin, result


def interleaved(
    runs: dict[str, Callable], a: Tensor, b: Tensor, seed: int, rounds: int = 3
) -> dict[str, tuple[float, object]]:
    """The median CPU time of each run over rounds of all, and its result, the same each time."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            torch.manual_seed(seed)
            seconds, results[name] = cpu_seconds(run, a, b)
            times[name].append(seconds)
    return {name: (statistics.median(times[name]), results[name]) for name in runs}


def step_costs(model: nn.Module, a: Tensor, b: Tensor, repeats: int) -> dict[str, float]:
    """CPU time of a step over that of one forward and backward pass to the input.

    Ten steps: what 15 take more than 5. Of ours from the boundary, where the projection has work.
    """
    f = attacks.loss_of(model, a, b)

    def passes(steps: int) -> None:
        for _ in range(steps):
            z = a.detach().requires_grad_()
            torch.autograd.grad(attacks.cross_entropy(model(z), b).sum(), z)

    runs: dict[str, Callable[[int], object]] = {"passes": passes}
    for norm, ball in BALLS.items():
        start = attacks.pga(f, 0 * a, ball, ball.eps, 2, -a, 1 - a, True)
        for kind, alpha in (("steepest", ball.eps / 3), ("raw", ball.eps)):
            runs[f"{norm} ours, {kind}"] = lambda steps, s=start, ball=ball, k=kind, alpha=alpha: (
                attacks.pga(f, s, ball, alpha, steps, -a, 1 - a, k == "steepest")
            )
        for name in ("foolbox", "ART", "torchattacks"):
            runs[f"{norm} {name}"] = lambda steps, norm=norm, eps=ball.eps, name=name: next(
                run for key, run in peers(model, norm, eps, steps).items() if name in key
            )(a, b)
    seconds = {(name, steps): [] for name in runs for steps in (5, 15)}
    for _ in range(repeats):
        for name, steps in seconds:
            seconds[name, steps].append(cpu_seconds(runs[name], steps)[0])
    median = {key: statistics.median(times) for key, times in seconds.items()}
    cost = {name: median[name, 15] - median[name, 5] for name in runs}
    return {name: cost[name] / cost["passes"] for name in runs}


@torch.no_grad()
def strength(model: nn.Module, z: Tensor, b: Tensor) -> tuple[float, float]:
    """Accuracy and mean loss at the attacked inputs."""
    logits = model(z)
    accuracy = (logits.argmax(1) == b).double().mean().item()
    return accuracy, attacks.cross_entropy(logits, b).mean().item()


class Times(nn.Module):
    """A factor, of logits or of what a layer is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, a: Tensor) -> Tensor:
        return self.factor * a


def saturated(seed: int) -> nn.Module:
    """A trained network of tanh units, then given 30 times their input: no gradient is left."""
    normalize, flat, first, _, last = models.mlp(hidden=(100,), seed=seed)
    model, train = (
        nn.Sequential(normalize, flat, first, Times(1.0), nn.Tanh(), last),
        data.digits("train", seed=seed),
    )
    training.fit(model, train, training.erm(), epochs=8, seed=seed, progress=False)
    model[3].factor = SATURATED
    return model


def autoattack_cases(seed: int) -> Iterator[tuple[str, nn.Module, str]]:
    """Eight digit models, the same with logits x 100, and saturated units: name, model, norm."""
    for factor in (1, 100):
        for name in ARCHITECTURES:
            for norm, ball in BALLS.items():
                for kind in ("standard", "robust"):
                    model = trained(name, ball if kind == "robust" else None, seed)
                    whole = nn.Sequential(model, Times(float(factor))).eval()
                    yield f"{name} {norm} {kind}, logits x {factor}", whole, norm
    model = saturated(seed)
    for norm in BALLS:
        yield f"saturated tanh {norm}", model, norm


def compare_with_autoattack(seed: int = 0, samples: int = 200) -> list[list]:
    """Robust accuracy and CPU time of torchattacks' AutoAttack (standard) and of each effort."""
    import torchattacks

    test, rows = data.digits("test", seed=seed)[500 : 500 + samples], []
    print(f"\n{'model':36} AutoAttack  " + "  ".join(f"{k:>16}" for k in EFFORTS))
    for name, model, norm in autoattack_cases(seed):
        ball = BALLS[norm]
        peer = torchattacks.AutoAttack(
            model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=ball.eps, n_classes=10, seed=seed
        )
        theirs, z = cpu_seconds(peer, test.a, test.b)
        row = [name, strength(model, z.detach(), test.b)[0], theirs]
        for effort in EFFORTS.values():

            def ours(a: Tensor, b: Tensor, m=model, s=ball, e=effort) -> float:
                return attacks.robust_accuracy(m, a, b, s, **e)

            ours(test.a[:10], test.b[:10])  # warm
            seconds, share = interleaved({"ours": ours}, test.a, test.b, seed)["ours"]
            row += [share, seconds]
        rows.append(row)
        times = [
            f"{share:.3f} ({theirs / t:6.0f}x)"
            for share, t in zip(row[3::2], row[4::2], strict=True)
        ]
        print(f"{name:36} {row[1]:10.3f}  " + "  ".join(f"{x:>16}" for x in times), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--autoattack", action="store_true", help="only this comparison")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=250)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.autoattack:
        rows = compare_with_autoattack()
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return
    steps, accuracies, strengths = {}, [], []
    for seed in range(arguments.seeds):
        test = data.digits("test", seed=seed)[500 : 500 + arguments.samples]
        a, b = test.a, test.b
        for name in ARCHITECTURES:
            for norm, ball in BALLS.items():
                for kind in ("standard", "robust"):
                    model = trained(name, ball if kind == "robust" else None, seed)
                    if seed == 0 and kind == "standard" and norm == "linf":
                        steps[name] = step_costs(model, a, b, {"mlp": 20, "cnn": 10}[name])
                    runs: dict[str, Attack] = {
                        "ours": lambda a, b, m=model, s=ball: attacks.attack(m, a, b, s),
                        **peers(model, norm, ball.eps),
                    }
                    runs["ours"](a[:10], b[:10])  # warm
                    for attack_name, (seconds, z) in interleaved(runs, a, b, seed).items():
                        row = (*strength(model, z.detach(), b), seconds)
                        strengths.append([name, norm, kind, seed, attack_name, *row])
                    if kind == "standard":
                        large = LARGE[norm]
                        runs = {
                            "ours": lambda a, b, m=model, s=large: attacks.robust_accuracy(
                                m, a, b, s
                            ),
                            **peers(model, norm, large.eps),
                        }
                        del runs["ART 100"]  # slow, and no peer to the fastest
                        for attack_name, (seconds, z) in interleaved(runs, a, b, seed).items():
                            share = (
                                z if attack_name == "ours" else strength(model, z.detach(), b)[0]
                            )
                            accuracies.append([name, norm, seed, attack_name, share, seconds])
                    print(".", end="", flush=True)
    print("\n\nOne step over one forward and backward pass to the input (batch of")
    print(f"{arguments.samples}; the goal for ours: linf at most 1.05, l2 in the box at most 1.25)")
    for name, costs in steps.items():
        for norm in BALLS:
            line = [f"{k[len(norm) :]} {v:.2f}" for k, v in costs.items() if k.startswith(norm)]
            print(f"  {name} {norm}:" + ",".join(line))

    def rows(name: str, norm: str, kind: str, attack_name: str) -> np.ndarray:
        key = [name, norm, kind, attack_name]
        return np.array([r[5:] for r in strengths if [*r[:3], r[4]] == key])

    print("\nAttacks by default: mean over seeds of accuracy and loss; CPU time over ours")
    print(f"  {'model':22} {'attack':20} {'accuracy':>9} {'loss':>8} {'time':>7}")
    for name in ARCHITECTURES:
        for norm in BALLS:
            for kind in ("standard", "robust"):
                ours = rows(name, norm, kind, "ours")
                for attack_name in dict.fromkeys(r[4] for r in strengths if r[1] == norm):
                    found = rows(name, norm, kind, attack_name)
                    accuracy, loss, seconds = found.mean(0)
                    print(
                        f"  {name + ' ' + norm + ' ' + kind:22} {attack_name:20} {accuracy:9.4f} "
                        f"{loss:8.4f} {seconds / ours[:, 2].mean():6.2f}x"
                    )
    print("\nrobust_accuracy of undefended models, linf 0.3 and l2 3.0: CPU time over ours")
    for name in ARCHITECTURES:
        for norm in BALLS:
            found: dict[str, list] = {}
            for row in accuracies:
                if row[:2] == [name, norm]:
                    found.setdefault(row[3], []).append(row[4:])
            mine = np.mean(found["ours"], 0)
            line = [
                f"{k} {np.mean(v, 0)[0]:.4f} {np.mean(v, 0)[1] / mine[1]:.1f}x"
                for k, v in found.items()
            ]
            print(f"  {name} {norm}: " + "; ".join(line))
    if arguments.json:
        figures = {"steps": steps, "robust_accuracy": accuracies, "attacks": strengths}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
