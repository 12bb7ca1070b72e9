#!/usr/bin/env bash
# Runs every configuration of the paper, each as a job of its own, from inside this one small batch job:
#
#   sbatch sbatch/sweep.sh [override of every run ...]
#   sbatch --export=ALL,EXPERIMENTS="llama3_8b_tp1 baseline_llama3_8b_tp8" sbatch/sweep.sh cluster=site_mysite
#
# All runs are queued at once under runs/sweep-<job id>/; when the last has ended, one report compares them.
# Cancelling this job cancels its runs. Without Slurm, `bash sbatch/sweep.sh` runs them one after the other.
#SBATCH --job-name=erhpc-sweep
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --output=erhpc-sweep-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
python="${PYTHON:-$PWD/.venv/bin/python}"
root="${OUTPUT_ROOT:-runs}/sweep-${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}"
experiments="${EXPERIMENTS:-llama3_8b_tp1 llama3_70b_tp4 llama3_70b_tp2 llama3_70b_awq_tp1 llama3_70b_awq_tp2
  mixed_8b_70b baseline_llama3_8b_tp8 baseline_llama3_70b_tp4 baseline_llama3_70b_tp8 llama3_70b_tp4_2nodes}"

# shellcheck disable=SC2317,SC2329  # the trap below calls it
cancel_runs() {
  trap - TERM INT
  "$python" -m erhpc.status --cancel --once "$root"/*/*/ || true
  exit 143
}
trap cancel_runs TERM INT

failed=0
for experiment in $experiments; do
  # One configuration that does not fit must not keep the others from running.
  "$python" -m erhpc.launch "+experiment=$experiment" detach=true "output_root=$root" "$@" || failed=$?
done

# In the background, because bash runs a trap only once the command in the foreground has ended.
"$python" -m erhpc.status "$root"/*/*/ &
wait $! || failed=$?
"$python" -m erhpc.report "$root" --output "$root/report"
exit "$failed"
