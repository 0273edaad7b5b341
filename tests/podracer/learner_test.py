import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import config, learner, types

KEY = jax.random.key(0)


def linear_agent(**keywords):
  """Loss: mean over T * B of params * reward; its gradient is the mean reward."""

  def loss(params, target_params, key, trajectory):
    del key
    reward = trajectory.timesteps.reward[1:]
    value = jnp.mean(params["w"] * reward)
    return value, agent_lib.LossInfo(
      metrics={"loss/target": target_params["w"], "loss/reward": jnp.mean(reward)},
      statistics=jnp.mean(reward),
    )

  return agent_lib.Agent(
    init=lambda key: {"w": jnp.asarray(1.0)},
    initial_state=lambda batch_size: (),
    act=lambda *_: None,
    loss=loss,
    **keywords,
  )


def trajectory(rewards):
  """Returns a trajectory of T = 1 whose arriving rewards `[B]` are given."""
  reward = jnp.stack([jnp.zeros(len(rewards)), jnp.asarray(rewards, jnp.float32)])
  zeros = jnp.zeros_like(reward)
  timesteps = types.TimeStep(zeros.astype(jnp.int8), reward, zeros + 1, zeros)
  outputs = types.ActorOutput(*[zeros[:1]] * 4)
  return types.Trajectory(timesteps, outputs, ())


def sgd(**keywords):
  values = {"learning_rate": 0.1, "optimizer": "sgd", "max_gradient_norm": 0.0, **keywords}
  return config.LearnerConfig(**values)


def test_one_step_of_sgd():
  made = learner.make_learner(linear_agent(), sgd())
  state, sums = made.update(made.init(KEY), KEY, trajectory([1.0, 3.0]))
  np.testing.assert_allclose(state.params["w"], 1.0 - 0.1 * 2.0)
  assert state.num_updates == 1 and state.num_refused == 0
  metrics = learner.mean_metrics(jax.device_get(sums))
  assert metrics["loss/total"] == 2.0 and metrics["gradient_norm"] == 2.0
  assert learner.REFUSED not in metrics


def test_gradients_are_clipped_by_global_norm():
  made = learner.make_learner(linear_agent(), sgd(max_gradient_norm=0.5))
  state, sums = made.update(made.init(KEY), KEY, trajectory([2.0]))
  np.testing.assert_allclose(state.params["w"], 1.0 - 0.1 * 0.5, rtol=1e-6)
  assert sums["gradient_norm"] == 2.0


def test_minibatches_and_epochs_see_every_environment():
  made = learner.make_learner(linear_agent(), sgd(num_minibatches=2, num_epochs=3))
  state, sums = made.update(made.init(KEY), KEY, trajectory([1.0, 3.0, 5.0, 7.0]))
  # Each epoch's minibatch gradients sum to 2 * 4 whatever the shuffle.
  np.testing.assert_allclose(state.params["w"], 1.0 - 0.1 * 3 * 8.0, rtol=1e-6)
  assert state.num_updates == 1 and sums[learner.GRADIENT_STEPS] == 6
  assert learner.mean_metrics(jax.device_get(sums))["loss/reward"] == 4.0


def test_a_minibatch_must_be_whole():
  made = learner.make_learner(linear_agent(), sgd(num_minibatches=3))
  with pytest.raises(config.InputError, match="num_minibatches=3 does not divide the 4"):
    made.update(made.init(KEY), KEY, trajectory([1.0] * 4))


def test_periodic_target():
  made = learner.make_learner(linear_agent(), sgd(target_update="periodic", target_update_period=2))
  state, seen = made.init(KEY), []
  for _ in range(4):
    state, sums = made.update(state, KEY, trajectory([1.0]))
    seen.append(float(sums["loss/target"]))
  np.testing.assert_allclose(seen, [1.0, 1.0, 0.8, 0.8], rtol=1e-6)


def test_polyak_target():
  made = learner.make_learner(linear_agent(), sgd(target_update="polyak", target_update_rate=0.25))
  state, _ = made.update(made.init(KEY), KEY, trajectory([1.0]))
  np.testing.assert_allclose(state.target_params["w"], 0.75 * 1.0 + 0.25 * 0.9, rtol=1e-6)


def test_without_a_target_the_parameters_themselves_are_given():
  made = learner.make_learner(linear_agent(), sgd())
  state, _ = made.update(made.init(KEY), KEY, trajectory([1.0]))
  _, sums = made.update(state, KEY, trajectory([1.0]))
  np.testing.assert_allclose(sums["loss/target"], 0.9, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_a_non_finite_update_is_refused_and_named(optimizer):
  made = learner.make_learner(linear_agent(), sgd(optimizer=optimizer))
  good, _ = made.update(made.init(KEY), KEY, trajectory([1.0]))
  state, sums = jax.jit(made.update)(good, KEY, trajectory([jnp.nan]))
  for old, new in zip(
    jax.tree.leaves((good.params, good.optimizer_state)),
    jax.tree.leaves((state.params, state.optimizer_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(old, new)
  assert state.num_refused == 1 and state.num_updates == 2
  metrics = learner.mean_metrics(jax.device_get(sums))
  assert metrics[learner.REFUSED] == 1
  assert "loss/reward (1 times)" in learner.refusal_reason(metrics)
  assert "loss/target" not in learner.refusal_reason(metrics)
  state, _ = made.update(state, KEY, trajectory([1.0]))
  assert state.num_refused == 0 and np.isfinite(state.params["w"])


def test_refused_updates_do_not_enter_the_means():
  made = learner.make_learner(linear_agent(), sgd(learning_rate=1e-9))
  state, total = made.init(KEY), None
  for reward in (2.0, jnp.inf, 4.0):
    state, sums = made.update(state, KEY, trajectory([reward]))
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  metrics = learner.mean_metrics(jax.device_get(total))
  np.testing.assert_allclose(metrics["loss/reward"], 3.0)


def test_statistics_are_applied_after_the_gradient_step():
  agent = linear_agent(update_statistics=lambda params, mean: {"w": params["w"] + 10 * mean})
  made = learner.make_learner(agent, sgd())
  state, _ = made.update(made.init(KEY), KEY, trajectory([1.0, 3.0]))
  np.testing.assert_allclose(state.params["w"], 1.0 - 0.1 * 2 + 10 * 2, rtol=1e-6)


def test_a_linear_schedule_ends_at_zero():
  made = learner.make_learner(linear_agent(), sgd(learning_rate_schedule="linear"), num_updates=2)
  state, values = made.init(KEY), []
  for _ in range(3):
    state, _ = made.update(state, KEY, trajectory([1.0]))
    values.append(float(state.params["w"]))
  np.testing.assert_allclose(values, [0.9, 0.85, 0.85], rtol=1e-6)


def frozen_agent():
  """The linear agent whose loss also has a factor that no gradient reaches, and which counts steps."""

  def loss(params, target_params, key, trajectory):
    value, info = linear_agent().loss(params, target_params, key, trajectory)
    metrics = {**info.metrics, "loss/target_factor": target_params["factor"]["w"]}
    return params["factor"]["w"] * value, info._replace(metrics=metrics)

  return linear_agent(
    update_statistics=lambda params, mean: {**params, "count": params["count"] + 1},
    frozen=("factor", "count"),
  )._replace(
    init=lambda key: {
      "w": jnp.asarray(1.0),
      "factor": {"w": jnp.asarray(3.0)},
      "count": jnp.zeros((), jnp.int32),
    },
    loss=loss,
  )


@pytest.mark.parametrize("target_update", ["none", "periodic", "polyak"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_gradient_reaches_what_is_frozen(target_update, optimizer):
  options = {"target_update": target_update, "target_update_period": 1, "optimizer": optimizer}
  made = learner.make_learner(frozen_agent(), sgd(**options))
  start = made.init(KEY)
  state, sums = jax.jit(made.update)(start, KEY, trajectory([2.0]))
  assert state.params["factor"]["w"] == 3.0 and state.params["count"] == 1
  assert sums["loss/target_factor"] == 3.0 and sums["gradient_norm"] == 6.0
  if optimizer == "sgd":
    np.testing.assert_allclose(state.params["w"], 1.0 - 0.1 * 3.0 * 2.0, rtol=1e-6)
  # Two moments of one number, and counts.
  assert sum(x.size for x in jax.tree.leaves(start.optimizer_state)) <= 4
  if target_update == "none":
    assert state.target_params is None
  else:
    assert set(state.target_params) == {"w"}


def test_a_refused_step_counts_nothing_of_what_is_frozen():
  made = learner.make_learner(frozen_agent(), sgd())
  state, _ = jax.jit(made.update)(made.init(KEY), KEY, trajectory([jnp.nan]))
  assert state.params["count"] == 0 and state.num_refused == 1
