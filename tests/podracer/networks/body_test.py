import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config as config_lib
from podracer import types
from podracer.networks import body

T, B = 7, 3
OBSERVATION = types.ArraySpec((4,), jnp.float32)
DISCRETE, CONTINUOUS = types.DiscreteActions(5), types.ContinuousActions((-1.0, 0.0), (1.0, 2.0))


def build(action_spec=DISCRETE, observation=OBSERVATION, **config):
  config = config_lib.NetworkConfig(hidden_sizes=(6,), **config)
  spec = types.EnvironmentSpec("probe", observation, action_spec)
  network = body.Body(config, spec)
  state = body.initial_state(config, spec, B)
  keys = jax.random.split(jax.random.key(0), 4)
  step_type = jnp.full((T, B), types.MID, jnp.int8).at[0, :2].set(types.FIRST)
  step_type = step_type.at[3, 1].set(types.LAST).at[4, 1].set(types.FIRST)
  step_type = step_type.at[T - 1, 2].set(types.FIRST)
  observations = types.zeros_like(observation, (T, B))
  timesteps = types.TimeStep(
    step_type=step_type,
    reward=3.0 * jax.random.normal(keys[0], (T, B)),
    discount=jnp.ones((T, B)),
    observation=jax.tree.map(lambda x: jax.random.normal(keys[1], x.shape), observations),
  )
  if action_spec is DISCRETE:
    actions = jax.random.randint(keys[2], (T, B), 0, DISCRETE.num_actions)
  else:
    actions = jax.random.normal(keys[2], (T, B, 2))
  first = jax.tree.map(lambda x: x[0], timesteps)
  return config, network, jax.jit(network.init)(keys[3], first, state), state, timesteps, actions


def act(config, network, params, state, timesteps, actions):
  step = jax.jit(network.apply)
  outputs = []
  for t in range(T):
    features, state = step(params, jax.tree.map(lambda x, t=t: x[t], timesteps), state)
    if config.use_previous_action:
      state = state._replace(previous_action=actions[t])
    outputs.append(features)
  return jnp.stack(outputs), state


CONFIGS = {
  "everything": {"lstm_size": 8, "use_previous_action": True, "use_previous_reward": True},
  "lstm": {"lstm_size": 8},
  "feed-forward": {},
  "feed-forward with inputs": {"use_previous_action": True, "use_previous_reward": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("action_spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_acting_step_by_step_equals_the_unroll(name, action_spec):
  config, network, params, state, timesteps, actions = build(action_spec, **CONFIGS[name])
  # A state from within an episode, which only the third environment goes on with.
  state = jax.tree.map(lambda x: x + jnp.ones_like(x), state)
  stepped, _ = act(config, network, params, state, timesteps, actions)
  unrolled = network.apply(params, timesteps, actions[:-1], state, method="unroll")
  assert unrolled.shape == stepped.shape
  np.testing.assert_allclose(unrolled, stepped, rtol=1e-5, atol=1e-6)


def test_nothing_crosses_the_start_of_an_episode():
  config, network, params, state, timesteps, actions = build(**CONFIGS["everything"])
  before, _ = act(config, network, params, state, timesteps, actions)
  changed_state = jax.tree.map(lambda x: x + jnp.ones_like(x), state)
  changed_actions = actions.at[3, 1].set((actions[3, 1] + 1) % 5)
  changed = timesteps._replace(reward=timesteps.reward.at[3, 1].add(9.0))
  after, _ = act(config, network, params, changed_state, changed, changed_actions)
  np.testing.assert_array_equal(before[:, 0], after[:, 0])  # FIRST at 0: the state is of no matter
  np.testing.assert_array_equal(before[4:, 1], after[4:, 1])
  assert not np.allclose(before[0, 2], after[0, 2])  # MID at 0: it goes on


def test_features_hold_previous_action_and_clipped_reward():
  config, network, params, state, timesteps, actions = build(**CONFIGS["feed-forward with inputs"])
  features, _ = act(config, network, params, state, timesteps, actions)
  assert features.shape == (T, B, 6 + 5 + 1)
  np.testing.assert_array_equal(features[0, :2, 6:11], 0.0)
  np.testing.assert_array_equal(features[1, :, 6:11], jax.nn.one_hot(actions[0], 5))
  np.testing.assert_array_equal(features[4, 1, 6:11], 0.0)
  np.testing.assert_array_equal(features[..., 11], np.clip(timesteps.reward, -1, 1))


def test_a_feed_forward_body_has_no_state():
  _, network, params, state, timesteps, _ = build()
  assert state == body.BodyState((), ())
  assert not jax.tree.leaves(state)
  _, new_state = network.apply(params, jax.tree.map(lambda x: x[0], timesteps), state)
  assert new_state == state


def test_dict_observations():
  observation = {
    "image": types.ArraySpec((5, 5, 2), jnp.float32),
    "action_mask": types.ArraySpec((5,), jnp.float32),
    "vector": OBSERVATION,
  }
  config, network, params, state, timesteps, actions = build(
    observation=observation, **CONFIGS["everything"]
  )
  stepped, _ = act(config, network, params, state, timesteps, actions)
  unrolled = network.apply(params, timesteps, actions[:-1], state, method="unroll")
  np.testing.assert_allclose(unrolled, stepped, rtol=1e-5, atol=1e-6)


def test_too_many_actions_are_refused():
  _, network, params, state, timesteps, actions = build(**CONFIGS["everything"])
  with pytest.raises(AssertionError):
    network.apply(params, timesteps, actions, state, method="unroll")
