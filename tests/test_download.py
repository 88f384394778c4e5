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
from metavol.download import closing_table, download_crypto, download_stocks, pieces, repair, settled
from metavol.files import data_hash
from metavol.store import Series, Store
from services import candles, envelope
from yahoo_service import Yahoo, point_yfinance_at

PAIRS = {"BTCUSDT": "BTC", "ETHUSDT": "ETH"}
SPAN = "2019-07-01", "2019-09-01" # 1,488 hours
BTC = load_sample("crypto").loc["BTC"].loc["2019-07-01":"2019-08-31 23:00"]


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
    landed = 0
    for kill in range(30):
        store, asked = Store(tmp_path/f"store{kill//3}"), len(market.asked) # Three kills on the way to each store
        process = start(store)
        while len(market.asked) == asked and process.is_alive(): sleep(.002) # The first question: the download has begun
        sleep(dice.uniform(0, .2)); process.kill(); process.join()
        landed += process.exitcode == -signal.SIGKILL
        assert set(store.check().result) <= {"good", "not in the manifest", "unfinished"}
        if kill % 3 == 2:
            fetch(store=store)
            assert good(store)
            for pair in PAIRS: assert data_hash(store.bars([pair])) == data_hash(whole.bars([pair]))
    assert landed >= 20


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
    table = fetch()
    assert "damaged" in table.problem["BTCUSDT"] and "--repair" in table.problem["BTCUSDT"] and table.problem["ETHUSDT"] == ""
    market.asked.clear()
    table = repair(store, market.url)
    assert table.index.tolist() == ["BTCUSDT"] and set(table.problem) == {""} and good(store) and len(market.asked) <= 3
    np.testing.assert_array_equal(store.bars("BTCUSDT"), BTC)
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

def test_pieces_cover_a_span_once():
    start, end = pd.Timestamp("2020-01-31", tz="UTC"), pd.Timestamp("2021-01-01", tz="UTC")
    for length in (pd.Timedelta("1min"), pd.Timedelta("1D"), pd.DateOffset(months=1)):
        cut = pieces(start, end, length)
        assert cut[0][1] == end and cut[-1][0] == start and all(a[0] == b[1] for a, b in zip(cut, cut[1:]))
    assert pieces(end, start, length) == []


def test_a_span_is_settled_after_a_day():
    old, last, soon = (pd.Timestamp.now("UTC") - pd.Timedelta(t) for t in ("2D", "3D", "1h"))
    assert settled(old, last) == old and settled(soon, last) == last


@pytest.mark.parametrize("call,says", [
    (lambda s: download_stocks([], "2020-01-01", store=s), "needed a list of names"),
    (lambda s: download_stocks(None, "2020-01-01", store=s), "needed a list of names"),
    (lambda s: download_stocks([3], "2020-01-01", store=s), "needed a list of names"),
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
    table = closing_table(store, [Series("yahoo", "AAPL", "1d")], {"AAPL": "why"})
    assert table.loc["AAPL", ["rows", "gaps", "problem"]].tolist() == [0, 0, "why"] and str(table["first"].dtype) == "datetime64[us, UTC]"
