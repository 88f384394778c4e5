"What the benchmarks share: options, simulated bars, a clock, the memory of the process, and the machine in words."
import argparse
import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd


def options(
    description:str, # What the benchmark measures
    n_assets:int, # Default number of assets
    n_bars:int, # Default bars of each
)->argparse.Namespace: # `assets` and `bars`
    "Read the two options that every benchmark has."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--assets', type=int, default=n_assets, help=f'number of assets (default {n_assets})')
    parser.add_argument('--bars', type=int, default=n_bars, help=f'bars of each asset (default {n_bars})')
    return parser.parse_args()


def simulated(
    n_assets:int, # Number of assets
    n_bars:int, # Bars of each
)->pd.DataFrame: # Valid bars by (symbol, time)
    "Bars of random walks; what the numbers say does not matter to the clock."
    from metavol.processes import simulate_bars # Brings scipy: 60 MB that reading a file does not need
    return simulate_bars(np.full((n_assets, n_bars), .02), n_steps=2, rng=np.random.default_rng(0))


def seconds(
    job:Callable, # Takes nothing
)->float: # Wall clock, seconds
    "How long one call takes."
    start = perf_counter()
    result = job() # Held until the clock has stopped, so that freeing it is not counted
    elapsed = perf_counter() - start
    del result
    return elapsed


def medians(
    jobs:dict[str, Callable], # Name of a job, and the job
    repeats:int, # Times each is run
)->dict[str, float]: # Median wall clock of each, seconds
    "Time several jobs in turn, round after round, so that a slow spell of the machine meets all of them."
    rounds = [{name: seconds(job) for name,job in jobs.items()} for _ in range(repeats)]
    return {name: median(times[name] for times in rounds) for name in jobs}


def peak_memory()->float: # MB, of 2**20 bytes
    "The most memory this process has held so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)


def machine()->str: # One line
    "Cores and versions."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    packages = [f"{name} {version(name)}" for name in ('metavol', 'numpy', 'pandas', 'pyarrow', 'bidask')]
    return f"{cores} cores, Python {platform.python_version()}, {', '.join(packages)}"
