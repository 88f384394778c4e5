"The benchmarks run, at a size that takes seconds, and print their ratios. How fast they are is not a test."
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1]/"benchmarks"


@pytest.mark.parametrize("script, said", [("windows.py", "times slower"), ("features.py", "4 assets over 1")])
def test_a_benchmark_prints_its_ratio(script, said):
    environment = {name: value for name,value in os.environ.items() if name != "METAVOL_DATA"}
    done = subprocess.run([sys.executable, BENCHMARKS/script, "--assets", "4", "--bars", "120"],
                          env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout and "simulated" in done.stdout


def test_the_windows_are_cut_from_real_bars_too(market_data):
    done = subprocess.run([sys.executable, BENCHMARKS/"windows.py", "--assets", "3", "--bars", "200"],
                          env={**os.environ, "METAVOL_DATA": str(market_data)}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "real: us_equities_daily.parquet, 3 assets, 600 bars" in done.stdout and "times slower" in done.stdout


def test_the_learner_prints_its_ratios():
    done = subprocess.run([sys.executable, BENCHMARKS/"learner.py", "--tasks", "2", "--assets", "3", "--repeats", "1", "--skip", "compile", "jax"],
                          capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "times the floor" in done.stdout and "metavol, eager" in done.stdout and "adapt and predict, 3 assets" in done.stdout


def test_the_judge_prints_its_seconds():
    environment = {name: value for name, value in os.environ.items() if name != "METAVOL_DATA"}
    done = subprocess.run([sys.executable, BENCHMARKS/"judge.py", "--assets", "3", "--bars", "400", "--jobs", "1", "--every", "20", "--part", "classical"],
                          env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and "engine, by asset" in done.stdout and "all classical" in done.stdout


def test_the_backtest_prints_its_ratio():
    done = subprocess.run([sys.executable, BENCHMARKS/"trading.py", "--assets", "3", "--bars", "200"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "metavol, all assets" in done.stdout and "times slower" in done.stdout
