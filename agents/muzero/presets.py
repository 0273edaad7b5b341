"""MuZero's hyper-parameters by family of environments: the first pattern that fits is taken.

Each is a starting point that learns, not a record; `benchmarks/learning/` has the curves.
"""

from typing import Any

# Learning from each unroll as it comes, in sixteen small steps: "N updates per batch" of Hessel et al.
_FRESH: dict[str, Any] = {
  "learning_rate": 3e-3,
  "learning_rate_schedule": "linear",
  "max_gradient_norm": 5.0,
  "optimizer_epsilon": 1e-8,
  "num_minibatches": 8,
  "num_epochs": 2,
  "target_update_period": 1,
  "value_cost": 1.0,
}
_MACHINE = {"num_environments": 64, "unroll_length": 16}
_UNIT_REWARDS = {"num_bins": 21, "max_value": 2.0, "max_reward": 2.0}

# pattern -> {"num_env_steps": ..., "env_options": ..., "evaluate_episodes": ..., "machine": {...},
# "config": {...}, "network": {...}, "model": {...}, "search": {...}, "replay": {...}}
PRESETS: tuple[tuple[str, dict[str, Any]], ...] = (
  (
    "*:Catch-bsuite",
    {"num_env_steps": 300_000, "machine": _MACHINE, "config": _FRESH, "model": _UNIT_REWARDS},
  ),
  (
    "*:CartPole-v*",
    {
      "num_env_steps": 300_000,
      "machine": _MACHINE,
      "config": _FRESH,
      "model": {"max_value": 150.0, "max_reward": 2.0},
    },
  ),
  ("*", {"num_env_steps": 500_000, "machine": _MACHINE, "config": _FRESH}),
)
