"""What chapter 07 promises: every fault is named, nothing is touched, and the dirt of real files is counted exactly."""
import time
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import metavol.quality
from metavol.bars import PRICES, BarsError, HistoryError, MetavolError, as_panel, check_bars
from metavol.data import bars_from_table, load_sample
from metavol.features import compute_features
from metavol.files import read_table
from metavol.quality import (RULES, align_sources, compare_sources, find_faults, find_gaps, join_markets, plot_quality,
                             quality_report)
from metavol.tasks import HOURLY, cross_market_tasks, labelled, make_windows

matplotlib.use("agg")


def table(name, folder):
    "A file of the recorded data as it is, unchecked."
    return read_table(folder/f"{name}.parquet")


def counts(faults, rule): return faults[faults.rule == rule].groupby("symbol").bars.sum().to_dict()


def named(faults, rule): return [(symbol, f"{when:%Y-%m-%d %H:%M}") for symbol, when in faults.loc[faults.rule == rule, ["symbol", "time"]].values]


@pytest.fixture(scope="module")
def sample(): return load_sample("stocks")


@pytest.fixture(scope="module")
def coins(): return load_sample("crypto")


def walk(n=200, seed=0, freq="D", start="2020-01-01"):
    "Simulated bars of one asset."
    rng = np.random.default_rng(seed)
    close = 100*np.exp(.01*rng.standard_normal(n).cumsum())
    start_price = close*np.exp(.002*rng.standard_normal(n))
    return pd.DataFrame({"open": start_price, "high": np.maximum(close, start_price)*1.003, "low": np.minimum(close, start_price)*.997,
                         "close": close, "volume": rng.uniform(1, 9, n)}, pd.date_range(start, periods=n, freq=freq, tz="UTC", name="time"))


# Each rule, one planted fault at a time

def put(bars, row, column, value):
    bars = bars.copy()
    bars.iloc[row, bars.columns.get_loc(column)] = value
    return bars


PLANTED = {
    "missing_value": lambda b: put(b, 50, "open", np.inf),
    "price_not_positive": lambda b: put(b, 50, "low", 0.),
    "high_too_low": lambda b: put(b, 50, "high", 1.),
    "low_too_high": lambda b: put(b, 50, "low", b.close.iloc[50]*1.002),
    "negative_volume": lambda b: put(b, 50, "volume", -1.),
    "flat": lambda b: b.assign(**{p: b[p].where(np.arange(len(b)) != 50, b.close) for p in PRICES}),
    "repeated_time": lambda b: b.iloc[[*range(51), 50, *range(51, 200)]],
    "unsorted_time": lambda b: b.iloc[[*range(50), 51, 50, *range(52, 200)]],
    "stale": lambda b: b.assign(close=b.close.where((np.arange(200) < 50) | (np.arange(200) > 54), b.close.iloc[50]),
                                high=b.high + 50, low=b.low - 50),
    "outlier": lambda b: b.mul(np.where(np.arange(200) == 50, 1.5, 1.), axis=0),
    "gap": lambda b: b.drop(b.index[50:53]),
}


def test_every_rule_has_a_planted_fault(): assert set(PLANTED) == set(RULES) and all(text.endswith(".") for text in RULES.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_fault_is_found_once_and_alone(rule):
    clean = walk()
    assert not len(find_faults(clean, "24/7"))
    faults = find_faults(PLANTED[rule](clean), "24/7")
    assert faults.rule.tolist() == [rule]
    expected = {"stale": (clean.index[50], 5), "gap": (clean.index[49], 3)}.get(rule, (clean.index[50], 1))
    assert (faults.time[0], faults.bars[0]) == expected
    assert faults.symbol[0] == "asset" and faults.detail[0]
    assert list(faults.columns) == ["symbol", "time", "rule", "bars", "detail"]


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"flat", "stale", "outlier", "gap"}))
def test_what_check_bars_refuses_is_found(rule):
    bad = PLANTED[rule](walk())
    with pytest.raises(BarsError): check_bars(bad)
    assert rule in set(find_faults(bad).rule)


def test_nothing_is_changed_and_order_of_assets_is_kept():
    bars = pd.concat({"Z": PLANTED["unsorted_time"](walk()), "A": PLANTED["repeated_time"](walk(seed=1))}, names=["symbol", "time"])
    before = bars.copy()
    faults = find_faults(bars)
    pd.testing.assert_frame_equal(bars, before)
    assert faults.symbol.tolist() == ["Z", "A"] and quality_report(bars).index.tolist() == ["Z", "A"]


def test_text_naive_times_and_missing_times_are_looked_at():
    raw = pd.DataFrame({"Symbol": ["A", "B", "A", None], "Date": [pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-02"), pd.NaT, pd.Timestamp("2024-01-02")],
                        "Open": ["1", "x", "1", "1"], "High": 2, "Low": [1, 1, 1, 1], "Close": [1., 1, 1, 1]})
    faults = find_faults(raw)
    assert faults[["symbol", "rule", "detail"]].values.tolist() == [["A", "missing_value", "time is missing"], ["B", "missing_value", "open is missing"]]
    report = quality_report(raw)
    assert report.bars.to_dict() == {"A": 2, "B": 1, "no symbol": 1} and report.negative_volume.isna().all()
    plt.close(plot_quality(raw).figure)


def dirty(times): return pd.DataFrame({"date": times, "open": 1., "high": 2., "low": 1., "close": [1.1 + row % 2/10 for row in range(len(times))]})


def test_a_time_that_is_no_date_is_a_finding_and_hides_no_other():
    raw = dirty(["2024-01-02", "02.01.2024", "", None, "2024-01-05", "2024-01-04", "soon"])
    raw.loc[4, "low"] = 5.
    faults = find_faults(raw, "XNYS")
    assert faults.loc[faults.rule == "missing_value", "detail"].tolist() == [
        "time '02.01.2024' is no date", "time is missing", "time is missing", "time 'soon' is no date"]
    assert faults.time.isna().tolist() == [True]*4 + [False]*(len(faults) - 4)
    assert set(faults.rule) == {"missing_value", "low_too_high", "high_too_low", "unsorted_time", "gap"}
    assert quality_report(raw).missing_value.tolist() == [4]
    plt.close(plot_quality(raw).figure)


def test_a_bad_time_does_not_move_the_days_of_new_york():
    midnights = ["2024-01-02 00:00:00-05:00", "2024-01-03 00:00:00-05:00"]
    for times in ([*midnights, "never"], [*pd.to_datetime(midnights), pd.NaT]):
        assert metavol.quality.raw_bars(dirty(times)).index[0][1] == pd.Timestamp("2024-01-02", tz="UTC")


def test_numbers_and_columns_without_a_date_are_no_times():
    for times, words in (([1704153600000, 1704240000000], "plain numbers"), ([np.nan, 1704240000000.], "plain numbers"),
                         (["02.01.2024", "03.01.2024"], "the first holds '02.01.2024'"), ([np.nan, np.nan], "no row has a time")):
        with pytest.raises(BarsError, match=words): find_faults(dirty(times))


@pytest.mark.parametrize("change, words", [
    (lambda b: [1], "needed a pandas DataFrame"), (lambda b: b[:0], "empty"), (lambda b: b.drop(columns="low"), "no column low"),
    (lambda b: b.reset_index(drop=True), "no time"), (lambda b: pd.concat([b, b], axis=1), "one name twice"),
    (lambda b: b.set_axis(pd.DatetimeIndex([pd.NaT]*len(b))), "no row has a time")])
@pytest.mark.parametrize("function", [find_faults, quality_report, plot_quality, find_gaps])
def test_what_is_no_table_of_bars_is_refused(function, change, words):
    with pytest.raises(MetavolError, match=words): function(change(walk()))


def test_limits_are_checked():
    for options in ({"stale_bars": 1}, {"stale_bars": 2.5}, {"outlier_size": -1}, {"outlier_size": "8"}, {"calendar": 5}, {"calendar": "NEWYORK"}):
        with pytest.raises(MetavolError): find_faults(walk(), **options)
    assert len(find_faults(PLANTED["stale"](walk()), stale_bars=6)) == 0
    assert len(find_faults(PLANTED["outlier"](walk()), outlier_size=100)) == 0


# Outliers

def test_a_crash_that_stays_is_no_outlier_and_units_do_not_matter():
    bars = walk()
    crash = bars.mul(np.where(np.arange(200) >= 100, .6, 1.), axis=0)
    assert "outlier" not in set(find_faults(crash).rule)
    tick = PLANTED["outlier"](bars)
    assert find_faults(tick).equals(find_faults(tick.mul(dict(open=7, high=7, low=7, close=7, volume=1))))


def test_the_outlier_rule_sees_the_next_bar():
    bars = PLANTED["outlier"](walk())
    assert "outlier" not in set(find_faults(bars.iloc[:51]).rule) and "outlier" in set(find_faults(bars.iloc[:52]).rule)


def test_a_mostly_still_price_does_not_make_every_move_an_outlier():
    close = pd.Series(100., walk().index)
    close.iloc[::4] = 100.5
    bars = pd.DataFrame({"open": 100.25, "high": 101., "low": 99., "close": close, "volume": 1.})
    assert not len(find_faults(bars))


# Calendars

def test_new_york_knows_its_closings_and_half_a_century(sample):
    assert find_gaps(sample).empty and (quality_report(sample).gap == 0).all() and (quality_report(sample).present == 1).all()
    ibm = sample.loc[["IBM"]].drop(pd.Timestamp("2001-09-10", tz="UTC"), level=1)
    gap = find_gaps(ibm).iloc[0]
    assert (str(gap.after.date()), str(gap.before.date()), gap.bars) == ("2001-09-07", "2001-09-17", 1)
    assert find_gaps(ibm, "weekdays").query("bars == 5").after.dt.strftime("%Y-%m-%d").tolist() == ["2001-09-07"]


def test_new_york_from_1990_agrees_with_the_index(market_data):
    spx = table("vix_daily", market_data).dropna(subset=["spx_close"])
    spx = spx[["date", "spx_open", "spx_high", "spx_low", "spx_close"]].rename(columns=lambda name: name.replace("spx_", ""))
    assert quality_report(spx, "XNYS")[["gap", "present"]].values.tolist() == [[0, 1.]]


def test_before_1970_nothing_is_judged():
    old = walk(30, start="1962-01-01")
    assert find_gaps(old, "XNYS").empty and quality_report(old, "XNYS").present.isna().all()


def test_tokyo_has_no_calendar_before_1997_and_still_works():
    bars = walk(400, start="2019-01-01")
    assert find_gaps(bars, "XTKS").empty
    assert find_gaps(bars.drop(bars.index[bars.index.get_indexer([pd.Timestamp("2019-06-05", tz="UTC")])]), "XTKS").bars.tolist() == [1]


def test_intraday_bars_of_an_exchange_count_sessions():
    hours = walk(24*12, freq="h", start="2024-06-03")
    hours = hours[(hours.index.hour >= 14) & (hours.index.hour < 20) & (hours.index.day_of_week < 5)]
    short = hours[(hours.index.normalize() != pd.Timestamp("2024-06-05", tz="UTC")) & (hours.index != hours.index[2])]
    gaps = find_gaps(short, "XNYS")
    assert gaps.bars.tolist() == [1] and str(gaps.after[0]) == "2024-06-04 19:00:00+00:00"
    sydney = walk(24*5, freq="h", start="2024-06-03")
    assert find_gaps(sydney[sydney.index.hour < 6], "XASX").empty


def test_grid_weekdays_and_long_bars():
    quarter = walk(400, freq="15min")
    assert find_gaps(quarter.drop(quarter.index[[5, 6, 20]]), "24/7").bars.tolist() == [2, 1]
    friday = walk(20, start="2024-01-05")
    assert find_gaps(friday[friday.index.day_of_week < 5], "weekdays").empty and len(find_gaps(friday[friday.index.day_of_week < 5], "24/7")) == 3
    weeks, months = walk(60, freq="7D"), walk(60, freq="MS")
    assert find_gaps(weeks.drop(weeks.index[9]), "24/7").bars.tolist() == [1]
    for bars, calendar in ((weeks, "XNYS"), (weeks, "weekdays"), (months, "24/7"), (months, "XNYS")):
        assert quality_report(bars, calendar)[["gap", "present"]].isna().all(axis=None)


def test_market_of_each_symbol_decides(sample, coins):
    bars = pd.concat({"IBM": sample.loc["IBM"].iloc[:100], "COIN": walk(100), "ELSE": walk(100)}, names=["symbol", "time"]).drop(walk(100).index[7], level=1)
    bars.attrs = {"market": {"IBM": "us_equity", "COIN": "crypto", "ELSE": "moon"}}
    report = quality_report(bars)
    assert report.gap.to_dict()["COIN"] == 1 and report.gap["IBM"] == 0 and np.isnan(report.gap["ELSE"])
    assert quality_report(bars, "24/7").gap.notna().all()


def test_a_market_may_stand_for_its_calendar(sample, coins):
    for market, bars in (("us_equity", sample), ("crypto", coins), ("fx", sample)):
        bars, calendar = bars.copy(), metavol.quality.MARKET_CALENDARS[market]
        bars.attrs = {}
        assert quality_report(bars, market).gap.notna().all() and find_gaps(bars, market).equals(find_gaps(bars, calendar))
    with pytest.raises(MetavolError, match="us_equity, crypto, fx"): find_gaps(sample, "bonds")


def test_no_warning_comes_through(sample):
    metavol.quality.exchange_sessions.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_faults(sample); quality_report(sample)


# The embedded sample

def test_coins_of_the_sample_lack_132_hours(coins):
    report = quality_report(coins)
    assert report.gap.to_dict() == {"BTC": 15, "EOS": 31, "ETH": 21, "LTC": 33, "XRP": 32}
    assert report.outlier.to_dict() == {"BTC": 0, "EOS": 2, "ETH": 0, "LTC": 1, "XRP": 0}
    assert report[[rule for rule in RULES if rule not in ("gap", "stale", "outlier")]].to_numpy().sum() == 0


# Real files

def test_the_dirt_of_the_currency_file_is_counted_exactly(market_data):
    raw = table("fx_commodity_daily", market_data)
    faults = find_faults(raw, "weekdays")
    high, low = counts(faults, "high_too_low"), counts(faults, "low_too_high")
    assert high == {"EURUSD": 49, "USDJPY": 134, "GOLD": 236, "WTI": 3} and low == {"EURUSD": 69, "USDJPY": 124, "GOLD": 227, "WTI": 4}
    either = faults[faults.rule.isin(["high_too_low", "low_too_high"])].drop_duplicates(["symbol", "time"])
    assert either.groupby("symbol").size().to_dict() == {"EURUSD": 118, "USDJPY": 258, "GOLD": 441, "WTI": 7}
    assert either[either.symbol == "GOLD"].time.max().year < 2012
    assert set(either[either.symbol == "WTI"].time.dt.year) == {2001, 2002}
    assert counts(faults, "flat") == {"EURUSD": 13, "USDJPY": 11, "GOLD": 1034}
    assert named(faults, "price_not_positive") == [("WTI", "2020-04-20 00:00"), ("WTI", "2020-04-21 00:00")]
    assert not set(faults.rule) & {"missing_value", "repeated_time", "unsorted_time", "negative_volume", "stale"}
    assert quality_report(raw).negative_volume.isna().all() and quality_report(raw).gap.isna().all()


def test_outliers_of_the_currency_file_are_the_misfiled_days_of_august_2008(market_data):
    raw = table("fx_commodity_daily", market_data)
    faults = find_faults(raw, "weekdays")
    assert len(raw) == 25535 and (raw.date.min().year, raw.date.max().year) == (1996, 2025)
    assert set(named(faults, "outlier")) == {("EURUSD", "2008-01-08 00:00"), ("EURUSD", "2008-02-08 00:00"),
                                             ("EURUSD", "2008-12-08 00:00"), ("USDJPY", "2008-12-08 00:00")}
    strict = find_faults(raw, outlier_size=10)
    assert set(named(strict, "outlier")) == {("EURUSD", "2008-12-08 00:00"), ("USDJPY", "2008-12-08 00:00")}
    gaps = find_gaps(raw, "weekdays")
    for symbol in ("EURUSD", "USDJPY"):
        august = gaps[(gaps.symbol == symbol) & (gaps.before.dt.strftime("%Y-%m") == "2008-08")]
        assert august.bars.tolist() == [5, 11]
    euro = raw[raw.symbol == "EURUSD"].set_index("date").close
    eighths = euro[[f"2008-{month:02d}-08" for month in (1, 2, 4, 5, 7, 9, 10, 12)]]
    assert eighths.iloc[0] > 1.55 and eighths.iloc[-1] < 1.5 and (eighths.diff().dropna() < .002).all()


def test_american_equities_are_nearly_clean_and_fast(market_data):
    bars = table("us_equities_daily", market_data)
    find_gaps(bars[:1000], "XNYS")
    started = time.perf_counter()
    faults = find_faults(bars, "XNYS")
    assert time.perf_counter() - started < 6
    assert counts(faults, "flat") == {"AMD": 1, "BIIB": 3, "BKR": 1, "CB": 1, "CHTR": 45, "REGN": 1, "SPGI": 1, "WBD": 1}
    assert set(faults.rule) == {"flat", "stale"}
    assert named(faults, "stale") == [("CHTR", "2010-02-18 00:00")] and counts(faults, "stale") == {"CHTR": 5}
    report = quality_report(bars, "XNYS", faults)
    assert len(report) == 138 and report.bars.sum() == 622296 and (report.present == 1).all()


def test_binance_lacks_eleven_hours_in_2021_for_every_coin(market_data):
    raw = table("crypto_hourly", market_data)
    gaps = find_gaps(raw, "24/7")
    assert gaps.symbol.nunique() == 11 and set(gaps.after.dt.year) == {2021}
    assert gaps.groupby("symbol").bars.sum().unique().tolist() == [11] and gaps.after.nunique() == 4
    faults = find_faults(raw, "24/7")
    assert named(faults, "outlier") == [("BTCUSDT", "2022-11-04 14:00"), ("LTCUSDT", "2021-09-13 13:00")]
    assert named(faults, "stale") == [("XLMUSDT", "2022-11-19 05:00")] and set(faults.rule) == {"gap", "outlier", "stale"}
    assert not len(find_faults(table("crypto_hourly_bybit_linear", market_data), "24/7"))


def test_metatrader_file_is_clean_but_for_holidays(market_data):
    faults = find_faults(table("fx_gold_mt5_daily", market_data), "weekdays")
    assert set(faults.rule) == {"gap"} and counts(faults, "gap") == {"EURUSD": 14, "USDJPY": 14, "AUDUSD": 14, "USDCAD": 14, "XAUUSD": 26}


# The picture

@pytest.mark.parametrize("n", [1, 5, 150])
def test_the_picture_has_a_row_for_every_asset(n):
    bars = pd.concat({f"S{i:03d}": PLANTED["gap"](walk(seed=i)) for i in range(n)}, names=["symbol", "time"])
    for calendar, label in (("24/7", "bars"), (None, "bars, gaps not judged")):
        axes = plot_quality(bars, calendar)
        assert len(axes.get_yticks()) == n and (f"{3*n} missing" in axes.get_title()) == (calendar is not None)
        assert label in axes.get_legend_handles_labels()[1]
        assert ("not judged: give calendar='24/7'" in axes.get_title()) == (calendar is None)
        labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]
        assert (f"gap ({3*n})" in labels) == (calendar is not None)
        axes.figure.canvas.draw()
        plt.close(axes.figure)


def test_the_title_counts_assets_without_a_calendar():
    bars = pd.concat({"A": PLANTED["gap"](walk()), "B": walk()}, names=["symbol", "time"])
    bars.attrs = {"market": {"A": "crypto", "B": "moon"}}
    axes = plot_quality(bars)
    assert axes.get_title() == "397 bars of 2 assets: 3 missing\ngaps of 1 asset not judged: give calendar='24/7', 'weekdays' or 'XNYS'"
    plt.close(axes.figure)


def test_the_title_is_the_callers():
    axes = plot_quality(walk(), title="mine")
    assert axes.get_title() == "mine"
    plt.close(axes.figure)


# Two sources

def yahoo(name, symbol, folder):
    raw = table(name, folder)
    return raw[raw.symbol == symbol]


def test_yahoo_and_wiki_agree_on_american_shares(market_data, sample):
    raw = table("us_equities_daily", market_data)
    bars = bars_from_table(raw[raw.symbol.isin(["AAPL", "MSFT", "IBM"])].drop(columns="symbol").assign(symbol=raw.symbol))
    bars.attrs = {"market": "us_equity"}
    for symbol in ("AAPL", "MSFT", "IBM"):
        report = compare_sources({"WIKI": sample.loc[[symbol]], "Yahoo": bars.loc[[symbol]]})
        other = report.loc["Yahoo"]
        assert (report.common_bars == 2054).all() and (report.missing_bars == 0).all() and (report.present == 1).all()
        assert other.return_correlation > .999 and abs(other.volatility_ratio - 1) < .01
    both = align_sources({"WIKI": sample.loc[["IBM"]], "Yahoo": bars.loc[["IBM"]]})
    assert both.columns.names == ["source", "column"] and len(both) == 2054


@pytest.mark.parametrize("symbol, same, shifted", [("EURUSD", .02, .95), ("USDJPY", .07, .92)])
def test_yahoo_dates_currencies_one_bar_later_than_metatrader(market_data, symbol, same, shifted):
    first, second = yahoo("fx_gold_mt5_daily", symbol, market_data), yahoo("fx_commodity_daily", symbol, market_data)
    with pytest.raises(BarsError): check_bars(second.set_index("date").tz_localize("UTC").assign(volume=1.))
    direct = compare_sources({"MetaTrader": first, "Yahoo": second}).loc["Yahoo"]
    assert direct.return_correlation == pytest.approx(same, abs=.005) and .9 < direct.volatility_ratio < 1.1
    moved = first.assign(date=first.date.shift(-1)).iloc[:-1]
    assert compare_sources({"MetaTrader": moved, "Yahoo": second}).loc["Yahoo"].return_correlation == pytest.approx(shifted, abs=.005)


def test_gold_from_two_venues_is_nearly_the_same(market_data):
    report = compare_sources({"MetaTrader": yahoo("fx_gold_mt5_daily", "XAUUSD", market_data), "Yahoo": yahoo("fx_commodity_daily", "GOLD", market_data)})
    assert .88 < report.return_correlation["Yahoo"] < .91 and report.common_bars.tolist() == [2085, 2085]


def test_binance_and_bybit_never_meet_and_are_still_compared(market_data):
    binance, bybit = yahoo("crypto_hourly", "BTCUSDT", market_data), yahoo("crypto_hourly_bybit_linear", "BTCUSDT", market_data)
    for bars in (binance, bybit): bars.attrs = {"market": "crypto"}
    with pytest.raises(HistoryError, match=r"Binance 2021-04-04 20:00 to 2022-12-30 20:00; Bybit 2024-01-01 00:00 to 2025-02-08 12:00"):
        align_sources({"Binance": binance, "Bybit": bybit})
    report = compare_sources({"Binance": binance, "Bybit": bybit})
    assert report.loc["Bybit", ["missing_bars", "return_correlation", "volatility_ratio", "largest_difference", "largest_difference_time"]].isna().all()
    assert report.present["Bybit"] == 1 and report.present["Binance"] == pytest.approx(1 - 11/15241)
    assert .3 < report.volatility_annualized["Bybit"] < report.volatility_annualized["Binance"] < .8
    profile = {name: np.log(bars.set_index("timestamp").close).diff().groupby(lambda t: t.hour).std() for name, bars in (("a", binance), ("b", bybit))}
    assert pd.DataFrame(profile).shape == (24, 2) and pd.DataFrame(profile).corr().iloc[0, 1] > .5


def test_dots_stand_only_for_assets_that_are_not_named():
    for n, words in ((2, r"2 assets \(A, B\), needed"), (3, r"3 assets \(A, B, C\), needed"), (4, r"4 assets \(A, B, C, ...\), needed")):
        many = pd.concat({symbol: walk(9) for symbol in "ABCD"[:n]}, names=["symbol", "time"])
        with pytest.raises(BarsError, match=words): align_sources({"one": walk(9), "many": many})


def test_sources_are_checked():
    bars = walk()
    two = pd.concat({"A": bars, "B": bars}, names=["symbol", "time"])
    for sources, words in (([bars, bars], "needed a dict"), ({"one": bars}, "needed two or more"), ({"a": bars, "b": two}, "b: holds 2 assets"),
                           ({"a": bars, "b": bars.iloc[::-1]}, "sort_index"), ({"a": bars, "b": bars.iloc[[0, 0]]}, "stands twice"),
                           ({"a": bars, "b": bars.assign(close=-1.)}, "zero or negative"), ({"a": bars, "b": bars[:0]}, "empty")):
        for function in (align_sources, compare_sources):
            with pytest.raises(MetavolError, match=words): function(sources)


def test_three_sources_and_panels_of_one():
    bars = walk()
    report = compare_sources({"a": as_panel(bars), "b": bars.iloc[10:], "c": bars.drop(bars.index[20:25])})
    assert report.common_bars.tolist() == [200, 190, 195] and report.missing_bars.tolist() == [0, 0, 5]
    assert report.return_correlation.round(9).tolist() == [1, 1, 1]
    assert len(align_sources({"a": bars, "b": bars.iloc[10:], "c": bars.drop(bars.index[20:25])})) == 185
    lonely = compare_sources({"a": bars.iloc[:5], "b": bars.iloc[4:]})
    assert lonely.common_bars.tolist() == [1, 1] and np.isnan(lonely.return_correlation["b"]) and lonely.largest_difference["b"] == 0


# Several markets

def test_shared_symbols_carry_their_market(coins):
    joined = join_markets({"bitfinex": coins.loc[["BTC", "ETH"]], "elsewhere": coins.loc[["BTC"]], "mine": coins.loc["XRP"].iloc[:50]})
    assert joined.attrs["market"] == {"BTC@bitfinex": "bitfinex", "ETH": "bitfinex", "BTC@elsewhere": "elsewhere", "mine": "mine"}
    assert check_bars(joined).attrs["market"] == joined.attrs["market"]
    assert join_markets({"bitfinex": coins.assign(spread=.1), "mine": coins}).columns.tolist() == coins.columns.tolist()


def test_bars_that_do_not_fit_are_not_joined(sample, coins):
    with pytest.raises(BarsError, match="a 1 day, b 1 hour"): join_markets({"a": sample, "b": coins})
    with pytest.raises(BarsError, match="market b"): join_markets({"a": sample, "b": put(sample, 3, "close", np.nan)})
    for nothing in ({}, [sample]):
        with pytest.raises(MetavolError): join_markets(nothing)


def test_cross_market_tasks_work_from_join_markets_alone(coins):
    late = coins[coins.index.get_level_values("time") >= "2019-08-01"]
    joined = join_markets({"bitfinex": late.loc[["BTC", "ETH"]], "elsewhere": late.loc[["BTC", "LTC"]]})
    windows = labelled(make_windows(compute_features(joined), HOURLY))
    assert set(zip(windows.symbol, windows.market)) == {("BTC@bitfinex", "bitfinex"), ("ETH", "bitfinex"), ("BTC@elsewhere", "elsewhere"), ("LTC", "elsewhere")}
    tasks = cross_market_tasks(windows, np.random.default_rng(0))
    assert len(tasks) > 50
    for task in (tasks[0], tasks[len(tasks)//2], tasks[-1]):
        assert len(set(task.support.market)) == len(set(task.query.market)) == 1
        assert set(task.support.market) != set(task.query.market)
        assert task.support.label_time.max() < task.query.time.min()


def test_cross_market_tasks_join_two_real_markets(market_data):
    equities = table("us_equities_daily", market_data)
    equities = bars_from_table(equities[equities.symbol.isin(["AAPL", "IBM"]) & (equities.date >= "2018")])
    metals = table("fx_gold_mt5_daily", market_data).rename(columns={"tick_volume": "volume"})
    joined = join_markets({"us_equity": equities, "fx": bars_from_table(metals[metals.date >= "2018"])})
    tasks = cross_market_tasks(labelled(make_windows(compute_features(joined))), np.random.default_rng(0))
    pairs = {(task.support.market[0], task.query.market[0]) for task in (tasks[i] for i in range(len(tasks)))}
    assert pairs == {("us_equity", "fx"), ("fx", "us_equity")}


def test_a_market_missing_from_the_dict_is_named(coins):
    features = compute_features(coins.loc[["BTC", "ETH"]].groupby(level=0).head(200))
    features.attrs["market"] = {"BTC": "bitfinex"}
    with pytest.raises(MetavolError, match="no market of ETH"): make_windows(features, HOURLY)


def test_each_asset_is_judged_by_its_own_bars():
    hours, days = load_sample("crypto").loc[["BTC"]], load_sample("crypto").loc["ETH"].resample("1D").agg(dict(open="first", high="max", low="min", close="last", volume="sum"))
    both = pd.concat([hours, pd.concat({"ETH": days}, names=["symbol"])])
    assert find_gaps(both, "24/7").groupby("symbol")["bars"].sum().to_dict() == {"BTC": find_gaps(hours, "24/7")["bars"].sum()}
