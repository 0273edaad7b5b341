"""The MuZero agent: it plans with the model it learns (Schrittwieser et al. 2020)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx
import optax
import rlax

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import distributions, types

from . import config as muzero_config
from . import losses, search
from . import model as model_lib

Array = types.Array


def make_agent(config: muzero_config.MuZeroConfig, spec: types.EnvironmentSpec) -> agent_lib.Agent:
  """Builds the agent.

  Its parameters are a dict: `model`, and `gradient_steps` (their number, for the schedule of the
  temperature, where there is one).

  Args:
    config: hyper-parameters.
    spec: of the environment; with two players the agent plays both.

  Returns:
    Pure functions, see `podracer.agent.Agent`.

  Raises:
    InputError: if the actions are continuous, or the model doesn't fit the environment.
  """
  config_lib.check(
    isinstance(spec.action, types.DiscreteActions),
    f"MuZero takes discrete actions, those of {spec.name} are continuous; --agent=impala takes both",
  )
  parts = _make_parts(config, spec)
  searches = {explore: _make_search(config, parts, explore) for explore in (True, False)}

  def init(key: types.Key) -> types.Params:
    observation = types.zeros_like(spec.observation, (1,))
    params: dict[str, Any] = {
      "model": parts.model.init(key, observation, jnp.zeros((1,), jnp.int32))
    }
    if config.search.temperature_steps:
      params["gradient_steps"] = jnp.zeros(())
    return params

  def plan(
    params: types.Params, key: types.Key, observation: types.Observation, explore: bool
  ) -> types.ActorOutput:
    """Searches from observations `[B, ...]`."""
    latent = parts.represent(params, observation)
    prediction = parts.predict(params, latent)
    value = parts.value_of(prediction.value_logits)
    mask = types.action_mask(observation)
    root = mctx.RootFnOutput(prior_logits=prediction.policy_logits, value=value, embedding=latent)
    found = searches[explore](params, key, root, mask, _temperature(config.search, params))
    logits = distributions.mask_logits(
      jnp.log(jnp.maximum(found.visits, 1e-8)), None if mask is None else ~search.illegal(mask)
    )
    return types.ActorOutput(
      action=found.action,
      logits=logits,
      log_prob=_policy_of(spec).log_prob(logits, found.action),
      value=value,
      search_visits=found.visits,
      search_value=found.value,
      search_depth=found.depth,
    )

  def act(
    params: types.Params,
    key: types.Key,
    timestep: types.TimeStep,
    state: types.State,
    explore: bool,
  ) -> tuple[types.ActorOutput, types.State]:
    return plan(params, key, timestep.observation, explore), state

  def act_by_prior(
    params: types.Params,
    key: types.Key,
    timestep: types.TimeStep,
    state: types.State,
    explore: bool,
  ) -> tuple[types.ActorOutput, types.State]:
    prediction = parts.predict(params, parts.represent(params, timestep.observation))
    logits = distributions.mask_logits(
      prediction.policy_logits, types.action_mask(timestep.observation)
    )
    policy = _policy_of(spec)
    action = policy.sample(key, logits) if explore else policy.mode(logits)
    output = types.ActorOutput(
      action=action,
      logits=logits,
      log_prob=policy.log_prob(logits, action),
      value=parts.value_of(prediction.value_logits),
    )
    return output, state

  def reanalyse(
    params: types.Params, key: types.Key, trajectory: types.Trajectory
  ) -> types.Trajectory:
    acted = trajectory.actor_outputs
    length, batch_size = acted.action.shape
    # [T+1, B, ...] -> [T*B, ...]
    observation = _merged(jax.tree.map(lambda x: x[:-1], trajectory.timesteps.observation))
    found = plan(params, key, observation, True)
    split = jax.tree.map(lambda x: x.reshape(length, batch_size, *x.shape[1:]), found)
    acted = acted._replace(
      search_visits=split.search_visits,
      search_value=split.search_value,
      search_depth=split.search_depth,
    )
    return trajectory._replace(actor_outputs=acted)

  def loss(
    params: types.Params, target_params: types.Params, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[Array, agent_lib.LossInfo]:
    del key
    return _loss(config, parts, params, target_params, trajectory)

  def update_statistics(params: types.Params, statistics: Any) -> types.Params:
    del statistics
    return {**params, "gradient_steps": params["gradient_steps"] + 1.0}

  return agent_lib.Agent(
    init=init,
    initial_state=lambda batch_size: (),
    act=act,
    loss=loss,
    update_statistics=update_statistics if config.search.temperature_steps else None,
    act_by_prior=act_by_prior,
    reanalyse=reanalyse,
  )


class _Parts(NamedTuple):
  """The model, and its functions by the agent's parameters.

  Attributes:
    model: the module.
    value: transform of values.
    reward: transform of rewards.
    discount: gamma, negative where players alternate: what is good for the next player is bad for the
      one to move.
  """

  model: model_lib.Model
  value: rlax.TxPair
  reward: rlax.TxPair
  discount: float

  def represent(self, params: types.Params, observation: types.Observation) -> Array:
    return self.model.apply(params["model"], observation, method="represent")  # type: ignore[return-value]

  def predict(self, params: types.Params, latent: Array) -> model_lib.Prediction:
    return self.model.apply(params["model"], latent, method="predict")  # type: ignore[return-value]

  def step(self, params: types.Params, latent: Array, action: Array) -> model_lib.Transition:
    return self.model.apply(params["model"], latent, action, method="step")  # type: ignore[return-value]

  def decide(self, params: types.Params, latent: Array, action: Array) -> model_lib.Afterstate:
    return self.model.apply(params["model"], latent, action, method="decide")  # type: ignore[return-value]

  def happen(self, params: types.Params, afterstate: Array, code: Array) -> model_lib.Transition:
    return self.model.apply(params["model"], afterstate, code, method="happen")  # type: ignore[return-value]

  def encode(self, params: types.Params, before: Any, after: Any) -> Array:
    return self.model.apply(params["model"], before, after, method="encode")  # type: ignore[return-value]

  def value_of(self, logits: Array) -> Array:
    return self.value.apply_inv(jax.nn.softmax(logits))


def _make_parts(config: muzero_config.MuZeroConfig, spec: types.EnvironmentSpec) -> _Parts:
  sign = -1.0 if spec.num_players == 2 else 1.0
  return _Parts(
    model=model_lib.Model(config.network, config.model, spec, config.num_chance_codes),
    value=model_lib.make_transform(config.model.num_bins, config.model.max_value),
    reward=model_lib.make_transform(config.model.num_bins, config.model.max_reward),
    discount=sign * config.discount,
  )


def _make_search(config: muzero_config.MuZeroConfig, parts: _Parts, explore: bool) -> search.Search:
  def arrive(
    params: types.Params, transition: model_lib.Transition
  ) -> tuple[dict[str, Array], Array]:
    """Returns what mctx asks of a state that is arrived at, by name, and its policy's logits."""
    prediction = parts.predict(params, transition.latent)
    value = parts.value_of(prediction.value_logits)
    reward = parts.reward.apply_inv(jax.nn.softmax(transition.reward_logits))
    discount = jnp.full_like(value, parts.discount)
    return {"reward": reward, "discount": discount, "value": value}, prediction.policy_logits

  def step(
    params: types.Params, key: types.Key, action: Array, latent: Array
  ) -> tuple[mctx.RecurrentFnOutput, Array]:
    del key
    transition = parts.step(params, latent, action)
    arrival, logits = arrive(params, transition)
    return mctx.RecurrentFnOutput(prior_logits=logits, **arrival), transition.latent

  def decide(
    params: types.Params, key: types.Key, action: Array, latent: Array
  ) -> tuple[mctx.DecisionRecurrentFnOutput, Array]:
    del key
    afterstate = parts.decide(params, latent, action)
    output = mctx.DecisionRecurrentFnOutput(
      chance_logits=afterstate.chance_logits,
      afterstate_value=parts.value_of(afterstate.value_logits),
    )
    return output, afterstate.latent

  def happen(
    params: types.Params, key: types.Key, code: Array, afterstate: Array
  ) -> tuple[mctx.ChanceRecurrentFnOutput, Array]:
    del key
    transition = parts.happen(params, afterstate, code)
    arrival, logits = arrive(params, transition)
    return mctx.ChanceRecurrentFnOutput(action_logits=logits, **arrival), transition.latent

  model = search.ChanceModel(decide, happen) if config.num_chance_codes else step
  return search.make_search(config.search, model, explore)


def _loss(
  config: muzero_config.MuZeroConfig,
  parts: _Parts,
  params: types.Params,
  target_params: types.Params,
  trajectory: types.Trajectory,
) -> tuple[Array, agent_lib.LossInfo]:
  """Equation (1): the model is unrolled from every time step of every unroll."""
  timesteps, acted = trajectory.timesteps, trajectory.actor_outputs
  if config.reward_clip == "unit":
    timesteps = timesteps._replace(reward=jnp.clip(timesteps.reward, -1.0, 1.0))
  assert acted.search_visits is not None, "MuZero learns from what it searched"
  length = acted.action.shape[0]
  num_steps = config.unroll_steps
  config.check_unroll(length)

  returns = _returns(config, parts, target_params, timesteps)  # [T, B]
  gather = jax.vmap(losses.unroll_targets, in_axes=(1, 1, 1, 1, None), out_axes=1)
  targets = gather(
    timesteps._replace(observation=()),
    acted.action,
    returns,
    acted.search_visits,
    num_steps,
  )
  targets = jax.lax.stop_gradient(_merged(targets))  # [T, B, ...] -> [T*B, ...]

  observation = _merged(jax.tree.map(lambda x: x[:-1], timesteps.observation))
  root = parts.represent(params, observation)

  codes = None
  if config.num_chance_codes:
    arrived = _merged(jax.tree.map(lambda x: x[1:], timesteps.observation))
    probabilities = parts.encode(params, observation, arrived)
    codes = _unrolled_codes(probabilities, targets.arrival_mask, length)

  def unroll(latent: Array, inputs: tuple[Array, _Codes | None]) -> tuple[Array, Any]:
    action, code = inputs
    latent, afterstate = optax.scale_gradient(latent, 0.5), None
    if code is None:
      latent, reward_logits = parts.step(params, latent, action)
    else:
      afterstate = parts.decide(params, latent, action)
      latent, reward_logits = parts.happen(params, afterstate.latent, code.one_hot)
    return latent, (parts.predict(params, latent), reward_logits, afterstate)

  _, (later, reward_logits, afterstates) = jax.lax.scan(unroll, root, (targets.actions.T, codes))
  first = parts.predict(params, root)
  # [T*B, ...] and [K, T*B, ...] -> [K+1, T*B, ...]
  predictions = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, later)

  def by_step(loss: Array, mask: Array) -> Array:
    """Returns the mean over all roots of losses `[K, T*B]`, where `[T*B, K]` is True: `[K]`."""
    return jnp.mean(jnp.where(mask.T, loss, 0.0) * weights, axis=1)

  def to_target(logits: Array, target: Array) -> Array:
    return losses.cross_entropy(logits, jnp.moveaxis(target, 1, 0))

  weights = jnp.ones(())
  if trajectory.importance_weights is not None:
    weights = jnp.tile(trajectory.importance_weights, length)  # [B] -> [T*B]
  value_loss = to_target(predictions.value_logits, parts.value.apply(targets.value))
  value = by_step(value_loss, targets.value_mask)
  reward_loss = to_target(reward_logits, parts.reward.apply(targets.reward))
  reward = by_step(reward_loss, targets.reward_mask)
  policy = by_step(to_target(predictions.policy_logits, targets.policy), targets.policy_mask)
  entropy = losses.entropy(jax.nn.softmax(predictions.policy_logits))
  entropy = by_step(entropy, targets.policy_mask)
  step_weights = losses.unroll_weights(num_steps)
  total = (
    jnp.sum(step_weights * (policy - config.entropy_cost * entropy + config.value_cost * value))
    + config.reward_cost * jnp.sum(reward) / num_steps
  )
  metrics, priorities = _diagnostics(parts, first, returns, targets, trajectory)
  if codes is not None:
    chance, found = _chance_losses(config, parts, codes, afterstates, targets, by_step)
    total += chance
    metrics |= found
  for name, steps in (("value", value), ("policy", policy)):
    metrics |= {f"loss/{name}_step_{k}": steps[k] for k in range(num_steps + 1)}
  metrics |= {f"loss/reward_step_{k + 1}": reward[k] for k in range(num_steps)}
  metrics |= {
    "loss/value": jnp.sum(step_weights * value),
    "loss/policy": jnp.sum(step_weights * policy),
    "loss/reward": jnp.sum(reward) / num_steps,
    "loss/entropy": entropy[0],
  }
  return total, agent_lib.LossInfo(metrics=metrics, priorities=priorities)


class _Codes(NamedTuple):
  """What chance did in each unroll step, `[K, T*B, C]`.

  Attributes:
    one_hot: the code, with the gradient of its probabilities.
    probabilities: of the encoder.
  """

  one_hot: Array
  probabilities: Array


def _unrolled_codes(probabilities: Array, arrival_mask: Array, length: int) -> _Codes:
  """Gathers the codes of each unroll step.

  Args:
    probabilities: `[T*B, C]` of the encoder, of every time step.
    arrival_mask: `[T*B, K]`, see `losses.UnrollTargets`.
    length: T.
  """
  mask = arrival_mask.reshape(length, -1, arrival_mask.shape[-1])

  def unrolled(codes: Array) -> Array:
    codes = codes.reshape(length, -1, codes.shape[-1])
    gathered = jax.vmap(losses.unroll_codes, in_axes=1, out_axes=1)(codes, mask)
    return jnp.moveaxis(_merged(gathered), 1, 0)

  return _Codes(unrolled(losses.straight_through(probabilities)), unrolled(probabilities))


def _chance_losses(
  config: muzero_config.MuZeroConfig,
  parts: _Parts,
  codes: _Codes,
  afterstates: model_lib.Afterstate,
  targets: losses.UnrollTargets,
  by_step: Callable[..., Array],
) -> tuple[Array, types.Metrics]:
  """Returns L_chance, of what is said before chance decides and of the codes (Antonoglou et al. 2022).

  Args:
    config: of the agent.
    parts: of the agent.
    codes: of each unroll step.
    afterstates: `[K, T*B, ...]`.
    targets: of `T*B` roots.
    by_step: loss of each element `[K, T*B]` and mask `[T*B, K]` -> mean by unroll step `[K]`.
  """
  code, mask = jax.lax.stop_gradient(codes.one_hot), targets.arrival_mask
  value_target = jnp.moveaxis(parts.value.apply(targets.value[:, :-1]), 1, 0)
  parts_of_loss = {
    "afterstate_value": by_step(
      losses.cross_entropy(afterstates.value_logits, value_target), targets.value_mask[:, :-1]
    ),
    "chance": by_step(losses.cross_entropy(afterstates.chance_logits, code), mask),
    "commitment": by_step(jnp.sum(jnp.square(code - codes.probabilities), axis=-1), mask),
  }
  mean = {name: jnp.mean(loss) for name, loss in parts_of_loss.items()}
  total = (
    config.value_cost * mean["afterstate_value"]
    + config.chance_cost * mean["chance"]
    + config.commitment_cost * mean["commitment"]
  )
  count = jnp.sum(jnp.where(mask.T[..., None], code, 0.0), axis=(0, 1))
  metrics = {f"loss/{name}": loss for name, loss in mean.items()}
  # As many codes, all as frequent, would be as varied.
  share = count / jnp.maximum(jnp.sum(mask), 1)
  metrics["loss/num_chance_codes_used"] = jnp.exp(losses.entropy(share))
  return total, metrics


def _returns(
  config: muzero_config.MuZeroConfig,
  parts: _Parts,
  target_params: types.Params,
  timesteps: types.TimeStep,
) -> Array:
  """Returns the targets of the values `[T, B]`, bootstrapped from the target parameters."""
  latent = parts.represent(target_params, _merged(timesteps.observation))
  logits = parts.predict(target_params, latent).value_logits
  values = parts.value_of(logits).reshape(timesteps.reward.shape)

  def one(timestep: types.TimeStep, value: Array) -> Array:
    return losses.value_targets(
      timestep.step_type,
      timestep.reward[1:],
      parts.discount * timestep.discount[1:],
      value[1:],
      config.td_steps,
      config.td_lambda,
    )

  returns = jax.vmap(one, in_axes=1, out_axes=1)(timesteps._replace(observation=()), values)
  return jax.lax.stop_gradient(returns)


def _diagnostics(
  parts: _Parts,
  first: model_lib.Prediction,
  returns: Array,
  targets: losses.UnrollTargets,
  trajectory: types.Trajectory,
) -> tuple[types.Metrics, Array]:
  """Returns metrics of the search and of the roots, and the errors of the roots by unroll, `[B]`."""
  acted: Any = trajectory.actor_outputs
  shape = acted.action.shape
  mask = targets.policy_mask[:, 0]  # [T*B]: a root that acted.
  visits = targets.policy[:, 0]
  num_roots = jnp.maximum(jnp.sum(mask), 1)

  def mean(x: Array) -> Array:
    return jnp.sum(jnp.where(mask, x.reshape(-1), 0.0)) / num_roots

  cross_entropy = losses.cross_entropy(first.policy_logits, visits)
  entropy = losses.entropy(visits)
  value = jax.lax.stop_gradient(parts.value_of(first.value_logits))
  error = jnp.where(mask, jnp.abs(value - returns.reshape(-1)), 0.0)
  metrics = {
    "search/prior_kl": mean(cross_entropy - entropy),
    "search/entropy": mean(entropy),
    "search/value_error": mean(jnp.abs(acted.search_value - returns)),
    "search/value_mean": mean(acted.search_value),
    "loss/value_error": mean(error),
    "loss/masked_fraction": 1.0 - jnp.mean(targets.value_mask),
    "loss/masked_policy_fraction": 1.0 - jnp.mean(targets.policy_mask),
  }
  if acted.search_depth is not None:  # Recorded data has none.
    metrics["search/depth"] = mean(acted.search_depth)
  return metrics, jnp.mean(error.reshape(shape), axis=0)


def _temperature(config: muzero_config.SearchConfig, params: types.Params) -> Any:
  """Returns the temperature of exploration, linear in the gradient steps."""
  if not config.temperature_steps:
    return config.temperature
  done = jnp.minimum(params["gradient_steps"] / config.temperature_steps, 1.0)
  return config.temperature + done * (config.final_temperature - config.temperature)


def _policy_of(spec: types.EnvironmentSpec) -> distributions.ActionDistribution:
  return distributions.make_distribution(spec.action)


def _merged(tree: Any) -> Any:
  """Merges the two leading axes of every leaf."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
