import jax.numpy as jnp
import numpy as np

from podracer.agents.impala import popart


def test_moments_follow_the_targets_of_each_task():
  targets = jnp.asarray([[1.0, 3.0], [5.0, 7.0]])
  tasks = jnp.asarray([[0, 0], [1, 1]])
  valid = jnp.asarray([[True, True], [True, False]])
  batch = popart.statistics(targets, tasks, valid, num_tasks=3)
  new = popart.update(popart.initial_state(3), batch, step_size=1.0)
  # Task 0 saw 1 and 3, task 1 saw 5 alone, task 2 nothing.
  np.testing.assert_allclose(new.mean, [2.0, 5.0, 0.0])
  np.testing.assert_allclose(new.second_moment, [5.0, 25.0, 1.0])
  np.testing.assert_allclose(new.scale, [1.0, popart.MIN_SCALE, 1.0])


def test_outputs_are_preserved():
  rng = np.random.default_rng(0)
  features, kernel = rng.normal(size=(5, 4)), jnp.asarray(rng.normal(size=(4, 2)))
  bias = jnp.asarray(rng.normal(size=2))
  old = popart.PopArtState(mean=jnp.asarray([1.0, -2.0]), second_moment=jnp.asarray([5.0, 8.0]))
  new = popart.PopArtState(mean=jnp.asarray([9.0, 0.5]), second_moment=jnp.asarray([90.0, 1.0]))
  new_kernel, new_bias = popart.preserve_outputs(kernel, bias, old, new)
  before = old.scale * (features @ kernel + bias) + old.mean
  after = new.scale * (features @ new_kernel + new_bias) + new.mean
  np.testing.assert_allclose(before, after, rtol=1e-5)
