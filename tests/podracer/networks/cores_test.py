import jax
import jax.numpy as jnp
import numpy as np

from podracer.networks import cores

T, B, F, H = 6, 3, 5, 4


def build():
  core = cores.LSTM(H)
  inputs = jax.random.normal(jax.random.key(0), (T, B, F))
  state = cores.initial_state(H, B)
  params = core.init(jax.random.key(1), inputs[0], jnp.zeros(B, bool), state)
  return core, params, inputs, state


def test_unroll_equals_steps_with_resets():
  core, params, inputs, _ = build()
  is_first = jnp.zeros((T, B), bool).at[2, 0].set(True).at[0, 1].set(True).at[T - 1, 2].set(True)
  start = (jnp.ones((B, H)), jnp.full((B, H), -0.5))
  unrolled, last = jax.jit(lambda *xs: core.apply(params, *xs, method="unroll"))(
    inputs, is_first, start
  )
  state = start
  for t in range(T):
    output, state = core.apply(params, inputs[t], is_first[t], state, method="step")
    np.testing.assert_allclose(unrolled[t], output, rtol=1e-5, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last, state)


def test_a_reset_forgets_what_came_before():
  core, params, inputs, state = build()
  is_first = jnp.zeros((T, B), bool).at[3].set(True)
  whole, _ = core.apply(params, inputs, is_first, (state[0] + 2.0, state[1] - 1.0), method="unroll")
  rest, _ = core.apply(params, inputs[3:], is_first[3:], state, method="unroll")
  np.testing.assert_allclose(whole[3:], rest, rtol=1e-5, atol=1e-6)


def test_one_step_by_hand():
  core, params, inputs, state = build()
  kernel = params["params"]["input_gates"]["kernel"]
  gates = np.split(np.asarray(inputs[0] @ kernel), 4, axis=-1)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  cell = sigmoid(gates[0]) * np.tanh(gates[2])
  output, (hidden, new_cell) = core.apply(params, inputs[0], jnp.zeros(B, bool), state)
  np.testing.assert_allclose(new_cell, cell, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(output, sigmoid(gates[3]) * np.tanh(cell), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(output, hidden)
