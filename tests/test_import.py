"`import metavol` is instant, and every public name is there."
import subprocess
import sys
from statistics import median

import metavol

CONTRACT = ["load_stock_data", "load_bybit_data", "load_sample", "compute_features", "FEATURES", "create_tasks", "TaskSpec", "VolatilityNet", "MAMLVolatility",
            "volatility_loss", "run_backtest", "load_pretrained", "forecast"]


def fresh(code):
    "What a new interpreter prints."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_instant_and_loads_nothing_heavy():
    code = "import time; began = time.perf_counter(); import metavol; print(time.perf_counter() - began, *(name for name in ('torch', 'pandas', 'numpy') if name in __import__('sys').modules))"
    answers = [fresh(code).split() for _ in range(5)]
    assert all(len(answer) == 1 for answer in answers), answers[0]
    assert median(float(answer[0]) for answer in answers) < 0.3


def test_the_contract_is_kept():
    assert set(CONTRACT) <= set(metavol.__all__) == set(dir(metavol)) - {"__version__"}


def test_every_public_name_is_what_its_chapter_defines():
    "In either order: by name first, or after all chapters were imported."
    check = "assert all(getattr(metavol, name) is getattr(sys.modules[f'metavol.{chapter}'], name) for chapter, names in metavol.CHAPTERS.items() for name in names)"
    by_name = "import metavol, sys; [getattr(metavol, name) for name in metavol.__all__]; "
    by_chapter = "import metavol, sys, importlib; [importlib.import_module(f'metavol.{chapter}') for chapter in metavol.CHAPTERS]; "
    for begin in (by_name, by_chapter): fresh(begin + check)
