"""IMPALA's hyper-parameters by family of environments: the first pattern that fits is taken.

Each is a starting point that learns, not a record; `benchmarks/learning/` has the curves.
"""

from typing import Any

from podracer.environments import envpool

_DECAYING: dict[str, Any] = {"learning_rate_schedule": "linear", "max_gradient_norm": 1.0}
_MANY_UPDATES = {"num_environments": 64, "unroll_length": 16}

# Returns of any scale, and a policy whose scale is learnt: no entropy bonus is needed.
_CONTINUOUS: dict[str, Any] = {
  "config": {
    **_DECAYING,
    "learning_rate": 1e-3,
    "entropy_cost": 0.0,
    "popart": True,
    "popart_step_size": 1e-2,
  },
  "network": {"activation": "tanh"},
}
_PENDULUM: dict[str, Any] = {
  **_CONTINUOUS,
  "num_env_steps": 3_000_000,
  "machine": _MANY_UPDATES,
  "config": {**_CONTINUOUS["config"], "discount": 0.95},
}
# Few large updates leave Breakout between 6 and 9; sixteen small steps a batch reach 28 in 4 M steps.
_MANY_STEPS = {"num_minibatches": 8, "num_epochs": 2, "learning_rate": 1e-3}
_PICTURES: dict[str, Any] = {
  "num_env_steps": 10_000_000,
  "machine": {"num_environments": 64, "unroll_length": 128},
  "config": {
    **_DECAYING,
    "learning_rate": 3e-3,
    "max_gradient_norm": 0.5,
    "entropy_cost": 0.02,
    "vtrace_lambda": 0.95,
  },
}

# Returns of hundreds: without PopArt the first advantages are so large that the policy collapses.
_LARGE_RETURNS: dict[str, Any] = {
  "num_env_steps": 3_000_000,
  "machine": {"num_environments": 64, "unroll_length": 32},
  "config": {
    **_DECAYING,
    "learning_rate": 2e-3,
    "entropy_cost": 0.02,
    "vtrace_lambda": 0.95,
    "popart": True,
    "popart_step_size": 1e-2,
  },
}

# Rewards are clipped in the loss only.
_ATARI: dict[str, Any] = {
  "num_env_steps": 10_000_000,
  "env_options": envpool.ATARI_OPTIONS,
  "evaluate_episodes": 32,
  "machine": {"num_environments": 64, "unroll_length": 20},
  "config": {
    **_DECAYING,
    "learning_rate": 6e-4,
    "max_gradient_norm": 40.0,
    "entropy_cost": 0.01,
    "reward_clip": "unit",
  },
  "network": {"torso": "nature_cnn", "hidden_sizes": (512,)},
}
_MUJOCO = {
  **_CONTINUOUS,
  "num_env_steps": 10_000_000,
  "evaluate_episodes": 32,
  "machine": {"num_environments": 64, "unroll_length": 32},
}

# pattern -> {"num_env_steps": ..., "env_options": ..., "evaluate_episodes": ..., "machine": {...},
# "config": {...}, "network": {...}}
PRESETS: tuple[tuple[str, dict[str, Any]], ...] = (
  (
    "gymnax:Catch-bsuite",
    {"num_env_steps": 500_000, "machine": _MANY_UPDATES, "config": {"learning_rate": 2e-3}},
  ),
  # The value has to be learnt faster than the policy moves. With a value cost of 0.5 and relu 29 seeds of 32
  # end at 475 or more after 2 M steps where the actors lag by an update, with 0.05 some 3 of 16; with these
  # all of 80 end at 500, with a lag of 1 or 2.
  (
    "*:CartPole-v*",
    {
      "num_env_steps": 3_000_000,
      "machine": _MANY_UPDATES,
      "config": {**_DECAYING, "learning_rate": 3e-3, "vtrace_lambda": 0.95, "value_cost": 2.5},
      "network": {"activation": "tanh"},
    },
  ),
  (
    "gymnax:MemoryChain-bsuite",
    {
      "num_env_steps": 500_000,
      "machine": _MANY_UPDATES,
      "config": {**_DECAYING, "learning_rate": 2e-3},
      "network": {"lstm_size": 32},
    },
  ),
  ("gymnax:Pendulum-v1", _PENDULUM),
  *(
    (f"gymnax:{name}", {**_PENDULUM, "config": _CONTINUOUS["config"]})
    for name in ("MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc")
  ),
  (
    "brax:*",
    {
      **_CONTINUOUS,
      "num_env_steps": 30_000_000,
      "machine": {"num_environments": 512, "unroll_length": 16},
    },
  ),
  ("gymnax:Breakout-MinAtar", {**_PICTURES, "config": {**_PICTURES["config"], **_MANY_STEPS}}),
  ("gymnax:*-MinAtar", _PICTURES),
  ("pgx:minatar-*", _PICTURES),
  ("craftax:*", {**_PICTURES, "num_env_steps": 100_000_000}),
  (
    "navix:*",
    {
      "num_env_steps": 3_000_000,
      "machine": _MANY_UPDATES,
      "config": {**_DECAYING, "learning_rate": 1e-3},
    },
  ),
  *(
    (f"{suite}:{name}-v*", _LARGE_RETURNS)
    for suite in ("envpool", "gymnasium")
    for name in ("Acrobot", "LunarLander", "MountainCar")
  ),
  ("envpool:Pendulum-v*", _PENDULUM),
  ("gymnasium:Pendulum-v*", _PENDULUM),
  *(
    (f"{suite}:{name}-v*", _MUJOCO)
    for suite in ("envpool", "gymnasium")
    for name in (
      "Ant",
      "BipedalWalker",
      "CarRacing",
      "HalfCheetah",
      "Hopper",
      "Humanoid",
      "HumanoidStandup",
      "InvertedDoublePendulum",
      "InvertedPendulum",
      "MountainCarContinuous",
      "Pusher",
      "Reacher",
      "Swimmer",
      "Walker2d",
    )
  ),
  # What is left of envpool's v5 is Atari.
  ("envpool:*-v5", _ATARI),
  (
    "*",
    {
      "num_env_steps": 3_000_000,
      "machine": _MANY_UPDATES,
      "config": {**_DECAYING, "learning_rate": 2e-3},
    },
  ),
)
