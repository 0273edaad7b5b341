"""The hand-over: a bounded place for finished unrolls between actor threads and the learner."""

import collections
import threading
from typing import Generic, TypeVar

from . import stop as stop_lib

Item = TypeVar("Item")


class Channel(Generic[Item]):
  """A queue for each producer, all of the same capacity; nothing is ever dropped.

  A producer whose queue is full waits, which paces it. The consumer takes from a stated producer, so
  that the order doesn't depend on timing, or whichever item came first.
  """

  def __init__(self, num_producers: int, capacity: int, stop: stop_lib.Stop):
    """Makes an empty channel.

    Args:
      num_producers: each named by an index.
      capacity: items of one producer that may wait.
      stop: ends every wait.
    """
    self._capacity = capacity
    self._stop = stop
    self._changed = threading.Condition()
    self._queues: list[collections.deque[tuple[int, Item]]] = [
      collections.deque() for _ in range(num_producers)
    ]
    self._num_put = 0

  @property
  def depth(self) -> int:
    """Items that wait now."""
    return sum(len(queue) for queue in self._queues)

  def put(self, producer: int, item: Item) -> None:
    """Hands over an item, waiting while the producer's queue is full; raises Stopped at the end."""
    queue = self._queues[producer]
    with self._changed:
      while len(queue) >= self._capacity:
        self._stop.check()
        self._changed.wait(stop_lib.POLL_SECONDS)
      self._stop.check()
      queue.append((self._num_put, item))
      self._num_put += 1
      self._changed.notify_all()

  def take(self, producer: int | None = None) -> Item:
    """Waits for an item and returns it; raises Stopped at the end.

    Args:
      producer: whose next item is wanted, or None for the oldest of all.
    """
    with self._changed:
      while True:
        self._stop.check()
        queue = self._oldest() if producer is None else self._queues[producer]
        if queue:
          _, item = queue.popleft()
          self._changed.notify_all()
          return item
        self._changed.wait(stop_lib.POLL_SECONDS)

  def _oldest(self) -> "collections.deque[tuple[int, Item]]":
    return min(self._queues, key=lambda queue: queue[0][0] if queue else self._num_put)
