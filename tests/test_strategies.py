"Rules see the past alone and do what they say; variance is sold within its limits."
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from metavol.backtest import CostSpec, Seen, apply_rules, run_backtest
from metavol.bars import MetavolError
from metavol.data import stored_results
from metavol.performance import BacktestError
from metavol.sizing import SizingSpec
from metavol.strategies import VarianceSpec, exit_on_rise, find_alarms, hedge_on_rise, lean_on_calm, sell_swap, sell_variance, variance_signal
from test_backtest import FAST, SEEDS, make_bars, market

RULES = {"lean": lean_on_calm, "exit": exit_on_rise, "hedge": partial(hedge_on_rise, hedge="S2", memory=5)}


def seen(seed, n=80, assets=3):
    "A market and what was forecast for it, every fourth bar."
    rng = np.random.default_rng(seed)
    times, names = pd.bdate_range("2020-01-01", periods=n, tz="UTC"), [f"S{i}" for i in range(assets)]
    closes = pd.DataFrame(100*np.exp(np.cumsum(0.02*rng.standard_normal((n, assets)), axis=0)), times, names)
    sigma = pd.DataFrame(0.02*np.exp(0.4*rng.standard_normal((n, assets))), times, names)
    fresh = pd.DataFrame(np.tile((np.arange(n) % 4 == 0)[:, None], assets), times, names)
    return Seen(closes, sigma.where(fresh).ffill(), fresh)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@FAST
@given(SEEDS, st.integers(10, 70))
def test_a_rule_never_sees_the_future(rule, seed, now):
    known = seen(seed)
    weights = pd.DataFrame(0.3, known.closes.index, known.closes.columns)
    rng = np.random.default_rng(seed + 1)
    later = np.arange(len(weights))[:, None] > now
    wrecked = Seen(known.closes*np.where(later, rng.uniform(0.5, 2, known.closes.shape), 1), known.sigma*np.where(later, rng.uniform(0.2, 5, known.sigma.shape), 1), known.fresh)
    pd.testing.assert_frame_equal(rule(weights, known).iloc[:now + 1], rule(weights, wrecked).iloc[:now + 1])
    assert np.isfinite(rule(weights, known)).all(axis=None)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@FAST
@given(SEEDS)
def test_a_rule_has_no_unit_of_volatility(rule, seed):
    known = seen(seed)
    weights = pd.DataFrame(0.3, known.closes.index, known.closes.columns)
    pd.testing.assert_frame_equal(rule(weights, known), rule(weights, replace(known, sigma=7*known.sigma)))


@FAST
@given(SEEDS, st.floats(0.1, 1), st.floats(0, 0.5), st.integers(1, 20))
def test_alarms_by_one_asset_and_one_bar_at_a_time(seed, rise, calm, patience):
    known = seen(seed)
    found = find_alarms(known, rise, calm, patience)
    for name in known.sigma:
        alarm, level, waited, last = False, np.nan, 0, np.nan
        for t in range(len(known.sigma)):
            now, new = known.sigma[name].iloc[t], known.fresh[name].iloc[t]
            if alarm:
                waited += 1
                if new and now <= (1 + calm)*level or waited >= patience: alarm = False
            elif new and now > (1 + rise)*last: alarm, level, waited = True, last, 0
            if new: last = now
            assert found[name].iloc[t] == alarm


def test_leaning_stays_within_its_limits_and_hedges_are_proportional():
    known = seen(3)
    weights = pd.DataFrame(0.3, known.closes.index, known.closes.columns)
    assert lean_on_calm(weights, known, strength=9).stack().between(0.15, 0.45).all()
    small, large = (hedge_on_rise(size*weights, known, "S2", memory=5)["S2"] - size*0.3 for size in (1, 2))
    np.testing.assert_allclose(large, 2*small)
    assert (small != 0).any()


def test_rules_in_the_engine_keep_the_limits_and_hedges_stand_outside_them():
    bars, forecasts = market(9)
    index = make_bars(pd.DataFrame({"IDX": 100 + np.arange(60.)}, pd.bdate_range("2020-01-01", periods=60, tz="UTC")))
    both, sizing = pd.concat([bars, index]).sort_index(), SizingSpec(target_risk=0.2, max_weight=0.4, max_gross=0.9, no_trade_band=0.)
    loud = lambda weights, known: weights.assign(IDX=-0.7)*np.where(weights.columns == "IDX", 1, 3)
    known = seen(4)
    known = replace(known, closes=known.closes.assign(IDX=100.), sigma=known.sigma.assign(IDX=np.nan), fresh=known.fresh.assign(IDX=False))
    weights = apply_rules(known.sigma.fillna(0)*20, known, [loud], sizing)
    own = weights.drop(columns="IDX")
    assert own.max(axis=None) <= 0.4 + 1e-12 and own.abs().sum(axis=1).max() <= 0.9 + 1e-12 and (weights["IDX"].iloc[:-1] == -0.7).all() and (weights.iloc[-1] == 0).all()
    assert (own*known.sigma[own.columns]).sum(axis=1).max() <= 0.2 + 1e-12
    run = run_backtest(both, forecasts, sizing=sizing, costs=CostSpec(0, 0), rules=[loud], hedges=["IDX"])
    assert (run.ledger.loc["IDX", "position"].iloc[:-1] < 0).all() and (run.ledger.drop("IDX", level="symbol")["position"] >= 0).all()
    with pytest.raises(BacktestError, match="has forecasts too"): run_backtest(both, forecasts, hedges=["S0"])
    with pytest.raises(MetavolError, match="no bars for NOPE"): run_backtest(both, forecasts, hedges=["NOPE"])
    with pytest.raises(BacktestError, match="finite weights with the same"): run_backtest(both, forecasts, rules=[lambda w, s: w.iloc[1:]])
    with pytest.raises(BacktestError, match="finite weights with the same"): run_backtest(both, forecasts, rules=[lambda w, s: None])


@pytest.mark.parametrize("wrong", [dict(strength=-1), dict(half_life=0), dict(least=2., most=1.)])
def test_leaning_refuses(wrong):
    known = seen(0)
    with pytest.raises(MetavolError, match="must be a finite number"): lean_on_calm(known.sigma, known, **wrong)


# Variance

def index_and_implied(seed=0, n=700, level=0.2, sigma=0.15):
    rng, times = np.random.default_rng(seed), pd.bdate_range("2015-01-01", periods=n, tz="UTC")
    return (pd.Series(level*np.exp(0.3*rng.standard_normal(n)), times), pd.Series(100*np.exp(np.cumsum(sigma/np.sqrt(252)*rng.standard_normal(n))), times))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1), st.floats(0.01, 2), st.floats(1.1, 4))
def test_a_swap_never_loses_more_than_its_margin(seed, implied, sigma, cap):
    rng, spec = np.random.default_rng(seed), VarianceSpec(cap=cap)
    value, strike, realized = sell_swap(implied*np.exp(0.2*rng.standard_normal(22)), sigma/np.sqrt(252)*rng.standard_normal(22), 1000., spec)
    notional = 50/((cap**2 - 1)*strike**2)
    assert value.min() >= -50*(1 + 1e-12) and value[-1] == pytest.approx(notional*(strike**2 - min(realized**2, (cap*strike)**2)))


def test_swaps_follow_one_another_and_money_adds_up():
    implied, closes = index_and_implied()
    spec = VarianceSpec(percentile=0., cash_rate=0.03)
    found = sell_variance(implied, closes, None, spec, capital=500.)
    trades, returns = found.trades, np.log(closes).diff()
    assert trades["sold"].iloc[0] == closes.index[251] and (trades["sold"].iloc[1:].to_numpy() == trades["ended"].iloc[:-1].to_numpy()).all()
    money = 500.
    for row in trades.itertuples():
        life = returns[(returns.index > row.sold) & (returns.index <= row.ended)]
        assert len(life) == 21 and row.realized == pytest.approx(np.sqrt(252/21*(life**2).sum())) and row.strike == pytest.approx(implied[row.sold] - 0.005)
        money = money*(1 + 0.03/252)**21 + row.payoff*money
        assert found.account.loc[row.ended, "equity"] - found.account.loc[row.ended, "mark"] == pytest.approx(money)
    for cut in (1, 7, 30): # Where the data end changes nothing before
        pd.testing.assert_frame_equal(sell_variance(implied, closes.iloc[:-cut], None, spec, capital=500.).account, found.account.iloc[:-cut], check_freq=False)
    assert "swaps sold from" in repr(found) and "\n" not in repr(found)
    assert len(found.plot()) == 2


def test_signals_know_the_past_and_a_forecast_may_say_no():
    implied, closes = index_and_implied(1)
    signal = variance_signal(implied, None, VarianceSpec())
    assert not signal.iloc[:251].any() and 0.1 < signal.iloc[251:].mean() < 0.3
    shaken = implied.copy(); shaken.iloc[500:] *= 3
    pd.testing.assert_series_equal(variance_signal(shaken, None, VarianceSpec()).iloc[:500], signal.iloc[:500])
    high = pd.Series(2.9, implied.index)
    never = sell_variance(implied, closes, high)
    assert never.summary["trades"] == 0 and (never.account["return"] == 0).all() and never.summary.notna().all() and "0 swaps" in repr(never)
    partial_forecast = pd.Series(0.02, implied.index[400:])
    assert sell_variance(implied, closes, partial_forecast, VarianceSpec(percentile=0.)).trades["sold"].min() == implied.index[400]


@pytest.mark.parametrize("wrong,says", [
    (lambda i, c: sell_variance(100*i, c), "for instance VIX/100"), (lambda i, c: sell_variance(i.iloc[:200], c), "needed 273"), (lambda i, c: sell_variance(i*0, c), "finite values above zero"),
    (lambda i, c: sell_variance(i.iloc[::-1], c), "earlier than the one before"), (lambda i, c: sell_variance(list(i), c), "a pandas Series by time"),
    (lambda i, c: sell_variance(i, c.set_axis(pd.date_range("2015-01-01", periods=len(c), freq="h", tz="UTC"))), "days have both"),
    (lambda i, c: sell_variance(i, c, 100*i), "for instance VIX/100"), (lambda i, c: sell_variance(i, c, -i), "above zero"), (lambda i, c: sell_variance(i, c, i.to_frame()), "a pandas Series"),
    (lambda i, c: sell_variance(i, c, i.shift(freq="1h")), "none of its"), (lambda i, c: sell_variance(i, c, i.tz_localize(None)), "timezone"), (lambda i, c: sell_variance(i, c.tz_localize(None)), "timezone"),
    (lambda i, c: sell_variance(i.astype(str) + "x", c), "finite values"), (lambda i, c: sell_variance(i, c, capital=0), "money above zero"), (lambda i, c: sell_variance(i, c, spec=None), "a VarianceSpec"),
    (lambda i, c: sell_swap(np.full(22, .2), np.zeros(22), 1., VarianceSpec(half_spread=.3)), "nothing is left"), (lambda i, c: VarianceSpec(cap=1.), "above 1"), (lambda i, c: VarianceSpec(risk=0.), "above 0"), (lambda i, c: VarianceSpec(percentile=2.), "at most 1"), (lambda i, c: VarianceSpec(sessions=0), "sessions=0")])
def test_bad_questions_about_variance(wrong, says):
    with pytest.raises(MetavolError, match=says): wrong(*index_and_implied(2))


def test_the_full_record_is_the_one_beside_the_chapter(market_data):
    "A quarter of a second on 35 years: sold every month."
    table = pd.read_parquet(market_data/"vix_daily.parquet").set_index("date").dropna().tz_localize("UTC")
    found = sell_variance(table["vix_close"]/100, table["spx_close"], None, VarianceSpec(percentile=0.))
    stored = pd.read_csv(stored_results()/"variance"/"table.csv", index_col="rule").loc["every month"]
    for name in ("sharpe", "max_drawdown", "trades", "paid", "worst"): assert found.summary[name] == pytest.approx(stored[name], rel=1e-4)


def test_a_wide_spread_never_pays():
    implied, closes = index_and_implied(3)
    ends = [sell_variance(implied, closes, None, VarianceSpec(percentile=0., half_spread=spread)).account["equity"].iloc[-1] for spread in (0., .01, .03, .3)]
    assert ends[0] > ends[1] > ends[2] and ends[3] == 1 # At .3 nothing is sold


def test_betas_count_only_bars_that_both_have():
    rng, times = np.random.default_rng(0), pd.bdate_range("2020-01-01", periods=200, tz="UTC")
    market = 0.01*rng.standard_normal(200)
    closes = pd.DataFrame({"A": 100*np.cumprod(1 + 1.5*market), "M": 100*np.cumprod(1 + market)}, times)
    closes.iloc[:100, 0] = np.nan
    sigma = pd.DataFrame({"A": np.where(np.arange(200) < 101, np.nan, 0.01), "M": np.nan}, times)
    sigma.iloc[130:, 0] = 0.05
    known = Seen(closes, sigma, sigma.notna())
    weights = pd.DataFrame({"A": 0.5, "M": 0.}, times).where(sigma.notna() | [False, True], 0.)
    assert hedge_on_rise(weights, known, "M", patience=500)["M"].iloc[131:].to_numpy() == pytest.approx(-0.75)
