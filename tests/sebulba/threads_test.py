"""How many threads step the environments of an actor thread."""

import pytest

from podracer import config
from podracer.sebulba import threads


@pytest.mark.parametrize(
  ("num_cores", "num_actors", "expected"),
  [(1, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 2), (2, 3, 1), (2, 8, 1), (16, 4, 8), (16, 1, 16)],
)
def test_environments_have_twice_the_share_of_the_cores(
  monkeypatch, num_cores, num_actors, expected
):
  monkeypatch.setattr(config, "num_cores", lambda: num_cores)
  assert threads.default_environment_threads(num_actors) == expected
