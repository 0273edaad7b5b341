"""Recurrent cores: an LSTM whose state is reset where an episode begins."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from podracer import types

from . import initializers

LSTMState = tuple[types.Array, types.Array]


class LSTM(nn.Module):
  """Long short-term memory; see Hochreiter & Schmidhuber (1997) and, for gates, Graves (2013), eq. 7-11.

  Without peepholes. The forget gate starts with bias 1; see Jozefowicz et al. (2015), section 5.

  Attributes:
    size: H, the width of hidden state, cell and outputs.
  """

  size: int

  def setup(self) -> None:
    """Makes the parameters."""
    self.input_gates = nn.Dense(4 * self.size, use_bias=False)
    self.recurrent_kernel = self.param(
      "recurrent_kernel", initializers.scaled(1.0), (self.size, 4 * self.size)
    )
    self.bias = self.param("bias", nn.initializers.zeros_init(), (4 * self.size,))

  def __call__(
    self, inputs: types.Array, is_first: types.Array, state: LSTMState
  ) -> tuple[types.Array, LSTMState]:
    """Does what `step` does."""
    return self.step(inputs, is_first, state)

  def step(
    self, inputs: types.Array, is_first: types.Array, state: LSTMState
  ) -> tuple[types.Array, LSTMState]:
    """Takes one step.

    Args:
      inputs: `[B, F]`.
      is_first: `[B]` bool, True where the state is reset to zeros before the step.
      state: `[B, H]` hidden state and `[B, H]` cell.

    Returns:
      `[B, H]` outputs and the new state.
    """
    chex.assert_rank([inputs, is_first], [2, 1])
    state = _advance(self.recurrent_kernel, self.bias, self.input_gates(inputs), is_first, state)
    return state[0], state

  def unroll(
    self, inputs: types.Array, is_first: types.Array, state: LSTMState
  ) -> tuple[types.Array, LSTMState]:
    """Takes T steps; the product of inputs and kernel is one matrix product outside of the loop.

    Args:
      inputs: `[T, B, F]`.
      is_first: `[T, B]` bool, True where the state is reset to zeros before the step.
      state: `[B, H]` hidden state and `[B, H]` cell.

    Returns:
      `[T, B, H]` outputs and the state after the last step.
    """
    chex.assert_rank([inputs, is_first], [3, 2])
    chex.assert_equal_shape_prefix([inputs, is_first], 2)
    kernel, bias = self.recurrent_kernel, self.bias

    def body(
      carry: LSTMState, xs: tuple[types.Array, types.Array]
    ) -> tuple[LSTMState, types.Array]:
      carry = _advance(kernel, bias, xs[0], xs[1], carry)
      return carry, carry[0]

    state, outputs = jax.lax.scan(body, state, (self.input_gates(inputs), is_first))
    return outputs, state


def initial_state(size: int, batch_size: int) -> LSTMState:
  """Returns the hidden state and the cell of an LSTM of width `size`: zeros, `[B, size]` each."""
  return jnp.zeros((batch_size, size)), jnp.zeros((batch_size, size))


def _advance(
  recurrent_kernel: types.Array,
  bias: types.Array,
  gates: types.Array,
  is_first: types.Array,
  state: LSTMState,
) -> LSTMState:
  """Returns the next state from `[B, 4H]` gates of the inputs."""
  hidden, cell = (jnp.where(is_first[:, None], 0.0, x) for x in state)
  gates = gates + hidden @ recurrent_kernel + bias
  in_gate, forget_gate, candidate, out_gate = jnp.split(gates, 4, axis=-1)
  cell = jax.nn.sigmoid(forget_gate + 1.0) * cell + jax.nn.sigmoid(in_gate) * jnp.tanh(candidate)
  return jax.nn.sigmoid(out_gate) * jnp.tanh(cell), cell
