#!/bin/bash
# One run on several machines under Slurm, one process per GPU. Before its time limit the job saves, requeues itself and resumes:
#   sbatch --array=1-3 launch/slurm.sh recipes/cifar10.py --depth 20     # three runs, with seeds 1, 2 and 3
#   sbatch launch/slurm.sh recipes/cifar10.py --depth 20                 # one run
#   RUN=runs/slurm-123-1 sbatch launch/slurm.sh recipes/cifar10.py --depth 20     # resume the run of an earlier job
#   VENV=.venv sbatch launch/slurm.sh recipes/cifar10.py --depth 20      # use this virtual environment
# Trains in bf16 unless ACCELERATE_MIXED_PRECISION is set, for instance to no. Set the run folder with RUN, not with --out.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@90  # signal this script 90 seconds before the limit: time for the current step and a checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ -n ${VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
run=${RUN:-runs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}-${SLURM_ARRAY_TASK_ID:-1}}
if [[ " $* " == *" --out"* ]]; then
    echo "set the run folder with RUN=FOLDER in the environment, not with --out" >&2
    exit 2
fi
if [[ " $* " == *" --fresh "* ]]; then
    echo "--fresh would start over each time the job is requeued; for a new run set another RUN=FOLDER in the environment" >&2
    exit 2
fi
recipe=$1
shift
seed=${SLURM_ARRAY_TASK_ID:+--seed $SLURM_ARRAY_TASK_ID}
export ACCELERATE_MIXED_PRECISION=${ACCELERATE_MIXED_PRECISION:-bf16}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=80  # seconds the launcher waits for its processes after passing on the signal

rm -f "$run/stopped.json"  # from before a requeue; this job may end before it reaches the run folder
asked='' job=''
trap 'asked=1; [[ -z $job ]] || kill -USR1 "$job" || true' USR1  # srun passes it on to the tasks
# Since Slurm 22.05 srun no longer inherits --cpus-per-task from the job.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" "$@"' launch \
    --nproc-per-node "$processes" --rdzv-backend static --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 12000))" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    "$recipe" --out "$run" $seed "$@" &
job=$!
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do  # a signal ends wait, not the job
    code=0
    wait "$job" || code=$?
done

# Requeue if the job was asked to stop: either Slurm signalled this script, or the tasks, which record it in stopped.json.
if [[ $code -ne 0 ]] && { [[ -n $asked ]] || grep -qsE '"code": (1[34]|75)' "$run/stopped.json"; }; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    exit 0
fi
exit "$code"
