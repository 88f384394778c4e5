"Rival networks: bits repeat, batched is single, units do not matter, the future does not either, and wrong input is named."
from dataclasses import replace

import numpy as np
import pytest
import torch

from metavol.bars import MetavolError
from metavol.features import compute_features
from metavol.neural import BODIES, FineTuned, Network, Scratch, SequenceNet, SequenceNetwork, Setting, held_out_loss, sequence_inputs, tuned
from metavol.tasks import HOURLY, asked_between, forecast_tasks, known_at, labelled, make_windows
from metavol.training import PooledSpec

SMALL = Setting(4, PooledSpec(8, 16, 5e-3, validate_every=4))
KINDS = pytest.mark.parametrize("kind", list(BODIES))


def small(kind, seeds=(0,), **settings): return SequenceNetwork(kind, seeds, SMALL, **settings)


@pytest.fixture(scope="module")
def training(windows): return known_at(labelled(windows[np.isin(windows.symbol, ["AAPL", "IBM"])]), "2010-12-31")[::3]


@pytest.fixture(scope="module")
def google(windows): return asked_between(windows[windows.symbol == "GOOG"], "2011-01-01")[::40]


@pytest.fixture(scope="module")
def network(training): return Network((0, 1), PooledSpec(20, 64, validate_every=10)).adapt(training)


# Sequences

def test_the_last_bar_is_what_the_plain_network_sees(google):
    np.testing.assert_allclose(sequence_inputs(google)[:, -1], google.inputs, atol=1e-9)


@KINDS
def test_bits_repeat_and_the_global_seed_does_not_matter(kind, training, google):
    first = small(kind).adapt(training).predict(google)
    torch.manual_seed(7); np.random.seed(7); state = torch.get_rng_state()
    again = small(kind).adapt(training).predict(google)
    np.testing.assert_array_equal(first, again)
    assert torch.equal(state, torch.get_rng_state()) and (first > 0).all()
    assert not np.array_equal(small(kind, (1,)).adapt(training).predict(google), first)


def test_processes_change_no_bit(training, google):
    one, two = (small("tcn", (0, 1), n_jobs=n_jobs).adapt(training).predict(google) for n_jobs in (1, 2))
    np.testing.assert_array_equal(one, two)


@KINDS
def test_forecasts_scale_with_returns(kind, training, google):
    def times_2(windows):
        x = windows.history.features*2.**np.array([1, 1, 2, 1, 1, 1, 0, 0, 1, 0, 1])
        inputs = windows.history.inputs + 2*np.log(2)*(np.arange(11) == 2)
        return replace(windows, history=replace(windows.history, features=x, inputs=inputs, scale=2*windows.history.scale, realized=2*windows.history.realized))
    plain, scaled = small(kind).adapt(training).predict(google), small(kind).adapt(times_2(training)).predict(times_2(google))
    np.testing.assert_allclose(scaled, 2*plain, rtol=1e-4)


@KINDS
def test_nothing_later_than_the_origin_is_read(kind, training, google, features):
    model, origin = small(kind).adapt(training), google[3]
    wrecked = features.copy()
    wrecked[wrecked.index.get_level_values("time") > np.datetime_as_string(origin.time[0]) + "Z"] *= 5
    windows = make_windows(wrecked)
    same = windows[(windows.symbol == "GOOG") & (windows.time == origin.time[0])]
    np.testing.assert_array_equal(model.predict(same), model.predict(origin))


@KINDS
def test_pieces_do_not_matter(kind, training, google, monkeypatch):
    model = small(kind).adapt(training)
    whole = model.predict(google)
    monkeypatch.setattr("metavol.neural.PIECE", 5)
    np.testing.assert_allclose(model.predict(google), whole, rtol=1e-5)
    assert model.predict(google[:0]).shape == (0,)


def test_an_extended_table_is_read_like_a_plain_one(stocks, training, google):
    model = small("gru").adapt(training)
    extended = make_windows(compute_features(stocks, extended=True))
    rows = np.flatnonzero((extended.symbol == "GOOG") & np.isin(extended.time, google.time))
    np.testing.assert_array_equal(model.predict(extended[rows]), model.predict(google))


# Few labels

def test_fine_tuning_one_task_is_fine_tuning_all(network, google):
    model, tasks = FineTuned(network, 0.01, 3), forecast_tasks(google)
    alone = [model.adapt(task.support).predict(task.query)[0] for task in tasks]
    np.testing.assert_allclose(model.answer(google)[-len(tasks):], alone, rtol=1e-5)
    assert not np.allclose(alone, network.predict(google)[-len(tasks):], rtol=1e-3)


@pytest.mark.parametrize("every_label", [True, False])
def test_scratch_of_one_task_is_scratch_of_all(google, every_label, monkeypatch):
    model, tasks = Scratch((0, 1), 0.05, 10, every_label), forecast_tasks(google)
    alone = [model.adapt(task.support).predict(task.query)[0] for task in tasks]
    monkeypatch.setattr("metavol.neural.CHUNK", 4)
    np.testing.assert_allclose(model.answer(google)[-len(tasks):], alone, rtol=1e-5)


def test_scratch_knows_nothing_of_other_assets(windows, google, features):
    others = features.copy()
    others[others.index.get_level_values(0) != "GOOG"] *= 3
    changed = make_windows(others)
    rows = np.flatnonzero((changed.symbol == "GOOG") & np.isin(changed.time, google.time))
    np.testing.assert_array_equal(Scratch().answer(changed[rows]), Scratch().answer(google))


def test_too_little_history_is_nan(network, windows):
    first = windows[windows.symbol == "FB"][:1]
    for model in (FineTuned(network, 0.001, 1), Scratch()): assert np.isnan(model.answer(first)).all()


def test_the_best_on_dates_held_out_is_chosen(network, training):
    wild, mild = FineTuned(network, 0.3, 5), FineTuned(network, 1e-4, 1)
    assert tuned([wild, mild], training) is mild


# Wrong input

def test_wrong_input_is_named(network, training, google, windows):
    unlabelled = windows[windows.symbol == "GOOG"][-10:]
    cases = {
        "never trained": lambda: small("gru").predict(google), "choose one of lstm": lambda: SequenceNetwork("rnn"),
        "no network": lambda: SequenceNet("mlp", 4, 60), "even number": lambda: SequenceNet("transformer", 5, 60),
        "at least 1": lambda: SequenceNet("gru", 0, 60), "network to tune": lambda: FineTuned(Network(), 0.01, 1),
        "learning_rate": lambda: FineTuned(network, np.nan, 1), "steps": lambda: FineTuned(network, 0.01, 0),
        "no label yet": lambda: Scratch().adapt(unlabelled), "have no label": lambda: FineTuned(network, 0.01, 1).adapt(unlabelled),
        "windows of one": lambda: Scratch().adapt(training), "room for a support": lambda: held_out_loss(Scratch(), windows[windows.symbol == "FB"][:2])}
    for words, call in cases.items():
        with pytest.raises(MetavolError, match=words): call()


def test_windows_of_another_length_are_refused(training, features):
    model = small("lstm").adapt(training)
    with pytest.raises(MetavolError, match="windows of 24 bars, but this network reads 60"): model.predict(make_windows(features, HOURLY)[:5])
