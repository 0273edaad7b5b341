"""A real actor thread against a fake learner."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import host_environment, testing, types
from podracer.agents.impala import losses
from podracer.sebulba import actor as actor_lib
from podracer.sebulba import channel, clock, inference, parameters, stop

LENGTH, BATCH = 4, 3
GAMMA = 0.5
VALUES = (10.0, 20.0, 30.0, 40.0)
# As in the test of Anakin's rollout: by the place in the cycle s0 s1 s2 s3(LAST) s0 ... at which an
# unroll begins. An unroll of 4 steps of a cycle of 4 begins at the same place each time, so these are
# reached by other lengths of the unroll before.
BY_HAND = {
  ("terminate", 0): (2.75, 3.5, 3.0, None),
  ("terminate", 1): (3.5, 3.0, None, 11.0),
  ("terminate", 2): (3.0, None, 9.5, 17.0),
  ("terminate", 3): (None, 2.75, 3.5, 3.0),
  ("truncate", 0): (7.75, 13.5, 23.0, None),
  ("truncate", 1): (13.5, 23.0, None, 11.0),
  ("truncate", 2): (23.0, None, 9.5, 17.0),
  ("truncate", 3): (None, 7.75, 13.5, 23.0),
}


class Rig:
  """One actor thread and what it is connected with."""

  def __init__(self, agent, made, spec, learners=None, refresh=None, capacity=1, batch=BATCH):
    device = jax.devices()[0]
    learners = learners or [device]
    self.stop = stop.Stop()
    self.channel = channel.Channel(1, capacity, self.stop)
    self.store = parameters.ParameterStore([device], 1, self.stop)
    self.clock = clock.StageClock("actor 0", "its environments")
    self.programs = inference.make_programs(agent, spec, batch, LENGTH, len(learners))
    self.collector = actor_lib.SyncCollector(
      self.programs, device, made, LENGTH, self.clock, self.stop, refresh and refresh(self.store)
    )
    self.actor = actor_lib.Actor(
      0,
      self.collector,
      device,
      learners,
      self.programs,
      key=jax.device_put(jax.random.key(0), device),
      first_unroll=0,
      take_parameters=lambda unroll: self.store.newest(device),
      channel=self.channel,
      clock=self.clock,
      stop=self.stop,
    )

  def publish(self, number):
    params = {"version": jnp.asarray(float(number))}
    self.store.publish(number, jax.device_put(params, jax.devices()[0]))

  def __enter__(self):
    self.publish(0)
    self.actor.start()
    return self

  def __exit__(self, *_):
    self.stop.request()
    assert self.actor.join(10.0), "the actor did not end"


def test_an_unroll_is_what_the_environment_did(agent, counter):
  with Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec) as rig:
    unrolls = [rig.channel.take() for _ in range(4)]
    trajectories = [jax.device_get(unroll.shards[0]) for unroll in unrolls]
  (made,) = counter.environments
  assert made.closed
  step_types = np.concatenate([t.timesteps.step_type[:-1] for t in trajectories])
  # 5 steps, the reset, 5 steps, the reset ...
  cycle = [0, 1, 1, 1, 1, 2]
  np.testing.assert_array_equal(step_types[:, 0], (cycle * 3)[:16])
  steps = np.concatenate([t.timesteps.observation[:-1, :, 1] for t in trajectories])
  np.testing.assert_array_equal(steps[:, 2], ([0, 1, 2, 3, 4, 5] * 3)[:16])
  actions = np.concatenate([t.actor_outputs.action for t in trajectories])
  np.testing.assert_array_equal(actions, np.stack(made.actions[:16]))
  np.testing.assert_array_equal(actions, steps.astype(int) % 3)
  discounts = np.concatenate([t.timesteps.discount[:-1] for t in trajectories])
  # Even seeds end, odd ones are cut.
  np.testing.assert_array_equal(discounts[5], [0.0, 1.0, 0.0])
  for before, after in itertools.pairwise(trajectories):
    jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(x[-1], y[0]), before.timesteps, after.timesteps
    )
  # Steps 6 and 12 of each environment are resets: in the second unroll and the third.
  assert [unroll.num_steps for unroll in unrolls] == [12, 9, 9, 12]
  # State: steps since the episode began, as the unroll began.
  np.testing.assert_array_equal(
    [t.initial_state for t in trajectories], np.repeat([[0], [4], [2], [6]], 3, axis=1)
  )


def test_episodes_are_counted_once(agent, counter):
  with Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec) as rig:
    totals = [jax.device_get(rig.channel.take().episodes) for _ in range(6)]
  # Rewards 1 .. 5; an episode ends at steps 5, 11, 17, 23: in unrolls 1, 2, 4, 5.
  np.testing.assert_array_equal(totals, [[15.0 * n, 5 * n, n] for n in (0, 3, 3, 0, 3, 3)])


@pytest.mark.parametrize(("end", "offset"), BY_HAND)
def test_targets_by_hand_through_a_thread(end, offset, agent):
  made = testing.chain_environment(((3, end),))

  def act(params, key, timestep, state, explore):
    del key, explore
    batch = timestep.reward.shape[0]
    value = timestep.observation @ jnp.asarray(VALUES)
    zeros = jnp.zeros((batch,))
    action = jnp.zeros((batch,), jnp.int32)
    return types.ActorOutput(action, jnp.zeros((batch, 2)), zeros, value), state

  agent = agent._replace(act=act, initial_state=lambda batch_size: ())

  def make():
    """The chain, `offset` steps after its beginning."""
    host = host_environment.JaxHostEnvironment(made, BATCH)
    timestep = host.reset()
    for _ in range(offset):
      timestep = host.step(np.zeros((BATCH,), np.int32))
    host.reset = lambda: timestep
    return host

  with Rig(agent, make, made.spec) as rig:
    unrolls = [rig.channel.take().shards[0] for _ in range(2)]
    for trajectory in unrolls:
      timesteps = trajectory.timesteps
      values = timesteps.observation @ jnp.asarray(VALUES)
      valid = types.is_valid_transition(timesteps.step_type[:-1])
      trace = jax.vmap(losses.vtrace, in_axes=1, out_axes=1)(
        values,
        timesteps.reward[1:],
        GAMMA * timesteps.discount[1:],
        jnp.zeros((LENGTH, BATCH)),
        valid,
      )
      targets = np.asarray(trace.errors + values[:-1])
      expected = BY_HAND[end, offset]
      np.testing.assert_array_equal(valid, [[x is not None] * BATCH for x in expected])
      for t, target in enumerate(expected):
        if target is None:
          np.testing.assert_array_equal(trace.errors[t], 0.0)
        else:
          np.testing.assert_allclose(targets[t], target, rtol=1e-6)


def test_every_observation_crosses_to_the_device_once(agent, counter, monkeypatch):
  with Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec) as rig:
    rig.channel.take()  # What follows is compiled.
  uploads = []
  programs = rig.programs

  def counted(program, position):
    def call(*args):
      upload = args[position]
      uploads.extend(x for x in jax.tree.leaves(upload) if isinstance(x, np.ndarray))
      return program(*args)

    return call

  rig.collector._programs = programs._replace(
    act=counted(programs.act, 5), finish=counted(programs.finish, 3)
  )
  device_put = jax.device_put

  def counted_put(x, *args, **keywords):
    uploads.extend(leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, np.ndarray))
    return device_put(x, *args, **keywords)

  monkeypatch.setattr(jax, "device_put", counted_put)
  rig.stop = rig.collector._stop = stop.Stop()
  rig.collector.start()
  uploads.clear()
  num_unrolls = 3
  for _ in range(num_unrolls):
    rig.collector.unroll(
      jax.random.split(jax.random.key(0), LENGTH), rig.store.newest(jax.devices()[0])
    )
  # The first time step, and one a step; each as two arrays: its numbers and its observation.
  assert len(uploads) == 2 * (1 + num_unrolls * LENGTH)


def test_storages_are_used_again_once_released(agent, counter):
  with Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec) as rig:
    pointers = []
    for _ in range(8):
      unroll = rig.channel.take()
      pointers.append(unroll.shards[0].timesteps.observation.unsafe_buffer_pointer())
      unroll.release()
  # One in the channel, one being filled, one taken.
  assert len(set(pointers)) <= 3


def test_shares_lie_on_the_learner_devices(agent, counter):
  learners = jax.devices()[1:3]
  seeds = [0, 1, 2, 3]
  rig = Rig(agent, lambda: counter.make(seeds, None), counter.factory.spec, learners, batch=4)
  with rig:
    for _ in range(5):
      unroll = rig.channel.take()
      assert [shard.timesteps.reward.devices() for shard in unroll.shards] == [
        {device} for device in learners
      ]
      # The seed is in the observation: the shares are neighbours, in order.
      for shard, expected in zip(unroll.shards, ([0, 1], [2, 3]), strict=True):
        np.testing.assert_array_equal(shard.timesteps.observation[0, :, 0], expected)
        assert shard.initial_state.shape == (2,)


def test_parameters_are_taken_at_each_unroll_or_at_each_step(agent, counter):
  rig = Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec)
  with rig:
    first = rig.channel.take()
    rig.publish(7)
    later = [rig.channel.take() for _ in range(3)][-1]
    assert (first.version, later.version) == (0, 7)
    np.testing.assert_array_equal(later.shards[0].actor_outputs.value, 7.0)

  numbers = iter(range(100))

  def next_version():
    number = next(numbers)
    return parameters.Version(number, {"version": jnp.asarray(float(number))})

  rig = Rig(
    agent,
    lambda: counter.make([0, 1, 2], None),
    counter.factory.spec,
    refresh=lambda store: next_version,
  )
  with rig:
    unroll = rig.channel.take()
    np.testing.assert_array_equal(unroll.shards[0].actor_outputs.value[:, 0], [0, 1, 2, 3])
    assert unroll.version == 0


def test_a_fault_of_the_environment_ends_the_run_with_it(agent, faulty):
  made, fault = faulty
  rig = Rig(agent, lambda: made.make([0, 1, 2], None), made.factory.spec, capacity=10)
  rig.publish(0)
  rig.actor.start()
  assert rig.actor.join(20.0)
  expected = {
    "raises": (ZeroDivisionError, "the environment's own fault"),
    "nan": (
      ValueError,
      "environment counter returned a reward that is not finite, in environment 0",
    ),
    "shape": (ValueError, r"environment counter returned a observation \[3, 1\]"),
  }[fault]
  with pytest.raises(expected[0], match=expected[1]) as caught:
    raise rig.stop.error
  assert any(entry.name == "step" for entry in caught.traceback)
  assert made.environments[0].closed


def test_an_action_out_of_range_never_reaches_the_environment(agent, counter):
  wrong = agent._replace(
    act=lambda *args: (lambda output, state: (output._replace(action=output.action + 7), state))(
      *agent.act(*args)
    )
  )
  rig = Rig(wrong, lambda: counter.make([0, 1, 2], None), counter.factory.spec)
  rig.publish(0)
  rig.actor.start()
  assert rig.actor.join(20.0)
  assert "has actions 0 .. 2, got 7 .. 7" in str(rig.stop.error)
  assert counter.environments[0].actions == []


def test_ends_with_a_full_channel(agent, counter):
  with Rig(agent, lambda: counter.make([0, 1, 2], None), counter.factory.spec) as rig:
    rig.channel.take()
  assert rig.stop.error is None and counter.environments[0].closed
