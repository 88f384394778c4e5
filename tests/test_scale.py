"Many assets at once give what each gives alone, to the last bit, and windows share memory with the features."
import numpy as np
import pandas as pd
import pytest
from bidask import edge_rolling

from metavol.bars import PRICES, by_asset
from metavol.data import load_sample
from metavol.features import compute_features, spread_estimate
from metavol.files import read_bars
from metavol.processes import simulate_bars
from metavol.tasks import make_windows, window_scale


@pytest.fixture(scope="module")
def panel():
    "60,000 bars of assets of very different price and length, some with stretches without a trade."
    rng,frames = np.random.default_rng(0),{}
    for number,n_bars in enumerate([21, 20_000, 400, 9_995, 35, 29_000, 60, 500]):
        frame = simulate_bars(np.full(n_bars, .002*(number + 1)), 3, rng, price=10.**(number - 2), freq='h')
        if n_bars > 300: frame.iloc[100:150, :4] = frame.iloc[100, 3] # Nothing moves, no spread to see
        frames[f"asset {number}"] = frame
    return pd.concat(frames, names=["symbol", "time"])


def test_a_panel_gives_what_each_asset_gives_alone(panel):
    features = compute_features(panel)
    for symbol,one in by_asset(panel):
        pd.testing.assert_frame_equal(features.loc[symbol], compute_features(one), check_exact=True, check_freq=False)


def test_the_order_of_assets_does_not_matter(panel):
    symbols = list(panel.index.unique(level=0))[::-1]
    backward = pd.concat({symbol: panel.loc[symbol] for symbol in symbols}, names=["symbol", "time"])
    pd.testing.assert_frame_equal(compute_features(backward).sort_index(), compute_features(panel), check_exact=True)


@pytest.mark.parametrize("n_bars", [3, 21, 50])
def test_the_spread_of_a_panel_is_that_of_its_authors(panel, n_bars):
    together = spread_estimate(panel, n_bars)
    for symbol,one in by_asset(panel):
        alone = edge_rolling(one[PRICES], window=n_bars, sign=True).clip(lower=0.).ffill()
        np.testing.assert_array_equal(together[symbol], alone)
        np.testing.assert_array_equal(spread_estimate(one, n_bars), alone)


def test_real_stocks_do_not_depend_on_their_company(market_data):
    bars = read_bars(market_data/"us_equities_daily.parquet")
    features = compute_features(bars)
    for symbol in ("AAPL", "TSLA", "XOM"):
        alone = compute_features(bars.loc[symbol])
        pd.testing.assert_frame_equal(features.loc[symbol], alone, check_exact=True, check_freq=False)


def test_windows_of_one_asset_are_views_and_of_several_are_right():
    windows = make_windows(compute_features(load_sample("stocks")))
    rows = windows.history.features
    apple = windows[windows.symbol == "AAPL"]
    for view in (windows.history.views, apple.x, apple.returns, apple[::5].x): assert np.shares_memory(view, rows)
    some = windows[np.random.default_rng(0).permutation(len(windows))[:500]]
    np.testing.assert_array_equal(some.returns, some.x[..., 0])
    np.testing.assert_allclose(window_scale(some.returns), some.scale, rtol=1e-12)
