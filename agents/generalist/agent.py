"""The generalist as agents: the learner of all tasks at once, and an actor for each of them.

Reed et al. (2022), *A Generalist Agent*; with `config.histories` algorithm distillation, Laskin et al.
(2022), *In-context Reinforcement Learning with Algorithm Distillation*.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import types
from podracer.data import schema

from . import config as generalist_config
from . import decoding, losses, network, prompts, tokeniser
from . import layout as layout_lib

Array = types.Array
Layouts = Mapping[str, layout_lib.Layout]


def make_network(config: generalist_config.GeneralistConfig, layouts: Layouts) -> network.Decoder:
  """Returns the network of all tasks."""
  return network.Decoder(config, layout_lib.sizes(layouts.values()))


def make_agent(config: generalist_config.GeneralistConfig, layouts: Layouts) -> agent_lib.Agent:
  """Builds the agent that learns all tasks; what acts is of one task, see `make_actor`.

  Its loss takes in place of a trajectory a batch of `batches.batches`, task -> name of a field ->
  `[B_task, S_task, ...]`. A task has as large a share of the loss as of the rows.

  Args:
    config: hyper-parameters.
    layouts: of the tasks, by name.

  Returns:
    Pure functions of which `init` and `loss` can be called.
  """
  decoder = make_network(config, layouts)

  def init(key: types.Key) -> types.Params:
    embedded = jnp.zeros((1, 1, config.width))
    return decoder.init(key, embedded, method="initialise")

  def loss(
    params: types.Params, target_params: types.Params, key: types.Key, batch: Any
  ) -> tuple[Array, agent_lib.LossInfo]:
    del target_params, key
    tokens = {t: tokeniser.tokenise(layouts[t], steps) for t, steps in sorted(batch.items())}
    embedded = [embed(params, layouts[task], of_task) for task, of_task in tokens.items()]
    hidden: Any = decoder.apply(params, jnp.concatenate(embedded))
    num_rows = hidden.shape[0]
    total, metrics, begin = jnp.zeros(()), {}, 0
    for task, of_task in tokens.items():
      rows = of_task.ids.shape[0]
      logits = action_logits(params, layouts[task], hidden[begin : begin + rows], of_task)
      action = of_task.ids[..., layouts[task].action_start :]
      mask = losses.action_mask(batch[task])
      total += jnp.sum(jax.vmap(losses.action_loss)(logits, action, mask)) / num_rows
      metrics[f"accuracy/{task}"] = losses.accuracy(logits, action, mask)
      begin += rows
    return total, agent_lib.LossInfo(metrics=metrics)

  def embed(params: Any, layout: layout_lib.Layout, tokens: tokeniser.Tokens) -> Any:
    """Returns `[B, L, width]`, filled up behind the last step, where nothing that counts looks."""
    embedded: Any = decoder.apply(params, layout, tokens, method="embed")
    return jnp.pad(embedded, ((0, 0), (0, config.context - embedded.shape[1]), (0, 0)))

  def action_logits(
    params: Any, layout: layout_lib.Layout, hidden: Any, tokens: tokeniser.Tokens
  ) -> Any:
    """Returns `[B, S, k, V]` from the hidden states in front of the action tokens."""
    rows, steps, size = tokens.ids.shape
    hidden = hidden[:, : steps * size].reshape(rows, steps, size, -1)
    return decoder.apply(params, hidden[:, :, layout.action_start - 1 : -1], method="logits")

  def refuse(*args: Any, **keywords: Any) -> Any:
    raise config_lib.InputError(
      "a generalist acts in one task: make_actor(config, layouts, task, spec)"
    )

  return agent_lib.Agent(init=init, initial_state=refuse, act=refuse, loss=loss)


class ActorParams(NamedTuple):
  """What an actor acts with.

  Attributes:
    network: the parameters that were learnt.
    prompts: the cache with each of P demonstrations read, or None.
  """

  network: types.Params
  prompts: network.Cache | None


class ActorState(NamedTuple):
  """What an actor remembers.

  Attributes:
    cache: `[B, ...]`.
    prompt: `[B]` int32, which demonstration stands in front.
  """

  cache: network.Cache
  prompt: Array


def with_prompts(
  config: generalist_config.GeneralistConfig,
  layouts: Layouts,
  task: str,
  params: types.Params,
  demonstrations: prompts.Prompts | None,
) -> ActorParams:
  """Returns learnt parameters with the demonstrations read once, so that acting needs no more of them."""
  if demonstrations is None:
    return ActorParams(params, None)
  decoder, layout = make_network(config, layouts), layouts[task]
  steps = {name: jnp.asarray(value) for name, value in demonstrations.steps.items()}
  tokens = tokeniser.tokenise(layout, steps)
  embedded: Any = decoder.apply(params, layout, tokens, method="embed")
  extend: Any = functools.partial(decoder.apply, params, method="extend")
  _, cache = extend(embedded, network.empty_cache(config, embedded.shape[0]))
  # What was filled up is behind the end, where no one looks.
  lengths = jnp.asarray(demonstrations.lengths, jnp.int32) * layout.step_tokens
  return ActorParams(params, cache._replace(length=lengths))


def make_actor(
  config: generalist_config.GeneralistConfig,
  layouts: Layouts,
  task: str,
  spec: types.EnvironmentSpec,
  demonstrations: prompts.Prompts | None = None,
) -> agent_lib.Agent:
  """Builds the agent that acts in one task.

  Its parameters are `ActorParams`, see `with_prompts`. Where an episode begins it forgets all but the
  demonstration; with `config.histories` it forgets nothing.

  Args:
    config: hyper-parameters.
    layouts: of the tasks that were learnt, by name.
    task: one of them.
    spec: of its environment.
    demonstrations: to stand in front of every episode, or None.

  Raises:
    InputError: for an environment whose observations or actions are others than those learnt from.
  """
  layout = layouts[task]
  check_spec(task, layout, spec)
  learner, decoder = make_agent(config, layouts), make_network(config, layouts)
  num_prompts = 0 if demonstrations is None else len(demonstrations.lengths)

  def init(key: types.Key) -> ActorParams:
    return with_prompts(config, layouts, task, learner.init(key), demonstrations)

  def initial_state(batch_size: int) -> ActorState:
    prompt = jnp.arange(batch_size, dtype=jnp.int32) % max(1, num_prompts)
    return ActorState(network.empty_cache(config, batch_size), prompt)

  def act(
    params: ActorParams, key: types.Key, timestep: types.TimeStep, state: ActorState, explore: bool
  ) -> tuple[types.ActorOutput, ActorState]:
    cache = state.cache
    if not config.histories:
      cache = jax.lax.cond(
        jnp.any(timestep.is_first()), _reset, _keep, params, state, timestep.is_first()
      )
    chosen, cache = decoding.decode_action(
      decoder, layout, spec, params.network, key, timestep, cache, explore
    )
    return chosen, state._replace(cache=cache)

  return agent_lib.Agent(init=init, initial_state=initial_state, act=act, loss=learner.loss)


def _keep(params: ActorParams, state: ActorState, is_first: Array) -> network.Cache:
  """Returns the cache as it is."""
  del params, is_first
  return state.cache


def _reset(params: ActorParams, state: ActorState, is_first: Array) -> network.Cache:
  """Returns the cache with only the demonstration where an episode begins."""
  if params.prompts is None:
    return state.cache._replace(length=jnp.where(is_first, 0, state.cache.length))
  # The ring may have overwritten the demonstration, so it is written anew.
  fresh = jax.tree.map(lambda x: x[state.prompt], params.prompts)
  cache: network.Cache = network.select(is_first, fresh, state.cache)
  return cache


def check_spec(task: str, layout: layout_lib.Layout, spec: types.EnvironmentSpec) -> None:
  """Raises InputError unless an environment has the observations and actions of a task."""
  observed = schema.flatten_observation(spec.observation)
  for part in layout.parts:
    shape = tuple(observed[part.name].shape) if part.name in observed else None
    config_lib.check(
      shape == part.shape,
      f"{spec.name} is not {task}: {part.name} is {shape and list(shape)}, not {list(part.shape)}",
    )
  if isinstance(spec.action, types.DiscreteActions):
    found, wanted = f"{spec.action.num_actions} actions", f"{layout.num_actions} actions"
  else:
    found, wanted = f"{spec.action.size} dimensions", f"{layout.action_size} dimensions"
    wanted = wanted if not layout.num_actions else f"{layout.num_actions} actions"
  config_lib.check(found == wanted, f"{spec.name} is not {task}: it has {found}, not {wanted}")
