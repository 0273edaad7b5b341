"""A trained policy in a loop of one's own."""

import json

import jax
import numpy as np
import pytest

import podracer
from podracer import evaluation, host_environment, types
from podracer.launch import policy as policy_lib


@pytest.fixture(scope="module", params=["feed-forward", "lstm"])
def trained(request, finished, tmp_path_factory):
  """A run that has learnt as much as its network can."""
  if request.param == "feed-forward":
    return finished
  run = type(finished)(tmp_path_factory.mktemp("lstm"))
  code, out, err = run.train("--config.network.lstm_size=8")
  assert code == 0, out + err
  return run


def play(policy, environment, num_environments, seed):
  """Returns the return of the first episode of each of a batch of environments."""
  host = host_environment.JaxHostEnvironment(environment, num_environments, seed)
  timestep = host.reset()
  state = policy.initial_state(num_environments)
  returns = np.zeros(num_environments)
  goes_on = np.ones(num_environments, bool)
  while goes_on.any():
    action, state = policy(timestep, state)
    timestep = host.step(action)
    returns += np.where(goes_on, timestep.reward, 0.0)
    goes_on &= timestep.step_type != types.LAST
  return returns


def test_a_loop_of_ones_own_finds_what_the_evaluation_finds(trained):
  policy = podracer.load_policy(str(trained.workdir))
  environment = podracer.make_environment("podracer.testing:probe_memory")
  returns = play(policy, environment, 256, seed=1)
  assert set(np.unique(returns)) <= {-1.0, 1.0}
  evaluate = evaluation.make_evaluator(policy.agent, environment, num_episodes=256)
  expected = evaluate(policy.params, jax.random.key(3)).summary()["return_mean"]
  has_memory = bool(jax.tree.leaves(policy.initial_state(1)))
  if has_memory:
    # What it saw at the first step it must remember: any slip of the state shows.
    assert (returns == 1.0).all()
    assert expected == trained.evaluation()["return_mean"] == 1.0
  else:
    assert abs(np.mean(returns) - expected) < 0.4


def test_the_state_is_reset_at_the_first_step_by_itself(trained):
  policy = podracer.load_policy(str(trained.workdir))
  environment = podracer.make_environment("podracer.testing:probe_memory")
  host = host_environment.JaxHostEnvironment(environment, 4, seed=0)
  timestep = host.reset()
  fresh = policy.initial_state(4)
  used = jax.tree.map(lambda x: x + 1.0, fresh)
  action, state = policy(timestep, fresh)
  same_action, same_state = policy(timestep, used)
  np.testing.assert_array_equal(action, same_action)
  jax.tree.map(np.testing.assert_array_equal, state, same_state)


def test_what_a_policy_knows(finished):
  policy = podracer.load_policy(str(finished.workdir))
  assert policy.env_steps == finished.evaluation()["env_steps"]
  assert policy.spec.action == types.DiscreteActions(2)


def test_greedy_repeats_itself_and_sampling_follows_its_seed(finished):
  timestep = types.TimeStep(
    step_type=np.zeros(64, np.int8),
    reward=np.zeros(64, np.float32),
    discount=np.ones(64, np.float32),
    observation=np.zeros((64, 3), np.float32),
  )

  def actions(**keywords):
    policy = podracer.load_policy(str(finished.workdir), **keywords)
    state = policy.initial_state(64)
    first, state = policy(timestep, state)
    return np.asarray(first), np.asarray(policy(timestep, state)[0])

  greedy, again = actions()
  np.testing.assert_array_equal(greedy, again)
  assert len(np.unique(greedy)) == 1
  sampled, next_sampled = actions(greedy=False, seed=1)
  assert len(np.unique(sampled)) == 2
  assert (sampled != next_sampled).any()
  np.testing.assert_array_equal(sampled, actions(greedy=False, seed=1)[0])
  assert (sampled != actions(greedy=False, seed=2)[0]).any()


def test_what_is_no_run(tmp_path):
  with pytest.raises(podracer.InputError, match="does not exist"):
    podracer.load_policy(str(tmp_path / "nowhere"))
  with pytest.raises(podracer.InputError, match="is not a run"):
    podracer.load_policy(str(tmp_path))


def test_a_run_without_a_checkpoint(finished, tmp_path):
  config = (finished.workdir / "config.json").read_text()
  assert json.loads(config)["env"] == "podracer.testing:probe_memory"
  (tmp_path / "config.json").write_text(config)
  with pytest.raises(podracer.InputError, match="has no checkpoint yet"):
    policy_lib.LoadedRun(str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
