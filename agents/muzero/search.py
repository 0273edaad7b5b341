"""The tree search of MuZero, by mctx, in the learnt model."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from podracer import distributions, types

from . import config as muzero_config

Array = types.Array


class SearchOutput(NamedTuple):
  """What a search finds, `[B, ...]`.

  Attributes:
    action: int32, to be played.
    visits: `[A]` the improved policy, probability 0 where an action is illegal.
    value: of the root after the search.
    depth: float32, of the deepest node.
  """

  action: Array
  visits: Array
  value: Array
  depth: Array


Search = Callable[..., SearchOutput]


class ChanceModel(NamedTuple):
  """A model in which chance decides what becomes of an action (Antonoglou et al. 2022).

  Attributes:
    decide: (params, key, action `[B]`, latent) -> (mctx.DecisionRecurrentFnOutput, afterstate).
    happen: (params, key, code `[B]`, afterstate) -> (mctx.ChanceRecurrentFnOutput, latent).
  """

  decide: Callable[..., Any]
  happen: Callable[..., Any]


def make_search(
  config: muzero_config.SearchConfig, model: Callable[..., Any] | ChanceModel, explore: bool
) -> Search:
  """Builds the search.

  Args:
    config: of the search.
    model: a `ChanceModel` for the policy `stochastic`; for the others a function (params, key, action
      `[B]`, latent `[B, ...]`) -> (mctx.RecurrentFnOutput, latent).
    explore: False searches without noise, and plays the best action found.

  Returns:
    (params, key, root, mask, temperature) -> SearchOutput. `root` is an `mctx.RootFnOutput`, `mask`
    `[B, A]` bool of the legal actions, or None; `temperature` scales the noise, 0 has none.
  """
  num_simulations = config.num_simulations
  if not explore and config.evaluation_simulations:
    num_simulations = config.evaluation_simulations
  policy = _make_policy(config, model, explore)
  # A step in a model with chance is two edges of the tree.
  edges_per_step = 2 if config.policy == "stochastic" else 1

  def search(
    params: types.Params, key: types.Key, root: Any, mask: Array | None, temperature: Any
  ) -> SearchOutput:
    output = policy(
      params,
      key,
      root,
      temperature if explore else 0.0,
      num_simulations=num_simulations,
      max_depth=edges_per_step * config.max_depth or None,
      invalid_actions=None if mask is None else illegal(mask),
    )
    action = output.action
    if config.policy != "gumbel" and not explore:
      # mctx would draw among actions that were visited equally often.
      action = jnp.argmax(output.action_weights, axis=-1)
    tree = output.search_tree
    return SearchOutput(
      action=action.astype(jnp.int32),
      visits=output.action_weights,
      value=tree.node_values[:, tree.ROOT_INDEX],
      depth=jnp.ceil(tree_depth(tree.parents) / edges_per_step),
    )

  return search


def _make_policy(
  config: muzero_config.SearchConfig, model: Any, explore: bool
) -> Callable[..., Any]:
  """Returns one of mctx's policies: (params, key, root, temperature, **options) -> its output."""

  def gumbel(params: Any, key: types.Key, root: Any, temperature: Any, **options: Any) -> Any:
    if explore and config.uniform_fraction:
      invalid = options["invalid_actions"]
      mask = None if invalid is None else ~invalid
      logits = mix_with_uniform(root.prior_logits, mask, config.uniform_fraction)
      root = root.replace(prior_logits=logits)
    return mctx.gumbel_muzero_policy(
      params,
      key,
      root,
      model,
      max_num_considered_actions=config.max_num_considered_actions,
      gumbel_scale=temperature,
      qtransform=functools.partial(
        mctx.qtransform_completed_by_mix_value,
        value_scale=config.value_scale,
        epsilon=config.min_value_range,
      ),
      **options,
    )

  def by_visits(params: Any, key: types.Key, root: Any, temperature: Any, **options: Any) -> Any:
    options |= {
      "qtransform": functools.partial(
        mctx.qtransform_by_parent_and_siblings, epsilon=config.min_value_range
      ),
      "dirichlet_fraction": float(config.dirichlet_fraction) if explore else 0.0,
      "dirichlet_alpha": float(config.dirichlet_alpha),
      "temperature": temperature,
    }
    if config.policy == "stochastic":
      return mctx.stochastic_muzero_policy(params, key, root, model.decide, model.happen, **options)
    return mctx.muzero_policy(params, key, root, model, **options)

  return gumbel if config.policy == "gumbel" else by_visits


def mix_with_uniform(logits: Array, mask: Array | None, fraction: float) -> Array:
  """Returns the logits of a policy that draws uniformly from the legal actions for a fraction of the time.

  Args:
    logits: `[B, A]`.
    mask: `[B, A]` True for legal actions, or None where all are.
    fraction: in (0, 1].
  """
  policy = jax.nn.softmax(distributions.mask_logits(logits, mask))
  uniform = jax.nn.softmax(distributions.mask_logits(jnp.zeros_like(logits), mask))
  mixed = (1.0 - fraction) * policy + fraction * uniform
  return distributions.mask_logits(jnp.log(mixed), mask)


def illegal(mask: Array) -> Array:
  """Returns `[B, A]` True for illegal actions; where none is legal, after an end, all are allowed."""
  return ~mask & jnp.any(mask, axis=-1, keepdims=True)


def tree_depth(parents: Array) -> Array:
  """Returns the float32 depth `[B]` of the deepest node of trees with parents `[B, N]`, -1 at the root.

  Each round doubles the distance that is looked up, so it takes log2(N) of them.
  """
  depth = (parents >= 0).astype(jnp.int32)
  ancestor = jnp.maximum(parents, 0)
  for _ in range(max(1, (parents.shape[1] - 1).bit_length())):
    depth = depth + jnp.take_along_axis(depth, ancestor, axis=1)
    ancestor = jnp.take_along_axis(ancestor, ancestor, axis=1)
  return jnp.max(depth, axis=1).astype(jnp.float32)
