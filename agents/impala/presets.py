"""IMPALA's hyper-parameters by family of environments: the first pattern that fits is taken.

Each is a starting point that learns, not a record; `benchmarks/learning/` has the curves.
"""

from typing import Any

# pattern -> {"num_env_steps": ..., "machine": {...}, "config": {...}, "network": {...}}
PRESETS: tuple[tuple[str, dict[str, Any]], ...] = (
  (
    "gymnax:Catch-bsuite",
    {
      "num_env_steps": 500_000,
      "machine": {"num_environments": 64, "unroll_length": 16},
      "config": {"learning_rate": 2e-3},
    },
  ),
  ("*", {"num_env_steps": 3_000_000}),
)
