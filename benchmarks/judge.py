"""What a whole comparison takes: training, then seconds of each model on every `--every`-th day of all stocks.

Models fitted by asset are refitted every `--refit` days. Those that learn from other assets are trained on the first half of the dates
of all assets and asked on all dates, so their forecasts of the first half are no test; only time is measured here.
"""
import argparse
import tempfile
from time import perf_counter

import numpy as np
from measure import machine, peak_memory
from windows import bars_file, shortened

from metavol.features import compute_features
from metavol.files import read_bars
from metavol.league import LeagueSpec, enter_formulas, enter_networks
from metavol.tasks import Windows, asked_between, known_at, labelled, make_windows, thin
from metavol.walk_forward import Entrant, walk_forward


class Idle:
    "Answers at once, so that what is left is the engine."
    def adapt(self, support): return self
    def predict(self, query): return np.full(len(query), .02)


ENGINE = [
    Entrant('engine, before', Idle(), 'few_shot'),
    Entrant('engine, each task', Idle(), 'few_shot', 'each_task'),
    Entrant('engine, by asset', Idle(), 'full_history', 'by_asset'),
    Entrant('engine, pooled', Idle(), 'full_history', 'pooled')]


def options()->argparse.Namespace: # `every`, `refit`, `assets`, `bars`, `jobs`, `only`
    "Read the options."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--every', type=int, default=5, help='days between two origins of an asset (default 5)')
    parser.add_argument('--refit', type=int, default=252, help='days between two fits (default 252)')
    parser.add_argument('--assets', type=int, default=138, help='number of assets (default 138)')
    parser.add_argument('--bars', type=int, default=4576, help='bars of each asset (default 4576)')
    parser.add_argument('--jobs', type=int, default=2, help='processes (default 2)')
    parser.add_argument('--part', choices=('engine', 'classical', 'all'), default='all', help='whom to time (default all)')
    return parser.parse_args()


def seconds(
    entrant:Entrant, # Who is asked
    query:Windows, # All origins
    chosen:argparse.Namespace, # The options
)->tuple[float, int]: # Wall clock, and how many fits fell back
    "How long one entrant takes."
    start = perf_counter()
    forecasts = walk_forward([entrant], query, refit_every=max(1, chosen.refit//chosen.every), n_jobs=chosen.jobs, progress=False)
    return perf_counter() - start, forecasts.attrs['fallbacks'][entrant.name]


def timed(
    entrants:list[Entrant], # Whom to ask
    query:Windows, # All origins
    chosen:argparse.Namespace, # The options
)->float: # Seconds in sum, each printed
    "Ask one after the other."
    total = 0.
    for entrant in entrants:
        elapsed,failed = seconds(entrant, query, chosen)
        total += elapsed
        print(f"{entrant.name:24}{elapsed:9.2f}{failed:11,}", flush=True)
    return total


def main():
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        path,kind = bars_file(folder, chosen.assets, chosen.bars)
        bars = shortened(read_bars(path), chosen.assets, chosen.bars)
    start = perf_counter()
    windows = labelled(make_windows(compute_features(bars, extended=True)))
    half = known_at(windows, np.sort(windows.time)[len(windows)//2])
    query = thin(asked_between(windows, windows.time.min() + np.timedelta64(200, 'D')), chosen.every)
    prepared = perf_counter() - start
    print(f"data      {kind}: {path.name}, {len(bars):,} bars\nmachine   {machine()}\nasked     {query!r}")
    print(f"method    wall clock, {chosen.jobs} processes; fits every {chosen.refit} days\n")
    print(f"{'entrant':24}{'seconds':>9}{'fell back':>11}")
    seconds(ENGINE[2], query, chosen) # Starts the processes
    timed(ENGINE, query, chosen)
    total = prepared
    if chosen.part != 'engine':
        total += timed(enter_formulas(half), query, chosen)
        print(f"{'all classical':24}{total:9.2f}")
    if chosen.part == 'all':
        start = perf_counter()
        networks = enter_networks(half, LeagueSpec(('these',), ('those',), '2000-01-01', rivals='all', n_jobs=chosen.jobs), progress=False)
        training = perf_counter() - start
        print(f"{'training of networks':24}{training:9.2f}")
        total += training + timed(networks, query, chosen)
        print(f"{'everything':24}{total:9.2f}")
    print(f"\npeak memory {peak_memory():.0f} MB in the process that asks; features and windows took {prepared:.1f} s")


if __name__ == '__main__': main()
