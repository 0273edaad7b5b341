"""Sebulba: host environments and actor devices feed learner devices.

Hessel et al. (2021), section 3.2.
"""

from typing import TYPE_CHECKING, Any

from .config import SebulbaConfig

if TYPE_CHECKING:
  from .machine import Sebulba, train

__all__ = ["Sebulba", "SebulbaConfig", "train"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name in __all__:
    from . import machine

    return getattr(machine, name)
  raise AttributeError(f"module {__name__} has no attribute {name}")
