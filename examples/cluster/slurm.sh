#!/usr/bin/env bash
# Starts Ray on every node of the job and runs the given command on the first one as the driver.
#   sbatch --nodes 8 examples/cluster/slurm.sh python -m search --config my-search.yaml
# A job that is killed at its time limit loses nothing that is written; submit it again and it goes on.
#SBATCH --job-name=cola-search
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
[ $# -gt 0 ] || { echo "slurm.sh: expected the command to run, got none" >&2; exit 2; }

address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):6379"
export RAY_USAGE_STATS_ENABLED=0
# Who can reach a Ray cluster can run code on it: this job's wants a token, which srun hands to its nodes.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
export RAY_AUTH_TOKEN
# A node that is lost costs its batches, not the job.
exec srun --no-kill --kill-on-bad-exit=0 --nodes "$SLURM_JOB_NUM_NODES" --ntasks-per-node 1 \
  ray symmetric-run --address "$address" -- "$@" --cluster "$address"
