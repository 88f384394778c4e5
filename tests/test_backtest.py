"Properties that sizing and the ledger keep for any prices, forecasts and costs."
import itertools
from dataclasses import replace
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from metavol.backtest import Backtest, CostSpec, half_spread, run_backtest, run_weights
from metavol.performance import BacktestError, performance_summary
from metavol.bars import MetavolError
from metavol.scoring import ForecastError
from metavol.sizing import SizingSpec, average_correlation, size_positions, target_weights

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
@given(SEEDS, st.floats(0, 50), st.floats(0, 0.01), st.floats(0, 0.3), st.floats(0.3, 3), st.floats(-0.02, 0.1), st.floats(-1, 0.2), st.booleans())
def test_the_ledger_adds_up_at_every_bar(seed, commission, half_spread, band, max_gross, cash_rate, lost, whole):
    bars, forecasts = market(seed)
    capital, rate = 1e5, (commission + 2)/1e4 + half_spread
    result = run_backtest(bars, forecasts, sizing=SizingSpec(no_trade_band=band, max_gross=max_gross, whole_units=whole),
                          costs=CostSpec(commission, 2, half_spread, cash_rate, delisting_return=lost), capital=capital)
    ledger, account = result.ledger, result.account
    np.testing.assert_allclose(ledger["cost"], rate*ledger["trade"].abs(), atol=1e-9)
    flows = ledger.groupby(level="time")[["position", "trade", "cost", "pnl"]].sum().reindex(account.index, fill_value=0.)
    np.testing.assert_allclose(account["cash"] + flows["position"], account["equity"], rtol=0, atol=1e-9*capital)
    np.testing.assert_allclose(account["equity"], capital + (flows["pnl"] - flows["cost"] + account["interest"]).cumsum(), atol=1e-9*capital)
    np.testing.assert_allclose(account["interest"].iloc[1:], (account["cash"].shift()*cash_rate/252).iloc[1:], atol=1e-9*capital)
    np.testing.assert_allclose(ledger["equity"], result.equity.reindex(ledger.index, level="time"))
    np.testing.assert_allclose(ledger["weight"], ledger["position"]/ledger["equity"], atol=1e-12)
    assert (ledger["position"] >= 0).all() and (ledger["position"].groupby(level="symbol").last() == 0).all()
    if whole:
        close = bars["close"].unstack("symbol").sort_index().ffill().stack().swaplevel().reindex(ledger.index)
        units = ledger["position"]/close
        np.testing.assert_allclose(units, units.round(), atol=1e-6)


@FAST
@given(SEEDS, st.floats(0, 0.2), st.floats(0, 0.2))
def test_the_ledger_of_short_positions_adds_up(seed, cash_rate, fee):
    bars, _ = market(seed)
    weights = pd.Series(np.random.default_rng(seed).uniform(-0.6, 0.6, len(bars)), bars.index)
    result = run_weights(bars, weights, CostSpec(3, 2, 0.001, cash_rate, fee), capital=1e3)
    flows = result.ledger.groupby(level="time")[["position", "cost", "fee", "pnl"]].sum().reindex(result.account.index, fill_value=0.)
    np.testing.assert_allclose(result.account["cash"] + flows["position"], result.equity, atol=1e-6)
    np.testing.assert_allclose(result.equity, 1e3 + (flows["pnl"] - flows["cost"] - flows["fee"] + result.account["interest"]).cumsum(), atol=1e-6)
    before = result.ledger["position"].groupby(level="symbol").shift(fill_value=0.)
    np.testing.assert_allclose(result.ledger["fee"], fee/252*before.clip(upper=0.).abs(), atol=1e-9)
    assert (result.ledger["position"] < 0).any() and (result.ledger["position"] > 0).any()


@FAST
@given(SEEDS)
def test_pnl_is_the_position_of_the_bar_before_times_the_move(seed):
    bars, forecasts = market(seed)
    ledger = run_backtest(bars, forecasts).ledger
    for symbol, rows in ledger.groupby(level="symbol"):
        rows = rows.droplevel("symbol")
        moves = bars["close"].loc[symbol].reindex(rows.index).ffill().pct_change()
        np.testing.assert_allclose(rows["pnl"].iloc[1:], (rows["position"].shift()*moves).iloc[1:], atol=1e-12)
        gaps = rows[~rows.index.isin(bars.loc[symbol].index)]
        settled = gaps.index > bars.loc[symbol].index[-1]
        assert (gaps["trade"][~settled] == 0).all() and (gaps["position"][settled] == 0).all() and settled.sum() <= 1


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
    risk_taken = (weights*np.nan_to_num(sigma)).sum(axis=1)
    assert risk_taken.max() <= risk*(1 + 1e-12)
    loose &= risk_taken < risk*(1 - 1e-9)
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
    assert (held > 0).tolist() == [True, True, False, True, True, False] # Nobody speaks for the sixth bar


@FAST
@given(SEEDS, st.integers(10, 50))
def test_forecasts_that_come_later_do_not_change_the_past(seed, moment):
    bars, forecasts = market(seed, stride=3)
    rng = np.random.default_rng(seed)
    forecasts = forecasts[rng.random(len(forecasts)) < 0.6] # With holes longer than a horizon
    now = bars.index.unique("time").sort_values()[moment]
    early = forecasts[forecasts.index.get_level_values("time") <= now]
    if early.empty: return
    whole, cut = (run_backtest(bars, f, horizon=2).ledger for f in (forecasts, early))
    before = lambda ledger: ledger["position"][ledger.index.get_level_values("time") <= now].unstack("symbol").fillna(0.)
    one, other = before(whole), before(cut)
    one, other = one.align(other, fill_value=0.)
    np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("lost", [0., -0.3, -1.])
def test_an_asset_that_ends_while_it_is_held_is_settled_a_bar_later(lost):
    closes = pd.DataFrame({"A": [100., 101, 102, np.nan, np.nan, np.nan], "B": [50., 51, 50, 52, 51, 50]}, pd.bdate_range("2020-01-01", periods=6, tz="UTC"))
    bars = make_bars(closes)
    forecasts = pd.Series(0.05, bars.index, name="m")
    ledger = run_backtest(bars, forecasts, horizon=5, costs=CostSpec(10, 0, delisting_return=lost)).ledger
    gone = ledger.loc["A"]
    assert gone.index[-1] == closes.index[3] and gone["position"].iloc[-1] == 0 and gone["position"].iloc[-2] > 0
    assert gone["pnl"].iloc[-1] == pytest.approx(lost*gone["position"].iloc[-2]) and gone["cost"].iloc[-1] == pytest.approx(0.001*abs(gone["trade"].iloc[-1]))
    assert gone["trade"].iloc[-1] == pytest.approx(-(1 + lost)*gone["position"].iloc[-2])
    alive = run_backtest(make_bars(closes.ffill()), forecasts, horizon=5, costs=CostSpec(10, 0)).ledger # Nobody could have known at the last bar
    pd.testing.assert_frame_equal(gone.iloc[:3], alive.loc["A"].iloc[:3])


def test_dearer_trading_never_pays():
    bars, forecasts = market(11)
    ends = [run_backtest(bars, forecasts, costs=CostSpec(bps, 0)).equity.iloc[-1] for bps in (0, 5, 50)]
    assert ends == sorted(ends, reverse=True)


def test_half_spread_may_differ_by_bar_and_asset():
    bars, forecasts = market(12)
    spread = pd.Series(np.random.default_rng(1).uniform(0, 0.01, len(bars)), bars.index)
    ledger = run_backtest(bars, forecasts, costs=CostSpec(0, 0, spread)).ledger
    rates = spread.unstack("symbol").sort_index().ffill().stack().swaplevel().reindex(ledger.index) # A settlement pays the last one known
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
    assert (nothing.summary.drop(["target_risk", "risk_error", "bars", "mse", "mae"]) == 0).all() and (nothing.equity == 1).all()
    assert nothing.summary["risk_error"] == 1 and nothing.summary["mae"] == pytest.approx(0.05) # No risk is all of it missing; nothing came, 0.05 was said
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
    found, wealth = performance_summary(returns, 252), np.cumprod(np.r_[1, 1 + returns])
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
        with pytest.raises(MetavolError, match="commission_bps|slippage_bps|half_spread"): CostSpec(**wrong)
    for wrong in (dict(target_risk=0), dict(max_weight=-1), dict(min_weight=0.6), dict(max_gross=np.inf), dict(no_trade_band=np.nan)):
        with pytest.raises(MetavolError): SizingSpec(**wrong)


def test_repr_is_one_line_and_the_plot_has_four_axes():
    import matplotlib
    matplotlib.use("agg")
    result = run_backtest(*market(5))
    assert isinstance(result, Backtest) and "\n" not in repr(result) and "3 assets" in repr(result)
    assert [axis.get_ylabel() for axis in result.plot()] == ["equity / capital", "drawdown (%)", "invested (% of equity)", "cost so far\n(% of capital)"]
    assert result.returns.index.equals(result.equity.index)
    matplotlib.pyplot.close("all")


def test_inputs_are_left_as_they_were():
    bars, forecasts = one_asset(100 + np.arange(12.), np.full(12, 0.05))
    copies = bars.copy(), forecasts.copy()
    run_backtest(bars, forecasts)
    pd.testing.assert_frame_equal(bars, copies[0])
    pd.testing.assert_series_equal(forecasts, copies[1])
    assert not bars.attrs and not forecasts.attrs


def test_forecasts_are_scored_on_the_bars_of_their_own_asset():
    bars, forecasts = market(21)
    found = run_backtest(bars, forecasts).summary
    returns = np.log(bars["close"]).groupby(level="symbol").diff()
    ahead, behind = (returns.groupby(level="symbol").transform(lambda r: np.sqrt((r**2).rolling(5).sum()).shift(shift)).reindex(forecasts.index) for shift in (-5, 0))
    known = ahead.notna()
    assert found["mse"] == pytest.approx(((forecasts - ahead)**2)[known].mean()) and found["mae"] == pytest.approx((forecasts - ahead).abs()[known].mean())
    right = np.sign(forecasts - behind.fillna(0)) == np.sign(ahead - behind.fillna(0))
    assert found["hit_rate"] == pytest.approx(right[known].mean())


@FAST
@given(SEEDS)
def test_average_correlation_sees_the_past_alone_and_no_level(seed):
    rng = np.random.default_rng(seed)
    moves, sigma = 0.02*rng.standard_normal((80, 4)), rng.uniform(0.01, 0.03, (80, 4))
    moves[rng.random(moves.shape) < 0.1] = np.nan
    found = average_correlation(moves, sigma, 20)
    np.testing.assert_allclose(average_correlation(moves, 3*sigma, 20), found)
    shaken = moves.copy(); shaken[50:] *= 7
    np.testing.assert_array_equal(average_correlation(shaken, sigma, 20)[:50], found[:50])
    assert ((found >= 0) & (found <= 1)).all() and found[0] == 1


def test_diversification_is_spent_up_to_the_target():
    rng = np.random.default_rng(2)
    times = pd.bdate_range("2015-01-01", periods=1500, tz="UTC")
    closes = pd.DataFrame(100*np.exp(np.cumsum(0.02*(np.sqrt(.3)*rng.standard_normal((1500, 1)) + np.sqrt(.7)*rng.standard_normal((1500, 12))), axis=0)), times, [f"S{i:02}" for i in range(12)])
    bars = make_bars(closes)
    forecasts = pd.Series(0.02*sqrt(5), bars.index)
    spec = SizingSpec(target_risk=0.008, min_weight=0., max_gross=3)
    plain, spent = (run_backtest(bars, forecasts, sizing=one, bars_per_year=261).summary for one in (spec, replace(spec, correlation_memory=120)))
    assert plain["realized_risk"] < 0.006 and spent["realized_risk"] == pytest.approx(0.008, rel=0.06) and spent["risk_error"] < 0.2


@pytest.mark.filterwarnings("ignore:DatetimeIndex.dayofweek") # Theirs
def test_the_same_orders_in_another_engine():
    "backtesting.py, filled at the close of the bar, with commission; it counts whole units, so a unit is a millionth of a share."
    from backtesting import Backtest as Engine, Strategy

    rng = np.random.default_rng(4)
    times = pd.bdate_range("2020-01-01", periods=400, tz="UTC", name="time")
    close = 100*np.exp(np.cumsum(0.02*rng.standard_normal(400)))
    bars = pd.DataFrame({name: close for name in ("open", "high", "low", "close")}, times).assign(volume=1.)
    weights = pd.Series(rng.choice([0.2, 0.5, 0.8, 0.], 400), times).iloc[1:] # That engine begins at the second bar
    ours = run_weights(bars, weights, CostSpec(10, 0), capital=1e7)
    units = np.r_[0, np.round(1e6*ours.ledger["position"].droplevel("symbol")/bars["close"].iloc[1:])].astype(int)

    class Orders(Strategy):
        def init(self): pass
        def next(self):
            more = units[len(self.data) - 1] - units[len(self.data) - 2]
            if more > 0: self.buy(size=int(more))
            elif more < 0: self.sell(size=int(-more))
    table = pd.DataFrame({name: close/1e6 for name in ("Open", "High", "Low", "Close")}, times.tz_localize(None))
    theirs = Engine(table, Orders, cash=1e7, commission=0.001, trade_on_close=True, finalize_trades=True).run()._equity_curve["Equity"]
    before = ours.equity + ours.account["cost"] # It writes equity down before the order of the bar is filled
    np.testing.assert_allclose(theirs.to_numpy()[2:-1], before.to_numpy()[1:-1], rtol=1e-9)


def test_vectorbt_agrees_on_a_portfolio_with_costs():
    vectorbt = pytest.importorskip("vectorbt", reason="vectorbt is not installed; it takes a compiler along, so it is no part of the tools")
    rng = np.random.default_rng(5)
    times = pd.bdate_range("2020-01-01", periods=300, tz="UTC", name="time")
    closes = pd.DataFrame(100*np.exp(np.cumsum(0.02*rng.standard_normal((300, 4)), axis=0)), times, list("ABCD"))
    weights = pd.DataFrame(rng.uniform(-0.2, 0.3, closes.shape), times, closes.columns)
    ours = run_weights(make_bars(closes), weights.rename_axis(index="time", columns="symbol").T.stack(), CostSpec(10, 0), capital=1e5)
    units = ours.ledger["position"].unstack("symbol")/closes
    orders = units.diff().fillna(units)
    theirs = vectorbt.Portfolio.from_orders(closes, orders, price=closes, fees=0.001, init_cash=1e5, cash_sharing=True, group_by=True)
    np.testing.assert_allclose(theirs.value().to_numpy(), ours.equity.to_numpy(), rtol=1e-9)


def test_weights_that_are_given_once_are_never_touched_again():
    bars, _ = market(7)
    first = bars.groupby(level="symbol").head(1).index
    held = run_weights(bars, pd.Series(0.2, first), CostSpec(0, 0))
    assert (held.ledger.groupby(level="symbol")["trade"].apply(lambda t: (t.iloc[1:-1] == 0).all())).all()
    assert held.target_risk is None and "risk_ratio" not in held.summary and held.summary.notna().all()


@pytest.mark.parametrize("weights,says", [(lambda w: w*np.nan, "not finite"), (lambda w: w.iloc[:0], "0 values"), (lambda w: w.to_frame(), "a pandas Series"),
                                          (lambda w: w.rename(lambda s: "Z" + s, level="symbol"), "no bars for"), (lambda w: w.tz_localize(None, level="time"), "timezone")])
def test_unusable_weights_are_refused(weights, says):
    bars, _ = market(7)
    with pytest.raises(MetavolError, match=says): run_weights(bars, weights(pd.Series(0.2, bars.index)))


def test_cash_earns_a_rate_that_was_known_when_the_bar_began():
    bars, forecasts = one_asset(np.full(12, 100.), np.full(12, 0.05))
    idle = SizingSpec(min_weight=0, max_weight=0)
    rate = pd.Series([0.0252, 0.252], [bars.index[0], bars.index[5]])
    found = run_backtest(bars, forecasts, sizing=idle, costs=CostSpec(cash_rate=rate)).account["interest"]
    np.testing.assert_allclose(found.iloc[[0, 1, 5]], [0, 1e-4, found.iloc[5]])
    assert found.iloc[5] == pytest.approx(1e-4, rel=1e-2) and found.iloc[6] == pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(BacktestError, match="begin it earlier"): run_backtest(bars, forecasts, costs=CostSpec(cash_rate=rate.iloc[1:]))
    for wrong in (dict(cash_rate=np.nan), dict(borrow_fee=-1), dict(delisting_return=-1.1)):
        with pytest.raises(MetavolError, match="must be a finite number"): CostSpec(**wrong)


def test_a_half_spread_is_what_was_known_a_bar_before(stocks):
    spread = half_spread(stocks.loc[["GOOG", "IBM"]])
    shaken = stocks.loc[["GOOG", "IBM"]].copy()
    late = shaken.index.get_level_values("time") >= shaken.index.get_level_values("time")[300]
    shaken.loc[late, "high"] *= 1.05
    for symbol in ("GOOG", "IBM"):
        one, other = spread.loc[symbol], half_spread(shaken).loc[symbol]
        first = int(np.argmax(~one.eq(other)))
        assert one.index[first] > shaken.index.get_level_values("time")[300] and one.ge(0).all()
    quoted = half_spread(stocks.loc[["IBM"]].assign(spread=0.002))
    assert quoted.eq(0.001).all() and len(quoted) == len(stocks.loc[["IBM"]]) - 1


def test_a_tear_sheet_stands_alone(tmp_path):
    result = run_backtest(*market(5, n=120))
    page = result.to_html(tmp_path/"sheet.html", title="Mine")
    assert (tmp_path/"sheet.html").read_text() == page and "<h1>Mine</h1>" in page and "http" not in page.replace("http-equiv", "")
    for word in ("max_drawdown", "risk_error", "low", "data:image/png;base64", "S1"): assert word in page
    short = run_backtest(*one_asset(100 + np.arange(12.), np.full(12, 0.05))).to_html()
    assert "sharpe" in short and ">low<" not in short


def test_ruin_by_a_short_sale_is_the_end_too():
    bars, _ = one_asset([100, 100, 250, 250, 50, 50], np.full(6, 0.05))
    result = run_weights(bars, pd.Series([-1.], bars.index[:1]), CostSpec(0, 0, cash_rate=0.1))
    assert result.equity.iloc[2:].nunique() == 1 and result.equity.iloc[-1] == pytest.approx(-0.5, abs=2e-3)
    assert (result.ledger["position"].iloc[2:] == 0).all() and result.summary["total_return"] == -1
    assert "Return -100.0%" in result.plot()[0].get_title()
    flows = result.ledger.groupby(level="time")[["pnl", "cost", "fee"]].sum()
    np.testing.assert_allclose(result.equity, 1 + (flows["pnl"] - flows["cost"] - flows["fee"] + result.account["interest"]).cumsum(), atol=1e-12)


def test_the_ledger_adds_up_with_rules_and_hedges_that_end():
    bars, forecasts = market(13)
    closes = pd.DataFrame({"IDX": 100*1.001**np.arange(60.)}, pd.bdate_range("2020-01-01", periods=60, tz="UTC"))
    both = pd.concat([bars, make_bars(closes.iloc[:35])]).sort_index()
    rule = lambda weights, seen: (weights*0 + 0.2).assign(IDX=-0.3)
    result = run_backtest(both, forecasts, costs=CostSpec(5, 0, delisting_return=-0.5), rules=[rule], hedges=["IDX"], capital=1e3)
    flows = result.ledger.groupby(level="time")[["position", "trade", "cost", "pnl"]].sum().reindex(result.account.index, fill_value=0.)
    np.testing.assert_allclose(result.account["cash"] + flows["position"], result.equity, atol=1e-6)
    np.testing.assert_allclose(result.equity, 1e3 + (flows["pnl"] - flows["cost"]).cumsum(), atol=1e-6)
    index = result.ledger.loc["IDX"]
    assert index.index[-1] == closes.index[35] and index["position"].iloc[-1] == 0 and index["pnl"].iloc[-1] == pytest.approx(-0.5*index["position"].iloc[-2])
    assert (result.ledger["position"].groupby(level="symbol").last() == 0).all()
    alive = run_backtest(pd.concat([bars, make_bars(closes)]).sort_index(), forecasts, rules=[rule], hedges=["IDX"])
    assert (alive.ledger["position"].groupby(level="symbol").last() == 0).all()


def test_rules_that_look_ahead_are_refused():
    bars, forecasts = market(14)
    for peek in (lambda w, s: w.where(s.returns.shift(-1) > 0, 0.), lambda w, s: w*(s.sigma.mean() > 0.03), lambda w, s: w*(s.closes.iloc[-1] > s.closes.iloc[0])):
        with pytest.raises(BacktestError, match="looks ahead"): run_backtest(bars, forecasts, rules=[peek])
    run_backtest(bars, forecasts, rules=[lambda w, s: w.where(s.returns.fillna(0) > 0, 0.)])


def test_whole_units_survive_the_noise_of_floating_point():
    bars, _ = one_asset(np.full(6, 1.), np.full(6, 0.05))
    held = run_weights(bars, pd.Series(0.29, bars.index), CostSpec(0, 0), capital=100., whole_units=True).ledger["position"]
    assert (held == 29).all()
    short = run_weights(bars, pd.Series(-0.299, bars.index), CostSpec(0, 0), capital=100., whole_units=True).ledger["position"]
    assert (short == -29).all()


@pytest.mark.parametrize("wrong", [
    dict(horizon="5"), dict(horizon=None), dict(horizon=2.5), dict(horizon=True), dict(horizon=np.nan), dict(bars_per_year="252"), dict(bars_per_year=None), dict(rules="abc"),
    dict(rules=lambda w, s: w), dict(rules=[None]), dict(rules=[lambda w, s: w.astype(str)]), dict(rules=[lambda w, s: w.astype(object)]), dict(hedges="S0"), dict(hedges=None), dict(hedges=5),
    dict(hedges=["X", "X"]), dict(capital="1"), dict(capital=True), dict(sizing=None), dict(costs=1)], ids=itertools.count())
def test_every_argument_has_its_type(wrong):
    bars, forecasts = market(3)
    with pytest.raises(MetavolError): run_backtest(bars, forecasts, **wrong)


@pytest.mark.parametrize("wrong", [
    dict(commission_bps="1"), dict(commission_bps=True), dict(borrow_fee="1"), dict(delisting_return="1"), dict(cash_rate="1"), dict(half_spread=True), dict(half_spread="wide"), dict(half_spread=[0.1]),
    dict(cash_rate=pd.Series([0.1], [0])), dict(cash_rate=pd.Series([0.1], pd.DatetimeIndex(["2020-01-01"]))), dict(half_spread=pd.Series([0.1, 0.1], pd.DatetimeIndex(["2020-01-01"]*2, tz="UTC"))),
    dict(half_spread=pd.Series(["a"], pd.DatetimeIndex(["2020-01-01"], tz="UTC")))], ids=itertools.count())
def test_every_cost_has_its_type(wrong):
    with pytest.raises(MetavolError): CostSpec(**wrong)


def test_weights_of_any_numeric_kind_are_taken_and_others_refused():
    bars, _ = market(7)
    weights = pd.Series(0.2, bars.index)
    expected = run_weights(bars, weights).equity
    pd.testing.assert_series_equal(run_weights(bars, weights.astype(object)).equity, expected)
    for wrong in (weights.astype(str) + "x", weights*1e200, weights.where(weights.index != weights.index[3])):
        with pytest.raises(BacktestError, match="not finite"): run_weights(bars, wrong)


@pytest.mark.parametrize("sigma", [np.zeros((2, 2)), -np.ones((2, 2)), np.ones(3), np.array([["a"]]), pd.DataFrame([[0.1]]), np.full((1, 1), np.inf)], ids=itertools.count())
def test_tables_of_volatility_are_checked(sigma):
    with pytest.raises(ForecastError, match="sigma"): size_positions(sigma)
