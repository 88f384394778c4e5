"""The built site in a real browser: nothing fails, nothing is asked of another host, and everybody can read it.

Needs `python tools/build_docs.py`, Debian's chromium and, for axe-core, npm; skips and says so where one is missing.
"""
import http.server
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from metavol.context import ContextSpec
from metavol.data import load_sample
from metavol.study import SAMPLE_STUDIES, run_study, save_study
from metavol.training import PooledSpec, TrainingSpec

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT/"_docs"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LARGEST = 1_500_000 # Bytes of a page with all it loads

if not (SITE/"index.html").exists(): pytest.skip("the site is not built here; run python tools/build_docs.py first", allow_module_level=True)
if BROWSER is None: pytest.skip("no chromium here; install Debian's package chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install '.[dev]'")

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1" # One connection for many files, as on a real host
    def log_message(self, *words): pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128 # The default of five lets a browser's burst of connections wait for seconds
    daemon_threads = True


def served(folder):
    "Serve a folder on this machine; yields its address."
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown(); server.server_close()


@pytest.fixture(scope="module")
def address():
    "The site, served on this machine."
    yield from served(SITE)


@pytest.fixture(scope="module")
def browser():
    "One headless Chromium for all tests."
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    "Opens a page; what went wrong on the way is in `page.wrong`, what it weighed in `page.weight`."
    contexts = []
    def opened(name, width=1280, scheme="light", host=address):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.wrong, page.weight = [], []
        page.on("console", lambda message: message.type == "error" and page.wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.wrong.append(f"script: {error}"))
        page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url}"))
        page.on("request", lambda request: request.url.startswith((host, "data:", "blob:")) or page.wrong.append(f"another host: {request.url}"))
        page.on("response", lambda response: page.wrong.append(f"{response.status}: {response.url}") if response.status >= 400 else page.weight.append(response))
        page.goto(host + name, wait_until="load", timeout=60_000)
        page.evaluate("document.fonts.ready.then(() => null)")
        return page
    yield opened
    for context in contexts: context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_whole_from_here_alone_has_words_for_its_figures_and_fits_a_phone(opened, name):
    page = opened(name, width=390)
    assert page.wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page scrolls sideways on a phone"
    silent = page.eval_on_selector_all("main img", "images => images.filter(image => !(image.alt || '').trim()).map(image => image.src.slice(-60))")
    assert silent == [], "figures without words"
    broken = page.eval_on_selector_all("img", "images => images.filter(image => image.complete && !image.naturalWidth).map(image => image.src)")
    assert broken == []
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", "all => all.filter(one => one.offsetParent).map(one => +one.tagName[1])")
    assert levels.count(1) == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:])), f"headings out of order: {levels}"
    assert page.evaluate("performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).reduce((sum, one) => sum + one.encodedBodySize, 0)") < LARGEST


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    "The source of axe-core, from npm."
    if shutil.which("npm") is None: pytest.skip("no npm here, so no axe-core")
    folder = ROOT/"_katex"/"axe"
    if not (folder/"package"/"axe.min.js").exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["npm", "pack", "--silent", "axe-core@4.14.1"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        shutil.unpack_archive(folder/archive, folder, filter="data")
    return (folder/"package"/"axe.min.js").read_text()


def serious_faults(page, axe, rules=None):
    "What axe-core calls serious or critical by all rules, or by some, with the first elements."
    page.evaluate(axe)
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return {one["id"]: [node["html"][:120] for node in one["nodes"][:3]] for one in found if one["impact"] in ("serious", "critical")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_fault(opened, axe, name, scheme):
    serious = serious_faults(opened(name, scheme=scheme), axe, ["color-contrast"] if scheme == "dark" else None) # The theme changes colors alone
    assert serious == {}, json.dumps(serious, indent=1)


@pytest.mark.parametrize("words, page_of_it", [("realized volatility", "volatility.html"), ("MAMLVolatility", "maml.html#mamlvolatility"), ("MAMLVolatility", "api/reference.html#mamlvolatility")])
def test_the_search_finds(opened, words, page_of_it):
    page = opened("index.html")
    page.get_by_placeholder("Search").first.fill(words)
    found = page.locator(f".search-result[href$='{page_of_it}']").first
    found.wait_for(timeout=10_000)
    found.click()
    page.wait_for_load_state("load")
    assert page.url.endswith(page_of_it) and page.wrong == []
    if "#" in page_of_it: assert page.locator("#" + page_of_it.split("#")[1]).first.is_visible()


@pytest.mark.parametrize("name", [name for name in PAGES if name != "changelog.html"])
def test_a_page_can_be_taken_away(name):
    "Without a browser: its notebook lies beside the site, and Colab is one click away."
    text = (SITE/name).read_text(encoding="utf-8")
    copy = re.search(r'download href="([^"]+\.ipynb)"', text)
    assert copy and json.loads(((SITE/name).parent/copy[1]).read_text(encoding="utf-8"))["cells"]
    assert re.search(r'href="https://colab\.research\.google\.com/github/[^"]+\.ipynb"', text)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "The report of a small study, served alone."
    spec = replace(SAMPLE_STUDIES["stocks"], seeds=(0,), every=10, split="2012-03-01", n_jobs=1, pooled=PooledSpec(updates=20), meta=TrainingSpec(updates=2, batch=4), context=ContextSpec(updates=2))
    stocks = load_sample("stocks")
    folder = save_study(run_study(stocks, stocks, spec, progress=False), tmp_path_factory.mktemp("study"))
    yield from served(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_of_a_study_stands_alone_and_everybody_can_read_it(opened, axe, report, scheme):
    page = opened("report.html", width=390, scheme=scheme, host=report)
    assert page.wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and page.locator("img").count() >= 4
    assert page.eval_on_selector_all("img", "images => images.every(image => image.alt && image.naturalWidth)")
    assert serious_faults(page, axe) == {}
    words, shown = page.locator("dt").all_inner_texts(), page.inner_text("body")
    for word in ("QLIKE", "hit rate", "may be best", "risk error", "turnover"): assert word in words and word in shown
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]


def test_light_and_dark_differ(opened):
    colors = {scheme: opened("index.html", scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor") for scheme in ("light", "dark")}
    assert colors["light"] != colors["dark"]


def test_formulas_are_set(opened):
    page = opened("volatility.html")
    assert page.locator(".katex").count() > 5 and page.locator(".katex-error").count() == 0
