"""Checkpoints with the real Orbax, real files and real processes."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import checkpoint


class LearnerLike(NamedTuple):
  params: Any
  target_params: Any
  count: Any


def example_state(seed: int = 0) -> dict[str, Any]:
  key = jax.random.key(seed)
  return {
    "learner": LearnerLike(
      params={"dense/0": {"kernel": jax.random.normal(key, (5, 3)), "bias": jnp.zeros(3)}},
      target_params=None,
      count=jnp.int32(seed),
    ),
    "dtypes": [
      jnp.array([True, False]),
      jnp.array([-1, 127], jnp.int8),
      jnp.array([7, -8], jnp.int4),
      jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
      jnp.array([0.5, -3.0], jnp.float8_e4m3fn),
      jnp.array([1 + 2j], jnp.complex64),
      jnp.zeros((0, 3)),
    ],
    "keys": (key, jax.random.split(key, (2, 3)), jax.random.key(seed, impl="rbg")),
    "large": jax.random.normal(key, (100, 40)),
    "empty": ((), None, {}),
  }


def as_bytes(tree: Any) -> list[tuple[Any, str, bytes]]:
  def one(leaf: Any) -> tuple[Any, str, bytes]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf.shape, str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    return leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()

  return [one(leaf) for leaf in jax.tree.leaves(tree)]


def structs(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def save_steps(
  directory: pathlib.Path, steps: list[int], **options: Any
) -> checkpoint.Checkpointer:
  checkpointer = checkpoint.Checkpointer(directory, **options)
  for step in steps:
    checkpointer.save(step, {"state": example_state(step)}, {"env_steps": step * 10})
    assert checkpointer.wait()
  return checkpointer


def run_python(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def warnings(caplog: Any) -> list[str]:
  return [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("make_target", [lambda tree: tree, structs], ids=["arrays", "structs"])
def test_round_trip_is_bit_exact(tmp_path, make_target):
  state = example_state(3)
  checkpointer = checkpoint.Checkpointer(tmp_path / "checkpoints")
  checkpointer.save(
    7, {"state": state, "params": state["learner"].params, "none": ()}, {"a": [1, "b"]}
  )
  checkpointer.close()

  reader = checkpoint.Checkpointer(tmp_path / "checkpoints")
  restored = reader.restore({"state": make_target(state), "none": ()})
  assert restored.step == 7
  assert restored.metadata == {"a": [1, "b"]}
  assert sorted(restored.items) == ["none", "state"]
  assert jax.tree.structure(restored.items["state"]) == jax.tree.structure(state)
  assert as_bytes(restored.items["state"]) == as_bytes(state)
  # Committed to one device, they could not be used together with a mesh of several.
  assert not any(leaf.committed for leaf in jax.tree.leaves(restored.items["state"]))

  params = reader.restore({"params": make_target(state["learner"].params)}).items["params"]
  assert as_bytes(params) == as_bytes(state["learner"].params)


def test_no_checkpoint_at_all_is_none(tmp_path):
  assert checkpoint.Checkpointer(tmp_path / "absent").restore({"state": jnp.zeros(2)}) is None
  (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
  assert checkpoint.Checkpointer(tmp_path).restore({"state": jnp.zeros(2)}) is None


def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
  checkpointer = save_steps(tmp_path, [10, 20])
  assert checkpointer.restore({"state": example_state()}, step=10).step == 10
  with pytest.raises(
    checkpoint.CheckpointError, match="no checkpoint of step 15; there are: 10, 20"
  ):
    checkpointer.restore({"state": example_state()}, step=15)


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path):
  increment = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
  state = {i: jnp.full((1000, 50), i, jnp.float32) for i in range(20)}
  checkpointer = checkpoint.Checkpointer(tmp_path, max_to_keep=20)
  saved = {}
  for step in range(6):
    saved[step] = {i: np.array(x, copy=True) for i, x in state.items()}
    checkpointer.save(step, {"state": state}, {})
    for _ in range(10):
      state = increment(state)
  assert checkpointer.wait()
  for step, expected in saved.items():
    restored = checkpointer.restore({"state": state}, step=step).items["state"]
    assert all(np.array_equal(restored[i], expected[i]) for i in expected)


def test_keeps_the_newest_steps_and_at_least_two(tmp_path):
  checkpointer = save_steps(tmp_path, [1, 2, 3, 4], max_to_keep=2)
  assert checkpointer.steps() == [3, 4]
  with pytest.raises(ValueError, match="at least 2"):
    checkpoint.Checkpointer(tmp_path, max_to_keep=1)


def test_a_step_already_saved_is_not_written_again(tmp_path):
  checkpointer = save_steps(tmp_path, [1])
  before = (tmp_path / "1").stat().st_ctime_ns
  checkpointer.save(1, {"state": example_state(1)}, {"env_steps": 10})
  assert checkpointer.wait()
  assert (tmp_path / "1").stat().st_ctime_ns == before


def test_what_cannot_be_saved_is_an_error_at_once(tmp_path):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  with pytest.raises(TypeError, match="state/name must be an array, got str"):
    checkpointer.save(1, {"state": {"name": "x"}}, {})
  with pytest.raises(TypeError):
    checkpointer.save(1, {"state": jnp.zeros(1)}, {"x": object()})
  assert checkpointer.steps() == []


def array_files(step: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that hold values, which Orbax keeps in folders `d`, the largest last."""
  return sorted(step.rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate_array(step: pathlib.Path) -> None:
  largest = array_files(step)[-1]
  os.truncate(largest, largest.stat().st_size // 2)


def empty_directory(step: pathlib.Path) -> None:
  shutil.rmtree(step)
  step.mkdir()


def delete_item(step: pathlib.Path) -> None:
  shutil.rmtree(step / "state")


def delete_manifest(step: pathlib.Path) -> None:
  shutil.rmtree(step / checkpoint.MANIFEST)


def delete_arrays(step: pathlib.Path) -> None:
  for path in array_files(step):
    path.unlink()


def edit_metadata(step: pathlib.Path) -> None:
  for path in (step / checkpoint.MANIFEST).iterdir():
    path.write_text(path.read_text().replace('"env_steps": 20', '"env_steps": 21'))


def truncate_everything(step: pathlib.Path) -> None:
  for path in filter(pathlib.Path.is_file, step.rglob("*")):
    os.truncate(path, 0)


FAULTS = [
  truncate_array,
  truncate_everything,
  empty_directory,
  delete_item,
  delete_manifest,
  delete_arrays,
  edit_metadata,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_falls_back_to_the_newest_that_verifies_with_one_line(tmp_path, caplog, fault):
  save_steps(tmp_path, [10, 20]).close()
  fault(tmp_path / "20")
  restored = checkpoint.Checkpointer(tmp_path).restore({"state": example_state()})
  assert restored.step == 10
  assert restored.metadata == {"env_steps": 100}
  assert as_bytes(restored.items["state"]) == as_bytes(example_state(10))
  (line,) = warnings(caplog)
  assert "step 20 is skipped" in line
  assert "is corrupt" in line
  assert "Fell back to step 10" in line
  assert "\n" not in line


def test_all_bad_is_an_error_that_names_each_and_its_fault(tmp_path):
  save_steps(tmp_path, [10, 20, 30]).close()
  empty_directory(tmp_path / "10")
  truncate_array(tmp_path / "20")
  delete_item(tmp_path / "30")
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.Checkpointer(tmp_path).restore({"state": example_state()})
  lines = str(error.value).splitlines()[1:]
  assert [line.split(" is corrupt: ")[0] for line in lines] == [
    "  step 30",
    "  step 20",
    "  step 10",
  ]


def test_another_shape_is_told_apart_from_corruption(tmp_path, caplog):
  checkpointer = save_steps(tmp_path, [10])
  checkpointer.save(20, {"state": {"x": jnp.zeros(3)}}, {})
  assert checkpointer.restore({"state": example_state()}).step == 10
  assert "does not fit what is asked for" in warnings(caplog)[0]
  for target, message in [
    ({"state": {"x": jnp.zeros(4)}}, r"state/x is float32\[3\] there and float32\[4\] here"),
    ({"state": {"x": jnp.zeros(3, jnp.int32)}}, r"float32\[3\] there and int32\[3\] here"),
    ({"state": {"y": jnp.zeros(3)}}, r"state/y is absent there .* \(and 1 more\)"),
    ({"params": {"x": jnp.zeros(3)}}, "it has no item params, only state"),
  ]:
    with pytest.raises(checkpoint.CheckpointError, match=message) as error:
      checkpointer.restore(target, step=20)
    assert "corrupt" not in str(error.value)


def test_every_flipped_byte_in_array_data_is_found(tmp_path):
  # Bits without pattern are stored as they are, so that what is flipped is a value.
  state = lambda seed: {"x": jax.random.bits(jax.random.key(seed), (128, 64))}  # noqa: E731
  checkpointer = checkpoint.Checkpointer(tmp_path)
  for step in (1, 2):
    checkpointer.save(step, {"state": state(step)}, {})
    assert checkpointer.wait()
  largest = array_files(tmp_path / "2")[-1]
  good = largest.read_bytes()
  start = good.index(np.asarray(state(2)["x"]).tobytes()[:512])
  generator = random.Random(0)
  for _ in range(60):
    position = generator.randrange(start, start + 128 * 64 * 4)
    flipped = bytearray(good)
    flipped[position] ^= 1 << generator.randrange(8)
    largest.write_bytes(flipped)
    restored = checkpointer.restore({"state": state(0)})
    assert restored.step == 1, position
    assert as_bytes(restored.items["state"]) == as_bytes(state(1))
  largest.write_bytes(good)
  assert checkpointer.restore({"state": state(0)}).step == 2


def test_a_corrupt_step_is_replaced_and_does_not_push_out_good_ones(tmp_path):
  save_steps(tmp_path, [1, 2, 3]).close()
  truncate_array(tmp_path / "2")
  truncate_array(tmp_path / "3")
  checkpointer = checkpoint.Checkpointer(tmp_path)
  assert checkpointer.restore({"state": example_state()}).step == 1
  checkpointer.save(3, {"state": example_state(3)}, {})
  assert checkpointer.wait()
  assert checkpointer.steps() == [1, 3]
  assert checkpointer.restore({"state": example_state()}).step == 3


def test_a_reader_leaves_the_save_of_a_living_run_alone(tmp_path):
  writer = save_steps(tmp_path, [1])
  under_way = tmp_path / "2.orbax-checkpoint-tmp"
  under_way.mkdir()
  assert checkpoint.Checkpointer(tmp_path).restore({"state": example_state()}).step == 1
  assert under_way.exists()
  writer.close()
  # Nor where no lock tells of it: on NFS a lock is of one host only.
  checkpoint.Checkpointer(tmp_path)
  assert under_way.exists()
  save_steps(tmp_path, [3])
  assert not under_way.exists()


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from podracer import checkpoint

directory, mode = sys.argv[1:]
key = jax.random.key(0)
values = {
  "split": jax.random.normal(key, (8, 3)),
  "replicated": jnp.arange(5, dtype=jnp.bfloat16),
  "keys": jax.random.split(key, 8),
  "last": jnp.arange(6, dtype=jnp.int32),
  "free": jnp.int32(4),
}
if mode == "save":
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  shardings = {
    "split": NamedSharding(mesh, P("data")),
    "replicated": NamedSharding(mesh, P()),
    "keys": NamedSharding(mesh, P("data")),
    "last": SingleDeviceSharding(jax.devices()[3]),
  }
  state = {name: jax.device_put(values[name], s) for name, s in shardings.items()}
  state["free"] = values["free"]
  checkpointer = checkpoint.Checkpointer(directory)
  checkpointer.save(1, {"state": state}, {})
  assert checkpointer.wait()
else:
  state, shardings = values, {}
structs = {
  name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.get(name))
  for name, x in values.items()
}
for target in (state, structs):
  restored = checkpoint.Checkpointer(directory).restore({"state": target}).items["state"]
  for name, value in values.items():
    assert restored[name].sharding == state[name].sharding, name
    assert restored[name].committed == (name in shardings), name
    assert restored[name].dtype == value.dtype
    if name == "keys":
      value, restored[name] = map(jax.random.key_data, (value, restored[name]))
    assert np.array_equal(value, restored[name]), name
print("restored", len(jax.devices()))
"""


def test_arrays_sharded_over_four_devices_come_back_on_four_and_on_one(tmp_path):
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  four = run_python(SHARDED, tmp_path, "save", **flags)
  assert "restored 4" in four.stdout, four.stderr
  one = run_python(SHARDED, tmp_path, "load", XLA_FLAGS="")
  assert "restored 1" in one.stdout, one.stderr


MANY_SHARDED = """
import faulthandler, os
import jax, numpy as np
from podracer import checkpoint

faulthandler.dump_traceback_later(120, exit=True)
num_devices = max(2, os.cpu_count())
jax.config.update("jax_num_cpu_devices", num_devices)
mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
leaves = [jax.device_put(np.arange(128 * num_devices * (1 + i % 3)), sharding) for i in range(60)]
first = checkpoint.compute_digests(leaves)
assert all(checkpoint.compute_digests(leaves) == first for _ in range(100))
print("digested")
"""


def test_a_state_of_many_sharded_leaves_is_digested_on_devices_that_are_cores():
  # With as many devices as cores this hung, mostly within a hundred rounds.
  assert "digested" in run_python(MANY_SHARDED, XLA_FLAGS="").stdout


DISK_FULL = """
import pathlib, resource, signal, sys
import jax
from podracer import checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory = pathlib.Path(sys.argv[1])
state = lambda step: {"x": jax.random.normal(jax.random.key(step), (300, 300))}
checkpointer = checkpoint.Checkpointer(directory)
checkpointer.save(1, {"state": state(1)}, {})
assert checkpointer.wait()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (20_000, 10):
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  for step in (2, 3):
    checkpointer.save(step, {"state": state(step)}, {})
  assert not checkpointer.wait()
  assert not list(directory.glob(checkpoint.TEMPORARY)), "left behind"
  assert checkpointer.steps() == [1]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
checkpointer.save(4, {"state": state(4)}, {})
assert checkpointer.poll() in (True, False)
assert checkpointer.wait()
assert checkpointer.poll()
assert checkpointer.restore({"state": state(0)}).step == 4
assert checkpointer.steps() == [1, 4]
checkpointer.close()
print("went on")
"""


def test_a_full_disk_is_one_line_and_training_goes_on(tmp_path):
  result = run_python(DISK_FULL, tmp_path)
  assert "went on" in result.stdout, result.stderr
  lines = result.stderr.splitlines()
  assert len(lines) == 4, result.stderr
  for line, step in zip(lines, (2, 3, 2, 3), strict=True):
    assert f"checkpoint of step {step}" in line
    assert "File too large" in line
    assert "Training goes on; the newest good checkpoint is that of step 1." in line


MANY_FAULTS = """
import pathlib, sys
import jax
from podracer import checkpoint

directory = pathlib.Path(sys.argv[1])
state = {str(i): jax.random.normal(jax.random.key(i), (50, 50)) for i in range(40)}
checkpointer = checkpoint.Checkpointer(directory, max_to_keep=10)
for step in range(5):
  checkpointer.save(step, {"state": state}, {})
  assert checkpointer.wait()
for step in range(1, 5):
  for path in (directory / str(step)).rglob("d/*"):
    path.unlink()
assert checkpointer.restore({"state": state}).step == 0
"""


def test_many_bad_arrays_are_one_line_a_step(tmp_path):
  # Each read that Orbax no longer waits for would print a traceback.
  result = run_python(MANY_FAULTS, tmp_path)
  assert result.returncode == 0, result.stderr
  lines = result.stderr.splitlines()
  assert len(lines) == 4, result.stderr
  for line, step in zip(lines, (4, 3, 2, 1), strict=True):
    assert f"Checkpoint of step {step} is skipped: it is corrupt: " in line
    assert "tensorstore_spec" not in line


SAVE_AND_RAISE = """
import pathlib, sys
import jax.numpy as jnp
from podracer import checkpoint

checkpointer = checkpoint.Checkpointer(pathlib.Path(sys.argv[1]))
for step in range(3):
  checkpointer.save(step, {"state": {"a": jnp.ones((200, 50))}}, {})
raise ArithmeticError("of a script of one's own")
"""


def test_a_script_that_ends_during_a_save_ends_it(tmp_path):
  # Orbax's threads would be waited for five minutes.
  result = run_python(SAVE_AND_RAISE, tmp_path)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1] == "ArithmeticError: of a script of one's own"
  assert checkpoint.Checkpointer(tmp_path).steps() == [0, 1, 2]
  assert not list(tmp_path.glob(checkpoint.TEMPORARY))


SAVE_LOOP = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from podracer import checkpoint

directory = pathlib.Path(sys.argv[1])
state = lambda step: {str(i): jax.random.normal(jax.random.key(100 * step + i), (200, 50)) for i in range(5)}
checkpointer = checkpoint.Checkpointer(directory)
restored = checkpointer.restore({"state": state(0)})
first = 0
if restored is not None:
  first = restored.step
  assert restored.metadata == {"step": first}
  expected = state(first)
  assert all(np.array_equal(restored.items["state"][i], expected[i]) for i in expected)
print("restored", first, flush=True)
for step in range(first + 1, first + 1000):
  checkpointer.save(step, {"state": state(step)}, {"step": step})
  assert len(list(directory.glob(checkpoint.TEMPORARY))) <= 1, "left behind"
  print("saving", step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path):
  generator = random.Random(time.time_ns())
  last_saving = 0
  for _ in range(8):
    process = subprocess.Popen(
      [sys.executable, "-c", SAVE_LOOP, str(tmp_path)],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    first = process.stdout.readline()
    assert first.startswith("restored"), process.stderr.read()
    # A save begins only when the one before is on disk.
    assert int(first.split()[1]) >= last_saving - 1
    for _ in range(generator.randrange(1, 6)):
      process.stdout.readline()
    time.sleep(generator.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].splitlines()
    last_saving = int(rest[-1].split()[1]) if rest else last_saving
  checkpointer = checkpoint.Checkpointer(tmp_path)
  assert checkpointer.steps()
  checkpointer.save(1000, {"state": {"0": jnp.zeros(3)}}, {"step": 1000})
  checkpointer.close()
  assert checkpointer.steps()[-1] == 1000
  assert not list(tmp_path.glob(checkpoint.TEMPORARY))
