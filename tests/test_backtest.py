"Properties that sizing and the ledger keep for any prices, forecasts and costs."
from dataclasses import replace
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from metavol.backtest import Backtest, BacktestError, CostSpec, performance, run_backtest
from metavol.bars import MetavolError
from metavol.scoring import ForecastError
from metavol.sizing import SizingSpec, size_positions, target_weights

FAST = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 10**6)


def make_bars(closes):
    "Bars whose four prices are the close, by (symbol, time); NaN is no bar."
    close = closes.rename_axis(index="time", columns="symbol").T.stack().dropna().rename("close")
    return pd.DataFrame({name: close for name in ("open", "high", "low", "close")}).assign(volume=1.)


def market(seed, n=60, assets=3, horizon=5, stride=5):
    "Random prices with gaps, a late listing and a delisting; forecasts every `stride` bars of each asset."
    rng = np.random.default_rng(seed)
    times = pd.bdate_range("2020-01-01", periods=n, tz="UTC")
    closes = pd.DataFrame(100*np.exp(np.cumsum(0.03*rng.standard_normal((n, assets)), axis=0)), times, [f"S{i}" for i in range(assets)])
    closes = closes.mask(rng.random(closes.shape) < 0.05)
    closes.iloc[:15, 0] = np.nan
    if assets > 1: closes.iloc[40:, 1] = np.nan
    bars = make_bars(closes)
    origins = bars.groupby(level="symbol").cumcount()
    chosen = bars.index[(origins % stride == 0) & (origins >= 5)]
    return bars, pd.Series(0.03*sqrt(horizon)*np.exp(0.5*rng.standard_normal(len(chosen))), chosen, name="model")


def one_asset(closes, sigma_hat, start="2020-01-01"):
    "Bars and forecasts of one asset without a symbol level; NaN is no forecast."
    times = pd.bdate_range(start, periods=len(closes), tz="UTC", name="time")
    bars = pd.DataFrame({name: np.array(closes, float) for name in ("open", "high", "low", "close")}, times).assign(volume=1.)
    return bars, pd.Series(sigma_hat, times, dtype=float).dropna()


@FAST
@given(SEEDS, st.floats(0, 50), st.floats(0, 50), st.floats(0, 0.01), st.floats(0, 0.3), st.floats(0.3, 3))
def test_the_ledger_adds_up_at_every_bar(seed, commission, slippage, half_spread, band, max_gross):
    bars, forecasts = market(seed)
    capital, rate = 1000., (commission + slippage)/1e4 + half_spread
    result = run_backtest(bars, forecasts, sizing=SizingSpec(no_trade_band=band, max_gross=max_gross),
                          costs=CostSpec(commission, slippage, half_spread), capital=capital)
    ledger = result.ledger
    np.testing.assert_allclose(ledger["cost"], rate*ledger["trade"].abs(), atol=1e-9)
    flows = ledger.groupby(level="time").sum()
    flows = flows.reindex(result.equity.index, fill_value=0.)
    cash = capital - (flows["trade"] + flows["cost"]).cumsum()
    np.testing.assert_allclose(cash + flows["position"], result.equity, atol=1e-9*capital)
    np.testing.assert_allclose(result.equity, capital + (flows["pnl"] - flows["cost"]).cumsum(), atol=1e-9*capital)
    np.testing.assert_allclose(ledger["weight"], ledger["position"]/result.equity.reindex(ledger.index, level="time"), atol=1e-12)
    assert (ledger["position"] >= 0).all()
    assert (ledger["position"].groupby(level="symbol").last() == 0).all()


@FAST
@given(SEEDS)
def test_pnl_is_the_position_of_the_bar_before_times_the_move(seed):
    bars, forecasts = market(seed)
    ledger = run_backtest(bars, forecasts).ledger
    for symbol, rows in ledger.groupby(level="symbol"):
        rows = rows.droplevel("symbol")
        moves = bars["close"].loc[symbol].reindex(rows.index).ffill().pct_change()
        np.testing.assert_allclose(rows["pnl"].iloc[1:], (rows["position"].shift()*moves).iloc[1:], atol=1e-12)
        assert (rows["trade"][~rows.index.isin(bars.loc[symbol].index)] == 0).all()


@FAST
@given(SEEDS, st.sampled_from([2., 8., 0.25]))
def test_capital_is_only_a_unit(seed, times):
    bars, forecasts = market(seed)
    small, large = run_backtest(bars, forecasts, capital=100.), run_backtest(bars, forecasts, capital=100.*times)
    money = ["position", "trade", "cost", "pnl"]
    np.testing.assert_allclose(large.ledger[money], times*small.ledger[money], rtol=1e-12)
    np.testing.assert_allclose(large.ledger["weight"], small.ledger["weight"], rtol=1e-12)
    pd.testing.assert_series_equal(large.summary.drop("total_cost"), small.summary.drop("total_cost"))


@FAST
@given(SEEDS, st.integers(10, 50), st.floats(0.2, 5))
def test_the_future_does_not_change_the_past(seed, moment, factor):
    bars, forecasts = market(seed)
    times = bars.index.unique("time").sort_values()
    now = times[moment]
    shaken, other = bars.copy(), forecasts.copy()
    shaken.loc[bars.index.get_level_values("time") > now, ["open", "high", "low", "close"]] *= factor
    other[forecasts.index.get_level_values("time") > now] *= factor
    past = [result.ledger[result.ledger.index.get_level_values("time") <= now] for result in (run_backtest(bars, forecasts), run_backtest(shaken, other))]
    pd.testing.assert_frame_equal(*past)


@FAST
@given(SEEDS)
def test_unlimited_weights_scale_inversely_with_the_forecast(seed):
    _, forecasts = market(seed)
    free = SizingSpec(target_risk=0.001, min_weight=0, max_weight=1)
    np.testing.assert_allclose(target_weights(2*forecasts, 5, free), target_weights(forecasts, 5, free)/2, rtol=1e-12)
    np.testing.assert_allclose(target_weights(forecasts*2, 20, free), target_weights(forecasts, 5, free), rtol=1e-12)


@FAST
@given(SEEDS, st.floats(0.001, 0.1), st.floats(0, 0.05), st.floats(0.1, 1), st.floats(0.2, 3))
def test_weights_stay_within_their_limits(seed, risk, low, high, gross):
    spec = SizingSpec(risk, low, high, 0.1, gross)
    sigma = np.random.default_rng(seed).uniform(0.001, 0.2, (20, 7))
    sigma[:, 3:][np.random.default_rng(seed).random((20, 4)) < 0.5] = np.nan
    weights = size_positions(sigma, spec)
    assert (weights[np.isnan(sigma)] == 0).all() and (weights[~np.isnan(sigma)] >= 0).all()
    assert weights.max() <= high + 1e-12 and weights.sum(axis=1).max() <= gross + 1e-12
    loose = weights.sum(axis=1) < gross - 1e-9
    assert (weights[loose][~np.isnan(sigma[loose])] >= min(low, gross/7) - 1e-12).all()


@FAST
@given(SEEDS)
def test_trades_reach_the_target_or_the_band_was_not_left(seed):
    bars, forecasts = market(seed, assets=1)
    spec = SizingSpec(target_risk=0.01)
    result = run_backtest(bars, forecasts, sizing=spec, costs=CostSpec(0, 0))
    rows = result.ledger.droplevel("symbol").iloc[:-1]
    target = target_weights(forecasts, 5, spec).droplevel("symbol").reindex(rows.index).ffill()
    assert ((rows["weight"] - target).abs() <= 0.1*target + 1e-12)[rows.index.isin(bars.loc["S0"].index)].all()
    traded = rows["trade"] != 0
    np.testing.assert_allclose(rows["weight"][traded], target[traded], rtol=1e-9)


def test_four_bars_by_hand():
    bars, forecasts = one_asset([100, 110, 99, 99], [0.04, 0.05, 0.05, np.nan])
    result = run_backtest(bars, forecasts, horizon=1, costs=CostSpec(4, 6), capital=1000.)
    ledger = result.ledger.loc["asset"]
    np.testing.assert_allclose(ledger["trade"], [500, -130.2, 0, -377.82])
    np.testing.assert_allclose(ledger["cost"], [0.5, 0.1302, 0, 0.37782])
    np.testing.assert_allclose(ledger["pnl"], [0, 50, -41.98, 0])
    np.testing.assert_allclose(result.equity, [999.5, 1049.3698, 1007.3898, 1007.01198])
    assert result.summary["trades"] == 3


def test_a_position_waits_for_its_first_forecast_and_leaves_a_horizon_after_its_last():
    bars, forecasts = one_asset(np.linspace(100, 120, 12), [np.nan]*3 + [0.05, np.nan, np.nan, 0.05] + [np.nan]*5)
    result = run_backtest(bars, forecasts, horizon=2)
    held = result.ledger.loc["asset", "position"]
    assert held.index.tolist() == bars.index[3:9].tolist()
    assert (held.iloc[:-1] > 0).all() and held.iloc[-1] == 0


def test_a_delisted_asset_is_sold_at_its_last_bar_with_cost():
    closes = pd.DataFrame({"A": [100., 101, 102, np.nan, np.nan, np.nan], "B": [50., 51, 50, 52, 51, 50]}, pd.bdate_range("2020-01-01", periods=6, tz="UTC"))
    bars = make_bars(closes)
    forecasts = pd.Series(0.05, bars.index, name="m")
    ledger = run_backtest(bars, forecasts, horizon=5, costs=CostSpec(10, 0)).ledger
    gone = ledger.loc["A"]
    assert gone.index[-1] == closes.index[2] and gone["position"].iloc[-1] == 0
    assert gone["cost"].iloc[-1] == pytest.approx(0.001*gone["trade"].abs().iloc[-1]) and gone["trade"].iloc[-1] < 0


def test_dearer_trading_never_pays():
    bars, forecasts = market(11)
    ends = [run_backtest(bars, forecasts, costs=CostSpec(bps, 0)).equity.iloc[-1] for bps in (0, 5, 50)]
    assert ends == sorted(ends, reverse=True)


def test_half_spread_may_differ_by_bar_and_asset():
    bars, forecasts = market(12)
    spread = pd.Series(np.random.default_rng(1).uniform(0, 0.01, len(bars)), bars.index)
    ledger = run_backtest(bars, forecasts, costs=CostSpec(0, 0, spread)).ledger
    rates = spread.reindex(ledger.index).fillna(0)
    np.testing.assert_allclose(ledger["cost"], rates*ledger["trade"].abs(), atol=1e-12)
    flat = run_backtest(bars, forecasts, costs=CostSpec(0, 0, pd.Series(0.002, bars.index)))
    pd.testing.assert_frame_equal(flat.ledger, run_backtest(bars, forecasts, costs=CostSpec(0, 20)).ledger)
    with pytest.raises(BacktestError, match="no value"): run_backtest(bars, forecasts, costs=CostSpec(0, 0, spread.iloc[:-20]))


def test_one_asset_with_or_without_a_symbol_is_the_same():
    bars, forecasts = one_asset(100 + np.arange(12.), np.full(12, 0.05))
    named = pd.concat({"X": bars}, names=["symbol"])
    results = [run_backtest(b, f) for b in (bars, named) for f in (forecasts, pd.concat({"X": forecasts}, names=["symbol"]))]
    for result in results: pd.testing.assert_series_equal(result.equity, results[0].equity)
    assert results[1].ledger.index.unique("symbol").tolist() == ["X"]
    with pytest.raises(BacktestError, match="index both by"): run_backtest(market(1)[0], forecasts)


def test_ruin_with_borrowed_money_is_the_end():
    bars, forecasts = one_asset([100, 100, 30, 60, 90, 100], np.full(6, 0.001))
    result = run_backtest(bars, forecasts, horizon=1, sizing=SizingSpec(max_weight=3, max_gross=3))
    assert result.equity.iloc[-1] < 0 and (result.ledger["position"].iloc[2:] == 0).all()
    assert (result.summary["total_return"], result.summary["annual_return"], result.summary["max_drawdown"]) == (-1, -1, -1)


def test_awkward_samples_have_defined_metrics():
    bars, forecasts = one_asset(np.full(30, 100.), np.full(30, 0.05))
    idle = SizingSpec(min_weight=0, max_weight=0)
    nothing = run_backtest(bars, forecasts, sizing=idle)
    assert (nothing.summary.drop(["target_risk", "bars"]) == 0).all() and (nothing.equity == 1).all()
    flat = run_backtest(bars, forecasts, costs=CostSpec(0, 0))
    assert flat.summary["sharpe"] == flat.summary["sortino"] == flat.summary["calmar"] == flat.summary["max_drawdown"] == 0
    rising, forecasts = one_asset(100*1.01**np.arange(30), np.full(30, 0.05))
    winner = run_backtest(rising, forecasts, costs=CostSpec(0, 0))
    assert winner.summary["sortino"] == winner.summary["calmar"] == np.inf and winner.summary["max_drawdown"] == 0
    single = run_backtest(rising.iloc[:1], forecasts.iloc[:1])
    assert single.summary.notna().all() and single.summary["trades"] == 0


@FAST
@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=40))
def test_metrics_against_a_second_computation(values):
    returns = pd.Series(values, pd.bdate_range("2020-01-01", periods=len(values), tz="UTC"))
    found, wealth = performance(returns, 252), np.cumprod(np.r_[1, 1 + returns])
    assert found["total_return"] == pytest.approx(wealth[-1] - 1)
    assert found["max_drawdown"] == pytest.approx(min(wealth[j]/wealth[i] - 1 for i in range(len(wealth)) for j in range(i, len(wealth))), abs=1e-12)
    assert found["annual_volatility"] == pytest.approx(returns.std()*sqrt(252))
    if returns.std() > 1e-9: assert found["sharpe"] == pytest.approx(returns.mean()/returns.std()*sqrt(252))
    downside = sqrt(sum(min(r, 0)**2 for r in values)/len(values))
    if downside > 1e-9: assert found["sortino"] == pytest.approx(returns.mean()/downside*sqrt(252))


def test_risk_ratio_is_one_for_the_truth():
    rng = np.random.default_rng(3)
    sigma = np.where(np.arange(2000) % 400 < 200, 0.01, 0.03)
    closes = 100*np.exp(np.cumsum(np.r_[0, sigma[:-1]*rng.standard_normal(1999)]))
    bars, forecasts = one_asset(closes, sigma)
    spec = SizingSpec(target_risk=0.004)
    true = run_backtest(bars, forecasts, horizon=1, sizing=spec, bars_per_year=261).summary
    half = run_backtest(bars, forecasts/2, horizon=1, sizing=replace(spec, target_risk=0.002), bars_per_year=261).summary
    assert true["risk_ratio"] == pytest.approx(1, abs=0.05) and half["risk_ratio"] == pytest.approx(2, abs=0.1)
    assert true["realized_risk"] == pytest.approx(0.004, rel=0.05)


@pytest.mark.parametrize("value", [0., -0.01, np.nan, np.inf])
def test_unusable_forecasts_are_named(value):
    bars, forecasts = market(1)
    forecasts.iloc[4] = value
    symbol, time = forecasts.index[4]
    with pytest.raises(ForecastError, match=f"model: {symbol} at {time:%Y-%m-%d}"): run_backtest(bars, forecasts)
    with pytest.raises(ForecastError, match=f"model: {symbol} at {time:%Y-%m-%d}"): target_weights(forecasts, 5)


def test_bad_questions_are_refused():
    bars, forecasts = market(2)
    with pytest.raises(ForecastError, match="share one calendar"): run_backtest(bars, forecasts.set_axis(forecasts.index.set_levels(forecasts.index.levels[1] + pd.Timedelta("1h"), level=1)))
    with pytest.raises(ForecastError, match="no bars for Z"): run_backtest(bars, forecasts.rename(lambda s: "Z" + s, level="symbol"))
    with pytest.raises(ForecastError, match="column of one model"): run_backtest(bars, forecasts.to_frame())
    with pytest.raises(ForecastError, match="is empty"): run_backtest(bars, forecasts.iloc[:0])
    with pytest.raises(ForecastError, match="not numeric"): run_backtest(bars, forecasts.astype(str) + "x")
    with pytest.raises(MetavolError, match="timezone"): run_backtest(bars, forecasts.tz_localize(None, level="time"))
    with pytest.raises(MetavolError, match="horizon=0"): run_backtest(bars, forecasts, horizon=0)
    with pytest.raises(MetavolError, match="no column close"): run_backtest(bars.drop(columns="close"), forecasts)
    for capital in (0, -1, np.nan, np.inf):
        with pytest.raises(BacktestError, match="needed money above zero"): run_backtest(bars, forecasts, capital=capital)
    for bars_per_year in (0, -252, np.nan, 24*365):
        with pytest.raises(BacktestError, match="bars_per_year"): run_backtest(bars, forecasts, bars_per_year=bars_per_year)
    for wrong in (dict(commission_bps=-1), dict(slippage_bps=np.nan), dict(half_spread=pd.Series([0.1, np.nan]))):
        with pytest.raises(BacktestError, match="zero or more"): CostSpec(**wrong)
    for wrong in (dict(target_risk=0), dict(max_weight=-1), dict(min_weight=0.6), dict(max_gross=np.inf), dict(no_trade_band=np.nan)):
        with pytest.raises(MetavolError): SizingSpec(**wrong)


def test_repr_is_one_line_and_the_plot_has_three_axes():
    import matplotlib
    matplotlib.use("agg")
    result = run_backtest(*market(5))
    assert isinstance(result, Backtest) and "\n" not in repr(result) and "3 assets" in repr(result)
    assert [axis.get_ylabel() for axis in result.plot()] == ["equity / capital", "drawdown (%)", "invested (% of equity)"]
    assert result.returns.index.equals(result.equity.index)
    matplotlib.pyplot.close("all")


def test_inputs_are_left_as_they_were():
    bars, forecasts = one_asset(100 + np.arange(12.), np.full(12, 0.05))
    copies = bars.copy(), forecasts.copy()
    run_backtest(bars, forecasts)
    pd.testing.assert_frame_equal(bars, copies[0])
    pd.testing.assert_series_equal(forecasts, copies[1])
    assert not bars.attrs and not forecasts.attrs
