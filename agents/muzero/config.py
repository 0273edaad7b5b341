"""Hyper-parameters of MuZero; free of JAX."""

import dataclasses
from typing import Literal

from podracer import config

_MANY_SIMULATIONS = 200


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The learnt model: dynamics and predictions on latent states."""

  latent: Literal["auto", "vector", "planes"] = "auto"
  """What a latent state is: a vector, or planes as of an image. `auto` takes planes for images of 36
  pixels a side and more."""
  latent_size: int = 64
  """Width of a latent vector, or channels of the planes."""
  hidden_sizes: tuple[int, ...] = (64,)
  """Widths of the dense layers of the dynamics and, apart, of the predictions; behind planes, those of
  the heads."""
  num_blocks: int = 2
  """Residual blocks of the dynamics and of the predictions (`planes`)."""
  num_bins: int = 51
  """Bins of the categorical values and rewards."""
  max_value: float = 500.0
  """Values are represented from -max_value to max_value."""
  max_reward: float = 10.0
  """Rewards are represented from -max_reward to max_reward."""
  num_chance_codes: int = 32
  """Codes that tell what chance made of an action (`search.policy=stochastic`)."""

  def __post_init__(self) -> None:
    config.check_positive(
      latent_size=self.latent_size, max_value=self.max_value, max_reward=self.max_reward
    )
    config.check_at_least(2, num_chance_codes=self.num_chance_codes)
    config.check_at_least(0, num_blocks=self.num_blocks)
    config.check(
      all(size > 0 for size in self.hidden_sizes),
      f"model.hidden_sizes must all be above 0, got {self.hidden_sizes}",
    )
    config.check(
      self.num_bins >= 3 and self.num_bins % 2 == 1,
      f"model.num_bins must be odd, so that 0 is one of them, and at least 3, got {self.num_bins}",
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """The tree search."""

  policy: Literal["gumbel", "muzero", "stochastic"] = "gumbel"
  """`gumbel` (Danihelka et al. 2022) learns with few simulations; `muzero` is the search of the paper,
  several times slower; `stochastic` also plans over what chance may make of an action, with a model that
  learns it (Antonoglou et al. 2022), but does not learn it in every environment: not yet in 2048."""
  num_simulations: int = 16
  """Simulations of each search."""
  evaluation_simulations: int = 0
  """Simulations when acting greedily; 0 takes as many as for acting."""
  max_num_considered_actions: int = 16
  """Actions tried at the root (`gumbel`)."""
  value_scale: float = 0.1
  """Weight of the values, against the prior, in the improved policy (`gumbel`)."""
  uniform_fraction: float = 0.0
  """Share of the uniform policy in the prior of the root, but for acting greedily (`gumbel`). Above 0 no
  search gives an action up for good: without it, what values say can't undo a prior that has become sure."""
  min_value_range: float = 1.0
  """Values are compared after their range at a node is scaled to 1. A range below this one is scaled as
  if it were this: else the noise of a young model is taken for a difference, and the policy collapses."""
  max_depth: int = 0
  """Bound of the depth of the tree; 0 has none."""
  temperature: float = 1.0
  """Of exploration at the start: scales the Gumbel noise (`gumbel`), or is the power of the visit counts
  (`muzero`, `stochastic`). Acting greedily has none."""
  final_temperature: float = 1.0
  """Of exploration after `temperature_steps`."""
  temperature_steps: int = 0
  """Gradient steps over which the temperature goes from the one to the other; 0 keeps the first."""
  dirichlet_fraction: float = 0.25
  """Share of noise in the prior of the root (`muzero`, `stochastic`)."""
  dirichlet_alpha: float = 0.3
  """Concentration of that noise: lower is peakier."""

  def __post_init__(self) -> None:
    for name in ("num_simulations", "max_num_considered_actions"):
      value = getattr(self, name)
      config.check(value > 0, f"search.{name} must be above 0, got {value}")
    config.check_at_least(
      0,
      evaluation_simulations=self.evaluation_simulations,
      max_depth=self.max_depth,
      temperature=self.temperature,
      final_temperature=self.final_temperature,
      temperature_steps=self.temperature_steps,
    )
    config.check_fraction(
      dirichlet_fraction=self.dirichlet_fraction, uniform_fraction=self.uniform_fraction
    )
    config.check_positive(
      dirichlet_alpha=self.dirichlet_alpha,
      value_scale=self.value_scale,
      min_value_range=self.min_value_range,
    )


@dataclasses.dataclass(frozen=True)
class MuZeroConfig(config.ReplayLearnerConfig):
  """MuZero (Schrittwieser et al. 2020)."""

  target_update: Literal["none", "periodic", "polyak"] = "periodic"
  """How the target parameters, from which returns are bootstrapped, follow the parameters."""
  network: config.NetworkConfig = dataclasses.field(default_factory=config.NetworkConfig)
  """What reads observations into latent vectors; it has no recurrent core."""
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  """The learnt model."""
  search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
  """The tree search."""
  discount: float = 0.99
  """Gamma."""
  unroll_steps: int = 5
  """K, steps that the model is unrolled when it learns."""
  td_steps: int = 10
  """n of the n-step returns; they also end where the unroll does."""
  td_lambda: float = 1.0
  """Lambda of the returns inside of these n steps; 1 gives plain n-step returns."""
  value_cost: float = 0.25
  """Weight of the value loss."""
  reward_cost: float = 1.0
  """Weight of the reward loss."""
  chance_cost: float = 1.0
  """Weight of the loss of what is predicted of chance (`search.policy=stochastic`)."""
  commitment_cost: float = 0.05
  """Weight of the loss that makes the codes of chance clear-cut (`search.policy=stochastic`); above some
  tenths one code may take all outcomes before rewards and values have told them apart."""
  entropy_cost: float = 0.05
  """Weight of an entropy bonus of the network's policy, which the paper has not: learning from what was
  just played, without a replay, the policy narrows before the model knows what other actions do."""
  reward_clip: Literal["none", "unit"] = "none"
  """`unit` clips rewards to [-1, 1] as IMPALA does for Atari. Reported returns are never clipped."""

  def __post_init__(self) -> None:
    super().__post_init__()
    config.check_fraction(discount=self.discount, td_lambda=self.td_lambda)
    config.check_positive(unroll_steps=self.unroll_steps, td_steps=self.td_steps)
    config.check_at_least(0, value_cost=self.value_cost, reward_cost=self.reward_cost)
    config.check_at_least(
      0,
      chance_cost=self.chance_cost,
      commitment_cost=self.commitment_cost,
      entropy_cost=self.entropy_cost,
    )
    config.check(
      self.network.lstm_size == 0
      and not self.network.use_previous_action
      and not self.network.use_previous_reward,
      "MuZero reads single observations: network.lstm_size, network.use_previous_action and "
      "network.use_previous_reward must be off",
    )

  @property
  def num_chance_codes(self) -> int:
    """Codes of the model's chance outcomes; 0 where it has none, and an action has one outcome."""
    return self.model.num_chance_codes if self.search.policy == "stochastic" else 0

  def check_unroll(self, unroll_length: int) -> None:
    """Raises InputError where the model is unrolled for longer than a trajectory is."""
    config.check(
      self.unroll_steps <= unroll_length,
      f"unroll_steps={self.unroll_steps} of the model is more than the {unroll_length} steps of an "
      "unroll (--unroll_length)",
    )

  def recorded_fields(self) -> tuple[str, ...]:
    """See `LearnerConfig`: the policy learns from searches."""
    return ("search_visits", "search_value")

  def warnings(self) -> tuple[str, ...]:
    """Returns a line for each setting that is known to be slow, or not to learn everywhere."""
    lines = []
    if self.search.policy != "gumbel":
      lines.append(
        f"search.policy={self.search.policy} takes longer a search than gumbel, and needs more simulations "
        "to learn"
      )
    if self.search.policy == "stochastic":
      lines.append(
        "search.policy=stochastic: codes of chance may all become one, and then it plans as if there were none; "
        "watch loss/num_chance_codes_used"
      )
    if self.search.num_simulations > _MANY_SIMULATIONS:
      lines.append(
        f"search.num_simulations={self.search.num_simulations}: the time of a search grows faster than "
        "its simulations, for its tree grows with them; gumbel learns with 16 and fewer"
      )
    return tuple(lines)
