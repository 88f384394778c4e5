"How time and memory grow with the number of assets: an eighth, a quarter, a half and all of them."
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

import numpy as np
import pandas as pd
from measure import machine, options, peak_memory, simulated

from metavol.features import compute_features
from metavol.tasks import make_windows

REPEATS = 3 # Rounds; medians are printed


def once(
    bars:pd.DataFrame, # By (symbol, time)
)->tuple[float, float]: # Seconds to features, seconds from there to windows
    "From bars to windows, which are dropped."
    start = perf_counter()
    features = compute_features(bars)
    middle = perf_counter()
    windows = make_windows(features) # Held until the clock has stopped, so that freeing it is not counted
    return middle - start, perf_counter() - middle


def growth(
    n_assets:int, # Number of simulated assets
    n_bars:int, # Bars of each
)->tuple[float, float, float]: # Seconds to features, seconds from there to windows, peak memory in MB
    "Measure one size."
    bars = simulated(n_assets, n_bars)
    features,windows = np.median([once(bars) for _ in range(REPEATS)], axis=0)
    return features, windows, peak_memory()


def main():
    chosen = options(__doc__, n_assets=500, n_bars=5000)
    sizes = [max(1, chosen.assets//part) for part in (8, 4, 2, 1)]
    print(f"data      simulated bars, {chosen.bars:,} of each asset")
    print(f"machine   {machine()}")
    print(f"method    medians of {REPEATS} rounds, wall clock; each size in a process of its own\n")
    print("assets       bars  features s  windows s  us per bar  peak MB")
    each = []
    for n_assets in sizes:
        with ProcessPoolExecutor(1, get_context('spawn')) as pool: # Peak memory is that of a process, not of a call
            features,windows,memory = pool.submit(growth, n_assets, chosen.bars).result()
        n_bars = n_assets*chosen.bars
        each.append((features + windows)/n_bars)
        print(f"{n_assets:6,} {n_bars:10,} {features:11.2f} {windows:10.2f} {1e6*each[-1]:11.2f} {memory:8.0f}")
    print(f"\ntime per bar, {sizes[-1]} assets over {sizes[0]}: {each[-1]/each[0]:.2f} (1 is linear)")


if __name__ == '__main__': main()
