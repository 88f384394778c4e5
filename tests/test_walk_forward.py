"The engine: what a refit may see, who is named when something is wrong, and that a run can be shared, killed and taken up again."
import importlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed, parallel_config

import metavol.walk_forward as engine
from metavol.bars import MetavolError
from metavol.classical import Egarch, Ewma, Garch, Historical
from metavol.data import load_sample
from metavol.features import compute_features
from metavol.har import Har
from metavol.maml import constant_rates
from metavol.network import Standardizer, VolatilityNet
from metavol.tasks import TaskSpec, Windows, asked_between, forecast_tasks, labelled, make_windows, thin
from metavol.neural import seeded_sequence
from metavol.stochastic import StochasticVolatility
from metavol.training import MamlVol, Member, Start
from metavol.walk_forward import FITTED, Entrant, Forecaster, cut_pieces, fingerprint, known_past, walk_forward


@cache
def panel(spec=TaskSpec(), markets=None):
    "Windows of two assets of different age."
    bars = load_sample("stocks").loc[["FB", "GOOG"]]
    bars = bars[bars.index.get_level_values("time") >= "2011-12-01"]
    return make_windows(compute_features(bars), spec, dict(markets) if markets else None)


def asked(every=4, **kwargs): return thin(asked_between(panel(**kwargs), "2012-10-15"), every)


@dataclass(frozen=True)
class Level:
    "The mean label, and a note of what it was learned from."
    mean: float = 0.
    first: int = 0 # First row it looked at
    last: np.datetime64 | None = None # When its newest label was complete
    fits: int = 0 # Fits in a row
    def adapt(self, support):
        return replace(self, mean=support.y.mean(), first=support.origin.min() - support.history.spec.lookback + 1, last=support.label_time.max(), fits=self.fits + 1)
    def predict(self, query): return np.full(len(query), self.mean)


class Warm(Level):
    warm = True
    def predict(self, query): return np.full(len(query), float(self.fits))


class Cold(Level):
    def predict(self, query): return np.full(len(query), float(self.fits))


class WarmButFailed(Warm):
    converged = False


ways = {"few_shot": ("before", "each_task"), "full_history": ("by_asset", "pooled")}
def enter(model, fitted, name="model"): return Entrant(name, model, "few_shot" if fitted in ways["few_shot"] else "full_history", fitted)
def run(model, fitted="before", query=None, **kwargs): return walk_forward([enter(model, fitted)], asked() if query is None else query, progress=False, **kwargs)


# What a refit may see

class Spy(Level):
    reach = None
    def predict(self, query):
        assert self.last <= query.time.min(), "a label reached past the origin"
        if self.reach: assert query.origin.min() - self.first < self.reach, "looked back too far"
        return super().predict(query)


class ShortSpy(Spy):
    reach = 90


@pytest.mark.parametrize("spec", [TaskSpec(), TaskSpec(lookback=30, horizon=2, stride=3), TaskSpec(horizon=7, stride=7)], ids=lambda spec: f"{spec.horizon} bars")
@pytest.mark.parametrize("fitted", ["each_task", "by_asset", "pooled"])
@pytest.mark.parametrize("window", [None, 90])
def test_no_fit_sees_a_label_that_was_not_complete(fitted, window, spec):
    query = asked(spec=spec)
    forecasts = run(ShortSpy() if window and fitted == "by_asset" else Spy(), fitted, query, refit_every=3, window=window)
    assert forecasts.attrs["horizon"] == spec.horizon and len(forecasts) == len(forecast_tasks(query))


@pytest.mark.parametrize("window", [70, 200, None])
def test_a_rolling_window_is_used_to_its_last_bar(window):
    known, origin = labelled(panel()), asked()[-1]
    past = known_past(known, origin.time[0], window)
    for asset in np.unique(known.history.asset):
        own = past.origin[known.history.asset[past.origin] == asset]
        newest = np.flatnonzero((known.history.asset == asset) & (known.history.time <= origin.time[0]))[-1]
        assert own.max() == newest - 5
        if window: assert own.min() - 59 == max(newest - window + 1, known.origin[known.history.asset[known.origin] == asset].min() - 59)


def test_a_pooled_fit_serves_all_assets_until_the_next():
    query = asked()
    forecasts = run(Level(), "pooled", query, refit_every=5, window=150)
    dates = np.unique(query.time[np.isin(query.origin, forecast_tasks(query).query)])
    known, by_hand = labelled(panel()), {}
    for first in range(0, len(dates), 5): by_hand |= dict.fromkeys(dates[first:first + 5], known_past(known, dates[first], 150).y.mean())
    times = forecasts.index.get_level_values("time").tz_localize(None).to_numpy()
    np.testing.assert_array_equal(forecasts["model"], [by_hand[moment] for moment in times.astype(dates.dtype)])


def test_markets_that_close_at_different_hours_wait_a_day():
    shared, apart = panel(), panel(markets=(("FB", "one"), ("GOOG", "other")))
    moment = asked().time[-1]
    assert known_past(labelled(shared), moment).label_time.max() == moment > known_past(labelled(apart), moment).label_time.max()


@pytest.mark.parametrize("model, counts", [(Cold(), {1}), (Warm(), {1, 2, 3}), (WarmButFailed(), {1})])
def test_a_warm_start_is_given_to_those_who_ask_for_it(model, counts):
    query = asked()
    query = query[query.symbol == "GOOG"][:9]
    assert set(run(model, "by_asset", query, refit_every=3)["model"]) == counts


def test_the_order_of_origins_does_not_matter_and_none_is_asked_twice():
    query, entrants = asked(), [enter(Level(), fitted, fitted) for fitted in ("each_task", "by_asset", "pooled")]
    shuffled = query[np.random.default_rng(0).permutation(len(query))]
    one, other = (walk_forward(entrants, part, refit_every=3, progress=False) for part in (query, shuffled))
    pd.testing.assert_frame_equal(one, other.sort_index(), check_exact=True)
    with pytest.raises(MetavolError, match="FB at 2012-12-03 00:00: .* more than once"): run(Level(), query=query[[*range(len(query)), 8]])


# Who is named

@dataclass(frozen=True)
class Says:
    "Answers with what a function makes of a good answer; for one date only, where one is given."
    change: object
    day: str | None = None
    def adapt(self, support): return self
    def predict(self, query):
        good = np.full(len(query), .02)
        there = query.time == np.datetime64(self.day) if self.day else np.ones(len(query), bool)
        return np.where(there, self.change(good), good) if self.day else self.change(good)


DAY = "2012-12-18"
VALUES = {"nan": np.nan, "negative": -.01, "zero": 0., "infinite": np.inf}


@pytest.mark.parametrize("fitted", FITTED)
@pytest.mark.parametrize("value", VALUES)
def test_an_answer_that_is_no_volatility_is_refused_with_asset_and_day(value, fitted):
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-24")
    with pytest.raises(MetavolError, match=f"model, asked for GOOG at {DAY} 00:00: forecast {VALUES[value]}"):
        run(Says(lambda good: VALUES[value]*np.ones(len(good)), DAY), fitted, query, refit_every=4)


def test_a_masked_number_is_no_volatility():
    def answer(good): return np.ma.masked_array(good, np.arange(len(good)) == 2)
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-24")
    with pytest.raises(MetavolError, match="model, asked for GOOG at 2012-12-12 00:00: forecast nan"): run(Says(answer), query=query)
    with pytest.raises(MetavolError, match="forecast nan"): run(Says(lambda good: np.ma.masked_array(np.ones(len(good), int), np.arange(len(good)) == 2)), query=query)


class Vandal(Level):
    def predict(self, query): query.history.realized[:] = .5; query.history.features[:] = 0; return np.full(len(query), .02)


@pytest.mark.parametrize("fitted, n_jobs", [*((fitted, 1) for fitted in FITTED), ("by_asset", 2)])
def test_a_model_that_writes_into_the_history_is_named_and_nothing_is_changed(fitted, n_jobs):
    query = thin(asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-31"), 3)
    before = {name: part.copy() for name, part in vars(query.history).items() if isinstance(part, np.ndarray)}
    entrants = [enter(Vandal(), fitted, "vandal"), enter(Level(mean=.1), "before", "honest")]
    with parallel_config("threading" if n_jobs == 1 else "loky"), pytest.raises(MetavolError, match="vandal, asked for GOOG .*read-only"):
        walk_forward(entrants, query, n_jobs=n_jobs, progress=False)
    for name, part in before.items(): np.testing.assert_array_equal(getattr(query.history, name), part)
    query.history.realized[-1] = query.history.realized[-1] # The caller may still write


def test_our_own_models_write_nothing():
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-27", "2012-12-31")
    before = fingerprint(query.history)
    models = [Historical(), Ewma(), Garch(), Egarch(), StochasticVolatility(), Har(), Har(form="weighted")]
    walk_forward([enter(model, "by_asset", f"{i}") for i, model in enumerate(models)] + [enter(network(), "each_task", "network")], query, progress=False)
    assert fingerprint(query.history) == before


@pytest.mark.parametrize("name", ["realized", "current", "symbol", "time", 3, None])
def test_names_that_the_table_uses_are_refused_before_anything_runs(name):
    with pytest.raises(MetavolError, match="cannot have this name, the table uses it; rename it|entrant's name"):
        walk_forward([enter(Raises(), "before", "first"), Entrant(name, Level(mean=.1), "few_shot")], asked(), progress=False)


SHAPES = {"too short": lambda good: good[:-1], "too long": lambda good: np.r_[good, .1], "a column": lambda good: good[:, None], "one number": lambda good: .02, "nothing": lambda good: None, "a column of a masked array": lambda good: np.ma.masked_equal(good, 0)[:, None],
          "text": lambda good: good.astype(str), "complex": lambda good: good + 0j,
          "named otherwise": lambda good: pd.Series(good, pd.date_range("2001-01-01", periods=len(good))), "numbered otherwise": lambda good: pd.Series(good, np.arange(len(good)) + 1)}


@pytest.mark.parametrize("fitted", FITTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_of_another_shape_or_index_is_refused(shape, fitted):
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-24")
    with pytest.raises(MetavolError, match=r"model, asked for GOOG at 2012-12-10 00:00.*needed"): run(Says(SHAPES[shape]), fitted, query)


@pytest.mark.parametrize("index", [lambda query: None, lambda query: query.time, lambda query: pd.DatetimeIndex(query.time, tz="UTC"), engine.origin_index])
def test_a_series_with_the_index_of_the_query_is_welcome(index):
    class Indexed(Level):
        def predict(self, query): return pd.Series(np.arange(1., len(query) + 1), index(query))
    query = asked()[asked().symbol == "GOOG"]
    assert list(run(Indexed(), query=query)["model"]) == list(np.arange(1., len(query) + 1))


@dataclass(frozen=True)
class Raises(Level):
    day: str = DAY
    verb: str = "predict"
    def adapt(self, support):
        if self.verb == "adapt" and support.label_time.max() >= np.datetime64(self.day): raise KeyError("nu")
        return super().adapt(support)
    def predict(self, query):
        if self.verb == "predict" and (query.time == np.datetime64(self.day)).any(): raise ZeroDivisionError("by nu")
        return np.full(len(query), .02)


@pytest.mark.parametrize("fitted, verb, said", [
    ("before", "predict", f"GOOG at {DAY} 00:00: .*ZeroDivisionError: by nu"), ("each_task", "predict", f"GOOG at {DAY} 00:00: .*ZeroDivisionError"),
    ("each_task", "adapt", f"GOOG at {DAY} 00:00: .*KeyError: 'nu'"), ("by_asset", "adapt", "GOOG at 2012-12-20 00:00 and 3 more origins: .*KeyError"),
    ("pooled", "predict", "GOOG at 2012-12-14 00:00 and 3 more origins: .*ZeroDivisionError")])
def test_an_exception_names_entrant_asset_and_origin(fitted, verb, said):
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-31")
    with pytest.raises(MetavolError, match="model, asked for " + said): run(Raises(verb=verb), fitted, query, refit_every=4)


class Crowd(Level):
    def predict(self, query):
        if len(query) > 1: raise ValueError("a crowd")
        return np.full(len(query), .02)


def test_an_error_that_nobody_makes_alone_names_the_first_and_how_many():
    with pytest.raises(MetavolError, match="asked for FB at 2012-11-27 00:00 and 40 more origins: .*a crowd"): run(Crowd())


class Failing(Level):
    converged = False


class Counted(Level):
    def answer_counted(self, query): return np.full(len(query), .03), 7


class Both(Level):
    def answer(self, query): return np.full(len(query), .04)
    def predict(self, query): return np.full(len(query), .05)


def test_failed_fits_are_counted():
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-31")
    fallbacks = {fitted: run(Failing(mean=.02), fitted, query, refit_every=5).attrs["fallbacks"]["model"] for fitted in FITTED}
    assert fallbacks == {"before": 1, "each_task": len(query), "by_asset": 3, "pooled": 3}
    assert run(Counted(), "each_task").attrs["fallbacks"] == {"model": 7} and run(Counted(mean=.01), "before").attrs["fallbacks"] == {"model": 0}


def test_only_models_fitted_at_each_task_answer_for_themselves():
    said = {fitted: run(Both(), fitted)["model"].unique().tolist() for fitted in FITTED}
    assert said == {"before": [.05], "each_task": [.04], "by_asset": [.05], "pooled": [.05]}


@pytest.mark.parametrize("settings, said", [
    (dict(window=64), "window=64"), (dict(window=100.5), "window=100.5"), (dict(refit_every=0), "refit_every=0"), (dict(n_jobs=0), "n_jobs=0"), (dict(n_jobs="2"), "n_jobs='2'"), (dict(n_jobs=1.5), "n_jobs=1.5: needed a whole number of processes"), (dict(n_jobs=True), "n_jobs=True"), (dict(keep=3), "keep: got a int"),
    (dict(keep=__file__), "no folder can be made"), (dict(entrants=[Level()]), "entrants: got a Level")])
def test_settings_that_cannot_be_meant(settings, said):
    with pytest.raises(MetavolError, match=said): walk_forward(**{**dict(entrants=[enter(Level(mean=.1), "before")], query=asked(), progress=False), **settings})


@pytest.mark.parametrize("model, fitted, said", [(3, "before", "does not predict"), (Ewma, "later", "fitted='later'"), (Level(), "pooled", "few_shot forbids"), (Level(), "by_asset", "few_shot forbids")])
def test_an_entrant_has_the_verbs_it_needs(model, fitted, said):
    with pytest.raises(MetavolError, match=said): Entrant("model", model, "few_shot", fitted)
    assert isinstance(Level(), Forecaster) and not isinstance(3, Forecaster)


# Shared by processes, kept, killed and taken up again

@cache
def network(seed=0):
    "A meta-learner nobody has trained: weights of a network, and rates."
    torch.manual_seed(seed)
    net = VolatilityNet()
    start = Start({name: p.detach() for name, p in net.named_parameters()}, Standardizer(np.zeros(11), np.ones(11)))
    return MamlVol((Member(start, constant_rates(net)),), TaskSpec(), about={"symbols": ["FB"], "first": "a", "last": "b", "chosen": "c"}, history=pd.DataFrame({"loss": [1., .5]}, ["a", "b"]))


def test_a_dask_cluster_of_two_workers_changes_nothing(tmp_path):
    from dask.distributed import Client, LocalCluster
    entrants = [Entrant("Historical", Historical(), "few_shot"), Entrant("GARCH, few-shot", Garch(), "few_shot", "each_task"), Entrant("GARCH", Garch(), "full_history", "by_asset"),
                Entrant("EWMA", Ewma(), "full_history", "pooled")] # None that brings PyTorch, which takes the workers seconds to load
    with (LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path/"dask") as cluster, Client(cluster) as client,
          parallel_config("dask")):
        assert len(client.scheduler_info()["workers"]) == 2
        shared = walk_forward(entrants, asked(), refit_every=5, keep=tmp_path/"pieces", progress=False)
        where = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(8)))
    assert os.getpid() not in where, "nothing ran on the cluster"
    alone = walk_forward(entrants, asked(), refit_every=5, progress=False)
    pd.testing.assert_frame_equal(shared, alone, check_exact=True)
    assert shared.attrs == alone.attrs
    pieces = cut_pieces(entrants, Windows(asked().history, forecast_tasks(asked()).query[:, 0]), 5)
    assert len(list((tmp_path/"pieces").glob("*.npy"))) == len(pieces)


class Slow(Level):
    def adapt(self, support): time.sleep(.02); return super().adapt(support)


def long_run(folder):
    Path(folder, "fingerprints").write_text("\n".join(fingerprint(model) for model in THINGS))
    walk_forward([enter(Slow(), "by_asset", f"slow {i}") for i in range(10)], asked(), refit_every=3, keep=folder, progress=False)


def constant(): return 3


THINGS = [network(), Level(), Warm(), Says(SHAPES["a column"]), Garch(), {"b", "a", "c"}, {"b": 1, "a": {2.}}, np.arange(3), torch.arange(3.), [np.datetime64("2020-01-01"), None, 1 + 2j],
          pd.DataFrame({"a": ["x", "y"]}, [1, 2]), lambda: constant(), TaskSpec(), cache, np.sqrt, pd.Timestamp("2020-01-01"), Path("a"), seeded_sequence("lstm", 4, 10)]


def test_a_path_is_the_same_whoever_changes_its_looks(monkeypatch):
    "fastcore, for one, gives paths another repr wherever it is imported."
    before = fingerprint(Path("a"))
    monkeypatch.setattr(type(Path("a")), "__repr__", lambda self: "elsewhere")
    assert fingerprint(Path("a")) == before != fingerprint(Path("b"))


def test_a_run_that_was_killed_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    child = multiprocessing.get_context("spawn").Process(target=long_run, args=(tmp_path,))
    child.start()
    wait = np.random.default_rng().uniform(0, .3) # Anywhere in a piece, or in writing one
    while len(list(tmp_path.glob("*.npy"))) < 3 and child.is_alive(): time.sleep(.01)
    time.sleep(wait)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert (tmp_path/"fingerprints").read_text().split() == [fingerprint(thing) for thing in THINGS], "another process has other fingerprints"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    bars, entrants = watch_progress(monkeypatch), [enter(Slow(), "by_asset", f"slow {i}") for i in range(10)]
    resumed = walk_forward(entrants, asked(), refit_every=3, keep=tmp_path)
    assert 3 <= len(kept) < 20 == len(list(tmp_path.glob("*.npy"))) and all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert bars == [f"{len(kept)} of 20", f"{len(kept)} of 20 pieces found"]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    pd.testing.assert_frame_equal(resumed, walk_forward(entrants, asked(), refit_every=3, progress=False), check_exact=True)


def watch_progress(monkeypatch):
    "What the progress bar says at the start."
    said = []
    class Bar:
        def __init__(self, total, initial, **_): said.append(f"{initial} of {total}")
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def set_postfix_str(self, text): said.append(text)
        def update(self): pass
    monkeypatch.setattr(engine, "tqdm", Bar)
    return said


class Factor(Level):
    factor = 1.
    def predict(self, query): return super().predict(query)*self.factor*helper()


def helper(): return 1.


def kept_run(folder, model=Factor(), fitted="by_asset", query=None, **kwargs):
    "Forecasts, and how many pieces were computed anew."
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    forecasts = run(model, fitted, query, **{**dict(refit_every=3, keep=folder), **kwargs})
    return forecasts, sum(before.get(path) != path.stat().st_mtime_ns for path in folder.glob("*.npy"))


def test_a_piece_is_found_again_where_nothing_changed(tmp_path):
    first, again = kept_run(tmp_path), kept_run(tmp_path)
    assert (first[1], again[1]) == (2, 0) and first[0].attrs == again[0].attrs
    pd.testing.assert_frame_equal(first[0], again[0], check_exact=True)


def other_bars():
    history = panel().history
    features = history.features.copy()
    features[np.flatnonzero(history.asset == 1)[3], 6] += 1e-9
    return replace(asked(), history=replace(history, features=features))


CHANGES = {"a number of the model": (dict(model=Factor(mean=1e-12)), 2), "a constant of its class": (dict(model=type("Factor", (Factor,), {"factor": 2.})()), 2), "its class": (dict(model=Level()), 2),
           "how it is fitted": (dict(fitted="each_task"), 2), "the cadence": (dict(refit_every=4), 2), "the window": (dict(window=100), 2), "the bars of one asset": (dict(query=other_bars), 1),
           "the origins of both": (dict(query=lambda: asked()[1:-1]), 1)}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_computed_anew(change, tmp_path):
    settings, new = CHANGES[change]
    settings = {name: value() if name == "query" else value for name, value in settings.items()}
    kept_run(tmp_path)
    forecasts, computed = kept_run(tmp_path, **settings)
    assert computed == new
    pd.testing.assert_frame_equal(forecasts, kept_run(tmp_path, **settings, keep=None)[0], check_exact=True)


def test_another_helper_or_another_metavol_is_noticed(tmp_path, monkeypatch):
    kept_run(tmp_path)
    monkeypatch.setitem(globals(), "helper", lambda: 2.)
    forecasts, computed = kept_run(tmp_path)
    assert computed == 2 and (forecasts["model"] == 2*run(Level(), "by_asset", refit_every=3)["model"]).all()
    monkeypatch.setattr(engine, "code_version", lambda: "another")
    assert kept_run(tmp_path)[1] == 2


TABLES = {"a dict": {"factor": 2.}, "a list": [1., 2.], "a Series": pd.Series([1., 2.]), "a DataFrame": pd.DataFrame({"factor": [1., 2.]})}
TABLE, MINE = None, None


class Tabled(Level):
    def predict(self, query): return super().predict(query) + 0*len(str(TABLE))


class Reaching(Level):
    def predict(self, query): return super().predict(query)*MINE.factor()


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_the_code_names_counts(kind, monkeypatch):
    prints = [fingerprint(Tabled())]
    for table in (TABLES[kind], replaced(TABLES[kind]), replaced(TABLES[kind])):
        monkeypatch.setitem(globals(), "TABLE", table)
        prints.append(fingerprint(Tabled()))
    assert len(set(prints)) == 3 and prints[2] == prints[3]


def replaced(table):
    "The same kind of table with another number in it."
    if isinstance(table, dict): return {"factor": 3.}
    return [1., 3.] if isinstance(table, list) else table + 1


@pytest.mark.parametrize("file", ["mine_of_test.py", "mine_of_test/__init__.py", "mine_of_test/deeper.py"])
def test_a_module_of_ones_own_counts(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path/file
    path.parent.mkdir(exist_ok=True)
    prints = []
    for factor in (1, 1, 2):
        path.write_text(f"def factor(): return {factor}\n")
        importlib.invalidate_caches(); sys.modules.pop("mine_of_test", None)
        monkeypatch.setitem(globals(), "MINE", importlib.import_module("mine_of_test"))
        prints.append(fingerprint(Reaching()))
    sys.modules.pop("mine_of_test")
    assert prints[0] == prints[1] != prints[2]
    monkeypatch.setitem(globals(), "MINE", np)
    assert fingerprint(Reaching()) == fingerprint(Reaching())


def test_a_folder_in_the_place_of_a_piece_is_no_piece(tmp_path):
    kept_run(tmp_path)
    one = sorted(tmp_path.glob("*.npy"))[0]
    one.unlink(); one.mkdir()
    assert engine.read_piece(one, 3) is None
    with pytest.raises(MetavolError, match="cannot be written"): kept_run(tmp_path)


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, monkeypatch):
    def full(dir): raise OSError(28, "No space left on device")
    monkeypatch.setattr(engine, "TemporaryFile", full)
    with pytest.raises(MetavolError, match=f"{tmp_path}: nothing can be written .*No space left.*choose another `keep`"): run(Raises(), keep=tmp_path)


DAMAGE = {"cut short": lambda content: content[:-5], "empty": lambda content: b"", "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], "no array": lambda content: b"x"*len(content)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_piece_is_never_believed(damage, tmp_path):
    forecasts, _ = kept_run(tmp_path)
    one = sorted(tmp_path.glob("*.npy"))[0]
    one.write_bytes(DAMAGE[damage](one.read_bytes()))
    again, computed = kept_run(tmp_path)
    assert computed == 1
    pd.testing.assert_frame_equal(forecasts, again, check_exact=True)


def test_a_piece_under_another_name_is_never_believed(tmp_path):
    forecasts, _ = kept_run(tmp_path)
    one, other = sorted(tmp_path.glob("*.npy"))
    other.write_bytes(one.read_bytes())
    pd.testing.assert_frame_equal(forecasts, kept_run(tmp_path)[0], check_exact=True)


def test_a_model_that_cannot_be_read_is_not_kept(tmp_path):
    with pytest.raises(MetavolError, match="model: what this model holds cannot be read .*leave `keep` out"): kept_run(tmp_path, Says(multiprocessing.Lock()))


def test_an_error_leaves_finished_pieces(tmp_path):
    entrants = [enter(Level(mean=.1), "before", "good"), enter(Raises(), "before", "bad")]
    query = asked_between(panel()[panel().symbol == "GOOG"], "2012-12-10", "2012-12-31")
    with pytest.raises(MetavolError, match="bad, asked"): walk_forward(entrants, query, keep=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.npy"))) == 1
