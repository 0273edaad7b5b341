"""brax: rigid-body control (Freeman et al. 2021)."""

from typing import Any

from podracer import config

LIBRARY = "brax"
EXTRA = "brax"
NAMES = (
  "ant",
  "fast",
  "halfcheetah",
  "hopper",
  "humanoid",
  "humanoidstandup",
  "inverted_double_pendulum",
  "inverted_pendulum",
  "pusher",
  "reacher",
  "walker2d",
)
"""brax's own but `swimmer`, which calls a form of `jnp.clip` that JAX has removed."""
BACKENDS = ("generalized", "mjx", "positional", "spring")


def make(name: str, **options: Any) -> Any:
  """Builds a brax environment.

  A brax environment without brax's wrappers has no time limit and no resets: `done` is an end. The
  time limit, brax's `episode_length`, truncates.

  Args:
    name: one of NAMES.
    **options: `episode_length` (1000) and arguments of the environment's constructor, such as
      `backend` (one of BACKENDS) and `n_frames`.

  Returns:
    An `environment.Environment` with actions in [-1, 1], which brax scales to its actuators.

  Raises:
    ValueError: for another option or a bad value.
  """
  import jax
  import jax.numpy as jnp
  from brax import envs

  from podracer import environment, types
  from podracer.environments import _adapt

  known = {"episode_length": 1000, **_adapt.arguments(envs._envs[name])}
  if name != "fast":
    known["n_frames"] = 1
  _adapt.check_options(f"brax:{name}", options, known)
  options = _adapt.check_numbers(f"brax:{name}", options, known)
  backend = options.get("backend")
  if backend is not None and backend not in BACKENDS:
    raise config.InputError(
      f"environment brax:{name}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}"
    )
  episode_length = options.pop("episode_length", 1000)
  made = envs.get_environment(name, **options)

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    state = made.reset(key)
    return state, state.obs

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    del key  # brax's steps are deterministic.
    state = made.step(state, action)
    return state, environment.Outcome(
      observation=state.obs,
      reward=state.reward,
      terminated=state.done > 0.5,
      truncated=jnp.zeros((), bool),
    )

  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  adapted = environment.Environment(
    spec=types.EnvironmentSpec(
      name=name,
      observation=jax.tree.map(lambda x: _adapt.array_spec(x.shape, x.dtype), observed),
      action=_adapt.box_actions(-1.0, 1.0, (made.action_size,)),
    ),
    reset=reset,
    step=step,
    reset_chunk=16,
  )
  return _adapt.time_limit(_adapt.stable_types(adapted), episode_length)
