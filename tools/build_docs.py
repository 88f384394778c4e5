"""Build the site into `_docs` without Quarto, and fail on every warning, broken link and formula that cannot be set.

nbdev turns the notebooks into pages, smalldocs lays them out as `_quarto.yml` says, and KaTeX (from npm) sets the formulas
here, so that a reader's browser asks no other host for anything. With Quarto, `nbdev_docs` builds the same pages.
"""
import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.check import scan
from smalldocs.config import load
from smalldocs.site import Site

KATEX = "0.19.1"
FORMULA = re.compile(r'(<span class="math (inline|display)">)(.*?)(</span>)', re.S)
EXTERNAL = re.compile(r"^(https?:)?//|^mailto:|^data:")
SET_FORMULAS = """
const katex = require(process.argv[1]);
const set = ([tex, displayMode]) => {
  try { return {html: katex.renderToString(tex, {displayMode, strict: 'error'})}; }
  catch (error) { return {error: error.message}; }
};
console.log(JSON.stringify(JSON.parse(require('fs').readFileSync(0, 'utf8')).map(set)));
"""


def source(cell): return "".join(cell["source"])


def documented(cell):
    "The name whose documentation a cell shows, or None."
    found = re.search(r"^show_doc\((?:\w+\.)*(\w+)\)", source(cell), re.M)
    return found and found[1]


def defines(text, name): return name and re.search(rf"^ *(?:def|class) {name}\b", text, re.M)


def place_exports(cells):
    "Put the headings of exported functions above their shown source, whose signature and docstring need no second copy."
    placed = []
    for cell in cells:
        above = len(placed)
        if placed and defines(source(placed[-1]), documented(cell)):
            above -= 1 # nbdev leaves the headings of one source cell around it, the last definition first
            while above and defines(source(placed[-1]), documented(placed[above - 1])): above -= 1
        placed.insert(above, cell)
    shown = "\n".join(source(cell) for cell in placed if "Exported source" in source(cell))
    for cell in placed:
        cell["source"] = re.sub(r'^#\| code-fold: show\n#\| code-summary: "Exported source"\n', "", source(cell))
        if not defines(shown, documented(cell)): continue
        for output in cell["outputs"]:
            text = "".join(output["data"]["text/markdown"])
            output["data"]["text/markdown"] = re.match(r"(?:---\n\s*)?(.*?^#+ .*?\n)", text, re.M | re.S)[1]
    return placed


def said_by(node):
    "The text of a string in the source, with an ellipsis where a computed value stands."
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value
    if isinstance(node, ast.JoinedStr): return "".join(said_by(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add): return (said_by(node.left) or "…") + (said_by(node.right) or "…")


def titles(code):
    "The titles that a cell gives its figures; the title states the finding, so it is what the figure shows."
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", code, flags=re.M))):
        if not isinstance(node, ast.Call): continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = [keyword.value for keyword in node.keywords if keyword.arg == "title"] + (node.args[:1] if name in ("set_title", "suptitle") else [])
        yield from filter(None, map(said_by, given))


def describe_figures(cells):
    "Give every figure words: those of its `fig-alt`, else its title, else where it stands and what draws it."
    heading = ""
    for cell in cells:
        text = source(cell)
        if cell["cell_type"] == "markdown": heading = (re.findall(r"^#+ (.+)", text, re.M) or [heading])[-1]
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if cell["cell_type"] != "code" or not drawn or re.search(r"^#\| *fig-alt", text, re.M): continue
        call = (re.findall(r"(?:^|[.\s])(plot\w*)\(", text) or ["figure"])[-1].replace("_", " ")
        words = ". ".join(dict.fromkeys(titles(text))) or f"{heading}: {call}"
        cell["source"] = f"#| fig-alt: {json.dumps(' '.join(words.split()), ensure_ascii=False)}\n{text}"


def travels(path):
    "What every notebook needs to be run elsewhere: where it is downloaded and opened, and what installs the book there."
    config = get_config()
    name = f"{config.branch}/{path.relative_to(config.config_path).as_posix()}"
    return (f"[Download this notebook]({config.git_url}/raw/{name})",
            f"[Open in Colab](https://colab.research.google.com/github/{config.user}/{config.repo}/blob/{name})",
            "%pip install -q 'metavol[book]'")


def check_form():
    "What nbdev would lose or stumble over, by notebook: text in the title's cell, imports that share a cell with other code."
    for path in nbglob(as_path=True):
        cells = NBProcessor(path).nb.cells
        if not re.fullmatch(r"# .+\n\n> .+", cells[0].source.strip()):
            yield f"{path.name}: the first cell must be `# Title`, an empty line and `> question?`; put the rest in a cell of its own"
        yield from (f"{path.name}: no cell holds {text!r}, so it does not travel" for text in travels(path)
                    if not any(text in cell.source for cell in cells))
        for cell in cells:
            if cell.directives_.keys() & {"export", "exports", "exporti", "eval:"}: continue
            kinds = {type(node) for tree in cell.parsed_() or [] for node in ast.walk(tree)}
            if kinds & {ast.Import, ast.ImportFrom} and kinds & {ast.Expr, ast.Assign}:
                yield f"{path.name}, cell {cell.id}: imports share a cell with other code; put them in a cell of their own"


def stage():
    "Process the notebooks as nbdev does and name each as its page; return the folder and what smalldocs cannot read."
    refresh_quarto_yml()
    folder, problems, pages = proc_nbs(force=True), [], {}
    for path in sorted(folder.rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"] = place_exports(notebook["cells"])
        describe_figures(cells)
        text = "\n\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
        problems += [f"{path.name}: {message}" for _, message in scan(text)]
        if output := re.search(r"^output-file: (.*)\.html\n", source(cells[0]), re.M):
            cells[0]["source"] = source(cells[0]).replace(output[0], "")
            pages[path.name] = f"{output[1]}.ipynb"
        path.unlink()
        path.with_name(pages.get(path.name, path.name)).write_text(json.dumps(notebook), encoding="utf-8")
    links = re.compile(r"(\]\((?:[\w./-]*/)?|^ *(?:- |href: )(?:\w+/)?)(%s)" % "|".join(map(re.escape, pages)), re.M)
    for path in [*folder.rglob("*.ipynb"), folder/"_quarto.yml"]:
        path.write_text(links.sub(lambda m: m[1] + pages[m[2]], path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder, problems


def katex():
    "The folder of KaTeX's files, fetched once."
    folder = get_config().config_path/"_katex"
    if not (folder/"package"/"dist").exists():
        folder.mkdir(exist_ok=True)
        archive = subprocess.run(["npm", "pack", "--silent", f"katex@{KATEX}"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        shutil.unpack_archive(folder/archive, folder, filter="data")
    return folder/"package"/"dist"


def set_formulas(site):
    "Replace the formulas of every page by their typeset form; return those that KaTeX refuses."
    found = {}
    for path in site.rglob("*.html"):
        for _, kind, source, _ in FORMULA.findall(path.read_text(encoding="utf-8")):
            found[kind, source] = path.name
    sources = [(html.unescape(source).strip().removeprefix("\\(").removeprefix("\\[").removesuffix("\\)").removesuffix("\\]"), kind == "display") for kind, source in found]
    answer = subprocess.run(["node", "-e", SET_FORMULAS, katex()/"katex.js"], input=json.dumps(sources), check=True, capture_output=True, text=True)
    typeset = dict(zip(found, json.loads(answer.stdout)))
    shutil.copytree(katex(), site/"site_libs"/"katex", ignore=lambda _, names: [n for n in names if not (n == "fonts" or n == "katex.min.css" or n.endswith(".woff2"))])
    for path in site.rglob("*.html"):
        page = FORMULA.sub(lambda m: m[1] + typeset[m[2], m[3]].get("html", m[3]) + m[4], path.read_text(encoding="utf-8"))
        page = re.sub(r'<script[^>]*src="[^"]*/katex@[^"]*"[^>]*></script>', "", page)
        page = re.sub(r'https://[^"]*/katex@[^"]*/katex.min.css', "../"*(len(path.relative_to(site).parts) - 1) + "site_libs/katex/katex.min.css", page)
        path.write_text(page, encoding="utf-8")
    return [f"{page}: {typeset[key]['error']}" for key, page in found.items() if "error" in typeset[key]]


def localize(site):
    "Point links to the published site and to notebooks for download into this copy of it, and drop the web fonts that themes ask for."
    config = get_config()
    home, raw = f"{config.doc_host}{config.doc_baseurl}/", f"{config.git_url}/raw/{config.branch}/{config.nbs_path.name}/"
    for path in nbglob(as_path=True):
        copy = site/"notebooks"/path.relative_to(config.nbs_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for path in site.rglob("*.html"):
        up = "../"*(len(path.relative_to(site).parts) - 1)
        page = path.read_text(encoding="utf-8").replace(f'href="{raw}', f'download href="{up}notebooks/').replace(f'href="{home}', f'href="{up}')
        path.write_text(page, encoding="utf-8")
    for path in site.rglob("*.css"):
        path.write_text(re.sub(r"@import\s+url\([^)]*\);?", "", path.read_text(encoding="utf-8")), encoding="utf-8")


def prune_icons(site):
    "Keep of two thousand icons the rules of those that a page or a script names."
    text = "".join(path.read_text(encoding="utf-8") for kind in ("*.html", "*.js", "smalldocs.css") for path in site.rglob(kind))
    used = set(re.findall(r"bi-[\w-]+", text))
    for path in site.rglob("bootstrap-icons*.css"):
        path.write_text(re.sub(r"\.(bi-[\w-]+)::before\s*\{[^}]*\}", lambda m: m[0] if m[1] in used else "", path.read_text(encoding="utf-8")), encoding="utf-8")


ICON = "<link rel='icon' href='data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 16 16%22%3E%3Ctext y=%2214%22 font-size=%2216%22 fill=%22%23e66100%22%3E%CF%83%3C/text%3E%3C/svg%3E'>"


def open_to_keys(site):
    "Let the keyboard reach what scrolls within a page, and give every page an icon, so that no browser looks for one."
    scrolls = re.compile(r'<(pre|div class="cell-output cell-output-display"|div class="sd-table"|span class="math display")')
    for path in site.rglob("*.html"):
        page = scrolls.sub(lambda m: f'<{m[1].split()[0]} tabindex="0"{m[1][len(m[1].split()[0]):]}', path.read_text(encoding="utf-8"))
        path.write_text(page.replace("</head>", f"{ICON}</head>", 1), encoding="utf-8")


class Links(HTMLParser):
    "The ids of a page, what it links to, and what a browser fetches to show it."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a": self.links.add(attributes.get("href") or "")
        elif tag != "link" or attributes.get("rel") != "canonical": self.fetched |= {attributes.get("src") or "", attributes.get("href") or ""}


def check_links(site):
    "Every link that leads nowhere, everything fetched from another host, and every page that the sidebar leaves out."
    pages = {path.resolve(): Links(path) for path in site.rglob("*.html")}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site)
        problems += [f"{name}: fetches {url}" for url in page.fetched if re.match(r"^(https?:)?//", url)]
        for link in page.links | page.fetched:
            if not link or EXTERNAL.match(link): continue
            target, anchor = urldefrag(link)
            target = (path.parent/unquote(target)).resolve() if target else path
            if target.is_dir(): target = target/"index.html"
            if not target.exists() or anchor and target in pages and unquote(anchor) not in pages[target].ids:
                problems.append(f"{name}: broken link {link}")
    listed = {(site/urldefrag(link).url).resolve() for link in pages[(site/"index.html").resolve()].links if not EXTERNAL.match(link)}
    problems += [f"{path.relative_to(site)}: no page of _quarto.yml's sidebar" for path in pages.keys() - listed - {(site/"index.html").resolve()}]
    for path in site.rglob("*.css"):
        problems += [f"{path.relative_to(site)}: fetches {url}" for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]*)", path.read_text(encoding="utf-8"))]
    return problems


def main():
    if problems := list(check_form()): sys.exit("\n".join(problems))
    os.environ["PYTHONWARNINGS"] = "error::UserWarning"
    folder, problems = stage()
    builder = Site(load(folder), quiet=True)
    builder.build()
    site = get_config().doc_path.resolve()
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(builder.out, site)
    problems += [warning for warning in builder.warnings if "broken link" not in warning] + set_formulas(site)
    localize(site)
    open_to_keys(site)
    prune_icons(site)
    problems += check_links(site)
    if problems: sys.exit("\n".join(sorted(set(problems))))
    print(f"{len(builder.pages)} pages in {site.name}")


if __name__ == "__main__": main()
