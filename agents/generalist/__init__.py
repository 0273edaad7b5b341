"""The generalist: one small decoder for many tasks, trained from recorded files (Reed et al. 2022)."""

from typing import TYPE_CHECKING, Any

from .config import GeneralistConfig

if TYPE_CHECKING:
  from .agent import make_actor, make_agent

__all__ = ["GeneralistConfig", "make_actor", "make_agent"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name in ("make_actor", "make_agent"):
    from . import agent

    return getattr(agent, name)
  raise AttributeError(f"module {__name__} has no attribute {name}")
