"The two Python examples of the original chapter run word for word: only their import lines and the number of features changed."
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yfinance

import metavol
from metavol.data import bars_from_table, load_bybit_data, load_sample
from services import candles, yahoo_frame, yahoo_history

IMPORTS = {
    "from python.data_loader import": "from metavol import",
    "from python.meta_volatility import MAMLVolatility": "from metavol import MAMLVolatility",
    "input_dim=10": "input_dim=11",
}

STOCKS = """
from python.data_loader import load_stock_data, compute_features, create_tasks
from python.meta_volatility import MAMLVolatility
import torch

# Load data for multiple stocks
symbols = ['AAPL', 'MSFT', 'GOOGL', 'AMZN', 'META']
all_tasks = []

for sym in symbols:
    df = load_stock_data(sym, '2020-01-01', '2024-01-01')
    df = compute_features(df)
    tasks = create_tasks(df)
    all_tasks.extend(tasks)

# Convert to tensors
tensor_tasks = [
    (torch.tensor(sx), torch.tensor(sy),
     torch.tensor(qx), torch.tensor(qy))
    for sx, sy, qx, qy in all_tasks
]

# Train meta-learner
meta_learner = MAMLVolatility(input_dim=10, inner_steps=5)
for epoch in range(100):
    batch = tensor_tasks[epoch * 4:(epoch + 1) * 4]
    if batch:
        loss = meta_learner.meta_train_step(batch)
        if epoch % 10 == 0:
            print(f"Epoch {epoch}, Meta-Loss: {loss:.6f}")
"""

CRYPTO = """
from python.data_loader import load_bybit_data, compute_features, create_tasks

# Load crypto data
crypto_pairs = ['BTCUSDT', 'ETHUSDT', 'SOLUSDT', 'BNBUSDT']
crypto_tasks = []

for pair in crypto_pairs:
    df = load_bybit_data(pair, interval='60', limit=1000)
    df = compute_features(df)
    tasks = create_tasks(df, window_size=24, forecast_horizon=4)
    crypto_tasks.extend(tasks)

print(f"Created {len(crypto_tasks)} crypto volatility tasks")
"""


def run(example):
    "Execute an example as if it were a script, and return its names."
    for old, new in IMPORTS.items(): example = example.replace(old, new)
    names = {}
    exec(example, names)
    return names


@pytest.fixture(params=["recorded", "sample"])
def yahoo(request, monkeypatch):
    "Real bars behind `yfinance.Ticker`: recorded ones of those years, or the sample moved on by 560 weeks under today's tickers."
    if request.param == "recorded":
        path = request.getfixturevalue("market_data")/"us_equities_daily.parquet"
        table = pd.read_parquet(path, filters=[("symbol", "in", ["AAPL", "MSFT", "GOOGL", "AMZN", "META"])])
        bars = bars_from_table(table)
    else:
        bars = load_sample("stocks").rename({"GOOG": "GOOGL", "IBM": "AMZN", "FB": "META"}, level="symbol")
        bars.index = bars.index.set_levels(bars.index.levels[1] + pd.Timedelta(weeks=560), level="time")
    class Ticker:
        def __init__(self, symbol): self.bars = bars.loc[symbol]
        def history(self, start, end, **options):
            assert options["auto_adjust"] and not options["actions"]
            return yahoo_history(self.bars[(self.bars.index >= start) & (self.bars.index < end)])
    monkeypatch.setattr(yfinance, "Ticker", Ticker)


def test_the_stand_in_has_the_form_of_the_recording(market_data):
    recorded = pd.read_csv(market_data/"yfinance_examples"/"download_two.csv", header=[0, 1], index_col=0, parse_dates=True)
    frame = yahoo_frame(load_sample("stocks").loc[["AAPL", "MSFT"]].dropna().astype({"volume": "int64"}))
    pd.testing.assert_index_equal(frame.columns, recorded.columns)
    assert frame.dtypes.tolist() == recorded.dtypes.tolist()
    assert (frame.index.name, frame.index.dtype) == ("Date", np.dtype("datetime64[s]"))
    recorded = pd.read_csv(market_data/"yfinance_examples"/"ticker_history.csv", index_col=0).drop(columns=["Dividends", "Stock Splits"])
    history = yahoo_history(load_sample("stocks").loc["AAPL"].iloc[-5:])
    assert list(history.columns) == list(recorded.columns) and history.dtypes.tolist() == recorded.dtypes.tolist()
    assert history.index.name == recorded.index.name and str(history.index[-1]) == "2013-03-01 00:00:00-05:00" and recorded.index[0].endswith(" 00:00:00-05:00")


def test_stock_example(yahoo, capsys):
    names = run(STOCKS)
    lines = capsys.readouterr().out.splitlines()
    epochs = range(0, (len(names["all_tasks"]) + 3)//4, 10)
    assert [line.split(",")[0] for line in lines] == [f"Epoch {epoch}" for epoch in epochs] and len(epochs) >= 3
    support_x, support_y, query_x, query_y = names["all_tasks"][-1]
    assert [part.shape for part in names["all_tasks"][-1]] == [(10, 60, 11), (10,), (5, 60, 11), (5,)]
    forecast = names["meta_learner"].adapt_and_predict(support_x, support_y, query_x)
    assert forecast.shape == (5,) and (forecast > 0).all()
    assert np.isfinite(names["loss"]) and np.abs(np.log(forecast/query_y)).mean() < 1


@pytest.fixture(params=["recorded", "sample"])
def bybit(request, service, monkeypatch):
    "Candles of four coins behind Bybit's address: recorded ones where there are, the rest from the sample."
    service.rows = {coin + "USDT": candles(1200, coin=stand_in) for coin, stand_in in dict(BTC="BTC", ETH="ETH", SOL="EOS", BNB="LTC").items()}
    if request.param == "recorded":
        folder = request.getfixturevalue("market_data")/"bybit_kline_examples"
        for pair in ("BTCUSDT", "SOLUSDT"):
            pages = [pd.read_json(folder/f"built_linear_{pair}_60_page{page}.json", typ="series") for page in (1, 2)]
            service.rows[pair], service.now = [row for page in pages for row in page["result"]["list"]], int(pages[0]["time"])
    monkeypatch.setattr(metavol, "load_bybit_data", partial(load_bybit_data, base_url=service.url))
    return service


def test_crypto_example(bybit, capsys):
    tasks = run(CRYPTO)["crypto_tasks"]
    assert capsys.readouterr().out == f"Created {len(tasks)} crypto volatility tasks\n"
    assert len(tasks) == 4*((1000 - 20 - 84)//20 + 1)
    assert [part.shape for part in tasks[0]] == [(10, 24, 11), (10,), (5, 24, 11), (5,)]
    assert {q["symbol"] for q in bybit.asked} == {"BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT"} and {q["limit"] for q in bybit.asked} >= {1000, 1}
