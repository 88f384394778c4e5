"Properties of the tests between forecasters, against definitions written naively and against simulated equals."
from math import ceil, sqrt

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import SPA, CircularBlockBootstrap
from hypothesis import given, settings, strategies as st
from scipy import signal, stats

from metavol.bars import MetavolError
from metavol.comparison import (AlignmentError, align, block_length, compare, confidence_set, date_differences, date_losses, diebold_mariano,
                                harvey_test, mean_test, plot_lead, superior_ability, widening)
from metavol.scoring import ForecastError, TooFewDates, losses, score

FAST = settings(max_examples=20, deadline=None)


def table(seed, n=120, assets=2, models="ab"):
    "A table of forecasts with models of equal skill, on daily origins."
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[f"S{i}" for i in range(assets)], pd.date_range("2020-01-01", periods=n, tz="UTC")], names=["symbol", "time"])
    values = 0.02*np.exp(0.3*rng.standard_normal((len(index), 2 + len(models))))
    return pd.DataFrame(values, index, ["realized", "current", *models])


def equals(seed, replications, n, models=2, assets=4):
    "(replications, n, models) losses of equals: overlapping targets, volatility that persists, fat tails, common shocks, errors that last."
    rng, size = np.random.default_rng(seed), replications*n + 4
    def slow(*shape): return signal.lfilter([sqrt(1 - .95**2)], [1, -.95], rng.standard_normal(shape))
    volatility = np.exp(.4*slow(1, size) + .2*slow(assets, size))
    returns = volatility*(.6*rng.standard_t(6, (1, size)) + .8*rng.standard_t(6, (assets, size)))*sqrt(4/6)
    five = lambda x: np.lib.stride_tricks.sliding_window_view(x, 5, axis=-1).sum(-1)
    realized, true = five(returns**2), five(volatility**2)
    def lost(forecast): return (realized/forecast + np.log(forecast)).mean(axis=0)
    return np.stack([lost(true*np.exp(.25*slow(1, size - 4) + .15*slow(assets, size - 4))) for _ in range(models)], axis=-1).reshape(replications, n, models)


# --- one difference -----------------------------------------------------------------------------------------------

def cosines_by_loops(d, terms):
    "The cosine test from its definition."
    n, mean = len(d), sum(d)/len(d)
    waves = [sqrt(2/n)*sum(d[t]*np.cos(np.pi*j*(t + .5)/n) for t in range(n)) for j in range(1, terms + 1)]
    statistic = mean/sqrt(sum(w*w for w in waves)/terms/n)
    return mean, statistic, 2*stats.t.sf(abs(statistic), terms)


def dm_test_of_r(d, h, estimator):
    "R's forecast::dm.test on loss differences: autocovariances up to h-1, factor of Harvey, Leybourne and Newbold, t of n-1."
    n, mean = len(d), sum(d)/len(d)
    acov = [sum((d[t] - mean)*(d[t - j] - mean) for t in range(j, n))/n for j in range(h)]
    weights = [1 - j/h if estimator == "bartlett" else 1 for j in range(h)]
    variance = (acov[0] + 2*sum(w*g for w, g in zip(weights[1:], acov[1:])))/n
    statistic = mean/sqrt(variance)*sqrt((n + 1 - 2*h + h/n*(h - 1))/n)
    return mean, statistic, 2*stats.t.sf(abs(statistic), n - 1)


def overlapping(seed, n, overlap): return np.convolve(np.random.default_rng(seed).standard_normal(n + overlap - 1), np.ones(overlap), "valid")


@FAST
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(1, 5))
def test_the_cosine_test_agrees_with_its_definition(seed, n, overlap):
    d = overlapping(seed, n, overlap)
    mean, error, p_value, terms = mean_test(d, overlap)
    assert 2 <= terms and terms*4*overlap <= max(n, 8*overlap)
    assert (mean, mean/error, p_value) == pytest.approx(cosines_by_loops(d.tolist(), terms), rel=1e-8)


@FAST
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(1, 5))
def test_the_published_form_agrees_with_r(seed, n, overlap):
    d = overlapping(seed, n, overlap)
    mean, error, p_value, lags = harvey_test(d, overlap)
    assert lags == overlap - 1
    assert (mean, mean/error, p_value) == pytest.approx(dm_test_of_r(d.tolist(), overlap, "bartlett"), rel=1e-8)
    if overlap == 1: assert (mean, mean/error, p_value) == pytest.approx(dm_test_of_r(d.tolist(), 1, "acf"), rel=1e-8)


@FAST
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(1, 5))
def test_the_published_form_agrees_with_another_package(seed, n, overlap):
    dm_test = pytest.importorskip("dieboldmariano").dm_test
    d = overlapping(seed, n, overlap).tolist()
    theirs = dm_test([0.]*n, d, [0.]*n, loss=lambda truth, answer: answer, h=overlap, variance_estimator="bartlett")
    mean, error, p_value, _ = harvey_test(d, overlap)
    assert (mean/error, p_value) == pytest.approx(theirs, rel=1e-6)


def test_many_series_at_once_are_many_tests():
    d = equals(1, 6, 60)[..., 0]
    together = mean_test(d, 5)
    for i, one in enumerate(d): assert (together[0][i], together[1][i], together[2][i], together[3]) == pytest.approx(mean_test(one, 5))


def test_with_all_waves_or_no_lags_it_is_the_ordinary_t_test():
    d = np.random.default_rng(2).standard_normal(50) + .3
    textbook = stats.ttest_1samp(d, 0)
    for mean, error, p_value, _ in (mean_test(d, terms=49), harvey_test(d, lags=0)):
        assert (mean/error, p_value) == pytest.approx((textbook.statistic, textbook.pvalue))


@FAST
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.booleans())
def test_neither_units_nor_the_direction_of_time_matter(seed, scale, turn):
    d = overlapping(seed, 60, 3) + 1
    mean, error, p_value, _ = mean_test((scale*d)[::-1] if turn else scale*d, 3)
    assert (mean/scale, error/scale, p_value) == pytest.approx(mean_test(d, 3)[:3])


def test_identical_and_constantly_different_forecasts_have_defined_results():
    forecasts = table(3).assign(c=lambda f: f["a"])
    same = diebold_mariano(forecasts, "a", "c")
    assert (same.mean_difference, same.statistic, same.p_value, same.harvey_p_value) == (0, 0, 1, 1)
    assert diebold_mariano(forecasts, "a", "a").p_value == 1
    flat = forecasts.assign(realized=.02, a=.02, b=.03)
    always = diebold_mariano(flat, "a", "b", "mae")
    assert always.p_value < 1e-12 and always.statistic == -np.inf
    assert mean_test(np.full(50, .5))[2] == harvey_test(np.full(50, .5))[2] == 0


def test_dates_are_counted_not_assets():
    one = table(4, assets=1)
    both = pd.concat([one, one.rename({"S0": "S1"}, level="symbol")])
    alone, twice = diebold_mariano(one, "a", "b"), diebold_mariano(both, "a", "b")
    assert (alone.p_value, alone.n_dates) == pytest.approx((twice.p_value, 120)) and twice.n_dates == 120
    pd.testing.assert_series_equal(date_differences(both, "a", "b"), -date_differences(both, "b", "a"))


def test_an_asset_that_is_missing_on_some_dates_does_no_harm():
    forecasts = table(5, assets=3)
    ragged = forecasts.drop(forecasts.index[150:170])
    for name in ("mse", "mse_variance"): # The mean over dates is the score, so a test and a table cannot contradict each other
        np.testing.assert_allclose(date_losses(ragged, name).mean(), score(ragged)[name].loc[date_losses(ragged, name).columns], rtol=1e-12)
    pd.testing.assert_frame_equal(date_losses(forecasts, "mse"), losses(forecasts, "mse").groupby("time").mean(), rtol=1e-12)
    still = forecasts.copy(); still.iloc[7::120, 0] = 0.
    assert len(date_losses(still)) == 119 and diebold_mariano(still, "a", "b").n_dates == 119


@pytest.mark.parametrize("spacing,least", [(1, 40), (3, 20), (5, 20)])
def test_the_error_says_how_many_dates_are_needed(spacing, least):
    with pytest.raises(TooFewDates, match=f"19 dates are too few.*at least {least}"):
        diebold_mariano(table(6, n=19), "a", "b", horizon=5, spacing=spacing)
    assert diebold_mariano(table(6, n=least), "a", "b", horizon=5, spacing=spacing).n_dates == least


@pytest.mark.parametrize("n", [60, 250])
def test_equals_are_called_different_about_once_in_twenty(n):
    lost = equals(n, 600, n)
    p_value = mean_test(lost[..., 0] - lost[..., 1], 5)[2]
    slack = 2.6*sqrt(.05*.95/600)  # Binomial error of 600 draws, 99 %
    assert .03 - slack <= np.mean(p_value < .05) <= .07 + slack
    assert np.mean(mean_test(lost[..., 0] - lost[..., 1] + .3, 5)[2] < .05) > .8


# --- many models --------------------------------------------------------------------------------------------------

def test_corrections_by_hand():
    forecasts = table(8, n=200, models="abcde").assign(b=lambda f: f["realized"]*1.01)
    holm, bh = compare(forecasts, "a"), compare(forecasts, "a", correction="benjamini_hochberg")
    order = holm["p_value"].sort_values()
    assert holm["p_corrected"][order.index].tolist() == pytest.approx((order*[4, 3, 2, 1]).cummax().clip(upper=1).tolist())
    steps = (order*4/[1, 2, 3, 4])[::-1].cummin()[::-1].clip(upper=1)
    assert bh["p_corrected"][order.index].tolist() == pytest.approx(steps.tolist())
    assert holm["verdict"].to_dict() == dict(b="better", c="undecided", d="undecided", e="undecided")
    assert compare(forecasts, "b")["verdict"].unique().tolist() == ["worse"]
    for rival in "bcde":
        alone = diebold_mariano(forecasts, rival, "a")
        assert holm.loc[rival, ["mean_difference", "standard_error", "p_value"]].tolist() == pytest.approx([alone.mean_difference, alone.standard_error, alone.p_value])
    assert holm["n_dates"].unique().tolist() == [200]


def shares(n, block, draws):
    "Weight of each date in each bootstrap sample of seed zero."
    drawn = CircularBlockBootstrap(block, np.arange(n), seed=0).bootstrap(draws)
    return np.array([np.bincount(dates[0], minlength=n) for dates, _ in drawn])/n


def test_the_confidence_set_agrees_with_its_definition():
    forecasts = table(9, n=150, models="abcd").assign(c=lambda f: f["c"]*1.3)
    found = confidence_set(forecasts, size=.1, draws=300)
    lost = date_losses(forecasts)
    block = found.attrs["block"]
    assert block == ceil(2*sqrt(150)) == 25
    drawn = widening(4, 150, block, .1)*(shares(150, block, 300) @ (lost - lost.mean()).to_numpy())
    mean, left, p, expected = lost.mean().to_numpy(), list(range(4)), 0., {}
    while len(left) > 1:
        gaps = {(i, j): (mean[i] - mean[j], drawn[:, i] - drawn[:, j]) for i in left for j in left if i != j}
        ratios = {pair: (gap/sqrt(np.mean(sample**2)), sample/sqrt(np.mean(sample**2))) for pair, (gap, sample) in gaps.items()}
        (worst, _), (largest, _) = max(ratios.items(), key=lambda item: item[1][0])
        p = max(p, np.mean(np.max([sample for _, sample in ratios.values()], axis=0) > largest))
        expected["abcd"[worst]] = p
        left.remove(worst)
    expected["abcd"[left[0]]] = 1.
    assert found["p_value"].to_dict() == pytest.approx(expected)
    assert (found["in_set"] == (found["p_value"] > .1)).all() and found["loss"].is_monotonic_increasing


def test_the_set_drops_the_worst_keeps_twins_together_and_repeats_itself():
    forecasts = table(10, n=200, models="abc").assign(a=lambda f: f["realized"]*1.05, d=lambda f: f["b"])
    found = confidence_set(forecasts, draws=200)
    assert found.index[found["in_set"]].tolist() == ["a"]
    assert found.loc["b", ["loss", "p_value"]].tolist() == found.loc["d", ["loss", "p_value"]].tolist()
    pd.testing.assert_frame_equal(found, confidence_set(forecasts, draws=200))
    assert confidence_set(forecasts[["realized", "current", "b", "d"]])["p_value"].tolist() == [1, 1]
    flat = forecasts.assign(realized=.02, a=.02, b=.03, c=.04, d=.04)
    for judge in (confidence_set, lambda f: superior_ability(f, "a")):
        with pytest.raises(ForecastError, match="differ by .* on every date"): judge(flat)


def test_superior_ability_is_spa_on_leads_in_standard_errors():
    forecasts = table(11, n=150, models="abcd")
    found = superior_ability(forecasts, "a", draws=300)
    lost = date_losses(forecasts)
    leads = (lost[["a"]].to_numpy() - lost[["b", "c", "d"]])
    error = (shares(150, found.block, 300) @ leads.to_numpy()).std(axis=0)
    scaled = leads/error
    wide = scaled.mean() + widening(4, 150, found.block, .05, pairs=False)*(scaled - scaled.mean())
    spa = SPA(np.zeros(150), -wide.to_numpy(), found.block, 300, "circular", seed=0)
    spa.compute()
    assert spa.pvalues.to_dict() == pytest.approx(dict(lower=found.lower, consistent=found.p_value, upper=found.upper))
    assert found.best == scaled.mean().idxmax() and found.mean_difference == pytest.approx(-leads.mean()[found.best])


def test_a_better_rival_is_found_and_a_copy_is_not_better():
    forecasts = table(12, n=200, models="abc").assign(b=lambda f: f["realized"]*1.05)
    assert superior_ability(forecasts, "a", draws=200).best == "b"
    assert superior_ability(forecasts, "a", draws=200).p_value < .01
    assert superior_ability(forecasts, "b", draws=200).p_value > .3
    copy = forecasts[["realized", "current", "a"]].assign(z=forecasts["a"])
    assert superior_ability(copy, "a").p_value == 1


def test_widening_grows_with_models_and_shrinks_with_dates():
    by_models = [widening(k, 200, 29, .05) for k in (2, 5, 12)]
    by_dates = [widening(5, n, ceil(2*sqrt(n)), .05) for n in (100, 400, 6400)]
    assert by_models == sorted(by_models) and by_dates == sorted(by_dates, reverse=True)
    assert 1 < by_dates[-1] < 1.1 and widening(5, 200, 29, .05, pairs=False) < by_models[1]


def test_equal_sets_lose_a_member_about_once_in_twenty():
    n, models, replications = 150, 4, 400
    block = block_length(n, 5, None)
    weights, factors = shares(n, block, 400), (widening(models, n, block, .05), widening(models, n, block, .05, pairs=False))
    lost = equals(13, replications, n, models)
    mean = lost.mean(axis=1)
    drawn = np.einsum("dn,rnk->rdk", weights, lost - mean[:, None])
    for pairs, factor in zip((True, False), factors):
        gaps = drawn[..., :, None] - drawn[..., None, :] if pairs else drawn[..., :1, None] - drawn[..., None, 1:]
        ahead = mean[:, :, None] - mean[:, None] if pairs else mean[:, :1, None] - mean[:, None, 1:]
        error = np.sqrt(np.square(gaps).mean(axis=1)) + (np.eye(models) if pairs else 0)
        p_value = (factor*(gaps/error[:, None]).max(axis=(2, 3)) > (ahead/error).max(axis=(1, 2))[:, None]).mean(axis=1)
        slack = 2.6*sqrt(.05*.95/replications)
        assert .03 - slack <= np.mean(p_value < .05) <= .07 + slack


# --- the same questions -------------------------------------------------------------------------------------------

def test_tables_are_joined_on_common_origins_and_the_loss_is_reported():
    first, second = table(14, models="ab"), table(14, models="abcd")[["realized", "current", "b", "c", "d"]]
    second = second.rename(columns={"b": "e"}).drop("S1").iloc[20:]
    second[["realized", "current"]] = first.loc[second.index, ["realized", "current"]]
    first.attrs = dict(horizon=5, information=dict(a="few_shot"), fallbacks=dict(a=1, b=0))
    second.attrs = dict(horizon=5, information=dict(c="full_history"), fallbacks=dict(c=2))
    both = align(first, second)
    assert both.index.equals(second.index) and list(both.columns) == ["realized", "current", "a", "b", "e", "c", "d"]
    assert both.attrs["origins"] == dict(first=240, second=100, common=100)
    assert both.attrs["alignment"] == "100 common origins: 140 of 240 lost from the first table, 0 of 100 from the second"
    assert both.attrs["information"] == dict(a="few_shot", c="full_history") and both.attrs["fallbacks"] == dict(a=1, b=0, c=2) and both.attrs["horizon"] == 5
    pd.testing.assert_frame_equal(align(first, first)[list(first)], first, check_flags=False)
    assert "origins" not in first.attrs and "alignment" not in second.attrs


def test_tables_that_do_not_belong_together_are_refused():
    forecasts = table(15)
    moved = forecasts.copy(); moved.iloc[130, 0] *= 1.01
    with pytest.raises(AlignmentError, match="S1 at 2020-01-11 00:00: realized is"): align(forecasts, moved)
    with pytest.raises(AlignmentError, match="b is .*rename one of the two models"): align(forecasts, forecasts.assign(b=.02))
    with pytest.raises(AlignmentError, match="240 origins of S0, S1, 2020-01-01 .* to 2020-04-29 .*against 120 origins of X"):
        align(forecasts, forecasts.loc[["S0"]].rename({"S0": "X"}, level="symbol"))
    other = forecasts.copy(); forecasts.attrs, other.attrs = dict(horizon=5), dict(horizon=10)
    with pytest.raises(AlignmentError, match="5 and 10 bars ahead"): align(forecasts, other)


# --- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call,words", [
    (lambda f: diebold_mariano(f, "a", "realized"), "choose from a, b"), (lambda f: diebold_mariano(f, "a", "b", "rmse"), "choose one of mse"),
    (lambda f: diebold_mariano(f, "a", "b", horizon=0), "at least 1"), (lambda f: diebold_mariano(f, "a", "b", spacing=.5), "whole number"),
    (lambda f: compare(f, "c"), "choose from a, b"), (lambda f: compare(f, "a", correction="none"), "choose one of holm"),
    (lambda f: compare(f, "a", size=0), "above 0"), (lambda f: compare(f[["realized", "current", "a"]], "a"), "at least two models"),
    (lambda f: confidence_set(f[["realized", "current", "a"]]), "at least two models"), (lambda f: confidence_set(f, size=1.), "at most 0.5"),
    (lambda f: confidence_set(f, block=3), "at least 5"), (lambda f: confidence_set(f, block=40), "at least 200"),
    (lambda f: confidence_set(f, horizon=10), "at least 300"), (lambda f: superior_ability(f.groupby("symbol").head(99), "a"), "99 dates.*at least 150"),
    (lambda f: superior_ability(f, "x"), "choose from a, b"), (lambda f: diebold_mariano([1], "a", "b"), "DataFrame"),
    (lambda f: confidence_set(f.drop(columns="current")), "no column current"), (lambda f: compare(f.assign(b=np.nan), "a"), "b: S0 at"),
    (lambda f: mean_test(np.arange(60.), 5, 13), "1 to 12"), (lambda f: mean_test(np.arange(60.), terms=60), "1 to 59"),
    (lambda f: harvey_test(np.arange(60.), 5, 3), "needed at least 4"), (lambda f: plot_lead(f, "a", ["z"]), "choose from a, b")])
def test_bad_requests_are_refused(call, words):
    with pytest.raises(MetavolError, match=words): call(table(16, n=160))


@pytest.mark.parametrize("value", [0., -.01, np.nan, np.inf])
def test_an_unusable_forecast_is_named_with_model_asset_and_time(value):
    forecasts = table(17, n=150)
    forecasts.loc[("S1", pd.Timestamp("2020-01-05", tz="UTC")), "b"] = value
    for judge in (lambda: diebold_mariano(forecasts, "b", "a"), lambda: confidence_set(forecasts), lambda: align(forecasts, table(17, n=150))):
        with pytest.raises(ForecastError, match="b: S1 at 2020-01-05"): judge()


def test_the_input_is_left_as_it_was():
    forecasts = table(18, n=150)
    before = forecasts.copy()
    diebold_mariano(forecasts, "a", "b"), compare(forecasts, "a"), confidence_set(forecasts, draws=50), superior_ability(forecasts, "a", draws=50), align(forecasts, before)
    pd.testing.assert_frame_equal(forecasts, before)
