"""What Bybit can do to a loader, replayed by a real local HTTP server: no candle is lost, or the error says why."""
import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import time

import numpy as np
import pandas as pd
import pytest

import metavol.data
from metavol.bars import BarsError, MetavolError, check_bars
from metavol.data import (BYBIT_BARS, BusyError, NoBarsError, ServiceError, SymbolError, UnreachableError, bars_from_bybit, load_bybit_data, load_sample,
                          missing_candles, spend)
from services import HALF_PAST, candles, cut, envelope, reset, silence

FORKS = get_context("forkserver"); FORKS.set_forkserver_preload(["metavol.data"])
BITCOIN = load_sample("crypto").loc["BTC"]
FIRST, SECOND = slice(0, 1000), slice(1000, 1501) # Pages of the newest 1,501 candles, of which the first is open


def page(part, now=HALF_PAST): return 200, envelope(candles(1501)[part], now)


def words(rows):
    "One field of one candle is no number."
    return [*rows[:5], [*rows[5][:2], "n/a", *rows[5][3:]], *rows[6:]]


def stall(handler):
    "Send half a body and then nothing."
    content = json.dumps(envelope(candles(50))).encode()
    handler.send_response(200); handler.send_header("Content-Length", str(len(content))); handler.end_headers()
    handler.wfile.write(content[:100]); handler.wfile.flush(); silence(handler)


def busy(code, message, status=200, headers=None): return status, envelope([], HALF_PAST, code, message), headers or {}


FAULTS = { # What is sent before honest answers; the middle ones come between two pages
    "10006 then good": [busy(10006, "Too many visits.")],
    "10006 with HTTP 429 and a time to come back": [busy(10006, "Too many visits!", 429, {"X-Bapi-Limit": "120", "X-Bapi-Limit-Reset-Timestamp": str(HALF_PAST + 50)})],
    "10016 twice then good": 2*[busy(10016, "Request timeout, please try again later")],
    "500 seven times then good": 7*[(500, "Internal Server Error")],
    "500 twice then good": 2*[(500, "Internal Server Error")],
    "502 in the middle": [page(FIRST), (502, "<html>bad gateway</html>")],
    "a timeout": [silence],
    "a timeout in the middle": [page(FIRST), silence],
    "a body cut in the middle": [cut(envelope(candles(1000), HALF_PAST))],
    "a body cut and its length not announced": [cut(envelope(candles(1000), HALF_PAST), announced=False)],
    "a connection reset": [reset],
    "a connection reset in the middle": [page(FIRST), reset],
    "HTML with status 200": [(200, "<html>maintenance</html>")],
    "a page arrives twice": [page(FIRST), page(FIRST)],
    "pages overlap": [page(slice(0, 1000)), page(slice(600, 1501))],
    "candles out of order": [(200, envelope([*candles(1000)[::2], *candles(1000)[1::2]], HALF_PAST))],
    "candles twice in a page": [(200, envelope(candles(1000)[:700] + candles(1000)[300:], HALF_PAST))],
    "pages out of order": [page(slice(0, 500)), page(slice(1000, 1501)), page(slice(500, 1000))],
    "an empty page in the middle": [page(FIRST), page(slice(0, 0))],
    "an empty page first": [page(slice(0, 0))],
    "half a page": [page(slice(0, 400))],
    "half a body, then silence": [page(FIRST), stall],
    "a stale page first": [page(slice(700, 1501))],
    "a stale page in the middle": [page(FIRST), page(slice(1300, 1501))],
    "a clock that says nonsense": [(200, envelope(candles(1501)[FIRST], 10**30))],
    "seconds to wait, in hours": [(503, "later", {"Retry-After": "7200"}), busy(10006, "Too many visits!", 429, {"Retry-After": "7200", "X-Bapi-Limit-Reset-Timestamp": "²"})],
    "every second candle of a page": [page(slice(0, 1000, 2))],
    "a string that is no number": [(200, envelope(words(candles(1000)), HALF_PAST))],
    "an answer without a clock": [page(FIRST, now=None)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_lose_no_candle(service, monkeypatch, fault):
    if "timeout" in fault or "silence" in fault: monkeypatch.setattr(metavol.data, "BYBIT_TIMEOUT", (.3, .3))
    service.rows, service.replies = candles(3000), list(FAULTS[fault])
    bars = load_bybit_data("BTCUSDT", limit=1500 if "clock" not in fault else 1499, base_url=service.url)
    expected = BITCOIN.iloc[-len(bars) - 1:-1]
    assert not service.replies and len(bars) in (1499, 1500)
    np.testing.assert_array_equal(bars, expected if "clock" not in fault else BITCOIN.iloc[-len(bars):])
    assert bars.attrs["gaps"] == {}


def test_the_service_says_when_to_come_back(service):
    service.rows = candles(50)
    service.replies = [busy(10006, "Too many visits!", 429, {"X-Bapi-Limit-Reset-Timestamp": str(HALF_PAST + 300)})]
    load_bybit_data("BTCUSDT", limit=20, base_url=service.url)
    assert service.moments[1] - service.moments[0] >= .3


@pytest.mark.parametrize("ahead", ["1h", "-1h"])
def test_a_wrong_clock_here_changes_nothing(service, monkeypatch, ahead):
    service.rows = candles(100)
    monkeypatch.setattr(pd.Timestamp, "now", lambda tz=None: pd.Timestamp(HALF_PAST, unit="ms", tz="UTC") + pd.Timedelta(ahead))
    bars = load_bybit_data("BTCUSDT", limit=50, base_url=service.url)
    np.testing.assert_array_equal(bars, BITCOIN.iloc[-51:-1])


def test_a_candle_that_closes_during_paging_stays_out(service):
    service.rows = candles(2000)
    service.replies = [page(FIRST), page(SECOND, now=HALF_PAST + 3_600_000)]
    assert load_bybit_data("BTCUSDT", limit=1500, base_url=service.url).index[-1] == BITCOIN.index[-2]


def test_an_outage_is_written_down_and_not_filled(service):
    rows = candles(600); hole = slice(100, 103)
    service.rows = [row for i, row in enumerate(rows) if not hole.start <= i < hole.stop]
    bars = load_bybit_data("BTCUSDT", limit=None, start=str(BITCOIN.index[-600]), end=str(BITCOIN.index[-2]), base_url=service.url)
    assert len(bars) == 596 and list(bars.attrs["gaps"].values()) == [3]
    assert list(bars.attrs["gaps"]) == [f"{BITCOIN.index[-103]:%Y-%m-%d %H:%M}"]


def test_an_outage_longer_than_a_page_does_not_end_the_history(service):
    "A service that answers by windows of time gives an empty page there."
    rows = candles(4200); service.rows = rows
    kept = [row for i, row in enumerate(rows) if not 1000 <= i < 2300]
    def by_windows(query):
        end = query.get("end", 10**15); begin = min(end, int(rows[0][0])) - (query["limit"] - 1)*3_600_000
        return 200, envelope([row for row in kept if begin <= int(row[0]) <= end], HALF_PAST)
    service.reply = by_windows
    bars = load_bybit_data("BTCUSDT", limit=None, start=str(BITCOIN.index[-4000]), base_url=service.url)
    assert bars.index[0] == BITCOIN.index[-4000] and len(bars) == 4000 - 1300 - 1
    assert list(bars.attrs["gaps"].values()) == [4, 1302] # The sample lacks six hours of its own


def test_pages_lost_within_a_hole_longer_than_a_page_are_found(service):
    "The second question is answered with what lies three pages further back."
    rows = candles(8001); service.rows = rows
    service.replies = [(200, envelope(rows[:1000], HALF_PAST)), (200, envelope(rows[3000:4000], HALF_PAST)), (200, envelope(rows[3000:4000], HALF_PAST))]
    bars = load_bybit_data("BTCUSDT", limit=7999, base_url=service.url)
    np.testing.assert_array_equal(bars, BITCOIN.iloc[-8000:-1])


@pytest.mark.parametrize("start,first", [("2019-09-01T00:00+09:00", "2019-08-31 15:00"), (pd.Timestamp("2019-09-01", tz="Asia/Tokyo"), "2019-08-31 15:00"), ("2019-09-01", "2019-09-01 00:00")])
def test_a_midnight_with_a_zone_is_a_moment(service, start, first):
    service.rows = candles(2000)
    assert load_bybit_data("BTCUSDT", limit=None, start=start, base_url=service.url).index[0] == pd.Timestamp(first, tz="UTC")


def test_two_pages_without_the_open_candle(service):
    service.rows = candles(2000)
    bars = load_bybit_data("btcusdt", interval="60", limit=1400, base_url=service.url)
    assert [q["limit"] for q in service.asked] == [1000, 401] and service.asked[0]["symbol"] == "BTCUSDT"
    np.testing.assert_array_equal(bars, BITCOIN.iloc[-1401:-1])
    assert bars.attrs == dict(symbol="BTCUSDT", source="Bybit v5, spot", market="crypto", bar="1 hour", interval="60", adjustment="none", gaps={}, sent="2019-09-30T23:30:00+00:00")
    check_bars(bars)


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_candles_lost_at_the_newest_edge_are_asked_for_again(service, lost):
    service.rows = candles(2000)
    service.replies = [(200, envelope(candles(2000)[lost + 1:1000], HALF_PAST))]
    np.testing.assert_array_equal(load_bybit_data("BTCUSDT", limit=1500, base_url=service.url), BITCOIN.iloc[-1501:-1])


@pytest.mark.parametrize("limit", [1, 2, 999, 1000, 1001, 2500])
def test_any_limit(service, limit):
    service.rows = candles(2600)
    np.testing.assert_array_equal(load_bybit_data("BTCUSDT", limit=limit, base_url=service.url), BITCOIN.iloc[-limit - 1:-1])


def test_a_young_listing_gives_what_there_is(service):
    service.rows = candles(30)
    assert len(load_bybit_data("BTCUSDT", base_url=service.url)) == 29


def test_a_range_is_complete_or_refused(service):
    service.rows = candles(3000)
    bars = load_bybit_data("BTCUSDT", limit=None, start="2019-07-01", end="2019-08-31 23:00", base_url=service.url)
    expected = BITCOIN.loc["2019-07-01":"2019-08-31 23:00"]
    np.testing.assert_array_equal(bars, expected); assert bars.index.equals(expected.index)
    with pytest.raises(BarsError, match="more than 1000 candles lie between .* use limit=None"):
        load_bybit_data("BTCUSDT", start="2019-07-01", end="2019-08-31 23:00", base_url=service.url)


@pytest.mark.parametrize("interval", BYBIT_BARS)
def test_every_interval(service, interval):
    starts = pd.date_range("2019-01-01" if interval != "W" else "2018-12-31", periods=31, freq=BYBIT_BARS[interval], tz="UTC")
    service.rows = [[str(int(t.timestamp()*1000)), "1", "2", "1", "2", "5", "9"] for t in starts[::-1]]
    service.now = int(starts[-1].timestamp()*1000) + 30_000
    bars = load_bybit_data("BTCUSDT", interval=interval, limit=20, base_url=service.url)
    assert bars.index.equals(starts[-21:-1].rename("time").as_unit("us")) and bars.attrs["gaps"] == {}
    assert len(service.asked) == 1 and service.asked[0]["interval"] == interval


@pytest.mark.parametrize("category", ["spot", "linear", "inverse"])
def test_every_category(service, category):
    service.rows = candles(30)
    assert load_bybit_data("BTCUSD", category=category, limit=9, base_url=service.url).attrs["source"] == f"Bybit v5, {category}"
    assert service.asked[0]["category"] == category


def test_months_are_counted_by_the_calendar():
    months = pd.DatetimeIndex(["2024-01-01", "2024-02-01", "2024-05-01"], tz="UTC")
    assert missing_candles(months, BYBIT_BARS["M"]) == {"2024-03-01 00:00": 2}


REFUSALS = {
    "10001": ([busy(10001, "params error: symbol invalid")], SymbolError, "code 10001: params error: symbol invalid; check the symbol"),
    "403": ([(403, "<html><body>403 Forbidden</body></html>")], UnreachableError, r"HTTP 403\): more than 600 requests in 5 seconds, or a country"),
    "10006": (3*[busy(10006, "Too many visits!", 429)], BusyError, "code 10006: Too many visits!; wait a minute"),
    "10016": (3*[busy(10016, "Request timeout")], BusyError, "code 10016"),
    "unknown symbol": (3*[(200, envelope([], 1))], NoBarsError, "no candles; the symbol is unknown"),
    "html": (3*[(200, "<html>hello</html>")], BusyError, "no answer in the service's form, but '<html>hello"),
    "404": ([(404, "[]")], ServiceError, "HTTP 404"),
    "nolist": ([(200, dict(retCode=0, retMsg="OK", result={}))], ServiceError, "without a list"),
    "502": (12*[(502, "bad gateway")], BusyError, "HTTP 502"),
    "silence": (4*[silence], UnreachableError, "cannot be reached"),
    "half a body, then silence": (3*[stall], BusyError, "cut on its way"),
    "no object": ([(200, dict(retCode=0, result=[1], time=HALF_PAST))], ServiceError, "without a list"),
    "a code that is no number": (3*[(200, dict(retCode=[1], result={}))], BusyError, "no answer in the service's form"),
    "a candle of 1970": (3*[(200, envelope([["0", "1", "2", "1", "2", "5", "9"]], HALF_PAST))], BusyError, "no recent date"),
    "another code": ([busy(10029, "symbol is not whitelisted")], ServiceError, "code 10029"),
    "cut": (3*[cut(envelope(candles(50)))], BusyError, "cut on its way"),
    "words": (3*[(200, envelope([["1569880800000", "1", "2", "1", "oops", "5", "9"]], HALF_PAST))], BusyError, "no number"),
    "five": ([(200, envelope([["1569880800000", "1", "2", "1", "2"]], HALF_PAST))], BarsError, "needed seven fields"),
    "nan": ([(200, envelope([["1569880800000", "1", "nan", "1", "2", "5", "9"]], HALF_PAST))], BarsError, "high is missing or infinite"),
    "inverted": ([(200, envelope([["1569880800000", "1", "1", "2", "1", "5", "9"]], HALF_PAST))], BarsError, "low is above"),
    "open": ([(200, envelope(candles(1), HALF_PAST))], NoBarsError, "no closed candle"),
    "the same page for ever": (4*[page(FIRST)], BusyError, "repeats a page"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_explained(service, monkeypatch, name):
    if "silence" in name: monkeypatch.setattr(metavol.data, "BYBIT_TIMEOUT", (.3, .3))
    service.replies, kind, says = REFUSALS[name]; service.replies = list(service.replies)
    with pytest.raises(BarsError, match=says) as caught: load_bybit_data("BTCUSDT", limit=1200, base_url=service.url)
    assert caught.type is kind and "BTCUSDT" in str(caught.value)


def test_questions_are_checked_before_asking(service):
    for options, says in ((dict(interval="45"), "interval='45' is not offered"), (dict(category="option"), "category='option'"), (dict(limit=0), "limit=0"),
                          (dict(limit=1.5), "limit=1.5"), (dict(limit=None), "needs a start"), (dict(start="2024-02-01", end="2024-01-01"), "lies after the end"),
                          (dict(start="soon"), "no date")):
        with pytest.raises(ValueError, match=says): load_bybit_data("BTCUSDT", base_url=service.url, **options)
    assert not service.asked


def test_nobody_there():
    with pytest.raises(ServiceError, match="cannot be reached"): load_bybit_data("BTCUSDT", base_url="http://127.0.0.1:9")


# One budget

def spend_often(ledger):
    stamps = []
    for _ in range(20): spend(Path(ledger), (20, .4)); stamps.append(time())
    return stamps


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=FORKS)], ids=["threads", "processes"])
def test_threads_and_processes_share_one_budget(tmp_path, pool):
    with pool(3) as workers: stamps = list(workers.map(spend_often, 3*[str(tmp_path/"requests")]))
    stamps = np.sort(np.concatenate(stamps))
    assert len(stamps) == 60 and stamps[-1] - stamps[0] > .7 # Twenty at once, twenty after .4 seconds, twenty after .8


def test_many_pairs_at_once_stay_within_the_budget(service, monkeypatch, tmp_path):
    monkeypatch.setattr(metavol.data, "BYBIT_BUDGET", (20, .5)); monkeypatch.setattr(metavol.data.tempfile, "gettempdir", lambda: str(tmp_path))
    pairs = [f"COIN{i}USDT" for i in range(20)]
    service.rows = {pair: candles(2600) for pair in pairs}
    with ThreadPoolExecutor(10) as pool: loaded = list(pool.map(lambda pair: load_bybit_data(pair, limit=2500, base_url=service.url), pairs))
    assert len(service.moments) == 80 and np.ptp(service.moments) > 1.3 # Twenty at once, and after .5, 1 and 1.5 seconds
    for bars in loaded: np.testing.assert_array_equal(bars, BITCOIN.iloc[-2501:-1])


def test_a_place_where_nothing_can_be_counted_is_named(service, monkeypatch, tmp_path):
    monkeypatch.setattr(metavol.data.tempfile, "gettempdir", lambda: str(tmp_path/"nowhere"))
    (tmp_path/"nowhere").write_text("a file")
    with pytest.raises(MetavolError, match="cannot be counted there .* TMPDIR"): load_bybit_data("BTCUSDT", base_url=service.url)


def test_a_clock_set_back_or_a_damaged_ledger_stops_nobody(tmp_path):
    ledger = tmp_path/"requests"
    np.full(50, time() + 3600).tofile(ledger); spend(ledger, (5, 60.))
    ledger.write_bytes(b"torn"); spend(ledger, (5, 60.))
    assert len(np.fromfile(ledger)) == 1


# Recorded answers

def bybit_example(folder, name): return (folder/"bybit_kline_examples"/name).read_text()


@pytest.mark.parametrize("coin", ["BTCUSDT", "SOLUSDT"])
def test_recorded_pages(service, market_data, coin):
    service.replies = [(200, bybit_example(market_data, f"built_linear_{coin}_60_page{page}.json")) for page in (1, 2)]
    bars = load_bybit_data(coin, interval="60", limit=1500, category="linear", base_url=service.url)
    assert len(bars) == 1400 and (bars.index.diff()[1:] == pd.Timedelta("1h")).all() and bars.attrs["gaps"] == {}


@pytest.mark.parametrize("name,status,says", [
    ("error_10001_symbol_invalid.json", 200, "symbol invalid"), ("error_10001_symbol_invalid_listresult.json", 200, "symbol invalid"),
    ("error_10001_not_supported_symbols.json", 200, "Not supported symbols"), ("ok_empty_list.json", 200, "no candles"),
    ("http_403_ip_banned.html", 403, "HTTP 403"), ("ok_docs_server_time.json", 200, "without a list"),
    ("ok_docs_mark_price_kline.json", 200, "needed seven fields"), ("ok_docs_index_price_kline.json", 200, "needed seven fields"),
    ("ok_nautilus_fixture_linear_BTCUSDT.json", 200, "no closed candle")])
def test_recorded_refusals(service, market_data, name, status, says):
    service.replies = [(status, bybit_example(market_data, name))]
    with pytest.raises(BarsError, match=says): load_bybit_data("BTCUSDT", base_url=service.url)


@pytest.mark.parametrize("name,status", [("error_10006_too_many_visits.json", 200), ("error_10006_with_limit_headers.json", 429), ("error_10016_server_error.json", 200)])
def test_recorded_busy_answers(service, market_data, name, status):
    index = json.loads(bybit_example(market_data, "INDEX.json"))
    service.rows, service.replies = candles(50), [(status, bybit_example(market_data, name), index[name].get("headers", {}))]
    assert len(load_bybit_data("BTCUSDT", limit=20, base_url=service.url)) == 20


def test_recorded_documentation_example(market_data):
    bars = bars_from_bybit(json.loads(bybit_example(market_data, "ok_docs_inverse_BTCUSD_60.json"))["result"]["list"], "BTCUSD", category="inverse")
    assert bars.iloc[-1].tolist() == [17071, 17073, 17027, 17055.5, 268611] and str(bars.index[-1]) == "2022-12-09 18:00:00+00:00"
