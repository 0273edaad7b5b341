"""The student: an IMPALA agent that learns from teachers, and from reward as well if it is to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import multitask, types
from podracer.agents.impala import agent as impala_agent

from . import config as distillation_config
from . import control, objective, schedules
from . import teacher as teacher_lib

Array = types.Array
TEACHERS = "teachers"
PROGRESS = "distillation"


class StudentState(NamedTuple):
  """Recurrent state where teachers are asked on the actor, leaves `[B, ...]`."""

  student: types.State
  teachers: tuple[types.State, ...]


def make_agent(
  config: distillation_config.DistillationConfig,
  spec: types.EnvironmentSpec,
  teachers: Sequence[agent_lib.Teacher] = (),
) -> agent_lib.Agent:
  """Builds the agent.

  Its parameters are those of the student, which are IMPALA's, and two entries that no gradient reaches:
  `teachers`, the parameters of each, and `distillation`, a `schedules.Progress`.

  Args:
    config: hyper-parameters.
    spec: of the environment.
    teachers: that teach; without them the loss takes what the actor outputs of recorded data say.

  Returns:
    Pure functions, see `podracer.agent.Agent`. The student's own state is that of IMPALA; that of
    teachers is beside it where they are asked on the actor.

  Raises:
    InputError: if a teacher doesn't fit the environment, or can't be asked where it is to be.
  """
  student = impala_agent.make_parts(config, spec)
  config_lib.check(
    config.policy_loss != "mse" or isinstance(spec.action, types.DiscreteActions),
    f"policy_loss=mse is for discrete actions, those of {spec.name} are continuous",
  )
  members = teacher_lib.make_teachers(teachers, spec, config.action_distribution)
  asks_on_actor = _asks_on_actor(config, members)

  def init(key: types.Key) -> types.Params:
    return {
      **student.agent.init(key),
      TEACHERS: tuple(jax.tree.map(_as_array, member.params) for member in members.members),
      PROGRESS: schedules.initial_progress(members.number),
    }

  def initial_state(batch_size: int) -> types.State:
    state = student.agent.initial_state(batch_size)
    if not asks_on_actor:
      return state
    return StudentState(state, teacher_lib.initial_state(members, batch_size))

  def act(
    params: types.Params,
    key: types.Key,
    timestep: types.TimeStep,
    state: types.State,
    explore: bool,
  ) -> tuple[types.ActorOutput, types.State]:
    if not asks_on_actor:
      return student.agent.act(params, key, timestep, state, explore)
    # The student's own sampling is that of a student without teachers.
    ask_key, control_key = jax.random.split(jax.random.fold_in(key, 1))
    output, own = student.agent.act(params, key, timestep, state.student, explore)
    said, theirs = teacher_lib.act(members, params[TEACHERS], ask_key, timestep, state.teachers)
    if config.control != "student":
      share = schedules.teacher_control(config, params[PROGRESS])
      is_there = members.of_rows(multitask.tasks_of(timestep, spec)) >= 0
      output = control.mix(student.policy, share, is_there, control_key, output, said, explore)
    own = teacher_lib.with_action(own, output.action)
    theirs = tuple(teacher_lib.with_action(one, output.action) for one in theirs)
    output = output._replace(**teacher_lib.to_actor_fields(said))
    return output, StudentState(own, theirs)

  def loss(
    params: types.Params, target_params: types.Params, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[Array, agent_lib.LossInfo]:
    del target_params
    said = teacher_lib.from_actor_fields(trajectory.actor_outputs)
    if said is None:
      config_lib.check(
        bool(members.members) and config.teacher_inference != "none",
        "there is nothing to learn from: no teacher is asked, and none has spoken in the data",
      )
      said = teacher_lib.evaluate(members, params[TEACHERS], key, trajectory.timesteps)
    if asks_on_actor:
      trajectory = trajectory._replace(initial_state=trajectory.initial_state.student)
    return objective.loss(config, members, student, params, params[PROGRESS], trajectory, said)

  def update_statistics(params: types.Params, statistics: objective.Statistics) -> types.Params:
    if student.agent.update_statistics is not None:
      params = student.agent.update_statistics(params, statistics.student)
    progress = schedules.update(config, params[PROGRESS], statistics.advantage)
    return {**params, PROGRESS: progress}

  return agent_lib.Agent(
    init=init,
    initial_state=initial_state,
    act=act,
    loss=loss,
    update_statistics=update_statistics,
    frozen=(TEACHERS, PROGRESS),
  )


def _asks_on_actor(
  config: distillation_config.DistillationConfig, members: teacher_lib.Teachers
) -> bool:
  config_lib.check(
    bool(members.members) or config.control == "student",
    f"control={config.control}, but there is no teacher",
  )
  if not members.members or config.teacher_inference == "none":
    return False
  config_lib.check(
    config.teacher_inference != "learner" or not members.have_state,
    "teacher_inference=learner, but a teacher has recurrent state, which must be kept on the actor: "
    "teacher_inference must be auto or actor",
  )
  needed = config.control != "student" or members.have_state
  return config.teacher_inference == "actor" or (config.teacher_inference == "auto" and needed)


def _as_array(x: Any) -> Array:
  """Returns a teacher's array, zeros where a checkpoint will have it."""
  return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
