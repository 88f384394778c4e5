"One outer gradient of MAML, computed in every way there is, and the forecasts of a whole market in one call."
import argparse
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from measure import machine, medians
from torch import Tensor
from torch.func import functional_call, grad, vmap

from metavol.kernel import load_kernel
from metavol.maml import adapt, adapt_and_predict, constant_rates, meta_gradient, task_loss
from metavol.network import seeded_network, volatility_loss

STEPS, SUPPORT, QUERY, RATE = 5, 10, 5, .01
FLOOR, SIDE = "arithmetic floor", 1024 # Side of the large product that says how fast this machine multiplies
Jobs = dict[str, Callable] # Name of an implementation, and one call of it


def tasks(
    n_tasks:int, # Tasks of ten support and five query windows
)->list[Tensor]: # support_x, support_y, query_x, query_y
    "Random tasks; what the numbers say does not matter to the clock."
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n_tasks, SUPPORT + QUERY, 11, generator=draw)
    y = .5 + torch.rand(n_tasks, SUPPORT + QUERY, generator=draw)
    return [part.contiguous() for part in (x[:, :SUPPORT], y[:, :SUPPORT], x[:, SUPPORT:], y[:, SUPPORT:])]


def arithmetic(
    n_tasks:int, # Tasks in a gradient
)->float: # Floating point operations of its matrix products, each done once
    "What a second-order gradient cannot do without."
    sizes = [p.numel() for p in seeded_network().parameters() if p.ndim == 2]
    every, inner = sum(sizes), sum(sizes[1:]) # Nothing goes back beyond the first layer
    down = 2*every + inner # Forward, the weights' gradient, and back
    return 2.*n_tasks*(STEPS*SUPPORT*(2*down + 3*inner) + QUERY*down) # Of a Hessian's five products three are double


def one_by_one(net, batch):
    params = dict(net.named_parameters())
    rates = {name: rate.requires_grad_() for name,rate in constant_rates(net, RATE).items()}
    leaves, total = [*params.values(), *rates.values()], None
    for task in zip(*batch):
        found = torch.autograd.grad(task_loss(net, params, task, rates, STEPS)/len(batch[0]), leaves)
        total = found if total is None else [a + b for a,b in zip(total, found)]
    return total[:len(params)]


def by_higher(net, batch):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SyntaxWarning) # Of its own text, when Python reads it for the first time
        import higher
    loss, weights = 0., tuple(net.parameters())
    for support_x, support_y, query_x, query_y in zip(*batch):
        sgd = torch.optim.SGD(net.parameters(), lr=RATE)
        with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(STEPS): optimizer.step(volatility_loss(adapted(support_x), support_y))
            loss = loss + volatility_loss(adapted(query_x), query_y)/len(batch[0])
    return torch.autograd.grad(loss, weights)


def by_torchopt(net, batch):
    import torchopt
    loss, start, weights = 0., torchopt.extract_state_dict(net, by="reference"), tuple(net.parameters())
    for support_x, support_y, query_x, query_y in zip(*batch):
        optimizer = torchopt.MetaSGD(net, lr=RATE)
        for _ in range(STEPS): optimizer.step(volatility_loss(net(support_x), support_y))
        loss = loss + volatility_loss(net(query_x), query_y)/len(batch[0])
        torchopt.recover_state_dict(net, start)
    return torch.autograd.grad(loss, weights)


def vmapped(
    net:torch.nn.Module, # A `VolatilityNet`
)->tuple[Callable, Callable]: # Gradient of the mean query loss, and forecasts after adapting
    "The inner loop of one task, and PyTorch's own way to many."
    def loss(params, x, y): return volatility_loss(functional_call(net, params, (x,)), y)
    def adapted(params, x, y):
        for _ in range(STEPS):
            slopes = grad(loss)(params, x, y)
            params = {name: p - RATE*slopes[name] for name,p in params.items()}
        return params
    def judged(params, batch):
        return vmap(lambda x, y, query_x, query_y: loss(adapted(params, x, y), query_x, query_y))(*batch).mean()
    def answers(params, batch):
        return vmap(lambda x, y, query_x: functional_call(net, adapted(params, x, y), (query_x,)))(*batch[:3])
    return grad(judged), answers


def by_jax(net, batch):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp
    params, batch = [jnp.asarray(p.detach().numpy()) for p in net.parameters()], [jnp.asarray(b.numpy()) for b in batch]
    def loss(params, x, y):
        for weight, bias in zip(params[:-2:2], params[1:-2:2]): x = jax.nn.relu(x @ weight.T + bias)
        error = jax.nn.softplus(x @ params[-2].T + params[-1])[..., 0] - y
        return (error**2).mean() + .1*jnp.abs(error).mean()
    def judged(params, x, y, query_x, query_y):
        for _ in range(STEPS): params = [p - RATE*g for p,g in zip(params, jax.grad(loss)(params, x, y))]
        return loss(params, query_x, query_y)
    gradient = jax.jit(jax.grad(lambda params: jax.vmap(judged, (None, 0, 0, 0, 0))(params, *batch).mean()))
    return lambda: jax.block_until_ready(gradient(params))


def implementations(
    n_tasks:int, # Tasks in a gradient
    skipped:list[str], # Implementations to leave out
)->Jobs: # Each gives the gradient of the start
    "Every way there is, of those that are installed."
    def has(name): return name not in skipped and find_spec(name)
    net, batch = seeded_network(), tasks(n_tasks)
    params = {name: p.detach() for name,p in net.named_parameters()}
    rates, gradient = constant_rates(net, RATE), vmapped(net)[0]
    jobs = {"one task at a time, autograd": lambda: one_by_one(net, batch)}
    if has("higher"): jobs["higher"] = lambda: by_higher(net, batch)
    if has("torchopt"): jobs["torchopt"] = lambda: by_torchopt(net, batch)
    jobs["torch.func vmap"] = lambda: gradient(params, batch).values()
    if "compile" not in skipped:
        faster = torch.compile(gradient)
        jobs["torch.compile of it"] = lambda: faster(params, batch).values()
    if has("jax"): jobs["JAX jit(vmap(grad))"] = by_jax(net, batch)
    jobs["metavol, eager"] = lambda: meta_gradient(params, batch, rates, STEPS, compiled=False)[1].values()
    if load_kernel(): jobs["metavol, compiled"] = lambda: meta_gradient(params, batch, rates, STEPS)[1].values()
    return jobs


def markets(
    n_assets:int, # Assets with ten labelled windows each
)->Jobs: # Each gives the forecasts of all
    "Adapt to every asset and answer five queries."
    net, batch = seeded_network(), tasks(n_assets)
    own, rates, answers = dict(net.named_parameters()), constant_rates(net, RATE), vmapped(net)[1]
    params = {name: p.detach() for name,p in own.items()}
    def one_by_one():
        adapted = [adapt(net, own, x, y, rates, STEPS, first_order=True) for x,y in zip(*batch[:2])]
        with torch.no_grad(): return torch.stack([functional_call(net, p, (x,)) for p,x in zip(adapted, batch[2])])
    jobs = {"one task at a time, autograd": one_by_one, "torch.func vmap": lambda: answers(params, batch),
            "metavol, eager": lambda: adapt_and_predict(params, *batch[:3], rates, STEPS, compiled=False)}
    if load_kernel(): jobs["metavol, compiled"] = lambda: adapt_and_predict(params, *batch[:3], rates, STEPS)
    return jobs


def agree(
    jobs:Jobs, # The first is the one to agree with
)->None: # Every job has run once
    "Speed means nothing unless the numbers agree."
    def flat(found): return np.concatenate([np.ravel(part.detach() if isinstance(part, Tensor) else part)
                                            for part in ([found] if isinstance(found, Tensor) else found)])
    expected = flat(next(iter(jobs.values()))())
    for name,job in jobs.items():
        error = np.linalg.norm(flat(job()) - expected)/np.linalg.norm(expected)
        if not error < 1e-3: raise SystemExit(f"{name} is off by {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tasks', type=int, nargs='+', default=[32, 256], help='tasks in a gradient (default 32 256)')
    parser.add_argument('--assets', type=int, default=1000, help='assets to adapt to in one call (default 1000)')
    parser.add_argument('--repeats', type=int, default=7, help='rounds; medians are printed (default 7)')
    parser.add_argument('--skip', nargs='*', default=['compile'], choices=['compile', 'higher', 'torchopt', 'jax'],
                        help='what to leave out (default compile, a minute for each size; --skip alone: nothing)')
    chosen = parser.parse_args()
    square, each = torch.randn(SIDE, SIDE), {}
    for n_tasks in chosen.tasks:
        agree(jobs := implementations(n_tasks, chosen.skip))
        time = medians({**jobs, FLOOR: lambda: square @ square}, chosen.repeats)
        speed = 2*SIDE**3/time[FLOOR]
        each[n_tasks] = {**time, FLOOR: arithmetic(n_tasks)/speed}, speed
    agree(jobs := markets(chosen.assets))
    market = medians(jobs, chosen.repeats)

    rivals = [name for name in ('torch', 'higher', 'torchopt', 'jax') if find_spec(name)]
    packages = ', '.join(f"{name} {version(name)}" for name in rivals)
    print(f"problem   {STEPS} second-order steps, K = {SUPPORT}, Q = {QUERY}, 7,041 weights, float32, simulated tasks")
    print(f"machine   {machine()}, {packages}, {torch.get_num_threads()} threads")
    print(f"method    medians of {chosen.repeats} rounds, wall clock\n")
    for n_tasks,(time,speed) in each.items():
        print(f"one gradient, {n_tasks} tasks             ms   times faster than the first   times the floor")
        for name,seconds in time.items():
            faster, floors = time['one task at a time, autograd']/seconds, seconds/time[FLOOR]
            print(f"{name:<30}{1e3*seconds:10.2f}{faster:20.1f}{floors:22.1f}")
        print(f"{'':<30}floor: {arithmetic(n_tasks)/1e6:,.0f} MFLOP at {speed/1e9:,.0f} GFLOP/s\n")
    print(f"adapt and predict, {chosen.assets} assets       ms   times faster than the first")
    for name,seconds in market.items():
        print(f"{name:<30}{1e3*seconds:10.2f}{market['one task at a time, autograd']/seconds:20.1f}")


if __name__ == '__main__': main()
