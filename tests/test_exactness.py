"What must hold to the last digits: gradients, units, seeds, the arrow of time, second opinions, and a run that is killed."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from arch.univariate import GARCH, ZeroMean
from bidask import edge

from metavol.bars import PRICES
from metavol.classical import Ewma, Garch, Historical, support_rows
from metavol.features import bollinger_width, check_causal, compute_features, rsi, spread_estimate
from metavol.har import FEW_SHOT_LAGS, Har, SimilarHar
from metavol.maml import MAMLVolatility, constant_rates
from metavol.neural import Network
from metavol.processes import garch_variance
from metavol.tasks import (Windows, asked_between, asset_tasks, create_tasks, cross_market_tasks, forecast_tasks, known_at,
                           make_windows, regime_tasks, stack_tasks, window_tasks)
from metavol.training import Member, MamlVol, PooledSpec, TrainingSpec, predict_all, split_validation, train, train_network
from metavol.volatility import log_returns
from metavol.walk_forward import Entrant, walk_forward

TRAINED, TESTED = ["AAPL", "IBM", "MSFT"], "GOOG"
POOLED = PooledSpec(updates=20, batch=64, validate_every=10)
META = TrainingSpec(updates=20, batch=8, validate_every=5, outer_lr=3e-4, rate_lr=0.003)


# Adapting

def test_zero_steps_are_the_identity(windows):
    start = train_network(*split_validation(windows), POOLED, progress=False)
    model, tasks = MamlVol((Member(start, constant_rates(start.net, 0.05)),), windows.history.spec), forecast_tasks(windows[::50])
    still, task = replace(model, inner_steps=0), tasks[0]
    np.testing.assert_array_equal(still.adapt(task.support).predict(task.query), model.predict(task.query))
    assert np.abs(predict_all(model, tasks)/predict_all(still, tasks) - 1).max() > 1e-2


# Units

def scale_returns(bars, c): return bars.assign(**{price: np.exp(c*np.log(bars[price])) for price in PRICES})


def meta_model(windows, pooled=POOLED, meta=META, dtype=torch.float64):
    "A few updates of the whole training."
    training, watch = split_validation(windows)
    start = train_network(training, watch, pooled, dtype, progress=False)
    tasks = [asset_tasks(training, step=5), regime_tasks(training), window_tasks(training, np.random.default_rng(0), step=5)]
    return train(start, tasks, asset_tasks(watch, step=1), meta, progress=False)


def entrants(windows):
    "Every kind of model, the pooled ones trained on `windows`."
    training, watch = split_validation(windows)
    return [
        Entrant("Historical", Historical(), "few_shot"), Entrant("EWMA", Ewma(), "few_shot"),
        Entrant("GARCH, few-shot", Garch(), "few_shot", "each_task"), Entrant("HAR, few-shot", Har(FEW_SHOT_LAGS), "few_shot", "each_task"),
        Entrant("GARCH", Garch(), "full_history", "by_asset"), Entrant("GJR", Garch(asymmetric=True), "full_history", "by_asset"),
        Entrant("HAR", Har(), "full_history", "by_asset"), Entrant("Pooled HAR", Har().adapt(windows), "full_history"),
        Entrant("Pooled HAR, logs", Har(form="logs").adapt(windows), "full_history"), Entrant("Similar HAR", SimilarHar(windows), "full_history", "each_task"),
        Entrant("Network", Network(starts=(train_network(training, watch, POOLED, torch.float64, progress=False),)), "full_history"),
        Entrant("Meta-Vol", meta_model(windows), "few_shot", "each_task")]


NAMES = ["Historical", "EWMA", "GARCH, few-shot", "HAR, few-shot", "GARCH", "GJR", "HAR", "Pooled HAR", "Pooled HAR, logs", "Similar HAR", "Network", "Meta-Vol"]


SPLIT, END = "2010-04-15", "2010-07-15" # `check_causal` cuts `four` between the two


def ask(entrants, windows):
    "Forecasts of an asset nobody was trained on; not `realized`, which is the future by definition."
    asked = asked_between(windows[windows.symbol == TESTED], SPLIT, END)
    return walk_forward(entrants, asked, refit_every=4, progress=False).drop(columns="realized")


def train_and_forecast(bars):
    "The whole path from bars to forecasts, training included."
    windows = make_windows(compute_features(bars))
    return ask(entrants(known_at(windows[np.isin(windows.symbol, TRAINED)], SPLIT)), windows)


@pytest.fixture(scope="module")
def four(stocks):
    "Four assets with one calendar, four years."
    return stocks[stocks.index.get_level_values("time") < "2012-01-01"].drop("FB", level="symbol")


@pytest.fixture(scope="module")
def forecasts(four): return train_and_forecast(four)


@pytest.mark.parametrize("c", [0.1, 3.])
def test_scaling_all_returns_scales_every_forecast(four, forecasts, c):
    scaled = train_and_forecast(scale_returns(four, c))
    assert list(forecasts) == ["current", *NAMES] and not np.allclose(forecasts["Meta-Vol"], forecasts["Network"], rtol=1e-3)
    pd.testing.assert_frame_equal(scaled, c*forecasts, rtol=1e-9, atol=0)


def maml_forecast(bars, seed=0):
    tasks = create_tasks(compute_features(bars))
    learner = MAMLVolatility(seed=seed)
    for first in range(0, 40, 8): learner.meta_train_step(tasks[first:first + 8])
    return learner.adapt_and_predict(*tasks[-1][:3])


@pytest.mark.parametrize("c", [0.1, 3.])
def test_scaling_all_returns_scales_the_forecast_of_maml(four, c):
    np.testing.assert_allclose(maml_forecast(scale_returns(four, c)), c*maml_forecast(four), rtol=1e-4)


# Seeds

def network_forecast(bars, seed):
    windows = make_windows(compute_features(bars))
    return train_network(*split_validation(windows), replace(POOLED, seed=seed), progress=False).ratios(windows.inputs[-100:])


def meta_forecast(bars, seed):
    windows = make_windows(compute_features(bars))
    model = meta_model(windows, meta=replace(META, seed=seed), dtype=torch.float32)
    return np.r_[predict_all(model, forecast_tasks(windows[-100:])).ravel(), model.history["loss"]]


@pytest.mark.parametrize("forecast", [maml_forecast, network_forecast, meta_forecast])
def test_a_seed_decides_every_bit(four, forecast):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs)); np.random.seed(len(runs)) # the global state must not matter
        runs.append(forecast(four, seed=seed))
    assert runs[0].tobytes() == runs[1].tobytes() != runs[2].tobytes()


# Time

def smoothed(bars): return compute_features(bars).groupby(level="symbol").rolling(21, center=True).mean().droplevel(0).dropna() # ten bars ahead
def standardized(bars): return (f := compute_features(bars))/f.std() # by the whole file


def test_features_are_causal(four):
    check_causal(compute_features, four)
    for leak in (smoothed, standardized):
        with pytest.raises(AssertionError, match="changed the row"): check_causal(leak, four)


MARKETS = {"AAPL": "one", "IBM": "one", "MSFT": "two", "GOOG": "two"}
KINDS = {
    "asset": lambda windows: asset_tasks(windows, step=1),
    "regime": lambda windows: regime_tasks(windows, step=1),
    "window": lambda windows: window_tasks(windows, np.random.default_rng(0), step=1),
    "cross-market": lambda windows: cross_market_tasks(windows, np.random.default_rng(0), step=1),
    "forecast": forecast_tasks,
}


def task_table(cut, features):
    "Everything a task holds, by its first support window and the moment at which all of it was known."
    windows = make_windows(features, markets=MARKETS)
    tasks = cut(windows)
    batch, first, query = stack_tasks(tasks), Windows(windows.history, tasks.support[:, 0]), Windows(windows.history, tasks.query)
    known = query.time[:, -1] if tasks.kind == "forecast" else query.label_time[:, -1]
    parts = [batch.support_x, batch.support_y, batch.query_x, batch.query_unit, query.time.astype("int64"), query.history.asset[tasks.query]]
    if tasks.kind != "forecast": parts.append(batch.query_y)
    index = pd.MultiIndex.from_arrays([first.symbol, first.time, pd.DatetimeIndex(known, tz="UTC")])
    return pd.DataFrame(np.hstack([part.reshape(len(tasks), -1) for part in parts]), index)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_are_causal(four, kind):
    def cut(bars, features=compute_features): return task_table(KINDS[kind], features(bars))
    assert cut(four).index.is_unique and len(cut(four)) > 50
    check_causal(cut, four)
    for leak in (smoothed, standardized):
        with pytest.raises(AssertionError, match="changed the row"): check_causal(lambda bars: cut(bars, leak), four)


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_to_come_changes_no_task(stocks, four, kind):
    def cut(bars): # Facebook is listed months after the last label
        windows = known_at(make_windows(compute_features(bars), markets={**MARKETS, "FB": "one"}), "2011-12-30")
        tasks = KINDS[kind](windows)
        return [part for rows in (tasks.support, tasks.query) for part in (Windows(windows.history, rows).symbol, Windows(windows.history, rows).time)]
    for found, expected in zip(cut(stocks), cut(four)): np.testing.assert_array_equal(found, expected)


def test_forecasts_are_causal_training_included(four): check_causal(train_and_forecast, four, n_cuts=1, rtol=1e-9)


class Peeking:
    "A model that knows one thing too much: the size of tomorrow's return."
    def __init__(self, model): self.model = model
    def adapt(self, support): return Peeking(self.model.adapt(support))
    def predict(self, query):
        returns = query.history.features[:, 0]
        return self.model.predict(query)*(1 + np.abs(returns[np.minimum(query.origin + 1, len(returns) - 1)]))


@pytest.fixture(scope="module")
def trained(four):
    windows = make_windows(compute_features(four))
    return {e.name: e for e in entrants(known_at(windows[np.isin(windows.symbol, TRAINED)], SPLIT))}


@pytest.mark.parametrize("name", NAMES)
def test_a_forecaster_that_peeks_is_caught(four, trained, name):
    peeking = replace(trained[name], model=Peeking(trained[name].model))
    def forecast(bars): return ask([peeking], make_windows(compute_features(bars)))
    with pytest.raises(AssertionError, match="GOOG"): check_causal(forecast, four.loc[[TESTED]], n_cuts=1, rtol=1e-9)


# Second opinions

@pytest.mark.parametrize("asymmetric", [False, True])
def test_garch_is_the_conditional_variance_of_arch(windows, asymmetric):
    task = forecast_tasks(windows[windows.symbol == TESTED])[-1]
    fit = Garch(asymmetric).adapt(task.support).fit
    parameters = [fit.omega, fit.alpha, *([fit.gamma] if asymmetric else []), fit.beta]
    first, last = support_rows(task.support)
    returns = windows.history.features[first:last + 1, 0]
    theirs = ZeroMean(returns, volatility=GARCH(1, int(asymmetric), 1), rescale=False).fix(parameters).conditional_volatility**2
    ours = garch_variance(returns, fit.omega, fit.alpha, fit.beta, fit.gamma, start=fit.start)
    np.testing.assert_allclose(ours[:-1], theirs, rtol=1e-10)


def test_spread_is_edge_on_every_window(stocks):
    bars = stocks.loc["FB"]
    ours = spread_estimate(bars)
    theirs = [edge(*bars[PRICES].iloc[end - 21:end].to_numpy().T, sign=True) for end in range(21, len(bars) + 1)]
    assert np.isfinite(theirs).all() and ours.iloc[:20].isna().all()
    np.testing.assert_allclose(ours.iloc[20:], np.maximum(theirs, 0), rtol=1e-10, atol=1e-12)


def rsi_by_loop(returns, n=14):
    gain, loss, values = 0., 0., [np.nan]*n
    for i, r in enumerate(returns[1:], start=1):
        new, share = np.array([max(r, 0.), max(-r, 0.)]), 1/n
        gain, loss = (gain, loss) + share*new if i <= n else (1 - share)*np.array([gain, loss]) + share*new
        if i >= n: values.append(100*gain/(gain + loss))
    return values


def test_rsi_and_bollinger_width_agree_with_ta_and_with_a_loop(stocks):
    momentum, volatility = pytest.importorskip("ta.momentum"), pytest.importorskip("ta.volatility")
    close = stocks.loc["AAPL", "close"]
    ours, log = rsi(log_returns(close)), np.log(close)
    np.testing.assert_allclose(ours, rsi_by_loop(log_returns(close).to_numpy()), rtol=1e-11)
    np.testing.assert_allclose(ours.iloc[500:], momentum.RSIIndicator(log, 14).rsi().iloc[500:], rtol=1e-10) # ta starts differently; by then it is forgotten
    bands = volatility.BollingerBands(log, 20, 2)
    np.testing.assert_allclose(bollinger_width(close), bands.bollinger_hband() - bands.bollinger_lband(), rtol=1e-8)


def test_extended_inputs_do_not_see_the_future(stocks):
    bars = stocks.loc[['AAPL', 'IBM']]
    bars = bars[bars.index.get_level_values('time') >= '2012-01-01']
    def inputs(bars):
        windows = make_windows(compute_features(bars, extended=True), markets={'AAPL': 'a', 'IBM': 'b'})
        index = pd.MultiIndex.from_arrays([windows.symbol, pd.DatetimeIndex(windows.time, tz='UTC')])
        return pd.DataFrame(windows.inputs, index)
    check_causal(inputs, bars, n_cuts=2)
    both = inputs(bars)
    np.testing.assert_array_equal(both[range(11, 15)], both[range(15, 19)]) # One asset a market: its mean is itself
