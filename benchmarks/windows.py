"From a file of bars to all windows, and the same windows cut out of a DataFrame one at a time."
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure import machine, medians, options, peak_memory, simulated

from metavol.bars import by_asset
from metavol.features import compute_features
from metavol.files import read_bars, write_bars
from metavol.tasks import DAILY, Windows, labelled, make_windows

REPEATS = 5 # Rounds; medians are printed
SLICES = 500 # Windows cut one at a time in each round


def bars_file(
    folder:str, # Where to put simulated bars
    n_assets:int, # Assets to simulate
    n_bars:int, # Bars of each
)->tuple[Path, str]: # A Parquet file, and what is in it
    "The real file in the folder METAVOL_DATA; simulated bars where there is no such folder."
    if 'METAVOL_DATA' in os.environ: return Path(os.environ['METAVOL_DATA'])/'us_equities_daily.parquet', 'real'
    return write_bars(simulated(n_assets, n_bars), Path(folder)/'bars.parquet'), 'simulated'


def shortened(
    bars:pd.DataFrame, # By (symbol, time)
    n_assets:int, # Assets to keep, the first ones
    n_bars:int, # Bars of each to keep, the last ones
)->pd.DataFrame: # A part of them, or the same where nothing is left out
    "Fewer bars."
    sizes = bars.groupby(level=0, sort=False).size()
    if len(sizes) <= n_assets and sizes.max() <= n_bars: return bars
    return bars.loc[list(sizes.index[:n_assets])].groupby(level=0, sort=False).tail(n_bars)


def cut(
    frame:pd.DataFrame, # Features of one asset by time
    row:int, # Row of the origin
)->tuple[np.ndarray, float]: # (60, 11) window, and its label
    "One window and its label, the way a tutorial cuts them."
    label = np.sqrt((frame['log_return'].iloc[row + 1:row + 1 + DAILY.horizon]**2).sum())
    return frame.iloc[row - DAILY.lookback + 1:row + 1].to_numpy(), label


def some_origins(
    windows:Windows, # All windows
)->Windows: # `SLICES` of them, drawn at random, each with a label
    "Origins at which to compare."
    known = labelled(windows)
    return known[np.random.default_rng(0).choice(len(known), min(SLICES, len(known)), replace=False)]


def main():
    chosen = options(__doc__, n_assets=138, n_bars=4576)
    with tempfile.TemporaryDirectory() as folder:
        path,kind = bars_file(folder, chosen.assets, chosen.bars)
        bars = shortened(read_bars(path), chosen.assets, chosen.bars)
        features = compute_features(bars)
        windows = make_windows(features)
        memory = peak_memory() # Before the slow way joins in

        frames,sample = dict(by_asset(features)),some_origins(windows)
        rows = sample.origin - windows.history.start[windows.history.asset[sample.origin]]
        places = list(zip(sample.symbol, rows))
        for (symbol,row),x,y in zip(places, sample.x, sample.y): # Speed means nothing unless the numbers agree
            window,label = cut(frames[symbol], row)
            np.testing.assert_array_equal(window, x)
            np.testing.assert_allclose(label, y, rtol=1e-12)

        time = medians({'read': lambda: read_bars(path), 'features': lambda: compute_features(bars),
                        'windows': lambda: make_windows(features),
                        'search': lambda: [cut(features.loc[symbol], row) for symbol,row in places],
                        'slice': lambda: [cut(frames[symbol], row) for symbol,row in places]}, REPEATS)

    each = time['windows']/len(windows)
    first,last = bars.index.get_level_values('time').min(),bars.index.get_level_values('time').max()
    print(f"data      {kind}: {path.name}, {len(frames)} assets, {len(bars):,} bars, "
          f"{first:%Y-%m-%d} to {last:%Y-%m-%d}")
    print(f"machine   {machine()}")
    print(f"method    medians of {REPEATS} rounds, wall clock; slices: {len(places)} random origins a round\n")
    print(f"read the file                        {time['read']:8.3f} s")
    print(f"bars -> features                     {time['features']:8.3f} s")
    print(f"features -> {len(windows):>9,} windows        {time['windows']:8.3f} s")
    print(f"bars -> features -> windows          {time['features'] + time['windows']:8.3f} s")
    print(f"peak memory of the process           {memory:8.0f} MB\n")
    print(f"one window by make_windows           {1e6*each:8.2f} us")
    for job,name in {'search': 'one window by features.loc[symbol]', 'slice': '  asset looked up beforehand'}.items():
        slow = time[job]/len(places)
        print(f"{name:<37}{1e6*slow:8.2f} us, {slow/each:,.0f} times slower")


if __name__ == '__main__': main()
