import threading

import pytest

from podracer.sebulba import channel as channel_lib
from podracer.sebulba import stop as stop_lib


def make(num_producers=2, capacity=1):
  stop = stop_lib.Stop()
  return channel_lib.Channel(num_producers, capacity, stop), stop


def in_thread(function):
  """Runs a function in a thread; returns a function that waits for it and returns its outcome."""
  outcome = []

  def run():
    try:
      outcome.append(function())
    except BaseException as error:
      outcome.append(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()

  def join(seconds=10.0):
    thread.join(seconds)
    assert not thread.is_alive(), "the thread hangs"
    return outcome[0]

  return join


def test_takes_the_oldest_or_those_of_one_producer():
  channel, _ = make(num_producers=3, capacity=2)
  for producer, item in ((1, "a"), (0, "b"), (1, "c"), (2, "d")):
    channel.put(producer, item)
  assert channel.depth == 4
  assert channel.take() == "a"
  assert channel.take(2) == "d"
  assert channel.take(1) == "c"
  assert channel.take() == "b"
  assert channel.depth == 0


def test_a_full_queue_holds_its_producer_back_and_no_other():
  channel, _ = make()
  channel.put(0, 1)
  join = in_thread(lambda: channel.put(0, 2))
  channel.put(1, 10)
  assert channel.depth == 2, "a second item went into a queue of one"
  assert channel.take(0) == 1
  join()
  assert channel.take(0) == 2
  assert channel.take(1) == 10


def test_waits_for_the_producer_it_was_asked_for():
  channel, _ = make()
  channel.put(0, "early")
  join = in_thread(lambda: channel.take(1))
  channel.put(1, "late")
  assert join() == "late"
  assert channel.take(0) == "early"


@pytest.mark.parametrize("full", [False, True])
def test_the_end_ends_every_wait(full):
  channel, stop = make()
  if full:
    channel.put(0, 1)
  join = in_thread((lambda: channel.put(0, 2)) if full else channel.take)
  stop.request()
  assert isinstance(join(), stop_lib.Stopped)


def test_the_first_error_is_kept():
  stop = stop_lib.Stop()
  first = ValueError("first")
  stop.fail(first)
  stop.fail(ValueError("second"))
  assert stop.error is first and stop.requested


def test_an_error_while_ending_is_no_cause():
  stop = stop_lib.Stop()
  stop.request()
  stop.fail(ValueError("of closing"))
  assert stop.error is None
