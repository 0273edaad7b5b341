"""Distillation: a student learns from teachers (Rusu et al. 2015, Schmitt et al. 2018)."""

from typing import TYPE_CHECKING, Any

from .config import DistillationConfig

if TYPE_CHECKING:
  from .agent import make_agent

__all__ = ["DistillationConfig", "make_agent"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name == "make_agent":
    from . import agent

    return agent.make_agent
  raise AttributeError(f"module {__name__} has no attribute {name}")
