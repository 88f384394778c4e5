"""A local Yahoo: the documented chart form over HTTP, filled from the embedded sample, and yfinance's own code sent to it.

The envelope is Yahoo's (/v8/finance/chart/SYMBOL, its 404 and its 429); the numbers are the sample's: no live answer is recorded here.
"""
import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd

from metavol.data import load_sample

NEW_YORK = "America/New_York"
NOT_FOUND = {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"}}}


def seconds(times): return times.as_unit("s").asi8.tolist()


def chart(bars, interval="1d", events=None, symbol="AAPL", zone=NEW_YORK, kind="EQUITY"):
    "Bars indexed by time with a zone, columns open high low close volume and perhaps adj_close, as one answer of the chart service."
    def column(name): return [None if np.isnan(x) else x for x in bars[name].tolist()]
    days = pd.DatetimeIndex(sorted(set(bars.index.tz_convert(zone).normalize())))
    opening, length = ("9h30min", 23400) if kind == "EQUITY" else ("0h", 86400)
    hours = [[dict(timezone="EST", gmtoffset=-18000, start=s, end=s + length)] for s in seconds(days + pd.Timedelta(opening))]
    meta = dict(currency="USD", symbol=symbol, exchangeName="NMS", instrumentType=kind, exchangeTimezoneName=zone, timezone="EST", gmtoffset=-18000,
                priceHint=2, dataGranularity=interval, range="", validRanges=["1d", "5d", "1mo", "max"], tradingPeriods=hours)
    quote = {name: column(name) for name in ("open", "high", "low", "close", "volume")}
    indicators = dict(quote=[quote if len(bars) else {}])
    if interval[-1] not in "mh": indicators["adjclose"] = [dict(adjclose=column("adj_close" if "adj_close" in bars else "close"))]
    result = dict(meta=meta, indicators=indicators, **({"timestamp": seconds(bars.index)} if len(bars) else {}), **({"events": events} if events else {}))
    return {"chart": {"result": [result], "error": None}}


class Yahoo:
    "An HTTP server with bars by symbol; what stands in `trouble[symbol]` is sent first, one (status, body) for each question about bars."
    def __init__(self):
        self.bars, self.events, self.trouble, self.asked, self.paths, self.stall = {}, {}, {}, [], [], 0.

    def sample(self, *symbols, under=None):
        "Offer daily bars of the sample, stamped at the New York opening as Yahoo does, under their own tickers or another."
        for symbol in symbols:
            bars = load_sample("stocks").loc[symbol]
            bars.index = bars.index.tz_localize(None).tz_localize(NEW_YORK) + pd.Timedelta("9h30min")
            self.bars[under or symbol] = bars
        return self

    def reply(self, symbol, query):
        zone = dict(symbol=symbol, zone="UTC", kind="CRYPTOCURRENCY") if symbol.endswith("-USD") else dict(symbol=symbol)
        if "period1" not in query: # the question for the time zone, which comes first
            meta = dict(symbol=symbol, exchangeTimezoneName=zone.get("zone", NEW_YORK))
            return (200, {"chart": {"result": [{"meta": meta}], "error": None}}) if symbol in self.bars else (404, NOT_FOUND)
        self.asked.append((symbol, query["interval"][0]))
        if self.trouble.get(symbol): return self.trouble[symbol].pop(0)
        if symbol not in self.bars: return 404, NOT_FOUND
        bars = self.bars[symbol]
        first, last = (pd.Timestamp(int(query[key][0]), unit="s", tz="UTC") for key in ("period1", "period2"))
        return 200, chart(bars[(bars.index >= first) & (bars.index < last)], query["interval"][0], self.events.get(symbol), **zone)

    def times_asked(self): return Counter(symbol for symbol, _ in self.asked)

    def start(self):
        service = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def do_GET(self):
                url = urlsplit(self.path); service.paths.append(url.path)
                if url.path.startswith("/v8/finance/chart/"):
                    status, body = service.reply(unquote(url.path.rsplit("/", 1)[1]), parse_qs(url.query))
                elif url.path == "/v1/test/getcrumb": status, body = 200, "crumb"
                elif url.path.startswith(("/v10/", "/v7/")): status, body = 404, {"quoteSummary": {"result": None, "error": {"code": "Not Found"}}}
                else: status, body = 200, ""
                if body == "stall": time.sleep(service.stall); body = ""
                if body == "cut": self.close_connection = True; return self.connection.shutdown(socket.SHUT_RDWR)
                body = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
            def log_message(self, *args): pass
        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64
            def handle_error(self, *args): pass # a caller that has hung up
        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def stop(self): self.server.shutdown(); self.server.server_close()


def point_yfinance_at(service, monkeypatch, folder):
    "Send every request that yfinance makes to any host of yahoo.com to the service, and keep its caches in a folder; other hosts are an error."
    from curl_cffi.requests import Session
    from yfinance import base, cache, data
    request = Session.request
    def redirected(self, method, url, *args, **options):
        parts = urlsplit(url)
        assert parts.hostname.endswith("yahoo.com"), f"a request to {url} would leave this machine"
        return request(self, method, f"{service.url}{parts.path}?{parts.query}".rstrip("?"), *args, **options)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1"); monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Session, "request", redirected)
    monkeypatch.setattr(data.SingletonMeta, "_instances", {}) # no cookie, crumb or session of an earlier test
    for manager in (cache._TzCacheManager, cache._CookieCacheManager, cache._ISINCacheManager):
        for name in [name for name in vars(manager) if name.startswith("_") and name.endswith("_cache")]: monkeypatch.setattr(manager, name, None)
    cache.set_cache_location(str(folder))
    monkeypatch.setattr(base, "_tz_info_fetch_ctr", 0)
    data.YfData.cache_get.cache_clear()
    yahoo = data.YfData(); yahoo._cookie, yahoo._crumb = True, "crumb" # else it would fetch both again for every question
