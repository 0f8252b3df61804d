#!/bin/bash
# One run on several machines under Slurm, one process for each GPU; stopped by the queue, it saves, is queued again and goes on:
#   sbatch --array=1-3 launch/slurm.sh recipes/cifar10.py --depth 20     # three seeds, a run each, from --array
#   sbatch launch/slurm.sh recipes/cifar10.py --depth 20                 # one run
#   RUN=runs/slurm-123-1 sbatch launch/slurm.sh recipes/cifar10.py --depth 20     # resumes an earlier job's run
#   VENV=.venv sbatch launch/slurm.sh recipes/cifar10.py --depth 20      # in this virtual environment
# Precision is bf16; ACCELERATE_MIXED_PRECISION=no in the environment is another. The run folder is RUN, not --out.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@90  # to this script, 90 seconds before the end: time for the last step and a checkpoint
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
    echo "the run folder is named by RUN=FOLDER in the environment, not by --out" >&2
    exit 2
fi
if [[ " $* " == *" --fresh "* ]]; then
    echo "--fresh would start anew at each turn; another RUN=FOLDER in the environment is a new run" >&2
    exit 2
fi
recipe=$1
shift
seed=${SLURM_ARRAY_TASK_ID:+--seed $SLURM_ARRAY_TASK_ID}
export ACCELERATE_MIXED_PRECISION=${ACCELERATE_MIXED_PRECISION:-bf16}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=80  # seconds that the launcher gives its processes, to which it hands the signal on

rm -f "$run/stopped.json"  # an earlier turn's; this one may end before it gets as far as the run folder
asked='' job=''
trap 'asked=1; [[ -z $job ]] || kill -USR1 "$job" || true' USR1  # srun hands it on to the tasks
# srun does not take --cpus-per-task from the job by itself since Slurm 22.05.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" "$@"' launch \
    --nproc-per-node "$processes" --rdzv-backend static --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 12000))" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    "$recipe" --out "$run" $seed "$@" &
job=$!
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do  # a signal ends the waiting, not the job
    code=0
    wait "$job" || code=$?
done

# Asked to stop: by the queue through this script, before the first step, too; or the tasks themselves, as stopped.json says.
if [[ $code -ne 0 ]] && { [[ -n $asked ]] || grep -qs '"code": 1[34]' "$run/stopped.json"; }; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    exit 0
fi
exit "$code"
