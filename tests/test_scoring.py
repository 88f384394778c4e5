"Properties that the losses, the noise floor and the Diebold-Mariano test keep for any forecasts."
from math import ceil, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from metavol.bars import MetavolError
from metavol.scoring import (LOSSES, ForecastError, absolute_error, check_forecasts, date_differences, diebold_mariano, hit, losses, mean_test,
                             noise_floor, qlike, relative_to, score, squared_error, variance_squared_error)

VOLATILITY = st.floats(1e-4, 1.0)
FAST = settings(max_examples=60, deadline=None)


def table(seed, n=80, assets=2):
    "A table of forecasts with two models, `a` and `b`, on daily origins."
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[f"S{i}" for i in range(assets)], pd.date_range("2020-01-01", periods=n, tz="UTC")], names=["symbol", "time"])
    values = 0.02*np.exp(0.3*rng.standard_normal((len(index), 4)))
    return pd.DataFrame(values, index, columns=["realized", "current", "a", "b"])


@FAST
@given(VOLATILITY, VOLATILITY)
def test_losses_are_zero_only_where_forecast_and_outcome_agree(realized, sigma_hat):
    for loss in LOSSES.values():
        assert loss(realized, sigma_hat) >= -1e-12
        assert loss(realized, realized) == pytest.approx(0, abs=1e-15)
    if abs(realized/sigma_hat - 1) > 1e-3:
        assert all(loss(realized, sigma_hat) > 0 for loss in LOSSES.values())


@FAST
@given(VOLATILITY, VOLATILITY, st.floats(0.01, 100))
def test_losses_scale_with_their_units(realized, sigma_hat, scale):
    for loss, power in ((squared_error, 2), (absolute_error, 1), (variance_squared_error, 4), (qlike, 0)):
        assert loss(scale*realized, scale*sigma_hat) == pytest.approx(scale**power*loss(realized, sigma_hat), rel=1e-6, abs=1e-12)


@FAST
@given(st.lists(st.floats(0.2, 3), min_size=3, max_size=12), st.floats(0.5, 2))
def test_the_best_constant_for_qlike_and_variance_error_is_the_mean_variance(outcomes, off):
    realized = np.array(outcomes)
    best = np.sqrt(np.mean(realized**2))
    for loss in (qlike, variance_squared_error):
        assert np.mean(loss(realized, best)) <= np.mean(loss(realized, best*off)) + 1e-9


@FAST
@given(VOLATILITY, VOLATILITY, VOLATILITY)
def test_hit_agrees_with_its_definition_in_words(realized, sigma_hat, current):
    up, down = realized > current and sigma_hat > current, realized < current and sigma_hat < current
    still = realized == current == sigma_hat
    assert hit(realized, sigma_hat, current) == (up or down or still)


@FAST
@given(st.integers(0, 10**6))
def test_score_does_not_depend_on_the_order_of_assets_or_models(seed):
    forecasts = table(seed)
    turned = pd.concat([forecasts.loc[["S1"]], forecasts.loc[["S0"]]])[["b", "current", "a", "realized"]]
    pd.testing.assert_frame_equal(score(turned).loc[["a", "b"]], score(forecasts))


def test_score_by_hand():
    forecasts = pd.DataFrame({"realized": [0.04, 0.02], "current": [0.02, 0.03], "a": [0.02, 0.04], "b": [0.03, 0.02]},
                             pd.MultiIndex.from_product([["A"], pd.date_range("2020-01-01", periods=2, tz="UTC")], names=["symbol", "time"]))
    scores = score(forecasts)
    assert list(scores.columns) == ["mse", "mae", "hit_rate", "qlike", "mse_variance", "origins", "zero_realized"]
    assert scores.loc["a", "mse"] == pytest.approx(0.0004)
    assert scores.loc["a", "mae"] == pytest.approx(0.02)
    assert scores.loc["a", "qlike"] == pytest.approx((4 - np.log(4) + 0.25 + np.log(4) - 2)/2)
    assert scores["hit_rate"].tolist() == [0, 1]
    assert relative_to(scores, "a").loc["a"].tolist() == [1, 1, 1, 1]


def test_zero_outcomes_leave_only_qlike():
    forecasts = table(1)
    forecasts.iloc[[3, 90], 0] = 0.
    scores = score(forecasts)
    assert scores["zero_realized"].tolist() == [2, 2]
    assert scores["origins"].tolist() == [160, 160]
    assert losses(forecasts, "qlike").isna().sum().tolist() == [2, 2]
    assert np.isfinite(scores).all(axis=None)


@pytest.mark.parametrize("degrees,expected", [(None, 0.2131), (8, 0.289), (5, 0.3695), (4, 0.4501)])
def test_noise_floor_against_simulation(degrees, expected):
    rng = np.random.default_rng(5)
    z = rng.standard_normal((200_000, 5)) if degrees is None else rng.standard_t(degrees, (200_000, 5))*sqrt((degrees - 2)/degrees)
    assert noise_floor(5, degrees) == pytest.approx(expected, abs=1e-4)
    assert noise_floor(5, degrees) == pytest.approx(-np.log(np.mean(z**2, axis=1)).mean(), abs=0.006)


def test_noise_floor_limits():
    assert noise_floor(1) == pytest.approx(np.euler_gamma + np.log(2))
    assert noise_floor(5, 1e5) == pytest.approx(noise_floor(5), abs=1e-4)
    for df in (None, 8, 3):
        floors = [noise_floor(h, df) for h in (1, 2, 5, 22)]
        assert floors == sorted(floors, reverse=True) and floors[-1] > 0
    for bad in ((0, None), (5, 2), (5, float("nan"))):
        with pytest.raises(MetavolError): noise_floor(*bad)


def mean_test_by_loops(d, lags):
    "The same test from its definition, one product at a time."
    n, mean = len(d), sum(d)/len(d)
    gamma = [sum((d[t] - mean)*(d[t - j] - mean) for t in range(j, n))/n for j in range(lags + 1)]
    variance = (gamma[0] + 2*sum((1 - j/(lags + 1))*gamma[j] for j in range(1, lags + 1)))/n
    h = lags + 1
    statistic = mean/sqrt(variance)*sqrt((n + 1 - 2*h + h*(h - 1)/n)/n)
    return mean, statistic, 2*stats.t.sf(abs(statistic), n - 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(1, 5))
def test_mean_test_agrees_with_a_second_implementation(seed, n, overlap):
    d = np.convolve(np.random.default_rng(seed).standard_normal(n + overlap - 1), np.ones(overlap), "valid")
    mean, error, p_value, lags = mean_test(d, overlap)
    assert lags >= max(overlap - 1, 1.3*sqrt(n))
    expected_mean, statistic, expected_p = mean_test_by_loops(d.tolist(), lags)
    assert (mean, mean/error, p_value) == pytest.approx((expected_mean, statistic, expected_p), rel=1e-8)


def test_without_overlap_and_lags_it_is_the_ordinary_t_test():
    d = np.random.default_rng(2).standard_normal(50) + 0.3
    mean, error, p_value, _ = mean_test(d, 1, lags=0)
    textbook = stats.ttest_1samp(d, 0)
    assert (mean/error, p_value) == pytest.approx((textbook.statistic, textbook.pvalue))


def test_identical_and_constantly_different_forecasts_have_defined_results():
    forecasts = table(3).assign(c=lambda f: f["a"])
    same = diebold_mariano(forecasts, "a", "c")
    assert (same.mean_difference, same.statistic, same.p_value) == (0, 0, 1)
    assert diebold_mariano(forecasts, "a", "a").p_value == 1
    flat = forecasts.assign(realized=0.02, a=0.02, b=0.03)
    assert diebold_mariano(flat, "a", "b", "mae").p_value < 1e-12
    assert mean_test(np.full(50, 0.5)) [2] == 0


def test_dates_are_counted_not_assets():
    one = table(4, assets=1)
    both = pd.concat([one, one.rename({"S0": "S1"}, level="symbol")])
    assert diebold_mariano(one, "a", "b") == diebold_mariano(both, "a", "b")
    assert diebold_mariano(both, "a", "b").n_dates == 80
    pd.testing.assert_series_equal(date_differences(both, "a", "b"), -date_differences(both, "b", "a"))


def test_spacing_shortens_the_overlap():
    forecasts = table(5)
    assert diebold_mariano(forecasts, "a", "b", horizon=5, spacing=5, lags=0).lags == 0
    with pytest.raises(MetavolError, match="needed at least 4"): diebold_mariano(forecasts, "a", "b", horizon=5, spacing=1, lags=3)
    assert diebold_mariano(forecasts, "a", "b", horizon=5, spacing=3, lags=1).lags == ceil(5/3) - 1


@pytest.mark.parametrize("overlap,n", [(1, 250), (5, 1000)])
def test_size_is_near_the_promised_five_percent(overlap, n):
    rng = np.random.default_rng(9)
    draws = [np.convolve(rng.standard_normal(n + overlap - 1), np.ones(overlap), "valid") for _ in range(500)]
    assert 0.03 <= np.mean([mean_test(d, overlap)[2] < 0.05 for d in draws]) <= 0.085


@pytest.mark.parametrize("value", [0., -0.01, np.nan, np.inf])
def test_an_unusable_forecast_is_named_with_model_asset_and_time(value):
    forecasts = table(6)
    forecasts.loc[("S1", pd.Timestamp("2020-01-05", tz="UTC")), "b"] = value
    with pytest.raises(ForecastError, match="b: S1 at 2020-01-05"): score(forecasts)
    with pytest.raises(ForecastError, match="b: S1 at 2020-01-05"): diebold_mariano(forecasts, "b", "a")


def test_bad_tables_are_refused():
    forecasts = table(7)
    for column in ("realized", "current"):
        with pytest.raises(ForecastError, match=f"no column {column}"): score(forecasts.drop(columns=column))
        with pytest.raises(ForecastError, match=f"{column} is nan"): score(forecasts.assign(**{column: np.nan}))
    with pytest.raises(ForecastError, match="0 models"): score(forecasts[["realized", "current"]])
    with pytest.raises(ForecastError, match="0 rows"): score(forecasts.iloc[:0])
    with pytest.raises(ForecastError, match="not numeric"): score(forecasts.assign(a="high"))
    with pytest.raises(ForecastError, match="DataFrame"): score([1, 2])
    with pytest.raises(MetavolError, match="twice"): score(pd.concat([forecasts.iloc[:3], forecasts.iloc[2:3]]))
    with pytest.raises(MetavolError, match="timezone"): score(forecasts.reset_index("symbol").tz_localize(None).drop(columns="symbol").iloc[:5])
    with pytest.raises(ForecastError, match="choose one of mse"): losses(forecasts, "rmse")
    with pytest.raises(ForecastError, match="choose from a, b"): diebold_mariano(forecasts, "a", "realized")
    with pytest.raises(ForecastError, match="choose one of a, b"): relative_to(score(forecasts), "c")
    with pytest.raises(MetavolError, match="at least 40"): diebold_mariano(forecasts.groupby("symbol").head(39), "a", "b")
    with pytest.raises(MetavolError, match="at least 1"): diebold_mariano(forecasts, "a", "b", horizon=0)


def test_the_input_is_left_as_it_was():
    forecasts = table(8)
    before = forecasts.copy()
    score(forecasts), diebold_mariano(forecasts, "a", "b"), check_forecasts(forecasts)
    pd.testing.assert_frame_equal(forecasts, before)
