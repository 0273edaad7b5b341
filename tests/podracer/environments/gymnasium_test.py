import glob
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from podracer import config, environments, host_environment, types

FIRST, LAST = types.FIRST, types.LAST
MODULE = """
import os, signal, time
import gymnasium
import numpy as np

class Some(gymnasium.Env):
  metadata = {"render_modes": []}
  action_space = gymnasium.spaces.Discrete(3, start=5)

  def __init__(self, fault="", at=3, kind="dict"):
    parts = {"b": gymnasium.spaces.Discrete(4), "a": gymnasium.spaces.Box(-1, 1, (2,), np.float64)}
    self.kind = kind
    self.observation_space = {
      "dict": gymnasium.spaces.Dict(parts),
      "tuple": gymnasium.spaces.Tuple((parts["a"], parts["b"])),
      "discrete": parts["b"],
    }[kind]
    self.fault, self.at = fault, at

  def look(self):
    a, b = np.full((2,), self.count / 8), self.count % 4
    return {"dict": {"a": a, "b": b}, "tuple": (a, b), "discrete": b}[self.kind]

  def reset(self, seed=None, options=None):
    super().reset(seed=seed)
    if seed is not None:
      self.seed = seed
    self.count = 0
    return self.look(), {}

  def step(self, action):
    assert 5 <= action < 8
    self.count += 1
    if self.fault and self.seed == 1 and self.count == self.at:
      if self.fault == "raise":
        raise KeyError("the moon is made of cheese")
      if self.fault == "exit":
        os._exit(3)
      if self.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
      if self.fault == "block":
        time.sleep(3600)
      if self.fault == "shape":
        return {"a": np.zeros(5), "b": 0}, 0.0, False, False, {}
    return self.look(), float(action), self.count == 6, False, {}

def make(**options):
  return Some(**options)

def nothing():
  return 3
"""
PARENT = """
import sys, time
from podracer import environments, host_environment

if __name__ == "__main__":
  options = host_environment.HostOptions(num_threads=2)
  host = environments.make("gymnasium:CartPole-v1").make([1, 2], options)
  host.reset()
  print(*[worker.pid for worker in host._workers], host._arena.name, flush=True)
  time.sleep(600)
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
  (tmp_path / "my_gymnasium_games.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("my_gymnasium_games", None)


@pytest.fixture
def make():
  hosts = []

  def make(name, seeds=(0, 1), num_threads=1, timeout_seconds=60.0, render=False, **options):
    factory = environments.make(f"gymnasium:{name}", **options)
    host = factory.make(
      seeds,
      host_environment.HostOptions(num_threads, 0, timeout_seconds, render),
    )
    hosts.append(host)
    return host

  yield make
  for host in hosts:
    host.close()


def _walk(host, num_steps, action_of):
  timesteps = [host.reset()]
  for t in range(num_steps):
    timesteps.append(host.step(action_of(t)))
    host_environment.check_timestep(host.spec, timesteps[-1], host.num_environments)
  return jax.tree.map(lambda *x: np.stack(x), *timesteps)


def _check_convention(course):
  is_first, is_last = course.step_type == FIRST, course.step_type == LAST
  assert np.all(is_first[0]) and np.any(is_last[:-1])
  np.testing.assert_array_equal(is_first[1:], is_last[:-1])
  assert np.all(course.reward[is_first] == 0) and np.all(course.discount[is_first] == 1)
  assert np.all(course.discount[course.step_type == types.MID] == 1)


def test_a_terminated_episode_whatever_the_number_of_workers(make):
  def action_of(t):
    return np.asarray([t % 2, 1, 0], np.int32)

  course = _walk(make("CartPole-v1", (3, 4, 5)), 40, action_of)
  _check_convention(course)
  assert np.all(course.discount[course.step_type == LAST] == 0)
  assert np.all(course.reward[course.step_type == LAST] == 1)
  split = _walk(make("CartPole-v1", (3, 4, 5), num_threads=2), 40, action_of)
  jax.tree.map(np.testing.assert_array_equal, split, course)


def test_a_truncated_episode_and_a_second_reset(make):
  host = make("Pendulum-v1", max_episode_steps=5)
  course = _walk(host, 12, lambda t: np.zeros((2, 1), np.float32))
  _check_convention(course)
  assert np.all(course.discount == 1)
  np.testing.assert_array_equal(np.flatnonzero(course.step_type[:, 0] == LAST), [5, 11])
  again = host.reset()
  assert np.all(again.step_type == FIRST)
  assert np.all(np.any(again.observation != course.observation[0], axis=1))


@pytest.mark.parametrize("kind", ["dict", "tuple", "discrete"])
def test_observations_of_a_users_function(make, kind):
  host = make("my_gymnasium_games:make", kind=kind)
  course = _walk(host, 8, lambda t: np.asarray([0, 2], np.int32))
  counts = np.asarray([0, 1, 2, 3, 4, 5, 6, 0, 1])
  names = {"dict": ("a", "b"), "tuple": ("0", "1")}.get(kind)
  b = course.observation if names is None else course.observation[names[1]]
  assert b.dtype == np.int32
  np.testing.assert_array_equal(b, np.stack([counts % 4] * 2, axis=1))
  if names is not None:
    a = course.observation[names[0]]
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a[:, 0, 0], counts / 8)
  # Actions start at 5 there.
  np.testing.assert_array_equal(course.reward[1], [5, 7])


@pytest.mark.parametrize(
  ("fault", "error", "messages"),
  [
    ("raise", RuntimeError, ["environments 0 .. 1 raised", "Traceback", "the moon is made"]),
    ("exit", RuntimeError, ["the process of environments 0 .. 1 ended with exit code 3"]),
    ("kill", RuntimeError, ["the process of environments 0 .. 1 ended by SIGKILL"]),
    ("block", TimeoutError, ["environments 0 .. 1 did not answer for 0.5 s"]),
    ("shape", RuntimeError, ["environments 0 .. 1 raised", "shape"]),
  ],
)
def test_a_fault_is_told_with_its_environments(make, fault, error, messages):
  host = make("my_gymnasium_games:make", (0, 1, 2, 3), num_threads=2, fault=fault)
  host.reset()
  host._timeout_seconds = 0.5 if fault == "block" else 60.0
  action = np.zeros(4, np.int32)
  host.step(action)
  host.step(action)
  with pytest.raises(error) as caught:
    host.step(action)
  for message in messages:
    assert message in str(caught.value)
  host.close()
  assert not any(worker.is_alive() for worker in host._workers)
  assert not glob.glob(f"/dev/shm/{host._arena.name.lstrip('/')}")


def test_close_leaves_nothing(make):
  host = make("CartPole-v1", num_threads=2)
  host.reset()
  assert glob.glob(f"/dev/shm/{host._arena.name.lstrip('/')}")
  host.close()
  assert not any(worker.is_alive() for worker in host._workers)
  assert not glob.glob(f"/dev/shm/{host._arena.name.lstrip('/')}")


def _is_running(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
  script = tmp_path / "parent.py"
  script.write_text(PARENT)
  parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
  try:
    *workers, arena = parent.stdout.readline().split()
    assert all(_is_running(pid) for pid in workers) and len(workers) == 2
    path = f"/dev/shm/{arena.lstrip('/')}"
    assert os.path.exists(path)
  finally:
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
  deadline = time.monotonic() + 60
  while any(_is_running(pid) for pid in workers) or os.path.exists(path):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_render(make):
  host = make("CartPole-v1", render=True)
  host.reset()
  picture = host.render()
  assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
  assert len(np.unique(picture)) > 1
  host = make("CartPole-v1")
  host.reset()
  with pytest.raises(config.InputError, match="cannot be rendered"):
    host.render()


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("CartPole-v1", {"nope": 1}, "cannot be made: TypeError: .*nope"),
    ("CartPole-v9", {}, "nearest: gymnasium:CartPole"),
    ("Blackjack-v2", {}, "nearest: gymnasium:Blackjack-v1"),
    ("my_gymnasium_games:make", {"kind": "odd"}, "cannot be made: KeyError"),
    ("my_gymnasium_games:gone", {}, "has no function gone"),
    ("my_gymnasium_games:nothing", {}, "returned int, not a gymnasium.Env"),
  ],
)
def test_bad_input_is_one_line(name, options, message):
  with pytest.raises(config.InputError, match=message) as caught:
    environments.make(f"gymnasium:{name}", **options)
  assert "\n" not in str(caught.value)


def test_an_id_that_importing_a_module_registers(tmp_path, monkeypatch):
  (tmp_path / "my_registered_games.py").write_text(
    "import gymnasium\n"
    "gymnasium.register('Mine/Pole-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv',"
    " max_episode_steps=9)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  factory = environments.make("gymnasium:my_registered_games:Mine/Pole-v0")
  host = factory.make([0, 1], host_environment.HostOptions(num_threads=1, timeout_seconds=60))
  try:
    host.reset()
    step_types = [host.step(np.zeros((2,), np.int32)).step_type.tolist() for _ in range(9)]
  finally:
    host.close()
  assert 2 in {s for pair in step_types for s in pair}
