"""podracer: the Podracer architectures, Anakin and Sebulba, in JAX (Hessel et al. 2021)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from podracer.agent import Agent, LossInfo
  from podracer.config import InputError
  from podracer.environment import Environment, Outcome
  from podracer.environments import make as make_environment
  from podracer.host_environment import HostEnvironment, HostFactory
  from podracer.launch.policy import Policy, load_policy
  from podracer.report import Report, TrainingError
  from podracer.types import ActorOutput, EnvironmentSpec, TimeStep, Trajectory

# name -> module and attribute; loaded when first used, so that `import podracer` costs nothing.
_PUBLIC = {
  "ActorOutput": ("podracer.types", "ActorOutput"),
  "Agent": ("podracer.agent", "Agent"),
  "Environment": ("podracer.environment", "Environment"),
  "EnvironmentSpec": ("podracer.types", "EnvironmentSpec"),
  "HostEnvironment": ("podracer.host_environment", "HostEnvironment"),
  "HostFactory": ("podracer.host_environment", "HostFactory"),
  "InputError": ("podracer.config", "InputError"),
  "LossInfo": ("podracer.agent", "LossInfo"),
  "Outcome": ("podracer.environment", "Outcome"),
  "Policy": ("podracer.launch.policy", "Policy"),
  "Report": ("podracer.report", "Report"),
  "TimeStep": ("podracer.types", "TimeStep"),
  "TrainingError": ("podracer.report", "TrainingError"),
  "Trajectory": ("podracer.types", "Trajectory"),
  "load_policy": ("podracer.launch.policy", "load_policy"),
  "make_environment": ("podracer.environments", "make"),
}
_PACKAGES = ("agents", "anakin", "launch", "sebulba")

__all__ = [
  "ActorOutput",
  "Agent",
  "Environment",
  "EnvironmentSpec",
  "HostEnvironment",
  "HostFactory",
  "InputError",
  "LossInfo",
  "Outcome",
  "Policy",
  "Report",
  "TimeStep",
  "TrainingError",
  "Trajectory",
  "load_policy",
  "make_environment",
]


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
  if name in _PACKAGES:
    return importlib.import_module(f"podracer.{name}")
  raise AttributeError(f"module podracer has no attribute {name}")
