"""Hyper-parameters of the generalist; free of JAX."""

import dataclasses
from typing import Literal

from podracer import config


@dataclasses.dataclass(frozen=True)
class GeneralistConfig(config.LearnerConfig):
  """A decoder trained from recorded files alone (Reed et al. 2022; Laskin et al. 2022)."""

  learning_rate: float = 1e-3
  """Step size of the optimiser at the start."""
  learning_rate_schedule: Literal["constant", "linear"] = "linear"
  """`linear` falls to 0 at the end of the run."""
  max_gradient_norm: float = 1.0
  """Gradients are scaled down to this global norm; 0 turns clipping off."""
  width: int = 64
  """Of the residual stream."""
  num_layers: int = 2
  """Decoder blocks."""
  num_heads: int = 4
  """Attention heads of a block; the width of one must be even."""
  context: int = 96
  """Tokens of a sequence, and of the window of attention."""
  patch_size: int = 16
  """Sides of the patches that images are cut into."""
  sequences_per_task: int = 32
  """Rows of each task in a batch, over all devices."""
  prompt_fraction: float = 0.25
  """Share of the sequences that another episode of the same teacher stands in front of."""
  num_prompts: int = 4
  """Demonstrations of each task kept to act with; 0 acts without a prompt."""
  reads_actions: bool = True
  """False hides actions from the decoder. An expert mostly does what it did the step before; a decoder that
  copies this is mostly right and can't act, the copycat problem (Wen et al. 2020). The dimensions of a
  continuous action are then chosen independently."""
  histories: bool = False
  """Algorithm distillation: learn from learning histories across episodes, with the rewards as tokens,
  without prompts, and without a reset of the context where an episode begins."""
  history_stride: int = 1
  """With `histories`, each history is read as so many, each of every n-th episode: what there is to copy then
  gets better n times as fast as who made it."""

  def __post_init__(self) -> None:
    super().__post_init__()
    config.check_positive(
      width=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      context=self.context,
      patch_size=self.patch_size,
      sequences_per_task=self.sequences_per_task,
      history_stride=self.history_stride,
    )
    config.check_fraction(prompt_fraction=self.prompt_fraction)
    config.check_at_least(0, num_prompts=self.num_prompts)
    config.check(
      self.width % (2 * self.num_heads) == 0,
      f"width={self.width} must be a multiple of twice num_heads={self.num_heads}",
    )
    config.check(
      self.reads_actions or not self.histories,
      "histories needs reads_actions: how to get better shows in what was done",
    )
    config.check(
      self.histories or self.history_stride == 1,
      "history_stride needs histories: --config.histories",
    )
    config.check(
      self.num_minibatches * self.num_epochs == 1,
      "num_minibatches and num_epochs must be 1: a batch of recorded data is learnt from once",
    )

  @property
  def max_prompts(self) -> int:
    """Demonstrations to act with: none where the context goes on across episodes."""
    return 0 if self.histories else self.num_prompts
