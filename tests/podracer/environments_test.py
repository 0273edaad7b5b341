import sys
import types as python_types

import gymnax
import jax
import numpy as np
import pytest

from podracer import config, environment, environments, testing, types

# How a suite's episodes are made short, so that a check of few steps sees ends and resets.
SHORT = {
  "brax": {"episode_length": 5},
  "craftax": {"max_timesteps": 5},
  "gymnax": {"max_steps_in_episode": 5},
  "jumanji": {"time_limit": 5},
  "navix": {"max_steps": 5},
  "pgx": {"max_steps": 5},
}
# Of jumanji's tasks; the others end by themselves.
WITH_TIME_LIMIT = ("Maze-v0", "PacMan-v1", "SlidingTilePuzzle-v0", "Snake-v1")
# Compiled and run by default: one or two of each kind of suite that compile in seconds.
RUN = (
  "brax:fast",
  "gymnax:CartPole-v1",
  "gymnax:Catch-bsuite",
  "gymnax:FrozenLake-misc",
  "gymnax:Pendulum-v1",
  "jumanji:Snake-v1",
  "navix:Empty-5x5-v0",
  "pgx:minatar-breakout",
)
# Even tracing one brax task takes many seconds, and craftax makes its textures on first use, for
# minutes. Of navix's tasks the sizes of one kind are built by the same code.
HEAVY = ("brax", "craftax", "navix")
LIGHT = (
  "brax:fast",
  "brax:inverted_pendulum",
  "craftax:Craftax-Classic-Symbolic-v1",
  "navix:DistShift1-v0",
  "navix:DoorKey-5x5-v0",
  "navix:Dynamic-Obstacles-5x5-v0",
  "navix:Empty-5x5-v0",
  "navix:FourRooms-v0",
  "navix:GoToDoor-5x5-v0",
  "navix:KeyCorridorS3R1-v0",
  "navix:LavaGapS5-v0",
  "navix:SimpleCrossingS9N1-v0",
)
DOWNLOADS = ("gymnax:MNISTBandit-bsuite",)
# Those of the host have tests of their own.
ALL = tuple(
  name for name in environments.names() if name not in DOWNLOADS and not environments.is_host(name)
)


def _param(name, is_slow):
  """Marks what is left out of the default run, and of the slow one where its like is in that."""
  is_heavy = name.partition(":")[0] in HEAVY and name not in LIGHT
  marks = pytest.mark.exhaustive if is_heavy else pytest.mark.slow if is_slow else ()
  return pytest.param(name, marks=marks)


TRACED = [_param(name, False) for name in ALL]
CHECKED = [_param(name, name not in RUN) for name in ALL]


@pytest.fixture
def quick_compilation():
  """Compiles without most optimisations: these programs run for a moment only."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def _make_short(name):
  """Returns an environment with short episodes, and a number of steps within which some end."""
  suite_name, _, rest = name.partition(":")
  if suite_name == "jumanji" and rest not in WITH_TIME_LIMIT:
    return environments.make(name), 200
  return environments.make(name, **SHORT[suite_name]), 12


@pytest.mark.parametrize("name", TRACED)
def test_environment_has_the_types_of_its_spec(name):
  made, _ = _make_short(name)
  assert made.spec.name == name
  testing.check_types(made)


@pytest.mark.parametrize("name", CHECKED)
def test_environment_conforms(name, quick_compilation):
  made, num_steps = _make_short(name)
  # One bit of its state, which two programs may round otherwise, makes up to 1.2e-4 within 4 steps.
  options = {"tolerance": 1e-3} if name == "brax:walker2d" else {}
  num_ends = testing.check_environment(made, num_steps=num_steps, **options)
  assert num_ends > 0


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("gymnax:Pendulum-v1", {"max_steps_in_episode": 3}),
    ("navix:Empty-5x5-v0", {"max_steps": 3}),
    ("pgx:2048", {"max_steps": 3}),
    ("jumanji:SlidingTilePuzzle-v0", {"time_limit": 3}),
    ("brax:fast", {"episode_length": 3}),
    pytest.param(
      "craftax:Craftax-Classic-Symbolic-v1", {"max_timesteps": 3}, marks=pytest.mark.slow
    ),
  ],
)
def test_a_time_limit_truncates_and_does_not_end(name, options, quick_compilation):
  made = environments.make(name, **options)
  course = testing.random_course(made, jax.random.split(jax.random.key(0), 2), 4)
  expected = [types.FIRST, types.MID, types.MID, types.LAST, types.FIRST]
  assert course.step_type[:, 0].tolist() == expected
  assert course.discount[:, 0].tolist() == [1.0] * 5


def test_an_end_has_discount_0(quick_compilation):
  made = environments.make("jumanji:Knapsack-v1")
  course = testing.random_course(made, jax.random.split(jax.random.key(0), 2), 50)
  is_last = course.step_type == types.LAST
  assert is_last.any()
  assert (course.discount[is_last] == 0.0).all()


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("gymnax:") and "MinAtar" in n])
def test_planes_of_minatar_are_bool_and_those_of_gymnax(name):
  """What gymnax observes as float32 is 0 or 1 everywhere, so that nothing is lost."""
  made = environments.make(name)
  plain, params = gymnax.make(name.partition(":")[2])
  assert made.spec.observation.dtype == bool
  observe = jax.jit(jax.vmap(lambda state: plain.get_obs(state, params)))
  keys = jax.random.split(jax.random.key(0), 8)
  state, timestep = environment.reset(made, keys)

  @jax.jit
  def step(key, state):
    action = jax.random.randint(key, (8,), 0, made.spec.action.num_actions)
    return environment.step(made, state, action)

  for key in jax.random.split(jax.random.key(1), 60):
    planes = observe(state.state)
    assert set(np.unique(planes)) <= {0.0, 1.0}
    np.testing.assert_array_equal(timestep.observation, planes.astype(bool))
    state, timestep = step(key, state)
  assert np.any(timestep.observation)


def _registry(suite_name):
  """Returns the names a suite's own library knows."""
  if suite_name == "gymnax":
    return set(gymnax.registered_envs)
  if suite_name == "navix":
    import navix

    return {name.removeprefix("Navix-") for name in navix.registry()}
  if suite_name == "pgx":
    import pgx

    return set(pgx.available_envs())
  if suite_name == "brax":
    from brax import envs

    return set(envs._envs)
  import jumanji

  return set(jumanji.registered_environments())


# What a library has and a suite leaves out, so that a new one in a new release is noticed.
LEFT_OUT = {
  "gymnax": set(),
  "navix": set(),
  "brax": {"swimmer"},
}


@pytest.mark.parametrize("suite_name", ["brax", "gymnax", "jumanji", "navix", "pgx"])
def test_names_are_those_of_the_library(suite_name):
  names = environments.suite(suite_name).NAMES
  assert list(names) == sorted(set(names))
  registry = _registry(suite_name)
  assert set(names) <= registry
  if suite_name in LEFT_OUT:
    assert registry - set(names) == LEFT_OUT[suite_name]


@pytest.mark.slow
def test_jumanji_lists_each_task_of_one_discrete_action():
  import jumanji

  needs_network = {"Sokoban-v0"}
  found = set()
  for name in set(jumanji.registered_environments()) - needs_network:
    spec = jumanji.make(name).action_spec
    if isinstance(spec, jumanji.specs.DiscreteArray):
      found.add(name)
  assert found == set(environments.suite("jumanji").NAMES)


def test_suites_have_what_a_suite_has():
  jax_native = ("brax", "craftax", "gymnax", "jumanji", "navix", "pgx")
  assert environments.suites() == tuple(sorted((*jax_native, "envpool", "gymnasium")))
  hosts = [name for name in environments.suites() if environments.is_host(f"{name}:x")]
  assert hosts == ["envpool", "gymnasium"]
  for name in environments.suites():
    module = environments.suite(name)
    assert isinstance(module.LIBRARY, str)
    assert module.EXTRA is None or isinstance(module.EXTRA, str)
    assert module.NAMES
    assert callable(module.make)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("gymnax:Cach-bsuite", "unknown environment gymnax:Cach-bsuite; nearest: gymnax:Catch-bsuite"),
    ("gymax:Catch-bsuite", "nearest: .*gymnax:Catch-bsuite"),
    ("Catch", "nearest: .*gymnax:Catch-bsuite"),
    ("gymnax:", "unknown environment gymnax:"),
    ("", "unknown environment"),
    ("no_such_module_here:make", "unknown environment no_such_module_here:make"),
    ("no.such.module:make", "unknown environment no.such.module:make"),
    ("..:make", "unknown environment ..:make"),
  ],
)
def test_unknown_name_is_one_line_with_the_nearest(name, message):
  with pytest.raises(ValueError, match=message) as info:
    environments.make(name)
  assert "\n" not in str(info.value)


def test_missing_library_names_the_command_that_installs_it(monkeypatch):
  monkeypatch.setattr(environments.suite("pgx"), "LIBRARY", "no_such_library_here")
  with pytest.raises(ValueError, match=r"pip install 'podracer-rl\[pgx\]'"):
    environments.make("pgx:minatar-asterix")


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("gymnax:Catch-bsuite", {"row": 5}, "has no option row; its options: columns, max_steps_"),
    ("gymnax:Catch-bsuite", {"rows": "many"}, "option rows must be a whole number, got 'many'"),
    ("gymnax:CartPole-v1", {"gravity": "up"}, "option gravity must be a number, got 'up'"),
    ("gymnax:CartPole-v1", {"max_steps_in_episode": 1.5}, "must be a whole number, got 1.5"),
    ("gymnax:MetaMaze-misc", {"maze_size": 4}, "a bad value in"),
    ("navix:Empty-5x5-v0", {"size": 5}, "has no option size; its options: max_steps, observation"),
    ("navix:Empty-5x5-v0", {"observation": "x"}, "observation must be one of categorical"),
    ("pgx:minatar-asterix", {"limit": 5}, "has no option limit; its options: max_steps, sticky"),
    ("pgx:minatar-asterix", {"max_steps": 0}, "must be a number of at least 1, got 0"),
    ("jumanji:Snake-v1", {"size": 5}, "has no option size; its options: num_cols, num_rows"),
    ("brax:fast", {"gravity": 5}, "has no option gravity; its options: "),
    ("brax:ant", {"backend": "x"}, "backend must be one of generalized"),
    (
      "podracer.darkroom:dark_room",
      {"goals": 5},
      "has no option goals; its options: coordinates, goal",
    ),
  ],
)
def test_bad_option_is_one_line(name, options, message):
  with pytest.raises(ValueError, match=message) as info:
    environments.make(name, **options)
  assert "\n" not in str(info.value)


def test_options_reach_the_environment():
  made = environments.make("gymnax:Catch-bsuite", rows=7, columns=4)
  assert made.spec.observation.shape == (7, 4)
  bernoulli = environments.make("gymnax:BernoulliBandit-misc", max_steps_in_episode=5)
  testing.check_types(bernoulli)


def test_failing_download_says_that_it_needs_the_network(monkeypatch):
  from gymnax.utils import load_mnist

  def refuse(*args, **kwargs):
    raise OSError("Name or service not known")

  monkeypatch.setattr(load_mnist, "load_mnist", refuse)
  with pytest.raises(ValueError, match="needs the network: Name or service not known"):
    environments.make("gymnax:MNISTBandit-bsuite")


def _module(monkeypatch, **content):
  module = python_types.ModuleType("a_users_module")
  module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("a_users_module", None)
  for key, value in content.items():
    setattr(module, key, value)
  monkeypatch.setitem(sys.modules, "a_users_module", module)


def test_users_own_function_is_called_with_the_options(monkeypatch):
  def make_env(length):
    return testing.chain_environment(((length, "terminate"),))

  _module(monkeypatch, make_env=make_env)
  made = environments.make("a_users_module:make_env", length=4)
  assert isinstance(made, environment.Environment)
  assert made.spec.name == "a_users_module:make_env"
  assert made.spec.observation.shape == (5,)


def test_users_function_with_wrong_options(monkeypatch):
  def make_env(length, *, end="terminate", **more):
    return testing.chain_environment(((length, end),), **more)

  _module(monkeypatch, make_env=make_env, narrow=lambda length: make_env(length), builtin=min)
  environments.make("a_users_module:make_env", length=4, end="truncate")
  for name, options, message in (
    ("make_env", {}, "a_users_module:make_env: missing a required argument: 'length'"),
    ("narrow", {"lenght": 4}, "narrow has no option lenght; its options: length"),
  ):
    with pytest.raises(config.InputError, match=message):
      environments.make(f"a_users_module:{name}", **options)
  # What has no signature is called as it is.
  with pytest.raises(TypeError, match="min expected"):
    environments.make("a_users_module:builtin")


def test_users_module_without_the_function(monkeypatch):
  _module(monkeypatch, not_callable=3)
  for name in ("make_env", "not_callable"):
    with pytest.raises(ValueError, match=f"module a_users_module has no function {name}"):
      environments.make(f"a_users_module:{name}")


def test_users_function_that_returns_something_else(monkeypatch):
  _module(monkeypatch, make_env=lambda: 3)
  with pytest.raises(
    ValueError, match=r"make_env\(\) returned int, not a podracer.environment.Env"
  ):
    environments.make("a_users_module:make_env")


def test_users_module_that_raises_on_import(monkeypatch, tmp_path):
  (tmp_path / "a_raising_module.py").write_text("raise KeyError('missing')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ValueError, match="importing a_raising_module raised KeyError: 'missing'"):
    environments.make("a_raising_module:make_env")


def test_names_joined_are_the_tasks_of_one_environment(monkeypatch):
  def make_env(length):
    return testing.chain_environment(((length, "terminate"),))

  _module(monkeypatch, make_env=make_env)
  name = "gymnax:Catch-bsuite+a_users_module:make_env+gymnax:CartPole-v1"
  made = environments.make(name, **{"0.rows": 7, "1.length": 4})
  assert made.spec.name == name
  assert environments.split(name) == tuple(task.name for task in made.spec.tasks)
  assert made.spec.observation["observation_0"].shape == (7, 5)
  assert made.spec.observation["observation_1"].shape == (5,)
  assert not environments.is_host(name)
  assert environments.is_host("gymnax:Catch-bsuite+envpool:CartPole-v1")


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("gymnax:Catch-bsuite+gymnax:CatPole-v1", {}, "unknown environment gymnax:CatPole-v1; nearest"),
    ("gymnax:Catch-bsuite+", {}, "a name is missing beside a +"),
    ("+", {}, "a name is missing beside a +"),
    ("gymnax:Catch-bsuite+gymnax:CartPole-v1", {"rows": 7}, "a task of 0 .. 1, got rows"),
    ("gymnax:Catch-bsuite+gymnax:CartPole-v1", {"2.rows": 7}, "a task of 0 .. 1, got 2.rows"),
    ("gymnax:Catch-bsuite+gymnax:CartPole-v1", {"1.rows": 7}, "has no option rows; its options"),
    ("gymnax:Catch-bsuite+gymnax:Pendulum-v1", {}, "the actions of all tasks must be discrete"),
    ("gymnax:Catch-bsuite+pgx:tic_tac_toe", {}, "pgx:tic_tac_toe has two players"),
  ],
)
def test_what_cannot_be_joined_is_one_line(name, options, message):
  with pytest.raises(config.InputError) as info:
    environments.make(name, **options)
  assert message in str(info.value)
  assert "\n" not in str(info.value)
