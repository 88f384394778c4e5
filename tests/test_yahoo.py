"""Stocks through yfinance's own code and a local server in Yahoo's form: what comes, what is missing, and who is to blame."""
import time
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest

import metavol.data
from metavol.bars import BarsError, by_asset, check_bars
from metavol.data import MissingSymbolsWarning, ServiceError, SymbolError, bars_from_yahoo, load_sample, load_stock_data
from yahoo_service import NEW_YORK, NOT_FOUND, Yahoo, point_yfinance_at

BUSY, BROKEN = (429, "Too Many Requests\r\n"), (500, "Internal Server Error")
SPRING = ("2012-03-01", "2012-06-30")


@pytest.fixture
def yahoo(monkeypatch, tmp_path):
    service = Yahoo().start()
    point_yfinance_at(service, monkeypatch, tmp_path)
    monkeypatch.setattr(metavol.data, "YAHOO_WAIT", 0.01)
    monkeypatch.setattr(metavol.data, "YAHOO_TRIES", 3)
    yield service
    service.stop()


def adjusted(symbol, first="2012-03-01", last="2012-06-29"): return load_sample("stocks").loc[symbol].loc[first:last]


def quietly(ask):
    "Run it; nothing may be written to stderr, the one warning is returned."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bars = ask()
    assert [w.category for w in said] in ([], [MissingSymbolsWarning])
    return bars, str(said[0].message) if said else ""


# What comes

def test_one_symbol(yahoo, capfd):
    yahoo.sample("AAPL")
    bars = load_stock_data("aapl", *SPRING)
    np.testing.assert_allclose(bars, adjusted("AAPL"), rtol=1e-12)
    assert bars.index.equals(adjusted("AAPL").index) and bars.index.name == "time"
    assert bars.attrs == dict(symbol="AAPL", source="Yahoo, through yfinance", market="us_equity", bar="1 day", interval="1d",
                              adjustment="splits and dividends", missing={})
    assert capfd.readouterr().err == "" and yahoo.times_asked() == {"AAPL": 1}
    check_bars(bars)


def test_two_symbols_in_the_order_asked_for_and_each_once(yahoo):
    yahoo.sample("AAPL", "FB")
    panel = load_stock_data(["FB", "AAPL", "fb"], *SPRING)
    assert [(symbol, len(frame)) for symbol, frame in by_asset(panel)] == [("FB", 30), ("AAPL", 85)]
    assert "symbol" not in panel.attrs and panel.index.names == ["symbol", "time"]
    np.testing.assert_allclose(panel.loc["AAPL"], adjusted("AAPL"), rtol=1e-12)
    check_bars(panel)


def test_splits_and_dividends_are_adjusted(yahoo):
    yahoo.sample("AAPL")
    raw = yahoo.bars["AAPL"]
    raw["adj_close"] = raw.close # the sample's prices are adjusted: undo that for the days before a split in two and a dividend
    ratio = pd.Series(np.where(raw.index < pd.Timestamp("2012-05-01", tz=NEW_YORK), 0.495, 1.), raw.index)
    yahoo.bars["AAPL"] = raw.assign(**{name: raw[name]/ratio for name in ("open", "high", "low", "close")})
    moment = int(pd.Timestamp("2012-05-01 09:30", tz=NEW_YORK).timestamp())
    yahoo.events["AAPL"] = {"dividends": {str(moment): dict(amount=0.8, date=moment)},
                            "splits": {str(moment): dict(date=moment, numerator=2, denominator=1, splitRatio="2:1")}}
    bars = load_stock_data("AAPL", *SPRING)
    np.testing.assert_allclose(bars, adjusted("AAPL"), rtol=1e-12)
    assert list(bars.columns) == ["open", "high", "low", "close", "volume"]


def made(times, seed=0):
    rng = np.random.default_rng(seed)
    close = 100*np.exp(np.cumsum(0.01*rng.standard_normal(len(times))))
    return pd.DataFrame(dict(open=close, high=1.01*close, low=0.99*close, close=close, volume=1e6), times)


def test_hours_are_moments_in_utc(yahoo):
    hours = pd.DatetimeIndex([day + pd.Timedelta(f"{h}h30min") for day in pd.bdate_range("2024-03-07", "2024-03-12", tz=NEW_YORK) for h in range(9, 16)])
    yahoo.bars["AAPL"] = made(hours)
    bars = load_stock_data("AAPL", "2024-03-01", "2024-03-13", interval="1h")
    assert bars.index.equals(hours.tz_convert("UTC").rename("time")) and (bars.attrs["bar"], bars.attrs["interval"]) == ("1 hour", "1h")
    assert [str(t) for t in bars.index[[0, 14]]] == ["2024-03-07 14:30:00+00:00", "2024-03-11 13:30:00+00:00"] # summer time began between


@pytest.mark.parametrize("interval,freq,bar", [("1wk", "W-MON", "1 week"), ("1mo", "MS", "1 month")])
def test_weeks_and_months_are_whole(yahoo, interval, freq, bar):
    yahoo.bars["AAPL"] = made(pd.date_range("2024-01-01", "2024-06-30", freq=freq, tz=NEW_YORK))
    bars = load_stock_data("AAPL", "2024-01-01", "2024-05-09", interval=interval)
    last = dict(W="2024-04-29", M="2024-04-01")[freq[0]]
    assert str(bars.index[-1].date()) == last and (bars.index == bars.index.normalize()).all() and bars.attrs["bar"] == bar


@pytest.mark.parametrize("interval,freq", [("1d", "D"), ("1h", "h"), ("5m", "5min"), ("1wk", "W-MON"), ("1mo", "MS")])
def test_open_bars_never_come(yahoo, interval, freq):
    now = pd.Timestamp.now("UTC")
    days = dict(D=20, h=6, W=100, M=400).get(freq[0], 2)
    times = pd.date_range((now - pd.Timedelta(days=days)).normalize(), now, freq=freq)
    yahoo.bars["BTC-USD"] = made(times)
    asked = load_stock_data("BTC-USD", f"{times[0]:%Y-%m-%d}", f"{now + pd.Timedelta(days=60):%Y-%m-%d}", interval)
    length = metavol.data.YAHOO_BARS[interval]
    ends = asked.index + length
    assert (ends <= pd.Timestamp.now("UTC")).all() and ends[-1] + length > now and asked.attrs["market"] == "crypto"
    assert interval != "1d" or asked.index[-1] == now.normalize() - pd.Timedelta("1D")


# What is missing

def test_one_of_two_unknown(yahoo, capfd):
    yahoo.sample("AAPL")
    bars, said = quietly(lambda: load_stock_data(["NOSUCH", "AAPL"], *SPRING))
    assert "NOSUCH" in said and "the other 1" in said
    assert list(bars.attrs["missing"]) == ["NOSUCH"] and "no bars for NOSUCH" in bars.attrs["missing"]["NOSUCH"]
    assert [symbol for symbol, _ in by_asset(bars)] == ["AAPL"] and bars.index.nlevels == 2 and capfd.readouterr().err == ""


@pytest.mark.parametrize("names", [["A", "B", "C"], ["A"]])
def test_all_unknown(yahoo, names):
    with pytest.raises(SymbolError, match=", ".join(names)): load_stock_data(names, *SPRING)
    with pytest.raises(SymbolError, match="no bars for NOSUCH"): load_stock_data("NOSUCH", *SPRING)
    assert sum(path.startswith("/v8") for path in yahoo.paths) <= 3*(len(names) + 1) # nobody was asked for again after waiting


def test_unknown_symbols_are_asked_for_once(yahoo):
    yahoo.trouble["GONE"] = [(404, NOT_FOUND), (404, NOT_FOUND)] # yfinance itself tries once more with another cookie
    yahoo.sample("AAPL").sample("AAPL", under="GONE")
    bars, said = quietly(lambda: load_stock_data(["AAPL", "GONE"], *SPRING))
    assert yahoo.times_asked() == {"AAPL": 1, "GONE": 2} and "No data found, symbol may be delisted" in bars.attrs["missing"]["GONE"]


def test_delisted_answers_without_a_bar(yahoo):
    yahoo.sample("AAPL", "FB")
    with pytest.raises(SymbolError, match="no bars for FB.*no price data found"): load_stock_data("FB", "2010-01-01", "2010-06-01")
    bars, said = quietly(lambda: load_stock_data(["AAPL", "FB"], "2010-01-01", "2010-06-01"))
    assert list(bars.attrs["missing"]) == ["FB"] and len(bars.loc["AAPL"]) == 102


def test_all_nan_is_missing_and_a_hole_is_refused(yahoo):
    yahoo.sample("AAPL", "FB")
    yahoo.bars["FB"] = yahoo.bars["FB"]*np.nan
    with pytest.raises(SymbolError, match="no bars for FB"): load_stock_data("FB", *SPRING)
    yahoo.bars["AAPL"].loc["2012-04-10", ["open", "high", "low", "close", "volume"]] = np.nan
    bars, _ = quietly(lambda: load_stock_data(["AAPL", "FB"], *SPRING))
    assert len(bars.loc["AAPL"]) == 84 and list(bars.attrs["missing"]) == ["FB"]
    yahoo.bars["AAPL"].loc["2012-04-10", ["open", "high", "close", "volume"]] = 600.
    with pytest.raises(BarsError, match="AAPL at 2012-04-10.*low is missing"): load_stock_data("AAPL", *SPRING)


def test_a_broken_bar_costs_one_symbol_only(yahoo):
    yahoo.sample("AAPL", "FB")
    yahoo.bars["FB"].loc["2012-06-01", "high"] = 1.
    bars, said = quietly(lambda: load_stock_data(["AAPL", "FB"], *SPRING))
    assert "FB at 2012-06-01" in bars.attrs["missing"]["FB"] and yahoo.times_asked() == {"AAPL": 1, "FB": 1}


# Who is to blame

def test_busy_twice_then_good(yahoo):
    yahoo.sample("AAPL", "FB")
    yahoo.trouble["FB"] = 4*[BUSY] # yfinance asks twice each time
    bars, said = quietly(lambda: load_stock_data(["AAPL", "FB"], *SPRING))
    assert said == "" and len(bars.loc["FB"]) == 30 and yahoo.times_asked() == {"AAPL": 1, "FB": 5}


@pytest.mark.parametrize("trouble", [[BROKEN, BROKEN], [(200, "<html>hello</html>")], [(502, "")], [(200, "cut")], [(200, "Will be right back")]],
                         ids=["500", "html", "502", "cut", "down"])
def test_lost_answers_are_asked_for_again(yahoo, trouble):
    yahoo.sample("AAPL"); yahoo.trouble["AAPL"] = list(trouble)
    assert len(load_stock_data("AAPL", *SPRING)) == 85 and not yahoo.trouble["AAPL"]


def test_a_stalled_answer_is_asked_for_again(yahoo, monkeypatch):
    monkeypatch.setattr(metavol.data, "YAHOO_TIMEOUT", 0.3); yahoo.stall = 0.6
    yahoo.sample("AAPL"); yahoo.trouble["AAPL"] = [(200, "stall")]
    assert len(load_stock_data("AAPL", *SPRING)) == 85 and yahoo.times_asked() == {"AAPL": 2}


def test_a_service_that_stays_busy(yahoo):
    yahoo.sample("AAPL", "FB", "IBM")
    yahoo.trouble = {"AAPL": 100*[BUSY], "FB": 100*[BUSY]}
    started = time.monotonic()
    with pytest.raises(ServiceError, match="AAPL, FB.*Too Many Requests"): load_stock_data(["AAPL", "FB"], *SPRING)
    assert time.monotonic() - started < 20 and yahoo.times_asked() == {"AAPL": 6, "FB": 6} # three tries, two questions each
    bars, said = quietly(lambda: load_stock_data(["AAPL", "IBM"], *SPRING))
    assert "Too Many Requests" in bars.attrs["missing"]["AAPL"] and len(bars.loc["IBM"]) == 85 and "AAPL" in said


def test_the_service_is_to_blame_if_only_one_of_the_failed_is_unknown(yahoo):
    yahoo.sample("AAPL"); yahoo.trouble["AAPL"] = 100*[BUSY]
    with pytest.raises(ServiceError, match="NOSUCH, AAPL"): load_stock_data(["NOSUCH", "AAPL"], *SPRING)


def test_nobody_there(yahoo):
    yahoo.stop(); yahoo.server.server_close()
    with pytest.raises(ServiceError, match="no answer for AAPL"): load_stock_data("AAPL", *SPRING)
    yahoo.start()


def test_waits_grow_up_to_a_ceiling(yahoo, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr(metavol.data, "YAHOO_WAIT", 1.); monkeypatch.setattr(metavol.data, "YAHOO_LONGEST_WAIT", 4.); monkeypatch.setattr(metavol.data, "YAHOO_TRIES", 6)
    answers = metavol.data.ask_patiently(["AAPL"], lambda symbol: ServiceError("busy"))
    assert [w >= low and w <= low + 1 for w, low in zip(waits, (1, 2, 4, 4, 4))] == 5*[True] and len(waits) == 5 and isinstance(answers["AAPL"], ServiceError)


# Many

def many(yahoo, count):
    names = [f"S{a}{b}" for a in "ABCDEFGHIJKL" for b in "ABCDEFGHIJ"][:count]
    yahoo.sample("AAPL"); yahoo.bars |= dict.fromkeys(names, yahoo.bars["AAPL"])
    return names


def test_three_chunks(yahoo, monkeypatch, capfd):
    "One real answer of the local server, handed to 119 of 120 names: yfinance needs too long for so many."
    import yfinance
    from yfinance.exceptions import YFPricesMissingError, YFRateLimitError
    with metavol.data.outspoken(): answer = yfinance.Ticker(*many(yahoo, 1)).history(start="2012-06-01", end="2012-06-16", actions=False)
    names, chunks, asked, ask = many(yahoo, 120), [], Counter(), metavol.data.ask_patiently
    class Ticker:
        def __init__(self, symbol): self.symbol = symbol
        def history(self, **options):
            asked[self.symbol] += 1
            if self.symbol == "SCC": raise YFPricesMissingError(self.symbol, "")
            if self.symbol == "SLJ" and asked["SLJ"] < 3: raise YFRateLimitError()
            return answer.copy()
    monkeypatch.setattr(yfinance, "Ticker", Ticker)
    monkeypatch.setattr(metavol.data, "ask_patiently", lambda symbols, question: chunks.append(len(symbols)) or ask(symbols, question))
    bars, said = quietly(lambda: load_stock_data(names, "2012-06-01", "2012-06-16"))
    assert chunks == [50, 50, 20] and list(bars.attrs["missing"]) == ["SCC"] and "SCC" in said
    assert [symbol for symbol, _ in by_asset(bars)] == [name for name in names if name != "SCC"] and len(bars) == 119*11
    assert asked == Counter(names) + Counter({"SLJ": 2}) and "120/120" in capfd.readouterr().err


def test_a_refusing_service_is_not_asked_for_the_rest(yahoo, monkeypatch):
    monkeypatch.setattr(metavol.data, "YAHOO_CHUNK", 5); monkeypatch.setattr(metavol.data, "YAHOO_TRIES", 2)
    names = many(yahoo, 12)
    yahoo.trouble = {name: 9*[BUSY] for name in names[5:]}
    bars, said = quietly(lambda: load_stock_data(names, "2012-06-01", "2012-06-16"))
    assert list(bars.attrs["missing"]) == names[5:] and "not asked any more" in bars.attrs["missing"][names[-1]] and set(yahoo.times_asked()) == set(names[:10])


# Questions, and yfinance as we found it

def test_questions_are_checked_before_asking(yahoo):
    for arguments, says in [((["AAPL", 5], *SPRING), "needed a ticker"), (("", *SPRING), "needed a ticker"), ((None, *SPRING), "needed a ticker"), (([], *SPRING), "no symbol given"),
                            (("AAPL", "2024-01-01", "2020-01-01"), "nothing lies between"), (("AAPL", "first of May", "2020-01-01"), "which is no date"),
                            (("AAPL", "2024-01-01", "2024-02-01", "2h"), "choose one of 1m, 5m, 15m, 30m, 1h, 1d, 1wk, 1mo")]:
        with pytest.raises(BarsError, match=says): load_stock_data(*arguments)
    assert not yahoo.paths


def test_settings_of_yfinance_come_back(yahoo):
    import logging
    import yfinance
    before = yfinance.config.debug.hide_exceptions, list(logging.getLogger("yfinance").handlers), list(warnings.filters)
    with pytest.raises(SymbolError): load_stock_data("NOSUCH", *SPRING)
    assert before == (yfinance.config.debug.hide_exceptions, list(logging.getLogger("yfinance").handlers), list(warnings.filters))


# Frames that yfinance returned

def frame(folder, name, header=(0, 1)):
    return pd.read_csv(folder/"yfinance_examples"/name, index_col=0, header=list(header))


def test_recorded_downloads(market_data):
    single, two = frame(market_data, "download_single.csv"), frame(market_data, "download_two.csv")
    panel = bars_from_yahoo(two, ["AAPL", "MSFT"])
    np.testing.assert_array_equal(bars_from_yahoo(single, "AAPL"), panel.loc["AAPL"])
    pd.testing.assert_frame_equal(bars_from_yahoo(frame(market_data, "download_two_group_by_ticker.csv"), ["AAPL", "MSFT"]), panel)
    np.testing.assert_allclose(bars_from_yahoo(frame(market_data, "download_auto_adjust_false.csv"), "AAPL"), panel.loc["AAPL"], rtol=1e-9)
    for name in ("download_one_unknown.csv", "download_unknown.csv"):
        with pytest.raises(SymbolError, match="no bars for NOSUCH"): bars_from_yahoo(frame(market_data, name), "NOSUCH")


def test_the_local_service_gives_the_recorded_frame(yahoo, market_data):
    "The same question that made the recording, put to the local server through `yfinance.download` itself."
    import yfinance
    recorded = frame(market_data, "download_auto_adjust_false.csv").xs("AAPL", axis=1, level=1)
    raw = recorded.rename(columns=lambda name: name.lower().replace(" ", "_"))
    raw.index = pd.to_datetime(raw.index).tz_localize(NEW_YORK) + pd.Timedelta("9h30min")
    yahoo.bars["AAPL"] = raw
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=pd.errors.Pandas4Warning)
        got = yfinance.download("AAPL", start="2023-02-01", end="2023-04-01", progress=False)
    expected = pd.read_csv(market_data/"yfinance_examples"/"download_single.csv", header=[0, 1], index_col=0, parse_dates=True)
    pd.testing.assert_frame_equal(got, expected, check_index_type=False, check_dtype=False)
    np.testing.assert_allclose(load_stock_data("AAPL", "2023-02-01", "2023-04-01"), bars_from_yahoo(got, "AAPL"), rtol=1e-12)
