"""Anakin: environment, agent and update in one XLA program on every device.

Hessel et al. (2021), section 3.1.
"""

from typing import TYPE_CHECKING, Any

from .config import AnakinConfig

if TYPE_CHECKING:
  from .machine import Anakin, AnakinState, train

__all__ = ["Anakin", "AnakinConfig", "AnakinState", "train"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name in __all__:
    from . import machine

    return getattr(machine, name)
  raise AttributeError(f"module {__name__} has no attribute {name}")
