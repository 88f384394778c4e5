"""Lists of assets: the live ones from a local server, the dated copies when there is none, and what is never taken for a list."""
import hashlib
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest

import metavol.data
import metavol.download
from metavol.bars import BarsError, MetavolError
from metavol.data import ServiceError
from metavol.download import STABLE_COINS, sp500_members, sp500_symbols, top_pairs

COPIES = Path(metavol.data.__file__).parent/"data"


@pytest.fixture
def lists(monkeypatch):
    "A server that sends (status, text) for any path and remembers what was asked."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path); status, text = server.reply
            self.send_response(status); self.end_headers(); self.wfile.write(text.encode())
        def log_message(self, *args): pass
    server = HTTPServer(("127.0.0.1", 0), Handler); server.asked, server.reply = [], (404, "404: Not Found")
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(metavol.download, "SP500_URL", f"{server.url}/constituents.csv")
    for name in ("BYBIT_WAIT", "BYBIT_WAITS"): monkeypatch.setattr(metavol.data, name, 0.001, raising=False)
    yield server
    server.shutdown(); server.server_close()


def members(columns="Symbol,Security,GICS Sector", count=503):
    letters = "ABCDEFGHIJ"
    names = ["BRK.B", "BF.B"] + [f"X{a}{b}{c}" for a in letters for b in letters for c in letters][:count - 2]
    return "\n".join([columns] + [f'{name},"Name, Inc.",None' for name in names])


def envelope(rows, code=0, message="OK"): return json.dumps(dict(retCode=code, retMsg=message, result=dict(category="spot", list=rows), retExtInfo={}, time=1692163162284))


def test_live_members_in_yahoos_spelling(lists):
    lists.reply = (200, members())
    found = sp500_symbols()
    assert len(found) == 503 and found[:2] == ["BRK-B", "BF-B"] and lists.asked == ["/constituents.csv"]
    lists.reply = (200, members("Symbol,Name,Sector"))
    assert sp500_symbols() == found


@pytest.mark.parametrize("reply", [(404, "404: Not Found"), (500, ""), (200, ""), (200, "<html><body>Sign in</body></html>"), (200, members(count=40)),
                                   (200, members("Ticker,Name,Sector")), (200, members() + "\nBRK.B,twice,None"), (200, members() + "\n<p>,x,y"), (200, members() + '\n"open')],
                         ids=["404", "500", "empty", "html", "short", "column", "twice", "symbol", "cut"])
def test_the_copy_of_members_steps_in_and_says_so(lists, reply):
    lists.reply = reply
    with pytest.warns(UserWarning, match="copy of 2026-03-04") as said: found = sp500_symbols()
    assert len(said) == 1 and len(found) == len(set(found)) == 503 and {"AAPL", "MSFT", "BRK-B", "BF-B"} <= set(found) and "." not in "".join(found)


def test_copies_are_the_ones_described():
    sources = (COPIES/"LISTS.md").read_text()
    for name in ("sp500.csv", "top_pairs.csv"): assert hashlib.sha256((COPIES/name).read_bytes()).hexdigest() in sources
    pairs = pd.read_csv(COPIES/"top_pairs.csv")
    assert pairs.turnover24h.is_monotonic_decreasing and pairs.symbol.str.endswith("USDT").all() and len(pairs) == 50
    assert not set(pairs.symbol.str.removesuffix("USDT")) & set(STABLE_COINS)


def test_live_pairs_by_turnover(lists):
    rows = [("ETHUSDT", "5.5"), ("USDCUSDT", "99"), ("BTCUSDT", "10"), ("BTCUSDC", "50"), ("BTCUSDT-26DEC25", "70"), ("USDEUSDT", "8"), ("SOLUSDT", "6"), ("DEADUSDT", "0")]
    lists.reply = (200, envelope([dict(symbol=s, turnover24h=t, lastPrice="1") for s, t in rows]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert top_pairs(3, base_url=lists.url) == ["BTCUSDT", "SOLUSDT", "ETHUSDT"] and top_pairs(base_url=lists.url + "/", category="linear")[-1] == "DEADUSDT"
    assert lists.asked == ["/v5/market/tickers?category=spot", "/v5/market/tickers?category=linear"]


@pytest.mark.parametrize("reply", [(403, "<html>forbidden</html>"), (404, "[]"), (200, envelope([])), (200, envelope([dict(symbol="BTCUSDT")])), (200, envelope(["BTCUSDT"])),
                                   (200, envelope([], 10006, "Too many visits!"))], ids=["403", "404", "empty", "fields", "words", "busy"])
def test_the_copy_of_pairs_steps_in_and_says_so(lists, reply):
    lists.reply = reply
    with pytest.warns(UserWarning, match="copy of 2023-08-16") as said: found = top_pairs(5, base_url=lists.url)
    assert len(said) == 1 and found == ["BTCUSDT", "ETHUSDT", "XRPUSDT", "SEIUSDT", "SHIBUSDT"]
    with pytest.raises(ServiceError): top_pairs(5, "linear", base_url=lists.url)


def test_bad_questions(lists):
    for bad in (0, -1, 2.5, "ten", None, True):
        with pytest.raises(MetavolError, match="count="): top_pairs(bad, base_url=lists.url)
    with pytest.raises(BarsError, match="choose spot or linear"): top_pairs(category="option", base_url=lists.url)
    with pytest.raises(BarsError, match="no list of members"): sp500_members("")
    assert not lists.asked


def test_survivorship_is_said_where_the_lists_are_offered():
    for function in (sp500_symbols, top_pairs): assert "survivors" in function.__doc__
