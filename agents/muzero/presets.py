"""MuZero's hyper-parameters by family of environments: the first pattern that fits is taken.

Each is a starting point that learns, not a record; `benchmarks/learning/` has the curves.
"""

from typing import Any

from podracer.environments import envpool, pgx

_LEARNER: dict[str, Any] = {
  "learning_rate": 3e-3,
  "learning_rate_schedule": "linear",
  "max_gradient_norm": 5.0,
  "optimizer_epsilon": 1e-8,
  "target_update_period": 1,
  "value_cost": 1.0,
}
# Learning from each unroll as it comes, in sixteen small steps: "N updates per batch" of Hessel et al.
_FRESH: dict[str, Any] = {**_LEARNER, "num_minibatches": 8, "num_epochs": 2}
# As many steps on as many unrolls, of the last ones played: a policy that has narrowed on a bad action still
# learns from what others had led to. Learning from fresh unrolls alone, it stays narrow in some seeds.
_REPLAY = {"capacity": 50_000, "batch_size": 8, "gradient_steps": 16}
_MACHINE = {"num_environments": 64, "unroll_length": 16}
_UNIT_REWARDS = {"num_bins": 21, "max_value": 2.0, "max_reward": 2.0}

# The game's own result is the target: no discount, and returns to the end of the game.
_BOARD: dict[str, Any] = {
  "num_env_steps": 1_000_000,
  "env_options": ("opening_moves=8",),
  "machine": {"num_environments": 128, "unroll_length": 16},
  "config": {**_FRESH, "discount": 1.0, "td_steps": 100, "unroll_steps": 3},
  "model": {**_UNIT_REWARDS, "latent_size": 128, "hidden_sizes": (128,)},
  "network": {"hidden_sizes": (128,)},
  "search": {"num_simulations": 16},
}

# Returns of a few to a hundred, which differ little from action to action.
_MINATAR: dict[str, Any] = {
  "num_env_steps": 2_000_000,
  "machine": _MACHINE,
  "config": {**_LEARNER, "learning_rate": 1e-3},
  "model": {"max_value": 100.0, "max_reward": 2.0, "latent_size": 128, "hidden_sizes": (128,)},
  "network": {"hidden_sizes": (128,)},
  "search": {"min_value_range": 0.1, "uniform_fraction": 0.05},
  "replay": {"capacity": 100_000, "batch_size": 16, "gradient_steps": 16},
}

# Latent vectors behind the Nature CNN, which two cores can train; `--config.model.latent=planes` has the
# paper's tower and planes of 6 x 6, for an accelerator. Rewards are clipped in the loss only. The replay has
# 0.6 GB of frames.
_ATARI: dict[str, Any] = {
  "num_env_steps": 10_000_000,
  "env_options": envpool.ATARI_OPTIONS,
  "evaluate_episodes": 32,
  "machine": {"num_environments": 32, "unroll_length": 20},
  "config": {**_LEARNER, "learning_rate": 5e-4, "discount": 0.997, "reward_clip": "unit"},
  "model": {
    "latent": "vector",
    "latent_size": 256,
    "hidden_sizes": (256,),
    "max_value": 300.0,
    "max_reward": 2.0,
  },
  "network": {"torso": "nature_cnn", "hidden_sizes": (512,)},
  "search": {"min_value_range": 0.1, "uniform_fraction": 0.05},
  "replay": {"capacity": 20_000, "batch_size": 8, "gradient_steps": 4},
}

# pattern -> {"num_env_steps": ..., "env_options": ..., "evaluate_episodes": ..., "machine": {...},
# "config": {...}, "network": {...}, "model": {...}, "search": {...}, "replay": {...}}
PRESETS: tuple[tuple[str, dict[str, Any]], ...] = (
  (
    "*:Catch-bsuite",
    {"num_env_steps": 800_000, "machine": _MACHINE, "config": _FRESH, "model": _UNIT_REWARDS},
  ),
  (
    "*:CartPole-v*",
    {
      "num_env_steps": 500_000,
      "machine": _MACHINE,
      "config": _LEARNER,
      "model": {"max_value": 150.0, "max_reward": 2.0},
      "replay": _REPLAY,
    },
  ),
  *((f"pgx:{name}", _BOARD) for name in pgx.BOARD_GAMES),
  ("*:*-MinAtar", _MINATAR),
  ("pgx:minatar-*", _MINATAR),
  # What is left of envpool's v5 is Atari.
  ("envpool:*-v5", _ATARI),
  ("*", {"num_env_steps": 500_000, "machine": _MACHINE, "config": _FRESH}),
)
