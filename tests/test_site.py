"""The built book in headless Chromium: `make browser` builds it and runs these.

Each page, in the light and the dark theme and at a phone's width: nothing in the console, no
request that leaves the machine, every formula typeset, every image described, no serious finding
of axe-core, no sideways scrolling. And search finds a word.
"""

import functools
import http.server
import re
import shutil
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for folder in ("book", "lecture11")
    for path in (SITE / folder).glob("*.html")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(address, chromium):
    """Open a page in a theme and a width; collect what it complains of and asks for."""
    contexts = []

    def open_page(name, theme="light", width=1280):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        note = page.complaints.append
        page.on("console", lambda m: note(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("requestfailed", lambda request: note(f"failed: {request.url}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:", "blob:")) else note(r.url),
        )
        page.on("response", lambda r: note(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(f"{address}/{name}")
        page.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.wait_for_load_state("networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_book_is_built():
    assert len(PAGES) >= 10, f"no book in {SITE}: run make book"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(name, visit):
    page = visit(name)
    assert page.complaints == []
    math = page.evaluate(
        """() => [...document.querySelectorAll('.math')]
                 .filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)"""
    )
    assert math == [], "formulas that are not typeset"
    errors = page.locator("mjx-merror").all_text_contents()
    assert errors == [], "formulas with an error"
    alts = page.evaluate("() => [...document.querySelectorAll('.bd-content img')].map(e => e.alt)")
    for alt in alts:
        assert len(alt) >= 20 and alt.endswith("."), f"alt text that is no sentence: {alt!r}"
    raw = page.evaluate(
        """() => { const c = document.querySelector('.bd-article').cloneNode(true);
                   c.querySelectorAll('pre, code, script, .math').forEach(e => e.remove());
                   return c.textContent }"""
    )
    leftovers = re.findall(r"```|:::|\{\w+(?::\w+)?\}`|\$\$|\]\(#|\{\{|:label:|:tags:", raw)
    assert leftovers == [], "markup that was not rendered"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, theme, visit):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(name, theme)
    found = Axe().run(page).response["violations"]
    serious = {
        (v["id"], node["html"][:120])
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    }
    assert serious == set()


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_never_scrolls_sideways(name, visit):
    page = visit(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.complaints == []


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("lecture11")])
def test_the_dark_theme_shows_figures_as_drawn(name, visit):
    page = visit(name, "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    styles = page.evaluate(
        """() => [...document.querySelectorAll('.cell_output img')].map(e => {
                 const s = getComputedStyle(e); return [s.filter, s.backgroundColor] })"""
    )
    assert styles and all(style == ["none", "rgb(255, 255, 255)"] for style in styles)


def test_search_finds_a_word(visit):
    page = visit("search.html?q=linearized")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert "lecture11" in page.locator("#search-results li a").first.get_attribute("href")
    assert page.complaints == []


def test_every_link_inside_the_book_leads_somewhere():
    ids = {}
    for name in PAGES:
        text = (SITE / name).read_text(encoding="utf-8")
        ids[name] = set(re.findall(r'\bid="([^"]+)"', text))
    for name in PAGES:
        text = (SITE / name).read_text(encoding="utf-8")
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"[a-z]+:", link) or link.startswith("/"):
                continue
            path, _, anchor = link.partition("#")
            target = (SITE / name).parent / path if path else SITE / name
            assert target.exists(), f"{name} links {link}"
            key = target.resolve().relative_to(SITE).as_posix()
            if anchor and key in ids:
                assert anchor in ids[key], f"{name} links {link}"


def test_the_errata_open_with_their_table_and_take_twelve_screens(visit):
    page = visit("book/errata.html")
    page.set_viewport_size({"width": 1280, "height": 1000})
    table = page.locator("table.errata-table").first.bounding_box()
    assert table["y"] + table["height"] <= 1000, "the first tier is not on the first screen"
    assert page.evaluate("document.documentElement.scrollHeight") <= 12_000
    programs = page.locator(".erratum .highlight")
    assert programs.count() > 20
    assert not any(program.is_visible() for program in programs.all())


# --- interactive figures ----------------------------------------------------------------------

FIGURES = [page for page in PAGES if 'class="frames"' in (SITE / page).read_text("utf-8")]


def shown_by(figure):
    return figure.evaluate(
        "f => ({src: f.querySelector('img').src, alt: f.querySelector('img').alt,"
        " said: f.querySelector('input').getAttribute('aria-valuetext'),"
        " name: f.querySelector('output').value, at: f.querySelector('input').value})"
    )


def test_twelve_figures_or_more_answer():
    assert sum((SITE / page).read_text("utf-8").count('class="frames"') for page in PAGES) >= 12


@pytest.mark.parametrize("page", FIGURES)
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_arrow_keys_and_menus_choose_the_frame_of_every_figure(visit, page, theme, width):
    opened = visit(page, theme=theme, width=width)
    for figure in opened.locator("figure.frames").all():
        before, slider = shown_by(figure), figure.locator("input")
        assert slider.is_visible() and before["alt"] in before["said"]
        last = int(slider.get_attribute("max"))
        key, step = ("ArrowRight", 1) if int(before["at"]) < last else ("ArrowLeft", -1)
        slider.press(key)
        after = shown_by(figure)
        assert int(after["at"]) == int(before["at"]) + step
        assert all(after[k] != before[k] for k in ("src", "said", "name"))
        assert after["said"] == f"{after['name']}. {after['alt']}"
        for menu in figure.locator("select").all():
            old = shown_by(figure)
            chosen = menu.evaluate("m => m.selectedIndex")
            menu.select_option(index=1 if chosen == 0 else 0)
            new = shown_by(figure)
            assert new["src"] != old["src"] and new["at"] == old["at"]
    scroll = opened.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert scroll <= 0


@pytest.mark.parametrize("page", FIGURES)
def test_without_scripts_a_figure_shows_its_still_and_no_controls(address, chromium, page):
    context = chromium.new_context(java_script_enabled=False, reduced_motion="reduce")
    opened = context.new_page()
    opened.goto(f"{address}/{page}")
    for figure in opened.locator("figure.frames").all():
        image = figure.locator("img")
        assert image.is_visible() and len(image.get_attribute("alt")) >= 20
        assert not figure.locator("input").is_visible()
    context.close()


def test_in_print_a_figure_shows_its_still(visit):
    opened = visit(FIGURES[0])
    figure = opened.locator("figure.frames").first
    still = shown_by(figure)
    figure.locator("input").press("ArrowRight")
    assert shown_by(figure)["src"] != still["src"]
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown_by(figure)["src"] == still["src"]
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown_by(figure)["src"] != still["src"]


def test_pages_stay_under_two_megabytes():
    sizes = {page: (SITE / page).stat().st_size / 1e6 for page in PAGES}
    assert max(sizes.values()) < 2, sizes
