"""Execute notebooks in place, then clean them: `python tools/execute.py [nbs/12_maml.ipynb ...]`, all of them by default.

Every notebook runs in a process of its own, in a fixed environment, so that running it twice gives the same bytes, and its
figures are stored small. Cells marked `#| eval: false` or with one of the `tst_flags` of settings.ini keep the outputs they
have. A cell that raises or writes to stderr fails the run, and its notebook is left as it was.
"""
import os
import re
import sys
from base64 import b64decode, b64encode
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

from execnb.nbio import write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor
from PIL import Image

ENVIRONMENT = {"SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def is_skipped(cell):
    "Does a directive of `cell` keep it from running, as in `nbdev_test`?"
    directives = cell.directives_ or {}
    unevaluated = directives.get("eval:", [""])[0].lower() == "false"
    return unevaluated or "nbdev_export(" in cell.source or not directives.keys().isdisjoint(get_config().tst_flags.split())


def complaint(outputs):
    "What a cell wrote to stderr or raised, or None."
    for output in outputs:
        if output["output_type"] == "error": return "".join(output["traceback"])
        if output.get("name") == "stderr": return "wrote to stderr: " + "".join(output["text"])


def fix_table_ids(cell):
    "Name styled tables after their cell: pandas draws a random name each time."
    for output in cell.outputs:
        html = output.get("data", {}).get("text/html")
        if html: output["data"]["text/html"] = [re.sub(r"\bT_[0-9a-f]{5}(?=[_\" ])", f"T_{cell.id}", line) for line in html]


def shrink_figures(cell):
    "Keep 128 colors of each figure, on white: a third of the bytes, and nothing an eye would miss."
    for output in cell.outputs:
        png = output.get("data", {}).get("image/png")
        if not png: continue
        figure, small = Image.open(BytesIO(b64decode(png))).convert("RGBA"), BytesIO()
        page = Image.alpha_composite(Image.new("RGBA", figure.size, "white"), figure).convert("RGB")
        page.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        output["data"]["image/png"] = b64encode(small.getvalue()).decode()


def execute(path):
    "Run one notebook and save it; return None, or what went wrong and where."
    sys.path.insert(0, str(get_config().config_path))
    notebook = NBProcessor(path, rm_directives=False, process=True).nb
    shell = CaptureShell(path)
    with working_directory(path.parent):
        for cell in notebook.cells:
            if cell.cell_type != "code" or is_skipped(cell): continue
            cell.outputs = []
            shell.cell(cell)
            if wrong := complaint(cell.outputs): return f"{path.name}, cell {cell.id}:\n{cell.source}\n\n{wrong}"
            fix_table_ids(cell)
            shrink_figures(cell)
    write_nb(notebook, path)
    nbdev_clean(str(path))


def main():
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sorted(nbglob(as_path=True))
    if missing := [path.name for path in paths if not path.is_file()]: sys.exit(f"no such notebook: {', '.join(missing)}")
    failures = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for path, wrong in zip(paths, pool.map(execute, paths)):
            print("FAILED" if wrong else "ran   ", path.relative_to(get_config().config_path), flush=True)
            if wrong: failures.append(wrong)
    if failures: sys.exit("\n" + "\n\n".join(failures))


if __name__ == "__main__":
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    main()
