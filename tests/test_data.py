"""Bad files, real answers, and the embedded sample: what chapter 04 promises, from the outside."""
import gzip
import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import metavol.data
from metavol.bars import BAR_COLUMNS, BarsError, MetavolError, by_asset
from metavol.data import ServiceError, SymbolError, bars_from_yahoo, load_sample, load_stock_data
from metavol.files import data_hash, read_bars, write_bars
from services import yahoo_frame, yahoo_history

PACKAGE = Path(metavol.data.__file__).parent/"data"
HEADER = "symbol,date,open,high,low,close,volume\n"
DAY = "A,2024-01-31,1,2,1,2,5\n"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe"


# The sample

def test_sample_files_are_the_ones_described():
    text = (PACKAGE/"SOURCES.md").read_text()
    for name in ("stocks_daily.parquet", "crypto_hourly.parquet"):
        assert hashlib.sha256((PACKAGE/name).read_bytes()).hexdigest() in text
    assert sum((PACKAGE/name).stat().st_size for name in os.listdir(PACKAGE) if name.endswith("daily.parquet") or name.endswith("hourly.parquet")) < 1.9e6
    assert "Permission is hereby granted, free of charge" in text and "public domain" in text


@pytest.mark.parametrize("name", ["stocks", "crypto"])
def test_sample_has_the_counts_and_dates_of_its_sources(name):
    rows = re.findall(r"^\| ([A-Z]{2,4}) \| (\d+) \| ([\d: -]+?) \| ([\d: -]+?) \|", (PACKAGE/"SOURCES.md").read_text(), flags=re.M)
    stated = {symbol: (int(count), pd.Timestamp(first, tz="UTC"), pd.Timestamp(last, tz="UTC")) for symbol, count, first, last in rows}
    bars = load_sample(name)
    found = {symbol: (len(frame), frame.index[0], frame.index[-1]) for symbol, frame in by_asset(bars)}
    assert found.items() <= stated.items() and len(found) == 5


def test_sample_says_what_it_is():
    stocks, crypto = load_sample("stocks"), load_sample("crypto")
    assert (stocks.attrs["market"], stocks.attrs["bar"], stocks.attrs["licence"]) == ("us_equity", "1 day", "public domain")
    assert (crypto.attrs["market"], crypto.attrs["bar"], crypto.attrs["licence"]) == ("crypto", "1 hour", "MIT")
    assert stocks.index.names == ["symbol", "time"] and list(stocks.columns) == list(BAR_COLUMNS)
    assert str(stocks.loc["FB"].index[0].date()) == "2012-05-18" and len(stocks.loc["FB"]) == 196


def test_sample_stocks_are_adjusted_for_splits():
    raw = pd.read_parquet(PACKAGE/"stocks_daily.parquet").set_index(["symbol", "time"]).loc["AAPL"]
    split = pd.Timestamp("2005-02-28", tz="UTC")
    assert np.log(raw.close).diff().loc[split] < -0.6
    assert abs(np.log(load_sample("stocks").loc["AAPL"].close).diff().loc[split]) < 0.1
    np.testing.assert_allclose(load_sample("stocks").loc["AAPL"].close, raw.adj_close, rtol=1e-12)


def test_unknown_sample_lists_the_choices():
    with pytest.raises(MetavolError, match="'stocks', 'crypto'"): load_sample("bonds")


# Files

BAD = [
    ("absent.csv", None, "no such file"),
    ("bars.xlsx", b"PK\x03\x04", "save the table as one of these"),
    ("bars", b"x", "save the table as one of these"),
    ("empty.csv", b"", "file is empty"),
    ("empty.parquet", b"", "file is empty"),
    ("picture.csv", PNG, "does not read as csv"),
    ("picture.parquet", PNG, "does not read as parquet"),
    ("picture.csv.gz", PNG, "does not read as csv.gz"),
    ("cut.csv.gz", gzip.compress((HEADER + 500*DAY).encode())[:-12], "does not read as csv.gz"),
    ("header.csv", HEADER, "no rows"),
    ("long.csv", HEADER + DAY.strip() + ",9\n", "does not read as csv"),
    ("late.csv", HEADER + DAY + DAY.strip() + ",9\n", "does not read as csv"),
    ("columns.csv", "symbol,date,open,high,low,close\nA,2024-01-31,1,2,1,2\n", r"no column volume; the columns are symbol, date.*Needed symbol, time"),
    ("notime.csv", "symbol,open,high,low,close,volume\nA,1,2,1,2,3\n", r"no column time \(or date or timestamp\)"),
    ("clocks.csv", "symbol,date,time,open,high,low,close,volume\nA,2024-01-31,10:00,1,2,1,2,3\n", "both look like the time"),
    ("semicolon.csv", (HEADER + DAY).replace(",", ";"), "the columns are symbol;date"),
    ("yahoo.csv", "Price,Close,High,Low,Open,Volume\nTicker,A,A,A,A,A\nDate,,,,,\n2024-01-31,1,1,1,1,1\n", "bars_from_yahoo"),
    ("american.csv", HEADER + DAY.replace("2024-01-31", "01/31/2024"), "row 1 has the time '01/31/2024'"),
    ("blank.csv", HEADER + DAY + DAY.replace("2024-01-31", ""), "row 2 has the time ''"),
    ("epoch.csv", HEADER + DAY.replace("2024-01-31", "1706659200000"), "which is no date"),
    ("nameless.csv", HEADER + DAY + DAY[1:], "row 2 has no symbol"),
    ("words.csv", HEADER + DAY.replace(",5", ",many"), "not numeric"),
    ("hole.csv", HEADER + DAY.replace("2,1,2", "2,,2"), "A at 2024-01-31 00:00: low is missing"),
    ("nan.csv", HEADER + DAY.replace("2,1,2", "2,1,NaN"), "close is missing"),
    ("inf.csv", HEADER + DAY.replace("2,1,2", "inf,1,2"), "high is missing or infinite"),
    ("zero.csv", HEADER + DAY.replace("1,2,1,2", "1,2,0,2"), "zero or negative"),
    ("oil.csv", HEADER + DAY.replace("1,2,1,2", "18,18,-40,-37.63"), "zero or negative"),
    ("inverted.csv", HEADER + DAY.replace("1,2,1,2", "1,1,2,2"), "high is below"),
    ("volume.csv", HEADER + DAY.replace(",5", ",-5"), "negative"),
    ("twice.csv", HEADER + 2*DAY, "stands twice"),
    ("backwards.csv", HEADER + DAY + DAY.replace("01-31", "01-30"), "earlier than the one before"),
    ("adjusted.csv", HEADER.strip() + ",adj_close\n" + DAY.strip() + ",0\n", "adj_close is missing, zero"),
]


@pytest.mark.parametrize("name,content,says", BAD, ids=[name for name, _, _ in BAD])
def test_bad_files_are_refused_by_name(tmp_path, name, content, says):
    path = tmp_path/name
    if content is not None: path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BarsError, match=says) as caught: read_bars(path)
    assert name in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(BarsError, match="this is a folder"): read_bars(tmp_path)


def test_parquet_cut_short_or_damaged(tmp_path):
    whole = write_bars(load_sample("stocks").loc[["FB"]], tmp_path/"whole.parquet").read_bytes()
    damaged = bytearray(whole); damaged[200:400] = bytes(200)
    for name, content in (("cut.parquet", whole[:-50]), ("damaged.parquet", bytes(damaged))):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(BarsError, match=name): read_bars(tmp_path/name)


def test_parquet_with_numbers_for_times(tmp_path):
    pd.read_csv(io.StringIO(HEADER + DAY)).assign(date=1706659200000).to_parquet(tmp_path/"epoch.parquet")
    with pytest.raises(BarsError, match="plain numbers"): read_bars(tmp_path/"epoch.parquet")


def test_symbols_that_look_like_other_things(tmp_path):
    (tmp_path/"odd.csv").write_text(HEADER + "".join(DAY.replace("A", name) for name in ("NA", "NAN", "TRUE", "7203", "null")))
    assert list(read_bars(tmp_path/"odd.csv").index.get_level_values(0)) == ["7203", "NA", "NAN", "TRUE", "null"]


def test_rows_of_symbols_may_alternate_and_columns_may_come_in_any_order(tmp_path):
    rows = "Volume,Close,Low,High,Open,Timestamp,Symbol\n5,2,1,2,1,2024-01-30T10:00:00Z,B\n5,2,1,2,1,2024-01-30T10:00:00Z,A\n5,2,1,2,1,2024-01-30T11:00:00+00:00,B\n"
    (tmp_path/"mixed.csv").write_text("\ufeff" + rows)
    bars = read_bars(tmp_path/"mixed.csv")
    assert [(symbol, len(frame)) for symbol, frame in by_asset(bars)] == [("A", 1), ("B", 2)]
    assert bars.attrs["assumed"] == [] and bars.attrs["bar"] == "1 hour"


def test_what_was_assumed_is_said(tmp_path):
    (tmp_path/"SPY.csv").write_text((HEADER + DAY).replace("symbol,", "").replace("A,", ""))
    bars = read_bars(tmp_path/"SPY.csv")
    assert bars.index[0] == ("SPY", pd.Timestamp("2024-01-31", tz="UTC"))
    assert len(bars.attrs["assumed"]) == 2 and "SPY" in bars.attrs["assumed"][0] and "UTC" in bars.attrs["assumed"][1]


@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv", "bars.csv.gz"])
def test_writing_and_reading_lose_nothing(tmp_path, name):
    bars = load_sample("crypto").loc[["BTC", "XRP"]]
    again = read_bars(write_bars(bars, tmp_path/name))
    pd.testing.assert_frame_equal(again, bars)
    assert data_hash(again) == data_hash(bars)
    first = (tmp_path/name).read_bytes()
    assert write_bars(bars, tmp_path/name).read_bytes() == first
    assert os.listdir(tmp_path) == [name]


def test_one_asset_keeps_its_name(tmp_path):
    fb = load_sample("stocks").loc["FB"]; fb.attrs = {"symbol": "FB"}
    named = read_bars(write_bars(fb, tmp_path/"one.parquet"))
    assert named.index[0][0] == "FB" and data_hash(named) == data_hash(fb)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    bars, path = load_sample("stocks").loc[["FB"]], tmp_path/"bars.csv"
    write_bars(bars.iloc[:5], path); before = path.read_bytes()
    with pytest.raises(MetavolError, match="cannot be written"): write_bars(bars, tmp_path/"nowhere"/"bars.csv")
    with pytest.raises(BarsError, match="save the table as"): write_bars(bars, tmp_path/"bars.txt")
    with pytest.raises(BarsError, match="missing"): write_bars(bars.assign(close=np.nan), path)
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MetavolError, match="No space left"): write_bars(bars, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["bars.csv"]


def test_hash_sees_content_only():
    bars = load_sample("stocks")
    shuffled = pd.concat([bars.loc[[s]] for s in ("MSFT", "FB", "AAPL", "IBM", "GOOG")])
    assert data_hash(shuffled) == data_hash(bars)
    for changed in (bars.iloc[1:], bars.rename({"FB": "META"}, level=0), bars*(1+1e-15)): assert data_hash(changed) != data_hash(bars)


# Yahoo

def in_yahoo_shape(symbols):
    "The sample in the columns yfinance returns."
    bars = load_sample("stocks").loc[symbols].loc[(slice(None), slice("2012-05-16", "2012-06-29")), :]
    return yahoo_frame(bars)


def test_yahoo_panel_and_single():
    frame = in_yahoo_shape(["AAPL", "FB"])
    panel = bars_from_yahoo(frame, ["FB", "AAPL", "FB"])
    assert [symbol for symbol, _ in by_asset(panel)] == ["FB", "AAPL"] and len(panel.loc["AAPL"]) == len(panel.loc["FB"]) + 2
    for shape in (frame, frame.swaplevel(axis=1).sort_index(axis=1)):
        one = bars_from_yahoo(shape, "AAPL")
        assert one.index.name == "time" and str(one.index.tz) == "UTC" and one.attrs["symbol"] == "AAPL"
        np.testing.assert_array_equal(one, panel.loc["AAPL"])


def test_yahoo_names_what_is_missing():
    frame = in_yahoo_shape(["AAPL", "FB"])
    for bad in (None, frame.iloc[:0], frame*np.nan):
        with pytest.raises(SymbolError, match="no bars for AAPL: unknown, delisted"): bars_from_yahoo(bad, "AAPL")
    with pytest.raises(SymbolError, match="no bars for X, Y"): bars_from_yahoo(frame, ["AAPL", "X", "Y"])
    with pytest.raises(BarsError, match="name none"): bars_from_yahoo(frame.xs("AAPL", axis=1, level=1), ["AAPL", "FB"])
    with pytest.raises(BarsError, match="no symbol given"): bars_from_yahoo(frame, [])


def test_yahoo_drops_days_without_a_bar_and_refuses_holes_in_one():
    frame = in_yahoo_shape(["AAPL", "FB"]); day = frame.index[5]
    frame.loc[day, (slice(None), "AAPL")] = np.nan
    assert day.tz_localize("UTC") not in bars_from_yahoo(frame, "AAPL").index
    frame.loc[day, ("Close", "AAPL")] = 80.
    with pytest.raises(BarsError, match="AAPL at 2012-05-23.*open is missing"): bars_from_yahoo(frame, "AAPL")


def test_load_stock_data_asks_for_closed_sessions_only(monkeypatch):
    import yfinance
    asked = {}
    class Ticker:
        def __init__(self, symbol): self.symbol = symbol
        def history(self, **options): asked.update(options, symbol=self.symbol); return yahoo_history(load_sample("stocks").loc[self.symbol].iloc[-20:])
    monkeypatch.setattr(yfinance, "Ticker", Ticker)
    bars = load_stock_data("aapl", "2010-01-01", "2999-01-01")
    assert asked["symbol"] == "AAPL" and asked["auto_adjust"] is True and asked["actions"] is False and asked["interval"] == "1d"
    assert (asked["start"], asked["end"]) == ("2010-01-01", f"{pd.Timestamp.now('UTC'):%Y-%m-%d}")
    assert bars.index.nlevels == 1 and load_stock_data(["AAPL", "FB"], "2010-01-01", "2024-01-01").index.nlevels == 2
    with pytest.raises(BarsError, match="nothing lies between"): load_stock_data("AAPL", "2024-01-01", "2020-01-01")
    with pytest.raises(BarsError, match="which is no date"): load_stock_data("AAPL", "first of May", "2020-01-01")
    monkeypatch.setattr(metavol.data, "YAHOO_WAIT", 0.)
    def broken(*_, **__): raise RuntimeError("curl fell over")
    monkeypatch.setattr(Ticker, "history", broken)
    with pytest.raises(ServiceError, match="curl fell over"): load_stock_data("AAPL", "2020-01-01", "2024-01-01")


def yahoo_example(folder, name, **options): return pd.read_csv(folder/"yfinance_examples"/name, index_col=0, **options)


@pytest.mark.parametrize("name", ["download_single.csv", "download_auto_adjust_false.csv", "download_two.csv", "download_two_group_by_ticker.csv",
                                  "download_one_unknown.csv", "download_flat.csv", "ticker_history.csv", "download_1h.csv"])
def test_recorded_yahoo_frames(market_data, name):
    bars = bars_from_yahoo(yahoo_example(market_data, name, **({} if name in ("download_flat.csv", "ticker_history.csv") else {"header": [0, 1]})), "AAPL")
    if name == "download_1h.csv":
        assert bars.index[0] == pd.Timestamp("2023-03-08 14:30", tz="UTC") and bars.attrs["bar"] == "1 hour"
    else:
        assert bars.index[0] == pd.Timestamp("2023-02-21", tz="UTC") and len(bars) == 12
        np.testing.assert_allclose(bars.iloc[0], [149.402534, 150.496694, 147.622038, 147.691666, 58867200], rtol=1e-8)


def test_recorded_yahoo_panel_and_unknown(market_data):
    two = bars_from_yahoo(yahoo_example(market_data, "download_two.csv", header=[0, 1]), ["MSFT", "AAPL"])
    assert {symbol: len(frame) for symbol, frame in by_asset(two)} == {"MSFT": 12, "AAPL": 12}
    with pytest.raises(BarsError, match="no bars for NOSUCH"): bars_from_yahoo(yahoo_example(market_data, "download_one_unknown.csv", header=[0, 1]), ["AAPL", "NOSUCH"])
    with pytest.raises(BarsError, match="no bars for NOSUCH"): bars_from_yahoo(yahoo_example(market_data, "download_unknown.csv", header=[0, 1]), "NOSUCH")


@pytest.mark.parametrize("name", ["download_flat.csv", "ticker_history.csv"])
def test_recorded_yahoo_files_read_as_files(market_data, name):
    bars = read_bars(market_data/"yfinance_examples"/name)
    assert bars.index[0] == (name[:-4], pd.Timestamp("2023-02-21", tz="UTC")) and bars.attrs["bar"] == "1 day"
