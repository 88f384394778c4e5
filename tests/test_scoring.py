"Properties that losses, noise floor, intervals, proxies and groups keep for any forecasts."
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from metavol.bars import MetavolError
from metavol.features import compute_features
from metavol.processes import simulate_bars, simulate_log_sv
from metavol.scoring import (LOSSES, SCORES, STATES, ForecastError, TooFewDates, absolute_error, at_origins, block_length, bootstrap_means, bootstrap_weights, by_date, levelled,
                             check_forecasts, hit, intraday_variance, losses, market_states, noise_floor, plot_scores, qlike, range_variance, relative_to,
                             reported_variance, score, score_by, score_intervals, squared_error, transition_table, variance_squared_error, volatility_proxy,
                             with_forecast, with_proxy, worst_days)
from metavol.tasks import make_windows, regimes
from metavol.volatility import forward_volatility, log_returns, realized_volatility

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


@settings(max_examples=10, deadline=None)
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


@pytest.mark.parametrize("value", [0., -0.01, np.nan, np.inf])
def test_an_unusable_forecast_is_named_with_model_asset_and_time(value):
    forecasts = table(6)
    forecasts.loc[("S1", pd.Timestamp("2020-01-05", tz="UTC")), "b"] = value
    with pytest.raises(ForecastError, match="b: S1 at 2020-01-05"): score(forecasts)
    with pytest.raises(ForecastError, match="b: S1 at 2020-01-05"): score_intervals(forecasts)


def test_bad_tables_are_refused():
    forecasts = table(7)
    for column in ("realized", "current"):
        with pytest.raises(ForecastError, match=f"no column {column}"): score(forecasts.drop(columns=column))
        with pytest.raises(ForecastError, match=f"{column} is nan"): score(forecasts.assign(**{column: np.nan}))
    with pytest.raises(ForecastError, match="0 models"): score(forecasts[["realized", "current"]])
    with pytest.raises(ForecastError, match="0 rows"): score(forecasts.iloc[:0])
    with pytest.raises(ForecastError, match="not numeric"): score(forecasts.assign(a="high"))
    for function in (score, score_intervals, lambda f: score_by(f, "year"), lambda f: worst_days(f, "a"), lambda f: with_forecast(f, "c", forecasts["a"])):
        with pytest.raises(MetavolError, match="got a list, needed a pandas DataFrame"): function([1, 2])
    with pytest.raises(MetavolError, match="twice"): score(pd.concat([forecasts.iloc[:3], forecasts.iloc[2:3]]))
    with pytest.raises(MetavolError, match="timezone"): score(forecasts.reset_index("symbol").tz_localize(None).drop(columns="symbol").iloc[:5])
    with pytest.raises(ForecastError, match="choose one of mse"): losses(forecasts, "rmse")
    with pytest.raises(ForecastError, match="choose one of a, b"): relative_to(score(forecasts), "c")
    with pytest.raises(ForecastError, match="column a stands twice"): score(forecasts[["realized", "current", "a", "a"]])


def test_the_input_is_left_as_it_was():
    forecasts = table(8)
    before = forecasts.copy()
    score(forecasts), score_intervals(forecasts, draws=20), check_forecasts(forecasts), score_by(forecasts, "year"), worst_days(forecasts, "a")
    pd.testing.assert_frame_equal(forecasts, before)


# Intervals

def test_weights_are_dates_drawn_with_replacement_in_blocks():
    weights = np.concatenate(list(bootstrap_weights(300, 10, 400, seed=1)))
    assert weights.shape == (400, 300) and (weights.sum(axis=1) == 300).all() and (weights >= 0).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(300), abs=0.35)
    neighbours = lambda w: np.mean([np.corrcoef(row[1:], row[:-1])[0, 1] for row in w])
    assert neighbours(weights) > 0.8 > 0.1 > abs(neighbours(np.concatenate(list(bootstrap_weights(300, 1, 400, seed=1)))))


def test_pieces_do_not_change_the_draws():
    sums = np.random.default_rng(3).random((30_000, 2))
    assert len(list(bootstrap_weights(30_000, 50, 80, seed=4))) > 1
    one = np.concatenate(list(bootstrap_weights(30_000, 50, 80, seed=4)))
    assert bootstrap_means(sums, np.ones_like(sums), 50, 80, 4) == pytest.approx((one @ sums)/30_000, rel=1e-12)


def test_sums_over_counts_are_the_scores_when_dates_are_uneven():
    forecasts = table(10, assets=3).drop(index=[("S1", time) for time in pd.date_range("2020-01-01", periods=30, tz="UTC")])
    forecasts.iloc[[0, 5], 0] = 0.
    sums, counts = by_date(forecasts)
    scores = score(forecasts)
    for name in SCORES: assert (sums[name].sum()/counts[name].sum()).to_numpy() == pytest.approx(scores[name].to_numpy())
    assert counts["mse"].iloc[0].tolist() == [2, 2] and counts["qlike"].iloc[0].tolist() == [1, 1]


def test_intervals_hold_the_score_and_repeat_bit_for_bit():
    forecasts = table(11, n=200)
    one, two, other = (score_intervals(forecasts, seed=seed, benchmark="b") for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert one.attrs == two.attrs and not one.equals(other)
    joined = score(forecasts).join(one)
    for name in SCORES: assert (joined[f"{name}_low"] < joined[name]).all() and (joined[name] < joined[f"{name}_high"]).all()
    for name in LOSSES:
        assert joined[f"{name}_ratio"].tolist() == pytest.approx(relative_to(score(forecasts), "b")[name].tolist())
        assert joined.loc["b", [f"{name}_ratio", f"{name}_ratio_low", f"{name}_ratio_high"]].tolist() == [1, 1, 1]
    narrow = score_intervals(forecasts, level=0.5)
    assert (narrow["mae_low"] > one["mae_low"]).all() and (narrow["mae_high"] < one["mae_high"]).all()


def test_a_copy_of_every_asset_adds_no_certainty():
    one = table(12, n=120, assets=1)
    both = pd.concat([one, one.rename({"S0": "S1"}, level="symbol")])
    pd.testing.assert_frame_equal(score_intervals(one), score_intervals(both))


@pytest.mark.parametrize("shuffled", [False, True])
def test_models_may_stand_in_any_order(shuffled):
    forecasts = table(13)
    turned = forecasts[["b", "realized", "a", "current"]]
    pd.testing.assert_frame_equal(score_intervals(turned).loc[["a", "b"]], score_intervals(forecasts))
    assert score_intervals(turned).index.tolist() == ["b", "a"]


def test_the_block_is_at_least_the_overlap_and_grows_with_memory():
    rng = np.random.default_rng(14)
    white = pd.DataFrame(rng.standard_normal((800, 3)), columns=pd.MultiIndex.from_product([["mse"], list("abc")]))
    assert block_length(white, overlap=5) == 5
    assert block_length(white.ewm(alpha=0.1).mean(), overlap=5) > 10
    assert block_length(white*0 + 1, overlap=4) == 4
    forecasts = table(14)
    forecasts.attrs["horizon"] = 9
    assert score_intervals(forecasts).attrs["block"] >= 9
    assert score_intervals(forecasts, block=3).attrs["block"] == 3


def test_too_few_dates_say_how_many_are_needed():
    short = table(15).groupby("symbol").head(39)
    with pytest.raises(TooFewDates, match="39 dates are too few .* needed at least 40"): score_intervals(short)
    with pytest.raises(TooFewDates, match="needed at least 80"): score_intervals(short, block=20)
    assert np.isfinite(score_intervals(short, overlap=4)).all(axis=None)
    for bad in ({"level": 1.}, {"draws": 0}, {"block": 0}, {"overlap": 1.5}, {"level": float("nan")}):
        with pytest.raises(MetavolError): score_intervals(table(15), **bad)
    with pytest.raises(ForecastError, match="'c' is not a model"): score_intervals(table(15), benchmark="c")


def test_intervals_survive_zero_outcomes():
    forecasts = table(16)
    forecasts.iloc[:40, 0] = 0.
    intervals = score_intervals(forecasts, benchmark="a")
    assert np.isfinite(intervals).all(axis=None)
    assert np.isnan(score_intervals(forecasts.assign(realized=0.))["qlike_low"]).all()


def test_the_figure_holds_every_model_with_the_best_on_top():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib.figure import Figure
    forecasts = table(17).assign(exact=lambda f: f["realized"])
    scored = score(forecasts).join(score_intervals(forecasts))
    for loss in ("mae", "hit_rate"):
        ax = plot_scores(scored, loss, Figure().subplots(), floor=0.)
        assert [label.get_text() for label in ax.get_yticklabels()][-1] == "exact"
    with pytest.raises(ForecastError, match="no column qlike_low"): plot_scores(score(forecasts), "qlike", None)


# A better ruler

@pytest.fixture(scope="module")
def market():
    "Three simulated assets that jump at night: daily bars, their returns and true volatility."
    rng = np.random.default_rng(20)
    sigma = simulate_log_sv(500, rng, 3).sigma
    bars = simulate_bars(sigma, 40, rng, overnight=0.3)
    return bars, log_returns(bars["close"]), pd.Series(sigma.ravel(), bars.index)


def judged(market):
    bars, returns, sigma = market
    forecasts = pd.DataFrame({"realized": forward_volatility(returns, 5), "current": realized_volatility(returns, 5),
                              "truth": forward_volatility(sigma, 5), "double": 2*forward_volatility(sigma, 5)}).dropna()
    forecasts.attrs["horizon"] = 5
    return forecasts


def test_range_variance_counts_the_night(market):
    bars, returns, sigma = market
    variance = range_variance(bars)
    assert variance.groupby(level=0).head(1).isna().all() and variance.notna().sum() == len(bars) - 3
    ratio = (variance/sigma**2).mean()
    assert 0.8 < ratio < 1.1
    within = range_variance(bars.assign(open=bars["close"].groupby(level=0).shift().fillna(bars["open"]),
                                        high=bars["high"].clip(lower=bars["close"].groupby(level=0).shift()),
                                        low=bars["low"].clip(upper=bars["close"].groupby(level=0).shift())))
    assert not np.allclose(within.dropna(), variance.dropna())
    assert (variance/sigma**2).var() < (returns**2/sigma**2).var()/2


def test_factors_match_the_mean_square_on_training_dates_only(market):
    bars, returns, _ = market
    variance = range_variance(bars)
    until = bars.index.get_level_values(1)[250]
    proxy = volatility_proxy(variance, returns, 5, until)
    training = returns.index.get_level_values(1) <= until
    for symbol, factor in proxy.attrs["factor"].items():
        mine = training & (returns.index.get_level_values(0) == symbol) & returns.notna()
        assert (factor*variance[mine]).mean() == pytest.approx((returns[mine]**2).mean())
    future = returns.where(training, 5*returns)
    assert volatility_proxy(variance, future, 5, until).attrs["factor"] == proxy.attrs["factor"]
    twice = volatility_proxy(4*variance, returns, 5, until)
    pd.testing.assert_frame_equal(twice, proxy)
    pooled = volatility_proxy(variance, returns, 5, until, pooled=True).attrs["factor"]
    assert len(set(pooled.values())) == 1
    assert min(proxy.attrs["factor"].values()) <= pooled["SIM0"] <= max(proxy.attrs["factor"].values())


def test_squared_returns_as_their_own_proxy_change_nothing(market):
    bars, returns, _ = market
    proxy = volatility_proxy(returns**2, returns, 5, "2001-01-01")
    assert list(proxy.attrs["factor"].values()) == pytest.approx([1, 1, 1])
    pd.testing.assert_frame_equal(with_proxy(judged(market), proxy), judged(market))


def test_a_better_ruler_lowers_the_score_of_the_truth_and_keeps_the_order(market):
    bars, returns, _ = market
    forecasts = judged(market)
    better = with_proxy(forecasts, volatility_proxy(range_variance(bars), returns, 5, "2001-01-01"))
    assert score(better).loc["truth", "qlike"] < score(forecasts).loc["truth", "qlike"]/1.5
    assert better.attrs == {"horizon": 5, "origins_lost": len(forecasts) - len(better)}
    for loss in ("qlike", "mse_variance"): assert score(better)[loss].idxmin() == "truth"


def test_origins_the_proxy_does_not_know_are_counted(market):
    bars, returns, _ = market
    forecasts, variance = judged(market), range_variance(bars)
    variance.iloc[100] = np.nan
    proxy = volatility_proxy(variance, returns, 5, "2001-01-01")
    assert proxy.attrs["missing"] == 4
    lost = with_proxy(forecasts, proxy)
    assert len(lost) + lost.attrs["origins_lost"] == len(forecasts)
    assert lost.attrs["origins_lost"] == 10
    with pytest.raises(ForecastError, match="knows none of the"): with_proxy(forecasts.rename({f"SIM{i}": f"X{i}" for i in range(3)}), proxy)
    with pytest.raises(ForecastError, match="5 bars ahead and the proxy 4"): with_proxy(forecasts, volatility_proxy(variance, returns, 4, "2001-01-01"))
    with pytest.raises(ForecastError, match="proxy: no column current"): with_proxy(forecasts, proxy[["realized"]])
    with pytest.raises(ForecastError, match="empty"): with_proxy(forecasts, proxy.iloc[:0])


def test_proxies_refuse_what_they_cannot_use(market):
    bars, returns, _ = market
    variance = range_variance(bars)
    with pytest.raises(MetavolError, match="SIM0 and 2 more: 4 bars up to 2000-01-07"): volatility_proxy(variance, returns, 5, "2000-01-07")
    with pytest.raises(MetavolError, match="not a moment"): volatility_proxy(variance, returns, 5, "soon")
    with pytest.raises(MetavolError, match="-1.0 is not a variance"): volatility_proxy(variance.where(variance.index != variance.index[7], -1.), returns, 5, "2001-01-01")
    with pytest.raises(MetavolError, match="Series"): volatility_proxy(bars, returns, 5, "2001-01-01")
    with pytest.raises(MetavolError, match="SIM2: 0 bars"): volatility_proxy(variance.drop("SIM2"), returns, 5, "2001-01-01")
    lent = volatility_proxy(variance.drop("SIM2"), returns, 5, "2001-01-01", pooled=True)
    assert "SIM2" not in lent.index.unique(0) and len(lent.attrs["factor"]) == 3


def test_intraday_variance_sums_complete_days_only():
    time = pd.date_range("2024-01-01", periods=24*20, freq="h", tz="UTC", name="time")
    returns = pd.Series(0.001, time)
    returns.iloc[0], returns.iloc[30] = np.nan, 0.01
    variance = intraday_variance(returns)
    assert variance.index.names == ["symbol", "time"] and len(variance) == 20
    assert variance.isna().tolist() == [True] + [False]*19
    assert variance.iloc[2] == pytest.approx(24e-6) and variance.iloc[1] == pytest.approx(23e-6 + 1e-4)
    assert intraday_variance(returns.drop(time[50])).isna().sum() == 2


def test_reported_variance_marks_and_counts_what_it_cannot_be():
    time = pd.date_range("2024-01-01", periods=5, tz="UTC", name="time")
    variance = reported_variance(pd.Series([1e-4, 0., np.nan, np.inf, -1e-4], time))
    assert variance.notna().tolist() == [True, False, False, False, False] and variance.attrs["unusable"] == 4
    with pytest.raises(MetavolError, match="timezone"): reported_variance(pd.Series([1e-4]*5, time.tz_localize(None)))


def test_five_minute_variance_of_an_index_is_a_better_ruler(market_data):
    spx = pd.read_parquet(market_data/"oxford_man_spx_2000.parquet")
    spx = spx[spx["rv5"].gt(0) | spx["close_price"].gt(0)].dropna(subset="close_price").drop_duplicates("date")
    time = pd.DatetimeIndex(spx["date"]).tz_localize("UTC")
    index = pd.MultiIndex.from_arrays([["SPX"]*len(time), time], names=["symbol", "time"])
    returns = log_returns(pd.Series(spx["close_price"].to_numpy(copy=True), index))
    proxy = volatility_proxy(reported_variance(pd.Series(spx["rv5"].to_numpy(copy=True), index)), returns, 5, "2008-12-31")
    assert 1 < proxy.attrs["factor"]["SPX"] < 3
    forecasts = pd.DataFrame({"realized": forward_volatility(returns, 5), "current": realized_volatility(returns, 5),
                              "historical": realized_volatility(returns, 20)/2}).dropna()
    forecasts = forecasts[(forecasts > 0).all(axis=1)].loc[("SPX", "2009-01-01"):]
    better = with_proxy(forecasts, proxy)
    assert score(better).loc["historical", "qlike"] < score(forecasts).loc["historical", "qlike"]


# Where and when

@pytest.fixture(scope="module")
def history(market): return make_windows(compute_features(market[0])).history


def test_states_follow_their_definition_one_bar_at_a_time(history):
    states, turbulent = market_states(history), regimes(history) == 2
    start = dict(zip(range(3), history.start))
    for row in range(len(states)):
        asset, since = history.asset[row], np.nan
        for earlier in range(start[asset] + 1, row + 1):
            if turbulent[earlier] != turbulent[earlier - 1] and not np.isnan(history.scale[earlier - 1]): since = row - earlier + 1
        expected = "transition" if since <= 20 else "turbulent" if turbulent[row] else "calm"
        assert states["state"].iloc[row] == expected and states["bars_since"].iloc[row] == pytest.approx(since, nan_ok=True)
    assert set(states["state"]) == set(STATES)
    assert ((states["change"] == "none") == states["bars_since"].isna()).all()


def test_states_never_look_ahead(market, history):
    bars = market[0]
    early = bars[bars.index.get_level_values(1) <= bars.index.get_level_values(1)[300]]
    before = market_states(make_windows(compute_features(early)).history)
    pd.testing.assert_frame_equal(market_states(history).loc[before.index], before)


def test_groups_may_be_series_arrays_or_names(market, history):
    forecasts, states = judged(market), market_states(history)
    forecasts = forecasts[forecasts.index.isin(states.index)]
    by_state = score_by(forecasts, states["state"])
    same = score_by(forecasts, states["state"].reindex(forecasts.index).to_numpy())
    assert np.array_equal(by_state.to_numpy(), same.to_numpy()) and by_state.index.names == ["state", "model"]
    for symbol in ("SIM0", "SIM2"):
        alone = score(forecasts.loc[[symbol]])
        pd.testing.assert_frame_equal(score_by(forecasts, "symbol").loc[symbol][alone.columns], alone)
    years = score_by(forecasts, "year")
    assert years.index.get_level_values(0).unique().tolist() == [2000, 2001]
    weights = by_state["origins"]/len(forecasts)
    assert (by_state["mse"]*weights).groupby(level="model").sum().to_dict() == pytest.approx(score(forecasts)["mse"].to_dict())
    for bad, said in (("regime", "use 'symbol'"), (np.zeros(3), "one label for each"), (states["state"].iloc[100:], "no label for SIM0")):
        with pytest.raises(ForecastError, match=said): score_by(forecasts, bad)


def test_transition_table_by_hand(market, history):
    forecasts, states = judged(market), market_states(history)
    forecasts = forecasts[forecasts.index.isin(states.index)]
    moments = transition_table(forecasts, states, "truth")
    assert moments["origins"].sum() == len(forecasts) and (moments["truth"] == 1).all() and (moments["double"] > 1).all()
    own = states.loc[forecasts.index]
    chosen = (own["change"] == "turbulent -> calm") & own["bars_since"].between(6, 10)
    lost = losses(forecasts, "qlike")[chosen].mean()
    assert moments.loc[("turbulent -> calm", "6-10"), "double"] == pytest.approx(lost["double"]/lost["truth"])
    assert moments.loc[("turbulent -> calm", "6-10"), "origins"] == chosen.sum()
    with pytest.raises(ForecastError, match="'ewma' is not a model"): transition_table(forecasts, states, "ewma")
    with pytest.raises(ForecastError, match="no label"): transition_table(forecasts, states.iloc[200:], "truth")
    with pytest.raises(MetavolError, match="states: got a Series"): transition_table(forecasts, states["state"], "truth")
    with pytest.raises(MetavolError, match="history: got a DataFrame"): market_states(market[0])


def test_worst_days_are_the_worst_and_tell_of_different_events():
    forecasts = table(21)
    worst = worst_days(forecasts, "b", n=6, loss="mae")
    lost = losses(forecasts, "mae")["b"]
    assert worst["loss"].iloc[0] == lost.max() and worst["loss"].is_monotonic_decreasing
    assert list(worst.columns) == ["loss", "realized", "current", "b", "a"]
    pd.testing.assert_frame_equal(worst[["realized", "a"]], forecasts.loc[worst.index, ["realized", "a"]])
    for symbol, part in worst.groupby(level=0):
        assert part.index.get_level_values(1).sort_values().diff().dropna().min() >= pd.Timedelta(days=5) if len(part) > 1 else True
    plain = worst_days(forecasts, "b", n=10, loss="mae", apart=1)
    assert plain["loss"].tolist() == lost.nlargest(10).tolist()
    assert len(worst_days(forecasts, "b", n=1000)) < len(forecasts)
    with pytest.raises(ForecastError, match="'realized' is not a model"): worst_days(forecasts, "realized")


def test_hits_at_origins_add_up_to_the_hit_rate():
    forecasts = table(22)
    for name in SCORES: assert at_origins(forecasts, name).mean().tolist() == pytest.approx(score(forecasts)[name].tolist())
    with pytest.raises(ForecastError, match="choose one of mse"): at_origins(forecasts, "rmse")


# A forecast from elsewhere

def test_a_series_of_forecasts_is_entered_by_its_index():
    forecasts = table(23)
    shuffled = forecasts["a"].loc[["S1", "S0"]]
    assert with_forecast(forecasts, "mine", shuffled)["mine"].tolist() == forecasts["a"].tolist()
    assert list(forecasts.columns) == ["realized", "current", "a", "b"]


def test_a_wrongly_indexed_forecast_is_named():
    forecasts = table(24)
    own = forecasts["a"]
    naive = own.set_axis(own.index.set_levels(own.index.levels[1].tz_localize(None), level=1))
    for wrong, said in ((naive, "mine: times such as .* carry no timezone"), (pd.concat([own.iloc[:2], own.iloc[1:]]), "mine: S0 at 2020-01-02 00:00: this time stands twice"),
                        (own.rename({"S1": "XX"}), "mine: forecasts for XX"), (own.iloc[5:], "mine: no forecast for S0 at 2020-01-01 00:00 and 4 more"),
                        (own.reset_index(drop=True), "mine: the index holds"), (own.to_numpy(), "mine: got a ndarray"), (-own, "mine: S0 at 2020-01-01"),
                        (own.where(own.index != own.index[9]), "mine: S0 at 2020-01-10 00:00: the forecast is nan")):
        with pytest.raises(MetavolError, match=said): with_forecast(forecasts, "mine", wrong)
    with pytest.raises(ForecastError, match="already has a column"): with_forecast(forecasts, "a", own)


def test_the_right_level_is_known_in_time_and_per_model():
    times = pd.date_range("2020-01-01", periods=60, tz="UTC")
    index = pd.MultiIndex.from_product([["A", "B"], times], names=["symbol", "time"])
    rng = np.random.default_rng(0)
    forecasts = pd.DataFrame({"realized": rng.uniform(.01, .03, 120), "current": .02, "low": .01, "high": .04}, index)
    right = levelled(forecasts, overlap=3, least=10)
    last = times[-1]
    past = forecasts[index.get_level_values("time") <= times[-1 - 6]]
    for name in ("low", "high"):
        np.testing.assert_allclose(right.loc[("A", last), name], np.sqrt((past.realized**2).mean()), rtol=1e-12)
        assert (right[name].xs("A").iloc[:15] == forecasts[name].xs("A").iloc[:15]).all()
        assert score(right.iloc[-30:])["qlike"][name] < score(forecasts.iloc[-30:])["qlike"][name]
    with pytest.raises(MetavolError, match="overlap"): levelled(forecasts, overlap=0)
