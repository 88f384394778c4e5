"What the engine takes: seconds of each entrant on every `--every`-th day of all stocks, refitted every `--refit` days."
import argparse
import tempfile
from time import perf_counter

import numpy as np
from measure import machine, peak_memory
from windows import bars_file, shortened

from metavol.classical import Ewma, Garch, Historical
from metavol.features import compute_features
from metavol.files import read_bars
from metavol.har import Har
from metavol.tasks import Windows, labelled, make_windows, thin
from metavol.walk_forward import Entrant, walk_forward


class Idle:
    "Answers at once, so that what is left is the engine."
    def adapt(self, support): return self
    def predict(self, query): return np.full(len(query), .02)


ENTRANTS = [ # Who is timed: one line each
    Entrant('engine, before', Idle(), 'few_shot'),
    Entrant('engine, each task', Idle(), 'few_shot', 'each_task'),
    Entrant('engine, by asset', Idle(), 'full_history', 'by_asset'),
    Entrant('engine, pooled', Idle(), 'full_history', 'pooled'),
    Entrant('Historical', Historical(), 'few_shot'),
    Entrant('EWMA', Ewma(), 'few_shot'),
    Entrant('Mean label', Har(()), 'few_shot', 'each_task'),
    Entrant('HAR', Har(), 'full_history', 'by_asset'),
    Entrant('HAR, pooled', Har(), 'full_history', 'pooled'),
    Entrant('GARCH', Garch(), 'full_history', 'by_asset'),
    Entrant('GJR-t', Garch(asymmetric=True, distribution='t'), 'full_history', 'by_asset'),
    Entrant('GARCH, few-shot', Garch(), 'few_shot', 'each_task'),
]


def options()->argparse.Namespace: # `every`, `refit`, `assets`, `bars`, `jobs`, `only`
    "Read the options."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--every', type=int, default=5, help='days between two origins of an asset (default 5)')
    parser.add_argument('--refit', type=int, default=63, help='days between two fits (default 63)')
    parser.add_argument('--assets', type=int, default=138, help='number of assets (default 138)')
    parser.add_argument('--bars', type=int, default=4576, help='bars of each asset (default 4576)')
    parser.add_argument('--jobs', type=int, default=2, help='processes (default 2)')
    parser.add_argument('--only', nargs='*', help='names of entrants (default all)')
    return parser.parse_args()


def seconds(
    entrant:Entrant, # Who is asked
    query:Windows, # All origins
    chosen:argparse.Namespace, # The options
)->tuple[float, int]: # Wall clock, and how many fits fell back
    "How long one entrant takes."
    start = perf_counter()
    forecasts = walk_forward([entrant], query, max(1, chosen.refit//chosen.every), n_jobs=chosen.jobs, progress=False)
    return perf_counter() - start, forecasts.attrs['fallbacks'][entrant.name]


def main():
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        path,kind = bars_file(folder, chosen.assets, chosen.bars)
        bars = shortened(read_bars(path), chosen.assets, chosen.bars)
    start = perf_counter()
    query = thin(labelled(make_windows(compute_features(bars, extended=True))), chosen.every)
    print(f"data      {kind}: {path.name}, {len(bars):,} bars")
    print(f"machine   {machine()}")
    print(f"asked     {query!r}")
    print(f"method    wall clock, {chosen.jobs} processes; fits every {chosen.refit} days; features and windows "
          f"took {perf_counter() - start:.1f} s\n")
    print(f"{'entrant':24}{'seconds':>9}{'fell back':>11}")
    seconds(ENTRANTS[2], query, chosen) # Starts the processes
    total = 0.
    for entrant in ENTRANTS:
        if chosen.only and entrant.name not in chosen.only: continue
        elapsed,failed = seconds(entrant, query, chosen)
        total += elapsed
        print(f"{entrant.name:24}{elapsed:9.2f}{failed:11,}", flush=True)
    print(f"{'total':24}{total:9.2f}\n\npeak memory {peak_memory():.0f} MB in the process that asks")


if __name__ == '__main__': main()
