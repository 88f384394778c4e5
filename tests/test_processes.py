"Properties of the variance recursions and of simulated bars, over parameters nobody would pick by hand."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from metavol.bars import MetavolError
from metavol.processes import (ewma_variance, garch_horizon_variance, garch_variance, simulate_bars, simulate_garch,
                               simulate_jumps, simulate_log_sv, simulate_regimes, unconditional_variance)

settings.register_profile("processes", deadline=None, max_examples=50, derandomize=True)
quick = settings.get_profile("processes")
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1e-3, 1e3)


@st.composite
def garch_parameters(draw):
    "Any GARCH or GJR process with a long-run level, gamma below zero included."
    persistence, share, tilt = draw(st.floats(0.01, 0.999)), draw(st.floats(0, 1)), draw(st.floats(-1, 2))
    alpha = persistence*share/(1 + tilt/2)
    return dict(omega=draw(st.floats(1e-9, 1e-3)), alpha=alpha, beta=persistence*(1 - share), gamma=tilt*alpha)


def draw_returns(seed, shape=(3, 40)):
    return 0.02*np.random.default_rng(seed).standard_t(4, shape)


@quick
@given(garch_parameters(), seeds, st.floats(1e-8, 1e-2))
def test_the_filter_is_the_loop(parameters, seed, start):
    returns = draw_returns(seed)
    omega, alpha, beta, gamma = parameters.values()
    variance = [np.full(3, start)]
    for r in returns.T: variance.append(omega + (alpha + gamma*(r < 0))*r**2 + beta*variance[-1])
    np.testing.assert_allclose(garch_variance(returns, **parameters, start=start), np.stack(variance, axis=-1), rtol=1e-12)


@quick
@given(garch_parameters(), seeds, scales)
def test_variance_scales_with_the_square_of_the_unit(parameters, seed, c):
    returns, start = draw_returns(seed), unconditional_variance(**parameters)
    rescaled = {**parameters, "omega": c**2*parameters["omega"]}
    np.testing.assert_allclose(garch_variance(c*returns, **rescaled, start=c**2*start), c**2*garch_variance(returns, **parameters, start=start), rtol=1e-11)
    np.testing.assert_allclose(ewma_variance(c*returns), c**2*ewma_variance(returns), rtol=1e-11)


@quick
@given(garch_parameters(), seeds, st.integers(0, 39), scales)
def test_the_past_does_not_notice_the_future(parameters, seed, t, c):
    returns = draw_returns(seed)
    changed = returns.copy()
    changed[:, t:] *= -c
    for run in (ewma_variance, lambda r: ewma_variance(r, start=1e-4), lambda r: garch_variance(r, **parameters, start=1e-4)):
        np.testing.assert_array_equal(run(changed)[:, :t+1], run(returns)[:, :t+1])


@quick
@given(garch_parameters(), st.floats(1e-8, 1e-2), st.integers(1, 60))
def test_horizon_variance_is_the_sum_of_expected_variances(parameters, following, horizon):
    omega, alpha, beta, gamma = parameters.values()
    expected, step = 0., following
    for _ in range(horizon):
        expected += step
        step = omega + (alpha + beta + gamma/2)*step
    np.testing.assert_allclose(garch_horizon_variance(following, **parameters, horizon=horizon), expected, rtol=1e-9)


@quick
@given(seeds, st.floats(1e-4, 0.3), st.integers(1, 20), st.floats(0, 0.9), st.booleans())
def test_simulated_bars_are_valid_and_hit_their_returns(seed, level, n_steps, overnight, many):
    rng = np.random.default_rng(seed)
    path = simulate_garch(30, rng, 2 if many else None, omega=level**2*0.02, dof=4)
    bars = simulate_bars(path.sigma, n_steps, rng, path.returns, overnight) # runs check_bars on what it made
    close = bars["close"].to_numpy().reshape(path.sigma.shape)
    np.testing.assert_allclose(np.diff(np.log(close)), path.returns[..., 1:], atol=1e-10)


@pytest.mark.parametrize("simulate", [simulate_garch, simulate_log_sv, simulate_regimes, simulate_jumps])
@pytest.mark.parametrize("n_assets", [None, 1, 4])
@pytest.mark.parametrize("dof", [None, 3.])
def test_simulators_repeat_bit_for_bit(simulate, n_assets, dof):
    first, second = (simulate(50, np.random.default_rng(5), n_assets, dof=dof) for _ in range(2))
    assert first.returns.shape == first.sigma.shape == ((50,) if n_assets is None else (n_assets, 50))
    assert first.returns.tobytes() == second.returns.tobytes() and first.sigma.tobytes() == second.sigma.tobytes()
    assert (first.sigma > 0).all()


@pytest.mark.parametrize("wrong", [
    lambda rng: simulate_garch(0, rng),
    lambda rng: simulate_garch(10, rng, alpha=0.5, beta=0.5),
    lambda rng: simulate_garch(10, rng, dof=2.),
    lambda rng: simulate_log_sv(10, rng, persistence=1.),
    lambda rng: simulate_regimes(10, rng, stay=(0.9, 1.)),
    lambda rng: simulate_regimes(10, rng, sigmas=(0.01,), stay=(0.9,)),
    lambda rng: simulate_jumps(10, rng, jump_rate=-0.1),
    lambda rng: simulate_bars(np.array([0.01, np.nan]), 10, rng),
    lambda rng: simulate_bars(np.full(5, 0.01), 10, rng, returns=np.zeros(4)),
    lambda rng: simulate_bars(np.full(5, 0.01), 10, rng, overnight=1.),
    lambda rng: ewma_variance([]),
    lambda rng: ewma_variance([0.01, np.inf]),
    lambda rng: garch_variance([0.01], 1e-6, -0.1, 0.9, start=1e-4),
    lambda rng: garch_variance([0.01], 1e-6, 0.05, 0.9, -0.1, start=1e-4),
    lambda rng: garch_variance([0.01], np.nan, 0.05, 0.9, start=1e-4),
    lambda rng: garch_horizon_variance(1e-4, 1e-6, 0.05, 0.9, 0., 0),
])
def test_wrong_input_is_one_typed_error(wrong):
    with pytest.raises(MetavolError): wrong(np.random.default_rng(0))
