"""Downloads into the store: resumed, interrupted, killed, refused; whatever happens, what is kept is good and the rest is fetched once."""
import os
import random
import resource
import signal
from functools import partial
from multiprocessing import get_context
from time import sleep

import numpy as np
import pandas as pd
import pytest

import metavol.data
import metavol.download
from metavol.bars import MetavolError
from metavol.data import load_sample
from metavol.download import closing_table, download_crypto, download_stocks, repair, settled
from metavol.files import data_hash
from metavol.store import Series, Store
from services import candles, envelope
from yahoo_service import Yahoo, point_yfinance_at

PAIRS = {"BTCUSDT": "BTC", "ETHUSDT": "ETH"}
SPAN = "2019-07-01", "2019-09-01" # 1,488 hours
BITCOIN = load_sample("crypto").loc["BTC"]
BTC = BITCOIN.loc["2019-07-01":"2019-08-31 23:00"]


@pytest.fixture
def market(service, monkeypatch):
    "A local Bybit with two pairs; pieces of 400 candles."
    monkeypatch.setattr(metavol.download, "PIECE", 400)
    service.rows = {pair: candles(2600, coin=coin) for pair, coin in PAIRS.items()}
    return service


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


@pytest.fixture
def fetch(market, store): return partial(download_crypto, list(PAIRS), *SPAN, store=store, base_url=market.url)


def good(store): return set(store.check().result) <= {"good"}


# Coins

def test_a_download_is_the_service_to_the_last_bit(fetch, store):
    table = fetch()
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)
    assert store.bars("BTCUSDT").index.equals(BTC.index) and store.bars("BTCUSDT").attrs["market"] == "crypto"
    assert table.columns.tolist() == ["rows", "first", "last", "gaps", "source", "problem"] and table.index.name == "symbol"
    assert table.rows["BTCUSDT"] == len(BTC) and table.gaps["BTCUSDT"] == 1488 - len(BTC) and set(table.problem) == {""}
    assert (table["first"]["BTCUSDT"], table["last"]["BTCUSDT"]) == (BTC.index[0], BTC.index[-1]) and good(store)


def test_nothing_is_asked_twice(fetch, market, store):
    fetch(); market.asked.clear(); before = store.manifest
    fetch()
    assert not market.asked
    pd.testing.assert_frame_equal(store.manifest, before)


def test_a_longer_span_asks_only_for_its_two_ends(market, store):
    ask = partial(download_crypto, ["BTCUSDT"], store=store, base_url=market.url)
    ask("2019-07-20", "2019-08-10"); market.asked.clear()
    ask(*SPAN)
    inside = [q for q in market.asked if pd.Timestamp("2019-07-20").value//10**6 <= q["end"] < pd.Timestamp("2019-08-10").value//10**6]
    assert not inside and len(store.bars("BTCUSDT")) == len(BTC)
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)


def test_the_open_candle_is_fetched_next_time(market, store, monkeypatch):
    now = pd.Timestamp("2019-09-30 23:30", tz="UTC") # The service's clock
    monkeypatch.setattr(pd.Timestamp, "now", lambda tz=None: now)
    ask = partial(download_crypto, ["BTCUSDT"], "2019-09-20", store=store, base_url=market.url)
    assert ask()["last"].iloc[0] == pd.Timestamp("2019-09-30 22:00", tz="UTC")
    later = now + pd.Timedelta("1h"); market.now = int(later.timestamp()*1000)
    monkeypatch.setattr(pd.Timestamp, "now", lambda tz=None: later)
    assert ask()["last"].iloc[0] == pd.Timestamp("2019-09-30 23:00", tz="UTC") and good(store)


def test_a_young_listing_is_no_problem(market, store):
    market.rows["BTCUSDT"] = candles(900)
    table = download_crypto(["BTCUSDT"], "2019-01-01", "2019-09-30 20:00", store=store, base_url=market.url)
    assert table.problem.iloc[0] == "" and table["first"].iloc[0] == load_sample("crypto").loc["BTC"].index[-900]


def test_an_outage_longer_than_a_piece_does_not_end_the_history(market, store):
    rows = market.rows["BTCUSDT"]; del rows[900:2000]
    ask = partial(download_crypto, ["BTCUSDT"], str(BITCOIN.index[-2500]), "2019-09-30 20:00", store=store, base_url=market.url)
    table = ask()
    assert table["first"].iloc[0] == BITCOIN.index[-2500] and table.rows.iloc[0] == 2500 - 1100 - 4 and table.gaps.iloc[0] >= 1100
    market.asked.clear(); ask()
    assert not market.asked and good(store)


def test_a_pair_that_is_traded_no_more_comes_whole(market, store):
    ask = partial(download_crypto, ["BTCUSDT"], str(BITCOIN.index[-2000]), store=store, base_url=market.url)
    market.now = int(pd.Timestamp.now("UTC").timestamp()*1000) # Seven years later
    table = ask()
    assert table.rows.iloc[0] == 2000 and table.problem.iloc[0] == "" and table["last"].iloc[0] == BITCOIN.index[-1]
    market.asked.clear(); ask()
    assert len(market.asked) < 8


def test_an_end_in_the_future_claims_nothing_that_has_not_happened(market, store, monkeypatch):
    monkeypatch.setattr(pd.Timestamp, "now", lambda tz=None: pd.Timestamp("2019-10-03 23:30", tz="UTC")) # Our clock is three days ahead
    ask = partial(download_crypto, ["BTCUSDT"], "2019-09-01", "2025-01-01", store=store, base_url=market.url)
    assert ask()["last"].iloc[0] == BITCOIN.index[-2]
    assert store.manifest.asked_to.max() == BITCOIN.index[-1]
    market.now += 3_600_000
    assert ask()["last"].iloc[0] == BITCOIN.index[-1]


@pytest.mark.parametrize("spans", [(("2019-07-01", "2019-07-20 09:30"), ("2019-07-01", "2019-07-22")), (("2019-07-01 00:30", "2019-07-01 01:00"),),
                                   (("2019-07-01", "2019-07-20 10:30"), ("2019-07-01", "2019-07-20 11:00"))])
def test_spans_that_begin_or_end_inside_a_candle(market, store, spans):
    for span in spans: table = download_crypto(list(PAIRS), *span, store=store, base_url=market.url)
    whole = BITCOIN[(BITCOIN.index >= pd.Timestamp(spans[-1][0], tz="UTC")) & (BITCOIN.index < pd.Timestamp(spans[-1][1], tz="UTC"))]
    assert table.rows["BTCUSDT"] == len(whole) and good(store)


def test_two_damaged_files_of_a_pair_are_repaired_at_once(fetch, market, store):
    fetch()
    for file in store.manifest.file[store.manifest.symbol == "BTCUSDT"].iloc[[0, 2]]: (store.root/file).write_bytes(b"x")
    table = repair(store, market.url)
    assert table.index.tolist() == ["BTCUSDT"] and set(table.problem) == {""} and good(store)
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)


def test_nothing_new_is_a_problem(market, store):
    ask = partial(download_crypto, ["BTCUSDT"], store=store, base_url=market.url)
    ask("2019-07-01", "2019-08-01"); market.rows["BTCUSDT"] = [row for row in market.rows["BTCUSDT"] if int(row[0]) < 1_564_617_600_000]
    assert ask("2019-09-01", "2019-09-10").problem.iloc[0].startswith("nothing came from 2019-09-01 00:00 to 2019-09-10 00:00; what is kept ends on 2019-07-31")


def test_a_pair_that_is_refused_later_is_a_problem(fetch, market, store):
    fetch(); market.reply = lambda query: (200, envelope([], market.now, 10001, "Not supported symbols"))
    table = download_crypto(["BTCUSDT"], "2019-07-01", "2019-09-20", store=store, base_url=market.url)
    assert "Not supported symbols" in table.problem.iloc[0] and table.rows.iloc[0] == len(BTC)


def test_one_odd_pair_does_not_stop_the_others(fetch, market):
    honest = market.reply
    market.reply = lambda query: (200, envelope([], market.now, 10029, "not whitelisted")) if query["symbol"] == "BTCUSDT" else honest(query)
    table = fetch()
    assert "10029" in table.problem["BTCUSDT"] and table.problem["ETHUSDT"] == ""


@pytest.mark.parametrize("interval,step", [("W", "7D"), ("M", None), ("D", "1D")])
def test_long_candles_are_continued(market, store, monkeypatch, interval, step):
    starts = pd.date_range("2015-01-05" if interval != "M" else "2015-01-01", "2019-09-30", freq=step or "MS", tz="UTC")
    market.rows = {"BTCUSDT": [[str(int(t.timestamp()*1000)), "1", "2", "1", "2", "5", "9"] for t in starts[::-1]]}
    market.now = int(pd.Timestamp("2019-09-12", tz="UTC").timestamp()*1000)
    market.rows, later = {"BTCUSDT": [row for row in market.rows["BTCUSDT"] if int(row[0]) <= market.now]}, market.rows
    ask = partial(download_crypto, ["BTCUSDT"], "2015-01-01", interval=interval, store=store, base_url=market.url)
    ask("2019-09-10"); market.rows, market.now = later, market.now + 40*86_400_000
    table = ask("2019-10-01")
    assert store.bars("BTCUSDT").index.equals(starts.rename("time").as_unit("us")) and table.gaps.iloc[0] == 0


def test_ctrl_c_stops_after_the_pieces_under_way(market, store):
    market.rows = {f"C{i}USDT": market.rows["BTCUSDT"] for i in range(20)}
    honest = market.reply
    def reply(query):
        if len(market.asked) == 6: os.kill(os.getpid(), signal.SIGINT)
        sleep(.02); return honest(query)
    market.reply = reply
    with pytest.raises(KeyboardInterrupt): download_crypto(list(market.rows), *SPAN, store=store, base_url=market.url)
    assert len(market.asked) < 40 and good(store)


def test_an_unknown_pair_is_named_and_the_others_come(market, store):
    table = download_crypto(["BTCUSDT", "NOSUCH"], *SPAN, store=store, base_url=market.url)
    assert "unknown" in table.problem["NOSUCH"] and table.rows.tolist() == [len(BTC), 0] and pd.isna(table["first"]["NOSUCH"])


def test_a_ban_stops_everybody_and_loses_nothing(fetch, market, store):
    honest = market.reply
    market.reply = lambda query: honest(query) if len(market.asked) <= 5 else (403, "<html>403 Forbidden</html>")
    table = fetch()
    assert table.problem.str.contains("HTTP 403").all() and good(store) and len(market.asked) <= 5 + metavol.download.WORKERS
    market.reply = honest
    assert set(fetch().problem) == {""}
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)


def test_faults_on_the_way_lose_nothing(fetch, market, store):
    honest, dice = market.reply, random.Random(0)
    def moody(query):
        fault = dice.random()
        if fault < .1: return 200, envelope([], market.now, 10006, "Too many visits!")
        if fault < .2: return 200, envelope([], market.now)
        if fault < .3: return 200, "<html>maintenance</html>"
        status, body = honest(query)
        if fault < .4: body["result"]["list"] = body["result"]["list"][::2]
        return status, body
    market.reply = moody
    for _ in range(3): table = fetch()
    assert set(table.problem) == {""} and good(store)
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)


# Killed, crowded, full

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["metavol.download", "services"])


def child(folder, url, ledger, quota=None, pairs=tuple(PAIRS)):
    "A process of its own that downloads."
    os.environ["NO_PROXY"] = "127.0.0.1"
    metavol.download.PIECE, metavol.data.BYBIT_BUDGET, metavol.data.tempfile.gettempdir = 400, (10_000, 5.), lambda: ledger
    if quota:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (quota, quota))
    try: download_crypto(list(pairs), *SPAN, store=Store(folder), base_url=url)
    except MetavolError as error: raise SystemExit(7 if "cannot be written" in str(error) and "room" in str(error) else 8) from None


@pytest.fixture
def start(market, tmp_path):
    def start(store, **options):
        process = FORKS.Process(target=child, args=(str(store.root), market.url, str(tmp_path)), kwargs=options)
        process.start()
        return process
    return start


def test_thirty_kills_lose_nothing(fetch, market, tmp_path, start):
    whole = Store(tmp_path/"whole"); fetch(store=whole)
    slow, dice = market.reply, random.Random(1)
    def reply(query): sleep(.01); return slow(query)
    market.reply = reply
    calm = start(Store(tmp_path/"calm")); calm.join(); assert calm.exitcode == 0
    for kill in range(30):
        store = Store(tmp_path/f"store{kill//3}") # Three kills on the way to each store
        process, asked = start(store), len(market.asked) + dice.randint(1, 6)
        while len(market.asked) < asked and process.is_alive(): sleep(.001)
        sleep(dice.uniform(0, .02)); process.kill(); process.join() # Between two questions, or while a piece is written
        assert set(store.check().result) <= {"good", "not in the manifest", "unfinished"}
        if kill % 3 == 2:
            fetch(store=store)
            assert good(store)
            for pair in PAIRS: assert data_hash(store.bars([pair])) == data_hash(whole.bars([pair]))


def test_two_processes_at_once(fetch, tmp_path, start):
    whole, shared = Store(tmp_path/"whole"), Store(tmp_path/"shared")
    fetch(store=whole)
    for process in [start(shared) for _ in range(3)]: process.join(); assert process.exitcode == 0
    assert good(shared) and data_hash(shared.bars(list(PAIRS))) == data_hash(whole.bars(list(PAIRS)))


@pytest.mark.parametrize("quota", [100, 1_000, 12_000])
def test_a_full_disk_is_said_and_the_store_stays_good(fetch, store, start, quota):
    full = start(store, quota=quota); full.join()
    assert full.exitcode == 7 and set(store.check().result) <= {"good", "not in the manifest"}
    assert set(fetch().problem) == {""} and good(store)
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)


def test_damaged_files_are_named_and_fetched_again(fetch, market, store):
    fetch()
    file = store.root/store.manifest.file[store.manifest.symbol == "BTCUSDT"].iloc[1]
    content = bytearray(file.read_bytes()); content[300] ^= 1; file.write_bytes(content)
    market.asked.clear(); honest, market.reply = market.reply, lambda query: (403, "banned")
    assert "HTTP 403" in repair(store, market.url).problem["BTCUSDT"] and "damaged" in set(store.check().result)
    with pytest.raises(MetavolError, match="damaged.*--repair"): store.bars("BTCUSDT")
    market.reply = honest; market.asked.clear()
    table = repair(store, market.url)
    assert table.index.tolist() == ["BTCUSDT"] and set(table.problem) == {""} and good(store) and len(market.asked) <= 3
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)
    (store.root/store.manifest.file[0]).unlink()
    assert set(fetch().problem) == {""} and good(store) # A download repairs what it touches
    (store.root/"manifest.jsonl").write_text("{")
    assert repair(store, market.url).empty and good(store) and len(store.bars("BTCUSDT")) == len(BTC)


# Stocks

@pytest.fixture
def yahoo(monkeypatch, tmp_path):
    service = Yahoo().start().sample("AAPL", "IBM", "MSFT", "FB")
    point_yfinance_at(service, monkeypatch, tmp_path/"cache")
    monkeypatch.setattr(metavol.data, "YAHOO_WAIT", .01); monkeypatch.setattr(metavol.data, "YAHOO_TRIES", 3)
    yield service
    service.stop()


def kept(symbol, first, last): return load_sample("stocks").loc[symbol].loc[first:last]


def test_stocks_are_kept_and_continued(yahoo, store):
    ask = partial(download_stocks, ["AAPL", "IBM", "NOSUCH"], store=store)
    table = ask("2011-01-01", "2012-01-01")
    assert table.rows.tolist() == [252, 252, 0] and table.gaps.sum() == 0 and "NOSUCH" in table.problem["NOSUCH"]
    yahoo.asked.clear(); ask("2011-01-01", "2012-01-01")
    assert not yahoo.asked # The unknown one has no time zone, so nobody asks for its bars
    table = ask("2011-01-01", "2013-03-02")
    np.testing.assert_allclose(store.bars("IBM", "yahoo"), kept("IBM", "2011", "2013-03-01"), rtol=1e-12)
    assert store.manifest.version.tolist() == 4*[1] and good(store) and table["last"]["IBM"] == pd.Timestamp("2013-03-01", tz="UTC")


def test_a_revised_past_becomes_a_new_version(yahoo, store):
    ask = partial(download_stocks, ["IBM", "AAPL"], "2011-01-01", store=store)
    ask("2012-01-01"); before = store.bars("IBM")
    yahoo.bars["IBM"] = yahoo.bars["IBM"].assign(**{name: yahoo.bars["IBM"][name]*.99 for name in ("open", "high", "low", "close")})
    ask("2012-06-01")
    assert store.manifest.groupby("symbol").version.max().to_dict() == {"AAPL": 1, "IBM": 2}
    np.testing.assert_array_equal(store.bars("IBM", version=1), before)
    np.testing.assert_allclose(store.bars("IBM").close, .99*kept("IBM", "2011-01-01", "2012-05-31").close, rtol=1e-12)
    assert store.bars("IBM").attrs["adjustment"] == "splits and dividends" and good(store)


def halve(yahoo, symbol):
    yahoo.bars[symbol] = yahoo.bars[symbol].assign(**{name: yahoo.bars[symbol][name]/2 for name in ("open", "high", "low", "close")})


def calm(bars): return bars.close.pct_change().abs().max() < .2


@pytest.mark.parametrize("spans", [(("2011-01-01", "2011-06-01"), ("2012-01-01", "2012-06-01")), (("2011-01-01", "2012-06-01"), ("2010-01-01", "2011-03-01")),
                                   (("2012-01-01", "2012-06-01"), ("2011-01-01", "2012-01-01"))], ids=["island", "earlier", "touching"])
def test_two_adjustments_never_meet_and_nothing_gets_shorter(yahoo, store, spans):
    download_stocks(["IBM"], *spans[0], store=store); before = store.bars("IBM")
    halve(yahoo, "IBM")
    table = download_stocks(["IBM"], *spans[1], store=store)
    bars = store.bars("IBM")
    assert calm(bars) and table.problem.iloc[0] == "" and store.manifest.version.max() == 2
    assert bars.index[0] <= before.index[0] and bars.index[-1] >= before.index[-1] and len(store.bars("IBM", version=1)) == len(before)


@pytest.mark.parametrize("interval", ["1wk", "1mo"])
def test_long_bars_are_compared_at_the_seam(yahoo, store, interval):
    freq = "W-MON" if interval == "1wk" else "MS"
    daily = load_sample("stocks").loc["IBM"].loc["2010":].tz_localize(None)
    bars = daily.resample(freq, label="left", closed="left").agg(dict(open="first", high="max", low="min", close="last", volume="sum")).dropna()
    yahoo.bars["IBM"] = bars.tz_localize("America/New_York")
    download_stocks(["IBM"], "2010-01-01", "2011-06-20", interval, store)
    halve(yahoo, "IBM")
    table = download_stocks(["IBM"], "2010-01-01", "2012-06-20", interval, store)
    assert calm(store.bars("IBM")) and store.manifest.version.max() == 2 and np.isnan(table.gaps.iloc[0])
    ends = bars.index + metavol.data.YAHOO_BARS[interval]
    assert len(store.bars("IBM")) == ((bars.index >= "2010-01-01") & (ends <= "2012-06-20")).sum()


def test_hours_are_continued(yahoo, store, monkeypatch):
    now = [pd.Timestamp("2026-10-30 18:10", tz="UTC")]
    monkeypatch.setattr(pd.Timestamp, "now", lambda tz=None: now[0])
    hours = pd.DatetimeIndex([day + pd.Timedelta(hours=h, minutes=30) for day in pd.bdate_range("2026-10-01", "2026-11-06", tz="America/New_York") for h in range(9, 16)])
    walk = 100*np.exp(np.cumsum(np.random.default_rng(0).normal(0, .002, len(hours))))
    yahoo.bars["IBM"] = pd.DataFrame(dict(open=walk, high=walk*1.01, low=walk*.99, close=walk, volume=1.), hours)
    ask = partial(download_stocks, ["IBM"], "2026-10-05", interval="1h", store=store)
    assert ask().problem.iloc[0] == "" and store.bars("IBM").index[-1] == pd.Timestamp("2026-10-30 16:30", tz="UTC")
    now[0] = pd.Timestamp("2026-11-05 12:00", tz="UTC")
    assert ask().problem.iloc[0] == "" and good(store) and store.bars("IBM").index[-1] == pd.Timestamp("2026-11-04 20:30", tz="UTC")
    assert len(store.bars("IBM")) == 7*23


def test_one_stock_without_an_answer_does_not_stop_the_others(yahoo, store):
    download_stocks(["AAPL"], "2011-01-01", "2012-01-01", store=store)
    yahoo.trouble = {"IBM": 9*[(500, "Internal Server Error")]}
    table = download_stocks(["IBM", "AAPL"], "2011-01-01", "2012-06-01", store=store)
    assert table.problem["AAPL"] == "" and "IBM" in table.problem["IBM"] and table["last"]["AAPL"] == pd.Timestamp("2012-05-31", tz="UTC")


def test_one_broken_stock_does_not_stop_the_others(yahoo, store):
    yahoo.bars["FB"] = yahoo.bars["FB"].assign(high=1.)
    table = download_stocks(["AAPL", "FB"], "2012-06-01", "2012-09-01", store=store)
    assert "high is below" in table.problem["FB"] and table.problem["AAPL"] == ""
    table = download_stocks(["FB", "AAPL"], "2012-06-01", "2012-10-01", store=store)
    assert "high is below" in table.problem["FB"] and table["last"]["AAPL"] == pd.Timestamp("2012-09-28", tz="UTC")


def test_each_asset_keeps_its_own_market(yahoo, store):
    yahoo.bars["BTC-USD"] = BITCOIN.resample("1D").agg(dict(open="first", high="max", low="min", close="last", volume="sum"))
    ibm = yahoo.bars["IBM"]; yahoo.bars["IBM"] = ibm.drop(ibm.loc["2012-03-06":"2012-03-08"].index)
    assert download_stocks(["IBM"], "2012-01-01", "2012-06-01", store=store).gaps["IBM"] == 3
    download_stocks(["BTC-USD", "AAPL"], "2012-01-01", "2019-06-01", store=store)
    assert store.manifest.set_index("symbol").market.to_dict() == {"IBM": "us_equity", "AAPL": "us_equity", "BTC-USD": "crypto"}


def test_an_earlier_start_joins_what_is_kept(yahoo, store):
    download_stocks(["MSFT"], "2012-01-01", "2012-06-01", store=store)
    download_stocks(["MSFT"], "2011-01-01", "2012-06-01", store=store)
    np.testing.assert_allclose(store.bars("MSFT"), kept("MSFT", "2011-01-01", "2012-05-31"), rtol=1e-12)
    assert set(store.manifest.version) == {1}


def test_a_new_listing_is_not_asked_for_its_past_again(yahoo, store):
    ask = partial(download_stocks, ["FB"], "2010-01-01", "2013-01-01", store=store)
    assert ask()["first"].iloc[0] == pd.Timestamp("2012-05-18", tz="UTC")
    yahoo.asked.clear(); ask()
    assert not yahoo.asked


def test_a_service_that_is_too_busy_is_no_symbol_error(yahoo, store, monkeypatch):
    monkeypatch.setattr(metavol.download, "YAHOO_CHUNK", 1)
    yahoo.trouble = {symbol: 9*[(429, "Too Many Requests")] for symbol in ("AAPL", "IBM", "MSFT")}
    table = download_stocks(["AAPL", "IBM", "MSFT"], "2011-01-01", "2012-01-01", store=store)
    assert table.problem.str.contains("Too Many Requests|RateLimit|Rate limited").all() and yahoo.times_asked().keys() == {"AAPL"}
    yahoo.trouble = {}
    assert set(download_stocks(["AAPL", "IBM", "MSFT"], "2011-01-01", "2012-01-01", store=store).problem) == {""}


# What is asked

def test_a_span_is_settled_after_a_day():
    old, last, soon = (pd.Timestamp.now("UTC") - pd.Timedelta(t) for t in ("2D", "3D", "1h"))
    now, day = pd.Timestamp.now("UTC"), pd.Timedelta("1D")
    assert settled(old, last, day, now) == old and settled(soon, last, day, now) == last and settled(old, last, 7*day, now) == last
    assert settled(old, last, pd.DateOffset(months=1), now) == last


@pytest.mark.parametrize("call,says", [
    (lambda s: download_stocks([], "2020-01-01", store=s), "needed at least one name"),
    (lambda s: download_stocks(None, "2020-01-01", store=s), "needed at least one name"),
    (lambda s: download_stocks([3], "2020-01-01", store=s), "needed at least one name"),
    (lambda s: download_stocks(["AAPL"], "soon", store=s), "no date"),
    (lambda s: download_stocks(["AAPL"], "2021-01-01", "2020-01-01", store=s), "start must come before the end"),
    (lambda s: download_stocks(["AAPL"], "2020-01-01", "2021-01-01", interval="90m", store=s), "choose one of 1m"),
    (lambda s: download_crypto(["BTCUSDT"], "2020-01-01", interval="45", store=s), "choose one of 1, 3"),
    (lambda s: download_crypto(["BTCUSDT"], "2020-01-01", category="option", store=s), "category"),
    (lambda s: download_crypto(["BTCUSDT"], "2099-01-01", store=s), "start must come before the end"),
], ids=["empty", "none", "number", "words", "backwards", "interval", "minutes", "category", "future"])
def test_bad_questions_are_refused_before_anybody_is_asked(store, call, says):
    with pytest.raises(MetavolError, match=says): call(store)
    assert not store.root.exists()


def test_the_closing_table_of_nothing(store):
    table = closing_table(store, [Series("yahoo", "AAPL", "1d")], {"AAPL": "why"}, None, None)
    assert table.loc["AAPL", ["rows", "problem"]].tolist() == [0, "why"] and str(table["first"].dtype) == "datetime64[us, UTC]"
