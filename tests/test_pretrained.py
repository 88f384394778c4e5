"The starting points that ship: what they were trained on, what they forecast, and how they say no."
import json
import warnings
from dataclasses import replace
from importlib.resources import files
from time import process_time

import numpy as np
import pandas as pd
import pytest

from metavol.bars import BarsError, HistoryError, MetavolError
from metavol.data import MissingSymbolsWarning, load_sample
from metavol.features import compute_features
from metavol.files import data_hash, read_bars
from metavol.pretrained import PRETRAINED, bars_for, bars_per_year, conformal_factors, forecast, forecast_windows, load_pretrained, model_card, with_interval
from metavol.tasks import DAILY, HOURLY, labelled, make_windows, thin

SPLITS = {"daily": ("2018-01-01", "us_equities_daily.parquet"), "hourly": ("2022-07-01", "crypto_hourly.parquet")}


@pytest.fixture(scope="module")
def daily(): return load_sample("stocks")


@pytest.fixture(scope="module")
def hourly():
    bars = load_sample("crypto")
    return bars[bars.index.get_level_values(1) >= "2019-06-01"]


def alone(bars, symbol):
    "Bars of one asset by `time`, which know their name."
    one = bars.loc[symbol]
    one.attrs = {"symbol": symbol}
    return one


def noisy_forecast(bars):
    "The forecast, and what it warned of."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = forecast(bars)
    return table, [str(warning.message) for warning in said if warning.category is MissingSymbolsWarning]


@pytest.mark.parametrize("name", PRETRAINED)
def test_nothing_later_than_promised_and_the_card_agrees_with_its_file(name):
    model, (split, _) = load_pretrained(name), SPLITS[name]
    card = model.about["card"]
    assert model.about["last"] < split and model.about["interval"]["last"] < split
    assert model.spec == {"daily": DAILY, "hourly": HOURLY}[name]
    unseen = card["scores"][0]
    assert not set(unseen["symbols"]) & set(model.about["symbols"]) and unseen["first"] >= split
    assert .8 < unseen["coverage"]["inside"] < .97 and unseen["models"]["Meta-Vol"]["mse_relative"] < .95
    folder = files("metavol")/"pretrained"
    assert (folder/f"{name}.md").read_text() == model_card(name) and (folder/f"{name}.safetensors").stat().st_size < 1_000_000
    for word in (card["data_hash"], card["command"], card["date"], *model.about["symbols"], *map(str, model.about["seed"])): assert word in model_card(name)
    json.dumps(model.about)


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_hash_in_the_card_is_that_of_the_bars(name, market_data):
    model, (split, file) = load_pretrained(name), SPLITS[name]
    bars = read_bars(market_data/file)
    index = bars.index
    symbols = list(index.unique(0))[::2]
    assert model.about["symbols"] == symbols
    assert data_hash(bars[index.get_level_values(0).isin(symbols) & (index.get_level_values(1) < split)]) == model.about["card"]["data_hash"]


@pytest.mark.parametrize("kind", ["daily", "hourly"])
def test_trimmed_bars_give_what_all_bars_give(kind, request):
    bars = request.getfixturevalue(kind)
    model, windows = load_pretrained(kind), make_windows(compute_features(bars), load_pretrained(kind).spec)
    newest = windows[np.diff(windows.history.asset[windows.origin], append=-1) != 0]
    answer, whole = forecast(bars), forecast_windows(model, newest)
    np.testing.assert_allclose(answer[["volatility", "low", "high"]], whole[["volatility", "low", "high"]], rtol=1e-10)
    np.testing.assert_allclose(answer.volatility, model.answer(newest), rtol=1e-10)
    assert (answer.time.dt.tz_localize(None).to_numpy() == newest.time).all()


def test_company_is_heard_and_the_future_is_not(daily):
    together, one = forecast(daily), forecast(alone(daily, "FB"))
    assert one.n_support.item() < together.n_support["FB"] and one.volatility.item() != together.volatility["FB"]
    early = daily[daily.index.get_level_values(1) <= "2013-01-02"]
    windows = make_windows(compute_features(daily))
    asked = windows[windows.time == np.datetime64("2013-01-02")]
    np.testing.assert_allclose(forecast(early).volatility, forecast_windows(load_pretrained("daily"), asked).volatility, rtol=1e-10)


def test_columns_add_up(hourly):
    table = forecast(hourly, "hourly")
    assert set(table.attrs["units"]) <= {*table.columns} and table.attrs["horizon"] == 4 and table.attrs["bar"] == "1 hour"
    np.testing.assert_allclose(table.per_bar*2, table.volatility)
    np.testing.assert_allclose(table.annualized, table.per_bar*np.sqrt(8760))
    assert (table.low < table.volatility).all() and (table.volatility < table.high).all() and (table.n_support > 60).all() and table.adapted.all()
    one = table.iloc[0] # Sixty horizons of four hours, and the lookback of the first of them
    assert one.support_to == one.time and one.time - one.support_from == pd.Timedelta(hours=240 + 23)


def test_a_new_listing(daily):
    facebook = alone(daily, "FB")
    least, needed, _ = bars_for(DAILY)
    with pytest.raises(HistoryError, match=f"FB: {least - 1} bars from 2012-05-18; a forecast needs {least}, and {needed} to know all"): forecast(facebook.iloc[:least - 1])
    tables = [forecast(facebook.iloc[:n]) for n in (least, least + 50, len(facebook))]
    assert [table.n_support.item() for table in tables] == sorted({table.n_support.item() for table in tables}) and tables[0].n_support.item() == 1
    assert all(table.adapted.item() for table in tables)


def test_many_assets_leave_out_what_cannot_be_forecast(daily):
    pieces = {"AAPL": daily.loc["AAPL"], "FB": daily.loc["FB"].iloc[-50:], "GOOG": daily.loc["GOOG"], "IBM": daily.loc["IBM"].iloc[:-40],
              "MSFT": daily.loc["MSFT"].drop(daily.loc["MSFT"].index[-60:-40])} # Too young, stale, ended before the others, with a hole
    bars = pd.concat(pieces, names=["symbol", "time"])
    still = bars.loc[["GOOG"]].index[-10:]
    bars.loc[still, ["open", "high", "low", "close"]] = 800.
    table, said = noisy_forecast(bars)
    assert said == ["No forecast of FB, GOOG, IBM, MSFT; the other 1 are here. The reasons are in attrs['missing']."]
    assert list(table.index) == ["AAPL"] and set(table.attrs["missing"]) == {"FB", "GOOG", "IBM", "MSFT"}
    for symbol, says in dict(FB="50 bars", IBM="go on for 40 more", MSFT="no bars for", GOOG="stale bars").items():
        assert table.attrs["missing"][symbol].startswith(symbol) and says in table.attrs["missing"][symbol], symbol
    np.testing.assert_allclose(table.volatility, forecast(alone(daily, "AAPL")).volatility, rtol=1e-10) # Those left out are not heard
    with pytest.raises(BarsError, match="none of 2 assets can be forecast"): forecast(bars.drop(["AAPL", "FB", "IBM"], level=0))


def test_prices_without_a_range_are_named_and_left_out(daily):
    flat = daily.loc[["IBM"]].assign(open=lambda b: b.close, high=lambda b: b.close, low=lambda b: b.close)
    table, said = noisy_forecast(pd.concat([daily.loc[["AAPL"]], flat]))
    assert len(said) == 1
    assert list(table.index) == ["AAPL"] and "prices never move" in table.attrs["missing"]["IBM"]
    with pytest.raises(BarsError, match="IBM"): forecast(flat)


BAD = {
    "a wrong name": (lambda d, h: load_pretrained("weekly"), "'daily', 'hourly'"), "no name": (lambda d, h: load_pretrained(None), "'daily', 'hourly'"), "a list": (lambda d, h: load_pretrained(["daily"]), "'daily', 'hourly'"),
    "a wrong model": (lambda d, h: forecast(d, "weekly"), "'daily', 'hourly'"), "no model": (lambda d, h: forecast(d, 3), "needed 'daily', 'hourly'"), "no bars": (lambda d, h: forecast(None), "needed a pandas DataFrame"),
    "an empty table": (lambda d, h: forecast(d.iloc[:0]), "empty"), "hours for the daily model": (lambda d, h: forecast(h, "daily"), "bars of 1 hour, but this model forecasts bars of 1 day"),
    "days for the hourly model": (lambda d, h: forecast(d, "hourly"), "bars of 1 day, but this model forecasts bars of 1 hour"), "bars of two hours": (lambda d, h: forecast(h.loc[["BTC"]].iloc[::2]), "bars of 2 hours"),
    "a gap of hours": (lambda d, h: forecast(h.loc[["BTC"]].drop(h.loc[["BTC"]].index[-40:-30])), "no bars for 0 days 11:00:00 after 2019-09-29"), "a missing price": (lambda d, h: forecast(d.assign(close=np.nan)), "missing or infinite"),
    "one bar": (lambda d, h: forecast(d.loc[["FB"]].iloc[:1]), "1 bars"), "no windows": (lambda d, h: forecast_windows(load_pretrained("daily"), d), "Windows"), "no card": (lambda d, h: model_card(replace(load_pretrained("daily"), about={})), "no card"),
    "a level of 90": (lambda d, h: with_interval(load_pretrained("daily"), make_windows(compute_features(d.loc[["FB"]])), 90.), "0.9"), "too few factors": (lambda d, h: conformal_factors(np.ones(18)), "at least 19")}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case, daily, hourly):
    call, says = BAD[case]
    with pytest.raises(MetavolError, match=says): call(daily, hourly)


def test_the_interval_holds_what_it_learned_from(daily):
    windows = thin(labelled(make_windows(compute_features(daily.loc[["IBM"]]))), 5)
    model = with_interval(load_pretrained("daily"), windows, .8)
    table = forecast_windows(model, windows).assign(realized=windows.y).query("adapted")
    inside = ((table.realized >= table.low) & (table.realized <= table.high)).mean()
    assert .8 <= inside < .81 and model.about["interval"]["forecasts"] == len(table)
    without = replace(model, about={})
    assert forecast(daily.loc[["IBM"]], without)[["low", "high"]].isna().all(axis=None)


def test_calendars():
    def year(freq, n, start="2024-01-01", keep=lambda t: t.day_of_week < 9): return bars_per_year((lambda t: t[keep(t)])(pd.date_range(start, periods=n, freq=freq, tz="UTC")))
    assert year("D", 300) == 365 and year("B", 300) == 252 and year("h", 48) == 8760 and year("h", 500) == 8760
    assert year("h", 1000, keep=lambda t: (t.day_of_week < 5) & (t.hour > 13) & (t.hour < 21)) == 7*252


def test_many_stocks_are_fast(market_data):
    bars = read_bars(market_data/"us_equities_daily.parquet")
    forecast(bars.loc[["AAPL"]]) # What is imported on first use
    began = process_time()
    table = forecast(bars)
    assert len(table) == 138 and process_time() - began < 4 # Under two seconds on an idle machine; benchmarks/ has the figure
