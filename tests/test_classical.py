"Properties of the classical forecasters that the chapter does not show: hourly windows, dull and wild returns, histories that grow."
import warnings
from dataclasses import replace

import numpy as np
import pytest
from arch.univariate import EGARCH, StudentsT, ZeroMean

import metavol.classical as classical
from metavol.bars import HistoryError, MetavolError
from metavol.classical import (SMALLEST, Egarch, Ewma, FewShotGarch, Garch, Historical, asset_returns, egarch_horizon_variance, egarch_variance,
                               estimate_garch, estimate_many, standard_returns, with_level)
from metavol.features import compute_features
from metavol.processes import garch_horizon_variance, garch_variance, simulate_bars, simulate_garch
from metavol.tasks import DAILY, HOURLY, Windows, forecast_tasks, known_at, labelled, make_windows

MODELS = [Historical(), Historical(7), Ewma(), Garch(), Garch(asymmetric=True, distribution="t"), FewShotGarch(), Egarch()]
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
    tasks = forecast_tasks(WINDOWS[spec][::100])
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


@pytest.mark.parametrize("model", [Garch(), Garch(asymmetric=True, distribution="t"), FewShotGarch()], ids=["garch", "gjr-t", "few-shot"])
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


def test_few_fits_side_by_side_fail_like_one(monkeypatch):
    monkeypatch.setattr(classical, "STEPS", 1)
    query = WINDOWS[DAILY][60::7]
    query = query[np.isin(query.origin, forecast_tasks(query).query[:, 0])]
    sigma_hat, failed = FewShotGarch().answer_counted(query)
    alone = [FewShotGarch().adapt(task.support) for task in forecast_tasks(query)]
    assert failed == sum(not model.converged for model in alone) > 0
    lost = next(i for i, model in enumerate(alone) if not model.converged)
    assert (alone[lost].fit.alpha, alone[lost].fit.beta) == pytest.approx(classical.FALLBACK[1:3])
    np.testing.assert_allclose(sigma_hat, [m.predict(task.query)[0] for m, task in zip(alone, forecast_tasks(query))], rtol=1e-10)


@pytest.mark.parametrize("spec", [DAILY, HOURLY], ids=["daily", "hourly"])
def test_many_garchs_are_as_likely_as_those_of_arch(spec):
    windows = make(spec, 500, seed=3, dof=5)
    rows = standard_returns(np.array([asset_returns(task.support, "GARCH")[2] for task in forecast_tasks(windows[::12])]))[0]
    def log_likelihood(start, omega, alpha, beta, row):
        variance = garch_variance(row, omega, alpha, beta, start=start)[:-1]
        return -(np.log(2*np.pi*variance) + row**2/variance).sum()/2
    ours = np.array([log_likelihood(*one, row) for *one, row in zip(*estimate_many(rows)[:4], rows)])
    theirs = np.array([log_likelihood(*estimate_garch(row, False, "normal")[:4], row) for row in rows])
    assert (ours > theirs - 2e-3).mean() > .94 and np.mean(ours - theirs) > -.05


def test_an_answer_does_not_depend_on_the_company():
    query = WINDOWS[DAILY][WINDOWS[DAILY].symbol == "SIM1"][60:]
    everyone = FewShotGarch().answer(query)
    for rows in ([0], [0, 7], [3, 50, 90], list(range(0, len(query), 3))):
        np.testing.assert_array_equal(FewShotGarch().answer(query[rows]), everyone[rows])
    assert FewShotGarch().answer_counted(query[:0])[1] == 0


@pytest.mark.parametrize("model", [FewShotGarch(), Egarch()], ids=["few-shot", "egarch"])
def test_the_future_is_not_heard(model):
    windows = WINDOWS[DAILY]
    one = windows[windows.symbol == "SIM0"]
    asked, moment = one[100:110], one.origin[109]
    wrecked = windows.history.features.copy()
    wrecked[moment + 1:] = wrecked[moment + 1:]*-7 + .3
    realized = np.where(np.arange(len(wrecked)) + DAILY.horizon > moment, 5., windows.history.realized)
    other = replace(windows.history, features=wrecked, realized=realized)
    support = known_at(one, asked.time[0])
    fitted, deaf = model.adapt(support), model.adapt(Windows(other, support.origin))
    np.testing.assert_array_equal(fitted.predict(asked), deaf.predict(Windows(other, asked.origin)))
    if hasattr(model, "answer"): np.testing.assert_array_equal(model.answer(asked), model.answer(Windows(other, asked.origin)))


def test_egarch_is_the_egarch_of_arch():
    returns = simulate_garch(400, np.random.default_rng(5), alpha=.05, gamma=.05).returns
    bars = simulate_bars(np.full(400, .01), 4, np.random.default_rng(6), returns)
    support = labelled(make_windows(compute_features(bars)))
    fit, (_, _, returns) = Egarch().adapt(support).fit, asset_returns(support, "EGARCH")
    standard, unit = standard_returns(returns)
    model = ZeroMean(standard, volatility=EGARCH(1, 1, 1), distribution=StudentsT(), rescale=False)
    theirs = model.fix([fit.omega, fit.alpha, fit.gamma, fit.beta, fit.dof])
    path = egarch_variance(standard, [fit.omega, fit.alpha, fit.gamma, fit.beta], fit.start)
    np.testing.assert_allclose(path[:-1], theirs.conditional_volatility**2, rtol=1e-10)
    np.testing.assert_allclose(theirs.loglikelihood, model.fit(disp="off").loglikelihood, atol=1e-3)
    np.testing.assert_allclose(path[-1], theirs.forecast(horizon=1, reindex=False).variance.iloc[0, 0], rtol=1e-10)
    assert np.diff([egarch_horizon_variance(path[-1:], fit, n)[0] for n in range(1, 6)]).min() > 0


@pytest.mark.parametrize("model", [Garch(), Garch(asymmetric=True, distribution="t"), Egarch()], ids=["garch", "gjr-t", "egarch"])
def test_a_refit_begins_where_the_last_one_ended(model):
    one = make(n_bars=900, seed=8, n_assets=1)
    early, late, query = known_at(one, one.time[600]), known_at(one, one.time[700]), one[700:]
    warm, cold = model.adapt(early).adapt(late), model.adapt(late)
    np.testing.assert_allclose(warm.predict(query), cold.predict(query), rtol=5e-3)
    assert warm.converged and model.fit is None
    other = make(n_bars=900, seed=9)
    np.testing.assert_array_equal(model.adapt(early).adapt(labelled(other[other.symbol == "SIM1"])).predict(other[-1]),
                                  model.adapt(labelled(other[other.symbol == "SIM1"])).predict(other[-1]))


def test_a_failed_egarch_says_so_and_still_forecasts(monkeypatch):
    monkeypatch.setattr(classical, "most_likely", lambda model, begin: ([np.nan]*5, False))
    task = forecast_tasks(WINDOWS[DAILY])[0]
    model = Egarch().adapt(task.support)
    assert not model.converged and (model.fit.alpha, model.fit.beta) == (classical.EGARCH_FALLBACK[1], classical.EGARCH_FALLBACK[3])
    np.testing.assert_allclose(model.predict(task.query), Ewma().predict(task.query), rtol=.3)
    assert model.adapt(task.support).fit.start == model.fit.start


def test_bounds_leave_a_level():
    for parameters in [(1e-6, 0.5, 0.6, 0.2), (1e-6, 0.3, 0.2, -0.5), (1e-8, 0., 0., 0.), (1e-6, 0.1, 0.9, 0.)]:
        omega, alpha, beta, gamma = with_level(*parameters)
        assert np.isfinite(garch_horizon_variance(1e-4, omega, alpha, beta, gamma, 5))


def test_errors_say_what_to_do():
    windows = WINDOWS[DAILY]
    one, other = windows[windows.symbol == "SIM0"], windows[windows.symbol == "SIM1"]
    flat = one.history.features.copy()
    flat[:, 0] = .01
    steady, few = replace(one, history=replace(one.history, features=flat)), WINDOWS[HOURLY][:1]
    for model in (Garch(), Egarch(), FewShotGarch()):
        with pytest.raises(MetavolError, match=r"adapt\(support\)"): model.predict(one[:3])
        with pytest.raises(HistoryError, match="support is empty"): model.adapt(one[:0])
        with pytest.raises(MetavolError, match="SIM0: the support window of .* has no label yet"): model.adapt(one)
        fitted = model.adapt(known_at(one[80:], one.time[150]))
        with pytest.raises(MetavolError, match="fitted on SIM0"): fitted.predict(other[:1])
        with pytest.raises(MetavolError, match="SIM0: asked at"): fitted.predict(one[5])
        with pytest.raises(MetavolError, match="one asset at a time"): model.adapt(labelled(windows))
        with pytest.raises(HistoryError, match="needs at least 30"): model.adapt(few[:1])
        with pytest.raises(MetavolError, match="returns are equal"): model.adapt(steady[:2])
    with pytest.raises(MetavolError, match="returns are equal"): FewShotGarch().answer(steady[-3:])
    with pytest.raises(HistoryError, match="SIM0: asked at .* before its history holds"): FewShotGarch().answer(one[:60])
    with pytest.raises(MetavolError, match="choose one of"): Garch(distribution="cauchy")
    with pytest.raises(MetavolError, match="between 0 and 1"): Ewma(0.).predict(one)
    with pytest.raises(HistoryError, match="ask for 1 to 60"): Historical(61).predict(one)
    with pytest.raises(HistoryError, match="ask for 1 to 24"): Historical(30).predict(WINDOWS[HOURLY])
