"What the tests share: the embedded sample, recorded market data where there is any, and a local Bybit."
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import metavol.data
from metavol.data import load_sample
from metavol.features import compute_features
from metavol.tasks import make_windows
from services import Bybit

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def market_data():
    "Folder with recorded market data, which is not part of the package."
    folder = Path(os.environ.get("METAVOL_DATA", Path(__file__).resolve().parents[2]/"shared"/"data"))
    if not folder.is_dir(): pytest.skip("recorded market data is not here; set METAVOL_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def stocks():
    "Daily bars of the embedded sample from 2008 on, by (symbol, time)."
    bars = load_sample("stocks")
    return bars[bars.index.get_level_values("time") >= "2008-01-01"]


@pytest.fixture(scope="session")
def features(stocks): return compute_features(stocks)


@pytest.fixture(scope="session")
def windows(features): return make_windows(features)


@pytest.fixture
def service(monkeypatch):
    "A local Bybit; nobody waits long for it, and its budget is not the real one's."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in dict(WAIT=.01, TRIES=3, TIMEOUT=(9., 9.), BUDGET=(10_000, 5.)).items(): monkeypatch.setattr(metavol.data, f"BYBIT_{name}", value)
    service = Bybit().start()
    yield service
    service.stop()
