"""A backtest of many assets with a forecast at every bar, beside other engines that fill the same orders.

Positions are decided by run_backtest; the others get its orders, counted in units, and fill them at the same closes with the same
commission. backtesting.py knows one asset, so it is timed on one and counted for all; vectorbt takes part where it is installed.
"""
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO

import numpy as np
import pandas as pd
from measure import machine, medians, options, simulated

from metavol.backtest import Backtest, CostSpec, run_backtest
from metavol.sizing import SizingSpec

SIZING,COSTS = SizingSpec(target_risk=.01, min_weight=0.), CostSpec(commission_bps=10, slippage_bps=0)


def one_asset(
    close:np.ndarray, # (n,) prices
    units:np.ndarray, # (n,) held after each bar, whole
)->Callable: # Takes nothing, runs backtesting.py
    "The orders of one asset in backtesting.py."
    from backtesting import Backtest as Engine
    from backtesting import Strategy

    class Orders(Strategy):
        def init(self): pass
        def next(self):
            more = units[len(self.data) - 1] - units[len(self.data) - 2]
            if more > 0: self.buy(size=int(more))
            elif more < 0: self.sell(size=int(-more))

    table = pd.DataFrame({name: close for name in ('Open', 'High', 'Low', 'Close')}, pd.bdate_range('2000-01-03', periods=len(close)))
    def run():
        with redirect_stderr(StringIO()): # Its progress bar
            return Engine(table, Orders, cash=1e9, commission=.001, trade_on_close=True, finalize_trades=True).run()
    return run


def jobs(
    bars:pd.DataFrame, # By (symbol, time)
    result:Backtest, # Who decided
)->dict[str, Callable]: # The other engines
    "Fill the same orders elsewhere."
    close = bars['close'].unstack(0).sort_index()
    units = (1e6*result.ledger['position'].unstack(0)/close).fillna(0.).round()
    first = close.columns[0]
    others = {'backtesting.py, one asset': one_asset((close[first]/1e6).to_numpy(), units[first].to_numpy())}
    if find_spec('vectorbt'):
        import vectorbt
        orders = units.diff().fillna(units)/1e6
        others['vectorbt, all assets'] = lambda: vectorbt.Portfolio.from_orders(close, orders, price=close, fees=.001, init_cash=1e9, cash_sharing=True, group_by=True).value()
    return others


def main():
    logging.disable(); warnings.simplefilter('ignore') # Of the other engines
    chosen = options(__doc__, n_assets=138, n_bars=4576)
    bars = simulated(chosen.assets, chosen.bars)
    forecasts = pd.Series(.04*np.exp(.3*np.random.default_rng(0).standard_normal(len(bars))), bars.index, name='random')
    ours = lambda: run_backtest(bars, forecasts, sizing=SIZING, costs=COSTS, bars_per_year=365, capital=1e6)
    result = ours()
    others = jobs(bars, result)
    for job in others.values(): job() # Compiles, and imports
    times = medians({'metavol, all assets': ours} | others, 3)
    print(f"data      simulated bars, {chosen.bars:,} of each of {chosen.assets} assets, a forecast at every one\nmachine   {machine()}")
    print(f"method    medians of 3 rounds, wall clock; {result.summary['trades']:,.0f} trades\n")
    for name,time in times.items(): print(f"{name:28}{time:8.2f} s")
    alone = times['backtesting.py, one asset']*chosen.assets
    print(f"\nbacktesting.py, asset after asset: {alone:.0f} s, {alone/times['metavol, all assets']:.0f} times slower")


if __name__ == '__main__': main()
