"Stand-ins for Yahoo and Bybit that answer in the recorded form of the real ones."
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep, time
from urllib.parse import parse_qs, urlsplit

import pandas as pd

from metavol.data import load_sample

HALF_PAST = int(pd.Timestamp("2019-09-30 23:30", tz="UTC").timestamp()*1000)


def yahoo_frame(bars):
    "Bars by (symbol, time) in the form of `yfinance.download`: columns (Price, Ticker), naive days in seconds named Date."
    wide = bars.rename(columns=str.title).unstack("symbol").tz_localize(None).sort_index(axis=1)
    return wide.set_axis(wide.index.as_unit("s")).rename_axis(index="Date", columns=["Price", "Ticker"])


def yahoo_history(bars):
    "Bars of one asset by time in the form of `yfinance.Ticker(...).history`: midnights of New York named Date."
    times = bars.index.tz_localize(None).tz_localize("America/New_York").as_unit("s")
    return bars.rename(columns=str.title).set_axis(times).rename_axis("Date")[["Open", "High", "Low", "Close", "Volume"]].astype({"Volume": "int64"})


def envelope(rows, now=None, code=0, message="OK"):
    return dict(retCode=code, retMsg=message, result=dict(category="spot", symbol="BTCUSDT", list=rows), retExtInfo={}, time=now)


def candles(count, last="2019-09-30 23:00", coin="BTC"):
    "Newest first, seven strings each, from the sample."
    bars = load_sample("crypto").loc[coin].loc[:last].iloc[-count:]
    return [[str(int(t.timestamp()*1000)), *map(str, bar), "1"] for t, *bar in bars.itertuples()][::-1]


class Bybit:
    """An HTTP server that gives the prepared replies in turn, then candles of its own (a list, or one a symbol), in Bybit's form.

    A reply is (status, body), (status, body, headers), or a function that does what it likes with the handler."""
    def __init__(self): self.replies, self.asked, self.rows, self.now, self.moments = [], [], [], HALF_PAST, []

    def reply(self, query):
        if self.replies: return self.replies.pop(0)
        rows = self.rows.get(query["symbol"], []) if isinstance(self.rows, dict) else self.rows
        rows = [r for r in rows if query.get("start", 0) <= int(r[0]) <= query.get("end", 10**15)][:query.get("limit")]
        return 200, envelope(rows, self.now)

    def start(self):
        service = self
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                query = {k: int(v[0]) if k in ("start", "end", "limit") else v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
                service.asked.append(query); service.moments.append(time()); reply = service.reply(query)
                if callable(reply): return reply(self)
                status, body, *headers = reply
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items(): self.send_header(name, value)
                self.end_headers(); self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())
            def log_message(self, *args): pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def stop(self): self.server.shutdown(); self.server.server_close()


def silence(handler): "Never answer in time."; sleep(.6)


def reset(handler):
    "Close the connection the hard way."
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); handler.connection.close()


def cut(body, keep=.5, announced=True):
    "Send only the first part of a body; its length was announced, or not."
    def send(handler):
        content = json.dumps(body).encode()
        handler.send_response(200)
        if announced: handler.send_header("Content-Length", str(len(content)))
        handler.end_headers(); handler.wfile.write(content[:int(keep*len(content))])
    return send
