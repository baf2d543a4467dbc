# shellcheck shell=bash
# Sourced by the jobs: the site's settings, and how a job stops and comes back.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 1
}

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
site=${MVL_SITE:-jobs/site.env}
[[ -f $site ]] || die "no $site in $PWD: submit from the project's folder, or set MVL_SITE"
# shellcheck source=jobs/site.env
. "$site"
[[ -x $MVL_VENV/bin/mvl ]] || die "no $MVL_VENV/bin/mvl: run 'make env', or set MVL_VENV in $site"
export PATH="$MVL_VENV/bin:$PATH" PYTHONUNBUFFERED=1
mkdir -p "$MVL_OUTPUT"

server_file=$MVL_OUTPUT/mlflow-server.uri
take_server() {
  if [[ -z ${MLFLOW_TRACKING_URI:-} && -s $server_file ]]; then
    MLFLOW_TRACKING_URI=$(<"$server_file")
    export MLFLOW_TRACKING_URI
  fi
  [[ -n ${MLFLOW_TRACKING_URI:-} ]]
}
take_server || true

# Several jobs that write into one SQLite file lock each other, on a network file system for good.
need_server() {
  local waited=0
  until take_server; do
    ((waited < 120)) || die "several jobs need an MLflow server: 'sbatch jobs/mlflow-server.sbatch', or set MLFLOW_TRACKING_URI in $site"
    sleep 5
    waited=$((waited + 5))
  done
}

# Run a command that saves and leaves at a signal, with status 0 or 128. After Slurm's warning
# (SIGUSR1: the time limit is near) the job is put back into the queue, where it goes on; a SIGTERM is
# scancel's, or a preemption's after which Slurm itself queues the job again.
run_or_requeue() {
  local child status=0 warned=""
  "$@" &
  child=$!
  trap 'warned=1; kill -USR1 $child 2>/dev/null || true' USR1
  trap 'kill -TERM $child 2>/dev/null || true' TERM
  # A trap interrupts wait; the child's own status is known when it is gone.
  while kill -0 $child 2>/dev/null; do wait $child || true; done
  wait $child || status=$?
  if [[ -n $warned ]] && ((status == 0 || status == 128)); then
    # The number of an array's last task is the whole array's too: by that, all would be stopped.
    local job=$SLURM_JOB_ID
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "saved; job $job goes back into the queue"
    scontrol requeue "$job" || die "cannot be requeued here: submit the job again, it goes on"
    sleep 60 # until Slurm ends this script; ending by itself would be the job's end
  fi
  return $status
}
