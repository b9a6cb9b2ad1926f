"""The slide map and the errata page, made from book/slides.yml and book/errata.yml.

Also the substitutions ``{{ seconds_03 }}``: what book/timings.json says of each chapter.
"""

import json
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).resolve().parent.parent

KINDS = {
    "wrong": "wrong as written",
    "assumption": "an assumption is missing",
    "overstatement": "says more than holds",
    "notation": "notation",
    "typo": "slip of the pen",
    "remark": "a remark, not a mistake",
}


def rows(name):
    return yaml.safe_load((BOOK / name).read_text(encoding="utf-8"))


def anchor(erratum):
    return "erratum-" + erratum["id"].replace(".", "-")


def indent(text, by):
    return str(text).rstrip().replace("\n", "\n" + " " * by)


class Generated(SphinxDirective):
    """A directive whose content is MyST text that `text()` writes."""

    def run(self):
        for name in ("slides.yml", "errata.yml"):
            self.env.note_dependency(str(BOOK / name))
        node = nodes.container()
        lines = self.text().splitlines()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, node)
        return node.children


class SlideMap(Generated):
    def text(self):
        errata = rows("errata.yml")
        parts = []
        slides = rows("slides.yml")
        chapters = dict.fromkeys(row["chapter"] for row in slides)
        for chapter in chapters:
            parts.append(self.heading(chapter))
            parts += [":::{list-table}", ":class: slide-map", ":widths: 8 52 40", ":header-rows: 1"]
            parts += ["* - No.", "  - What it states", "  - Code and tests"]
            for row in slides:
                if row["chapter"] == chapter:
                    here = [e for e in errata if row["slide"] in (e["slide"], *e.get("also", []))]
                    parts.append(self.row(row, here))
            parts += [":::", ""]
        return "\n".join(parts)

    def heading(self, chapter):
        names = {"intro": "Introduction"}
        return f":::{{rubric}} {names.get(chapter, f'Chapter {chapter}')}\n:::\n"

    def row(self, row, errata):
        number, written = row["slide"], row["status"] == "written"
        link = f"{{ref}}`{number} <slide-{number}>`" if written else str(number)
        states = f"**{row['title']}.** {indent(row['states'], 4)}"
        if errata:
            states += " *Errata:* " + ", ".join(f"{{ref}}`{e['id']} <{anchor(e)}>`" for e in errata)
        if not written:
            evidence = "*The chapter is not written yet.*"
        elif row["code"]:
            code = ", ".join(f"`{name}`" for name in row["code"])
            names = (test.partition("::test_")[2].replace("_", " ") for test in row["tests"])
            evidence = f"{code}\n\n    *Tested:* {'; '.join(names)}."
        else:
            evidence = "On the page."
        return f"* - {link}\n  - {states}\n  - {evidence}"


class Errata(Generated):
    def text(self):
        parts, slide = [], None
        for entry in rows("errata.yml"):
            if entry["slide"] != slide:
                slide = entry["slide"]
                parts += [f":::{{rubric}} Slide {slide}", ":::", ""]
            parts.append(self.entry(entry))
        return "\n".join(parts)

    def entry(self, entry):
        others = entry.get("also", [])
        also = f", also on {', '.join(str(n) for n in others)}" if others else ""
        where = f"{{ref}}`where the chapter shows it <{entry['where']}>`"
        lines = [
            f"({anchor(entry)})=",
            ":::::{container} erratum",
            f"**{entry['id']}** · {KINDS[entry['kind']]}{also} · {where}",
            "",
            f"Written\n: {indent(entry['written'], 2)}",
            "",
            f"Right\n: {indent(entry['right'], 2)}",
            "",
            f"Why\n: {indent(entry['why'], 2)}",
            "",
        ]
        if "check" in entry:
            lines += [
                "````{admonition} The check",
                ":class: dropdown",
                "```python",
                entry["check"].rstrip(),
                "```",
                "````",
            ]
        return "\n".join([*lines, ":::::", ""])


def measured_times(app, config):
    path = BOOK / "timings.json"
    timings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for page in sorted(Path(app.confdir).glob("lecture11/*.md")):
        seconds = timings.get(page.stem)
        text = "not measured yet" if seconds is None else f"{seconds:.0f} s on two CPU cores"
        config.myst_substitutions[f"seconds_{page.stem[:2]}"] = text


def setup(app):
    app.add_directive("slide-map", SlideMap)
    app.add_directive("errata", Errata)
    app.connect("config-inited", measured_times, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
