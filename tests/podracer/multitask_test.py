"""Several tasks as one environment: each of them is, bit for bit, what it is by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config, environment, host_environment, multitask, testing, types

# Kinds of episodes of different lengths, that end and that are cut, so that resets come at any step.
LONG = testing.chain_environment(((1, "terminate"), (4, "truncate"), (2, "both")))
SHORT = testing.chain_environment(((1, "truncate"), (3, "terminate")), num_actions=3)
NUM_STEPS = 12


def named(made, name):
  return made._replace(spec=made.spec._replace(name=name))


def masked(made, name="masked"):
  """The environment with an action mask that allows action 0 only, and at LAST none."""
  shape = (made.spec.action.num_actions,)

  def observe(observation, is_over):
    mask = jnp.zeros(shape, bool).at[0].set(~is_over)
    return {"seen": observation, types.ACTION_MASK: mask}

  def reset(key):
    state, observation = made.reset(key)
    return state, observe(observation, jnp.asarray(False))

  def step(key, state, action):
    state, outcome = made.step(key, state, action)
    is_over = outcome.terminated | outcome.truncated
    return state, outcome._replace(observation=observe(outcome.observation, is_over))

  observation = {
    "seen": made.spec.observation,
    types.ACTION_MASK: types.ArraySpec(shape, np.dtype("bool")),
  }
  spec = made.spec._replace(name=name, observation=observation)
  return made._replace(spec=spec, reset=reset, step=step)


NOISY = named(testing.probe_observation(), "noisy")
TASKS = (named(LONG, "long"), named(SHORT, "short"), masked(NOISY), named(LONG, "long"))
WHOLE = multitask.make(TASKS, "whole")


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def course(made, keys, actions):
  """Time steps `[T+1, B]` of an environment whose actions are given."""
  state, first = environment.reset(made, keys)
  _, rest = jax.lax.scan(lambda s, a: environment.step(made, s, a), state, actions)
  return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)


def rows(timesteps, task, size):
  return jax.tree.map(lambda x: x[:, task * size : (task + 1) * size], timesteps)


@pytest.mark.parametrize("reset_chunk", [0, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_each_task_is_what_it_is_by_itself(size, reset_chunk):
  tasks = [made._replace(reset_chunk=reset_chunk) for made in TASKS]
  whole = multitask.make(tasks, "whole")
  keys = jax.random.split(jax.random.key(0), size * len(tasks))
  actions = jnp.zeros((NUM_STEPS, size * len(tasks)), jnp.int32)
  together = jax.jit(lambda: course(whole, keys, actions))()
  seen = set()
  for i, made in enumerate(tasks):
    share = slice(i * size, (i + 1) * size)
    own = rows(together, i, size)
    alone = jax.jit(lambda m=made, s=share: course(m, keys[s], actions[:, s]))()
    assert_equal(multitask.task_timestep(whole.spec, own, i), alone)
    assert np.all(own.observation["task_id"] == i)
    seen |= set(np.asarray(alone.step_type).ravel().tolist())
  assert seen == {types.FIRST, types.MID, types.LAST}


def test_the_spec_of_the_whole():
  spec = WHOLE.spec
  assert spec.num_tasks == 4 and spec.tasks == tuple(made.spec for made in TASKS)
  assert spec.action == types.DiscreteActions(3)
  assert set(spec.observation) == {
    "task_id",
    "action_mask",
    "observation_0",
    "observation_1",
    "observation_2",
  }
  assert spec.observation["task_id"] == types.ArraySpec((), np.dtype("int32"), 0.0, 3.0)
  assert spec.observation["action_mask"].shape == (3,)
  # Both `long`, `short`, and `masked` without its mask.
  assert spec.observation["observation_0"].shape == (5,)
  assert spec.observation["observation_1"].shape == (4,)
  assert set(spec.observation["observation_2"]) == {"seen"}
  assert multitask.task_names(spec) == ("long#1", "short", "masked", "long#2")
  assert multitask.task_names(LONG.spec) == ()


def test_entries_of_other_tasks_are_zeros_and_masks_are_widened():
  keys = jax.random.split(jax.random.key(1), 8)
  _, timestep = environment.reset(WHOLE, keys)
  observation = types.to_numpy(timestep.observation)
  np.testing.assert_array_equal(observation["task_id"], [0, 0, 1, 1, 2, 2, 3, 3])
  two, three, one = [True, True, False], [True] * 3, [True, False, False]
  expected = [two, two, three, three, one, one, two, two]
  np.testing.assert_array_equal(observation["action_mask"], expected)
  start = np.eye(5)[0]
  zeros = np.zeros((2, 5))
  np.testing.assert_array_equal(
    observation["observation_0"], np.concatenate([[start] * 2, zeros, zeros, [start] * 2])
  )
  np.testing.assert_array_equal(observation["observation_1"][[0, 1, 4, 5, 6, 7]], 0.0)
  np.testing.assert_array_equal(np.abs(observation["observation_2"]["seen"][4:6]), 1.0)


def test_there_is_no_mask_where_all_tasks_have_the_same_actions():
  whole = multitask.make((LONG, NOISY), "whole")
  assert types.ACTION_MASK not in whole.spec.observation


def test_bounds_hold_the_zeros_of_other_tasks():
  def spec(shape, minimum, maximum):
    observation = types.ArraySpec(shape, np.dtype("int32"), minimum, maximum)
    return types.EnvironmentSpec("a", observation, types.DiscreteActions(2))

  whole = multitask.make_spec([spec((), 1, 3), spec((), 2, 5), spec((2,), None, -4)], "whole")
  assert whole.observation["observation_0"][2:] == (0, 5)
  assert whole.observation["observation_1"][2:] == (None, 0)
  same = multitask.make_spec([spec((), 1, 3), spec((), 2, 5)], "whole")
  assert same.observation["observation_0"][2:] == (1, 5)


def test_a_time_step_of_one_task_is_left_as_it_is():
  _, timestep = environment.reset(LONG, jax.random.split(jax.random.key(0), 2))
  assert multitask.task_timestep(LONG.spec, timestep, 0) is timestep


@pytest.mark.slow
def test_it_keeps_the_contract_of_an_environment():
  assert testing.check_environment(WHOLE, num_environments=8, num_steps=NUM_STEPS) > 8


BOX = types.ContinuousActions((-1.0,), (1.0,))


def with_action(action, name, **fields):
  return named(LONG, name)._replace(spec=LONG.spec._replace(name=name, action=action, **fields))


@pytest.mark.parametrize(
  ("tasks", "message"),
  [
    ((LONG,), "environment whole needs two tasks at least, got 1"),
    (
      (with_action(types.DiscreteActions(2), "a"), with_action(BOX, "b")),
      r"must be discrete, or all the same box; a has 2 actions, b has a box of 1 in -1 \.\. 1",
    ),
    (
      (with_action(BOX, "a"), with_action(types.ContinuousActions((-2.0,), (1.0,)), "b")),
      r"a has a box of 1 in -1 \.\. 1, b has a box of 1 in -2 \.\. 1",
    ),
    ((LONG, with_action(LONG.spec.action, "chess", num_players=2)), "whole: chess has two players"),
    ((LONG, WHOLE), "environment whole: whole itself has several tasks"),
  ],
)
def test_what_cannot_be_one_environment_is_refused(tasks, message):
  with pytest.raises(config.InputError, match=message) as caught:
    multitask.make(tasks, "whole")
  assert "\n" not in str(caught.value)


def test_the_same_continuous_actions_are_clipped_for_all():
  made = testing.probe_continuous()
  whole = multitask.make((made, made), "whole")
  assert whole.spec.action == made.spec.action
  state, _ = environment.reset(whole, jax.random.split(jax.random.key(0), 2))
  _, timestep = environment.step(whole, state, jnp.asarray([[9.0], [-9.0]]))
  np.testing.assert_allclose(timestep.reward, [-0.25, -2.25])


def test_a_batch_without_equal_shares_is_refused():
  keys = jax.random.split(jax.random.key(0), 7)
  with pytest.raises(
    config.InputError, match="whole has 4 tasks: a batch of it must be a multiple"
  ):
    environment.reset(WHOLE, keys)
  with pytest.raises(TypeError, match="is reset and stepped in batches"):
    WHOLE.reset(keys[0])


def test_the_evaluation_of_a_task_is_that_of_the_whole():
  other = testing.chain_environment(((4, "terminate"),), rewards=(7.0, 7.0, 7.0, 7.0))
  game = LONG._replace(evaluation=other)
  whole = multitask.make((SHORT, game), "whole")
  state, _ = environment.reset(whole.evaluation, jax.random.split(jax.random.key(0), 2))
  _, timestep = environment.step(whole.evaluation, state, jnp.zeros((2,), jnp.int32))
  assert timestep.reward.tolist() == [1.0, 7.0]
  mixed = multitask.make((SHORT, host_environment.from_jax(game)), "whole")
  for factory, rewards in ((mixed.evaluation, [1.0, 7.0]), (mixed, [1.0, 1.0])):
    host = factory.make([0, 1], host_environment.HostOptions())
    host.reset()
    assert host.step(np.zeros((2,), np.int32)).reward.tolist() == rewards
  assert multitask.make((SHORT, LONG), "whole").evaluation is None


class Closing:
  """A host environment that remembers what it was given and that it was closed."""

  def __init__(self, made, seeds, options, log):
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    self._host = host_environment.JaxHostEnvironment(made, len(seeds), keys=keys)
    self.spec, self.num_environments = made.spec, len(seeds)
    self.seeds, self.options, self.log, self.actions = list(seeds), options, log, []
    self.reset = self._host.reset

  def step(self, action):
    self.actions.append(action)
    return self._host.step(action)

  def render(self):
    return np.zeros((2, 2, 3), np.uint8)

  def close(self):
    self.log.append(self.spec.name)


def host_tasks(log, **fields):
  """Factories of the tasks, and the environments that they made."""
  made_by = []

  def factory(made):
    def make(seeds, options):
      made_by.append(Closing(made, seeds, options, log))
      return made_by[-1]

    return host_environment.HostFactory(made.spec, make, can_render=True, **fields)

  return [factory(made) for made in TASKS], made_by


def test_host_batches_are_the_jax_native_one():
  log = []
  factories, made = host_tasks(log)
  factory = multitask.make([TASKS[0], *factories[1:]], "whole")
  assert factory.spec == WHOLE.spec and not factory.can_be_async and not factory.can_render
  options = host_environment.HostOptions(whole_episodes=True, num_threads=3)
  seeds = list(range(8))
  host = factory.make(seeds, options)
  assert [one.seeds for one in made] == [[2, 3], [4, 5], [6, 7]]
  assert all(one.options == options for one in made)
  keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
  state, expected = environment.reset(WHOLE, keys)
  timestep = host.reset()
  step = jax.jit(lambda s, a: environment.step(WHOLE, s, a))
  for _ in range(NUM_STEPS):
    host_environment.check_timestep(factory.spec, timestep, 8)
    assert_equal(timestep, types.to_numpy(expected))
    # Where the step is a reset the action is no action of any task but `short`.
    action = np.where(timestep.step_type == types.LAST, 2, 0).astype(np.int32)
    timestep = host.step(action)
    state, expected = step(state, action)
  assert {int(a) for one in made for batch in one.actions for a in batch} == {0}
  host.close()
  assert log == ["long", "masked", "short"]


def test_an_action_of_another_task_does_not_reach_a_host_environment():
  factories, made = host_tasks([])
  host = multitask.make(factories, "whole").make([0, 1, 2, 3], host_environment.HostOptions())
  host.reset()
  with pytest.raises(ValueError, match=r"environment long has actions 0 \.\. 1, got 2 \.\. 2"):
    host.step(np.full((4,), 2, np.int32))
  assert made[0].actions == []


def test_host_batches_that_cannot_be_made_are_closed_and_refused():
  log = []
  factories, _ = host_tasks(log)

  def fail(seeds, options):
    raise ZeroDivisionError("the suite's own fault")

  broken = multitask.make([*factories[:2], factories[2]._replace(make=fail)], "whole")
  with pytest.raises(ZeroDivisionError):
    broken.make([0, 1, 2], host_environment.HostOptions())
  assert log == ["short", "long"]
  factory = multitask.make(factories, "whole")
  with pytest.raises(config.InputError, match="a batch of it must be a multiple of 4, got 6"):
    factory.make(range(6), host_environment.HostOptions())
  with pytest.raises(config.InputError, match="can't be run with environment_mode=async"):
    factory.make(range(4), host_environment.HostOptions(batch_size=2))


def test_what_is_known_of_frames():
  assert multitask.make(host_tasks([], frames_per_step=4)[0], "whole").frames_per_step == 4
  four, one = host_tasks([], frames_per_step=4)[0], host_tasks([])[0]
  assert multitask.make([four[0], one[1]], "whole").frames_per_step == 1
  stacked = multitask.make(host_tasks([], frame_stack=4)[0], "whole")
  assert stacked.frame_stack == 1 and all(task.frame_stack == 1 for task in stacked.tasks)


def test_one_task_of_a_host_environment_by_itself_can_be_seen():
  factory = multitask.make(host_tasks([])[0], "whole")
  host = factory.tasks[1].make([5], host_environment.HostOptions(render=True))
  timestep = host.reset()
  assert timestep.observation["task_id"].tolist() == [1]
  assert factory.tasks[1].spec.name == "short" and host.render().shape == (2, 2, 3)
  with pytest.raises(config.InputError, match="render one of them"):
    factory.make([0, 1, 2, 3], host_environment.HostOptions()).render()


def test_a_recording_is_refused():
  multitask.check_recording(WHOLE.spec, 0.0)
  multitask.check_recording(LONG.spec, 0.5)
  with pytest.raises(config.InputError, match="whole has several tasks, which can't be recorded"):
    multitask.check_recording(WHOLE.spec, 0.5)
