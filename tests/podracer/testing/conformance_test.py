import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import testing, types


def test_random_action_obeys_mask_and_bounds():
  spec = types.EnvironmentSpec("masked", {}, types.DiscreteActions(4))
  observation = {types.ACTION_MASK: jnp.asarray([False, True, False, True])}
  keys = jax.random.split(jax.random.key(0), 64)
  actions = jax.vmap(lambda k: testing.random_action(k, spec, observation))(keys)
  assert set(np.asarray(actions).tolist()) == {1, 3}
  bounds = types.ContinuousActions(minimum=(2.0, -np.inf), maximum=(3.0, np.inf))
  spec = spec._replace(action=bounds)
  actions = jax.vmap(lambda k: testing.random_action(k, spec, ()))(keys)
  assert np.all((actions[:, 0] >= 2.0) & (actions[:, 0] <= 3.0))
  assert np.all(np.isfinite(actions))


def _broken(step=None, reset=None, spec=None, **fields):
  made = testing.chain_environment()
  base_step, base_reset = made.step, made.reset
  if step is not None:
    fields["step"] = lambda k, s, a: step(*base_step(k, s, a), s)
  if reset is not None:
    fields["reset"] = lambda k: reset(*base_reset(k))
  if spec is not None:
    fields["spec"] = spec(made.spec)
  return made._replace(**fields)


_STEPS_TAKEN = []


def _count_steps(state, outcome, _):
  _STEPS_TAKEN.append(1)
  return state, outcome._replace(reward=outcome.reward + float(len(_STEPS_TAKEN)))


BROKEN = {
  "dtype of the observation": (
    lambda: _broken(spec=lambda s: s._replace(observation=s.observation._replace(dtype="int32"))),
    "observation is float32, not int32",
  ),
  "shape of the observation": (
    lambda: _broken(spec=lambda s: s._replace(observation=s.observation._replace(shape=(9,)))),
    r"observation has shape \(4,\), not \(9,\)",
  ),
  "structure of the observation": (
    lambda: _broken(spec=lambda s: s._replace(observation={"x": s.observation})),
    "but its spec a",
  ),
  "spec of the observation": (
    lambda: _broken(spec=lambda s: s._replace(observation=(4,))),
    "must be a tree of types.ArraySpec",
  ),
  "spec of the action": (
    lambda: _broken(spec=lambda s: s._replace(action=4)),
    "spec.action must be DiscreteActions or ContinuousActions",
  ),
  "bounds": (
    lambda: _broken(spec=lambda s: s._replace(observation=s.observation._replace(maximum=0.5))),
    "observation is 1.0, above 0.5",
  ),
  "not finite": (
    lambda: _broken(step=lambda s, o, _: (s, o._replace(reward=o.reward / 0.0))),
    "reward is not finite",
  ),
  "dtype of the state": (
    lambda: _broken(step=lambda s, o, _: ((s[0], s[1].astype(jnp.float32)), o)),
    "cannot be scanned",
  ),
  "hidden state": (lambda: _broken(step=_count_steps), "gives another course"),
  "picture": (
    lambda: _broken(render=lambda state: np.zeros((4, 4), np.uint8)),
    r"render\(\) returned shape \(4, 4\)",
  ),
  "odd picture": (
    lambda: _broken(render=lambda state: np.zeros((3, 4, 3), np.uint8)),
    "a video needs even sizes",
  ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_check_finds_what_is_broken(what):
  make, message = BROKEN[what]
  with pytest.raises(AssertionError, match=message):
    testing.check_environment(make(), num_steps=6)


def test_check_finds_a_mask_without_an_action():
  made = testing.chain_environment()

  def masked(observation):
    return {"x": observation, types.ACTION_MASK: jnp.zeros(2, bool)}

  def step(key, state, action):
    state, outcome = made.step(key, state, action)
    return state, outcome._replace(observation=masked(outcome.observation))

  def reset(key):
    state, observation = made.reset(key)
    return state, masked(observation)

  mask_spec = types.ArraySpec((2,), jnp.dtype(bool))
  spec = made.spec._replace(observation={"x": made.spec.observation, types.ACTION_MASK: mask_spec})
  with pytest.raises(AssertionError, match="allows no action although the episode goes on"):
    testing.check_environment(made._replace(spec=spec, step=step, reset=reset), num_steps=4)
