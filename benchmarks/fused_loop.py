"""IMPALA on a gymnax environment, written by hand as one fused loop: the limit for Anakin.

No abstraction, nothing of podracer: JAX, gymnax and optax. A shared network of dense layers (behind an
optional 3x3 convolution written as nine shifted slices times a matrix), V-trace, Adam, NEXT_STEP
resets with masking, episode returns, sharded over devices.
"""

from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

P = jax.sharding.PartitionSpec


def make(
  env_name: str,
  *,
  num_environments: int,
  unroll_length: int,
  hidden: tuple[int, ...] = (64, 64),
  channels: int = 0,
  discount: float = 0.99,
  learning_rate: float = 5e-4,
  num_devices: int = 1,
) -> tuple[Any, Callable[[Any, Any], Any]]:
  """Returns a state and `advance(state, num_updates) -> (state, valid steps)`, compiled on first call."""
  env, env_params = gymnax.make(env_name)
  num_actions = env.num_actions
  optimizer = optax.chain(optax.clip_by_global_norm(40.0), optax.adam(learning_rate, eps=1e-5))
  devices = jax.devices()[:num_devices]
  mesh = jax.sharding.Mesh(np.asarray(devices), ("d",))

  def init_params(key):
    obs_shape = jax.eval_shape(lambda k: env.reset_env(k, env_params)[0], key).shape
    keys = jax.random.split(key, len(hidden) + 3)
    orthogonal = jax.nn.initializers.orthogonal
    params = {}
    size = int(np.prod(obs_shape))
    if channels:
      fan_in = 9 * obs_shape[-1]
      params["conv"] = (orthogonal(2**0.5)(keys[-1], (fan_in, channels)), jnp.zeros(channels))
      size = obs_shape[0] * obs_shape[1] * channels
    for i, width in enumerate(hidden):
      params[f"dense{i}"] = (orthogonal(2**0.5)(keys[i], (size, width)), jnp.zeros(width))
      size = width
    params["policy"] = (orthogonal(0.01)(keys[-2], (size, num_actions)), jnp.zeros(num_actions))
    params["value"] = (orthogonal(1.0)(keys[-3], (size, 1)), jnp.zeros(1))
    return params

  def forward(params, obs):
    # [N, ...] -> [N, A], [N]
    x = obs
    if channels:
      h, w = x.shape[1:3]
      padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      slices = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
      kernel, bias = params["conv"]
      x = jax.nn.relu(jnp.concatenate(slices, axis=-1) @ kernel + bias)
    x = x.reshape(x.shape[0], -1)
    for i in range(len(hidden)):
      kernel, bias = params[f"dense{i}"]
      x = jax.nn.relu(x @ kernel + bias)
    # Column by column: XLA's CPU backend is slow at the gradient of a narrow matrix.
    kernel, bias = params["policy"]
    logits = jnp.stack([x @ kernel[:, i] for i in range(num_actions)], axis=-1) + bias
    kernel, bias = params["value"]
    return logits, x @ kernel[:, 0] + bias

  def env_step(key, state, done, action):
    next_key, reset_key = jax.random.split(key)
    obs_r, state_r = env.reset_env(reset_key, env_params)
    obs_s, state_s, reward, terminated, _ = env.step_env(key, state, action, env_params)
    truncated = env.is_truncated(state_s, env_params)
    pick = lambda a, b: jnp.where(done, a, b)  # noqa: E731
    state = jax.tree.map(pick, state_r, state_s)
    over = ~done & (terminated | truncated)
    reward = jnp.where(done, 0.0, reward)
    discount_t = jnp.where(done, 1.0, 1.0 - terminated)
    return pick(next_key, key), state, pick(obs_r, obs_s), reward, discount_t, over

  def loss_fn(params, obs, last_obs, action, mu_log_prob, reward, discount_t, valid):
    t, b = action.shape
    all_obs = jnp.concatenate([obs, last_obs[None]])
    logits, values = forward(params, all_obs.reshape((t + 1) * b, *obs.shape[2:]))
    log_pi = jax.nn.log_softmax(logits.reshape(t + 1, b, -1)[:-1])
    values = values.reshape(t + 1, b)
    log_prob = jnp.take_along_axis(log_pi, action[..., None], -1)[..., 0]
    rho = jax.lax.stop_gradient(jnp.where(valid, jnp.exp(log_prob - mu_log_prob), 0.0))
    v = jax.lax.stop_gradient(values)
    c = jnp.minimum(1.0, rho)
    gamma = discount * discount_t
    delta = c * (reward + gamma * v[1:] - v[:-1])

    def backward(error, x):
      delta_t, gamma_t, c_t = x
      error = delta_t + gamma_t * c_t * error
      return error, error

    _, errors = jax.lax.scan(backward, jnp.zeros(b), (delta, gamma, c), reverse=True)
    targets = errors + v[:-1]
    q = reward + gamma * jnp.concatenate([targets[1:], v[-1:]])
    advantage = c * (q - v[:-1])
    pg = -jnp.mean(jnp.where(valid, log_prob * advantage, 0.0))
    vf = 0.5 * jnp.mean(jnp.where(valid, jnp.square(targets - values[:-1]), 0.0))
    entropy = jnp.mean(jnp.where(valid, -jnp.sum(jnp.exp(log_pi) * log_pi, -1), 0.0))
    return pg + 0.5 * vf - 0.01 * entropy

  def update(carry):
    params, opt_state, key, env_keys, state, obs, done, returns, finished, steps = carry

    def act_step(carry, step_key):
      env_keys, state, obs, done, returns, finished = carry
      logits, _ = forward(params, obs)
      action = jax.random.categorical(step_key, logits)
      log_pi = jax.nn.log_softmax(logits)
      log_prob = jnp.take_along_axis(log_pi, action[:, None], -1)[:, 0]
      env_keys, state, next_obs, reward, discount_t, over = jax.vmap(env_step)(
        env_keys, state, done, action
      )
      returns = jnp.where(done, 0.0, returns + reward)
      finished = finished + jnp.where(over, returns, 0.0)
      out = (obs, action, log_prob, reward, discount_t, ~done)
      return (env_keys, state, next_obs, over, returns, finished), out

    key, act_key = jax.random.split(key[0])
    carry, (all_obs, action, log_prob, reward, discount_t, valid) = jax.lax.scan(
      act_step,
      (env_keys, state, obs, done, returns, finished),
      jax.random.split(act_key, unroll_length),
    )
    env_keys, state, obs, done, returns, finished = carry
    grads = jax.grad(loss_fn)(params, all_obs, obs, action, log_prob, reward, discount_t, valid)
    grads = jax.lax.pmean(grads, "d")
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    steps = steps + jnp.sum(valid, dtype=jnp.int32)
    return params, opt_state, key[None], env_keys, state, obs, done, returns, finished, steps

  def updates(carry, num_updates):
    carry = (*carry, jnp.zeros((), jnp.int32))
    carry = jax.lax.fori_loop(0, num_updates, lambda _, c: update(c), carry)
    return carry[:-1], jax.lax.psum(carry[-1], "d")

  r, s = P(), P("d")
  specs = (r, r, s, s, s, s, s, s, s)

  def init(key):
    params_key, env_key, key = jax.random.split(key, 3)
    env_keys = jax.random.split(env_key, num_environments)
    obs, state = jax.vmap(env.reset_env, in_axes=(0, None))(env_keys, env_params)
    params = init_params(params_key)
    zeros = jnp.zeros(num_environments)
    keys = jax.random.split(key, num_devices)
    done = jnp.zeros(num_environments, bool)
    return params, optimizer.init(params), keys, env_keys, state, obs, done, zeros, zeros + 0

  shardings = tuple(jax.sharding.NamedSharding(mesh, x) for x in specs)
  state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
  advance = jax.jit(
    jax.shard_map(updates, mesh=mesh, in_specs=(specs, r), out_specs=(specs, r), check_vma=False),
    donate_argnums=0,
  )
  return state, advance
