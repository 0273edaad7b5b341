"""How the kernels of dense layers begin."""

from typing import Any

import flax.linen as nn


def scaled(gain: float) -> Any:
  """Returns an initialiser of `[in, out]` kernels that passes on `gain` times the scale of its input.

  Uniform with variance gain^2 / in (He et al. 2015). Not orthogonal: the batched QR decomposition
  behind that, which several seeds side by side need, blocks XLA's CPU thread pool for ever on two
  virtual devices of two cores (jaxlib 0.10.2), and compiles slowly everywhere.

  Args:
    gain: sqrt(2) in front of a ReLU; small for a policy that begins near uniform.
  """
  return nn.initializers.variance_scaling(gain**2, "fan_in", "uniform")
