"""Which episodes of a task to learn from: masks and weights over its index; nothing is deleted.

On a command line a filter is its name, and after a colon its one option: `norm80`,
`top_fraction:0.1`. Several are taken in order, each over what the one before has left.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from podracer import config

RETURN = "episode_return"
RETURN_RANK = "return_rank"


class Rows(Protocol):
  """What a filter sees of a dataset."""

  @property
  def task(self) -> str:
    """Name of the task."""
    ...

  @property
  def scores(self) -> Mapping[str, Any]:
    """Name of who plays (random, expert, human) -> its score, with `mean`."""
    ...

  def __len__(self) -> int: ...

  def column(self, name: str) -> np.ndarray:
    """Returns `[N]` values of the index. Raises InputError for a name that it does not have."""
    ...


class Filter(NamedTuple):
  """A filter as a person gives it."""

  name: str
  options: dict[str, Any]

  def __str__(self) -> str:
    return ":".join([self.name, *(str(value) for value in self.options.values())])


class Choice(NamedTuple):
  """What a filter says of N episodes.

  Attributes:
    name: of the filter, with its options.
    mask: `[N]` True where an episode is kept.
    weights: `[N]` at least 0, how likely a step of each is to be sampled, or None.
  """

  name: str
  mask: np.ndarray
  weights: np.ndarray | None


def norm80(rows: Rows, share: float = 0.8) -> np.ndarray:
  """Returns `[N]` whether an episode has a share of what the expert has above random play.

  (R - R_random) / (R_expert - R_random) >= share: Gato's rule made invariant to the zero of the
  returns, and so the default.
  """
  random, expert = _score(rows, "random"), _score(rows, "expert")
  config.check(
    expert > random,
    f"filter norm80: the expert of {rows.task} has {expert:g}, which is not above random {random:g}",
  )
  return (rows.column(RETURN) - random) / (expert - random) >= share


def gato80(rows: Rows, share: float = 0.8) -> np.ndarray:
  """Returns `[N]` whether an episode has a share of the expert return, to the letter.

  Reed et al. (2022), *A Generalist Agent*, appendix D. The expert return is the maximum over the
  means of W episodes in the order of their collection, W = min(1000, 0.1 N). Where it is negative
  the rule asks for more than the expert has: see `norm80`.
  """
  return rows.column(RETURN) >= share * gato_expert_return(rows)


def gato_expert_return(rows: Rows) -> float:
  """Returns the maximum over windowed means of the return, see `gato80`."""
  order = np.lexsort((rows.column("lifetime_step"), rows.column("teacher_step")))
  returns = rows.column(RETURN)[order].astype(np.float64)
  window = max(1, min(1000, len(returns) // 10))
  total = np.concatenate([[0.0], np.cumsum(returns)])
  return float(np.max(total[window:] - total[:-window])) / window


def top_fraction(rows: Rows, fraction: float) -> np.ndarray:
  """Returns `[N]` whether an episode is among the best ceil(fraction N); the earlier wins a tie."""
  config.check(0 < fraction <= 1, f"filter top_fraction: must be in (0, 1], got {fraction:g}")
  # The product of, say, 0.07 and 100 is a bit above 7.
  num_kept = math.ceil(round(fraction * len(rows), 9))
  best = np.argsort(-rows.column(RETURN), kind="stable")[:num_kept]
  mask = np.zeros(len(rows), bool)
  mask[best] = True
  return mask


def min_return(rows: Rows, value: float) -> np.ndarray:
  """Returns `[N]` whether an episode has at least this return."""
  return rows.column(RETURN) >= value


def last_k_checkpoints(rows: Rows, k: int) -> np.ndarray:
  """Returns `[N]` whether an episode is by one of the k newest checkpoints of its teacher.

  What was recorded while training is by no checkpoint, and not kept.
  """
  config.check(k >= 1, f"filter last_k_checkpoints: must be at least 1, got {k}")
  saved = rows.column("teacher_checkpoint") != ""
  config.check(
    bool(saved.any()),
    f"filter last_k_checkpoints: no episode of {rows.task} is by a checkpoint, all are of training",
  )
  teachers, steps = rows.column("teacher_id"), rows.column("teacher_step")
  mask = np.zeros(len(rows), bool)
  for teacher in np.unique(teachers[saved]):
    mine = saved & (teachers == teacher)
    mask |= mine & (steps >= np.unique(steps[mine])[-k:][0])
  return mask


def sample_weight(rows: Rows, by: Any = RETURN_RANK) -> np.ndarray:
  """Returns `[N]` how much likelier a step of an episode is to be sampled; see `sources`.

  Args:
    rows: the episodes.
    by: `return_rank`: rank / N with 1 for the worst and N for the best, the mean rank in a tie. Or a
      column of the index, taken as it is, or `[N]` numbers.
  """
  if isinstance(by, str):
    weights = _return_rank(rows) if by == RETURN_RANK else rows.column(by)
  else:
    weights = np.asarray(by)
  name = by if isinstance(by, str) else "the weights"
  config.check(
    weights.shape == (len(rows),) and weights.dtype.kind in "biuf",
    f"filter sample_weight: {name} must be one number an episode",
  )
  weights = weights.astype(np.float64)
  config.check(
    bool(np.isfinite(weights).all() and (weights >= 0).all() and weights.any()),
    f"filter sample_weight: {name} must be at least 0 and not 0 everywhere; by return: {RETURN_RANK}",
  )
  return weights


def _return_rank(rows: Rows) -> np.ndarray:
  _, inverse, counts = np.unique(rows.column(RETURN), return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse] / len(rows)


def _score(rows: Rows, player: str) -> float:
  score = rows.scores.get(player) or {}
  if score.get("mean") is None:
    raise config.InputError(
      f"filter norm80 needs the {player} score of {rows.task}, which scores.json does not have;"
      " gato80, top_fraction and min_return need none"
    )
  return float(score["mean"])


class _Kind(NamedTuple):
  """A filter there is.

  Attributes:
    function: rows and its option -> `[N]` mask, or weights.
    option: the name of its option.
    type: of the option.
    is_required: whether the option has no default.
    example: how to write it.
  """

  function: Callable[..., np.ndarray]
  option: str
  type: type
  is_required: bool
  example: str


FILTERS = {
  "norm80": _Kind(norm80, "share", float, False, "norm80 or norm80:0.9"),
  "gato80": _Kind(gato80, "share", float, False, "gato80 or gato80:0.9"),
  "top_fraction": _Kind(top_fraction, "fraction", float, True, "top_fraction:0.1"),
  "min_return": _Kind(min_return, "value", float, True, "min_return:200"),
  "last_k_checkpoints": _Kind(last_k_checkpoints, "k", int, True, "last_k_checkpoints:3"),
  "sample_weight": _Kind(
    sample_weight, "by", str, False, "sample_weight or sample_weight:<column>"
  ),
}


def parse(text: str) -> Filter:
  """Returns a filter from `name` or `name:value`. Raises InputError for what is no filter."""
  name, colon, value = text.partition(":")
  kind = _kind(name)
  if not colon:
    options: dict[str, Any] = {}
  else:
    try:
      options = {kind.option: kind.type(value)}
    except ValueError:
      raise config.InputError(f"filter {text!r}: write {kind.example}") from None
  made = Filter(name, options)
  _check_options(made)
  return made


def apply(view: Any, texts: Iterable[str]) -> Any:
  """Returns a dataset or a collection as filters leave it, one after the other; see `parse`."""
  for text in texts:
    wanted = parse(text)
    view = view.filter(wanted.name, **wanted.options)
  return view


def choose(rows: Rows, wanted: str | Callable[..., Any], options: Mapping[str, Any]) -> Choice:
  """Applies a filter.

  Args:
    rows: N episodes.
    wanted: the name of a filter, or rows and options -> `[N]` bool.
    options: of the filter.

  Returns:
    Which episodes it keeps, at least one.

  Raises:
    InputError: for a name or an option that there is not, a score that is missing, and where no
      episode is left.
  """
  if isinstance(wanted, str):
    _check_options(Filter(wanted, dict(options)))
    function, name = _kind(wanted).function, str(Filter(wanted, dict(options)))
  else:
    function = wanted
    name = str(Filter(getattr(wanted, "__name__", type(wanted).__name__), dict(options)))
  result = np.asarray(function(rows, **options))
  if function is sample_weight:
    return Choice(name, np.ones(len(rows), bool), result)
  config.check(
    result.shape == (len(rows),) and result.dtype == bool,
    f"filter {name} must return a bool for each of {len(rows)} episodes, not"
    f" {result.dtype.name}{list(result.shape)}",
  )
  if not result.any():
    raise config.InputError(_none_left(rows, name))
  return Choice(name, result, None)


def _none_left(rows: Rows, name: str) -> str:
  returns = rows.column(RETURN)
  message = f"filter {name} leaves none of the {len(rows)} episodes of {rows.task}, whose returns"
  message += f" are {returns.min():g} to {returns.max():g}"
  if name.startswith("gato80") and gato_expert_return(rows) < 0:
    message += "; gato80 asks for too much where returns are negative, norm80 does not"
  return message


def _kind(name: str) -> _Kind:
  if name not in FILTERS:
    close = config.nearest(name, FILTERS)
    hint = f"; nearest: {close[0]}" if close else ""
    raise config.InputError(f"unknown filter {name}{hint} (there is: {', '.join(FILTERS)})")
  return FILTERS[name]


def _check_options(wanted: Filter) -> None:
  kind = _kind(wanted.name)
  for option, value in wanted.options.items():
    config.check(
      option == kind.option,
      f"filter {wanted.name} has no option {option} (there is: {kind.option})",
    )
    if kind.type is not str:
      is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
      config.check(
        bool(is_number and kind.type(value) == value), f"filter {wanted}: write {kind.example}"
      )
  config.check(
    bool(wanted.options) or not kind.is_required,
    f"filter {wanted.name} needs its {kind.option}: write {kind.example}",
  )
