"""envpool: batches of Atari, classic control, Box2D, MuJoCo, MiniGrid and more, stepped in C++.

Weng et al. (2022), *EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine*.
Its reset is ours: the step after the last ignores its action, and is masked. At the loss of a life
(Atari's `episodic_life`) it makes such a step too, so the mask is "the step before was done", and not
`elapsed_step == 0`.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from podracer import config, files

LIBRARY = "envpool"
EXTRA = "envpool"
IS_HOST = True
ATARI_OPTIONS = (
  "frame_skip=4",
  "stack_num=4",
  "noop_max=30",
  "repeat_action_probability=0.0",
  "episodic_life=False",
  "full_action_space=False",
)
"""Atari as most report it: no sticky actions, whole games (no end at the loss of a life), 30 no-ops at
most, grey 84 x 84 pictures of 4 frames."""
_OURS = (
  "num_envs",
  "batch_size",
  "num_threads",
  "seed",
  "env_seed",
  "env_type",
  "thread_affinity_offset",
)
"""Options that belong to the machine, not to the environment."""
_AT_LEAST_ONE = ("frame_skip", "stack_num", "img_height", "img_width", "max_episode_steps")
"""envpool takes less than 1 of these and then does what it likes."""
_OF_A_TASK = {"base_path", "task_name", "render_mode", "max_num_players", "gym_reset_return_info"}


def __getattr__(name: str) -> Any:
  if name == "NAMES":
    return _names()
  raise AttributeError(f"module {__name__} has no attribute {name}")


def _names() -> tuple[str, ...]:
  """Returns envpool's environments; kept in a file, since its import takes two seconds."""
  try:
    version = importlib.metadata.version("envpool")
  except importlib.metadata.PackageNotFoundError:
    return ()
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  path = pathlib.Path(root) / "podracer" / f"envpool-{version}.json"
  try:
    return tuple(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError):
    pass
  import envpool

  names = tuple(sorted(envpool.list_all_envs()))
  with contextlib.suppress(OSError):  # It is only slower without.
    files.write(path, json.dumps(names).encode())
  return names


def make(name: str, **options: Any) -> Any:
  """Builds the factory of an envpool environment.

  Args:
    name: one of NAMES.
    **options: of the environment, such as Atari's `frame_skip` or anyone's `max_episode_steps`.

  Returns:
    A `host_environment.HostFactory`.

  Raises:
    InputError: for an unknown option or a bad value, an action space that is not supported, and an
      environment whose own libraries are missing.
  """
  import envpool

  from podracer import host_environment, types
  from podracer.environments import _adapt, _envpool_batches, _spaces

  # Said of the bounds of float64 spaces, by every pool that is made.
  warnings.filterwarnings("ignore", message=".*precision lowered by casting")
  full_name = f"envpool:{name}"
  try:
    defaults = dict(envpool.make_spec(name).config._asdict())
  except ImportError as error:
    raise config.InputError(f"environment {full_name} cannot be loaded: {error}") from error
  except RuntimeError as error:
    # One that has no defaults, such as VizdoomCustom-v1, whose scenario is a file of the user's.
    raise config.InputError(
      f"environment {full_name} cannot be loaded: {_first_line(error)}"
    ) from error
  valid = {key: value for key, value in defaults.items() if key not in {*_OURS, *_OF_A_TASK}}
  _adapt.check_options(full_name, options, valid)
  options = _adapt.check_numbers(full_name, options, valid)
  for key in _AT_LEAST_ONE:
    config.check(
      options.get(key, 1) >= 1,
      f"environment {full_name}: option {key} must be at least 1, got {options.get(key)!r}",
    )
  try:
    made = envpool.make_spec(name, **options)
    space, action_space = made.gymnasium_observation_space, made.gymnasium_action_space
  except (AssertionError, TypeError, ValueError, RuntimeError) as error:
    raise config.InputError(
      f"environment {full_name}: a bad value in {options}: {_first_line(error)}"
    ) from error
  config.check(
    defaults.get("max_num_players", 1) == 1,
    f"environment {full_name} has several players, which is not supported",
  )
  spec = types.EnvironmentSpec(
    name=full_name,
    observation=_observation_spec(full_name, space),
    action=_spaces.action_spec(full_name, action_space),
  )

  is_atari = "repeat_action_probability" in defaults
  frame_skip = int({**defaults, **options}.get("frame_skip", 1))

  def make_batch(seeds: Sequence[int], host: host_environment.HostOptions) -> Any:
    arguments = dict(options)
    config.check(
      host.batch_size <= len(seeds),
      f"environment {full_name}: {host.batch_size} environments at a time of only {len(seeds)}",
    )
    if host.whole_episodes:
      arguments |= {key: False for key in ("episodic_life",) if key in valid}
    if host.render:
      arguments["render_mode"] = "rgb_array"
    if host.batch_size:
      arguments["batch_size"] = host.batch_size
    pool = envpool.make(
      name,
      env_type="gymnasium",
      num_envs=len(seeds),
      seed=list(seeds),
      num_threads=host.num_threads,
      **arguments,
    )
    cls = _envpool_batches.AsyncEnvPool if host.batch_size else _envpool_batches.EnvPool
    return cls(pool, spec, action_space, len(seeds))

  return host_environment.HostFactory(
    spec=spec,
    make=make_batch,
    can_render=True,
    can_be_async=True,
    frames_per_second=max(1, 60 // frame_skip) if is_atari else 30,
    frames_per_step=frame_skip if is_atari else 1,
    frame_stack=_frame_stack({**defaults, **options}) if is_atari else 1,
  )


def _frame_stack(options: dict[str, Any]) -> int:
  # At the loss of a life the stack is not filled anew.
  return int(options["stack_num"]) if options["gray_scale"] and not options["episodic_life"] else 1


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def _observation_spec(name: str, space: Any) -> Any:
  from podracer import types
  from podracer.environments import _spaces

  spec = _spaces.observation_spec(name, space)
  if isinstance(spec, dict) and {"image", "direction", "mission"} <= spec.keys():
    # MiniGrid's pictures hold small numbers (objects, colours, states), not light.
    image: types.ArraySpec = spec["image"]
    return {**spec, "image": image._replace(maximum=10.0)}
  return spec
