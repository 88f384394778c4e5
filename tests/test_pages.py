"""What the pages say of the package is true of it."""
import json
import re
from pathlib import Path

import metavol

ROOT = Path(__file__).resolve().parents[1]


def prose(name):
    "The Markdown of a notebook."
    cells = json.loads((ROOT/"nbs"/name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_every_name_of_the_notation_stands_in_the_package():
    package = "\n".join(path.read_text(encoding="utf-8") for path in Path(metavol.__file__).parent.glob("*.py"))
    rows = [row.split(" | ")[1] for row in prose("explanations/notation.ipynb").splitlines() if row.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 20 and [name for name in sorted(named) if not re.search(rf"\b{name}\b", package)] == []


def test_the_reference_says_what_the_package_says(monkeypatch):
    "Its cells, run again, write what the notebook stores."
    monkeypatch.chdir(ROOT/"nbs"/"api")
    cells = json.loads(Path("reference.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code" and "%pip" not in "".join(cell["source"])]
    stored = ["".join(output["data"]["text/markdown"]) for output in cells[-1]["outputs"]]
    names = {}
    for text in code[:-1]: exec(text, names)
    assert len(stored) > 25 and [names["section"](module) for module in metavol.CHAPTERS] == stored, "run python tools/execute.py nbs/api/reference.ipynb"
    for module, text in zip(metavol.CHAPTERS, stored):
        for name in metavol.CHAPTERS[module]: assert f"### `{name}`" in text


def test_every_work_that_is_cited_is_in_the_references_and_every_reference_is_cited():
    rows = {row: [tuple(anchor.rsplit("-", 1)) for anchor in re.findall(r'<a id="([\w-]+)">', row)] for row in prose("references.ipynb").splitlines() if "<a id" in row}
    listed = {work for works in rows.values() for work in works}
    pages = {path.relative_to(ROOT/"nbs").as_posix(): re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
             for path in (ROOT/"nbs").rglob("*.ipynb") if path.name not in ("references.ipynb", "reference.ipynb")}
    assert len(listed) > 70
    for row, works in rows.items():
        for page in re.findall(r"\]\(([\w/.]+\.ipynb)\)", row) or [row]:
            assert any(re.search(rf"{name}\b[^\n]*?{year}", pages[page], re.I) for name, year in works), f"{page} does not cite {row}"
    cited = re.compile(r"(?<!, )\b([A-Z][\w'-]+)(?: et al\.| (?:&|and) [A-Z][\w'-]+),? \(?((?:19|20)\d\d)\)")
    for page, text in pages.items():
        for match in cited.finditer(text): assert (match[1].lower(), match[2]) in listed, f"{page} cites {match[0]}, which nbs/references.ipynb does not list"
