"""The pictures of the results page, each a drawing of a record: ``picture(record, kind, *names)``.

A kind draws what the rows of every variant hold under the names, and returns an alt text that says
it in numbers: dots for numbers, curves for lists over epochs or steps, classes for lists over
classes, digits for lists of small images, mosaics for stored pictures, and four kinds of their own
for four records.
"""

import base64
import html
import io
from math import ceil
from statistics import fmean

import numpy as np

from lib.data import OBJECTS
from lib.pages import plots


def picture(record, kind, *names):
    """The drawing as HTML: an image with its alt text."""
    import matplotlib.pyplot as plt

    with plt.rc_context():
        plots.use_style()
        plt.rcParams["figure.constrained_layout.use"] = True
        figure, alt = KINDS[kind](record, *names)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="webp", dpi=150, pil_kwargs={"quality": 80})
        plt.close(figure)
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img class="record" src="data:image/webp;base64,{source}" '
        f'alt="{html.escape(plots.checked_alt(alt))}" loading="lazy">'
    )


def dots(record, *names):
    """A panel for each number: a dot for each seed, a bar for the mean, a line for each variant."""
    figure, axes = _panels(len(names), 0.9 + 0.36 * len(record["results"]))
    said = []
    for panel, name in zip(axes, names, strict=True):
        for y, (variant, rows) in enumerate(record["results"].items()):
            values = [row[name] for row in rows if name in row]
            if values:
                mean = fmean(values)
                panel.barh(y, mean, color=plots.SKY, height=0.55, alpha=0.6)
                panel.plot(values, [y] * len(values), "o", color=plots.BLUE, ms=4)
                said.append(f"{variant} {mean:.3g}")
        panel.set(title=_words(name), ylim=(len(record["results"]) - 0.5, -0.5))
        panel.grid(False, axis="y")
        said[-1] += ";"
    axes[0].set_yticks(range(len(record["results"])), list(record["results"]))
    for panel in axes[1:]:
        panel.set_yticks([])
    means = ", ".join(said).replace(";,", ";").rstrip(";")
    return figure, f"Means of {' and '.join(map(_words, names))}: {means}."


def curves(record, *names):
    """A panel for each list: ``x:y`` is y over x, of rows or settings; y is over the epochs."""
    figure, axes = _panels(len(names), 3.0)
    said = []
    for panel, name in zip(axes, names, strict=True):
        over, _, name = name.rpartition(":")
        for variant, rows in record["results"].items():
            runs = np.array([row[name] for row in rows if name in row])
            if not len(runs):
                continue
            places = rows[0].get(over) or record["settings"].get(over)
            x = places or np.arange(1, runs.shape[1] + 1)
            [line] = panel.plot(x, runs.mean(0), label=variant)
            panel.fill_between(x, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.2, lw=0)
            said.append(f"{variant} ends at {runs.mean(0)[-1]:.3g}")
        panel.set(title=_words(name), xlabel=_words(over) if over else "epochs")
    axes[0].legend()
    return (
        figure,
        f"{' and '.join(_words(n.rpartition(':')[2]) for n in names)}: {', '.join(said)}.",
    )


def classes(record, *names):
    """Bars for the ten classes of CIFAR-10, worst first, with a mark for each seed."""
    name, chosen = (
        names[0],
        [v for v in record["results"] if v in names[1:]] or list(record["results"]),
    )
    means = {v: np.mean([row[name] for row in record["results"][v]], 0) for v in chosen}
    order = np.argsort(means[chosen[-1]])
    figure, [panel] = _panels(1, 3.0)
    width = 0.8 / len(chosen)
    for k, variant in enumerate(chosen):
        x = np.arange(len(order)) + (k - (len(chosen) - 1) / 2) * width
        panel.bar(x, means[variant][order], width, label=variant, alpha=0.75)
        for row in record["results"][variant]:
            panel.plot(x, np.array(row[name])[order], "_", color=plots.BLACK, ms=6)
        panel.axhline(means[variant].mean(), color=f"C{k}", ls="--", lw=1.2)
    panel.set_xticks(range(len(order)), [OBJECTS[c] for c in order], rotation=30, ha="right")
    panel.set(ylabel=_words(name))
    panel.grid(False, axis="x")
    panel.legend()
    said = [
        f"{v}: on average {m.mean():.1%}, {OBJECTS[m.argmin()]} {m.min():.1%}"
        for v, m in means.items()
    ]
    return figure, f"Accuracy class by class, the worst class first; {'; '.join(said)}."


def digits(record, name):
    """A row of stored images for each variant, of its first seed."""
    import matplotlib.pyplot as plt

    rows = {v: np.array(r[0][name]) for v, r in record["results"].items() if name in r[0]}
    shown = min(10, *(len(images) for images in rows.values()))
    figure, axes = plt.subplots(len(rows), shown, figsize=(7.2, 0.78 * len(rows)), squeeze=False)
    for line, (variant, images) in zip(axes, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=False):
            panel.imshow(image.reshape(image.shape[-2:]), vmin=0, vmax=image.max())
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(variant, rotation=0, ha="right", va="center")
    return figure, f"Rows of {shown} images each: {', '.join(rows)}."


def mosaics(record, name):
    """The stored picture of each variant, of its first seed: many images in one."""
    from lib.runs.records import pixels

    stored = {v: pixels(r[0][name]) for v, r in record["results"].items() if name in r[0]}
    figure, axes = _panels(3, 1, rows=ceil(len(stored) / 3))
    height, width = next(iter(stored.values())).shape
    figure.set_figheight(7.2 / 3 * height / width * ceil(len(stored) / 3) + 0.3)
    for panel, (variant, image) in zip(axes, stored.items(), strict=False):
        panel.imshow(image, vmin=0, vmax=255)
        panel.set_title(variant)
    for panel in axes:
        panel.set_axis_off()
    return figure, f"{_words(name)}: one picture each of {', '.join(stored)}."


def points(record):
    """The samples in the plane of each variant, of its first seed."""
    rows = {v: r[0] for v, r in record["results"].items() if "samples" in r[0]}
    figure, axes = _panels(len(rows), 1.7)
    ends = np.array([-1, 1]) * 1.05 * max(np.abs(row["samples"]).max() for row in rows.values())
    for panel, (variant, row) in zip(axes, rows.items(), strict=True):
        panel.scatter(*np.array(row["samples"]).T, s=1.5, lw=0)
        panel.set(title=variant, aspect="equal", xticks=[], yticks=[], xlim=ends, ylim=ends)
    near = ", ".join(f"{v} {row['near']:.0%}" for v, row in rows.items())
    return figure, f"Samples of the first seed; the share near a Gaussian: {near}."


def surfaces(record):
    """The loss on a plane through the trained network of each variant, of its first seed."""
    stored = {
        v: np.array(r[0]["surface"]) for v, r in record["results"].items() if "surface" in r[0]
    }
    figure, axes = _panels(len(stored), 1.9)
    least, most = (f([f(values) for values in stored.values()]) for f in (np.min, np.max))
    ends, levels = np.array([-1, 1]) * record["settings"]["extent"], np.geomspace(least, most, 13)
    said = []
    for panel, (variant, values) in zip(axes, stored.items(), strict=True):
        side = np.linspace(*ends, len(values))
        panel.contourf(side, side, values, levels, cmap="viridis", norm="log")
        panel.set(title=variant, aspect="equal", xticks=ends, yticks=ends)
        panel.grid(False)
        said.append(f"{variant} {(values < 2 * values.min()).mean():.0%}")
    share = "The share of the plane on which the loss is below twice its least value"
    return figure, f"{share}: {', '.join(said)}."


def networks(record, *attacks):
    """Accuracy under each attack for each network, in the image box, at two radii."""
    figure, axes = _panels(2, 3.0)
    kinds = list(dict.fromkeys(v.rsplit("-", 2)[0] for v in record["results"]))
    said = []
    for panel, radius in zip(axes, ("0.1", "0.3"), strict=True):
        for k, attack in enumerate(attacks):
            for x, kind in enumerate(kinds):
                values = [
                    row[f"{attack}_accuracy"] for row in record["results"][f"{kind}-{radius}-box"]
                ]
                place = [x + 0.13 * (k - 2)] * len(values)
                label = _words(attack) if x == 0 else None
                panel.plot(place, values, "o", color=f"C{k}", ms=4.5, alpha=0.75, label=label)
                if attack == attacks[-1]:
                    said.append(f"{kind} {fmean(values):.3f} at {radius}")
        panel.set_xticks(range(len(kinds)), kinds)
        panel.set(title=f"radius {radius}", ylim=(-0.03, 1.03))
        panel.grid(False, axis="x")
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=5, loc="outside upper center")
    return figure, f"Accuracy under {_words(attacks[-1])}: {', '.join(said)}."


def rates(record):
    """W1 against n on logarithmic axes, a line for each dimension."""
    figure, [panel] = _panels(1, 3.2)
    said = []
    for variant, rows in record["results"].items():
        w1 = np.mean([row["w1"] for row in rows], 0)
        panel.loglog(rows[0]["n"], w1, "o-", ms=3.5, label=variant.rpartition("-")[2])
        slope = fmean(row["slope"] for row in rows)
        said.append(f"{slope:.2f} in {variant.rpartition('-')[2]}")
    panel.set(xlabel="n", ylabel="W1 between two samples")
    panel.legend(title="dimension", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, f"W1 against n on logarithmic axes; slopes by dimension: {', '.join(said)}."


def _panels(number, height, rows=1):
    """A figure with this many panels in each row; all panels, row by row."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, number, figsize=(7.2, height), squeeze=False)
    return figure, list(axes.flat)


WORDS = {
    "w1": "W1 to the target",
    "near": "share near a Gaussian",
    "pga_0.3": "PGA, step 0.3",
    "pga_10000": "PGA, step 10,000",
    "pga_linf": "PGA-l_inf",
    "fgsm": "FGSM",
    "clean": "no attack",
    "by_radius": "accuracy under attack",
    "radii": "radius",
    "losses": "training loss",
    "w1_features_by_step": "W1 of features to the target",
    "robust_classes": "robust accuracy",
    "epoch_robust": "robust accuracy",
    "epoch_loss": "training loss",
    "grid": "generated digits",
    "along": "digits along the training",
    "ways": "digits on straight ways between noise variables",
    "sure": "share that can be read",
    "sure_by_step": "share that can be read",
}


def _words(name):
    return WORDS.get(name, name.replace("_", " "))


DRAWN = dots, curves, classes, digits, mosaics, points, surfaces, networks, rates
KINDS = {kind.__name__: kind for kind in DRAWN}
