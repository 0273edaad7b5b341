"""Trees of shardings over a mesh of virtual devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import sharding

P = jax.sharding.PartitionSpec


class Learner(NamedTuple):
  params: Any
  count: Any


class State(NamedTuple):
  learner: Any
  actor: Any


STATE = State(
  Learner({"w": jnp.ones((2,))}, jnp.zeros(())), actor=(jnp.ones((4, 3)), jnp.ones((4, 0)))
)


def make_shardings():
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  return sharding.on_mesh(mesh, State(learner=P(), actor=P("devices")))


def test_one_entry_stands_for_all_below_it():
  shardings = make_shardings()
  assert shardings.learner.spec == P() and shardings.actor.spec == P("devices")
  abstract = sharding.abstract(jax.eval_shape(lambda: STATE), shardings)
  assert abstract.learner.params["w"].sharding == shardings.learner
  assert abstract.actor[0].sharding == shardings.actor and abstract.actor[0].shape == (4, 3)


def test_only_arrays_without_elements_are_placed():
  shardings = make_shardings()
  placed = sharding.place_empty(STATE, shardings)
  assert placed.actor[1].sharding == shardings.actor
  assert placed.actor[0] is STATE.actor[0] and placed.learner.count is STATE.learner.count


def test_a_checkpoint_has_the_parameters_by_themselves():
  items = sharding.to_checkpoint(STATE)
  assert items["params"] is STATE.learner.params and items["state"].learner.params is None
  assert sharding.from_checkpoint(items) == STATE
