"""The Anakin machine: one compiled step over a mesh of devices, and the loop that calls it.

Hessel et al. (2021), section 3.1: environments are batched by `vmap`, acting and learning are one
program, replicated over all devices; the only communication is the mean of the gradients.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import environment as environment_lib
from podracer import episodes, group, learner, multitask, report, sharding, types

from . import config, rollout

AXIS = "devices"
P = jax.sharding.PartitionSpec


class AnakinState(NamedTuple):
  """The whole state of a run: restoring it goes on bit for bit.

  With several seeds every leaf has a leading axis of seeds.

  Attributes:
    learner: the same on every device.
    actor: environments, sharded over the devices.
    key: `[num_devices]`, one key a device, constant: an update draws its own by its number.
  """

  learner: learner.LearnerState
  actor: rollout.ActorState
  key: types.Key


class CallTotals(NamedTuple):
  """What one call of the compiled program sums up, over all devices, and what it recorded.

  With several seeds every leaf has a leading axis of seeds.

  Attributes:
    env_steps: environment steps, resets not counted.
    episodes: those that ended, of several tasks `[num_tasks]`.
    learner: sums of its metrics over updates.
    recorded: `[N, T+1, K, ...]`, of up to N updates the unrolls of K environments, or () where none are
      recorded.
  """

  env_steps: types.Array
  episodes: episodes.EpisodeTotals
  learner: types.Metrics
  recorded: Any = ()


class Anakin:
  """Runs one agent in one JAX-native environment on all devices of a mesh."""

  def __init__(
    self,
    agent: agent_lib.Agent,
    environment: environment_lib.Environment,
    learner_config: config_lib.LearnerConfig,
    machine_config: config.AnakinConfig,
    *,
    num_env_steps: int,
    num_seeds: int = 1,
    devices: Sequence[jax.Device] | None = None,
    record: float = 0.0,
  ):
    """Builds the program; nothing is compiled before the first call.

    Args:
      agent: the agent.
      environment: the environment.
      learner_config: of the learner.
      machine_config: of the machine.
      num_env_steps: of the whole run, over which a learning-rate schedule runs.
      num_seeds: whole runs side by side, as if each had been run alone with `seed + i`.
      devices: all devices of all processes by default.
      record: share of the environments whose unrolls `advance` returns too, in [0, 1].

    Raises:
      config.InputError: if environments, tasks or minibatches can't be shared out over the devices, and
        for a recording of several tasks.
    """
    devices = jax.devices() if devices is None else devices
    self.task_names = multitask.task_names(environment.spec)
    machine_config.check(len(devices), learner_config.num_minibatches, max(1, len(self.task_names)))
    multitask.check_recording(environment.spec, record)
    self.mesh = group.make_mesh(devices, AXIS)
    self.num_seeds = num_seeds
    self.config = machine_config
    self.agent = agent
    self.spec = environment.spec
    self.steps_per_update = machine_config.num_environments * machine_config.unroll_length
    self.max_refused_updates = learner_config.max_refused_updates
    self._environment = environment
    self._learner = learner.make_learner(
      agent,
      learner_config,
      -(-num_env_steps // self.steps_per_update),
      axis_name=AXIS,
      unroll=agent_lib.trajectory_shapes(
        agent,
        environment.spec,
        machine_config.unroll_length,
        machine_config.num_environments // len(devices),
      ),
      num_devices=len(devices),
    )
    self.replay_bytes = num_seeds * self._learner.replay_bytes
    learner.check_memory(self.replay_bytes, devices)
    self.acting_batch_size = num_seeds * machine_config.num_environments // len(devices)
    # Whole shares of a device, at least one environment.
    local = machine_config.num_environments // len(devices)
    self._num_recorded = min(local, max(1, round(record * local))) if record else 0
    self.recorded_slots = tuple(
      (seed * len(devices) + device) * local + i
      for seed in range(num_seeds)
      for device in range(len(devices))
      for i in range(self._num_recorded)
    )
    self._updates_per_call = machine_config.resolved_updates_per_call(num_env_steps)
    seeds = (None,) if num_seeds > 1 else ()
    sharded: Any = P(*seeds, AXIS)
    specs = AnakinState(learner.state_specs(AXIS, *seeds), actor=sharded, key=sharded)
    self._shardings = sharding.on_mesh(self.mesh, specs)
    replicated: Any = P()
    recorded: Any = P(*seeds, None, None, AXIS)
    body = self._updates if num_seeds == 1 else jax.vmap(self._updates, in_axes=(0, None))
    # check_vma=False: see `learner`; V-trace's scan does not trace under True either.
    self._advance = jax.jit(
      jax.shard_map(
        body,
        mesh=self.mesh,
        in_specs=(specs, P()),
        out_specs=(specs, CallTotals(replicated, replicated, replicated, recorded)),
        check_vma=False,
      ),
      donate_argnums=0,
    )
    self._compiled: Any = None
    sharding.check_empty(
      environment.spec.name, len(devices), lambda: jax.eval_shape(self._init, self._seeds(0)).actor
    )

  def init(self, seed: int) -> AnakinState:
    """Returns the state at the beginning of a run, on its devices."""
    return jax.jit(self._init, out_shardings=self._shardings)(self._seeds(seed))

  def abstract_state(self) -> AnakinState:
    """Returns shapes, dtypes and shardings of the state, for a checkpoint to be restored onto."""
    state: AnakinState = sharding.abstract(
      jax.eval_shape(self._init, self._seeds(0)), self._shardings
    )
    return state

  def to_checkpoint(self, state: AnakinState) -> dict[str, Any]:
    """See `sharding.to_checkpoint`."""
    return sharding.to_checkpoint(state)

  def from_checkpoint(self, items: dict[str, Any]) -> AnakinState:
    """Returns the state of which `to_checkpoint` made the items."""
    state: AnakinState = sharding.from_checkpoint(items)
    return state

  def compile(self, state: AnakinState) -> None:
    """Compiles the program ahead of the first call; does nothing the second time."""
    if self._compiled is None:
      self._compiled = self._advance.lower(self._placed(state), np.int32(0)).compile()

  def advance(self, state: AnakinState, num_updates: int) -> tuple[AnakinState, CallTotals]:
    """Does `num_updates` updates in one call of the compiled program.

    Args:
      state: donated.
      num_updates: any number; it is no constant of the program. At most `updates_per_call` where unrolls
        are recorded.

    Returns:
      The state after, and the totals, `[num_seeds]` each where there are several.
    """
    self.compile(state)
    return self._compiled(self._placed(state), np.int32(num_updates))

  def _placed(self, state: AnakinState) -> AnakinState:
    """Returns the state sharded as the program wants it."""
    if self.mesh.size == 1:
      return state
    placed: AnakinState = sharding.place_empty(state, self._shardings)
    return placed

  def _seeds(self, seed: int) -> np.ndarray:
    seeds = np.arange(seed, seed + self.num_seeds, dtype=np.uint32)
    return seeds if self.num_seeds > 1 else seeds[0]

  def _init(self, seeds: types.Array) -> AnakinState:
    return self._init_one(seeds) if self.num_seeds == 1 else jax.vmap(self._init_one)(seeds)

  def _init_one(self, seed: types.Array) -> AnakinState:
    learner_key, actor_key, key = jax.random.split(jax.random.key(seed), 3)
    environment_keys = jax.random.split(actor_key, self.config.num_environments)
    return AnakinState(
      learner=self._learner.init(learner_key),
      actor=self._init_actor(environment_keys),
      key=jax.random.split(key, self.mesh.size),
    )

  def _init_actor(self, keys: types.Key) -> rollout.ActorState:
    start = functools.partial(rollout.initial_state, self.agent, self._environment)
    if not self.task_names:
      return start(keys)
    # Every device has an equal share of each task: [N * D * b] -> [D, N * b].
    num_tasks, num_devices = len(self.task_names), self.mesh.size
    shares = keys.reshape(num_tasks, num_devices, -1).swapaxes(0, 1).reshape(num_devices, -1)
    # [D, b, ...] -> [D * b, ...]
    return jax.tree.map(
      lambda x: x.reshape((x.shape[0] * x.shape[1], *x.shape[2:])), jax.vmap(start)(shares)
    )

  def _update(self, state: AnakinState) -> tuple[AnakinState, types.Array, types.Metrics, Any]:
    """One unroll and one update of one device; also returns what is recorded of the unroll."""
    act_key, learn_key = learner.update_keys(state.key[0], state.learner.num_updates)
    actor, trajectory = rollout.unroll(
      self.agent,
      self._environment,
      state.learner.params,
      act_key,
      state.actor,
      self.config.unroll_length,
    )
    learner_state, metrics = self._learner.update(state.learner, learn_key, trajectory)
    state = AnakinState(learner=learner_state, actor=actor, key=state.key)
    recorded = types.first_environments(trajectory, self._num_recorded)
    return state, rollout.count_valid(trajectory), metrics, recorded

  def _updates(
    self, state: AnakinState, num_updates: types.Array
  ) -> tuple[AnakinState, CallTotals]:
    """`num_updates` updates of one device."""
    _, steps, metrics, unroll = jax.eval_shape(self._update, state)
    zeros = types.zeros_like((steps, metrics))
    room = types.zeros_like(unroll, (self._updates_per_call,))

    def body(i: types.Array, carry: Any) -> Any:
      state, sums, recorded = carry
      state, steps, metrics, unroll = self._update(state)
      recorded = jax.tree.map(lambda all, one: all.at[i].set(one), recorded, unroll)
      return state, jax.tree.map(jnp.add, sums, (steps, metrics)), recorded

    state, (steps, metrics), recorded = jax.lax.fori_loop(
      0, num_updates, body, (state, zeros, room)
    )
    tracker, totals = episodes.drain(state.actor.episodes, len(self.task_names))
    state = state._replace(actor=state.actor._replace(episodes=tracker))
    # The learner's metrics are already the same on every device.
    steps, totals = jax.lax.psum((steps, totals), AXIS)
    return state, CallTotals(steps, totals, metrics, recorded)

  def recorded_unroll(self, totals: CallTotals, num_updates: int) -> types.Trajectory:
    """Returns what a call recorded as one unroll.

    Args:
      totals: of the call, on the host.
      num_updates: of the call.

    Returns:
      `[num_updates * T + 1, S * K, ...]`: of every seed its K environments.
    """
    recorded = totals.recorded
    if self.num_seeds == 1:
      recorded = jax.tree.map(lambda x: x[None], recorded)

    def join(overlap: int, x: np.ndarray) -> np.ndarray:
      x = x[:, :num_updates]  # [S, N, T + overlap, K, ...]
      length = x.shape[2] - overlap
      whole = x[:, :, :length].reshape((x.shape[0], num_updates * length, *x.shape[3:]))
      if overlap:
        whole = np.concatenate([whole, x[:, -1, length:]], axis=1)
      # [S, N * T + overlap, K, ...] -> [N * T + overlap, S * K, ...]
      whole = np.moveaxis(whole, 0, 1)
      return whole.reshape((whole.shape[0], -1, *whole.shape[3:]))

    return recorded._replace(
      timesteps=jax.tree.map(lambda x: join(1, x), recorded.timesteps),
      actor_outputs=jax.tree.map(lambda x: join(0, x), recorded.actor_outputs),
    )


def make_machine(
  agent: agent_lib.Agent,
  environment: Any,
  learner_config: config_lib.LearnerConfig,
  machine_config: config.AnakinConfig,
  *,
  num_env_steps: int,
  num_seeds: int = 1,
  devices: Sequence[jax.Device] | None = None,
  record: float = 0.0,
) -> Anakin:
  """Builds the machine as every architecture does; the arguments are those of `Anakin`.

  Raises:
    config.InputError: also for an environment that runs on the host.
  """
  config_lib.check(
    isinstance(environment, environment_lib.Environment),
    f"environment {environment.spec.name} runs on the host, which takes --architecture=sebulba",
  )
  return Anakin(
    agent,
    environment,
    learner_config,
    machine_config,
    num_env_steps=num_env_steps,
    num_seeds=num_seeds,
    devices=devices,
    record=record,
  )


def train(
  agent: agent_lib.Agent,
  environment: environment_lib.Environment,
  learner_config: config_lib.LearnerConfig,
  machine_config: config.AnakinConfig,
  *,
  num_env_steps: int,
  seed: int = 0,
  num_seeds: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[report.Report]:
  """Trains an agent, yielding a report every `updates_per_call` updates and at the end.

  The run ends with the first update at which *every* seed has taken `num_env_steps` environment steps.

  Args:
    agent: the agent.
    environment: the environment.
    learner_config: of the learner.
    machine_config: of the machine.
    num_env_steps: environment steps of the run.
    seed: of everything random.
    num_seeds: whole runs side by side, with seeds `seed .. seed + num_seeds - 1`.
    devices: all devices by default.

  Yields:
    Reports; their arrays are donated when the next one is asked for.

  Raises:
    config.InputError: for a configuration that can't work.
    report.TrainingError: if `max_refused_updates` updates in a row were not finite.
  """
  machine = make_machine(
    agent,
    environment,
    learner_config,
    machine_config,
    num_env_steps=num_env_steps,
    num_seeds=num_seeds,
    devices=devices,
  )
  yield from run(machine, machine.init(seed), num_env_steps=num_env_steps)


def run(
  machine: Anakin,
  state: AnakinState,
  *,
  num_env_steps: int,
  seed: int = 0,
  counters: dict[str, Any] | None = None,
  pause_every: int = 0,
  should_report: Callable[[], bool] = lambda: False,
  record: report.Record | None = None,
) -> Iterator[report.Report]:
  """Runs a machine from a state: `train` with the state in the caller's hands.

  Args:
    machine: the machine.
    state: from `machine.init` or a checkpoint; donated.
    num_env_steps: where the run ends, counted from its very beginning.
    seed: not used; all that is random is in the state.
    counters: those of the report that `state` belongs to; None at the beginning.
    pause_every: also report at the first update at or past each multiple of this many environment
      steps; 0 does not.
    should_report: not asked: the next report is never far, and where it falls depends on nothing.
    record: is given what the machine records, before the report of it.

  Yields:
    Reports. Where they fall depends on the configuration only, not on where a run was interrupted.
  """
  del seed, should_report
  counts = _Counts(machine.num_seeds, machine.task_names, counters)
  updates_per_call = machine.config.resolved_updates_per_call(num_env_steps)
  if counts.least_env_steps < num_env_steps:
    machine.compile(state)  # So that the first report's speed is that of training.
  while counts.least_env_steps < num_env_steps:
    begin = time.perf_counter()
    target = num_env_steps
    if pause_every:
      target = min(target, (counts.least_env_steps // pause_every + 1) * pause_every)
    boundary = (counts.updates // updates_per_call + 1) * updates_per_call
    totals: list[CallTotals] = []
    before = counts.env_steps.copy()
    while counts.updates < boundary and counts.least_env_steps < target:
      # An update takes at most `steps_per_update` environment steps, so this never passes the target.
      remaining = (target - counts.least_env_steps) // machine.steps_per_update
      num_updates = min(boundary - counts.updates, max(1, remaining))
      state, call_totals = machine.advance(state, num_updates)
      call_totals = jax.device_get(call_totals)
      if record is not None:
        record(machine.recorded_unroll(call_totals, num_updates), 0, counts.least_env_steps)
      totals.append(call_totals._replace(recorded=()))
      counts.add(num_updates, totals[-1])
    seconds = time.perf_counter() - begin
    metrics = _metrics(counts, totals, float(np.sum(counts.env_steps - before)) / seconds)
    yield report.Report(
      env_steps=counts.least_env_steps,
      updates=counts.updates,
      metrics=metrics,
      params=state.learner.params,
      items=machine.to_checkpoint(state),
      counters=counts.to_json(),
    )
    num_refused = int(np.max(jax.device_get(state.learner.num_refused)))
    if num_refused >= machine.max_refused_updates:
      raise report.TrainingError(learner.refusal_message(num_refused, metrics))


class _Counts:
  """Exact counts of a run, in Python's and NumPy's 64 bits."""

  def __init__(
    self, num_seeds: int, task_names: Sequence[str] = (), counters: dict[str, Any] | None = None
  ):
    counters = counters or {"updates": 0, "env_steps": [0] * num_seeds}
    self.updates = int(counters["updates"])
    self.env_steps = np.asarray(counters["env_steps"], np.int64)
    self.episodes = episodes.Counts(task_names, counters)

  @property
  def least_env_steps(self) -> int:
    return int(np.min(self.env_steps))

  def add(self, num_updates: int, totals: CallTotals) -> None:
    self.updates += num_updates
    self.env_steps = self.env_steps + np.asarray(totals.env_steps, np.int64)
    self.episodes.add(totals.episodes.num_episodes)

  def to_json(self) -> dict[str, Any]:
    return {
      "updates": self.updates,
      "env_steps": self.env_steps.tolist(),
      **self.episodes.to_json(),
    }


def _metrics(counts: _Counts, totals: list[CallTotals], steps_per_second: float) -> dict[str, Any]:
  """Returns the metrics of a report from the totals of its calls."""
  total = jax.tree.map(lambda *xs: np.sum(np.stack(xs), axis=0, dtype=np.float64), *totals)
  by_seed = {
    **episodes.mean_metrics(total.episodes, counts.episodes.task_names),
    **learner.mean_metrics(total.learner),
  }
  metrics: dict[str, Any] = {
    "env_steps": counts.least_env_steps,
    "updates": counts.updates,
    "steps_per_second": steps_per_second,
    **counts.episodes.metrics(),
  }
  for name, value in by_seed.items():
    values = np.atleast_1d(value)
    finite = values[np.isfinite(values)]
    metrics[name] = float(np.mean(finite)) if finite.size else float("nan")
    if len(counts.env_steps) > 1:
      metrics[f"seeds/{name}"] = values.tolist()
  if len(counts.env_steps) > 1:
    metrics["seeds/env_steps"] = counts.env_steps.tolist()
  return metrics
