"""The learnt model: representation h, dynamics g and prediction f (Schrittwieser et al. 2020, appendix F).

A latent state is a vector `[B, H]`, or planes `[B, h, w, C]`. In a model with chance (Antonoglou et al.
2022) an action leads to an afterstate, of the same form, and one of some codes from there to the next
latent state; an encoder learns which code an observation is an example of.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import rlax

from podracer import config as config_lib
from podracer import types
from podracer.networks import convolution, initializers, torsos

from . import config as muzero_config

Array = types.Array

_LARGE_IMAGE = 36
"""Sides from which planes are made by the down-sampling tower."""


class Prediction(NamedTuple):
  """What f says of a latent state.

  Attributes:
    policy_logits: `[..., A]`.
    value_logits: `[..., num_bins]`.
  """

  policy_logits: Array
  value_logits: Array


class Transition(NamedTuple):
  """What g says of a latent state and an action.

  Attributes:
    latent: the next latent state.
    reward_logits: `[..., num_bins]`, of the reward on arrival.
  """

  latent: Array
  reward_logits: Array


class Afterstate(NamedTuple):
  """What is said of a latent state and an action, before chance decides.

  Attributes:
    latent: the afterstate.
    chance_logits: `[..., C]` of what may happen.
    value_logits: `[..., num_bins]`, of the action in the latent state.
  """

  latent: Array
  chance_logits: Array
  value_logits: Array


class Model(nn.Module):
  """The three functions, with chance six, and their parameters.

  Attributes:
    network: of the representation.
    config: of the model.
    spec: of the environment.
    num_codes: of what chance may do; 0 leaves it out.
  """

  network: config_lib.NetworkConfig
  config: muzero_config.ModelConfig
  spec: types.EnvironmentSpec
  num_codes: int = 0

  def setup(self) -> None:
    """Makes the parts."""
    assert isinstance(self.spec.action, types.DiscreteActions)
    num_actions = self.spec.action.num_actions
    if has_planes(self.config, self.spec):
      representation: nn.Module = PlanesRepresentation(self.config, self.spec)
      dynamics: Any = PlanesDynamics
      prediction: Any = PlanesPrediction
    else:
      representation = VectorRepresentation(self.network, self.config, self.spec)
      dynamics, prediction = VectorDynamics, VectorPrediction
    self.representation_net = representation
    self.dynamics_net = dynamics(self.config, self.num_codes or num_actions)
    self.prediction_net = prediction(self.config, num_actions)
    if self.num_codes:
      self.afterstate_net = dynamics(self.config, num_actions, has_reward=False)
      self.chance_net = prediction(self.config, self.num_codes)
      self.encoder_net = ChanceEncoder(self.network, self.config, self.spec, self.num_codes)

  def __call__(self, observation: types.Observation, action: Array) -> Any:
    """Calls all, for their parameters to be made."""
    latent = self.represent(observation)
    if not self.num_codes:
      return self.predict(latent), self.step(latent, action)
    afterstate = self.decide(latent, action)
    code = self.encode(observation, observation)
    return self.predict(latent), self.happen(afterstate.latent, code)

  def represent(self, observation: types.Observation) -> Array:
    """h: reads observations `[B, ...]` into latent states."""
    return self.representation_net(observation)

  def step(self, latent: Array, action: Array) -> Transition:
    """g: takes actions `[B]` in latent states, where there is no chance."""
    return self.dynamics_net(latent, action)

  def decide(self, latent: Array, action: Array) -> Afterstate:
    """Takes actions `[B]` in latent states; phi and psi of Antonoglou et al."""
    afterstate = self.afterstate_net(latent, action).latent
    prediction = self.chance_net(afterstate)
    return Afterstate(afterstate, prediction.policy_logits, prediction.value_logits)

  def happen(self, afterstate: Array, code: Array) -> Transition:
    """g: what becomes of afterstates by codes, `[B]` or one-hot `[B, C]`."""
    return self.dynamics_net(afterstate, code)

  def encode(self, before: types.Observation, after: types.Observation) -> Array:
    """e: the probabilities `[B, C]` that a code tells what chance did between two observations."""
    return self.encoder_net(before, after)

  def predict(self, latent: Array) -> Prediction:
    """f: predicts policy and value of latent states."""
    return self.prediction_net(latent)


def has_planes(config: muzero_config.ModelConfig, spec: types.EnvironmentSpec) -> bool:
  """Returns whether latent states are planes.

  Raises:
    InputError: if planes are wanted of an observation that is no image.
  """
  shape = _image_shape(spec.observation)
  if config.latent == "auto":
    return shape is not None and min(_sides(shape)) >= _LARGE_IMAGE
  config_lib.check(
    config.latent == "vector" or shape is not None,
    f"model.latent=planes needs an observation that is one image, {spec.name} has another",
  )
  return config.latent == "planes"


def make_transform(num_bins: int, max_value: float) -> rlax.TxPair:
  """Returns scalars -> `[..., num_bins]` probabilities, and back; appendix F.

  The bins are equally spaced after h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x (Pohlen et al. 2018).
  """
  limit = math.sqrt(max_value + 1) - 1 + 1e-3 * max_value
  return rlax.muzero_pair(-limit, limit, num_bins, rlax.SIGNED_HYPERBOLIC_PAIR)


def scale_latent(latent: Array) -> Array:
  """Scales the planes of each latent state to [0, 1], appendix G."""
  axes = tuple(range(1, latent.ndim))
  low = jnp.min(latent, axis=axes, keepdims=True)
  high = jnp.max(latent, axis=axes, keepdims=True)
  return (latent - low) / jnp.maximum(high - low, 1e-5)


def standardise(latent: Array) -> Array:
  """Gives each latent vector mean 0 and deviation 1.

  Not to [0, 1] as the paper scales planes: there the few units at the ends take what there is to see
  from the others, and rewards on Catch take twice as many gradient steps to be learnt.
  """
  centred = latent - jnp.mean(latent, axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


class VectorRepresentation(nn.Module):
  """The torso of the configuration, and a dense layer."""

  network: config_lib.NetworkConfig
  config: muzero_config.ModelConfig
  spec: types.EnvironmentSpec

  @nn.compact
  def __call__(self, observation: types.Observation) -> Array:
    """Maps `[B, ...]` to `[B, H]`."""
    torso = torsos.make_torso(self.network, self.spec.observation, self.spec.num_tasks)
    return standardise(_dense(self.config.latent_size)(torso(observation)))


class VectorDynamics(nn.Module):
  """Dense layers on the latent state and the one-hot action; the latent state is changed, not made anew."""

  config: muzero_config.ModelConfig
  num_actions: int
  has_reward: bool = True

  @nn.compact
  def __call__(self, latent: Array, action: Array) -> Transition:
    """Maps `[B, H]` and `[B]`, or one-hot `[B, A]`, to `[B, H]` and `[B, num_bins]`."""
    inputs = jnp.concatenate([latent, _one_hot(action, self.num_actions)], axis=-1)
    hidden = torsos.MLP(self.config.hidden_sizes)(inputs)
    reward_logits = _reward(self.config, self.has_reward, hidden)
    return Transition(standardise(latent + _dense(self.config.latent_size)(hidden)), reward_logits)


class VectorPrediction(nn.Module):
  """Dense layers that policy and value share."""

  config: muzero_config.ModelConfig
  num_actions: int

  @nn.compact
  def __call__(self, latent: Array) -> Prediction:
    """Maps `[B, H]` to `[B, A]` and `[B, num_bins]`."""
    hidden = torsos.MLP(self.config.hidden_sizes)(latent)
    return Prediction(_head(self.num_actions)(hidden), _head(self.config.num_bins)(hidden))


class PlanesRepresentation(nn.Module):
  """Convolutions; large images go through the down-sampling tower of appendix F (96 -> 6 a side)."""

  config: muzero_config.ModelConfig
  spec: types.EnvironmentSpec

  @nn.compact
  def __call__(self, observation: types.Observation) -> Array:
    """Maps images `[B, H, W, C]`, or channels first, to `[B, h, w, latent_size]`."""
    (images,) = _images(observation)
    if _is_channel_first(images.shape[1:]):
      images = jnp.moveaxis(images, 1, -1)
    scale = torsos.input_scale(_images(self.spec.observation)[0])
    channels = self.config.latent_size
    if min(images.shape[1:3]) < _LARGE_IMAGE:
      planes = convolution.Conv(channels, input_scale=scale)(images)
      return scale_latent(_residual(planes, self.config.num_blocks))
    half = max(1, channels // 2)
    planes = convolution.Conv(half, strides=(2, 2), input_scale=scale)(images)
    planes = _residual(planes, 1)
    planes = convolution.Conv(channels, strides=(2, 2))(nn.relu(planes))
    planes = _residual(planes, 1)
    planes = _residual(_halve(planes), 1)
    planes = _residual(_halve(planes), self.config.num_blocks)
    return scale_latent(planes)


class PlanesDynamics(nn.Module):
  """Convolutions on the latent planes and one plane an action, which is 1 for the one taken."""

  config: muzero_config.ModelConfig
  num_actions: int
  has_reward: bool = True

  @nn.compact
  def __call__(self, latent: Array, action: Array) -> Transition:
    """Maps `[B, h, w, C]` and `[B]`, or one-hot `[B, A]`, to `[B, h, w, C]` and `[B, num_bins]`."""
    one_hot = _one_hot(action, self.num_actions)
    planes = jnp.broadcast_to(one_hot[:, None, None, :], (*latent.shape[:3], self.num_actions))
    hidden = convolution.Conv(latent.shape[-1])(jnp.concatenate([latent, planes], axis=-1))
    hidden = _residual(latent + hidden, self.config.num_blocks)
    features = _flat_head(hidden, self.config.hidden_sizes) if self.has_reward else hidden
    return Transition(scale_latent(hidden), _reward(self.config, self.has_reward, features))


class PlanesPrediction(nn.Module):
  """Residual blocks that policy and value share, and a head for each."""

  config: muzero_config.ModelConfig
  num_actions: int

  @nn.compact
  def __call__(self, latent: Array) -> Prediction:
    """Maps `[B, h, w, C]` to `[B, A]` and `[B, num_bins]`."""
    hidden = _residual(latent, self.config.num_blocks)
    policy = _flat_head(hidden, self.config.hidden_sizes)
    value = _flat_head(hidden, self.config.hidden_sizes)
    return Prediction(_head(self.num_actions)(policy), _head(self.config.num_bins)(value))


class ChanceEncoder(nn.Module):
  """The torso of the configuration on both observations, and dense layers.

  It sees the one before, too: what chance did is the difference that the action does not explain.
  """

  network: config_lib.NetworkConfig
  config: muzero_config.ModelConfig
  spec: types.EnvironmentSpec
  num_codes: int

  @nn.compact
  def __call__(self, before: types.Observation, after: types.Observation) -> Array:
    """Maps `[B, ...]` twice to `[B, C]`."""
    torso = torsos.make_torso(self.network, self.spec.observation, self.spec.num_tasks)
    hidden = jnp.concatenate([torso(before), torso(after)], axis=-1)
    # Standardised, new observations begin with codes of their own: where all begin with one, they may stay so.
    hidden = standardise(torsos.MLP(self.config.hidden_sizes)(hidden))
    return jax.nn.softmax(_dense(self.num_codes)(hidden))


def _one_hot(action: Array, num_actions: int) -> Array:
  """Returns `[B, A]` of the numbers of actions, or what is one-hot already."""
  is_number = jnp.issubdtype(action.dtype, jnp.integer)
  return jax.nn.one_hot(action, num_actions) if is_number else action


def _reward(config: muzero_config.ModelConfig, has_reward: bool, features: Array) -> Array:
  """Returns the reward's `[B, num_bins]` logits; those of 0 where there is none, without parameters."""
  if has_reward:
    return _head(config.num_bins)(features)
  return jnp.zeros((features.shape[0], config.num_bins))


def _dense(size: int) -> nn.Dense:
  return nn.Dense(size, kernel_init=initializers.scaled(1.0))


def _head(size: int) -> nn.Dense:
  """Returns logits that begin near uniform, so that values and rewards begin near 0."""
  return nn.Dense(size, kernel_init=initializers.scaled(0.01))


def _residual(planes: Array, num_blocks: int) -> Array:
  """Applies residual blocks, the nonlinearity first (He et al. 2016)."""
  channels = planes.shape[-1]
  for _ in range(num_blocks):
    hidden = convolution.Conv(channels)(nn.relu(planes))
    planes = planes + convolution.Conv(channels)(nn.relu(hidden))
  return planes


def _halve(planes: Array) -> Array:
  return nn.avg_pool(planes, (3, 3), strides=(2, 2), padding="SAME")


def _flat_head(planes: Array, sizes: Sequence[int]) -> Array:
  """Narrows planes by a 1x1 convolution, and reads them by dense layers: `[B, F]`."""
  narrow = convolution.Conv(max(1, planes.shape[-1] // 4), (1, 1))(nn.relu(planes))
  return torsos.MLP(sizes)(nn.relu(narrow).reshape(planes.shape[0], -1))


def _images(observation: Any) -> tuple[Any, ...]:
  """Returns the leaves of an observation, or of its spec, but for the mask of actions."""
  # flax keeps a dict among the attributes of a module as another mapping.
  if isinstance(observation, Mapping):
    observation = {k: v for k, v in observation.items() if k != types.ACTION_MASK}
  return tuple(jax.tree.leaves(observation, is_leaf=types.is_array_spec))


def _image_shape(spec: Any) -> tuple[int, ...] | None:
  """Returns the shape of an observation that is one image, or None."""
  shapes = [tuple(leaf.shape) for leaf in _images(spec)]
  return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 3 else None


def _is_channel_first(shape: tuple[int, ...]) -> bool:
  return len(shape) == 3 and shape[0] < shape[1] == shape[2]


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[1:] if _is_channel_first(shape) else shape[:2]
