"Properties of the HAR family that the chapter does not show: hourly windows, other histories, wrecked futures, bad input."
from dataclasses import replace

import numpy as np
import pytest

import metavol.har as har
from metavol.bars import HistoryError, MetavolError
from metavol.classical import SMALLEST
from metavol.features import compute_features
from metavol.har import FEW_SHOT_LAGS, FORMS, Har, SimilarHar, every_origin, har_regressors
from metavol.processes import simulate_bars, simulate_garch
from metavol.tasks import DAILY, HOURLY, Windows, forecast_tasks, known_at, labelled, make_windows

MODELS = [Har(), *(Har(FEW_SHOT_LAGS, form) for form in FORMS), Har(()), Har((1, 7), "logs", ranges=True)]
NAMES = [f"{m.form}-{i}" for i, m in enumerate(MODELS)]
RANGED = np.array([1, 1, 2, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1])


def make(spec=DAILY, n_bars=260, seed=0, n_assets=2, extended=True, level=1.):
    rng = np.random.default_rng(seed)
    path = simulate_garch(n_bars, rng, n_assets=n_assets)
    bars = simulate_bars(level*path.sigma, 8, rng, returns=level*path.returns, freq="B" if spec is DAILY else "h")
    return make_windows(compute_features(bars, extended=extended), spec)


WINDOWS = {spec: make(spec) for spec in (DAILY, HOURLY)}
MARKET = make(n_assets=5, seed=3, n_bars=300)


def asset(windows, *names): return windows[np.isin(windows.symbol, names)]


def scaled(windows, c):
    h = windows.history
    return replace(windows, history=replace(h, features=h.features*c**RANGED, scale=c*h.scale, realized=c*h.realized))


def wrecked(windows, time):
    "The same windows in a history whose bars after `time` are others, and with them every label that reaches past it."
    h = windows.history
    late = h.time > time
    unknown = ~(Windows(h, np.arange(len(h.time))).label_time <= time)
    return replace(windows, history=replace(h, features=np.where(late[:, None], 7*h.features + .1, h.features),
        scale=np.where(late, 3*h.scale, h.scale), realized=np.where(unknown & ~np.isnan(h.realized), 9., h.realized)))


def origins(windows, every=17): return Windows(windows.history, forecast_tasks(windows).query[::every, 0])


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
@pytest.mark.parametrize("spec", [DAILY, HOURLY], ids=["daily", "hourly"])
def test_batched_is_single_positive_and_scales(model, spec, monkeypatch):
    monkeypatch.setattr(har, "CHUNK", 4)
    query = origins(WINDOWS[spec], 33)
    tasks = forecast_tasks(query)
    single = [model.adapt(task.support).predict(task.query)[0] for task in tasks]
    answer = model.answer(query)
    np.testing.assert_allclose(answer, single, rtol=1e-9)
    assert len(answer) > 5 and (answer >= SMALLEST*query.unit).all() and len(model.answer(query[:0])) == 0
    for c in (0.37, 100.): np.testing.assert_allclose(model.answer(scaled(query, c)), c*answer, rtol=1e-8)
    assert model.fit is None


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_one_at_a_time_is_all_at_once_in_any_history(model):
    one = asset(WINDOWS[DAILY], "SIM1")
    adapted, rows = model.adapt(labelled(one)[:100]), np.array([150, 101, 140])
    np.testing.assert_array_equal(adapted.predict(one[rows]), [adapted.predict(one[r])[0] for r in rows])
    assert len(adapted.predict(one[:0])) == 0
    first = (one.history.asset == 0).sum()
    h = one.history
    alone = replace(h, symbols=("SIM1",), markets=h.markets[1:], asset=h.asset[first:] - 1, time=h.time[first:], features=h.features[first:],
                    scale=h.scale[first:], inputs=h.inputs[first:], realized=h.realized[first:])
    np.testing.assert_array_equal(adapted.predict(Windows(alone, one.origin[rows] - first)), adapted.predict(one[rows]))


def test_every_form_is_the_regression_it_claims_to_be():
    "Against plain normal equations in decimals, with clocks computed from the returns."
    known, query = labelled(MARKET)[::3], MARKET[::50]
    def clocks(w): return np.sqrt(5)*np.stack([np.sqrt((w.returns[:, -n:]**2).mean(1)) for n in (1, 5, 10, 20, 60)], 1)
    def solve(a, b): return np.linalg.lstsq(a, b, rcond=None)[0]
    a, q, y, u, v = clocks(known), clocks(query), known.y, known.unit[:, None], query.unit[:, None]
    one, ask = np.ones((len(a), 1)), np.ones((len(q), 1))
    logs = [np.hstack([o, np.log(np.maximum(c, .01*unit))]) for o, c, unit in ((one, a, u), (ask, q, v))]
    beta = solve(logs[0], np.log(y))
    expected = {
        "levels": np.hstack([ask, q]) @ solve(np.hstack([one, a]), y),
        "weighted": np.hstack([ask, q]) @ solve(np.hstack([one, a])/u, y/u[:, 0]),
        "relative": np.hstack([v, q[:, :4]]) @ solve(np.hstack([u, a[:, :4]])/u, y/u[:, 0]),
        "logs": np.exp(logs[1] @ beta)*np.exp(np.log(y) - logs[0] @ beta).mean()}
    for form in FORMS: np.testing.assert_allclose(Har(form=form).adapt(known).predict(query), expected[form], rtol=1e-9)


def test_ranges_are_the_garman_klass_columns():
    extra = har_regressors(MARKET, (), ranges=True)
    np.testing.assert_allclose(extra, np.sqrt(5)*MARKET.history.features[MARKET.origin, 11:14], rtol=1e-14)


def test_har_uses_what_the_support_shows_and_no_more():
    windows = WINDOWS[DAILY]
    task = forecast_tasks(windows)[0]
    rows, hidden = np.arange(len(windows.history.time)), np.ones(len(windows.history.time), bool)
    hidden[task.support.origin.min() - 59:task.support.origin.max() + 6] = False
    history = replace(windows.history, features=np.where(hidden[:, None], 3*windows.history.features, windows.history.features),
                      realized=np.where(np.isin(rows, every_origin(task.support).origin), windows.history.realized, 9.))
    for form in FORMS:
        for lags in (None, FEW_SHOT_LAGS):
            model = Har(lags, form)
            other = model.adapt(Windows(history, task.support.origin))
            np.testing.assert_array_equal(other.fit.coefficients, model.adapt(task.support).fit.coefficients)


@pytest.mark.parametrize("form", FORMS)
def test_a_single_label_and_nonsense(form):
    windows = labelled(WINDOWS[DAILY])
    one = windows[10]
    np.testing.assert_allclose(Har(form=form).adapt(one).predict(WINDOWS[DAILY][20])/(WINDOWS[DAILY][20].unit if form == "relative" else 1),
                               one.y/(one.unit if form == "relative" else 1), rtol=1e-9)
    model = Har(form=form).adapt(windows)
    for factor in (-1e6, 1e6):
        mad = replace(model, fit=replace(model.fit, coefficients=np.r_[factor, 0*model.fit.coefficients[1:]]))
        yardstick = windows[:50].unit if form == "relative" else model.fit.unit
        np.testing.assert_allclose(mad.predict(windows[:50]), np.maximum(model.fit.mean*yardstick, SMALLEST*windows[:50].unit))


def test_standing_prices_have_logarithms():
    history = WINDOWS[DAILY].history
    features = history.features.copy()
    features[::3, 0] = 0.
    still = replace(WINDOWS[DAILY], history=replace(history, features=features, realized=np.where(np.arange(len(features)) % 50 == 0, 0., history.realized)))
    model = Har((1, 5), "logs").adapt(labelled(still))
    assert np.isfinite(model.fit.coefficients).all() and (model.predict(still) > 0).all()


# Similar assets

@pytest.mark.parametrize("n_similar", [1, 3, 50])
@pytest.mark.parametrize("ranges", [False, True])
def test_similar_is_a_weighted_har_on_the_stacked_windows(n_similar, ranges):
    training = labelled(asset(MARKET, "SIM0", "SIM1", "SIM2", "SIM3"))
    model, query = SimilarHar(training, n_similar, ranges), asset(MARKET, "SIM4")[-40:]
    support = forecast_tasks(query)[3].support
    stand = model.neighbors.time[model.neighbors.time <= support.label_time.max()][-1]
    names = model.similar(support)
    assert len(names) == min(n_similar, 4) and "SIM4" not in names
    pool = known_at(asset(training, *names), stand)
    stacked = Har(form="weighted", ranges=ranges).adapt(Windows(MARKET.history, np.r_[pool.origin, every_origin(support).origin]))
    np.testing.assert_allclose(model.adapt(support).predict(query), stacked.predict(query), rtol=1e-8)


def test_similar_batched_is_single_and_scales(monkeypatch):
    model, query = SimilarHar(labelled(MARKET), 2), origins(MARKET[-700:])
    answer = model.answer(query)
    monkeypatch.setattr(har, "CHUNK", 3)
    np.testing.assert_array_equal(model.answer(query), answer)
    np.testing.assert_array_equal([model.adapt(t.support).predict(t.query)[0] for t in forecast_tasks(query)], answer)
    for c in (0.37, 100.):
        np.testing.assert_allclose(SimilarHar(scaled(labelled(MARKET), c), 2).answer(scaled(query, c)), c*answer, rtol=1e-7)


def test_no_label_of_a_neighbor_after_the_origin_is_used():
    query = origins(asset(MARKET, "SIM4")[60:], 40)
    for one in (query[r] for r in range(len(query))):
        before = SimilarHar(labelled(asset(MARKET, "SIM0", "SIM1", "SIM2")), 2).answer(one)
        after = wrecked(MARKET, one.time[0])
        np.testing.assert_array_equal(SimilarHar(labelled(asset(after, "SIM0", "SIM1", "SIM2")), 2).answer(Windows(after.history, one.origin)), before)
    peeking = wrecked(MARKET, query.time[-1] - np.timedelta64(60, "D")) # and labels before it do matter
    assert SimilarHar(labelled(asset(peeking, "SIM0", "SIM1", "SIM2")), 2).answer(Windows(MARKET.history, query.origin[-1:]))[0] != before[0]


def test_training_may_end_before_and_lie_in_another_history():
    elsewhere = make(n_assets=4, seed=8, n_bars=200)
    elsewhere = replace(elsewhere, history=replace(elsewhere.history, symbols=("A", "B", "C", "D")))
    query = origins(asset(MARKET, "SIM4")[-60:], 9)
    model = SimilarHar(known_at(elsewhere, query.time.min() - np.timedelta64(40, "D")), 2)
    answer = model.answer(query)
    assert (answer > 0).all() and set(model.similar(forecast_tasks(query)[0].support)) <= set("ABCD")


def test_labels_of_another_market_count_one_bar_later():
    training, query = labelled(asset(MARKET, "SIM0", "SIM1")), asset(MARKET, "SIM4")
    h = MARKET.history
    abroad = replace(training, history=replace(h, markets=("elsewhere",)*5))
    home, away = SimilarHar(training, 2), SimilarHar(abroad, 2)
    at = query[np.isin(query.time, home.neighbors.time)][-3:]
    stands = [har._stand(m.neighbors, Windows(h, har.task_rows(at))) for m in (home, away)]
    np.testing.assert_array_equal(stands[0] - 1, stands[1])
    between = query[~np.isin(query.time, home.neighbors.time)][-3:]
    np.testing.assert_array_equal(home.answer(between), away.answer(between))


def test_the_nearest_is_the_one_that_is_described():
    library = SimilarHar(labelled(MARKET)).neighbors
    last, symbols = len(library.time) - 1, library.symbols
    described = har.describe_labels(library.sums[last])
    def ask(symbol, n): return har.nearest(library, np.full(len(described), last), described, symbol, n)
    chosen, there = ask(np.array(["somebody else"]*5), 1)
    assert (symbols[chosen[:, 0]] == symbols).all() and there.all()
    chosen, there = ask(symbols, 5)
    assert (symbols[chosen[:, :4]] != symbols[:, None]).all() and (there == [True]*4 + [False]).all()
    labels = np.log(asset(labelled(MARKET), "SIM2").y)[:len(library.time)*har.EVERY]
    np.testing.assert_allclose(described[2, :2], [labels.mean(), labels.std()], rtol=1e-9)


def test_bad_input_is_refused_in_words():
    windows, plain = WINDOWS[DAILY], make(extended=False)
    one = asset(windows, "SIM0")
    task = forecast_tasks(one)[0]
    training = labelled(asset(windows, "SIM1"))
    for call, error, match in [
        (lambda: Har(form="cubes"), MetavolError, "choose one of 'levels'"),
        (lambda: Har().predict(one), MetavolError, r"adapt\(support\)"),
        (lambda: Har().predict(None), MetavolError, "adapt|Windows"),
        (lambda: Har().adapt(None), MetavolError, "Windows"), (lambda: Har().answer(None), MetavolError, "Windows"),
        (lambda: Har().adapt(labelled(one)).predict(None), MetavolError, "Windows"),
        (lambda: Har().adapt(one[:0]), HistoryError, "support is empty"),
        (lambda: Har().adapt(one), MetavolError, "SIM0: the support window of .* has no label yet"),
        (lambda: Har((1, 30)).adapt(labelled(WINDOWS[HOURLY])), HistoryError, "ask for 1 to 24"),
        (lambda: Har((0,)).adapt(labelled(one)), HistoryError, "ask for 1 to 60"),
        (lambda: Har(ranges=True).adapt(labelled(plain)), MetavolError, "11 features and no ranges"),
        (lambda: Har(ranges=True).answer(origins(plain)), MetavolError, "extended=True"),
        (lambda: Har().adapt(labelled(one)).answer(one), MetavolError, "fitted already"),
        (lambda: Har().answer(one[:2]), HistoryError, "SIM0: at .* no room yet"),
        (lambda: SimilarHar(None), MetavolError, "training: got a NoneType"),
        (lambda: SimilarHar(training[:0]), HistoryError, "nobody can be similar"),
        (lambda: SimilarHar(windows), MetavolError, "has no label yet"),
        (lambda: SimilarHar(training, 0), MetavolError, "n_similar=0"), (lambda: SimilarHar(training, 2.5), MetavolError, "n_similar=2.5"),
        (lambda: SimilarHar(labelled(plain), ranges=True).adapt(task.support), MetavolError, "no ranges"),
        (lambda: SimilarHar(labelled(one)).adapt(task.support), HistoryError, "no other training asset had labels"),
        (lambda: SimilarHar(training[60:]).adapt(task.support), HistoryError, "no other training asset had labels"),
        (lambda: SimilarHar(training[:15]).adapt(task.support), HistoryError, "no other training asset had labels"),
        (lambda: SimilarHar(training).adapt(labelled(windows)), MetavolError, "one asset at a time"),
        (lambda: SimilarHar(training).adapt(one[:0]), HistoryError, "support is empty"),
        (lambda: SimilarHar(training).answer(one[:2]), HistoryError, "no room yet"),
        (lambda: SimilarHar(training).answer(None), MetavolError, "Windows"),
        (lambda: SimilarHar(training).adapt(forecast_tasks(WINDOWS[HOURLY])[0].support), MetavolError, "cut both with one TaskSpec"),
    ]:
        with pytest.raises(error, match=match): call()
    assert SimilarHar(training).answer(one[:0]).shape == (0,)
    assert SimilarHar(training).adapt(labelled(one)[60]).predict(one).shape == (len(one),)
