"""Filters against cases counted by hand."""

import numpy as np
import pytest

from podracer import config
from podracer.data import filters

SCORES = {"random": {"mean": 10.0}, "expert": {"mean": 110.0}}


class Rows:
  """An index of returns, and columns of one value where nothing else is said."""

  def __init__(self, returns, scores=SCORES, **columns):
    self.task = "pong"
    self.scores = scores
    self._columns = {
      "episode_return": np.array(returns, np.float64),
      "teacher_step": np.zeros(len(returns), np.int64),
      "lifetime_step": np.arange(len(returns)),
      "teacher_id": np.full(len(returns), "t", object),
      "teacher_checkpoint": np.full(len(returns), "", object),
      **{name: np.array(value) for name, value in columns.items()},
    }

  def __len__(self):
    return len(self._columns["episode_return"])

  def column(self, name):
    config.check(name in self._columns, f"no column {name} of the index")
    return self._columns[name]


def kept(rows, wanted, **options):
  return np.flatnonzero(filters.choose(rows, wanted, options).mask).tolist()


# The 4 best of 20 episodes are 80 to 95; W = 2, so that the expert return is (95 + 90) / 2 = 92.5.
RISING = [5.0 * i for i in range(20)]


@pytest.mark.parametrize(
  ("returns", "wanted", "options", "expected"),
  [
    ([10, 89.9, 90, 110, 300], "norm80", {}, [2, 3, 4]),
    ([10, 89.9, 90, 110, 300], "norm80", {"share": 1.0}, [3, 4]),
    # 0.8 * 92.5 = 74
    (RISING, "gato80", {}, [15, 16, 17, 18, 19]),
    # Fewer than 20 episodes: W = 1, and the expert return is the best.
    ([100, 80, 79.9, 1], "gato80", {}, [0, 1]),
    ([3, 9, 1, 7, 5], "top_fraction", {"fraction": 0.4}, [1, 3]),
    ([3, 9, 1, 7, 5], "top_fraction", {"fraction": 0.41}, [1, 3, 4]),
    ([7, 7, 7, 7], "top_fraction", {"fraction": 0.5}, [0, 1]),
    ([1] * 100, "top_fraction", {"fraction": 0.07}, list(range(7))),
    ([3, 9, 1, 7, 5], "top_fraction", {"fraction": 1}, [0, 1, 2, 3, 4]),
    ([3, 9, 1], "min_return", {"value": 3}, [0, 1]),
    ([-21, -20, 3], "min_return", {"value": -20.0}, [1, 2]),
  ],
)
def test_kept(returns, wanted, options, expected):
  assert kept(Rows(returns), wanted, **options) == expected


def test_gato_takes_episodes_in_the_order_of_their_collection():
  # Of 20, W = 2: as collected no two of the 10 best follow one another, so that the mean is 5.
  returns, steps = [10.0] * 10 + [0.0] * 10, [*range(0, 20, 2), *range(1, 20, 2)]
  assert filters.gato_expert_return(Rows(returns, teacher_step=steps)) == 5.0
  assert filters.gato_expert_return(Rows(returns)) == 10.0


def test_gato_window_is_at_most_1000():
  returns = np.r_[np.zeros(19_000), np.ones(1000)]
  assert filters.gato_expert_return(Rows(returns)) == 1.0


def test_pong_where_gato_breaks():
  # An expert that has -3 on average: 0.8 * -3 = -2.4 asks more of an episode than the expert has.
  scores = {"random": {"mean": -20.7}, "expert": {"mean": -3.0}}
  rows = Rows([-20.0, -3.0, -3.0, -3.0], scores=scores)
  assert kept(rows, "norm80") == [1, 2, 3]
  with pytest.raises(config.InputError) as error:
    kept(rows, "gato80")
  assert str(error.value) == (
    "filter gato80 leaves none of the 4 episodes of pong, whose returns are -20 to -3; gato80 asks"
    " for too much where returns are negative, norm80 does not"
  )


def test_last_k_checkpoints_are_those_of_each_teacher():
  rows = Rows(
    [0] * 7,
    teacher_id=["a", "a", "a", "b", "b", "a", "a"],
    teacher_step=[10, 20, 20, 5, 7, 30, 99],
    teacher_checkpoint=["x", "y", "y", "u", "v", "z", ""],
  )
  assert kept(rows, "last_k_checkpoints", k=1) == [4, 5]
  assert kept(rows, "last_k_checkpoints", k=2) == [1, 2, 3, 4, 5]
  assert kept(rows, "last_k_checkpoints", k=9) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
  ("by", "expected"),
  [
    ("return_rank", [0.25, 1.0, 0.625, 0.625]),
    ("episode_length", [2.0, 0.0, 1.0, 5.0]),
    (np.array([1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]),
  ],
)
def test_sample_weight(by, expected):
  choice = filters.choose(
    Rows([-5, 9, 2, 2], episode_length=[2, 0, 1, 5]), "sample_weight", {"by": by}
  )
  assert choice.mask.all()
  np.testing.assert_array_equal(choice.weights, expected)


def test_a_function_is_a_filter():
  def odd(rows, remainder):
    return rows.column("lifetime_step") % 2 == remainder

  assert kept(Rows([0, 0, 0, 0]), odd, remainder=1) == [1, 3]
  assert filters.choose(Rows([0, 0]), odd, {"remainder": 1}).name == "odd:1"


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("norm80", filters.Filter("norm80", {})),
    ("norm80:0.5", filters.Filter("norm80", {"share": 0.5})),
    ("top_fraction:0.1", filters.Filter("top_fraction", {"fraction": 0.1})),
    ("min_return:-20", filters.Filter("min_return", {"value": -20.0})),
    ("last_k_checkpoints:3", filters.Filter("last_k_checkpoints", {"k": 3})),
    ("sample_weight:episode_length", filters.Filter("sample_weight", {"by": "episode_length"})),
  ],
)
def test_parse(text, expected):
  assert filters.parse(text) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("norm8", "unknown filter norm8; nearest: norm80 (there is: norm80, gato80, top_fraction"),
    ("min_return", "filter min_return needs its value: write min_return:200"),
    ("min_return:good", "filter 'min_return:good': write min_return:200"),
    ("min_return:nan", "filter min_return:nan: write min_return:200"),
    ("last_k_checkpoints:1.5", "write last_k_checkpoints:3"),
    ("top_fraction:", "write top_fraction:0.1"),
  ],
)
def test_bad_text(text, message):
  with pytest.raises(config.InputError) as error:
    filters.parse(text)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("rows", "wanted", "options", "message"),
  [
    (Rows([1]), "norm_80", {}, "unknown filter norm_80; nearest: norm80"),
    (
      Rows([1], {}),
      "norm80",
      {},
      "needs the random score of pong, which scores.json does not have",
    ),
    (Rows([1], {"random": {"mean": 0.0}}), "norm80", {}, "needs the expert score of pong"),
    (
      Rows([1], {"random": {"mean": 5.0}, "expert": {"mean": 5.0}}),
      "norm80",
      {},
      "the expert of pong has 5, which is not above random 5",
    ),
    (Rows([1, 2]), "min_return", {"value": 3}, "leaves none of the 2 episodes of pong, whose"),
    (Rows([1, 2]), "min_return", {}, "needs its value"),
    (Rows([1, 2]), "min_return", {"at_least": 1}, "no option at_least (there is: value)"),
    (Rows([1, 2]), "top_fraction", {"fraction": 0}, "must be in (0, 1], got 0"),
    (Rows([1, 2]), "top_fraction", {"fraction": 1.5}, "must be in (0, 1], got 1.5"),
    (Rows([1, 2]), "last_k_checkpoints", {"k": 0}, "must be at least 1, got 0"),
    (Rows([1, 2]), "last_k_checkpoints", {"k": 1}, "no episode of pong is by a checkpoint"),
    (Rows([1, 2]), "sample_weight", {"by": "colour"}, "no column colour"),
    (Rows([1, 2]), "sample_weight", {"by": "teacher_id"}, "must be one number an episode"),
    (Rows([1, -2]), "sample_weight", {"by": "episode_return"}, "at least 0 and not 0 everywhere"),
    (Rows([1, 2]), "sample_weight", {"by": "teacher_step"}, "at least 0 and not 0 everywhere"),
    (Rows([1, 2]), lambda rows: np.ones(3, bool), {}, "must return a bool for each of 2 episodes"),
  ],
)
def test_bad_filter(rows, wanted, options, message):
  with pytest.raises(config.InputError) as error:
    filters.choose(rows, wanted, options)
  assert message in str(error.value) and "\n" not in str(error.value)
