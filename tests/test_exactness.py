"What must hold to the last digits: gradients, units, seeds, the arrow of time, second opinions, and a run that is killed."
import multiprocessing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from arch.univariate import GARCH, ZeroMean
from bidask import edge

from metavol.bars import PRICES
from metavol.classical import FEW_SHOT_LAGS, Ewma, Garch, Har, Historical
from metavol.features import FEATURES, bollinger_width, check_causal, compute_features, rsi, spread_estimate
from metavol.maml import MAMLVolatility, adapt, adapt_tasks, constant_rates, meta_loss, task_loss
from metavol.network import seeded_network, volatility_loss
from metavol.neural import Network
from metavol.processes import garch_variance
from metavol.tasks import (Windows, asked_between, asset_tasks, create_tasks, cross_market_tasks, forecast_tasks, known_at, labelled,
                           make_windows, regime_tasks, stack_tasks, window_tasks)
from metavol.training import MetaVol, PooledSpec, TrainingSpec, meta_train, predict_all, split_validation, train_network
from metavol.volatility import log_returns
from metavol.walk_forward import Entrant, walk_forward

TRAINED, TESTED = ["AAPL", "IBM", "MSFT"], "GOOG"
POOLED = PooledSpec(updates=20, batch=64, validate_every=10)
META = TrainingSpec(updates=6, batch=8, validate_every=3, rate_lr=0.01)


# The meta-gradient

def problem(width, n_support, seed=0):
    "A network, its parameters, inner rates that differ by tensor, and a batch of three tasks, all in float64."
    draw = torch.Generator().manual_seed(seed)
    def normal(*shape): return torch.randn(shape, generator=draw, dtype=torch.float64)
    net = seeded_network(seed, hidden_dim=width).double()
    params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    rates = {name: (0.02 + 0.01*normal()).requires_grad_() for name in params}
    batch = normal(3, n_support, 11), normal(3, n_support).exp(), normal(3, 5, 11), normal(3, 5).exp()
    return net, params, rates, batch


SIZES = [(2, 1, 1), (4, 10, 1), (8, 5, 3), (16, 10, 5), (64, 10, 2)]
sizes = pytest.mark.parametrize("width,n_support,inner_steps", SIZES)


@sizes
def test_meta_gradient_agrees_with_finite_differences(width, n_support, inner_steps):
    net, params, rates, batch = problem(width, n_support)
    leaves = [*params.values(), *rates.values()]
    gradient = torch.autograd.grad(meta_loss(net, params, batch, rates, inner_steps), leaves)
    length = torch.sqrt(sum(g.square().sum() for g in gradient))
    draw, step = torch.Generator().manual_seed(1), 1e-6
    def loss_along(direction, step):
        moved = [leaf.detach() + step*d for leaf, d in zip(leaves, direction)]
        return meta_loss(net, dict(zip(params, moved)), batch, dict(zip(rates, moved[len(params):])), inner_steps).item()
    for _ in range(5):
        direction = [g/length + 0.1*torch.randn(g.shape, generator=draw, dtype=g.dtype) for g in gradient]
        slope = (loss_along(direction, step) - loss_along(direction, -step))/(2*step)
        assert slope == pytest.approx(sum((g*d).sum().item() for g, d in zip(gradient, direction)), rel=1e-6)


def gradient_by_higher(net, batch, inner_lr, inner_steps):
    higher = pytest.importorskip("higher")
    loss = 0.
    for support_x, support_y, query_x, query_y in zip(*batch):
        sgd = torch.optim.SGD(net.parameters(), lr=inner_lr)
        with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(inner_steps): optimizer.step(volatility_loss(adapted(support_x), support_y))
            loss = loss + volatility_loss(adapted(query_x), query_y)/len(batch[0])
    return torch.autograd.grad(loss, tuple(net.parameters()))


@sizes
def test_batched_looped_and_higher_give_one_gradient(width, n_support, inner_steps):
    net, params, _, batch = problem(width, n_support)
    rates = constant_rates(net, 0.03)
    batched = meta_loss(net, params, batch, rates, inner_steps)
    looped = sum(task_loss(net, params, task, rates, inner_steps) for task in zip(*batch))/3
    gradients = [torch.autograd.grad(loss, tuple(params.values())) for loss in (batched, looped)]
    for other in (gradients[1], gradient_by_higher(net, batch, 0.03, inner_steps)):
        for one, two in zip(gradients[0], other): torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_first_order_gradient_is_that_of_the_adapted_network():
    net, params, rates, batch = problem(8, 10)
    task = [part[0] for part in batch]
    adapted = {name: p.detach().requires_grad_() for name, p in adapt(net, params, *task[:2], rates, 5).items()}
    expected = torch.autograd.grad(volatility_loss(torch.func.functional_call(net, adapted, (task[2],)), task[3]), tuple(adapted.values()))
    found = torch.autograd.grad(task_loss(net, params, task, rates, 5, first_order=True), tuple(params.values()))
    for one, two in zip(found, expected): torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_zero_steps_and_zero_rates_are_the_identity(windows):
    net, params, rates, (support_x, support_y, _, _) = problem(8, 10)
    none = {name: torch.zeros_like(rate) for name, rate in rates.items()}
    for steps, alpha in ((0, rates), (5, none)):
        one = adapt(net, params, support_x[0], support_y[0], alpha, steps)
        many = adapt_tasks(net, params, support_x, support_y, alpha, steps)
        for name, p in params.items(): assert torch.equal(one[name], p) and torch.equal(many[name], p.expand(3, *p.shape))
    model = meta_model(windows)
    tasks = forecast_tasks(windows[::50])
    task = tasks[0]
    still = replace(model, inner_steps=0)
    np.testing.assert_array_equal(still.adapt(task.support).predict(task.query), model.predict(task.query))
    assert np.abs(predict_all(model, tasks)/predict_all(still, tasks) - 1).max() > 1e-3


# Units

def scale_returns(bars, c): return bars.assign(**{price: np.exp(c*np.log(bars[price])) for price in PRICES})


def meta_model(windows, pooled=POOLED, meta=META, dtype=torch.float64):
    "A few updates of the whole training."
    train, watch = split_validation(windows)
    start = train_network(train, watch, pooled, dtype, progress=False)
    kinds = [asset_tasks(train, step=5), regime_tasks(train), window_tasks(train, np.random.default_rng(0), step=5)]
    return meta_train(start, kinds, asset_tasks(watch), meta, progress=False)


def entrants(windows):
    "Every kind of model, the pooled ones trained on `windows`."
    train, watch = split_validation(windows)
    return [
        Entrant("Historical", Historical(), "few_shot"), Entrant("EWMA", Ewma(), "few_shot"),
        Entrant("GARCH, few-shot", Garch(), "few_shot", "each_task"), Entrant("HAR, few-shot", Har(FEW_SHOT_LAGS), "few_shot", "each_task"),
        Entrant("GARCH", Garch(), "full_history", "by_asset"), Entrant("GJR", Garch(asymmetric=True), "full_history", "by_asset"),
        Entrant("HAR", Har(), "full_history", "by_asset"), Entrant("Pooled HAR", Har().adapt(windows), "full_history"),
        Entrant("Network", Network(starts=(train_network(train, watch, POOLED, torch.float64, progress=False),)), "full_history"),
        Entrant("Meta-Vol", meta_model(windows), "few_shot", "each_task")]


NAMES = [entrant.name for entrant in (Entrant(name, None, "full_history") for name in (
    "Historical", "EWMA", "GARCH, few-shot", "HAR, few-shot", "GARCH", "GJR", "HAR", "Pooled HAR", "Network", "Meta-Vol"))]


def train_and_forecast(bars, split="2011-06-01", change=lambda entrant: entrant):
    "The whole path from bars to forecasts of an asset nobody was trained on; not `realized`, which is the future by definition."
    windows = make_windows(compute_features(bars))
    trained = known_at(windows[np.isin(windows.symbol, TRAINED)], split)
    asked = asked_between(windows[windows.symbol == TESTED], split)[::4]
    return walk_forward([change(e) for e in entrants(trained)], asked, refit_every=30, progress=False).drop(columns="realized")
