"The learner, to the last digits: one gradient in every way there is to compute it, and the kernel when things go wrong."
import numpy as np
import pytest
import torch
from torch.func import functional_call

from metavol import kernel
from metavol.bars import MetavolError
from metavol.features import FEATURES
from metavol.maml import (adapt, adapt_and_predict, adapt_tasks, constant_rates, meta_gradient, meta_loss, multi_step_gradient,
                          predict_tasks, reptile_gradient, ridge_head, task_loss)
from metavol.network import best_device, load_tensors, save_tensors, seeded_network, volatility_loss

HAS_KERNEL = kernel.load_kernel("float64") is not None
compiled_or_not = pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.skipif(not HAS_KERNEL, reason="no compiler")), False])
SIZES = [(2, 1, 1, 1), (4, 10, 5, 1), (8, 5, 3, 3), (33, 7, 2, 4), (64, 10, 5, 5), (130, 3, 1, 2)]
sizes = pytest.mark.parametrize("width,n_support,n_query,inner_steps", SIZES)


def problem(width, n_support=10, n_query=5, n_tasks=3, dtype=torch.float64, rate_rows=1, seed=0):
    "A network, its parameters, rates that differ by tensor and step, and a batch of tasks."
    draw = torch.Generator().manual_seed(seed)
    def normal(*shape): return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    net = seeded_network(seed, hidden_dim=width).to(dtype)
    params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    rates = {name: (0.02 + 0.01*normal(rate_rows)).requires_grad_() for name in params}
    batch = normal(n_tasks, n_support, 11), normal(n_tasks, n_support).exp(), normal(n_tasks, n_query, 11), normal(n_tasks, n_query).exp()
    return net, params, rates, batch


def leaves(params, rates): return [*params.values(), *rates.values()]
def close(found, expected, atol=1e-10):
    for one, two in zip(found, expected, strict=True): torch.testing.assert_close(one, two, rtol=0, atol=atol)
def flat(result): return [*result[1].values(), *result[2].values()]


# One gradient

@sizes
@compiled_or_not
@pytest.mark.parametrize("first_order", [False, True])
def test_by_hand_is_what_autograd_says(width, n_support, n_query, inner_steps, compiled, first_order):
    net, params, rates, batch = problem(width, n_support, n_query, n_tasks=11, rate_rows=2)
    looped = sum(task_loss(net, params, task, rates, inner_steps, first_order) for task in zip(*batch))/11
    expected = torch.autograd.grad(looped, leaves(params, rates))
    batched = meta_loss(params, batch, rates, inner_steps, first_order)
    close(torch.autograd.grad(batched, leaves(params, rates)), expected)
    found = meta_gradient(params, batch, rates, inner_steps, first_order, compiled)
    close([found[0], *flat(found)], [looped.detach(), *expected])


def by_higher(net, batch, inner_lr, inner_steps):
    higher = pytest.importorskip("higher")
    loss = 0.
    for support_x, support_y, query_x, query_y in zip(*batch):
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=inner_lr), copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(inner_steps): optimizer.step(volatility_loss(adapted(support_x), support_y))
            loss = loss + volatility_loss(adapted(query_x), query_y)/len(batch[0])
    return torch.autograd.grad(loss, tuple(net.parameters()))


def by_torchopt(net, batch, inner_lr, inner_steps):
    torchopt = pytest.importorskip("torchopt")
    loss, start = 0., torchopt.extract_state_dict(net, by="reference")
    for support_x, support_y, query_x, query_y in zip(*batch):
        optimizer = torchopt.MetaSGD(net, lr=inner_lr)
        for _ in range(inner_steps): optimizer.step(volatility_loss(net(support_x), support_y))
        loss = loss + volatility_loss(net(query_x), query_y)/len(batch[0])
        torchopt.recover_state_dict(net, start)
    return torch.autograd.grad(loss, tuple(net.parameters()))


@sizes
@pytest.mark.parametrize("oracle", [by_higher, by_torchopt])
def test_two_libraries_give_the_same_gradient(width, n_support, n_query, inner_steps, oracle):
    net, params, _, batch = problem(width, n_support, n_query)
    expected = oracle(net, batch, 0.03, inner_steps)
    for compiled in (True, False): close(meta_gradient(params, batch, constant_rates(net, 0.03), inner_steps, compiled=compiled)[1].values(), expected)


@sizes
@compiled_or_not
def test_finite_differences_agree(width, n_support, n_query, inner_steps, compiled):
    _, params, rates, batch = problem(width, n_support, n_query, rate_rows=inner_steps)
    start, gradient = [leaf.detach() for leaf in leaves(params, rates)], flat(meta_gradient(params, batch, rates, inner_steps, compiled=compiled))
    length, draw, step = torch.sqrt(sum(g.square().sum() for g in gradient)), torch.Generator().manual_seed(1), 1e-6
    def loss_along(direction, step):
        moved = [leaf + step*d for leaf, d in zip(start, direction)]
        return meta_gradient(dict(zip(params, moved)), batch, dict(zip(rates, moved[len(params):])), inner_steps, compiled=compiled)[0].item()
    for _ in range(3):
        direction = [g/length + 0.1*torch.randn(g.shape, generator=draw, dtype=g.dtype) for g in gradient]
        slope = (loss_along(direction, step) - loss_along(direction, -step))/(2*step)
        assert slope == pytest.approx(sum((g*d).sum().item() for g, d in zip(gradient, direction)), rel=1e-6)


@compiled_or_not
def test_single_precision_is_double_precision_rounded(compiled):
    def gradient(dtype):
        _, params, rates, batch = problem(64, n_tasks=20, dtype=dtype)
        return torch.cat([g.flatten().double() for g in flat(meta_gradient(params, batch, rates, compiled=compiled))])
    single, double = gradient(torch.float32), gradient(torch.float64)
    assert (single - double).norm() < 1e-4*double.norm()


@pytest.mark.parametrize("first_order", [False, True])
def test_a_rate_for_each_weight(first_order):
    net, params, _, batch = problem(8)
    draw = torch.Generator().manual_seed(2)
    rates = {name: (0.03*torch.rand((2, *p.shape), generator=draw, dtype=p.dtype)).requires_grad_() for name, p in params.items()}
    looped = sum(task_loss(net, params, task, rates, 3, first_order) for task in zip(*batch))/3
    expected = torch.autograd.grad(looped, leaves(params, rates))
    close(flat(meta_gradient(params, batch, rates, 3, first_order)), expected)
    answers = adapt_and_predict(params, *batch[:3], rates, 3)
    close([answers[1]], [functional_call(net, adapt(net, params, batch[0][1], batch[1][1], rates, 3), (batch[2][1],)).detach()])


@compiled_or_not
@pytest.mark.parametrize("adapted", [("net.6.weight", "net.6.bias"), ("net.0.bias",), ("net.2.weight",), ()])
def test_what_has_no_rate_is_not_adapted(adapted, compiled):
    net, params, rates, batch = problem(8)
    rates = {name: rates[name] for name in adapted}
    looped = sum(task_loss(net, params, task, rates, 3) for task in zip(*batch))/3
    expected = torch.autograd.grad(looped, leaves(params, rates))
    close(flat(meta_gradient(params, batch, rates, 3, compiled=compiled)), expected)
    still = {name: torch.zeros(1, dtype=torch.float64) for name in params} | rates
    found = meta_gradient(params, batch, still, 3, compiled=compiled)
    close([*found[1].values(), *(found[2][name] for name in adapted)], expected)
    moved = adapt_tasks(params, *batch[:2], rates, 3)
    for name, p in params.items(): assert torch.equal(moved[name], p.expand(3, *p.shape)) == (name not in adapted)


@compiled_or_not
def test_forecasts_are_those_of_one_task_after_another(compiled):
    net, params, rates, batch = problem(16, n_tasks=150, rate_rows=3)
    expected = torch.stack([functional_call(net, adapt(net, params, x, y, rates, 4), (query,)) for x, y, query in zip(*batch[:3])])
    close([adapt_and_predict(params, *batch[:3], rates, 4, compiled)], [expected.detach()])
    with torch.no_grad(): close([predict_tasks(adapt_tasks(params, *batch[:2], rates, 4), batch[2])], [expected.detach()])


@compiled_or_not
def test_zero_steps_are_the_network_itself(compiled):
    net, params, rates, batch = problem(8)
    close([adapt_and_predict(params, *batch[:3], rates, 0, compiled)], [net(batch[2]).detach()])
    loss, gradient, by_rate = meta_gradient(params, batch, rates, 0, compiled=compiled)
    close(gradient.values(), torch.autograd.grad(volatility_loss(net(batch[2]), batch[3]), tuple(net.parameters())))
    assert all(not g.any() for g in by_rate.values())


@compiled_or_not
def test_large_forecasts_and_exact_hits_have_the_slopes_of_autograd(compiled):
    net, params, rates, batch = problem(8)
    params["net.6.bias"] = torch.full((1,), 20.5, dtype=torch.float64).requires_grad_() # softplus is cut off at 20
    rates = {name: rate.detach().mul(.01).requires_grad_() for name, rate in rates.items()}
    hit = batch[0], net(batch[0]).detach(), batch[2], batch[3]
    for tasks in (batch, hit):
        expected = torch.autograd.grad(sum(task_loss(net, params, task, rates, 2) for task in zip(*tasks))/3, leaves(params, rates))
        close(flat(meta_gradient(params, tasks, rates, 2, compiled=compiled)), expected, atol=1e-9)


@compiled_or_not
@pytest.mark.parametrize("part", range(4))
def test_a_nan_is_not_swallowed(part, compiled):
    _, params, rates, batch = problem(8, n_tasks=10)
    batch[part][7, -1] = np.nan
    assert meta_gradient(params, batch, rates, compiled=compiled)[0].isnan()
    if part < 3: assert adapt_and_predict(params, *batch[:3], rates, compiled=compiled).isnan().any(1).tolist() == [task == 7 for task in range(10)]


@compiled_or_not
def test_bits_do_not_depend_on_threads(compiled):
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _, params, rates, batch = problem(16, n_tasks=70, dtype=torch.float32)
            loss, *gradients = meta_gradient(params, batch, rates, compiled=compiled)
            answers = adapt_and_predict(params, *batch[:3], rates, compiled=compiled)
            found.append(b"".join(t.numpy().tobytes() for t in (loss, answers, *gradients[0].values(), *gradients[1].values())))
    finally: torch.set_num_threads(1)
    assert found[0] == found[1] == found[2]


@compiled_or_not
def test_a_file_may_keep_tensors_in_any_order(compiled, tmp_path):
    _, params, rates, batch = problem(8)
    save_tensors(tmp_path/"start", params, {"kind": "start", "features": list(FEATURES)})
    shuffled = load_tensors(tmp_path/"start", "start")[0]
    assert list(shuffled) != list(params)
    found, expected = (meta_gradient(start, batch, rates, compiled=compiled)[1] for start in (shuffled, params))
    close([found[name] for name in params], expected.values(), atol=0)


# Relatives

def test_all_weight_on_the_last_step_is_plain_maml():
    _, params, rates, batch = problem(8)
    close(flat(multi_step_gradient(params, batch, rates, np.eye(3)[2])), flat(meta_gradient(params, batch, rates, 3)), atol=0)
    each = [flat(meta_gradient(params, batch, rates, steps)) for steps in (1, 2)]
    close(flat(multi_step_gradient(params, batch, rates, np.array([.3, .7]))), [.3*a + .7*b for a, b in zip(*each)], atol=1e-15)


def test_reptile_points_from_the_adapted_weights_to_the_start():
    net, params, rates, batch = problem(8)
    ends = [adapt(net, params, torch.cat(task[::2]), torch.cat(task[1::2]), rates, 5) for task in zip(*batch)]
    close(reptile_gradient(params, batch, rates).values(), [(p - sum(end[name] for end in ends)/3).detach() for name, p in params.items()])


def test_ridge_head_is_the_minimum_of_its_loss():
    _, params, _, (support_x, support_y, query_x, _) = problem(8)
    start = {name: p.detach() for name, p in params.items()}
    below = seeded_network(0, hidden_dim=8).double().net[:-2] # the weights of `problem`
    def hidden(x): return torch.cat([below(x).detach(), torch.ones(*x.shape[:-1], 1, dtype=x.dtype)], -1)
    before = [predict_tasks(start, x) for x in (support_x, query_x)]
    stacked = torch.cat([hidden(support_x), np.exp(.25)*torch.eye(5, dtype=torch.float64).expand(3, 5, 5)], 1)
    miss = torch.cat([support_y/before[0] - 1, torch.zeros(3, 5, dtype=torch.float64)], 1)
    change = torch.linalg.lstsq(stacked, miss.unsqueeze(-1)).solution
    expected = before[1]*(1 + (hidden(query_x) @ change).squeeze(-1)).clamp(min=.1)
    close([ridge_head(start, support_x, support_y, query_x, torch.tensor(.5, dtype=torch.float64))], [expected])


# What is refused

def test_wrong_shapes_are_refused():
    _, params, rates, batch = problem(8)
    support_x, support_y, query_x, query_y = batch
    for wrong, said in [((support_x[:2], support_y, query_x, query_y), "support"), ((support_x, support_y, query_x[..., :10], query_y), "query"),
                        ((support_x, support_y[:, :9], query_x, query_y), "support"), ((support_x, support_y, query_x[:1], query_y[:1]), "query"),
                        (tuple(part[:0] for part in batch), "support"), ((support_x[0], support_y[0], query_x[0], query_y[0]), "support")]:
        for learn in (meta_loss, meta_gradient):
            with pytest.raises(MetavolError, match=f"^{said}"): learn(params, wrong, rates)
    for change, said in [({"net.9.bias": torch.zeros(1).double()}, "none of"), ({"net.0.bias": torch.zeros(()).double()}, "needed"),
                         ({"net.0.bias": torch.zeros(1, 7).double()}, "needed"), ({"net.0.bias": torch.zeros(1)}, "different types")]:
        with pytest.raises(MetavolError, match=said): meta_gradient(params, batch, rates | change)
    with pytest.raises(MetavolError, match="weight and bias of each layer"): meta_gradient({**params, "net.0.bias": torch.zeros(7).double()}, batch, rates)
    with pytest.raises(MetavolError, match="not on this machine"): best_device("abacus")


# The compiled file

def answer(compiled=True):
    _, params, rates, batch = problem(8)
    return meta_gradient(params, batch, rates, compiled=compiled)[0].item()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache, and a compiler that takes no time."
    path = kernel._cached("double")
    ready = path.read_bytes()[:-32] if HAS_KERNEL and path.exists() else None
    def copied(folder, real): (folder/"kernel.so").write_bytes(ready); return ready
    monkeypatch.setattr(kernel.platformdirs, "user_cache_path", lambda name: tmp_path/"cache")
    if ready: monkeypatch.setattr(kernel, "_compile", copied)
    kernel.load_kernel.cache_clear()
    yield tmp_path/"cache"
    kernel.load_kernel.cache_clear()


@pytest.mark.parametrize("trouble", ["no compiler", "compile error", "no such option", "a library that does not load"])
def test_without_a_compiled_file_the_answer_is_the_same(cache, monkeypatch, trouble, capfd):
    monkeypatch.undo()
    monkeypatch.setattr(kernel.platformdirs, "user_cache_path", lambda name: cache)
    if trouble == "no compiler": monkeypatch.setenv("PATH", "")
    if trouble == "compile error": monkeypatch.setattr(kernel, "SOURCE", "this is not C")
    if trouble == "no such option": monkeypatch.setattr(kernel, "OPTIONS", ("-no-such-option",))
    if trouble == "a library that does not load": monkeypatch.setattr(kernel, "_compile", lambda folder, real: b"neither a library nor C")
    assert answer() == pytest.approx(answer(compiled=False), rel=1e-12) and kernel.load_kernel("float64") is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not HAS_KERNEL, reason="no compiler")
@pytest.mark.parametrize("harm", [lambda content: content[:5000], lambda content: content[:-1], lambda content: b"", lambda content: content[:400] + b"x" + content[401:]])
def test_a_damaged_file_is_made_again(cache, harm):
    assert kernel.load_kernel("float64") is not None
    path = kernel._cached("double"); whole = path.read_bytes()
    path.write_bytes(harm(whole))
    kernel.load_kernel.cache_clear()
    assert kernel.load_kernel("float64") is not None and answer() == pytest.approx(answer(compiled=False), rel=1e-12)
    assert path.read_bytes() == whole and [file.name for file in cache.iterdir()] == [path.name]


@pytest.mark.skipif(not HAS_KERNEL, reason="no compiler")
def test_a_cache_that_cannot_be_written_costs_only_the_compilation(cache):
    cache.write_text("a file where the folder should be")
    assert kernel.load_kernel("float64") is not None and answer() == pytest.approx(answer(compiled=False), rel=1e-12)


def test_sizes_that_do_not_fit_together_never_reach_c():
    layers, params, rates = [(11, 4), (4, 1)], np.zeros(11*4 + 4 + 5), np.zeros((2, 4))
    batch = [np.zeros((3, 10, 11)), np.zeros((3, 10)), np.zeros((3, 5, 11)), np.zeros((3, 5))]
    for wrong in [dict(params=params[1:]), dict(rates=rates[:, 1:]), *(dict(batch=[*batch[:i], batch[i][..., 1:], *batch[i + 1:]]) for i in range(4))]:
        with pytest.raises(ValueError, match="needed"): kernel.kernel_gradient(**{**dict(layers=layers, params=params, rates=rates, batch=batch), **wrong})
    for unknown in ([(11, 4), (5, 1)], [(11, 4), (4, 2)], [(11, 1)]*17, [(11, 5000), (5000, 1)]):
        assert kernel.kernel_gradient(unknown, params, rates, batch) is None
