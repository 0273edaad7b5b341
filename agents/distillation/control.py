"""Who acts: the student, a teacher, or a mixture of both (DAgger, Ross et al. 2011)."""

import jax
import jax.numpy as jnp

from podracer import distributions, types

from . import losses
from . import teacher as teacher_lib

Array = types.Array


def mix(
  policy: distributions.ActionDistribution,
  share: Array,
  is_there: Array,
  key: types.Key,
  output: types.ActorOutput,
  said: teacher_lib.TeacherOutput,
  explore: bool,
) -> types.ActorOutput:
  """Draws at each step who acts; of several teachers of a task each has the same chance.

  Args:
    policy: distribution over the actions.
    share: probability that a teacher acts, in [0, 1].
    is_there: `[B, K]` False where a row's task has fewer than K teachers; with none the student acts.
    key: consumed.
    output: of the student, `[B, ...]`.
    said: of the teachers, `[B, K, ...]`.
    explore: True samples the teacher's policy, False takes its best action.

  Returns:
    The output with the action taken, and with log probability and logits of the mixture from which it
    was drawn, so that V-trace corrects for it. The logits of a mixture of Gaussians, which are none, are
    those of whoever acted.
  """
  assert said.logits is not None and said.action is not None
  who_key, sample_key = jax.random.split(key)
  log_weights = _log_weights(share, is_there)  # [B, 1 + K], the student first.
  who = jax.random.categorical(who_key, log_weights)
  theirs = policy.sample(sample_key, said.logits) if explore else said.action
  everyone = jnp.concatenate([output.logits[:, None], said.logits], axis=1)  # [B, 1 + K, N]
  actions = jnp.concatenate([output.action[:, None], theirs], axis=1)
  action = _of_row(actions, who)
  taken = jnp.broadcast_to(action[:, None], actions.shape)
  log_prob = jax.nn.logsumexp(log_weights + policy.log_prob(everyone, taken), axis=1)
  logits = _of_row(everyone, who)
  if losses.is_categorical(policy):
    log_probs = jax.nn.log_softmax(everyone)
    logits = jax.nn.logsumexp(log_weights[..., None] + log_probs, axis=1)
  return output._replace(action=action, log_prob=log_prob, logits=logits)


def _log_weights(share: Array, is_there: Array) -> Array:
  """Returns `[B, 1 + K]` log probabilities that the student, and each teacher, acts."""
  num = jnp.sum(is_there, axis=1, keepdims=True)
  of_each = jnp.where(is_there, share / jnp.maximum(num, 1), 0.0)
  of_student = jnp.where(num > 0, 1.0 - share, 1.0)
  return jnp.log(jnp.concatenate([of_student, of_each], axis=1))


def _of_row(values: Array, index: Array) -> Array:
  """Returns `values[b, index[b]]` of `[B, 1 + K, ...]`."""
  index = index.reshape(-1, *[1] * (values.ndim - 1))
  return jnp.take_along_axis(values, index, axis=1)[:, 0]
