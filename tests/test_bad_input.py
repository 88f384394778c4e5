"Whatever is wrong with an input, the answer is one typed error that names asset and time and says what to do."
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from metavol.backtest import CostSpec, run_backtest
from metavol.bars import MetavolError, adjust_bars, as_panel, by_asset, check_bars
from metavol.classical import Ewma, Garch, Historical
from metavol.data import load_bybit_data, load_sample, load_stock_data
from metavol.files import read_bars, write_bars
from metavol.features import check_causal, compute_features
from metavol.har import Har
from metavol.maml import MAMLVolatility
from metavol.neural import Network
from metavol.comparison import diebold_mariano
from metavol.scoring import score
from metavol.sizing import SizingSpec, target_weights
from metavol.study import StudySpec, run_study
from metavol.tasks import (TaskSpec, asset_tasks, create_tasks, cross_market_tasks, forecast_tasks, labelled, make_windows, regime_tasks,
                           stack_tasks, window_tasks)
from metavol.training import PooledSpec, TrainingSpec, load_model, save_model, split_validation, train, train_network
from metavol.volatility import forward_volatility, garman_klass, log_returns, parkinson, realized_volatility, rogers_satchell, yang_zhang
from metavol.walk_forward import Entrant, walk_forward

ADVICE = re.compile(r"needed|needs? |must |use |drop |repair|load |leave |rename|convert|choose|keep |give |check |adapt |ask |call |exchange|lower |say |write |bars hold \w", re.I)


def refused(call, *words):
    with pytest.raises(MetavolError) as caught: call()
    message = str(caught.value)
    assert ADVICE.search(message), message
    for word in words: assert word in message, message


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


@cache
def good():
    "Valid inputs of every kind: two assets from the first day of Facebook on."
    bars = load_sample("stocks").loc[["FB", "GOOG"]]
    bars = bars[bars.index.get_level_values("time") >= "2012-05-18"]
    features = compute_features(bars)
    windows = make_windows(features)
    index = features.index[60:160]
    forecasts = pd.DataFrame({"realized": 0.04, "current": 0.03, "a": 0.05, "b": 0.04}, index)
    start = train_network(labelled(windows), labelled(windows), PooledSpec(updates=1), progress=False)
    tasks, watch = (asset_tasks(part, step=1) for part in split_validation(windows))
    return SimpleNamespace(bars=bars, features=features, windows=windows, tasks=tasks, watch=watch, forecasts=forecasts, start=start)


STUDY = StudySpec(("GOOG",), ("FB",), "2012-12-01")


# One row of a table is wrong

def at(symbol, day): return symbol, pd.Timestamp(day, tz="UTC")


def with_value(column, value):
    def spoil(table, row):
        table = table.copy()
        table.loc[row, column] = value
        return table
    return spoil


def twice(table, row): return table.iloc[np.sort(np.r_[np.arange(len(table)), table.index.get_loc(row)])]


def swapped(table, row): # The row comes before the one it should follow
    order = np.arange(len(table)); i = table.index.get_loc(row)
    order[[i, i + 1]] = order[[i + 1, i]]
    return table.iloc[order]


def naive(table, row): return table.set_axis(table.index.set_levels(table.index.levels[1].tz_localize(None), level=1))
def numbered(table, row): return table.set_axis(pd.MultiIndex.from_arrays([table.index.get_level_values(0), np.arange(len(table))]))
def empty(table, row): return table.iloc[:0]
def without(column): return lambda table, row: table.drop(columns=column)
def text(column): return lambda table, row: table.astype({column: object}).assign(**{column: "high"})


TIMES = {"twice": (twice, "stands twice"), "unsorted": (swapped, "earlier than the one before"), "naive": (naive, "no timezone"), "numbered": (numbered, "int64")}
NAMED = ["twice", "unsorted", "nan", "inf", "zero", "negative", "high below low", "negative volume"] # Have an asset and a time to name
BARS = at("FB", "2012-07-03")
BAR_DEFECTS = {
    "no close": (without("close"), "close"), "nan": (with_value("close", np.nan), "close is missing"), "inf": (with_value("high", np.inf), "high is missing or infinite"),
    "zero": (with_value("low", 0.), "zero or negative"), "negative": (with_value("open", -1.), "zero or negative"), "high below low": (with_value("high", 1.), "high is below"),
    "negative volume": (with_value("volume", -1.), "negative"), "text": (text("close"), "numeric"), "empty": (empty, ""), **TIMES}
BAR_ENTRIES = {
    "check_bars": check_bars, "compute_features": compute_features, "write_bars": lambda bars: write_bars(bars, "bars.csv"),
    "run_backtest": lambda bars: run_backtest(bars, good().forecasts["a"]), "check_causal": lambda bars: check_causal(compute_features, bars),
    "run_study": lambda bars: run_study(bars, bars, STUDY, progress=False), "parkinson": lambda bars: parkinson(bars, 5), "garman_klass": lambda bars: garman_klass(bars, 5),
    "rogers_satchell": lambda bars: rogers_satchell(bars, 5), "yang_zhang": lambda bars: yang_zhang(bars, 5)}
NO_VOLUME = ["parkinson", "garman_klass", "rogers_satchell", "yang_zhang"] # Never look at it


@pytest.mark.parametrize("entry,defect", [(entry, defect) for entry in BAR_ENTRIES for defect in BAR_DEFECTS if not (entry in NO_VOLUME and "volume" in defect)])
def test_bad_bars(entry, defect):
    spoil, says = BAR_DEFECTS[defect]
    refused(lambda: BAR_ENTRIES[entry](spoil(good().bars, BARS)), says, *(["FB at 2012-07-03"] if defect in NAMED else []))


def test_bars_of_one_asset_are_called_by_its_name():
    one = with_value("close", np.nan)(good().bars.loc["FB"], BARS[1])
    one.attrs["symbol"] = "FB"
    refused(lambda: compute_features(one), "FB", "2012-07-03")


@pytest.mark.parametrize("defect", ["nan", "inf", "zero", "negative", "text", "twice", "unsorted"])
def test_bad_closes(defect):
    values = dict(nan=np.nan, inf=np.inf, zero=0., negative=-1.)
    spoil = with_value("close", values[defect]) if defect in values else BAR_DEFECTS[defect][0]
    refused(lambda: log_returns(spoil(good().bars, BARS)["close"]), *(["FB at 2012-07-03"] if defect in NAMED else []))


ORIGIN = at("FB", "2012-10-02")
FEATURE_DEFECTS = {"no rsi": (without("rsi"), "rsi"), "nan": (with_value("rsi", np.nan), ""), "nan return": (with_value("log_return", np.nan), ""), "inf": (with_value("spread", np.inf), ""),
                   "text": (text("rsi"), ""), "empty": (empty, ""), **TIMES}


@pytest.mark.parametrize("entry", [make_windows, create_tasks])
@pytest.mark.parametrize("defect", FEATURE_DEFECTS)
def test_bad_features(entry, defect):
    spoil, says = FEATURE_DEFECTS[defect]
    refused(lambda: entry(spoil(good().features, ORIGIN)), says, *(["FB at 2012-10-02"] if defect in [*NAMED, "nan return"] else []))


FORECAST_DEFECTS = {name: (with_value("a", value), "a: FB at 2012-10-02") for name, value in dict(nan=np.nan, inf=np.inf, zero=0., negative=-1.).items()} | {
    "text": (text("a"), "numeric"), "empty": (empty, ""), **TIMES}
TABLE_DEFECTS = {"no realized": (without("realized"), "realized"), "no current": (without("current"), "current"), "no models": (without(["a", "b"]), ""),
                 "unknown outcome": (with_value("realized", np.nan), "FB at 2012-10-02")}
TABLE_ENTRIES = {"score": score, "diebold_mariano": lambda table: diebold_mariano(table, "a", "b")}
COLUMN_ENTRIES = {"target_weights": lambda table: target_weights(table["a"], 5), "run_backtest": lambda table: run_backtest(good().bars, table["a"])}


@pytest.mark.parametrize("entry,defect", [(entry, defect) for entry in TABLE_ENTRIES for defect in FORECAST_DEFECTS | TABLE_DEFECTS]
                         + [(entry, defect) for entry in COLUMN_ENTRIES for defect in FORECAST_DEFECTS])
def test_bad_forecasts(entry, defect):
    spoil, says = (FORECAST_DEFECTS | TABLE_DEFECTS)[defect]
    refused(lambda: (TABLE_ENTRIES | COLUMN_ENTRIES)[entry](spoil(good().forecasts, ORIGIN)), says, *(["FB at 2012-10-02"] if defect in NAMED else []))


# Something else altogether

SERIES_ENTRIES = {"log_returns": log_returns, "realized_volatility": lambda x: realized_volatility(x, 5), "forward_volatility": lambda x: forward_volatility(x, 5)}
WINDOW_ENTRIES = {
    "asset_tasks": asset_tasks, "regime_tasks": regime_tasks, "window_tasks": lambda x: window_tasks(x, np.random.default_rng(0)),
    "cross_market_tasks": lambda x: cross_market_tasks(x, np.random.default_rng(0)), "forecast_tasks": forecast_tasks, "stack_tasks": stack_tasks,
    "walk_forward": lambda x: walk_forward([Entrant("EWMA", Ewma(), "few_shot")], x, progress=False), "train_network": lambda x: train_network(x, x, progress=False),
    "train": lambda x: train(good().start, [x], x, progress=False), **{f"{type(m).__name__}.{verb}": getattr(m, verb) for verb, models in
    dict(adapt=[Garch(), Har(), Network()], predict=[Historical(), Ewma()]).items() for m in models}}
PATH_ENTRIES = {"read_bars": read_bars, "write_bars": lambda x: write_bars(good().bars, x), "MAMLVolatility.load": MAMLVolatility.load, "load_model": load_model}
NAME_ENTRIES = {"load_sample": load_sample, "load_stock_data": lambda x: load_stock_data(x, "2020-01-01", "2021-01-01"), "load_bybit_data": load_bybit_data}
SPEC_ENTRIES = {
    "make_windows": lambda x: make_windows(good().features, x), "run_study": lambda x: run_study(good().bars, good().bars, x), "train": lambda x: train(good().start, [good().tasks], good().watch, x),
    "train_network": lambda x: train_network(labelled(good().windows), labelled(good().windows), x), "target_weights": lambda x: target_weights(good().forecasts["a"], 5, x),
    "run_backtest sizing": lambda x: run_backtest(good().bars, good().forecasts["a"], sizing=x), "run_backtest costs": lambda x: run_backtest(good().bars, good().forecasts["a"], costs=x)}
PLAIN_ENTRIES = {"adjust_bars": adjust_bars, "as_panel": as_panel, "by_asset": lambda x: list(by_asset(x))} # Take tables that were checked before
RESULT_ENTRIES = TABLE_ENTRIES | {"target_weights": lambda x: target_weights(x, 5), "run_backtest": lambda x: run_backtest(good().bars, x)}
WRONG_TYPE = {f"{kind}: {name}": (entry, wrongs) for kind, entries, wrongs in [
    ("bars", BAR_ENTRIES | PLAIN_ENTRIES, ([1, 2], None, "FB")), ("series", SERIES_ENTRIES, ([1, 2], None, "FB")),
    ("features", {"make_windows": make_windows, "create_tasks": create_tasks}, ([1, 2], None, "FB")), ("forecasts", RESULT_ENTRIES, ([1, 2], None, "a")),
    ("windows", WINDOW_ENTRIES, ([1, 2], None, "FB", pd.DataFrame({"close": [1.]}))), ("path", PATH_ENTRIES, ([1, 2], None, 5)),
    ("name", NAME_ENTRIES, ([1, 2], None, 5)), ("spec", SPEC_ENTRIES, ([1, 2], None, "daily"))] for name, entry in entries.items()}


@pytest.mark.parametrize("case", WRONG_TYPE)
def test_wrong_type(case):
    entry, wrongs = WRONG_TYPE[case]
    for wrong in wrongs: refused(lambda: entry(wrong))


# Valid, but not enough, or nothing in it

def first(table, n): return table.groupby(level="symbol").head(n)
def standing_still(bars): return bars.assign(open=38., high=38., low=38., close=38.)


NOT_ENOUGH = {
    "compute_features": (lambda g: compute_features(first(g.bars, 20)), "FB: 20 bars, from 2012-05-18"), "make_windows": (lambda g: make_windows(first(g.features, 64)), "FB: 64 bars from 2012-06-18"),
    "create_tasks": (lambda g: create_tasks(first(g.features, 134)), "FB, GOOG: at most 134"), "parkinson": (lambda g: parkinson(g.bars, 197), "FB"), "yang_zhang": (lambda g: yang_zhang(g.bars, 1), "n=1"),
    "realized_volatility": (lambda g: realized_volatility(log_returns(g.bars["close"]), 1000), "load a longer history"), "forward_volatility": (lambda g: forward_volatility(log_returns(g.bars["close"]), 0), "horizon=0"),
    "walk_forward": (lambda g: walk_forward([Entrant("EWMA", Ewma(), "few_shot")], g.windows[:20], progress=False), "support of 10"), "run_study": (lambda g: run_study(g.bars, g.bars, replace(STUDY, split="2012-06-01"), False), "earlier history"),
    "run_study split": (lambda g: run_study(g.bars, g.bars, replace(STUDY, split="2030-01-01"), False), "later history"), "run_study symbol": (lambda g: run_study(g.bars, g.bars, replace(STUDY, test=("XX",)), False), "XX"),
    "Network.adapt one": (lambda g: Network().adapt(g.windows[:1]), "longer history"), "Network.adapt none": (lambda g: Network().adapt(g.windows[:0]), ""),
    "train_network none": (lambda g: train_network(g.windows[:0], g.windows[:0]), ""), "train_network unlabelled": (lambda g: train_network(g.windows, g.windows, PooledSpec(updates=2), progress=False), "label"),
    "train": (lambda g: train(g.start, [g.tasks[:0]], g.tasks[:0]), "0 tasks"), "train on what is watched": (lambda g: train(g.start, [g.tasks], g.tasks), "watch later dates"), "Garch few": (lambda g: Garch().adapt(make_windows(g.features, TaskSpec(lookback=20))[:1]), "FB from 2012-06-18"),
    "Garch.adapt none": (lambda g: Garch().adapt(g.windows[:0]), "support is empty"), "Har.adapt none": (lambda g: Har().adapt(g.windows[:0]), "support is empty"), "Garch.predict": (lambda g: Garch().predict(g.windows), "adapt(support)"),
    "cross_market_tasks": (lambda g: cross_market_tasks(g.windows, np.random.default_rng(0)), "of market 'us_equity'"), "diebold_mariano": (lambda g: diebold_mariano(first(g.forecasts, 15), "a", "b"), "too few"),
    "run_backtest": (lambda g: run_backtest(first(g.bars, 30), g.forecasts["a"]), "FB at 2012-09-"), "by_asset": (lambda g: list(by_asset(g.bars[:0])), ""),
    "features of a price that stands still": (lambda g: compute_features(standing_still(g.bars)), "FB: prices never move from 2012-05-18"),
    "windows of a price that stands still": (lambda g: make_windows(g.features.assign(log_return=0.)), "FB at 2012-09-11"),
    "adapting to a price that stands still": (lambda g: MAMLVolatility().adapt_and_predict(np.zeros((10, 60, 11)), np.zeros(10), np.zeros((5, 60, 11))), "no price movement"),
    "adapting to nothing": (lambda g: MAMLVolatility().adapt_and_predict(g.windows[:0].x, g.windows[:0].y, g.windows[:5].x), "")}


@pytest.mark.parametrize("case", NOT_ENOUGH)
def test_not_enough(case):
    call, says = NOT_ENOUGH[case]
    refused(lambda: call(good()), says)


# Settings that cannot be meant

GARCH = Entrant("GARCH", Garch(), "full_history", "by_asset")
SETTINGS = {
    **{f"TaskSpec({name}={value!r})": lambda g, name=name, value=value: TaskSpec(**{name: value}) for name in ("lookback", "horizon", "n_support", "n_query", "stride") for value in (0, -1, 2.5, None, "5")},
    "TaskSpec leaks": lambda g: TaskSpec(horizon=6), "create_tasks": lambda g: create_tasks(g.features, 60, 0),
    **{f"SizingSpec({value!r})": lambda g, value=value: SizingSpec(target_risk=value) for value in (0, -1, np.nan, None, "high")},
    **{f"CostSpec({value!r})": lambda g, value=value: CostSpec(commission_bps=value) for value in (-1, np.nan, None, "high")},
    **{f"TrainingSpec({name}={value!r})": lambda g, name=name, value=value: train(g.start, [g.tasks], g.watch, TrainingSpec(**{**dict(updates=1, batch=2), name: value}), progress=False)
       for name in ("updates", "batch", "validate_every", "inner_steps", "outer_lr", "warm_up", "patience", "checkpoint_every") for value in (-1, None)},
    **{f"PooledSpec({name}={value!r})": lambda g, name=name, value=value: train_network(labelled(g.windows), labelled(g.windows), PooledSpec(**{**dict(updates=1, batch=2), name: value}), progress=False)
       for name in ("updates", "batch", "validate_every", "learning_rate") for value in (-1, None)},
    **{f"StudySpec({name}={value!r})": lambda g, name=name, value=value: replace(STUDY, **{name: value})
       for name, value in [("train", ()), ("test", ("GOOG",)), ("split", "soon"), ("split", None), ("split", [1]), ("every", 0), ("seeds", ()), ("refit_every", 0)]},
    **{f"{model.__name__}({value!r})": lambda g, model=model, value=value: model(value).predict(g.windows) for model, value in [(Historical, 0), (Historical, 61), (Historical, "20"), (Ewma, 0.), (Ewma, 1.), (Ewma, "0.94")]},
    "Garch": lambda g: Garch(distribution="cauchy"), "Har": lambda g: Har((1, 61)).adapt(labelled(g.windows)),
    "MAMLVolatility": lambda g: MAMLVolatility(input_dim=10), "make_windows markets": lambda g: make_windows(g.features, markets={"FB": "us"}),
    "walk_forward refit_every": lambda g: walk_forward([GARCH], g.windows, refit_every=0, progress=False), "walk_forward one name twice": lambda g: walk_forward([GARCH, replace(GARCH, model=Har())], g.windows[-70:], progress=False),
    "Entrant": lambda g: Entrant("GARCH", Garch(), "few_shot", "by_asset"), "target_weights horizon": lambda g: target_weights(g.forecasts["a"], 0),
    "run_backtest capital": lambda g: run_backtest(g.bars, g.forecasts["a"], capital=0), "run_backtest calendar": lambda g: run_backtest(g.bars, g.forecasts["a"], bars_per_year=8760),
    "diebold_mariano": lambda g: diebold_mariano(g.forecasts, "a", "c"), "diebold_mariano loss": lambda g: diebold_mariano(g.forecasts, "a", "b", "rmse"),
    "warm_up": lambda g: TrainingSpec(warm_up=1.), "no device": lambda g: train(g.start, [g.tasks], g.watch, device="gpu"), "train shares": lambda g: train(g.start, [g.tasks], g.watch, shares=(1, 2)),
    "checkpoint in no folder": lambda g: train(g.start, [g.tasks], g.watch, TrainingSpec(updates=1, batch=2), "no/such/run", progress=False),
    "checkpoint is a folder": lambda g: train(g.start, [g.tasks], g.watch, TrainingSpec(updates=1, batch=2), ".", progress=False),
    "save in no folder": lambda g: save_model(train(g.start, [g.tasks], g.watch, TrainingSpec(updates=1, batch=2), progress=False), "no/such/model"),
    "save untrained": lambda g: MAMLVolatility().save("model"), "meta_train_step on nothing": lambda g: MAMLVolatility().meta_train_step([]), "meta_train_step on triples": lambda g: MAMLVolatility().meta_train_step([create_tasks(g.features)[0][:3]])}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_meant(case): refused(lambda: SETTINGS[case](good()))
