"What must hold of the one adapted number: its definition, its units, its seed, the arrow of time, and its file."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from metavol.bars import PRICES, HistoryError, MetavolError
from metavol.context import (AGES, BUCKETS, FLOOR, SHAPES, ContextSpec, ContextVol, context, first_rates, load_context_model,
                             make_grid, save_context_model, train_context)
from metavol.data import load_sample
from metavol.features import check_causal, compute_features
from metavol.network import load_tensors, save_tensors
from metavol.tasks import HOURLY, TaskSpec, Windows, asked_between, known_at, make_windows, thin
from metavol.training import PooledSpec, combine, split_validation, train_network

POOLED = PooledSpec(updates=30, batch=64, validate_every=15)
BRIEF = ContextSpec(updates=6, chains=2, dates=8, rate_lr=0.02)


@pytest.fixture(scope="module")
def bars():
    bars = load_sample("stocks").loc[["AAPL", "IBM", "MSFT"]]
    return bars[(bars.index.get_level_values("time") >= "2003-01-01") & (bars.index.get_level_values("time") < "2007-01-01")]


def windows_of(bars, **options): return make_windows(compute_features(bars), **options)


def trained(windows, spec=BRIEF, dtype=torch.float64, split="2006-01-01", **options):
    learn = known_at(windows, split)
    start = train_network(*split_validation(learn), POOLED, dtype, progress=False)
    return train_context(start, learn, spec, progress=False, **options)


@pytest.fixture(scope="module")
def windows(bars): return windows_of(bars)


@pytest.fixture(scope="module")
def model(windows): return trained(windows)


@pytest.fixture(scope="module")
def loud(model):
    "The same networks with rates that leave no doubt which label was heard."
    draw = np.random.default_rng(0)
    rates = {name: torch.tensor(draw.normal(0.1, 0.1, shape)) for name, shape in SHAPES.items()}
    return replace(model, members=tuple(replace(member, rates=rates) for member in model.members))


# The definition

def by_hand(model, query):
    "The answers, one origin, one age and one asset at a time, from a table of bars by asset and date."
    history, horizon, (member,) = query.history, model.spec.horizon, model.members
    rates = {name: rate.double().numpy() for name, rate in member.rates.items()}
    forecast = member.start.ratios(np.nan_to_num(history.inputs))
    row = {(history.markets[history.asset[i]], history.asset[i], history.time[i]): i for i in range(len(history.time))}
    answers = []
    for origin in query.origin:
        mine, home = history.asset[origin], history.markets[history.asset[origin]]
        calendar = sorted({time for market, _, time in row if market == home})
        now = calendar.index(history.time[origin])
        def label(asset, age):
            if now < age*horizon: return None
            first, last = (row.get((home, asset, calendar[now - back*horizon])) for back in (age, age - 1))
            if first is None or last is None or last - first != horizon or np.isnan(history.scale[first]): return None
            return first
        def residual(i):
            ratio = history.realized[i]/(history.scale[i]*np.sqrt(horizon))
            return min(max(ratio/forecast[i] - 1 - rates["offset"], -1), 2)
        c = 0.
        for k in range(AGES):
            heard = {a: residual(label(a, k + 1)) for a in range(len(history.symbols)) if label(a, k + 1) is not None}
            if heard: c += rates["market"][k]*sum(heard.values())/len(heard) + rates["own"][k]*heard.get(mine, 0.)
        for b, (first, last) in enumerate(BUCKETS):
            old = [i for i in (label(mine, age) for age in range(first, last + 1)) if i is not None]
            if len(old) < (last - first + 1)/2: continue
            floor = FLOOR*history.scale[old]*np.sqrt(horizon)
            level = np.sqrt(np.mean(np.maximum(history.realized[old], floor)**2))
            gap = np.log(level/(history.scale[origin]*np.sqrt(horizon))) - np.log(forecast[origin]) - rates["gap"]
            c += rates["level"][b]*min(max(gap, -1.5), 1.5)
        answers.append(forecast[origin]*np.exp(min(max(c, -1.5), 1.5))*history.scale[origin]*np.sqrt(horizon))
    return np.array(answers)


def test_answers_agree_with_a_loop(loud, windows):
    some = windows[[0, 40, 500, 1500, 2500, len(windows) - 1]]
    np.testing.assert_allclose(loud.answer(some), by_hand(loud, some), rtol=1e-10)
    assert np.abs(loud.answer(some)/loud.predict(some) - 1)[1:].min() > 0.01


def test_answers_agree_with_a_loop_where_bars_are_missing_and_markets_differ(loud, bars):
    late = bars.drop(bars.loc[["IBM"]].index[300:310]).drop(bars.loc[["MSFT"]].index[:150])
    windows = windows_of(late, markets=dict(AAPL="a", IBM="a", MSFT="b"))
    some = windows[np.r_[500:520:4, 1200:1250:11, len(windows) - 3]]
    np.testing.assert_allclose(loud.answer(some), by_hand(loud, some), rtol=1e-10)


def test_the_exponent_is_a_gradient_step_from_zero():
    draw = torch.Generator().manual_seed(0)
    def uniform(*shape): return torch.rand(shape, generator=draw, dtype=torch.float64)
    forecast, ratio, known = 0.7 + 0.6*uniform(41, 3), 0.5 + uniform(41, 3), uniform(41, 3) < 0.8
    levels, rates = 0.4*uniform(41, 3, 5) - 0.2, {name: 0.1*uniform(*shape) for name, shape in SHAPES.items()}
    c = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    deviance = (rates["level"]*(levels[-1] - forecast[-1].log()[:, None] - rates["gap"] - c[:, None])**2/2).sum()
    for k in range(AGES):
        at = -1 - 4*(k + 1)
        for asset in range(3):
            each = [r/(f*c[asset].exp()) + (1 + rates["offset"])*c[asset] for r, f, there in zip(ratio[at], forecast[at], known[at]) if there]
            if each: deviance = deviance + rates["market"][k]*sum(each)/len(each)
            if known[at, asset]:
                deviance = deviance + rates["own"][k]*(ratio[at, asset]/(forecast[at, asset]*c[asset].exp()) + (1 + rates["offset"])*c[asset])
    step = -torch.autograd.grad(deviance, c)[0]
    torch.testing.assert_close(context(forecast, ratio, known, levels, rates, step=4)[-1], step, rtol=0, atol=1e-10)


def test_training_and_answering_see_the_same_number(loud, windows):
    "Chains one horizon apart, as training cuts them, against the whole table, as an answer does."
    grid, (member,), H = make_grid(windows.history, windows.history.markets[0], ~np.isnan(windows.history.realized)), loud.members, 5
    forecast = torch.tensor(np.where(np.isfinite(grid.unit), member.start.ratios(np.nan_to_num(windows.history.inputs))[grid.row], 1.))
    table = forecast, torch.tensor(grid.ratio), torch.tensor(grid.known), torch.tensor(grid.levels)
    whole = context(*table, member.rates, step=H)
    chain = torch.arange(103, 103 + 30*H, H)
    torch.testing.assert_close(context(*(part[chain] for part in table), member.rates, step=1)[AGES:], whole[chain[AGES:]], rtol=1e-12, atol=1e-12)


# Units, seeds, time

def test_scaling_all_returns_scales_every_answer(bars, windows, model):
    scaled = bars.assign(**{price: np.exp(3*np.log(bars[price])) for price in PRICES})
    other = windows_of(scaled)
    np.testing.assert_allclose(trained(other).answer(other[::9]), 3*model.answer(windows[::9]), rtol=1e-9)


def test_a_seed_decides_every_bit(windows):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs)); np.random.seed(len(runs)) # the global state must not matter
        runs.append(trained(windows, replace(BRIEF, seed=seed), torch.float32).answer(windows[-100:]).tobytes())
    assert runs[0] == runs[1] != runs[2]


def test_no_answer_knows_the_future(loud, bars):
    def answers(bars):
        asked = thin(asked_between(windows_of(bars), "2005-01-01"), 3)
        return pd.Series(loud.answer(asked), loud.support(asked).index)
    check_causal(answers, bars, rtol=1e-5)


def test_labels_are_heard_at_the_close_that_completes_them_and_not_before(loud, windows):
    history, late = windows.history, windows[len(windows) - 40] # a window of Microsoft, with dates after it
    realized = history.realized.copy(); realized[late.origin] *= 1.3
    changed = Windows(replace(history, realized=realized), windows.origin)
    moved = windows.time[loud.answer(changed) != loud.answer(windows)]
    assert moved.min() == late.label_time[0] and set(windows.symbol[loud.answer(changed) != loud.answer(windows)]) == {"AAPL", "IBM", "MSFT"}


def test_training_hears_no_label_outside_its_windows(windows):
    learn = known_at(windows, "2006-01-01")
    start = train_network(*split_validation(learn), POOLED, progress=False)
    history, hidden = learn.history, np.ones(len(windows.history.time), bool)
    hidden[learn.origin] = False
    spoiled = replace(history, realized=np.where(hidden, 9., history.realized), inputs=np.where(hidden[:, None], 9., history.inputs))
    one, two = (train_context(start, Windows(h, learn.origin), BRIEF, progress=False) for h in (history, spoiled))
    np.testing.assert_array_equal(one.answer(windows[::50]), two.answer(windows[::50]))


# Who is heard

def test_two_markets_do_not_mix(loud, bars):
    made = windows_of(bars, markets=dict(AAPL="a", IBM="a", MSFT="b"))
    alone = windows_of(bars.loc[["MSFT"]])
    np.testing.assert_allclose(loud.answer(made[made.symbol == "MSFT"]), loud.answer(alone), rtol=1e-12)
    together = windows_of(bars)
    assert np.abs(loud.answer(together[together.symbol == "MSFT"])/loud.answer(alone) - 1).max() > 0.05


def test_support_counts_what_is_heard(loud, windows):
    support = loud.support(windows)
    full = support.iloc[-1]
    assert (full.own, full.market, full.n_labels) == (60, 20, 80) and support.own.iloc[0] == 0
    assert (support.last_label.dropna() <= support.index.get_level_values("time")[support.last_label.notna()]).all()
    last = windows.time == windows.time.max()
    row = windows.origin[-1]
    assert full.first_window == pd.Timestamp(windows.history.time[row - 300 - 59], tz="UTC") and last.sum() == 3
    unheard = support.n_labels.to_numpy() == 0
    np.testing.assert_array_equal(loud.answer(windows)[unheard], loud.predict(windows)[unheard])


def test_a_new_listing_is_answered(loud, bars):
    young = pd.concat([bars.loc[["AAPL", "IBM"]], bars.loc[["MSFT"]].iloc[-90:]])
    listed = windows_of(young)
    listed = listed[listed.symbol == "MSFT"]
    assert len(listed) == 11 and np.isfinite(loud.answer(listed)).all()
    assert loud.support(listed).market.iloc[0] == 20 and loud.support(listed).own.iloc[0] == 0


def test_a_lone_short_asset_is_answered(loud, bars):
    alone = windows_of(bars.loc["IBM"].iloc[:90])
    np.testing.assert_allclose(loud.answer(alone), by_hand(loud, alone), rtol=1e-10)
    assert loud.support(alone).first_window.isna().sum() == 5


def test_other_horizons_and_inputs(bars):
    for made in (windows_of(bars, spec=HOURLY), make_windows(compute_features(bars, extended=True))):
        model = trained(made)
        np.testing.assert_allclose(model.answer(made[-3:]), by_hand(model, made[-3:]), rtol=1e-10)
    assert len(model.features) == 15


def test_the_control_only_moves_its_weights(windows):
    control = trained(windows, adapted=False)
    assert all((rate == 0).all() for rate in control.members[0].rates.values())
    np.testing.assert_allclose(control.answer(windows[::20]), control.predict(windows[::20]), rtol=1e-12)


# Files and errors

def test_a_file_gives_back_the_same_forecaster(model, windows, tmp_path):
    both = combine([model, replace(model, about={**model.about, "seed": 1})])
    save_context_model(both, tmp_path/"model.safetensors")
    kept = load_context_model(tmp_path/"model.safetensors")
    np.testing.assert_array_equal(kept.answer(windows[::30]), both.answer(windows[::30]))
    assert kept.about == both.about and kept.about["seed"] == [0, 1] and repr(kept) == repr(both)


@pytest.mark.parametrize("change, about, says", [
    ({"0.rates.gap": torch.tensor(float("nan"))}, {}, "no number"), ({"0.rates.level": torch.zeros(4)}, {}, "shapes"),
    ({"0.rates.other": torch.zeros(1)}, {}, "shapes"), ({"0.rates.own": torch.zeros(10, dtype=torch.int64)}, {}, "no number"),
    ({"0.params.net.2.weight": torch.zeros(3, 3)}, {}, "size mismatch"), ({"1.rates.own": torch.zeros(10)}, {}, "15 of 16"),
    ({"0.standardizer.std": torch.zeros(11)}, {}, "standardizer"), ({}, {"format": 9}, "format is 9"), ({}, {"members": 2}, "rates|net"),
    ({}, {"kind": "MamlVol"}, "needed 'ContextVol'"), ({}, {"spec": {"lookback": 0}}, "lookback")])
def test_a_file_that_was_changed_is_refused(model, tmp_path, change, about, says):
    path = tmp_path/"model.safetensors"
    save_context_model(model, path)
    tensors, kept = load_tensors(path, "ContextVol")
    save_tensors(path, {**tensors, **change}, {**kept, **about})
    with pytest.raises(MetavolError, match=says): load_context_model(path)


@pytest.mark.parametrize("field, value", [("updates", 0), ("chains", 1.5), ("dates", True), ("outer_lr", float("nan")),
                                          ("average", 1.), ("qlike_weight", -1), ("seed", None)])
def test_a_setting_that_makes_no_sense_is_named(field, value):
    with pytest.raises(MetavolError, match=field): ContextSpec(**{field: value})


def test_what_cannot_be_used_is_refused(model, windows, bars, tmp_path):
    start, learn = model.members[0].start, known_at(windows, "2006-01-01")
    def run(start=start, learn=learn, spec=BRIEF): return train_context(start, learn, spec, progress=False)
    with pytest.raises(MetavolError, match="a Start"): run(start=model)
    with pytest.raises(MetavolError, match="a ContextSpec"): run(spec=POOLED)
    with pytest.raises(MetavolError, match="Windows"): run(learn=bars)
    with pytest.raises(MetavolError, match="no label yet"): run(learn=windows)
    with pytest.raises(HistoryError, match="no market has 18 moments"): run(learn=learn[:60])
    inputs = learn.history.inputs.copy(); inputs[learn.origin[::20]] = np.nan
    with pytest.raises(MetavolError, match=r"the loss became nan.*AAPL at 2003"): run(learn=replace(learn, history=replace(learn.history, inputs=inputs)))
    with pytest.raises(MetavolError, match="needed 60 -> 5"): model.answer(windows_of(bars, spec=TaskSpec(lookback=60, horizon=4)))
    with pytest.raises(MetavolError, match="Windows"): model.support(bars)
    with pytest.raises(MetavolError, match="a ContextVol"): save_context_model(start, tmp_path/"x")
    assert isinstance(model, ContextVol) and len(model.answer(windows[:0])) == 0 and set(first_rates()) == set(SHAPES)
