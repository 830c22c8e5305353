# shellcheck shell=bash
# Sourced by every job, after slurm/env_*.sh: by the batch scripts that the driver submits and by
# the templates beside this file. Expects TIGAN_ROOT; with TIGAN_BATCH (the driver's jobs) or
# TIGAN_STAGE_DIR (stage.sbatch) set, it also sees to the end of the job.

export PYTHONPATH="$TIGAN_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export HDF5_USE_FILE_LOCKING=FALSE # GPFS: locks are off, or slow
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" MKL_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit sbatch's

# Rendezvous of the ranks. Jobs may share a host, so the port follows from the job's id; a job that
# was requeued takes the next one.
TIGAN_NODES="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')"
TIGAN_JOB="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
export TIGAN_NODES TIGAN_JOB="${TIGAN_JOB:-$SLURM_JOB_ID}"
export MASTER_ADDR="${TIGAN_NODES%% *}${TIGAN_HOST_SUFFIX:-}"
export MASTER_PORT="$((12000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))"

# A trap that does nothing: the shell must outlive a signal, to act when srun has ended.
trap : TERM INT USR1 USR2

tigan_end() {
    local code=$?
    trap - EXIT
    "$TIGAN_PYTHON" -m pipeline.epilogue "$code"
    exit $?
}
if [ -n "${TIGAN_BATCH:-}${TIGAN_STAGE_DIR:-}" ]; then
    trap tigan_end EXIT
fi

echo "$(date +%FT%T) job $TIGAN_JOB, start ${SLURM_RESTART_COUNT:-0}, on $TIGAN_NODES"
