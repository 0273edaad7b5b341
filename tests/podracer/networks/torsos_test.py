import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config as config_lib
from podracer import types
from podracer.networks import torsos

SMALL = {"hidden_sizes": (8,), "conv_channels": (4,), "resnet_channels": (4, 4), "resnet_blocks": 1}


def array(*shape, dtype=jnp.float32, minimum=None, maximum=None):
  return types.ArraySpec(shape, dtype, minimum, maximum)


def build(spec, batch_size=3, num_tasks=1, **config):
  torso = torsos.make_torso(config_lib.NetworkConfig(**{**SMALL, **config}), spec, num_tasks)
  observation = types.zeros_like(spec, (batch_size,))
  return torso, jax.jit(torso.init)(jax.random.key(0), observation), observation


SPECS = {
  "vector": array(5),
  "board": array(10, 5),
  "scalar": array(),
  "integer": array(dtype=jnp.int32, minimum=0, maximum=6),
  "small image": array(10, 10, 4, dtype=bool),
  "image": array(40, 36, 3, dtype=jnp.uint8),
  "frame stack": array(4, 40, 40, dtype=jnp.uint8),
  "dict": {"b": array(3), "a": array(7, 7, 3), "action_mask": array(4, dtype=bool)},
  "nested": {"x": {"y": array(3)}, "z": array(2)},
  "tuple": (array(3), array(2)),
}


@pytest.mark.parametrize("name", SPECS)
def test_auto_reads_every_observation(name):
  torso, params, observation = build(SPECS[name])
  features = jax.jit(torso.apply)(params, observation)
  assert features.shape == (3, 8)
  assert features.dtype == jnp.float32
  assert bool(jnp.all(jnp.isfinite(features)))


def module_names(params):
  return {part.key for path, _ in jax.tree_util.tree_leaves_with_path(params) for part in path}


@pytest.mark.parametrize(
  ("torso", "shape", "num_convolutions"),
  [
    ("auto", (35, 35, 1), 1),
    ("auto", (36, 36, 1), 6),
    ("auto", (1, 36, 36), 6),
    ("mlp", (10, 10, 4), 0),
    ("conv", (36, 36, 1), 1),
    ("nature_cnn", (36, 36, 1), 3),
    ("impala_resnet", (10, 10, 4), 6),
  ],
)
def test_which_layers_read_an_image(torso, shape, num_convolutions):
  config = config_lib.NetworkConfig(**SMALL, torso=torso)
  module = torsos.make_torso(config, array(*shape))
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
  names = {name for name in module_names(params) if str(name).startswith("Conv_")}
  assert len(names) == num_convolutions


def test_shapes_of_the_papers():
  images = jnp.zeros((1, 84, 84, 4))
  nature = torsos.NatureCNN()
  params = jax.eval_shape(nature.init, jax.random.key(0), images)
  assert jax.eval_shape(nature.apply, params, images).shape == (1, 7, 7, 64)
  resnet = torsos.ImpalaResNet((16, 32, 32))
  images = jnp.zeros((1, 72, 96, 3))
  params = jax.eval_shape(resnet.init, jax.random.key(0), images)
  assert jax.eval_shape(resnet.apply, params, images).shape == (1, 9, 12, 32)
  assert len(jax.tree.leaves(params)) == 2 * 15  # "15 convolutional layers" with a dense one


def test_channel_first_equals_channel_last():
  config = {"torso": "conv"}
  first, params, _ = build(array(4, 9, 9, dtype=jnp.uint8), **config)
  last, _, _ = build(array(9, 9, 4, dtype=jnp.uint8), **config)
  images = jax.random.randint(jax.random.key(1), (3, 4, 9, 9), 0, 256).astype(jnp.uint8)
  np.testing.assert_allclose(
    first.apply(params, images),
    last.apply(params, jnp.moveaxis(images, 1, -1)),
    rtol=1e-5,
  )


@pytest.mark.parametrize(("maximum", "divisor"), [(None, 255.0), (255, 255.0), (10, 10.0)])
def test_bytes_are_divided_by_their_maximum(maximum, divisor):
  reader = torsos.Reader(array(2, dtype=jnp.uint8, minimum=0, maximum=maximum))
  values = reader.apply({}, jnp.array([[0, 10]], jnp.uint8))
  np.testing.assert_allclose(values, [[0.0, 10.0 / divisor]], rtol=1e-6)


def test_a_bounded_integer_is_one_hot():
  reader = torsos.Reader(array(dtype=jnp.int32, minimum=1, maximum=3))
  np.testing.assert_array_equal(reader.apply({}, jnp.array([1, 3])), [[1, 0, 0], [0, 0, 1]])
  huge = torsos.Reader(array(dtype=jnp.int32, minimum=0, maximum=10**9))
  np.testing.assert_array_equal(huge.apply({}, jnp.array([7])), [[7.0]])


def test_task_id_is_one_hot_by_the_number_of_tasks():
  spec = {"task_id": array(dtype=jnp.int32), "obs": array(5)}
  _, params, _ = build(spec, num_tasks=3)
  assert params["params"]["mlp"]["Dense_0"]["kernel"].shape == (5 + 3, 8)


def test_the_action_mask_is_no_input():
  torso, params, observation = build(SPECS["dict"])
  flipped = {**observation, "action_mask": ~observation["action_mask"]}
  np.testing.assert_array_equal(torso.apply(params, observation), torso.apply(params, flipped))
  with pytest.raises(ValueError, match="no entry"):
    torsos.make_torso(config_lib.NetworkConfig(), {"action_mask": array(4, dtype=bool)})


@pytest.mark.parametrize(
  ("torso", "spec", "message"),
  [
    ("conv", array(5), r"torso conv reads images .* shape \(5,\); valid torsos: auto, mlp"),
    ("impala_resnet", {"a": array(5), "b": array(2, 2)}, "valid torsos: auto, mlp"),
    ("nature_cnn", array(10, 10, 4), "at least 36x36.*valid torsos: auto, mlp, conv"),
  ],
)
def test_a_torso_that_does_not_fit_is_refused_in_one_line(torso, spec, message):
  with pytest.raises(ValueError, match=message) as error:
    torsos.make_torso(config_lib.NetworkConfig(torso=torso), spec)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("torso", "shape"), [("mlp", (4, 40, 40)), ("conv", (9, 9, 3)), ("nature_cnn", (40, 40, 4))]
)
def test_bytes_are_read_as_the_floats_they_stand_for(torso, shape):
  of_bytes, params, _ = build(array(*shape, dtype=jnp.uint8, minimum=0, maximum=10), torso=torso)
  of_floats, expected_params, _ = build(array(*shape), torso=torso)
  assert jax.tree.structure(params) == jax.tree.structure(expected_params)
  images = jax.random.randint(jax.random.key(1), (3, *shape), 0, 11).astype(jnp.uint8)
  np.testing.assert_allclose(
    of_bytes.apply(params, images),
    of_floats.apply(params, images.astype(jnp.float32) / 10),
    rtol=1e-4,
    atol=1e-5,
  )
