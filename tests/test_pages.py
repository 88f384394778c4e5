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
