"""The IMPALA agent: a V-trace actor-critic (Espeholt et al. 2018)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import distributions, multitask, types
from podracer.networks import body

from . import config as impala_config
from . import losses, networks, popart

Array = types.Array


class Evaluation(NamedTuple):
  """What the network says of a trajectory, with gradient.

  Attributes:
    logits: `[T+1, B, A]` of the policy pi, illegal actions masked.
    values: `[T+1, B]` un-normalised, of the task of each row.
  """

  logits: Array
  values: Array


class Parts(NamedTuple):
  """The agent and the parts of its loss, for agents that learn from more than V-trace.

  Attributes:
    agent: the agent.
    policy: distribution over its actions.
    evaluate: (params, trajectory) -> Evaluation.
    vtrace_loss: (params, trajectory, evaluation, r_t, valid_tm1) -> (scalar, LossInfo). `r_t` `[T, B]`
      are the rewards on arrival, clipped; `valid_tm1` `[T, B]` is False where a transition is no
      experience.
  """

  agent: agent_lib.Agent
  policy: distributions.ActionDistribution
  evaluate: Callable[[types.Params, types.Trajectory], Evaluation]
  vtrace_loss: Callable[..., tuple[Array, agent_lib.LossInfo]]


def make_agent(config: impala_config.ImpalaConfig, spec: types.EnvironmentSpec) -> agent_lib.Agent:
  """Builds the agent.

  Its parameters are a dict: `network`, and where they are on `popart` (moments of the targets, moved by
  `update_statistics`) and `log_entropy_cost` (learnt, `config.entropy == "adaptive"`).

  Args:
    config: hyper-parameters.
    spec: of the environment.

  Returns:
    Pure functions, see `podracer.agent.Agent`.

  Raises:
    InputError: if the network doesn't fit the environment, or that has two players.
  """
  return make_parts(config, spec).agent


def make_parts(config: impala_config.ImpalaConfig, spec: types.EnvironmentSpec) -> Parts:
  """Builds the agent and the parts of its loss; see `make_agent`."""
  config_lib.check(
    spec.num_players == 1,
    f"IMPALA plays for one player, {spec.name} has {spec.num_players}: --agent=muzero plays both, or "
    "--env_options opponent=random",
  )
  network = networks.ImpalaNetwork(config.network, spec)
  policy = distributions.make_distribution(spec.action, config.action_distribution)
  forward: Any = network.apply
  unroll: Any = functools.partial(network.apply, method="unroll")

  def init(key: types.Key) -> types.Params:
    timestep = types.zero_timestep(spec, 1)
    params: dict[str, Any] = {"network": network.init(key, timestep, initial_state(1))}
    if config.popart:
      params["popart"] = popart.initial_state(spec.num_tasks)
    if config.entropy == "adaptive":
      params["log_entropy_cost"] = jnp.log(jnp.asarray(config.entropy_cost))
    return params

  def initial_state(batch_size: int) -> body.BodyState:
    return body.initial_state(config.network, spec, batch_size)

  def act(
    params: types.Params,
    key: types.Key,
    timestep: types.TimeStep,
    state: body.BodyState,
    explore: bool,
  ) -> tuple[types.ActorOutput, body.BodyState]:
    output, state = forward(params["network"], timestep, state)
    logits = distributions.mask_logits(output.logits, types.action_mask(timestep.observation))
    action = policy.sample(key, logits) if explore else policy.mode(logits)
    if config.network.use_previous_action:
      state = state._replace(previous_action=action)
    actor_output = types.ActorOutput(
      action=action,
      logits=logits,
      log_prob=policy.log_prob(logits, action),
      value=_values(params, output.value, multitask.tasks_of(timestep, spec)),
    )
    return actor_output, state

  def evaluate(params: types.Params, trajectory: types.Trajectory) -> Evaluation:
    timesteps, action = trajectory.timesteps, trajectory.actor_outputs.action
    output = unroll(params["network"], timesteps, action, trajectory.initial_state)
    return Evaluation(
      logits=distributions.mask_logits(output.logits, types.action_mask(timesteps.observation)),
      values=_values(params, output.value, multitask.tasks_of(timesteps, spec)),
    )

  vtrace_loss = functools.partial(_vtrace_loss, config, spec, policy)

  def loss(
    params: types.Params, target_params: types.Params, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[Array, agent_lib.LossInfo]:
    del target_params, key
    timesteps = trajectory.timesteps
    return vtrace_loss(
      params,
      trajectory,
      evaluate(params, trajectory),
      losses.clip_reward(timesteps.reward[1:], config.reward_clip),
      types.is_valid_transition(timesteps.step_type[:-1]),
    )

  def update_statistics(params: types.Params, statistics: Any) -> types.Params:
    old = params["popart"]
    new = popart.update(old, statistics, config.popart_step_size)
    return {**params, "popart": new, "network": _rescaled(params["network"], old, new)}

  agent = agent_lib.Agent(
    init=init,
    initial_state=initial_state,
    act=act,
    loss=loss,
    update_statistics=update_statistics if config.popart else None,
  )
  return Parts(agent=agent, policy=policy, evaluate=evaluate, vtrace_loss=vtrace_loss)


def _vtrace_loss(
  config: impala_config.ImpalaConfig,
  spec: types.EnvironmentSpec,
  policy: distributions.ActionDistribution,
  params: types.Params,
  trajectory: types.Trajectory,
  evaluation: Evaluation,
  r_t: Array,
  valid_tm1: Array,
) -> tuple[Array, agent_lib.LossInfo]:
  """See `Parts.vtrace_loss`."""
  timesteps, acted = trajectory.timesteps, trajectory.actor_outputs
  logits, values = evaluation.logits[:-1], evaluation.values
  log_pi = policy.log_prob(logits, acted.action)
  vtrace = functools.partial(
    losses.vtrace,
    lambda_=config.vtrace_lambda,
    clip_rho=config.clip_rho,
    clip_pg_rho=config.clip_pg_rho,
  )
  trace = jax.vmap(vtrace, in_axes=1, out_axes=1)(
    values, r_t, config.discount * timesteps.discount[1:], log_pi - acted.log_prob, valid_tm1
  )
  targets = jax.lax.stop_gradient(values[:-1]) + trace.errors
  # With PopArt both losses are in normalised units; else mean is 0 and scale is 1.
  tasks = multitask.tasks_of(timesteps, spec)[:-1]
  mean, scale = moments(params, tasks)
  pg_loss = over_batch(losses.policy_gradient_loss, log_pi, trace.advantages / scale, valid_tm1)
  value_loss = over_batch(
    losses.value_loss, (values[:-1] - mean) / scale, (targets - mean) / scale, valid_tm1
  )
  entropy = over_batch(losses.masked_mean, policy.entropy(logits), valid_tm1)
  rho = over_batch(losses.masked_mean, jnp.exp(log_pi - acted.log_prob), valid_tm1)
  num_valid = jnp.mean(valid_tm1.astype(jnp.float32))
  entropy_loss, entropy_cost = _entropy_loss(config, params, entropy, num_valid)
  total = pg_loss + config.value_cost * value_loss + entropy_loss
  metrics = {
    "loss/policy_gradient": pg_loss,
    "loss/value": value_loss,
    "loss/entropy": entropy,
    "loss/entropy_cost": entropy_cost,
    "loss/rho_mean": rho,
    "loss/value_mean": jnp.mean(values),
  }
  statistics: Any = ()
  if config.popart:
    statistics = popart.statistics(targets, tasks, valid_tm1, spec.num_tasks)
  return total, agent_lib.LossInfo(metrics=metrics, statistics=statistics)


def over_batch(loss: Callable[..., Array], *streams: Array) -> Array:
  """Returns the mean over the batch of a loss of one stream, given `[T, B]` streams."""
  return jnp.mean(jax.vmap(loss, in_axes=1)(*streams))


def moments(params: types.Params, tasks: Array) -> tuple[Array, Array]:
  """Returns mean and scale of the returns of each task, without gradient; 0 and 1 without PopArt."""
  if "popart" not in params:
    return jnp.zeros(()), jnp.ones(())
  state = jax.lax.stop_gradient(params["popart"])
  return state.mean[tasks], state.scale[tasks]


def _values(params: types.Params, head: Array, tasks: Array) -> Array:
  """Returns the un-normalised value of its task, `[...]`, from the head's `[..., num_tasks]`."""
  if head.shape[-1] == 1:
    value = head[..., 0]
  else:
    value = jnp.take_along_axis(head, tasks[..., None], axis=-1)[..., 0]
  mean, scale = moments(params, tasks)
  return scale * value + mean


def _entropy_loss(
  config: impala_config.ImpalaConfig, params: types.Params, entropy: Array, num_valid: Array
) -> tuple[Array, Array]:
  """Returns the entropy term and its weight.

  An adaptive weight rises while the entropy is below its target and falls above, the dual of a bound
  on the entropy (Haarnoja et al. 2018, section 5, for a weight of the entropy bonus).
  """
  if config.entropy == "fixed":
    return -config.entropy_cost * entropy, jnp.asarray(config.entropy_cost)
  cost = jnp.exp(params["log_entropy_cost"])
  fixed_cost = jax.lax.stop_gradient(cost)
  excess = jax.lax.stop_gradient(entropy - config.target_entropy * num_valid)
  return -fixed_cost * entropy + params["log_entropy_cost"] * excess, fixed_cost


def _rescaled(network_params: Any, old: popart.PopArtState, new: popart.PopArtState) -> Any:
  """Returns the network with its value head rescaled to the new moments."""
  head = network_params["params"]["value"]["Dense_0"]
  kernel, bias = popart.preserve_outputs(head["kernel"], head["bias"], old, new)
  value = {"Dense_0": {"kernel": kernel, "bias": bias}}
  return {**network_params, "params": {**network_params["params"], "value": value}}
