"""MuZero: planning with a learnt model (Schrittwieser et al. 2020)."""

from typing import TYPE_CHECKING, Any

from .config import ModelConfig, MuZeroConfig, SearchConfig

if TYPE_CHECKING:
  from .agent import make_agent

__all__ = ["ModelConfig", "MuZeroConfig", "SearchConfig", "make_agent"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name == "make_agent":
    from . import agent

    return agent.make_agent
  raise AttributeError(f"module {__name__} has no attribute {name}")
