"""What starts several hosts: the scripts that are printed, and real Ray clusters whose parts are killed."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml

from podracer import config
from podracer.anakin import config as anakin_config
from podracer.launch import command_line, experiment, gke, host, launch, ray_engine, slurm
from podracer.launch import main as main_lib
from podracer.sebulba import config as sebulba_config

CATCH = "--env=gymnax:Catch-bsuite"
SLURM = ("launch", "slurm", "--print", "--num_hosts=2", CATCH)
CLAIM = ("--image=registry/podracer:1", "--volume_claim=runs")
GKE = ("launch", "gke", "--print", "--num_hosts=2", *CLAIM, CATCH)
RAY = ("launch", "ray", "--num_hosts=2", CATCH)
# What shells, YAML and Kubernetes each take for something else.
ODD = [
  "a b",
  "it's",
  '"',
  "$HOME",
  "$(POD_IP)",
  "$$",
  "{x}",
  "#",
  "*",
  "back\\slash",
  "ä",
  "yes",
  "1",
]

# arguments, what the line must contain
BAD_INPUT = [
  (("launch", "slrum"), "unknown engine slrum; nearest: slurm (there is: ray, slurm, gke)"),
  (SLURM[:2], "num_hosts must be above 0, got 0"),
  ((*SLURM, "--num_hosts=two"), "--num_hosts"),
  ((*SLURM[:2], *SLURM[3:]), "add --print: the script is only printed"),
  ((*SLURM, "--time=1 hour"), "time has a blank in it: '1 hour'"),
  ((*SLURM, "--partition=a\nb"), "partition has a blank in it"),
  ((*GKE[:2], *GKE[3:]), "add --print: the manifest is only printed"),
  ((*GKE[:4], CLAIM[1], CATCH), "no image given: --image=IMAGE"),
  ((*GKE[:4], CLAIM[0], CATCH), "no volume given: --volume_claim=NAME"),
  ((*GKE, "--name=My_Run"), "name must be up to 40 of a-z, 0-9 and -"),
  ((*GKE, "--tpu_topology=4x4"), "tpu_accelerator and tpu_topology go together"),
  (
    (*GKE, "--tpu_topology=4x4", "--tpu_accelerator=tpu-v6e-slice"),
    "tpu_topology 4x4 has 16 chips, but 2 hosts of 4 (--chips_per_host) have 8",
  ),
  ((*GKE, "--tpu_topology=4by4", "--tpu_accelerator=x"), "tpu_topology must be like 4x4 or 2x2x4"),
  (
    (*GKE, "--workdir=/runs/a"),
    "workdir /runs/a is not on the volume, which is mounted at /podracer",
  ),
  (GKE[:-1], "no environment given"),
  ((*RAY, "--max_failures=-2"), "max_failures must be at least -1, got -2"),
  ((*RAY, "--resources_per_host={'CPU': 1}"), 'resources_per_host must be JSON like {"CPU": 8}'),
  ((*RAY, "--resources_per_host=[1]"), 'resources_per_host must be JSON like {"CPU": 8}'),
  *(
    case
    for line in (SLURM, GKE, RAY)
    for case in (
      ((*line, "--config.learning_rat=1"), "nearest: --config.learning_rate"),
      ((*line, "--env=Breakout"), "gymnax:Breakout-MinAtar"),
      ((*line, "--num_devices=3"), "num_devices=3 is not divisible by the 2 processes"),
      ((*line, "--process_id=0"), "--process_id is set by the launch: leave it out"),
      ((*line, "--restart"), "--restart can't be launched: take another --workdir"),
    )
  ),
]


@pytest.mark.parametrize(("args", "expected"), BAD_INPUT)
def test_bad_input_is_one_line(args, expected, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    main_lib.main(args)
  captured = capsys.readouterr()
  assert stop.value.code == 2
  assert captured.out == ""
  assert captured.err.count("\n") == 1, captured.err
  assert expected in captured.err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_help_names_the_engines(args, capsys):
  with pytest.raises(SystemExit) as stop:
    main_lib.main(("launch", *args))
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert all(f"  {name} " in out for name in launch.ENGINES)
  with pytest.raises(SystemExit) as stop:
    main_lib.main(("launch", "slurm", "--help"))
  assert stop.value.code == 0
  assert "--lead_seconds" in capsys.readouterr().out


def test_no_option_of_an_engine_is_one_of_training():
  training = [experiment.ExperimentConfig, host.GroupConfig]
  training += [anakin_config.AnakinConfig, sebulba_config.SebulbaConfig]
  taken = {field.name for cls in training for field in dataclasses.fields(cls)}
  for engine in launch.ENGINES.values():
    assert not taken & {field.name for field in dataclasses.fields(engine.config)}


def test_split():
  args = ["--print", "--num_hosts", "2", "--seed", "1", "--time=3", "--env_options", "a=1", "b=2"]
  own, training = command_line.split(slurm.SlurmConfig, [*args, "--num-hosts=3"])
  assert own == ["--print", "--num_hosts", "2", "--time=3", "--num-hosts=3"]
  assert training == ["--seed", "1", "--env_options", "a=1", "b=2"]


def printed(capsys, *args):
  main_lib.main(args)
  return capsys.readouterr().out


# SLURM.


def run_script(script, directory, exit_code, work="", **variables):
  """Runs a batch script with an srun and an scontrol that note their arguments; returns the exit code."""
  programs = directory / "bin"
  programs.mkdir()
  for name, code, does in (("srun", exit_code, work), ("scontrol", 0, "")):
    path = programs / name
    path.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {directory}/{name}\n{does}\nexit {code}\n')
    path.chmod(0o755)
  environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
  done = subprocess.run(["bash", "-s"], input=script, text=True, env=environment, cwd=directory)
  return done.returncode


def noted(directory, name):
  path = directory / name
  return path.read_text().split("\0")[:-1] if path.exists() else None


def test_the_batch_script_is_bash_and_says_what_sbatch_needs(capsys):
  options = ("--time=1-00:00:00", "--partition=gpu", "--gpus_per_host=2", "--cpus_per_host=16")
  script = printed(capsys, *SLURM, *options)
  subprocess.run(["bash", "-n"], input=script, text=True, check=True)
  first, *lines = script.splitlines()
  assert first == "#!/bin/bash"
  directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
  assert directives == {
    "--job-name=podracer",
    "--output=podracer-%j.out",
    "--open-mode=append",
    "--nodes=2",
    "--ntasks-per-node=1",
    "--cpus-per-task=16",
    "--gpus-per-node=2",
    "--time=1-00:00:00",
    "--partition=gpu",
    "--signal=TERM@120",
    "--requeue",
  }
  assert "export JAX_LOCAL_DEVICE_IDS=0,1" in lines


def test_flags_reach_srun_as_they_are(tmp_path, capsys):
  script = slurm.script(slurm.SlurmConfig(num_hosts=2), ["--env_options", *ODD])
  assert run_script(script, tmp_path, 0) == 0
  expected = ["podracer", "train", "--env_options", *ODD, "--coordinator=auto"]
  assert noted(tmp_path, "srun") == ["--kill-on-bad-exit=0", *expected]


@pytest.mark.parametrize("final", [2, None])
def test_a_process_that_must_not_be_started_again_says_so(final, tmp_path, monkeypatch):
  """Beside others, which lose it, it has the lower exit code, and srun returns the highest."""
  monkeypatch.chdir(tmp_path)
  note = tmp_path / "podracer-7.final"
  monkeypatch.setenv(command_line.FINAL_VARIABLE, str(note))
  with pytest.raises(SystemExit):
    main_lib.main(("train", "--env=gymnax:Catch-bsuite", "--bad" if final else "--help"))
  assert note.exists() == bool(final)
  note.unlink(missing_ok=True)

  script = slurm.script(slurm.SlurmConfig(num_hosts=2), [CATCH])
  work = f"echo {final} > $PODRACER_FINAL" if final else ""
  assert run_script(script, tmp_path, 75, work) == (final or 75)
  assert (noted(tmp_path, "scontrol") is None) == bool(final)
  assert not note.exists()


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130, 137, 143])
def test_the_job_is_requeued_where_that_helps(tmp_path, code):
  script = slurm.script(slurm.SlurmConfig(num_hosts=2), [CATCH])
  assert run_script(script, tmp_path, code, SLURM_RESTART_COUNT="99") == code
  assert noted(tmp_path, "scontrol") == (["requeue", "7"] if code in (75, 137, 143) else None)


def test_the_job_is_not_requeued_for_ever(tmp_path):
  script = slurm.script(slurm.SlurmConfig(num_hosts=2, max_restarts=3), [CATCH])
  assert run_script(script, tmp_path, 75, SLURM_RESTART_COUNT="3") == 75
  assert noted(tmp_path, "scontrol") is None


# GKE.


def an_object(required, **properties):
  return {
    "type": "object",
    "properties": properties,
    "required": required,
    "additionalProperties": False,
  }


def array(items):
  return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
NAMES = {"type": "object", "additionalProperties": TEXT}
COUNTS = {"type": "object", "additionalProperties": COUNT}
FIELD = an_object(["fieldRef"], fieldRef=an_object(["fieldPath"], fieldPath=TEXT))
# The fields that are used here, with the types and the required ones of their definitions: JobSet's reference
# of jobset.x-k8s.io/v1alpha2, and the Kubernetes API of batch/v1 Job and core/v1 PodSpec.
CONTAINER = an_object(
  ["name"],
  name=TEXT,
  image=TEXT,
  workingDir=TEXT,
  command=array(TEXT),
  env=array(an_object(["name"], name=TEXT, value=TEXT, valueFrom=FIELD)),
  ports=array(an_object(["containerPort"], containerPort=COUNT)),
  resources=an_object([], limits=COUNTS, requests=COUNTS),
  volumeMounts=array(an_object(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
POD = an_object(
  ["containers"],
  restartPolicy={"enum": ["Never"]},  # The only one that a podFailurePolicy goes with.
  terminationGracePeriodSeconds=COUNT,
  containers=array(CONTAINER),
  volumes=array(
    an_object(
      ["name"],
      name=TEXT,
      persistentVolumeClaim=an_object(["claimName"], claimName=TEXT),
      emptyDir=an_object([], medium={"enum": ["", "Memory"]}),
    )
  ),
  nodeSelector=NAMES,
)
CODES = an_object(
  ["operator", "values"],
  containerName=TEXT,
  operator={"enum": ["In", "NotIn"]},
  values=array({"type": "integer"}),
)
POD_RULE = an_object(
  ["action"],
  action={"enum": ["Ignore", "FailIndex", "FailJob", "Count"]},
  onExitCodes=CODES,
)
JOB = an_object(
  ["template"],
  completionMode={"enum": ["NonIndexed", "Indexed"]},
  parallelism=COUNT,
  completions=COUNT,
  backoffLimit=COUNT,
  podFailurePolicy=an_object(["rules"], rules=array(POD_RULE)),
  template=an_object([], spec=POD),
)
JOB_SET_ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
JOB_FAILURES = [
  "BackoffLimitExceeded",
  "DeadlineExceeded",
  "FailedIndexes",
  "MaxFailedIndexesExceeded",
  "PodFailurePolicy",
]
JOB_SET = an_object(
  ["apiVersion", "kind", "metadata", "spec"],
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=an_object(["name"], name=TEXT, annotations=NAMES),
  spec=an_object(
    ["replicatedJobs"],
    network=an_object([], enableDNSHostnames={"type": "boolean"}, subdomain=TEXT),
    failurePolicy=an_object(
      [],
      maxRestarts=COUNT,
      rules=array(
        an_object(
          ["name", "action"],
          name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
          action={"enum": JOB_SET_ACTIONS},
          onJobFailureReasons=array({"enum": JOB_FAILURES}),
        )
      ),
    ),
    replicatedJobs=array(
      an_object(["name", "template"], name=TEXT, replicas=COUNT, template=an_object([], spec=JOB))
    ),
  ),
)
ENGINE_OPTIONS = (
  (),
  ("--gpus_per_host=8", "--cpus_per_host=64"),
  ("--tpu_topology=2x4", "--tpu_accelerator=tpu-v6e-slice"),
)


def read_manifest(text):
  manifest = yaml.safe_load(text)
  jsonschema.validate(manifest, JOB_SET)
  (job,) = manifest["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  return manifest, job["template"]["spec"], pod, pod["containers"][0]


@pytest.mark.parametrize("options", ENGINE_OPTIONS)
def test_the_manifest_follows_the_schema(options, capsys):
  _, job, pod, container = read_manifest(printed(capsys, *GKE, *options, "--lead_seconds=77"))
  assert job["completions"] == job["parallelism"] == 2
  assert job["completionMode"] == "Indexed"
  assert job["backoffLimit"] == 0
  assert pod["terminationGracePeriodSeconds"] == 77
  mounted = {volume["name"] for volume in pod["volumes"]}
  assert {mount["name"] for mount in container["volumeMounts"]} == mounted
  limits = container["resources"].get("limits", {})
  chips = limits.get("google.com/tpu", 0), limits.get("nvidia.com/gpu", 0)
  assert chips == {ENGINE_OPTIONS[1]: (0, 8), ENGINE_OPTIONS[2]: (4, 0)}.get(options, (0, 0))


def test_the_processes_of_a_job_set_find_each_other(capsys):
  manifest, job, _, container = read_manifest(printed(capsys, *GKE, "--name=catch"))
  (replicated,) = manifest["spec"]["replicatedJobs"]
  # As JobSet names pods: <set>-<job>-<replica>-<index>.<subdomain>.
  first = f"catch-{replicated['name']}-0-0.{manifest['spec']['network']['subdomain']}"
  variables = {variable["name"] for variable in container["env"]}
  flags = container["command"]
  assert f"--coordinator={first}:{gke.PORT}" in flags
  assert f"--num_processes={job['completions']}" in flags
  assert "--process_id=$(JOB_COMPLETION_INDEX)" in flags
  assert "JOB_COMPLETION_INDEX" in variables


def test_only_what_stays_wrong_ends_a_job_set(capsys):
  manifest, job, _, container = read_manifest(printed(capsys, *GKE))
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [1, 2]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  policy = manifest["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 100
  assert [rule["onJobFailureReasons"] for rule in policy["rules"]] == [["PodFailurePolicy"]]


def as_kubernetes_reads(text):
  """Returns a word of a command whose variables are all unknown: $$ is a $, $(NAME) stays."""
  return text.replace("$$", "$")


def test_flags_reach_the_container_as_they_are():
  wanted = gke.GkeConfig(num_hosts=2, image="x", volume_claim="y")
  command = gke.manifest(wanted, ["--env_options", *ODD])
  text = yaml.safe_dump(command)
  _, _, _, container = read_manifest(text)
  words = [as_kubernetes_reads(word) for word in container["command"]]
  assert words[:-3] == ["podracer", "train", "--env_options", *ODD]


# Ray.


def test_without_ray_the_extra_is_named(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(SystemExit) as stop:
    main_lib.main(RAY)
  assert stop.value.code == 2
  assert "pip install 'podracer-rl[ray]'" in capsys.readouterr().err


def test_what_a_host_takes_of_ray():
  pytest.importorskip("ray")
  plain = ray_engine.RayConfig(num_hosts=2, cpus_per_host=4, gpus_per_host=8)
  assert plain.resources() == {"CPU": 4, "GPU": 8}
  assert ray_engine._scaling(plain).use_gpu
  named = ray_engine.RayConfig(num_hosts=2, resources_per_host='{"CPU": 1, "special": 2}')
  assert ray_engine._scaling(named).resources_per_worker == {"CPU": 1, "special": 2}
  tpu = {"tpu_topology": "4x4", "tpu_accelerator": "TPU-V6E"}
  scaling = ray_engine._scaling(ray_engine.RayConfig(num_hosts=4, **tpu))
  assert scaling.resources_per_worker["TPU"] == 4
  with pytest.raises(config.InputError, match="multiple of 4"):
    ray_engine._scaling(ray_engine.RayConfig(num_hosts=3, **tpu))


class Child:
  """A process as `_watch` sees it, which ends some polls after it was told to."""

  def __init__(self, polls, code):
    self.polls, self.code = polls, code
    self.signals = []

  def wait(self, timeout):
    if self.polls == 0 or signal.SIGKILL in self.signals:
      return -signal.SIGKILL if signal.SIGKILL in self.signals else self.code
    self.polls -= 1
    raise subprocess.TimeoutExpired("child", timeout)

  def send_signal(self, number):
    self.signals.append(number)

  def kill(self):
    self.signals.append(signal.SIGKILL)


@pytest.mark.parametrize(
  ("polls", "stops", "lead_seconds", "signals", "code"),
  [
    (3, False, 100, [], 75),
    (3, True, 100, [signal.SIGTERM], 75),
    (10**6, True, 0, [signal.SIGTERM, signal.SIGKILL], 137),
  ],
)
def test_a_child_is_told_once_and_then_killed(polls, stops, lead_seconds, signals, code):
  child = Child(polls, 75)
  assert ray_engine._watch(child, lambda: stops, lead_seconds) == code
  assert child.signals == signals


TRAIN = (
  CATCH,
  "--num_devices=2",
  "--num_env_steps=500_000",
  "--checkpoint_every_seconds=1",
  "--evaluate_episodes=16",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  """A head without room for a process, and two hosts with room for one each."""
  pytest.importorskip("ray")
  patch = pytest.MonkeyPatch()
  patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("ray") / "token"))
  from ray import cluster_utils

  made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
  hosts = [made.add_node(num_cpus=1) for _ in range(2)]
  made.podracer_hosts = hosts
  yield made
  made.shutdown()
  patch.undo()


def start_on(cluster, run, *args):
  line = ("launch", "ray", "--num_hosts=2", f"--address={cluster.address}")
  return run.process(*line, *TRAIN, "--workdir=run", *args)


@pytest.fixture(scope="module")
def undisturbed(cluster, finished, tmp_path_factory):
  run = type(finished)(tmp_path_factory.mktemp("undisturbed"))
  code, out, err = start_on(cluster, run).wait()
  assert code == 0, out + err
  assert "in 2 processes" in out
  return run


def assert_ends_as(run, process, undisturbed, loss):
  process.wait_until(lambda: "resumed at" in process.out.read_text())
  loss.has("resumed")
  code, out, err = process.wait()
  assert code == 0, out + err
  loss.is_mended(out)
  assert run.rows()[-1]["env_steps"] == undisturbed.rows()[-1]["env_steps"]
  assert run.state() == undisturbed.state()
  return out, err


def trains(run, num_steps=1):
  return lambda: len(run.steps()) >= num_steps


def pids_of_host(run, number):
  """Returns the processes of one host's training, the one that was started first."""
  wanted = {f"--workdir={run.workdir}", f"--process_id={number}"}
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      words = path.read_text().split("\0")
    except OSError:
      continue
    if wanted <= set(words):
      found.append(int(path.parent.name))
  return sorted(found)


@pytest.mark.slow
def test_ray_trains_to_the_end(undisturbed):
  assert undisturbed.rows()[-1]["env_steps"] >= 500_000
  assert not [pid for number in (0, 1) for pid in pids_of_host(undisturbed, number)]


@pytest.mark.parametrize(
  "number",
  [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.exhaustive)],
)
def test_ray_starts_all_again_where_a_process_is_killed(
  cluster, undisturbed, make_run, number, loss
):
  run = make_run()
  process = start_on(cluster, run)
  process.wait_until(trains(run))
  os.kill(pids_of_host(run, number)[-1], signal.SIGKILL)
  loss.happens(run)
  _, err = assert_ends_as(run, process, undisturbed, loss)
  assert f"host {number}: podracer train ended with exit code 137" in err
  assert "restart 1 of all processes" in err


@pytest.mark.slow
def test_ray_goes_on_with_a_new_host(cluster, undisturbed, make_run, loss):
  run = make_run()
  process = start_on(cluster, run)
  process.wait_until(trains(run))
  loss.happens(run)
  cluster.remove_node(cluster.podracer_hosts.pop(), allow_graceful=False)
  cluster.podracer_hosts.append(cluster.add_node(num_cpus=1))
  assert_ends_as(run, process, undisturbed, loss)


@pytest.mark.slow
def test_sigterm_reaches_all_processes_which_save(cluster, undisturbed, make_run, loss):
  run = make_run()
  process = start_on(cluster, run, "--checkpoint_every_seconds=1000")
  process.wait_until(lambda: run.num_rows() >= 3)
  process.send(signal.SIGTERM)
  loss.happens(run)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGTERM, out + err
  assert "saved at" in out
  assert_ends_as(run, start_on(cluster, run), undisturbed, loss)


@pytest.mark.exhaustive
def test_ray_gives_up(cluster, make_run):
  run = make_run()
  process = start_on(cluster, run, "--max_failures=0", "--num_env_steps=100_000_000")
  process.wait_until(trains(run))
  os.kill(pids_of_host(run, 1)[-1], signal.SIGKILL)
  code, out, err = process.wait()
  assert code == 1, out + err
  last = err.strip().splitlines()[-1]
  assert last.startswith("podracer: given up after 0 restarts: host ")
  assert "podracer train ended with exit code" in last
