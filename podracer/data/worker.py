"""A thread that takes episodes while others play on."""

import collections
import threading
from collections.abc import Callable

from . import episode as episode_lib

QUEUE_BYTES = 32 << 20
"""Episodes that wait, at most; one that is larger waits alone."""
_EPISODE_BYTES = 3_000
"""Of an episode besides its data: the objects of some ten arrays and its metadata."""


class Worker:
  """Gives episodes to a function that never raises, one after another."""

  def __init__(self, function: Callable[[episode_lib.Episode], None], name: str):
    self._function = function
    self._episodes: collections.deque[episode_lib.Episode] = collections.deque()
    self._num_bytes = 0  # Of the episodes that wait, and of the one in work.
    self._is_stopped = False
    # All waits end, for the thread takes whatever there is.
    self._changed = threading.Condition()
    # A program that forgets to stop it must end all the same.
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
    self._thread.start()

  def put(self, episode: episode_lib.Episode) -> None:
    """Hands over an episode, once there is room."""
    size = _size(episode)
    with self._changed:
      self._changed.wait_for(lambda: not self._num_bytes or self._num_bytes + size <= QUEUE_BYTES)
      self._num_bytes += size
      self._episodes.append(episode)
      self._changed.notify_all()

  def drain(self) -> None:
    """Waits until the function has had all episodes."""
    with self._changed:
      self._changed.wait_for(lambda: not self._num_bytes)

  def stop(self) -> None:
    """Ends the thread, which first takes what waits."""
    with self._changed:
      self._is_stopped = True
      self._changed.notify_all()
    self._thread.join()

  def _run(self) -> None:
    while (episode := self._take()) is not None:
      self._function(episode)
      with self._changed:
        self._num_bytes -= _size(episode)
        self._changed.notify_all()

  def _take(self) -> episode_lib.Episode | None:
    """Returns the next episode, or None at the end."""
    with self._changed:
      self._changed.wait_for(lambda: self._episodes or self._is_stopped)
      return self._episodes.popleft() if self._episodes else None


def _size(episode: episode_lib.Episode) -> int:
  return _EPISODE_BYTES + sum(value.nbytes for value in episode.steps.values())
