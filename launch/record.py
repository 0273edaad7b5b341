"""`podracer record`: writes whole episodes of a trained agent as expert data."""

import contextlib
import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from podracer import config

from . import command_line, experiment, interrupts

LINE_PERIOD_SECONDS = 5.0
MIN_UNROLL_LENGTH = 32
SHARD_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class RecordConfig:
  """Plays whole episodes with a trained agent and records them; goes on with what is there."""

  workdir: str
  """Directory of the run."""
  out: str = ""
  """Directory of the collection; data/<name of the run> by default. Other tasks may be in it."""
  episodes: int = 1000
  """Whole episodes to record, those that are there already of the same agent, mode, seed and number of
  environments included."""
  mode: Literal["sample", "greedy"] = "sample"
  """Sample the policy, or take the most likely action: where the environment is deterministic, a greedy
  agent plays the same episode again and again."""
  search: bool = True
  """Whether an agent that searches does; --no-search plays by its network alone."""
  environments: int = 0
  """Environments, each of which plays its share of the episodes; 0 takes those of the run."""
  seed: int = 0
  """Of environments and actions; another seed makes other episodes."""
  seed_index: int = 0
  """Which of the run's policies, where it was trained with several seeds."""
  writer: int = 0
  """Number of this process, where several record into one directory at once; each with its own seed."""
  score_episodes: int = 128
  """Episodes by which the scores of a random policy and of this agent are measured; 0 measures none."""

  def __post_init__(self) -> None:
    config.check_positive(episodes=self.episodes)
    config.check_at_least(
      0,
      environments=self.environments,
      seed=self.seed,
      seed_index=self.seed_index,
      writer=self.writer,
      score_episodes=self.score_episodes,
    )

  def directory(self) -> str:
    """Returns where the collection is."""
    return self.out or str(pathlib.Path("data") / pathlib.Path(self.workdir).resolve().name)


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  wanted: RecordConfig = command_line.parse(RecordConfig, "podracer record", args)
  saved = experiment.to_play(experiment.read(wanted.workdir))
  saved.check()
  saved.check_can_record()
  config.check(
    wanted.seed_index < saved.num_seeds,
    f"seed_index must be 0 .. {saved.num_seeds - 1}, got {wanted.seed_index}",
  )
  command_line.check_writable("out", wanted.directory())
  with interrupts.Interrupts() as signals, command_line.disk_errors(wanted.directory()):
    from . import host

    devices = host.start_jax(saved.num_devices, saved.machine.preferred_devices)
    with _Recording(wanted, devices) as recording:
      finished = recording.run(signals)
  if not finished:
    raise SystemExit(signals.exit_code)


class _Recording:
  """One recording: what was there, what is still to be played."""

  def __init__(self, wanted: RecordConfig, devices: Sequence[Any]):
    from podracer import agent as agent_lib
    from podracer import data, types
    from podracer.data import schema

    from . import expert_data, policy

    self.wanted, self.devices = wanted, devices
    self.out = wanted.directory()
    self.loaded = policy.LoadedRun(wanted.workdir, wanted.search)
    self.params = self.loaded.params(wanted.seed_index)
    spec: types.EnvironmentSpec = self.loaded.environment.spec
    output, _ = agent_lib.output_shapes(self.loaded.recording_agent, spec, 1)
    self.frame_stack = self.loaded.factory.frame_stack
    self.task = schema.task_id(spec.name)
    self.writer_id = f"w{wanted.writer:03d}"
    self.metadata = expert_data.make_metadata(
      self.loaded.experiment,
      self.loaded.factory,
      task=self.task,
      teacher_checkpoint=expert_data.digest(self.params),
      teacher_step=self.loaded.env_steps,
      phase="eval",
      policy_mode=self._policy_mode(),
      writer_id=self.writer_id,
      control="teacher" if output.teacher_action is None else "student",
    )
    self.metadata["teacher_id"] = (
      f"{self.loaded.experiment.agent}-{self.metadata['teacher_checkpoint'][:12]}"
    )
    self.writer = data.Writer(
      self.out,
      self.task,
      schema.make_schema(spec, output, self.frame_stack),
      writer_id=self.writer_id,
      shard_seconds=SHARD_SECONDS,
      background=True,
    )
    self.lock = contextlib.ExitStack()

  def __enter__(self) -> "_Recording":
    from podracer import files
    from podracer.data import layout

    # Two processes that play the same episodes would both write them.
    name = hashlib.sha256(self._prefix().encode()).hexdigest()[:16]
    folder = layout.task_dir(self.out, self.task) / layout.SHARDS
    try:
      self.lock.enter_context(files.lock(folder / f"recording-{name}.lock"))
    except BlockingIOError as error:
      self.writer.close()
      raise config.InputError(
        f"seed {self.wanted.seed} of this agent is being recorded into {self.out} by another process; "
        "take another --seed"
      ) from error
    return self

  def __exit__(self, *error: object) -> None:
    with self.lock:
      self.writer.close()

  def run(self, signals: interrupts.Interrupts) -> bool:
    """Records; returns False where a signal ended it before."""
    from podracer.data import card, layout

    wanted, saved = self.wanted, self.loaded.experiment
    num_slots = self._num_slots()
    there = self._committed()
    num_there = sum(there)
    print(
      f"recording {saved.agent} in {saved.env} ({self.metadata['policy_mode']}) into {self.out}"
      + (f"; {num_there:,} of {wanted.episodes:,} episodes are there" if num_there else "")
    )
    if num_there >= wanted.episodes:
      print("nothing to do: more with --episodes, others with --seed")
    quotas = {
      i: wanted.episodes // num_slots + (i < wanted.episodes % num_slots) - there[i]
      for i in range(num_slots)
    }
    quotas = {i: quota for i, quota in quotas.items() if quota > 0}
    if quotas:
      try:
        is_done = self._play(quotas, there, signals)
      finally:
        self.writer.close()
      if not is_done:
        if sum(self._committed()):
          card.finalise(self.out)
        print("stopped: the same command goes on from here")
        return False
    is_scored = self._score(signals)
    card.finalise(self.out)
    if not is_scored:
      print("stopped: the same command measures the scores")
      return False
    scores = "scores.json  " * pathlib.Path(self.out, layout.SCORES).exists()
    print(f"results: {self.out}/  README.md  {scores}{self.task}/")
    print("next:")
    print(f"  podracer data info {self.out}")
    print(f"  podracer data verify {self.out}")
    return True

  def _play(
    self, quotas: dict[int, int], there: Sequence[int], signals: interrupts.Interrupts
  ) -> bool:
    """Plays as many episodes of each slot; returns False where a signal ended it before."""
    import jax

    from podracer import host_environment
    from podracer.data import recorder

    wanted, saved = self.wanted, self.loaded.experiment
    module = experiment.machine_module(saved.architecture, "recording")
    # What is over and above only fills the shares of threads or devices: nothing is wanted of it.
    size = module.num_slots(saved.machine, len(quotas), len(self.devices))
    idle = range(len(there), len(there) + size - len(quotas))
    numbers = {**{i: there[i] for i in quotas}, **dict.fromkeys(idle, 0)}
    slots = [
      recorder.Slot(i, host_environment.make_seeds(wanted.seed, 1, i, number)[0], number)
      for i, number in numbers.items()
    ]
    writing = recorder.Recorder(
      self.writer,
      self.metadata,
      slots,
      name=self._name,
      quotas=[quotas.get(slot.slot, 0) for slot in slots],
      frame_stack=self.frame_stack,
    )
    unrolls = module.unrolls(
      self.loaded.recording_agent,
      self.loaded.environment,
      self.params,
      dataclasses.replace(
        saved.machine, unroll_length=max(MIN_UNROLL_LENGTH, saved.machine.unroll_length)
      ),
      seeds=[slot.seed for slot in slots],
      key=jax.random.fold_in(jax.random.key(wanted.seed), sum(there)),
      explore=wanted.mode == "sample",
      devices=self.devices,
    )
    with contextlib.closing(unrolls):
      self._take(unrolls, writing, sum(there), signals)
    return writing.is_done

  def _take(
    self, unrolls: Iterator[Any], writing: Any, there: int, signals: interrupts.Interrupts
  ) -> None:
    """Takes unrolls until all episodes are there, and says how far it is."""
    begin = last = time.perf_counter()
    num_played = 0
    for first_slot, trajectory in unrolls:
      writing.add(trajectory, first_slot)
      num_played += trajectory.actor_outputs.action.shape[0] * len(trajectory.timesteps.reward[0])
      now = time.perf_counter()
      if now - last >= LINE_PERIOD_SECONDS or writing.is_done:
        last = now
        text = f"{there + writing.num_episodes:,} of {self.wanted.episodes:,} episodes"
        if writing.num_episodes:
          text += (
            f"  {writing.num_steps:,} steps  return {writing.return_sum / writing.num_episodes:.2f}"
          )
        print(f"{text}  playing {num_played / (now - begin):,.0f} steps/s", flush=True)
      if writing.is_done or signals.requested:
        return

  def _num_slots(self) -> int:
    return self.wanted.environments or self.loaded.experiment.machine.num_environments

  def _policy_mode(self) -> str:
    search = getattr(self.loaded.experiment.config, "search", None)
    if not self.wanted.search or search is None:
      return self.wanted.mode
    return f"{self.wanted.mode},search:{search.num_simulations}"

  def _prefix(self) -> str:
    mode = self.metadata["policy_mode"].replace(",", "-").replace(":", "")
    # The shares of the episodes are those of as many environments.
    who = f"{self.task}-{self.metadata['teacher_id']}-{mode}"
    return f"{who}-{self.wanted.seed}-{self._num_slots()}"

  def _name(self, slot: Any, found: Any) -> str:
    return f"{self._prefix()}-{slot.slot:05d}-{slot.number + found.number:06d}"

  def _committed(self) -> list[int]:
    """Returns how many episodes of this recording each slot has."""
    from podracer.data import layout

    counts = [0] * self._num_slots()
    for manifest in layout.read_manifests(layout.task_dir(self.out, self.task)):
      for row in manifest.episodes:
        if row["episode_id"].startswith(f"{self._prefix()}-"):
          counts[row["slot"]] += 1
    return counts

  def _score(self, signals: interrupts.Interrupts) -> bool:
    """Measures the scores that aren't there yet; returns False where a signal ended it."""
    import jax

    from podracer import evaluation, random_agent
    from podracer.data import scores

    wanted = self.wanted
    if not wanted.score_episodes:
      return True
    players = {
      scores.RANDOM: (random_agent.make_agent(self.loaded.environment.spec), {}, "random"),
      scores.EXPERT: (self.loaded.agent, self.params, self.metadata["teacher_id"]),
    }
    there = scores.read(self.out).get(self.task, {})
    for who, (agent, params, name) in players.items():
      if there.get(who, {}).get("player") == name:
        continue
      evaluate = evaluation.make_evaluator(
        agent,
        self.loaded.environment,
        num_episodes=wanted.score_episodes,
        greedy=wanted.mode == "greedy",
      )
      result = evaluate(params, jax.random.key(wanted.seed), lambda: signals.requested)
      if result is None:
        return False
      score = scores.make_score(result, wanted.seed, player=name)
      # The best of several teachers is the expert.
      if who not in there or score["mean"] > there[who]["mean"]:
        scores.write(self.out, self.task, {who: score})
      print(f"score of {who}: {score['mean']:.2f} ± {score['std']:.2f} (n = {score['n']})")
    return True
