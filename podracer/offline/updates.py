"""Learning without acting: one sharded update over all devices, and the loop that feeds it batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import group, learner, report, sharding, types

AXIS = "devices"
P = jax.sharding.PartitionSpec


class OfflineState(NamedTuple):
  """The whole state of a run but for the place in the data, which follows from the number of updates.

  Attributes:
    learner: the same on every device.
    key: `[num_devices]`, one key a device, constant: an update draws its own by its number.
  """

  learner: learner.LearnerState
  key: types.Key


class OfflineLearner:
  """Trains an agent on batches; it never acts."""

  def __init__(
    self,
    agent: agent_lib.Agent,
    learner_config: config_lib.LearnerConfig,
    *,
    num_updates: int,
    prepare: Callable[[Any], Any] = lambda batch: batch,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Builds the program; nothing is compiled before the first update.

    Args:
      agent: the agent, of which `init`, `loss` and what belongs to them are used.
      learner_config: of the learner.
      num_updates: of the whole run, over which a learning-rate schedule runs.
      prepare: batch of one device `[B, ...]` -> what the agent's loss takes as its trajectory; traced.
      devices: all devices of all processes by default.
    """
    devices = jax.devices() if devices is None else devices
    self.mesh = group.make_mesh(devices, AXIS)
    self.max_refused_updates = learner_config.max_refused_updates
    self._prepare = prepare
    self._learner = learner.make_learner(agent, learner_config, num_updates, axis_name=AXIS)
    sharded: Any = P(AXIS)
    specs = OfflineState(learner.state_specs(AXIS), key=sharded)
    self._shardings = sharding.on_mesh(self.mesh, specs)
    self._batch_sharding = jax.sharding.NamedSharding(self.mesh, sharded)
    # check_vma=False: see `learner`.
    self._update = jax.jit(
      jax.shard_map(
        self._update_one,
        mesh=self.mesh,
        in_specs=(specs, sharded),
        out_specs=(specs, P()),
        check_vma=False,
      ),
      donate_argnums=0,
    )

  def init(self, seed: int) -> OfflineState:
    """Returns the state at the beginning of a run, on its devices."""
    return jax.jit(self._init, out_shardings=self._shardings)(np.uint32(seed))

  def abstract_state(self) -> OfflineState:
    """Returns shapes, dtypes and shardings of the state, for a checkpoint to be restored onto."""
    state: OfflineState = sharding.abstract(
      jax.eval_shape(self._init, np.uint32(0)), self._shardings
    )
    return state

  def to_checkpoint(self, state: OfflineState) -> dict[str, Any]:
    """See `sharding.to_checkpoint`."""
    return sharding.to_checkpoint(state)

  def from_checkpoint(self, items: dict[str, Any]) -> OfflineState:
    """Returns the state of which `to_checkpoint` made the items."""
    state: OfflineState = sharding.from_checkpoint(items)
    return state

  def update(self, state: OfflineState, batch: Any) -> tuple[OfflineState, types.Metrics]:
    """Learns from one batch.

    Args:
      state: donated.
      batch: pytree of NumPy arrays `[B, ...]` that nobody writes to again; B is shared out over the
        devices.

    Returns:
      The state after, and sums of metrics, see `learner.mean_metrics`. Neither is waited for.
    """
    return self._update(state, jax.device_put(batch, self._batch_sharding))

  def _init(self, seed: types.Array) -> OfflineState:
    learner_key, key = jax.random.split(jax.random.key(seed))
    return OfflineState(
      learner=self._learner.init(learner_key), key=jax.random.split(key, self.mesh.size)
    )

  def _update_one(self, state: OfflineState, batch: Any) -> tuple[OfflineState, types.Metrics]:
    """One update on the rows of one device."""
    key = jax.random.fold_in(state.key[0], state.learner.num_updates)
    learner_state, metrics = self._learner.update(state.learner, key, self._prepare(batch))
    return state._replace(learner=learner_state), metrics


def learn(
  machine: OfflineLearner,
  state: OfflineState,
  batches: Callable[[int], Iterator[Any]],
  *,
  num_env_steps: int,
  count: Callable[[Any], int],
  updates_per_report: int,
  counters: dict[str, Any] | None = None,
  pause_every: int = 0,
  should_report: Callable[[], bool] = lambda: False,
) -> Iterator[report.Report]:
  """Learns from batches until there were so many recorded steps, repeats counted.

  Args:
    machine: the learner.
    state: from `machine.init` or a checkpoint; donated.
    batches: number of the first batch -> the batches from there on.
    num_env_steps: where the run ends, counted from its very beginning.
    count: batch -> the steps in it.
    updates_per_report: at most so many between two reports.
    counters: those of the report that `state` belongs to; None at the beginning.
    pause_every: also report at the first update at or past each multiple of this many steps; 0 does not.
    should_report: asked after every update; True brings the next report there.

  Yields:
    Reports.

  Raises:
    report.TrainingError: if `max_refused_updates` updates in a row were not finite.
  """
  counters = counters or {"updates": 0, "env_steps": [0], "episodes": 0}
  updates, env_steps = int(counters["updates"]), int(counters["env_steps"][0])
  stream = batches(updates) if env_steps < num_env_steps else iter(())
  while env_steps < num_env_steps:
    begin, before = time.perf_counter(), env_steps
    target = num_env_steps
    if pause_every:
      target = min(target, (env_steps // pause_every + 1) * pause_every)
    boundary = (updates // updates_per_report + 1) * updates_per_report
    # Added up at the end: to add them here would cost a call of the device for each.
    found = []
    while updates < boundary and env_steps < target:
      batch = next(stream)
      state, sums = machine.update(state, batch)
      found.append(sums)
      updates, env_steps = updates + 1, env_steps + count(batch)
      if should_report():
        break
    total = jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *jax.device_get(found))
    metrics = learner.mean_metrics(total)
    seconds = time.perf_counter() - begin
    yield report.Report(
      env_steps=env_steps,
      updates=updates,
      metrics={
        "env_steps": env_steps,
        "updates": updates,
        "steps_per_second": (env_steps - before) / seconds,
        **{name: float(value) for name, value in metrics.items()},
      },
      params=state.learner.params,
      items=machine.to_checkpoint(state),
      counters={"updates": updates, "env_steps": [env_steps], "episodes": 0},
    )
    num_refused = int(jax.device_get(state.learner.num_refused))
    if num_refused >= machine.max_refused_updates:
      raise report.TrainingError(learner.refusal_message(num_refused, metrics))
