"""Hyper-parameters of IMPALA; free of JAX."""

import dataclasses
from typing import Literal

from podracer import config


@dataclasses.dataclass(frozen=True)
class ImpalaConfig(config.LearnerConfig):
  """IMPALA (Espeholt et al. 2018)."""

  network: config.NetworkConfig = dataclasses.field(default_factory=config.NetworkConfig)
  """The network shared by policy and value."""
  discount: float = 0.99
  """Gamma."""
  vtrace_lambda: float = 1.0
  """Lambda of the V-trace targets (remark 2 of the paper)."""
  clip_rho: float = 1.0
  """Rho bar: bounds the importance weights of the temporal differences."""
  clip_pg_rho: float = 1.0
  """Bounds the importance weights of the policy gradient."""
  value_cost: float = 0.5
  """Weight of the value loss."""
  entropy_cost: float = 0.01
  """Weight of the entropy bonus; the first weight where `entropy` is `adaptive`."""
  entropy: Literal["fixed", "adaptive"] = "fixed"
  """`adaptive` learns the weight that keeps the entropy at `target_entropy`."""
  target_entropy: float = 0.5
  """Nats per decision (`adaptive`)."""
  reward_clip: Literal["none", "unit", "asymmetric"] = "none"
  """`unit` clips to [-1, 1] as for Atari; `asymmetric` is the paper's for DMLab, 0.3 min(tanh r, 0) +
  5 max(tanh r, 0). Reported returns are never clipped."""
  action_distribution: Literal["gaussian", "tanh_gaussian"] = "gaussian"
  """Policy over continuous actions."""
  popart: bool = False
  """Normalise the values of each task while preserving outputs (Hessel et al. 2019)."""
  popart_step_size: float = 3e-4
  """Of the moving averages of a task's targets."""

  def __post_init__(self) -> None:
    super().__post_init__()
    config.check_fraction(
      discount=self.discount,
      vtrace_lambda=self.vtrace_lambda,
      popart_step_size=self.popart_step_size,
    )
    config.check_positive(
      clip_rho=self.clip_rho, clip_pg_rho=self.clip_pg_rho, popart_step_size=self.popart_step_size
    )
    config.check_at_least(0, value_cost=self.value_cost, entropy_cost=self.entropy_cost)
    config.check(
      self.entropy == "fixed" or self.entropy_cost > 0,
      "entropy_cost must be above 0 where entropy is adaptive, got 0",
    )

  def recorded_fields(self) -> tuple[str, ...]:
    """See `LearnerConfig`: V-trace needs the behaviour policy."""
    return ("behaviour_log_prob",)
