"Metrics and intervals against other libraries, by hand, and in awkward cases."
from math import sqrt

import empyrical
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from metavol.bars import MetavolError
from metavol.performance import (BOOTSTRAPPED, STRETCH, BacktestError, account_metrics, best_of_luck, deflated_sharpe, performance_differences,
                                 performance_intervals, performance_summary, ratio, return_metrics, risk_error)

FAST = settings(max_examples=40, deadline=None)


def record(seed, n=400, mean=0.0005, sigma=0.01):
    "Returns of an account by business day."
    return pd.Series(mean + sigma*np.random.default_rng(seed).standard_t(5, n), pd.bdate_range("2020-01-01", periods=n, tz="UTC"))


@FAST
@given(st.integers(0, 10**6), st.sampled_from([252, 365, 8760]))
def test_the_metrics_are_those_of_empyrical(seed, bars_per_year):
    returns = record(seed, n=300)
    found, plain = performance_summary(returns, bars_per_year), returns.tz_localize(None)
    theirs = {"annual_return": empyrical.annual_return(plain, annualization=bars_per_year), "annual_volatility": empyrical.annual_volatility(plain, annualization=bars_per_year),
              "sharpe": empyrical.sharpe_ratio(plain, annualization=bars_per_year), "sortino": empyrical.sortino_ratio(plain, annualization=bars_per_year),
              "max_drawdown": empyrical.max_drawdown(plain), "calmar": empyrical.calmar_ratio(plain, annualization=bars_per_year)}
    for name, value in theirs.items(): assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_the_metrics_are_those_of_quantstats():
    import matplotlib.pyplot as plt
    with plt.rc_context(): import quantstats.stats as theirs
    returns = record(1)
    found, plain = performance_summary(returns, 252), returns.tz_localize(None)
    for name, value in {"annual_return": theirs.cagr(plain), "annual_volatility": theirs.volatility(plain), "sharpe": theirs.sharpe(plain),
                        "sortino": theirs.sortino(plain), "max_drawdown": theirs.max_drawdown(plain), "calmar": theirs.calmar(plain)}.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


@FAST
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_a_thousand_accounts_at_once_are_each_alone(seed, n):
    returns = 0.02*np.random.default_rng(seed).standard_normal((5, n))
    together = return_metrics(returns, 252)
    for i, one in enumerate(returns):
        for name, value in return_metrics(one, 252).items(): assert together[name][i] == pytest.approx(value, nan_ok=False)


@pytest.mark.parametrize("values", [[0.], [0.01], [-1.], [-2., 0.5], [0., 0., 0.], [0.01]*5, [-0.01]*5, [1e-17, -1e-17]])
@pytest.mark.filterwarnings("error")
def test_awkward_records_have_numbers_and_no_warning(values):
    found = performance_summary(pd.Series(values, pd.bdate_range("2020-01-01", periods=len(values), tz="UTC")), 252)
    assert found.notna().all() and -1 <= found["max_drawdown"] <= 0 and found["total_return"] >= -1


def test_ratio_is_defined():
    assert ratio(0, 0) == 0 and ratio(1, 0) == np.inf and ratio(-1, 0) == -np.inf and ratio(6, 3) == 2


@FAST
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_risk_error_has_no_unit(seed, factor):
    returns = record(seed, n=200).to_numpy()
    assert risk_error(factor*returns, factor*0.01) == pytest.approx(risk_error(returns, 0.01))
    by_hand = [sqrt(np.mean(returns[i:i + STRETCH]**2))/0.01 - 1 for i in range(0, 200 - STRETCH + 1, STRETCH)]
    assert risk_error(returns, 0.01) == pytest.approx(sqrt(np.mean(np.square(by_hand))))


def test_metrics_of_an_account_by_hand():
    rows = {"return": np.array([0.01, -0.02, 0.03]), "equity": np.array([101., 99., 102.]), "pnl": np.array([1., -2., 3.]), "traded": np.array([50., 0., 10.]),
            "cost": np.array([0.5, 0., 0.1]), "trades": np.array([1., 0., 2.]), "planned": np.array([0., 4., 1.]), "moved": np.array([0., 1., 19.]),
            "squared_error": np.array([2., 0., 1.]), "absolute_error": np.array([3., 0., 1.]), "hits": np.array([1., 0., 0.]), "scored": np.array([2., 0., 1.])}
    found = account_metrics(rows, 252, 0.01)
    expected = {"turnover": 60/302*252, "total_cost": 0.6, "cost_share": 0.3, "trades": 3, "risk_ratio": 2, "mse": 1, "mae": 4/3, "hit_rate": 1/3, "bars": 3,
                "realized_risk": np.std([0.01, -0.02, 0.03], ddof=1), "target_risk": 0.01, "risk_error": 0}
    for name, value in expected.items(): assert found[name] == pytest.approx(value), name


def test_intervals_hold_the_value_repeat_and_cover_every_metric_of_an_account():
    rng = np.random.default_rng(3)
    account = record(2).to_frame("return").assign(**{name: rng.uniform(1, 2, 400) for name in ("equity", "pnl", "traded", "cost", "trades", "planned", "moved", "squared_error", "absolute_error", "hits", "scored")})
    first, again = (performance_intervals(account, 252, 0.01, draws=200, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert set(first.index) == set(BOOTSTRAPPED) and (first["low"] <= first["high"]).all()
    assert not first.equals(performance_intervals(account, 252, 0.01, draws=200, seed=6))
    assert first.loc["sharpe", "value"] == performance_summary(account["return"], 252)["sharpe"]
    wide = performance_intervals(account, 252, 0.01, level=0.99, draws=200, seed=5)
    assert (wide["low"] <= first["low"]).all() and (wide["high"] >= first["high"]).all()


def test_blocks_of_one_are_the_textbook_interval():
    returns = pd.Series(0.0004 + 0.01*np.random.default_rng(0).standard_normal(2000), pd.bdate_range("2015-01-01", periods=2000, tz="UTC"))
    found = performance_intervals(returns.to_frame("return"), 252, block=1, draws=2000).loc["sharpe"]
    error = sqrt((1 + (found["value"]/sqrt(252))**2/2)/2000)*sqrt(252) # Lo, 2002
    assert (found["high"] - found["low"])/2 == pytest.approx(1.645*error, rel=0.1)


def test_differences_are_of_the_same_bars():
    one, other = record(4), record(5)
    accounts = {"one": one.to_frame("return"), "more": (one + 0.001).to_frame("return"), "late": other.iloc[100:].to_frame("return")}
    table = performance_differences(accounts, "one", 252, draws=200)
    assert table.attrs["bars"] == 300 and set(table.index.get_level_values("account")) == {"more", "late"}
    more = table.loc["more"]
    assert more.loc["annual_volatility", "difference"] == pytest.approx(0, abs=1e-12) and more.loc["sharpe", "low"] > 0 and more.loc["max_drawdown", "low"] >= 0
    assert more.loc["sharpe", "difference"] == pytest.approx(0.001/one.iloc[100:].std()*sqrt(252))


@pytest.mark.parametrize("wrong,says", [
    (lambda: performance_intervals(record(0), 252), "a table with one row a bar"), (lambda: performance_intervals(record(0).to_frame("x"), 252), "no column 'return'"),
    (lambda: performance_intervals(record(0).to_frame("return"), 8760), "come about 261 times"), (lambda: performance_intervals(record(0, n=30).to_frame("return"), 252), "too few"),
    (lambda: performance_intervals(record(0).mask(record(0) > 0.02).to_frame("return"), 252), "lack a value"), (lambda: performance_intervals(record(0).to_frame("return"), 252, draws=0), "draws=0"),
    (lambda: performance_intervals(record(0).to_frame("return"), 252, block=20), "too few"), (lambda: performance_intervals(record(0).to_frame("return"), 252, level=1), "between 0 and 1"),
    (lambda: performance_differences({"a": record(0).to_frame("return")}, "b", 252), "at least one other"), (lambda: performance_differences([1], "b", 252), "a dictionary of accounts"),
    (lambda: performance_differences({"a": record(0).iloc[:100].to_frame("return"), "b": record(0).iloc[200:].to_frame("return")}, "a", 252), "no bar in common"),
    (lambda: deflated_sharpe(record(0), 252), "one column for each"), (lambda: deflated_sharpe(record(0).to_frame(), 252), "at least two variants"),
    (lambda: deflated_sharpe(pd.DataFrame({"a": record(0), "b": record(0).shift()}), 252), "1 values missing"), (lambda: performance_summary([0.1], 252), "a pandas Series"), (lambda: performance_summary(record(0)*np.nan, 252), "no finite number"), (lambda: performance_summary(record(0).iloc[:0], 252), "0 values"),
    (lambda: performance_summary(record(0), -1), "bars_per_year"), (lambda: performance_summary(record(0), 0), "bars_per_year=0"), (lambda: performance_intervals(record(0).to_frame("return"), 252, 0.), "target_risk=0"),
    (lambda: performance_intervals(record(0).to_frame("return"), 252, "a"), "target_risk"), (lambda: performance_intervals(record(0).to_frame("return"), 252, seed=-1), "seed"), (lambda: performance_intervals(record(0).to_frame("return"), 252, level="a"), "between 0 and 1"),
    (lambda: performance_intervals(record(0).reset_index(drop=True).to_frame("return"), 252), "holds no times"), (lambda: performance_intervals(record(0).to_frame("return").assign(x="a"), 252), "not numeric"),
    (lambda: performance_differences({"a": record(0).to_frame("return"), "b": record(0).to_frame("return")}, ["a"], 252), "at least one other")])
def test_bad_questions_are_refused(wrong, says):
    with pytest.raises(MetavolError, match=says): wrong()


def test_deflation_by_hand_and_with_accounts_that_never_move():
    from scipy import stats

    table = pd.DataFrame({i: record(i) for i in range(8)})
    found = deflated_sharpe(table, 252)
    sharpe = table.mean()/table.std()
    high = np.std(sharpe, ddof=1)*((1 - np.euler_gamma)*stats.norm.ppf(1 - 1/8) + np.euler_gamma*stats.norm.ppf(1 - 1/(8*np.e)))
    skew, kurtosis = stats.skew(table), stats.kurtosis(table) + 3
    by_hand = stats.norm.cdf((sharpe - high)*sqrt(399)/np.sqrt(1 - skew*sharpe + (kurtosis - 1)/4*sharpe**2))
    np.testing.assert_allclose(found["probability"], by_hand)
    np.testing.assert_allclose(found["luckiest"], high*sqrt(252))
    for idle in (0., 0.0001): # An account that stands still was no try
        still = deflated_sharpe(table.assign(still=idle), 252)
        assert still.notna().all(axis=None) and still.loc["still", "sharpe"] == 0
        np.testing.assert_allclose(still["luckiest"], high*sqrt(252))
    assert best_of_luck(100) == pytest.approx(np.random.default_rng(0).standard_normal((20_000, 100)).max(axis=1).mean(), abs=0.05)
    assert issubclass(BacktestError, MetavolError)
