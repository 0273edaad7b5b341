"""Learning from recorded data alone: the learner of the machines, fed from files.

Any agent can be trained so, as far as its loss makes sense of what others did: policy distillation and
behaviour cloning, V-trace with the recorded behaviour policy, MuZero with the recorded searches.
"""

from typing import TYPE_CHECKING, Any

from .config import OfflineConfig

if TYPE_CHECKING:
  from .updates import OfflineLearner, OfflineState, learn

__all__ = ["OfflineConfig", "OfflineLearner", "OfflineState", "learn"]


def __getattr__(name: str) -> Any:
  # Lazily, so that a command line can check the configuration before JAX is imported.
  if name in __all__:
    from . import updates

    return getattr(updates, name)
  raise AttributeError(f"module {__name__} has no attribute {name}")
