#!/bin/bash
# Runs what `podracer launch slurm` prints under real SLURM: two nodes of this machine, in a scratch directory.
#
#   sudo tests/launch/slurm_check.sh SCRATCH    (Debian or Ubuntu, podracer on PATH; some minutes)
#
# A first run is not disturbed. A second is put into the queue again in the middle, loses a process to SIGKILL,
# and comes to its time limit: it must end with the first one's parameters. A third is cancelled and must stay so.
# Nothing is installed: packages are unpacked in SCRATCH. The second node is a slurmd with a host name of its own.
set -eu
scratch=$(realpath -m "${1:?usage: slurm_check.sh SCRATCH}")
root=$scratch/root
mkdir -p "$root" "$scratch"/{debs,state,jobs}
if [[ ! -e $root/usr/bin/srun ]]; then
  (cd "$scratch/debs" && apt-get -qq download slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge \
    libmunge2 libjson-c5 liblua5.1-0 libhwloc15 libnuma1 libdbus-1-3)
  for package in "$scratch"/debs/*.deb; do dpkg -x "$package" "$root"; done
fi
libraries=$root/usr/lib/$(uname -m)-linux-gnu
export PATH=$root/usr/bin:$root/usr/sbin:$PATH
export LD_LIBRARY_PATH=$libraries:$libraries/slurm-wlm
export SLURM_CONF=$scratch/slurm.conf
first=$(hostname)
second=zz-$first  # After the first: process 0 is on the node whose name resolves.

cat >"$SLURM_CONF" <<CONF
ClusterName=check
SlurmctldHost=$first(127.0.0.1)
AuthType=auth/none
CredType=cred/none
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoInAddrAny
PluginDir=$libraries/slurm-wlm
StateSaveLocation=$scratch/state/controller
SlurmdSpoolDir=$scratch/state/%n
SlurmctldPidFile=$scratch/state/controller.pid
SlurmdPidFile=$scratch/state/%n.pid
SlurmctldLogFile=$scratch/state/controller.log
SlurmdLogFile=$scratch/state/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
NodeName=$first NodeAddr=127.0.0.1 CPUs=$(nproc)
NodeName=$second NodeAddr=127.0.0.2 CPUs=$(nproc)
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
CONF
mkdir -p "$scratch/state/controller"
printf '127.0.0.1 localhost %s\n127.0.0.2 %s\n' "$first" "$second" >"$scratch/hosts"

finish() {
  for file in "$scratch"/state/*.pid; do kill "$(cat "$file")" 2>/dev/null || true; done
}
trap finish EXIT
slurmctld-wlm -c
slurmd-wlm -d "$root/usr/sbin/slurmstepd-wlm"
unshare --uts --mount bash -c "mount --bind $scratch/hosts /etc/hosts && hostname $second &&
  slurmd-wlm -d $root/usr/sbin/slurmstepd-wlm"

cd "$scratch/jobs"
export JAX_PLATFORMS=cpu
flags=(--env=gymnax:Catch-bsuite --num_devices=2 --evaluate_episodes=16 --checkpoint_every_seconds=1
  --num_env_steps="${STEPS:-5_000_000}")

submit() { # NAME: prints the number of the job.
  rm -rf "$1" "$1"-*.out
  podracer launch slurm --print --num_hosts=2 --job_name="$1" --time=60 --lead_seconds=20 \
    "${flags[@]}" --workdir="$1" >"$1.sbatch"
  sbatch --parsable "$1.sbatch"
}
state() { scontrol -o show job "$1" | sed 's/.*JobState=\([A-Z]*\).*/\1/'; }
restarts() { scontrol -o show job "$1" | sed 's/.*Restarts=\([0-9]*\).*/\1/'; }
pause() { # SECONDS
  ((SECONDS < 1800)) || { echo "this takes too long"; exit 1; }
  sleep "$1"
}
wait_for_text() { # FILE TEXT COUNT
  until [[ $(grep -c -- "$2" "$1" 2>/dev/null) -ge $3 ]]; do pause 0.2; done
}
wait_for_end() {
  until [[ $(state "$1") =~ COMPLETED|FAILED|CANCELLED|TIMEOUT ]]; do pause 1; done
  echo "job $1: $(state "$1"), $(restarts "$1") restarts"
}
released() { # SLURM holds a job back for two minutes that was put into the queue again.
  until [[ $(state "$1") == PENDING ]]; do pause 0.5; done
  pause 5  # Started at once, it would be killed: its old credential is still being revoked.
  scontrol update JobId="$1" StartTime=now TimeLimit=60
}

until [[ $(sinfo -h -o %D -t idle) == 2 ]]; do pause 0.5; done
sinfo
quiet=$(submit quiet)
wait_for_end "$quiet"

disturbed=$(submit disturbed)
wait_for_text "disturbed-$disturbed.out" " steps  " 2
echo "requeue"
scontrol requeue "$disturbed"
released "$disturbed"
wait_for_text "disturbed-$disturbed.out" "resumed at" 1
sleep 3
echo "SIGKILL of a process"
kill -9 "$(pgrep -f "podracer train.*workdir=disturbed" | tail -n 1)"
wait_for_text "disturbed-$disturbed.out" "into the queue again" 1
released "$disturbed"
wait_for_text "disturbed-$disturbed.out" "resumed at" 2
echo "time limit"
scontrol update JobId="$disturbed" TimeLimit=1
wait_for_text "disturbed-$disturbed.out" "into the queue again" 2
released "$disturbed"
wait_for_end "$disturbed"

cancelled=$(submit cancelled)
wait_for_text "cancelled-$cancelled.out" " steps  " 2
scancel "$cancelled"
wait_for_end "$cancelled"
[[ $(state "$cancelled"):$(restarts "$cancelled") == CANCELLED:0 ]]
wait_for_text "cancelled-$cancelled.out" "saved at" 1

grep -h "^done:\|resumed at\|into the queue\|saved at\|^process . of" quiet-*.out disturbed-*.out cancelled-*.out
# With the number of steps and a digest of the parameters.
last() { grep -h "^process 0 of" "$1"-*.out | tail -n 1; }
[[ $(last quiet) == "$(last disturbed)" ]]
echo "the same result"
