"The shell command: what it writes, and how it says no."
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from time import sleep

import numpy as np
import pandas as pd
import pytest

import metavol.data
import metavol.league
import metavol.study
from metavol.bars import MetavolError
from metavol.classical import Historical
from metavol.cli import main, study
from metavol.data import UnreachableError, load_sample
from metavol.files import read_bars, write_bars
from metavol.leaks import LeakSpec, leak_bars, leak_report
from metavol.pretrained import forecast, load_pretrained
from metavol.store import Store
from metavol.context import ContextSpec, save_context_model
from metavol.training import PooledSpec, TrainingSpec
from metavol.walk_forward import Entrant
from services import candles, envelope

FILES = {"league.csv", "forecasts.parquet", "backtest.csv", "model.safetensors", "run.json", "report.html"}


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    "Run a command in an empty folder: (exit code, standard output, standard error)."
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["metavol", *map(str, words)])
        with pytest.raises(SystemExit) as left: main()
        return left.value.code or 0, *capsys.readouterr()
    return run


@pytest.fixture
def quick(monkeypatch):
    "The sample studies, with one short training."
    short = dict(pooled=PooledSpec(updates=20), meta=TrainingSpec(updates=2, batch=4), context=ContextSpec(updates=2), n_jobs=1, seeds=(0,))
    studies = {name: replace(spec, **short, every=10) for name, spec in metavol.study.SAMPLE_STUDIES.items()}
    monkeypatch.setattr(metavol.study, "SAMPLE_STUDIES", {name: replace(spec, split="2012-03-01" if name == "stocks" else "2019-08-01") for name, spec in studies.items()})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Bars in files: good ones, and one for each thing that can be wrong."
    folder = tmp_path_factory.mktemp("files")
    bars = load_sample("stocks").drop("FB", level="symbol")
    bars = bars[bars.index.get_level_values("time") >= "2010-01-01"]
    good = pd.read_csv(write_bars(bars, folder/"good.csv"))
    row = good.index[(good.symbol == "IBM") & good.time.str.startswith("2010-05-06")][0]

    def spoiled(name, **values): good.assign(**{column: good[column].astype(float).mask(good.index == row, value) for column, value in values.items()}).to_csv(folder/name, index=False)
    spoiled("nan.csv", close=np.nan); spoiled("inf.csv", high=np.inf); spoiled("zero.csv", low=0.); spoiled("negative.csv", open=-1.); spoiled("high.csv", high=1.)
    pd.concat([good.iloc[:row + 1], good.iloc[row:]]).to_csv(folder/"twice.csv", index=False)
    good.drop(columns="close").to_csv(folder/"no_close.csv", index=False)
    good.groupby("symbol").head(50).to_csv(folder/"short.csv", index=False)
    good.assign(open=1., high=1., low=1., close=1.).to_csv(folder/"still.csv", index=False)
    good.loc[good.time > "2011", ["symbol", "time"]].assign(EWMA=0.04).to_csv(folder/"forecasts.csv", index=False)
    (folder/"empty.csv").touch()
    (folder/"noise.parquet").write_bytes(np.random.default_rng(0).bytes(2000))
    (folder/"bars.xlsx").write_text("no table")
    return folder


SPOILED = {"nan.csv": "IBM at 2010-05-06", "inf.csv": "IBM at 2010-05-06", "zero.csv": "IBM at 2010-05-06", "negative.csv": "IBM at 2010-05-06", "high.csv": "IBM at 2010-05-06",
           "twice.csv": "IBM at 2010-05-06", "no_close.csv": "close", "short.csv": "30 bars from 2010-02-02", "still.csv": "never move", "empty.csv": "empty", "noise.parquet": "noise.parquet", "bars.xlsx": ".csv", "absent.csv": "no such file"}


def refused(answer, *says):
    "Exit code 2, one line on standard error, nothing else."
    code, out, err = answer
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("error: ") and "Traceback" not in out + err, answer
    for words in says: assert words in err, err


@pytest.mark.parametrize("name", SPOILED)
def test_bad_files_are_one_line(shell, quick, files, tmp_path, name):
    refused(shell("study", "--train", files/name, "--split", "2012-03-01", "--test-symbols", "GOOG", "--out", "results"), SPOILED[name])
    assert not (tmp_path/"results").exists(), "something was left half-written"
    if name != "still.csv": refused(shell("backtest", "--bars", files/name, "--forecasts", files/"forecasts.csv", "--horizon", 5)) # A price that stands still earns nothing, which is no error
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", files/name, "--horizon", 5))
    refused(shell("leakcheck", "--bars", files/name))
    refused(shell("forecast", files/name), dict(SPOILED, **{"short.csv": "50 bars", "still.csv": "stale"})[name])


WORDS = {
    "an unknown sample": (["--sample", "gold"], "'stocks', 'crypto'"), "no split": (["--train", "good.csv"], "--split 2018-01-01"), "test without train": (["--test", "good.csv"], "--train"),
    "a split that is no date": (["--train", "good.csv", "--split", "soon"], "2018-01-01"), "a split after the end": (["--train", "good.csv", "--split", "2030-01-01"], "earlier split"),
    "a split before the start": (["--train", "good.csv", "--split", "2010-01-05"], "later split"), "symbols on both sides": (["--train", "good.csv", "--split", "2012-01-01", "--train-symbols", "IBM", "--test-symbols", "IBM"], "disjoint"),
    "an unknown symbol": (["--train", "good.csv", "--split", "2012-01-01", "--test-symbols", "XX"], "no bars of XX"), "an unwritable folder": (["--out", "good.csv/results"], "cannot write")}


@pytest.mark.parametrize("case", WORDS)
def test_bad_words_are_one_line(shell, files, case):
    words, says = WORDS[case]
    refused(shell("study", *(files/word if word == "good.csv" else str(word).replace("good.csv", str(files/"good.csv")) for word in words)), says)


def test_version(shell): assert shell("--version")[1].startswith("metavol 0.")


def test_help_shows_an_example(shell):
    assert "study" in shell("--help")[1]
    for command in ("study", "backtest", "leakcheck", "forecast"):
        code, out, _ = shell(command, "--help")
        assert code == 0 and f"Example: metavol {command}" in out


def test_study_writes_everything_twice_the_same(shell, quick, tmp_path):
    for out in ("one", "two"):
        code, printed, _ = shell("study", "--out", out)
        assert code == 0 and "Meta-Vol" in printed and "Traceback" not in printed
    assert {file.name for file in (tmp_path/"one").iterdir()} == FILES
    for name in FILES: assert (tmp_path/"one"/name).read_bytes() == (tmp_path/"two"/name).read_bytes(), name
    league, forecasts = pd.read_csv(tmp_path/"one"/"league.csv", index_col="model"), pd.read_parquet(tmp_path/"one"/"forecasts.parquet")
    assert set(league.index) == set(forecasts.columns) - {"realized", "current"} and set(league.information) == {"few_shot", "full_history"}
    assert forecasts.index.names == ["symbol", "time"] and set(forecasts.index.get_level_values(0)) == {"GOOG", "FB"}
    assert json.loads((tmp_path/"one"/"run.json").read_text())["spec"]["split"] == "2012-03-01"
    assert shell("study", "--seed", 1, "--every", 40, "--out", "other")[0] == 0 # Another seed is another study
    assert (tmp_path/"one"/"model.safetensors").read_bytes() != (tmp_path/"other"/"model.safetensors").read_bytes()


@pytest.mark.parametrize("raised", [MetavolError("the real reason"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_what_stopped_a_study_is_not_hidden_by_its_folder(monkeypatch, tmp_path, raised):
    def stopped(*bars, keep): (keep/"piece.npy").parent.mkdir(parents=True); (keep/"piece.npy").touch(); raise raised
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(metavol.study, "run_study", stopped)
    with pytest.raises(type(raised)) as left: study(keep=tmp_path/"out"/"pieces", out=tmp_path/"out", sample="stocks", rivals="standard", seed=0)
    assert left.value is raised and (tmp_path/"out"/"pieces"/"piece.npy").exists()


def test_study_on_files_and_crypto_and_backtest(shell, quick, files, tmp_path):
    assert shell("study", "--train", files/"good.csv", "--split", "2012-03-01", "--test-symbols", "GOOG", "--every", "10", "--out", "own")[0] == 0
    code, printed, _ = shell("backtest", "--bars", files/"good.csv", "--forecasts", "own/forecasts.parquet", "--out", "traded")
    assert code == 0 and "drawdown" in printed
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", "own/forecasts.parquet", "--horizon", 4), "cover 5 bars")
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", files/"forecasts.csv"), "--horizon 5")
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", "own/forecasts.parquet", "--model", "Nobody"), "holds Historical")
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", "own/forecasts.parquet", "--half-spread", "wide"), "or the word estimated")
    page, ledger = (tmp_path/"traded"/"backtest.html").read_text(), pd.read_parquet(tmp_path/"traded"/"ledger.parquet")
    assert "Sized by Meta-Vol" in page and set(ledger.index.get_level_values("symbol")) == {"GOOG"} and "equity" in ledger
    pd.read_parquet("own/forecasts.parquet")[["realized", "current"]].to_parquet("nobody.parquet")
    refused(shell("backtest", "--bars", files/"good.csv", "--forecasts", "nobody.parquet", "--horizon", 5), "no column of a model")
    traded, within = (pd.read_csv(tmp_path/folder/"backtest.csv", index_col="model") for folder in ("traded", "own"))
    pd.testing.assert_frame_equal(traded, within)
    assert shell("study", "--sample", "crypto", "--out", "coins")[0] == 0
    assert set(pd.read_parquet(tmp_path/"coins"/"forecasts.parquet").index.get_level_values(0)) == {"EOS", "LTC"}


def test_leakcheck_is_clean_and_catches_its_plants(shell, monkeypatch):
    few = LeakSpec(n_cuts=1) # Fewer cuts than the command takes; every model of the league all the same
    for name in ("leak_bars", "leak_report"): monkeypatch.setattr(metavol.league, name, partial(getattr(metavol.league, name), spec=few))
    code, printed, _ = shell("leakcheck", "--symbol", "GOOG")
    assert code == 0 and printed.count("planted: ") == 3 and printed.count("caught by") == 3 and printed.count("clean") >= 34


def test_leakcheck_fails_when_something_leaks(shell, monkeypatch):
    cheat = type("Cheat", (Historical,), {"predict": lambda self, query: np.nan_to_num(query.y, nan=1.)})()
    few = LeakSpec(n_bars=450)
    monkeypatch.setattr(metavol.league, "find_leaks", lambda bars, symbol, task: leak_report([Entrant("Cheat", cheat, "few_shot")], leak_bars(bars, symbol, few), task, few, progress=False))
    code, printed, _ = shell("leakcheck", "--symbol", "GOOG")
    assert code == 1 and "GOOG at" in printed and printed.count("caught by") == 3


# The store

@pytest.fixture
def held(shell, service, monkeypatch, tmp_path):
    "Run a command on a store of two pairs from a local Bybit."
    monkeypatch.setenv("METAVOL_STORE", str(tmp_path/"store")); monkeypatch.setenv("COLUMNS", "120")
    service.rows = {"BTCUSDT": candles(1500), "ETHUSDT": candles(900, coin="ETH")}
    fetch = partial(shell, "download", "crypto", "--base-url", service.url, "--start", "2019-08-01", "--end", "2019-10-01")
    assert fetch("BTCUSDT", "ETHUSDT")[0] == 0
    shell.fetch = fetch
    return shell


def test_download_ends_with_a_table_and_exit_code_1_if_something_is_missing(held):
    code, out, err = held.fetch("BTCUSDT", "NOSUCH")
    assert code == 1 and "1 of 2 assets without a problem" in out and "NOSUCH: no bars; the symbol is unknown" in out and err == ""
    code, out, _ = held.fetch("btcusdt")
    assert code == 0 and re.search(r"BTCUSDT +1,463 +2019-08-01 00:00 +2019-09-30 22:00 +0 +bybit-spot", out)


def test_the_busiest_pairs_are_downloaded(held, service):
    tickers = [dict(symbol="ETHUSDT", turnover24h="9"), dict(symbol="BTCUSDT", turnover24h="5"), dict(symbol="USDCUSDT", turnover24h="99")]
    service.replies = [(200, envelope(tickers, 1))]
    code, out, _ = held.fetch("--top", 1)
    assert code == 0 and "ETHUSDT" in out and "BTCUSDT" not in out


def test_data_list_check_query_and_export(held, tmp_path):
    code, out, _ = held("data", "list")
    assert code == 0 and "2 series" in out and "bybit-spot" in out
    code, out, _ = held("data", "check")
    assert code == 0 and out.startswith("files checked: 2, none damaged or gone")
    code, out, _ = held("data", "query", "select symbol, count(*) as bars from bars group by symbol order by symbol")
    assert code == 0 and re.search(r"BTCUSDT +1463\n *ETHUSDT +899", out), out
    code, _, err = held("data", "query", "select nothing from nowhere")
    assert code == 2 and err.startswith("error:") and "nowhere" in err
    code, out, _ = held("data", "export", "bars.parquet", "BTCUSDT", "--start", "2019-09-01")
    assert code == 0 and len(read_bars(tmp_path/"bars.parquet")) == 719
    assert held("data", "export", "bars.xlsx")[0] == 2 and held("data", "export", "all.csv", "NOSUCH")[0] == 2


def test_data_check_names_damage_and_repairs_it(held, service, tmp_path):
    file = next((tmp_path/"store"/"bars").rglob("BTCUSDT/*.parquet")); file.write_bytes(file.read_bytes()[:-9])
    code, out, _ = held("data", "check")
    assert code == 1 and "damaged or gone: 1" in out and "BTCUSDT" in out
    service.replies = [(403, "banned")]
    code, out, _ = held("data", "check", "--repair", "--base-url", service.url)
    assert code == 1 and "HTTP 403" in out and held("data", "check")[0] == 1
    code, out, _ = held("data", "check", "--repair", "--base-url", service.url)
    assert code == 0 and "1 of 1 assets without a problem" in out and held("data", "check")[0] == 0
    (tmp_path/"store"/"manifest.jsonl").unlink()
    assert held("data", "list")[0] == 2 and held("data", "check")[0] == 1
    assert held("data", "check", "--repair")[0] == 0 and held("data", "list")[0] == 0


def test_a_reason_that_holds_for_many_is_printed_once(held, service):
    names = [f"C{i}USDT" for i in range(9)]
    service.reply = lambda query: (200, envelope([], 1, 10001, "Not supported symbols"))
    code, out, _ = held.fetch(",".join(names))
    assert code == 1 and out.count("Not supported") == 9 # Each names its pair
    service.reply = lambda query: (200, envelope([], service.now))
    code, out, _ = held.fetch(*names)
    assert code == 1 and out.count("no bars; the symbol is unknown") == 1 and "and 4 more" in out


def test_old_lists_are_noted_in_one_line(held, service):
    service.reply = lambda query: (403, "banned") if "symbol" not in query else (200, envelope([], service.now))
    code, _, err = held.fetch("--top", 2)
    assert code == 0 and err.startswith("note: The live list cannot be had") and "2023-08-16" in err and err.count("\n") == 1


def test_ctrl_c_says_what_is_kept(tmp_path, service):
    honest = service.reply; service.rows = {f"C{i}USDT": candles(1500) for i in range(40)}
    def slow(query): sleep(.05); return honest(query)
    service.reply = slow
    command = [sys.executable, "-c", "from metavol.cli import main; main()", "download", "crypto", *service.rows, "--start", "2019-08-01",
               "--base-url", service.url, "--store", str(tmp_path/"store")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(service.asked) < 5: sleep(.01)
    process.send_signal(signal.SIGINT); _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "stopped; what came whole is kept, nothing was written half"
    assert "Traceback" not in err and len(service.asked) < 60 and set(Store(tmp_path/"store").check().result) <= {"good"}


@pytest.mark.parametrize("words,says", [
    (["download", "stocks"], "name at least one ticker"), (["download", "crypto"], "name at least one pair"), (["download", "crypto", "BTC/USDT"], "such as BTCUSDT"), (["data", "check"], "there is no store"), (["download", "crypto", "BTCUSDT", "--start", "soon"], "no date"),
    (["download", "crypto", "BTCUSDT", "--interval", "45"], "is not offered"), (["download", "stocks", "AAPL", "--interval", "2d"], "is not offered"),
    (["download", "stocks", "AAPL", "--start", "2024-01-01", "--end", "2023-01-01"], "must come before the end"),
    (["data", "list"], "empty"), (["data", "export", "bars.csv"], "empty"), (["data", "query", "select 1"], "empty")])
def test_bad_words_about_the_store(shell, tmp_path, monkeypatch, words, says):
    monkeypatch.setenv("METAVOL_STORE", str(tmp_path/"nothing"))
    code, out, err = shell(*words)
    assert code == 2 and err.startswith("error:") and says in err and err.count("\n") == 1 and not out
    assert not (tmp_path/"nothing").exists()


# Forecasts

def test_forecast_of_a_file(shell, files, tmp_path):
    code, printed, err = shell("forecast", files/"good.csv", "--out", "results")
    assert code == 0 and not err and "hold 90% of outcomes" in printed and "252 bars a year" in printed and "The newest bar is of 2013-03-01" in printed
    table, there = pd.read_csv(tmp_path/"results"/"forecast.csv", index_col="symbol"), forecast(read_bars(files/"good.csv"))
    columns = ["volatility", "annualized", "low", "high"]
    np.testing.assert_allclose(table[columns], there[columns], rtol=1e-7)
    assert [file.name for file in (tmp_path/"results").iterdir()] == ["forecast.csv"] and all(f"{value:.2%}" in printed for value in table.volatility)


def test_forecast_leaves_out_and_says_so(shell, files, tmp_path):
    bars = read_bars(files/"good.csv")
    write_bars(pd.concat([bars.drop("IBM", level=0), bars.loc[["IBM"]].tail(60)]), tmp_path/"some.csv")
    code, printed, err = shell("forecast", "some.csv")
    assert code == 1 and not err and "left out: IBM: 60 bars from 2012-12-04; a forecast needs 85" in printed and "MSFT" in printed
    many = pd.concat({f"stock {i:02}": bars.loc["MSFT"].tail(90) for i in range(25)}, names=["symbol", "time"])
    write_bars(many, tmp_path/"many.csv")
    code, printed, _ = shell("forecast", "many.csv")
    assert code == 0 and "20 of 25 assets shown" in printed and "stock 19" in printed and "stock 20" not in printed and "labels" in printed


def test_forecast_with_a_model_file(shell, files, tmp_path):
    model = load_pretrained("daily")
    save_context_model(replace(model, about={}), tmp_path/"own.safetensors")
    code, printed, _ = shell("forecast", files/"good.csv", "--model", "own.safetensors")
    assert code == 0 and "own model" in printed and "carries no interval" in printed and "nan" not in printed


def test_forecast_of_symbols_from_the_store_or_else_the_service(held, service):
    code, printed, err = held("forecast", "btcusdt", "ETHUSDT")
    assert code == 0 and not err and "BTCUSDT" in printed and "8760 bars a year" in printed and "2019-09-30 22:00" in printed
    asked = len(service.asked)
    service.rows["XRPUSDT"] = candles(600, coin="XRP")
    code, printed, _ = held("forecast", "XRPUSDT", "BTCUSDT", "--base-url", service.url)
    assert code == 0 and "XRPUSDT" in printed and len(service.asked) > asked and set(Store().manifest.symbol) == {"BTCUSDT", "ETHUSDT"}
    refused(held("forecast", "NOSUCHUSDT", "--base-url", service.url), "NOSUCHUSDT")


def test_forecast_of_stocks_from_yahoo(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("METAVOL_STORE", str(tmp_path/"store"))
    def load(names, *span):
        bars = load_sample("stocks").loc[["AAPL"]]
        bars.attrs = {"missing": {"NOSUCH": "Yahoo NOSUCH: no such ticker"}}
        return bars
    monkeypatch.setattr(metavol.data, "load_stock_data", load)
    code, printed, err = shell("forecast", "AAPL", "NOSUCH")
    assert code == 1 and not err and "left out: Yahoo NOSUCH: no such ticker" in printed and "AAPL" in printed


@pytest.mark.parametrize("words,says", [
    ([], "at least one symbol such as AAPL"), (["AAPL", "BTCUSDT"], "one after the other"), (["good.csv", "AAPL"], "one file, or symbols only"), (["absent.csv"], "no such file"), (["absent folder/AAPL"], "no such file"),
    (["good.csv", "--model", "weekly"], "daily, hourly"), (["good.csv", "--model", "hourly"], "bars of 1 day"), (["good.csv", "--model", "bars.xlsx"], "no readable model file"), (["good.csv", "--out", "good.csv/results"], "cannot write"),
    (["AAPL"], "check the connection"), (["BTCUSDT", "--base-url", "http://127.0.0.1:9"], "cannot be reached"), (["AAPL", "--store", "good.csv"], "is a file")])
def test_bad_forecasts_are_one_line(shell, files, tmp_path, monkeypatch, words, says):
    monkeypatch.setenv("METAVOL_STORE", str(tmp_path/"nothing"))
    def unreachable(*question): raise UnreachableError("Yahoo gave no answer for AAPL; check the connection, and try again later.")
    monkeypatch.setattr(metavol.data, "load_stock_data", unreachable)
    code, out, err = shell("forecast", *(word.replace("good.csv", str(files/"good.csv")).replace("bars.xlsx", str(files/"bars.xlsx")) for word in words))
    refused((code, out, err), says)
    assert not out and not list(tmp_path.iterdir())
