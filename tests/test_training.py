"A training run: reproducible, killed without harm, stopped by the first number that is none; and the files it leaves."
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

from metavol.bars import MetavolError
from metavol.maml import constant_rates
from metavol.network import fit_standardizer, load_tensors, save_tensors, seeded_network
from metavol.tasks import asset_tasks, cross_market_tasks, known_at, labelled, make_windows, regime_tasks, window_tasks
from metavol.training import (Member, Start, TrainingSpec, combine, draw_batch, load_model, plot_history, predict_all, save_model, split_validation,
                              train)

SHORT = TrainingSpec(updates=12, batch=6, inner_steps=2, validate_every=4, checkpoint_every=3, rate_lr=0.01)


def small_start(windows, hidden=8):
    return Start({name: p.detach() for name, p in seeded_network(0, hidden_dim=hidden).named_parameters()}, fit_standardizer(windows.inputs))


@pytest.fixture(scope="module")
def job(windows):
    "Start, tasks and tasks to watch of a run that takes milliseconds."
    training, watch = split_validation(windows)
    return small_start(training), [asset_tasks(training, step=5), regime_tasks(training)], asset_tasks(watch)


def same(one, two):
    "Do two models of one member hold the same bits?"
    (a,), (b,) = one.members, two.members
    pairs = [(part[0][name], part[1][name]) for part in ((a.start.params, b.start.params), (a.rates, b.rates)) for name in part[0] | part[1]]
    pd.testing.assert_frame_equal(one.history, two.history)
    return all(torch.equal(*pair) for pair in pairs)


# Reproducible

def test_a_batch_depends_on_seed_and_update_alone(job):
    undisturbed = train(*job, SHORT, progress=False)
    torch.manual_seed(5); np.random.seed(5)
    assert same(train(*job, SHORT, progress=False), undisturbed)
    assert not np.array_equal(train(*job, replace(SHORT, seed=1), progress=False).history.loss, undisturbed.history.loss, equal_nan=True)


def test_shares_are_kept_on_average(job):
    _, sets, _ = job
    for shares in (None, (3, 1), (1, 0), (0.01, 0.99)):
        drawn = [list(map(len, draw_batch(sets, 8, np.random.default_rng([0, update]), shares))) for update in range(2000)]
        wanted = np.array([1, 1] if shares is None else shares)
        assert set(np.sum(drawn, 1)) == {8}
        np.testing.assert_allclose(np.mean(drawn, 0), 8*wanted/wanted.sum(), atol=0.05)
    for bad in ((1,), (0, 0), (-1, 2), (np.nan, 1)):
        with pytest.raises(MetavolError, match="shares"): train(*job, SHORT, shares=bad, progress=False)


def test_all_kinds_and_markets_mix(features):
    markets = {"AAPL": "one", "IBM": "one", "MSFT": "two", "GOOG": "two", "FB": "two"}
    training, watch = split_validation(make_windows(features, markets=markets))
    sets = [asset_tasks(training), regime_tasks(training), window_tasks(training, np.random.default_rng(0)), cross_market_tasks(training, np.random.default_rng(0))]
    apart = [asset_tasks(training[training.market == name]) for name in ("one", "two")]
    model = train(small_start(training), [*sets, *apart], [asset_tasks(watch), regime_tasks(watch)], replace(SHORT, updates=2), progress=False)
    assert model.about["kinds"] == ["asset", "regime", "window", "cross-market", "asset", "asset"] and model.about["markets"] == ["one", "two"]


def test_rates_rise_then_fall_to_zero():
    spec = TrainingSpec(updates=100, warm_up=0.1)
    rates = np.array([spec.rate_of(update) for update in range(101)])
    assert (np.diff(rates[:11]) > 0).all() and rates[10] == 1 and (np.diff(rates[10:]) < 0).all() and rates[100] == pytest.approx(0, abs=1e-12)
    assert TrainingSpec(updates=1).rate_of(0) == 1


def test_a_run_stops_when_nothing_improves(job):
    model = train(*job, replace(SHORT, outer_lr=0., rate_lr=0., updates=100, patience=3), progress=False)
    assert len(model.history) - 1 == 3*SHORT.validate_every and model.about["best_update"] == 0
    (member,) = model.members
    assert all(torch.equal(member.start.params[name], p) for name, p in job[0].params.items())


@pytest.mark.parametrize("form", ["by step", "by weight", "head only"])
def test_rates_of_any_form_are_learned_and_kept(job, tmp_path, form):
    start, sets, watch = job
    rates = {"by step": {name: torch.full((2,), 0.01) for name in start.params},
             "by weight": {name: torch.full((1, *p.shape), 0.01) for name, p in start.params.items()},
             "head only": {name: torch.full((1,), 0.01) for name in ("net.6.weight", "net.6.bias")}}[form]
    model = train(Member(start, rates), sets, watch, SHORT, checkpoint=tmp_path/"run", progress=False)
    assert {name: r.shape for name, r in model.members[0].rates.items()} == {name: r.shape for name, r in rates.items()}
    assert not any(torch.equal(model.members[0].rates[name], r) for name, r in rates.items())
    one_by_one = np.stack([model.adapt(task.support).predict(task.query) for task in watch[:5]])
    np.testing.assert_allclose(predict_all(model, watch[:5], chunk=2), one_by_one, rtol=1e-5)
    save_model(model, tmp_path/"model")
    np.testing.assert_array_equal(predict_all(load_model(tmp_path/"model"), watch), predict_all(model, watch))


# Watched on other dates, and on other assets where there are ten

def test_watching_what_is_trained_on_is_refused(job, features):
    start, sets, _ = job
    with pytest.raises(MetavolError, match="watch later dates"): train(start, sets, sets[0], SHORT, progress=False)
    copies = [features.rename(index=lambda name: f"{name}{i}", level="symbol") for i in range(3)]
    many = make_windows(pd.concat([part[part.index.get_level_values("time") >= "2011-01-01"] for part in copies]))
    training, watch = split_validation(many)
    train(start, asset_tasks(training), asset_tasks(watch), replace(SHORT, updates=1), progress=False)
    with pytest.raises(MetavolError, match="both trained on and watched, such as AAPL0"):
        train(start, asset_tasks(known_at(many, watch.time.min())), asset_tasks(watch), SHORT, progress=False)


def test_tasks_of_two_forms_are_refused(job, features):
    start, sets, watch = job
    other = labelled(make_windows(features, replace(sets[0].history.spec, n_query=3)))
    with pytest.raises(MetavolError, match="tasks of 2 forms"): train(start, [*sets, asset_tasks(other)], watch, SHORT, progress=False)


# Killed

LONG = replace(SHORT, updates=240, checkpoint_every=2, validate_every=40, patience=100)


def doomed(*job, **options):
    "A run in a process of its own, whose progress bar does not share a lock with its parent: it will be killed while it holds it."
    tqdm.set_lock(threading.RLock())
    train(*job, **options)


def test_a_run_killed_twenty_times_ends_with_the_same_bits(job, tmp_path):
    began = time.perf_counter()
    undisturbed = train(*job, LONG, checkpoint=tmp_path/"undisturbed", progress=False)
    pause, path, rng, reached = (time.perf_counter() - began)/5, tmp_path/"run", np.random.default_rng(), []
    while len(reached) < 20:
        process = multiprocessing.get_context("fork").Process(target=doomed, args=(*job, LONG), kwargs=dict(checkpoint=path, progress=False))
        process.start(); time.sleep(rng.uniform(0, pause)); process.kill(); process.join()
        if process.exitcode == 0: path.unlink(); continue # it was done before the kill: begin again
        assert process.exitcode == -signal.SIGKILL
        reached.append(load_tensors(path, "training")[1]["update"] if path.exists() else -1)
    assert len(set(reached)) > 3
    assert same(train(*job, LONG, checkpoint=path, progress=False), undisturbed)
    assert sorted(os.listdir(tmp_path)) == ["run", "undisturbed"] # nothing half-written is left
    assert same(train(*job, LONG, checkpoint=path, progress=False), undisturbed) # a finished run is only read
    assert same(train(*job, LONG, progress=False), undisturbed)


def test_a_checkpoint_of_another_run_is_refused(job, tmp_path):
    start, sets, watch = job
    path = tmp_path/"run"
    train(*job, SHORT, checkpoint=path, progress=False)
    before = path.read_bytes()
    for others in ((start, sets, watch, replace(SHORT, seed=1)), (start, sets[:1], watch, SHORT), (start, sets, watch[1:], SHORT),
                   (Member(start, constant_rates(start.net, 0.1)), sets, watch, SHORT)):
        with pytest.raises(MetavolError, match="belongs to a run with other settings"): train(*others, checkpoint=path, progress=False)
    with pytest.raises(MetavolError, match="shares"): train(*job, SHORT, shares=(1, 2), checkpoint=path, progress=False)
    assert path.read_bytes() == before


# The first number that is none

def poisoned(tasks, row):
    "Tasks whose history has an input that is not a number."
    inputs = tasks.history.inputs.copy()
    inputs[row] = np.nan
    return replace(tasks, history=replace(tasks.history, inputs=inputs))


def test_a_loss_that_is_no_number_names_its_batch_and_leaves_the_checkpoint(job, tmp_path):
    start, (tasks, _), watch = job
    drawn, = draw_batch([tasks], SHORT.batch, np.random.default_rng([0, 7]))
    earlier = np.concatenate([draw_batch([tasks], SHORT.batch, np.random.default_rng([0, update]))[0] for update in range(7)])
    fresh = np.setdiff1d(tasks.query[drawn], np.r_[tasks.query[earlier].ravel(), tasks.support[earlier].ravel()])
    bad, path = poisoned(tasks, fresh[0]), tmp_path/"run"
    with pytest.raises(MetavolError) as caught: train(start, bad, watch, SHORT, checkpoint=path, progress=False)
    message, row = str(caught.value), fresh[0]
    for word in ("nan", "update 7", "batch seed [0, 7]", tasks.history.symbols[tasks.history.asset[row]], str(tasks.history.time[row])[:4]): assert word in message
    tensors, about = load_tensors(path, "training")
    assert about["update"] == 6 and all(torch.isfinite(t).all() for name, t in tensors.items() if name != "history")
    with pytest.raises(MetavolError, match="update 7"): train(start, bad, watch, SHORT, checkpoint=path, progress=False) # from update 6 on
    with pytest.raises(MetavolError, match="validation loss became nan"): train(start, tasks, poisoned(watch, watch.query[0, 0]), SHORT, progress=False)


def test_a_run_that_explodes_keeps_no_number_that_is_none(job, tmp_path):
    path = tmp_path/"run"
    with pytest.raises(MetavolError, match="lower outer_lr"):
        train(*job, replace(SHORT, outer_lr=1e37, warm_up=0., checkpoint_every=1), checkpoint=path, progress=False)
    assert all(torch.isfinite(t).all() for name, t in load_tensors(path, "training")[0].items() if name != "history")


# What is seen of a run

def test_history_is_drawn(job):
    model = train(*job, SHORT, progress=False)
    assert list(model.history) == ["loss", "gradient", "validation"] and list(model.history.index) == list(range(13))
    assert list(model.history.validation.dropna().index) == [0, 4, 8, 12]
    assert f"best at {model.about['best_update']}" in plot_history(model).axes[0].get_title()
    with pytest.raises(MetavolError, match="no history"): plot_history(combine([model, model]))


def test_the_bar_shows_loss_and_validation(job, capsys):
    train(*job, replace(SHORT, updates=4), progress=False)
    assert capsys.readouterr().err == ""


def test_tensorboard_gets_every_loss_once_even_after_a_kill(job, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class PowerCut(TrainingSpec):
        def rate_of(self, update):
            if update == 8: raise InterruptedError
            return super().rate_of(update)

    options = dict(checkpoint=tmp_path/"run", log_dir=tmp_path/"log", progress=False)
    with pytest.raises(InterruptedError): train(*job, PowerCut(**vars(SHORT)), **options)
    model, events = train(*job, SHORT, **options), EventAccumulator(str(tmp_path/"log"))
    events.Reload()
    for name, steps in (("loss", range(1, 13)), ("gradient", range(1, 13)), ("validation", (4, 8, 12))):
        assert [event.step for event in events.Scalars(name)] == list(steps)
        np.testing.assert_allclose([event.value for event in events.Scalars(name)], model.history[name].loc[list(steps)], rtol=1e-6)


def test_tensorboard_that_is_not_there_is_asked_for(job, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MetavolError, match=r"pip install 'metavol\[tensorboard\]'"): train(*job, SHORT, log_dir=tmp_path, progress=False)


def test_a_device_that_is_not_there_is_refused(job):
    for name in ("gpu", None):
        with pytest.raises(MetavolError, match="use 'auto' or one of"): train(*job, SHORT, device=name, progress=False)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert same(train(*job, SHORT, device="auto", progress=False), train(*job, SHORT, progress=False))


# Files

@pytest.fixture(scope="module")
def model(job): return combine([train(*job, replace(SHORT, seed=seed), progress=False) for seed in (0, 1)])


def test_a_saved_model_says_where_it_came_from(model, job, tmp_path):
    save_model(model, tmp_path/"one"); save_model(load_model(tmp_path/"one"), tmp_path/"two")
    assert (tmp_path/"one").read_bytes() == (tmp_path/"two").read_bytes()
    back = load_model(tmp_path/"one")
    assert repr(back) == repr(model) and back.about == model.about and back.spec == model.spec
    np.testing.assert_array_equal(predict_all(back, job[2]), predict_all(model, job[2]))
    assert {"symbols", "markets", "kinds", "first", "last", "chosen", "data", "seed", "settings", "versions"} <= back.about.keys()
    assert set(back.about["versions"]) == {"metavol", "torch", "numpy", "python"} and back.about["seed"] == [0, 1] and len(back.about["data"]) == 64
    assert len(repr(model)) < 250 and str(back.about["first"]) in repr(back)


def test_the_hash_of_the_data_is_that_of_what_was_used(job, features):
    start, sets, watch = job
    base = train(start, sets[0], watch, replace(SHORT, updates=1), progress=False).about["data"]
    later = labelled(make_windows(features[features.index.get_level_values("time") < "2013-03-01"]))
    training, held = split_validation(known_at(make_windows(features), "2012-12-31"))
    changed = replace(sets[0], history=replace(sets[0].history, realized=sets[0].history.realized*(1 + 1e-12)))
    assert train(start, changed, watch, replace(SHORT, updates=1), progress=False).about["data"] != base
    longer = [asset_tasks(known_at(labelled(w), training.label_time.max()), step=5) for w in (later, make_windows(features))]
    one, two = (train(start, tasks, asset_tasks(held), replace(SHORT, updates=1), progress=False).about["data"] for tasks in longer)
    assert one == two


def with_tensor(name, value): return lambda tensors, about: tensors.update({name: value})
def without(name): return lambda tensors, about: tensors.pop(name)
def about_says(**facts): return lambda tensors, about: about.update(facts)


SPOILED = {
    "missing tensor": (without("0.params.net.2.weight"), "Missing key"), "missing first": (without("0.params.net.0.weight"), "net.0.weight"),
    "missing scaling": (without("1.standardizer.std"), "std"), "extra tensor": (with_tensor("0.params.net.8.bias", torch.zeros(1)), "Unexpected key"),
    "stranger": (with_tensor("0.notes", torch.zeros(1)), "tensors"), "no member": (about_says(members=0), "0 of"), "one too few": (about_says(members=1), "tensors"),
    "one too many": (about_says(members=3), "net.0.weight"), "shape": (with_tensor("1.params.net.6.bias", torch.zeros(2)), "size mismatch"),
    "flat": (with_tensor("1.params.net.0.weight", torch.zeros(88)), "model file"), "rate shape": (with_tensor("0.rates.net.6.bias", torch.zeros(1, 7)), "rate of net.6.bias"),
    "bare rate": (with_tensor("0.rates.net.6.bias", torch.zeros(())), "rate of net.6.bias"), "rate of nothing": (with_tensor("0.rates.net.9.bias", torch.zeros(1)), "net.9.bias"),
    "nan": (with_tensor("0.params.net.6.bias", torch.full((1,), np.nan)), "NaN"), "infinite rate": (with_tensor("0.rates.net.6.bias", torch.full((1,), np.inf)), "infinity"),
    "no scale": (with_tensor("0.standardizer.std", torch.zeros(11, dtype=torch.float64)), "positive scale"), "short scale": (with_tensor("0.standardizer.mean", torch.zeros(3)), "11 inputs"),
    "other features": (about_says(features=["log_return"]), "features"), "other kind": (about_says(kind="training"), "training"), "other format": (about_says(format=2), "format is 2"),
    "leaking spec": (about_says(spec=dict(horizon=9)), "leak"), "other spec": (about_says(spec=dict(bars=9)), "bars"), "no spec": (lambda tensors, about: about.pop("spec"), "spec")}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_refused(model, tmp_path, case):
    path = tmp_path/"model.safetensors"
    save_model(model, path)
    spoil, says = SPOILED[case]
    tensors, about = load_tensors(path, "MamlVol")
    spoil(tensors, about); save_tensors(path, tensors, about)
    with pytest.raises(MetavolError, match="model.safetensors") as caught: load_model(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_file_is_refused(model, tmp_path):
    path, ran = tmp_path/"model.safetensors", tmp_path/"ran"

    class Trap:
        def __reduce__(self): return os.mkdir, (str(ran),)

    save_model(model, path)
    whole = path.read_bytes()
    broken = whole.replace(b'{\\"about', b'[\\"about') # as many bytes, and no JSON
    assert broken != whole
    for content in (broken, b"", whole[:100], whole[:-1], whole[:len(whole)//2], whole[8:], pickle.dumps(Trap()), b"PK\x03\x04 and so on"):
        path.write_bytes(content)
        with pytest.raises(MetavolError, match="model.safetensors"): load_model(path)
    torch.save({"net": Trap()}, path)
    with pytest.raises(MetavolError, match="model.safetensors"): load_model(path)
    assert not ran.exists()
