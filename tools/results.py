"""Make the tables of chapter 29 (metavol/data/results): train, forecast, score, compare, and keep small files with data hash, seeds and date.

    python tools/results.py stocks crypto                          # the embedded samples; no other data needed
    METAVOL_DATA=DIR python tools/results.py unseen listings coins # one training serves all three
    METAVOL_DATA=DIR python tools/results.py hourly
    METAVOL_DATA=DIR python tools/results.py sp500
    METAVOL_DATA=DIR python tools/results.py indices
    python tools/results.py truth                                  # simulated, so that sigma is known
    METAVOL_DATA=DIR python tools/results.py traded_stocks traded_coins # positions sized by forecasts, after costs
    METAVOL_DATA=DIR python tools/results.py variance              # one-month variance of the S&P 500, sold against the VIX

DIR holds us_equities_daily.parquet, crypto_hourly.parquet, oxford_man_rv.parquet, oxford_man_spx_2000.parquet and vix_daily.parquet. `--out` writes
elsewhere, to compare; `--keep` names a folder for finished pieces, so that a run that was stopped goes on.
"""
import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path

import arch.data.sp500
import numpy as np
import pandas as pd

from metavol.backtest import CostSpec, Seen, half_spread, run_backtest, run_weights
from metavol.bars import as_panel, check_bars
from metavol.classical import Ewma, Garch, Historical
from metavol.data import load_sample
from metavol.features import compute_features
from metavol.files import data_hash, read_bars, write_whole
from metavol.har import Har
from metavol.league import LeagueSpec, ask, asked_windows, enter_formulas, enter_networks, league_table, training_windows
from metavol.performance import deflated_sharpe, performance_differences, performance_intervals
from metavol.pretrained import load_pretrained
from metavol.processes import garch_horizon_variance, simulate_bars, simulate_garch, simulate_jumps, simulate_log_sv, simulate_regimes
from metavol.scoring import (intraday_variance, levelled, losses, market_states, range_variance, reported_variance, score, score_by, transition_table,
                             volatility_proxy, with_forecast, with_proxy, worst_days)
from metavol.sizing import SizingSpec, pair_products, size_positions
from metavol.strategies import VarianceSpec, exit_on_rise, lean_on_calm, sell_variance
from metavol.study import SAMPLE_STUDIES
from metavol.tasks import HOURLY, TaskSpec, asked_between, make_windows
from metavol.training import PooledSpec
from metavol.context import ContextSpec
from metavol.walk_forward import Entrant, walk_forward

SPEC = LeagueSpec(("these",), ("those",), "2018-01-01", every=5, refit_every=63, rivals="all", n_jobs=1)
FOLLOWED = ["Historical", "GARCH", "HAR, logs", "Pooled HAR", "Network", "Network, longer", "Meta-Vol"] # Whose losses are kept by date


@dataclass(frozen=True)
class Setup:
    "One table: who is trained on what, who is asked, and a second ruler."
    spec: LeagueSpec
    train_bars: pd.DataFrame
    test_bars: pd.DataFrame
    ruler: pd.DataFrame | None = None # From `volatility_proxy`
    left_out: tuple[str, ...] = () # Models that cannot take part


def source(name): return Path(os.environ["METAVOL_DATA"])/name

@cache
def us_equities(): return read_bars(source("us_equities_daily.parquet"))

def symbols(bars): return tuple(as_panel(bars).index.get_level_values(0).unique())

def only(bars, names): return bars[bars.index.get_level_values(0).isin(names)]

def returns_of(bars): return np.log(as_panel(bars)["close"]).groupby(level=0).diff()

def range_ruler(bars, spec): return volatility_proxy(range_variance(bars), returns_of(bars), spec.task.horizon, spec.split, pooled=True)


def sample(name):
    "What `metavol study` does on an embedded sample."
    bars, spec = load_sample(name), SAMPLE_STUDIES[name]
    return Setup(spec, bars, bars, range_ruler(bars, spec))

def unseen():
    "69 stocks to learn from until the end of 2017, 69 others to forecast from 2018 on."
    bars = us_equities()
    spec = replace(SPEC, train=symbols(bars)[::2], test=symbols(bars)[1::2])
    return Setup(spec, bars, bars, range_ruler(bars, spec))

def listings(n_bars=140):
    "The same stocks as if newly listed: histories cut to 135 bars, and the five of the last label."
    whole = unseen()
    pieces = {}
    for number, symbol in enumerate(whole.spec.test):
        bars = whole.test_bars.loc[symbol][whole.spec.split:].iloc[37*number % n_bars:]
        pieces |= {f"{symbol} {bars.index[first]:%Y-%m-%d}": bars.iloc[first:first + n_bars] for first in range(0, len(bars) - n_bars + 1, n_bars)}
    bars = check_bars(pd.concat([pd.concat(pieces, names=["symbol"]), only(whole.train_bars, whole.spec.train)]).sort_index())
    return Setup(replace(whole.spec, test=tuple(pieces)), whole.train_bars, bars)

def coins():
    "Coins by the day, asked of models that learned from stocks; a day's own hourly returns are the second ruler."
    hours = read_bars(source("crypto_hourly.parquet"))
    how = dict(open="first", high="max", low="min", close="last", volume="sum")
    bars = check_bars(hours.groupby([pd.Grouper(level="symbol"), pd.Grouper(level="time", freq="D")]).agg(how))
    spec = replace(unseen().spec, test=symbols(bars), every=1)
    until = bars.index.get_level_values("time").min() + pd.Timedelta(days=120) # Before the first forecast
    return Setup(spec, us_equities(), bars, volatility_proxy(intraday_variance(returns_of(hours)), returns_of(bars), spec.task.horizon, str(until.date()), pooled=True))

def hourly():
    "Coins by the hour: six to learn from until June 2022, five others to forecast from July on."
    bars = read_bars(source("crypto_hourly.parquet"))
    spec = replace(SPEC, train=symbols(bars)[::2], test=symbols(bars)[1::2], split="2022-07-01", task=HOURLY, every=4, refit_every=24*28)
    return Setup(spec, bars, bars, range_ruler(bars, spec))

def sp500():
    "The S&P 500 from 2010 on, asked of models that learned from stocks before; 5-minute realized variance is the second ruler."
    daily = arch.data.sp500.load().rename(columns=str.lower)[["open", "high", "low", "close", "volume"]]
    index = pd.concat({"SPX": daily.set_index(daily.index.tz_localize("UTC").rename("time"))}, names=["symbol"])
    index["high"], index["low"] = (index[["open", "high", "low", "close"]].agg(side, axis=1) for side in ("max", "min"))
    spec = replace(SPEC, train=symbols(us_equities())[::2], test=("SPX",), split="2010-01-01", every=1)
    bars = check_bars(pd.concat([index, only(us_equities(), spec.train)]).sort_index())
    table = pd.read_parquet(source("oxford_man_spx_2000.parquet"))
    variance = table.rv5.set_axis(pd.MultiIndex.from_arrays([["SPX"]*len(table), pd.DatetimeIndex(table.date, tz="UTC")], names=["symbol", "time"]))
    return Setup(spec, us_equities(), bars, volatility_proxy(reported_variance(variance), returns_of(index), spec.task.horizon, spec.split))

REGIONS = { # Asia has closed before Europe opens, so a date is not one moment
    "asia": ("AORD", "BSESN", "HSI", "KS11", "N225", "SSEC"), "america": ("BVSP", "MXX", "SPX"),
    "europe": ("AEX", "BFX", "BVLG", "FCHI", "FTSE", "OSEAX", "SMSI", "SSMI", "STOXX50E")}

def indices():
    "18 indices of which only 5-minute realized variance is known: bars whose squared return IS that variance, the signs drawn (Visser, 2011)."
    table = pd.read_parquet(source("oxford_man_rv.parquet")).query("rv5 > 0").sort_values(["symbol", "date"])
    index = pd.MultiIndex.from_arrays([table.symbol, pd.DatetimeIndex(table.date, tz="UTC")], names=["symbol", "time"])
    returns = pd.Series(np.random.default_rng(0).choice([-1, 1], len(table))*np.sqrt(table.rv5.to_numpy()), index)
    close = 100*np.exp(returns.groupby(level=0).cumsum())
    opened = close*np.exp(-returns)
    bars = pd.DataFrame(dict(open=opened, high=np.maximum(opened, close), low=np.minimum(opened, close), close=close, volume=1., spread=0.))
    spec = replace(SPEC, train=symbols(bars)[::2], test=symbols(bars)[1::2], split="2016-01-01", every=1)
    kernel, bars = pd.Series(table.rk_parzen.to_numpy(), index), check_bars(bars)
    bars.attrs["market"] = {name: next(region for region, names in REGIONS.items() if name in names) for name in symbols(bars)}
    return Setup(spec, bars, bars, volatility_proxy(reported_variance(kernel), returns, spec.task.horizon, spec.split), ("Stochastic volatility",))


SETUPS = dict(stocks=lambda: sample("stocks"), crypto=lambda: sample("crypto"), unseen=unseen, listings=listings, coins=coins, hourly=hourly,
              sp500=sp500, indices=indices)


TRAINED = {} # By what they learned from, so that tables that share a training share its models

def entrants_of(setup):
    "Trained once for all tables that learn from the same windows."
    spec = setup.spec
    key = (spec.train, spec.split, spec.task, spec.rivals, spec.seeds)
    if key not in TRAINED:
        training = training_windows(setup.train_bars, spec)
        TRAINED[key] = [*enter_formulas(training), *enter_networks(training, spec)]
    return TRAINED[key]

def csv(table): return table.to_csv(float_format="%.6g").encode()

def by_date(forecasts):
    "Share of each date in the mean QLIKE of the models followed."
    lost = losses(forecasts[["realized", "current", *FOLLOWED]], "qlike")
    return lost.groupby(level="time").sum()/len(lost)

def tables(setup, forecasts, history):
    "Everything that is kept of a league, by file name."
    spec, states = setup.spec, market_states(history)
    kept = {"league.csv": league_table(forecasts, spec.every), "by_state.csv": score_by(forecasts, states["state"]), "by_year.csv": score_by(forecasts, "year"),
            "transition.csv": transition_table(forecasts, states, "Historical"), "worst.csv": worst_days(forecasts, "Meta-Vol")}
    if forecasts.index.get_level_values("time").nunique() <= 300: kept["by_date.csv"] = by_date(forecasts)
    if len(spec.test) <= 100: kept["by_asset.csv"] = score_by(forecasts, "symbol")[["qlike", "mse"]]
    kept["level.csv"] = league_table(levelled(forecasts, -(-spec.task.horizon//spec.every)), spec.every)
    if setup.ruler is not None: kept["ruler.csv"] = league_table(with_proxy(forecasts, setup.ruler), spec.every)
    return kept

def make(name, out, keep):
    "One league, into its folder."
    setup, begun = SETUPS[name](), time.time()
    asked = asked_windows(setup.test_bars, setup.spec)
    entrants = [entrant for entrant in entrants_of(setup) if entrant.name not in setup.left_out]
    forecasts = ask(entrants, asked, setup.spec, keep)
    for file, table in tables(setup, forecasts, asked.history).items(): write_whole(out/name/file, csv(table))
    made = dict(command=f"python tools/results.py {name}", date=str(date.today()), seeds=setup.spec.seeds, data=data_hash(setup.test_bars)[:16], train_data=data_hash(setup.train_bars)[:16],
                trained=len(setup.spec.train), tested=len(setup.spec.test), split=setup.spec.split, horizon=setup.spec.task.horizon, every=setup.spec.every,
                refit_every=setup.spec.refit_every, origins=len(forecasts), dates=forecasts.index.get_level_values("time").nunique(),
                first=f"{forecasts.index.get_level_values('time').min():%Y-%m-%d}", last=f"{forecasts.index.get_level_values('time').max():%Y-%m-%d}",
                test=setup.spec.test if len(setup.spec.test) <= 100 else [])
    write_whole(out/name/"made.json", (json.dumps(made, indent=1) + "\n").encode())
    longest = forecasts.groupby(level=0).size().idxmax()
    shown = forecasts[["realized", "Historical", "GARCH", "Meta-Vol"]].astype("float32")
    write_whole(out/name/"forecasts.parquet", (shown if name == "stocks" else shown.loc[[longest]]).to_parquet())
    print(f"{name}: {len(forecasts):,} forecasts, {time.time() - begun:.0f} s", flush=True)


# Known truth

def expected_sv(sigma, horizon, typical=.0085, persistence=.97, vol_of_vol=.2):
    "Expected variance of the next bars, given today's sigma (Taylor, 1982)."
    k = np.arange(1, horizon + 1)
    spread = vol_of_vol**2*(1 - persistence**(2*k))/(1 - persistence**2)
    return (typical**2*np.exp(np.log(sigma**2/typical**2)[..., None]*persistence**k + spread/2)).sum(-1)

def expected_regimes(sigma, horizon, sigmas=(.006, .017), stay=(.99, .97)):
    "The same where a Markov chain decides (Hamilton, 1989)."
    chain = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
    sums = sum(np.linalg.matrix_power(chain, k) @ np.square(sigmas) for k in range(1, horizon + 1))
    return np.where(np.isclose(sigma, sigmas[0]), *sums)

def expected_garch(sigma, horizon): # Tomorrow's sigma is known today
    return garch_horizon_variance(np.c_[sigma[:, 1:], sigma[:, -1:]]**2, 2e-6, .08, .9, 0., horizon)

WORLDS = {"GARCH": (simulate_garch, expected_garch), "log-SV": (simulate_log_sv, expected_sv), "regimes": (simulate_regimes, expected_regimes),
          "jumps": (simulate_jumps, lambda sigma, horizon: horizon*sigma**2)}

def world(name, n_train=20, n_test=40, n_bars=1500):
    "Scores of every model on a simulated panel, and of two who know sigma: that of the bars to come, and that of the origin."
    simulate, expected = WORLDS[name]
    rng = np.random.default_rng(7)
    truth = simulate(n_bars, rng, n_assets=n_train + n_test)
    bars = simulate_bars(truth.sigma, 20, rng, truth.returns)
    split = f"{bars.index.get_level_values('time').unique()[1000]:%Y-%m-%d}"
    spec = replace(SPEC, train=symbols(bars)[:n_train], test=symbols(bars)[n_train:], split=split, seeds=(0,), pooled=PooledSpec(updates=500), context=ContextSpec(updates=200))
    asked = asked_windows(bars, spec)
    training = training_windows(bars, spec)
    forecasts = ask([*enter_formulas(training), *enter_networks(training, spec)], asked, spec)
    horizon = spec.task.horizon
    coming = pd.Series((truth.sigma**2).ravel(), bars.index).groupby(level=0).transform(lambda v: v.rolling(horizon).sum().shift(-horizon))
    forecasts = with_forecast(forecasts, "Oracle", np.sqrt(coming).reindex(forecasts.index))
    ahead = pd.Series(np.sqrt(expected(truth.sigma, horizon)).ravel(), bars.index)
    return score(with_forecast(forecasts, "Oracle at the origin", ahead.reindex(forecasts.index)))

def make_truth(out):
    "Four worlds, one table."
    table = pd.concat({name: world(name) for name in WORLDS}, names=["world"])
    write_whole(out/"truth"/"scores.csv", csv(table))
    write_whole(out/"truth"/"made.json", (json.dumps(dict(command="python tools/results.py truth", date=str(date.today()), seeds=[0], panel_seed=7)) + "\n").encode())


# Money

PORTFOLIO = SizingSpec(target_risk=.01, min_weight=0., max_gross=1.5, correlation_memory=126) # With 69 stocks a smallest share of 1 % would decide everything
COINS = SizingSpec(target_risk=.02/24**.5, min_weight=0., max_gross=1.5, correlation_memory=24*21)

@dataclass(frozen=True)
class Market:
    "Where forecasts are traded, at what cost."
    setup: object # Gives a `Setup`
    start: str # Name of the shipped start that is adapted
    sizing: SizingSpec
    costs: dict # Of `CostSpec`, the spread apart
    bars_per_year: int

RETURNED = ["return", "equity", "pnl", "traded", "cost", "trades"] # What every account has

MARKETS = {"traded_stocks": Market(unseen, "daily", PORTFOLIO, dict(cash_rate=.02), 252),
           "traded_coins": Market(hourly, "hourly", COINS, dict(commission_bps=5., cash_rate=.02), 365*24)}

def sized_once(bars, spec, market):
    "Shares of capital that the volatility and the average correlation of all days before the split would have set."
    moves = bars["close"].unstack(0).sort_index().pct_change(fill_method=None)
    before = moves[moves.index < pd.Timestamp(spec.split, tz="UTC")]
    sigma = np.broadcast_to(before.std().to_numpy(), before.shape)
    pairs, squares = pair_products(before.to_numpy(), sigma)
    return pd.Series(size_positions(sigma[-1:].copy(), market.sizing, np.array([pairs.sum()/squares.sum()]))[0], before.columns)

def trade_market(name, keep):
    "Backtests by the model that sized them, and the forecasts."
    market = MARKETS[name]
    setup, costs_of = market.setup(), market.costs
    spec, model = setup.spec, load_pretrained(market.start)
    taught = set(model.about["symbols"]) & set(spec.test)
    if taught or pd.Timestamp(model.about["last"]) >= pd.Timestamp(spec.split): sys.exit(f"the shipped start has seen the test: {taught or model.about['last']}")
    entrants = [Entrant("Meta-Vol", model, "full_history", "each_task"), Entrant("HAR", Har(form="weighted", ranges=True), "full_history", "by_asset"),
                Entrant("GARCH", Garch(), "full_history", "by_asset"), Entrant("EWMA", Ewma(), "few_shot"), Entrant("Historical", Historical(), "few_shot")]
    asked = asked_windows(setup.test_bars, spec)
    forecasts = ask(entrants, asked, spec, keep)
    bars = only(as_panel(setup.test_bars), spec.test)
    costs = CostSpec(half_spread=half_spread(bars), **costs_of)
    runs = {one.name: run_backtest(bars, forecasts[one.name], spec.task.horizon, market.sizing, costs, market.bars_per_year) for one in entrants}
    shares, times = sized_once(bars, spec, market), runs["Meta-Vol"].equity.index
    fixed = pd.concat({symbol: pd.Series(share, times[times.isin(bars.loc[symbol].index)]) for symbol, share in shares.items()}, names=["symbol", "time"])
    runs["Fixed size"] = run_weights(bars[bars.index.get_level_values(1) <= times[-1]], fixed, costs, market.bars_per_year, no_trade_band=market.sizing.no_trade_band)
    ruled = {"Meta-Vol, leaning": lean_on_calm, "Meta-Vol, exits": exit_on_rise}
    runs |= {title: run_backtest(bars, forecasts["Meta-Vol"], spec.task.horizon, market.sizing, costs, market.bars_per_year, rules=[rule]) for title, rule in ruled.items()}
    said = runs["Meta-Vol"].ledger["sigma"].unstack("symbol").reindex(index=times, columns=shares.index)
    leaning = lean_on_calm(fixed.unstack("symbol").reindex(index=times, columns=shares.index), Seen(said, said, said.notna()))
    runs["Fixed size, leaning"] = run_weights(bars[bars.index.get_level_values(1) <= times[-1]], leaning.stack().swaplevel().reindex(fixed.index), costs, market.bars_per_year,
                                              no_trade_band=market.sizing.no_trade_band)
    once = fixed[fixed.index.get_level_values(1) == times[0]]
    runs["Buy and hold"] = run_weights(bars[bars.index.get_level_values(1) <= times[-1]], once, costs, market.bars_per_year)
    return runs, forecasts, spec, data_hash(setup.test_bars)[:16]

def make_traded(name, out, keep):
    "Tables of one market, into its folder."
    market, begun = MARKETS[name], time.time()
    runs, forecasts, spec, data = trade_market(name, keep)
    target, waiting = market.sizing.target_risk, market.costs["cash_rate"]/market.bars_per_year # A Sharpe ratio is of what is earned over cash
    accounts = {name: run.account for name, run in runs.items()}
    over = {name: account.assign(**{"return": account["return"] - waiting}) for name, account in accounts.items()}
    intervals, ratios = (pd.concat({name: performance_intervals(account, market.bars_per_year, target) for name, account in chosen.items()}, names=["model", "metric"])
                         for chosen in (accounts, over))
    differences, ratio_differences = (performance_differences({name: account[RETURNED] for name, account in chosen.items()}, "Meta-Vol", market.bars_per_year, target)
                                      for chosen in (accounts, over))
    for table, better in ((intervals, ratios), (differences, ratio_differences)):
        rows = table.index.get_level_values("metric").isin(["sharpe", "sortino"])
        table[rows] = better[rows]
    equity = pd.DataFrame({name: run.equity for name, run in runs.items()})
    risk = pd.DataFrame({name: run.returns.rolling(63 if market.bars_per_year == 252 else 24*7).std() for name, run in runs.items()})
    every = 5 if market.bars_per_year == 252 else 24
    summary = pd.DataFrame({name: run.summary for name, run in runs.items()}).T.rename_axis("model")
    kept = {"summary.csv": summary, "intervals.csv": intervals, "differences.csv": differences, "equity.csv": equity.iloc[::every], "risk.csv": risk.dropna().iloc[::every],
            "deflated.csv": deflated_sharpe(pd.DataFrame({name: account["return"] for name, account in over.items()}), market.bars_per_year).rename_axis("model")}
    for file, table in kept.items(): write_whole(out/name/file, csv(table))
    costs = {"commission_bps": 1., "slippage_bps": 2., "half_spread": "estimated (EDGE), one bar before"} | market.costs
    made = dict(command=f"python tools/results.py {name}", date=str(date.today()), data=data, start=market.start,
                tested=len(spec.test), bars=len(equity), first=f"{equity.index[0]:%Y-%m-%d}", last=f"{equity.index[-1]:%Y-%m-%d}", bootstrap_seed=0, forecasts=len(forecasts), sizing=vars(market.sizing), costs=costs)
    write_whole(out/name/"made.json", (json.dumps(made, indent=1) + "\n").encode())
    print(f"{name}: {len(forecasts):,} forecasts, {time.time() - begun:.0f} s", flush=True)

RULES = {"every month": (VarianceSpec(percentile=0.), False), "dear": (VarianceSpec(), False),
         "above forecast": (VarianceSpec(percentile=0., premium=.1), True), "dear and above forecast": (VarianceSpec(premium=.1), True)}

def make_variance(out):
    "Variance of the S&P 500, sold by four rules since 1991."
    table = pd.read_parquet(source("vix_daily.parquet")).set_index("date").dropna().tz_localize("UTC").rename_axis("time")
    bars = table[["spx_open", "spx_high", "spx_low", "spx_close"]].rename(columns=lambda name: name.removeprefix("spx_")).assign(volume=1.)
    bars["high"], bars["low"] = (bars[["open", "high", "low", "close"]].agg(side, axis=1) for side in ("max", "min"))
    bars = check_bars(pd.concat({"SPX": bars}, names=["symbol"]))
    query = asked_between(make_windows(compute_features(bars), TaskSpec(lookback=60, horizon=21, stride=21)), pd.Timestamp("1991-01-01", tz="UTC"))
    har = walk_forward([Entrant("HAR", Har(form="logs"), "full_history", "by_asset")], query, refit_every=252, n_jobs=1)["HAR"].loc["SPX"]*np.sqrt(252/21)
    runs = {name: sell_variance(table["vix_close"]/100, table["spx_close"], har if informed else None, spec) for name, (spec, informed) in RULES.items()}
    spans = pd.DataFrame({name: performance_intervals(run.account[["return"]], 252).loc["sharpe"] for name, run in runs.items()}).T
    summary = pd.DataFrame({name: run.summary for name, run in runs.items()}).T.rename_axis("rule")
    lucky = deflated_sharpe(pd.DataFrame({name: run.account["return"] for name, run in runs.items()}), 252)["probability"]
    summary = summary.join(spans[["low", "high"]].add_prefix("sharpe_")).join(lucky)
    trades = pd.concat({name: run.trades for name, run in runs.items()}, names=["rule", "number"]).assign(**{"sold": lambda t: t.sold.dt.date, "ended": lambda t: t.ended.dt.date})
    equity = pd.DataFrame({name: run.account["equity"] for name, run in runs.items()}).resample("ME").last()
    for file, part in {"table.csv": summary, "trades.csv": trades, "equity.csv": equity}.items(): write_whole(out/"variance"/file, csv(part))
    made = dict(command="python tools/results.py variance", date=str(date.today()), data=data_hash(bars)[:16], first=f"{runs['every month'].account.index[0]:%Y-%m-%d}", last=f"{table.index[-1]:%Y-%m-%d}", days=len(table), bootstrap_seed=0)
    write_whole(out/"variance"/"made.json", (json.dumps(made) + "\n").encode())
    print(f"variance: {len(trades)} swaps")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*SETUPS, "truth", *MARKETS, "variance"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1]/"metavol"/"data"/"results")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    if "METAVOL_DATA" not in os.environ and set(options.names) - {"stocks", "crypto", "truth"}:
        sys.exit("METAVOL_DATA is not set: let it name the folder that holds the data files named above (see --help).")
    for name in options.names:
        (options.out/name).mkdir(parents=True, exist_ok=True)
        if name == "truth": make_truth(options.out)
        elif name == "variance": make_variance(options.out)
        elif name in MARKETS: make_traded(name, options.out, options.keep)
        else: make(name, options.out, options.keep)


if __name__ == "__main__": main()
