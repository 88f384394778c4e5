"Properties of the classical forecasters that the chapter does not show: hourly windows, dull and wild returns, histories that grow."
import warnings
from dataclasses import replace

import numpy as np
import pytest

import metavol.classical as classical
from metavol.bars import HistoryError, MetavolError
from metavol.classical import FEW_SHOT_LAGS, SMALLEST, Ewma, Garch, Har, Historical, every_origin, with_level
from metavol.features import compute_features
from metavol.processes import garch_horizon_variance, simulate_bars, simulate_garch
from metavol.tasks import DAILY, HOURLY, Windows, forecast_tasks, known_at, labelled, make_windows

MODELS = [Historical(), Historical(7), Ewma(), Garch(), Garch(asymmetric=True), Garch(distribution="t"), Har(), Har(FEW_SHOT_LAGS), Har(())]
NAMES = [f"{type(m).__name__}-{i}" for i, m in enumerate(MODELS)]


def make(spec=DAILY, n_bars=260, seed=0, dof=None, n_assets=2):
    rng = np.random.default_rng(seed)
    path = simulate_garch(n_bars, rng, n_assets=n_assets, dof=dof)
    freq = "B" if spec is DAILY else "h"
    return make_windows(compute_features(simulate_bars(path.sigma, 8, rng, returns=path.returns, freq=freq)), spec)


WINDOWS = {spec: make(spec) for spec in (DAILY, HOURLY)}


def scaled(windows, c):
    h, power = windows.history, np.array([1, 1, 2, 1, 1, 1, 0, 0, 1, 0, 1])
    return replace(windows, history=replace(h, features=h.features*c**power, scale=c*h.scale, realized=c*h.realized))


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
@pytest.mark.parametrize("spec", [DAILY, HOURLY], ids=["daily", "hourly"])
def test_every_task_gets_a_positive_forecast_that_scales(model, spec):
    tasks = forecast_tasks(WINDOWS[spec][::40])
    for task in tasks:
        sigma_hat = model.adapt(task.support).predict(task.query)
        assert sigma_hat.shape == (1,) and np.isfinite(sigma_hat).all() and (sigma_hat >= SMALLEST*task.query.unit).all()
        for c in (0.37, 100.):
            again = model.adapt(scaled(task.support, c)).predict(scaled(task.query, c))
            np.testing.assert_allclose(again, c*sigma_hat, rtol=1e-9)
    assert getattr(model, "fit", None) is None


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_one_at_a_time_is_all_at_once(model):
    one = WINDOWS[DAILY][WINDOWS[DAILY].symbol == "SIM1"]
    adapted = model.adapt(labelled(one)[:100])
    rows = np.array([150, 101, 140])
    np.testing.assert_array_equal(adapted.predict(one[rows]), [adapted.predict(one[r])[0] for r in rows])
    assert len(adapted.predict(one[:0])) == 0


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_a_longer_history_and_other_assets_change_nothing(model):
    "A fitted model answers in any history that holds its bars, wherever the rows lie."
    bars = simulate_bars(simulate_garch(240, np.random.default_rng(4), n_assets=2).sigma, 8, np.random.default_rng(5))
    panel, alone = make_windows(compute_features(bars)), make_windows(compute_features(bars.loc[["SIM1"]]))
    task = forecast_tasks(alone[-30:])[0]
    same = Windows(panel.history, task.query.origin + (panel.history.asset == 0).sum())
    assert same.symbol[0] == "SIM1" and same.time[0] == task.query.time[0]
    adapted = model.adapt(task.support)
    np.testing.assert_array_equal(adapted.predict(task.query), adapted.predict(same))


@pytest.mark.parametrize("model", [Garch(), Garch(asymmetric=True), Garch(distribution="t")], ids=["garch", "gjr", "t"])
def test_garch_survives_wild_returns_in_silence(model):
    one = make(seed=7, dof=2.5, n_assets=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in forecast_tasks(one[::25]):
            fit = model.adapt(task.support).fit
            assert fit.omega > 0 and min(fit.alpha, fit.beta, fit.alpha + fit.gamma) >= 0 and fit.alpha + fit.beta + fit.gamma/2 < 1


def test_a_failed_fit_says_so_and_still_forecasts(monkeypatch):
    class Broken(classical.ZeroMean):
        def fit(self, **kwargs):
            result = super().fit(**kwargs)
            result._optim_output.status = 9
            return result
    monkeypatch.setattr(classical, "ZeroMean", Broken)
    task = forecast_tasks(WINDOWS[DAILY])[0]
    model = Garch().adapt(task.support)
    assert not model.converged and (model.fit.alpha, model.fit.beta) == classical.FALLBACK[1:3]
    np.testing.assert_allclose(model.predict(task.query), Ewma().predict(task.query), rtol=0.2)


def test_bounds_leave_a_level():
    for parameters in [(1e-6, 0.5, 0.6, 0.2), (1e-6, 0.3, 0.2, -0.5), (1e-8, 0., 0., 0.), (1e-6, 0.1, 0.9, 0.)]:
        omega, alpha, beta, gamma = with_level(*parameters)
        assert np.isfinite(garch_horizon_variance(1e-4, omega, alpha, beta, gamma, 5))


def test_har_uses_what_the_support_shows_and_no_more():
    windows = WINDOWS[DAILY]
    task = forecast_tasks(windows)[0]
    changed = windows.history.features.copy()
    seen = slice(task.support.origin.min() - 59, task.support.origin.max() + 6)
    hidden = np.ones(len(changed), bool)
    hidden[seen] = False
    changed[hidden] *= 3
    history = replace(windows.history, features=changed, realized=np.where(np.isin(np.arange(len(changed)), every_origin(task.support).origin), windows.history.realized, 9.))
    for model in (Har(), Har(FEW_SHOT_LAGS)):
        other = model.adapt(Windows(history, task.support.origin))
        np.testing.assert_array_equal(other.fit.coefficients, model.adapt(task.support).fit.coefficients)


def test_har_on_a_single_label_is_that_label():
    one = labelled(WINDOWS[DAILY])[10]
    np.testing.assert_allclose(Har().adapt(one).predict(WINDOWS[DAILY][20]), one.y, rtol=1e-9)


def test_har_replaces_nonsense_by_the_mean():
    windows = labelled(WINDOWS[DAILY])
    model = Har().adapt(windows)
    mad = replace(model, fit=replace(model.fit, coefficients=-model.fit.coefficients))
    np.testing.assert_array_equal(mad.predict(windows[:50]), np.maximum(model.fit.mean, SMALLEST*windows[:50].unit))


def test_errors_say_what_to_do():
    windows = WINDOWS[DAILY]
    one, other = windows[windows.symbol == "SIM0"], windows[windows.symbol == "SIM1"]
    for model in (Garch(), Har()):
        with pytest.raises(MetavolError, match=r"adapt\(support\)"): model.predict(one[:3])
        with pytest.raises(HistoryError, match="support is empty"): model.adapt(one[:0])
        with pytest.raises(MetavolError, match="SIM0: the support window of .* has no label yet"): model.adapt(one)
    fitted = Garch().adapt(known_at(one[80:], one.time[150]))
    with pytest.raises(MetavolError, match="fitted on SIM0"): fitted.predict(other[:1])
    with pytest.raises(MetavolError, match="SIM0: asked at"): fitted.predict(one[5])
    with pytest.raises(MetavolError, match="one asset at a time"): Garch().adapt(labelled(windows))
    with pytest.raises(MetavolError, match="choose one of"): Garch(distribution="cauchy")
    with pytest.raises(MetavolError, match="between 0 and 1"): Ewma(0.).predict(one)
    with pytest.raises(HistoryError, match="ask for 1 to 60"): Historical(61).predict(one)
    with pytest.raises(HistoryError, match="ask for 1 to 24"): Har((1, 30)).adapt(labelled(WINDOWS[HOURLY]))
