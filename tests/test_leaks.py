"Leak check: every planted leak is caught by the attack that is named for it, every honest twin passes, and bad forecasters are named."
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

import metavol.leaks
from metavol.bars import HistoryError, MetavolError, by_asset
from metavol.classical import Ewma, Garch, Historical
from metavol.cli import main
from metavol.data import load_sample
from metavol.leaks import (ATTACKS, PLANTED, LeakSpec, attacked_versions, check_forecaster, cut_dates, cut_future, leak_bars, leak_report,
                           leak_training, load_forecaster, scramble_future, verdicts)
from metavol.tasks import HOURLY
from metavol.volatility import forward_volatility, log_returns
from metavol.walk_forward import Entrant


@pytest.fixture(scope="module")
def bars(): return leak_bars(load_sample("stocks"), spec=LeakSpec(n_bars=450))


@pytest.fixture(scope="module")
def versions(bars): return attacked_versions(bars)


@pytest.fixture(scope="module")
def check(bars, versions): return lambda forecaster, **how: check_forecaster(forecaster, bars, versions=versions, **how)


def month(bars): return np.sqrt(5*(np.log(bars.close).diff()**2).rolling(20).mean()).dropna()


# The attacks

@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_leave_the_past_alone_and_change_the_rest(bars, attack):
    cut = cut_dates(bars)[0]
    attacked = ATTACKS[attack](bars, cut)
    pd.testing.assert_frame_equal(cut_future(attacked, cut), cut_future(bars, cut), check_exact=True)
    assert not attacked.equals(bars)


def test_scrambling_keeps_the_moves_and_the_last_close(bars):
    mixed = scramble_future(bars, cut_dates(bars)[0])
    for symbol, one in by_asset(bars):
        moves, others = (log_returns(table.close).dropna() for table in (one, mixed.loc[symbol]))
        np.testing.assert_allclose(np.sort(moves), np.sort(others), atol=1e-12)
        assert mixed.loc[symbol].close.iloc[-1] == pytest.approx(one.close.iloc[-1], rel=1e-9)
    assert scramble_future(bars, cut_dates(bars)[0]).equals(mixed)


# Planted leaks and their twins

CAUGHT_BY = {"full-sample scaler": ["truncation", "poisoning"], "overlapping support label": [*ATTACKS], "in-sample GARCH variance": [*ATTACKS]} # Scrambling is blind to a mean, the lag to all three


@pytest.mark.parametrize("name", PLANTED)
def test_planted_leaks_are_caught_and_their_twins_are_not(check, name):
    leaky, twin, attack = PLANTED[name]
    found = check(leaky)
    assert list(found.index[found.leak]) == CAUGHT_BY[name] and attack in CAUGHT_BY[name] and "the bars after" in found.result[attack]
    assert not check(twin).leak.any()


# What objects may do wrong

@dataclass(frozen=True)
class Peeks(Historical):
    "Looks at the return of the next bar in the history it is handed."
    def predict(self, query):
        rows = np.minimum(query.origin + 1, len(query.history.features) - 1)
        return super().predict(query) + np.abs(query.history.features[rows, 0])


@dataclass(frozen=True)
class Crowd(Historical):
    "Divides by the mean of all origins it is asked about at once."
    def predict(self, query): return super().predict(query)/query.scale.mean()*.01


@dataclass(frozen=True)
class Greedy(Historical):
    "Learns from every label of the history, and not from its support."
    level: float = 1.
    def adapt(self, support): return replace(self, level=float(np.nanmean(support.history.realized)))
    def predict(self, query): return self.level + 0*query.scale


@pytest.mark.parametrize("entrant", [Entrant("Peeks", Peeks(), "few_shot"), Entrant("Crowd", Crowd(), "few_shot"), Greedy(), Entrant("Greedy", Greedy(), "few_shot", "each_task")], ids=str)
def test_objects_that_look_around_are_caught(check, entrant):
    found = check(entrant)
    assert found.leak[["truncation", "scrambling", "poisoning"]].sum() >= 2 and found.result[found.leak].str.contains("AAPL at 20").all()


@dataclass(frozen=True)
class Wednesdays(Historical):
    "Takes the outcome for its forecast, on one day of the week."
    day: int = 2
    def predict(self, query):
        there = (pd.DatetimeIndex(query.time).day_of_week == self.day) & ~np.isnan(query.y)
        return np.where(there, query.y, super().predict(query))


@pytest.mark.parametrize("day", range(5))
def test_who_peeks_on_one_day_of_the_week_is_caught(check, day):
    assert check(Entrant("Wednesdays", Wednesdays(day=day), "few_shot")).leak[["truncation", "poisoning"]].all()


@pytest.mark.parametrize("forecaster", [Historical(), Garch(), Entrant("EWMA", Ewma(), "few_shot"), month], ids=["historical", "garch", "entrant", "function"])
def test_honest_forecasters_pass(check, forecaster):
    found = check(forecaster)
    assert not found.leak.any() and (found.result == "clean").all() and (found.compared > 0).all()


def test_a_function_may_be_asked_about_all_assets_together(check):
    def market(bars): return month(bars.close.unstack(0).mean(axis=1).to_frame("close")).to_frame("x").reindex(bars.index, level=1).x.dropna()
    assert not check(market, together=True).leak.any()
    assert check(lambda bars: market(bars).groupby(level=0).shift(-1).dropna(), together=True).leak["truncation"]


def test_outcomes_known_by_heart_are_caught_by_the_lag_alone(bars, check):
    known = pd.concat({symbol: forward_volatility(log_returns(one.close), 5).dropna() for symbol, one in by_asset(bars)}, names=["symbol", "time"])
    def by_heart(bars): return 1.01*known[known.index.isin(bars.index)]
    found = check(by_heart, together=True)
    assert list(found.leak) == [False, False, False, True] and "knows the outcome" in found.result["lag"]


def test_too_good_to_be_true(bars, versions):
    known = pd.concat({symbol: forward_volatility(log_returns(one.close), 5).dropna() for symbol, one in by_asset(bars)}, names=["symbol", "time"])
    def by_heart(bars): return 1.01*known[known.index.isin(bars.index)]
    found = check_forecaster(by_heart, bars, spec=LeakSpec(largest_rise=1e9), together=True, versions=versions)
    assert found.leak["lag"] and "too good to be true" in found.result["lag"]


def test_hours_pass_too():
    coins = leak_bars(load_sample("crypto"), spec=LeakSpec(n_bars=300))
    assert not check_forecaster(Entrant("EWMA", Ewma(), "few_shot"), coins, HOURLY).leak.any()


# Forecasters that cannot be checked

rng = np.random.default_rng(0)
BAD = {
    "missing": (lambda bars: bars.close.diff().abs(), r"asked about AAPL: the forecast at 20.* is missing.*dropna"),
    "zero": (lambda bars: 0*bars.close, "needed a finite volatility above zero"), "below zero": (lambda bars: -bars.close, "above zero"),
    "no Series": (lambda bars: bars.close.to_numpy(), "got a ndarray, needed a pandas Series"), "words": (lambda bars: bars.close.astype(str), "needed numbers"),
    "other index": (lambda bars: bars.close.reset_index(drop=True), "no row of the bars"), "twice": (lambda bars: pd.concat([bars.close, bars.close]), "stands twice"),
    "raises": (lambda bars: 1/0, r"raised ZeroDivisionError: division by zero \(test_leaks.py, line \d+\)"), "leaves": (lambda bars: sys.exit(3), "raised SystemExit"),
    "nothing": (lambda bars: bars.close[:0], "no forecast came back"), "dice": (lambda bars: bars.close*rng.random(len(bars)), "two runs on the same bars differ"),
    "late": (lambda bars: bars.close[-5:], "load a longer history"), "no forecaster": (3, "an int|a int is no forecaster"), "a table": (pd.DataFrame(), "is no forecaster")}


@pytest.mark.parametrize("case", BAD)
def test_bad_forecasters_are_named(check, case):
    forecaster, says = BAD[case]
    with pytest.raises(MetavolError, match=says): check(forecaster)


@dataclass(frozen=True)
class Broken(Historical):
    def predict(self, query): return np.full(len(query), np.nan)


def test_objects_with_bad_forecasts_are_named(check):
    with pytest.raises(MetavolError, match="Broken"): check(Broken())
    with pytest.raises(MetavolError, match="Raises"): check(type("Raises", (Historical,), {"predict": lambda self, query: query.nothing})())


def test_a_forecaster_may_not_spoil_the_bars(check):
    def careless(bars): bars["close"] = bars.close.to_numpy()[::-1]; return month(bars[::-1])[::-1]
    with pytest.raises(MetavolError): check(lambda bars: careless(bars).rename(lambda t: t + pd.Timedelta("1s")))
    assert not check(month).leak.any()


def test_bars_and_settings_that_cannot_be_used():
    stocks = load_sample("stocks")
    with pytest.raises(MetavolError, match="no bars of XX"): leak_bars(stocks, "XX")
    assert list(leak_bars(stocks, "FB").index.get_level_values(0).unique()) == ["FB"]
    assert "FB" not in leak_bars(stocks, spec=LeakSpec(n_assets=5)).index.get_level_values(0)
    short = leak_bars(stocks.loc[["IBM"]].iloc[:90])
    with pytest.raises(HistoryError): check_forecaster(Historical(), short)
    for wrong in (dict(n_cuts=0), dict(n_pairs=1.5), dict(rtol=-1.), dict(n_errors="3")):
        with pytest.raises(MetavolError): LeakSpec(**wrong)


# The report

def test_report_is_clean_but_for_its_plants_and_names_who_leaks(bars):
    training = leak_training(bars)
    assert training.label_time.max() < cut_dates(bars)[0].to_datetime64() and training.inputs.shape[1] == 19
    table = verdicts(leak_report([Entrant("EWMA", Ewma(), "few_shot"), Entrant("Peeks", Peeks(), "few_shot")], bars, progress=False))
    assert list(table.index[~table.good]) == ["Peeks"] and table.result["Peeks"].startswith("truncation: AAPL at ")
    assert (table.result[:7] == "clean").all() and table.result[-3:].str.startswith("caught by").all()


def test_a_blunt_check_is_found_out(bars, monkeypatch):
    for name in ATTACKS: monkeypatch.setitem(metavol.leaks.ATTACKS, name, lambda bars, cut: bars)
    table = verdicts(leak_report([], bars, progress=False))
    assert table.result[-3:].str.startswith("NOT CAUGHT").all() and not table.good[-3:].any()


# The shell

MODEL = '''
import numpy as np
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    "The last sixty bars."
    def adapt(self, support): return self
    def predict(self, query): return query.unit

@dataclass(frozen=True)
class Needy:
    size: int

def month(bars): return np.sqrt(5*(np.log(bars.close).diff()**2).rolling(20).mean()).dropna()
def smooth(bars): return np.sqrt(5*(np.log(bars.close).diff()**2).rolling(21, center=True).mean()).dropna()
def broken(bars): return bars.price
number = 3
'''


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    "Run `metavol leakcheck --model ...` in a folder with a model file: (exit code, standard output, standard error)."
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("COLUMNS", "120")
    (tmp_path/"my_model.py").write_text(MODEL); (tmp_path/"bad_file.py").write_text("import nothing_of_the_kind\n")

    def run(model, *words):
        monkeypatch.setattr(sys, "argv", ["metavol", "leakcheck", "--model", model, *words])
        with pytest.raises(SystemExit) as left: main()
        return left.value.code or 0, *capsys.readouterr()
    return run


@pytest.mark.parametrize("model", ["my_model.py:Mine", "metavol.classical:Ewma"])
def test_honest_models_end_with_0(shell, model):
    code, out, _ = shell(model)
    assert code == 0 and out.count("clean") == 4 and model in out


def test_a_leak_ends_with_1(shell):
    code, out, _ = shell("my_model.py:smooth", "--symbol", "GOOG")
    assert code == 1 and "GOOG at 20" in out and out.count("clean") == 1


REFUSED = {
    "nowhere.py:Mine": "no such file", "my_model.py:Yours": "it holds Mine, Needy, month, smooth, broken", "my_model.py:number": "is no forecaster", "my_model.py": "for instance my_model.py:Mine",
    "my_model.py:broken": "(my_model.py, line 17)", "my_model.py:Needy": "made without arguments", "bad_file.py:Mine": "No module named 'nothing_of_the_kind'", "no_such_package:x": "no_such_package: there is no such module; install it first, or name a Python file such as my_model.py:Mine",
    "json.nothing:x": "json.nothing: there is no such module"}


@pytest.mark.parametrize("model", REFUSED)
def test_models_that_cannot_be_used_end_with_2_and_one_line(shell, model):
    code, out, err = shell(model)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and REFUSED[model] in lines[0] and "Traceback" not in out + err and "leaks.py" not in err, (code, out, err)


def test_together_needs_a_model(shell, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["metavol", "leakcheck", "--together"])
    with pytest.raises(SystemExit) as left: main()
    assert left.value.code == 2 and "--model" in capsys.readouterr().err


def test_load_forecaster_leaves_libraries_alone(tmp_path):
    (tmp_path/"json.py").write_text("def forecast(bars): return bars.close\n")
    before = sys.modules["json"] if "json" in sys.modules else __import__("json")
    assert load_forecaster(f"{tmp_path/'json.py'}:forecast").__name__ == "forecast" and sys.modules["json"] is before
