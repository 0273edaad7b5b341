"""SIGTERM and Ctrl-C: the first asks a run to save and end, a second Ctrl-C ends it at once."""

import os
import signal
import sys
from types import FrameType, TracebackType

EXIT_OFFSET = 128


class Interrupts:
  """Notes signals while it is entered; a loop asks `requested` between its steps."""

  def __init__(self) -> None:
    self.signal: signal.Signals | None = None
    self._previous: dict[signal.Signals, object] = {}

  @property
  def requested(self) -> bool:
    """True once a signal has come."""
    return self.signal is not None

  @property
  def exit_code(self) -> int:
    """128 + the signal's number, as a shell counts; 0 where there was none."""
    return EXIT_OFFSET + self.signal if self.signal else 0

  def __enter__(self) -> "Interrupts":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._note)
    return self

  def listen_again(self) -> None:
    """Takes the signals back from a library that took them: JAX does as it joins a group."""
    for number in self._previous:
      signal.signal(number, self._note)

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT and self.signal == signal.SIGINT:
      # os.write and _exit: a handler must not wait for a lock that the main thread may hold.
      show_cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""  # The progress bar hides it.
      os.write(
        sys.stderr.fileno(),
        show_cursor + b"\npodracer: stopped at once; what was saved before is intact\n",
      )
      os._exit(EXIT_OFFSET + number)
    if self.signal is None:
      self.signal = signal.Signals(number)
      os.write(sys.stderr.fileno(), f"\npodracer: {self.signal.name}: saving and ending\n".encode())
