"""What a recorded step holds: its fields, their dtypes and shapes.

The fields are those of RLDS (Ramos et al. 2021) and, beside them, what the agent said on acting. A step
is at a time t of `types`: it holds the observation at t and the action taken in it, and the reward and
discount that *follow* that action, as RLDS says. An episode of T transitions has T+1 steps; the last has
`is_last`, the final observation, and zeros for what comes from acting.
"""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # Readers have no use for JAX.
  from podracer import types

FORMAT_VERSION = "1.0.0"

OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DISCOUNT = "discount"
IS_FIRST = "is_first"
IS_LAST = "is_last"
IS_TERMINAL = "is_terminal"
POLICY_LOGITS = "policy_logits"
VALUE = "value"
BEHAVIOUR_LOG_PROB = "behaviour_log_prob"
SEARCH_VISITS = "search_visits"
SEARCH_VALUE = "search_value"
TEACHER_LOGITS = "teacher_logits"
TEACHER_VALUE = "teacher_value"
TEACHER_ACTION = "teacher_action"

VISITS_SCALE = 65535
"""`search_visits` are shares of the simulations, stored as uint16 in units of 1 / VISITS_SCALE."""


class Field(NamedTuple):
  """One field of a step.

  Attributes:
    name: `action`, or `observation/<key>` for a part of a dict of observations.
    shape: without the axis of time.
    dtype: name of the NumPy dtype it is stored in.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str


class Schema(NamedTuple):
  """The fields of a step, sorted by name."""

  fields: tuple[Field, ...]

  def names(self) -> tuple[str, ...]:
    """Returns the names of the fields."""
    return tuple(field.name for field in self.fields)


def make_schema(
  spec: "types.EnvironmentSpec", output: "types.ActorOutput", frame_stack: int = 1
) -> Schema:
  """Returns the schema of what an agent experiences in an environment.

  Args:
    spec: of the environment.
    output: what the agent says, `[B, ...]`, as arrays or jax.ShapeDtypeStruct.
    frame_stack: frames along the first axis of the observation, of which one is stored.
  """
  fields = [
    Field(name, tuple(leaf.shape[1:] if frame_stack > 1 else leaf.shape), np.dtype(leaf.dtype).name)
    for name, leaf in flatten_observation(spec.observation).items()
  ]
  fields += [
    Field(REWARD, (), "float32"),
    Field(DISCOUNT, (), "float32"),
    Field(IS_FIRST, (), "bool"),
    Field(IS_LAST, (), "bool"),
    Field(IS_TERMINAL, (), "bool"),
  ]
  for name, dtype in ACTOR_FIELDS.items():
    leaf = getattr(output, _ACTOR_NAMES.get(name, name))
    if leaf is not None:
      fields.append(Field(name, tuple(leaf.shape[1:]), dtype or np.dtype(leaf.dtype).name))
  return Schema(tuple(sorted(fields)))


# name -> stored dtype, or "" for that of the agent; half precision is enough for logits.
ACTOR_FIELDS = {
  ACTION: "",
  POLICY_LOGITS: "float16",
  VALUE: "float32",
  BEHAVIOUR_LOG_PROB: "float32",
  SEARCH_VISITS: "uint16",
  SEARCH_VALUE: "float32",
  TEACHER_LOGITS: "float16",
  TEACHER_VALUE: "float32",
  TEACHER_ACTION: "",
}
_ACTOR_NAMES = {POLICY_LOGITS: "logits", BEHAVIOUR_LOG_PROB: "log_prob"}


def actor_fields(output: "types.ActorOutput") -> dict[str, np.ndarray]:
  """Returns what an agent said as stored fields; leading axes are kept.

  Args:
    output: NumPy arrays `[..., *shape]`; `search_visits` are shares that sum to 1.
  """
  fields = {}
  for name, dtype in ACTOR_FIELDS.items():
    value = getattr(output, _ACTOR_NAMES.get(name, name))
    if value is None:
      continue
    value = np.asarray(value)
    if name == SEARCH_VISITS:
      value = np.rint(value * VISITS_SCALE)
    elif name in (POLICY_LOGITS, TEACHER_LOGITS):
      # The logits of actions that are not allowed are below what half precision holds.
      value = np.maximum(value, np.finfo(np.float16).min)
    fields[name] = value.astype(dtype) if dtype else value
  return fields


def flatten_observation(observation: Any) -> dict[str, Any]:
  """Returns the leaves of an observation, or of its spec, by the names of their fields."""
  import jax

  from podracer import types

  leaves, _ = jax.tree_util.tree_flatten_with_path(observation, is_leaf=types.is_array_spec)
  return {"/".join([OBSERVATION, *(_key_name(key) for key in path)]): leaf for path, leaf in leaves}


def _key_name(key: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  raise TypeError(f"an observation has a key of an unknown kind: {key!r}")


def task_id(env: str) -> str:
  """Returns the name of an environment as TFDS takes one: `envpool:Pong-v5` -> `envpool_pong_v5`."""
  words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", env)
  name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
  return name if name[:1].isalpha() else f"env_{name}"
