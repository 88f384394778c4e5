"Properties of the stochastic volatility forecaster that the chapter does not show: hourly windows, still bars, failed fits, growing histories."
import warnings
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.tsa.statespace.sarimax import SARIMAX

import metavol.stochastic as stochastic
from metavol.bars import HistoryError, MetavolError
from metavol.classical import SMALLEST, Ewma, asset_returns, standard_returns
from metavol.features import compute_features
from metavol.processes import simulate_bars, simulate_garch, simulate_log_sv
from metavol.stochastic import (INLIERS, NOISE, LogVariance, StochasticVolatility, estimate_log_variance, estimate_stochastic, expected_variance,
                                filtered, log_squares)
from metavol.tasks import DAILY, HOURLY, Windows, forecast_tasks, known_at, labelled, make_windows

MODEL = StochasticVolatility()


def make(spec=DAILY, n_bars=260, seed=0, n_assets=2, simulate=simulate_log_sv):
    rng = np.random.default_rng(seed)
    path = simulate(n_bars, rng, n_assets=n_assets)
    return make_windows(compute_features(simulate_bars(path.sigma, 8, rng, returns=path.returns, freq="B" if spec is DAILY else "h")), spec)


WINDOWS = {spec: make(spec) for spec in (DAILY, HOURLY)}
ONE = WINDOWS[DAILY][WINDOWS[DAILY].symbol == "SIM0"]


def scaled(windows, c):
    h, power = windows.history, np.array([1, 1, 2, 1, 1, 1, 0, 0, 1, 0, 1])
    return replace(windows, history=replace(h, features=h.features*c**power, scale=c*h.scale, realized=c*h.realized))


def with_returns(windows, returns):
    features = windows.history.features.copy()
    features[:, 0] = returns
    return replace(windows, history=replace(windows.history, features=features))


@pytest.mark.parametrize("spec", [DAILY, HOURLY], ids=["daily", "hourly"])
def test_every_task_gets_a_positive_forecast_that_scales(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in forecast_tasks(WINDOWS[spec][::80]):
            sigma_hat = MODEL.adapt(task.support).predict(task.query)
            assert np.isfinite(sigma_hat).all() and (sigma_hat >= SMALLEST*task.query.unit).all() and (sigma_hat < 5*task.query.unit).all()
            for c in (0.37, 100.):
                again = MODEL.adapt(scaled(task.support, c)).predict(scaled(task.query, c))
                np.testing.assert_allclose(again, c*sigma_hat, rtol=1e-9)
    assert MODEL.fit is None


def test_the_likelihood_is_that_of_an_autoregression_with_measurement_error():
    series = log_squares(standard_returns(simulate_log_sv(400, np.random.default_rng(1)).returns)[0])
    series -= series.mean()
    theirs = SARIMAX(series, order=(1, 0, 0), measurement_error=True)
    for persistence, vol_of_vol in ((.97, .2), (.5, .8), (0., .1)):
        np.testing.assert_allclose(LogVariance(series).loglike(np.array([persistence, vol_of_vol])),
                                   theirs.loglike(np.array([persistence, NOISE, vol_of_vol**2])), rtol=1e-8)
    state, uncertainty = filtered(series, .97, .2)
    result = theirs.smooth(np.array([.97, NOISE, .04]))
    np.testing.assert_allclose(state, result.filtered_state[0], atol=1e-6)
    ahead = expected_variance(state, uncertainty, .97, .2, 3)[-1]
    forecast = result.get_forecast(3)
    np.testing.assert_allclose(ahead, np.exp(forecast.predicted_mean + (forecast.var_pred_mean - NOISE)/2), rtol=1e-5)


def test_the_forecast_is_an_expectation():
    "Squared returns of the fitted stretch are on average what they were forecast to be, whatever their distribution."
    for dof in (None, 4):
        returns = simulate_log_sv(3000, np.random.default_rng(2), dof=dof).returns
        fit = estimate_stochastic("SIM", np.datetime64("2000-01-03"), returns)
        standard = returns/fit.unit
        state, uncertainty = filtered(log_squares(standard) - fit.centre, fit.persistence, fit.vol_of_vol)
        ahead = fit.level*expected_variance(state, uncertainty, fit.persistence, fit.vol_of_vol, 1)[:-1, 0]
        np.testing.assert_allclose((standard[1:]**2/ahead).mean(), 1., rtol=1e-6)
        assert fit.converged and .9 < fit.persistence < 1


def test_still_bars_are_small_returns():
    assert log_squares(np.zeros(1))[0] == pytest.approx(np.log(INLIERS) - 1)
    returns = ONE.history.features[:, 0]*(np.arange(len(ONE.history.time)) % 3 > 0)
    still = with_returns(ONE, returns)
    model = MODEL.adapt(labelled(still))
    assert model.converged and np.isfinite(model.predict(still[-5:])).all()
    calm = with_returns(ONE, np.where(np.arange(len(returns)) < 300, returns, 0.))
    sigma_hat = model.predict(calm[-5:])
    assert (sigma_hat >= SMALLEST*calm[-5:].unit).all() and np.isfinite(sigma_hat).all()


def test_a_constant_volatility_is_found_to_be_constant():
    returns = .01*np.random.default_rng(3).standard_normal(3000)
    fit = estimate_stochastic("SIM", np.datetime64("2000-01-03"), returns)
    spread = fit.vol_of_vol**2/(1 - fit.persistence**2)
    assert spread < .05


def test_a_failed_fit_says_so_and_still_forecasts(monkeypatch):
    original = stochastic.minimize
    def broken(*args, **kwargs):
        result = original(*args, **kwargs)
        result.success = False
        return result
    monkeypatch.setattr(stochastic, "minimize", broken)
    task = forecast_tasks(ONE)[0]
    model = MODEL.adapt(task.support)
    assert not model.converged and (model.fit.persistence, model.fit.vol_of_vol) == stochastic.STOCHASTIC_FALLBACK
    np.testing.assert_allclose(model.predict(task.query), Ewma().predict(task.query), rtol=.5)


def test_a_refit_begins_where_the_last_one_ended():
    one = make(n_bars=900, seed=8, n_assets=1)
    early, late, query = known_at(one, one.time[600]), known_at(one, one.time[700]), one[700:]
    np.testing.assert_allclose(MODEL.adapt(early).adapt(late).predict(query), MODEL.adapt(late).predict(query), rtol=5e-3)


def test_one_at_a_time_is_all_at_once_in_any_history():
    panel = WINDOWS[DAILY]
    one = panel[panel.symbol == "SIM1"]
    model, rows = MODEL.adapt(labelled(one)[:100]), np.array([150, 101, 140])
    np.testing.assert_array_equal(model.predict(one[rows]), [model.predict(one[r])[0] for r in rows])
    assert len(model.predict(one[:0])) == 0


def test_the_future_is_not_heard():
    asked = ONE[100:110]
    moment = asked.origin[-1]
    wrecked = ONE.history.features.copy()
    wrecked[moment + 1:] = wrecked[moment + 1:]*-7 + .3
    other = replace(ONE.history, features=wrecked)
    support = known_at(ONE, asked.time[0])
    np.testing.assert_array_equal(MODEL.adapt(support).predict(asked), MODEL.adapt(Windows(other, support.origin)).predict(Windows(other, asked.origin)))


def test_errors_say_what_to_do():
    other = WINDOWS[DAILY][WINDOWS[DAILY].symbol == "SIM1"]
    with pytest.raises(MetavolError, match=r"adapt\(support\)"): MODEL.predict(ONE[:3])
    with pytest.raises(HistoryError, match="support is empty"): MODEL.adapt(ONE[:0])
    with pytest.raises(MetavolError, match="SIM0: the support window of .* has no label yet"): MODEL.adapt(ONE)
    with pytest.raises(MetavolError, match="one asset at a time"): MODEL.adapt(labelled(WINDOWS[DAILY]))
    with pytest.raises(HistoryError, match="29 returns|28 returns"): MODEL.adapt(WINDOWS[HOURLY][:1])
    with pytest.raises(MetavolError, match="returns are equal"): MODEL.adapt(with_returns(ONE, .01)[:2])
    fitted = MODEL.adapt(known_at(ONE[80:], ONE.time[150]))
    with pytest.raises(MetavolError, match="fitted on SIM0"): fitted.predict(other[:1])
    with pytest.raises(MetavolError, match="SIM0: asked at"): fitted.predict(ONE[5])
