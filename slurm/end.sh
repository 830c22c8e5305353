# shellcheck shell=bash
# Sourced first by every job: sees to its end, also where the environment file fails. Expects
# TIGAN_ROOT, TIGAN_PYTHON, and TIGAN_BATCH (the driver's jobs) or TIGAN_STAGE_DIR (stage.sbatch).

# Arrays: SLURM_JOB_ID of the last element is that of the whole array.
TIGAN_JOB="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
export TIGAN_JOB="${TIGAN_JOB:-$SLURM_JOB_ID}"

# A trap that does nothing: the shell must outlive a signal, to act when srun has ended.
trap : TERM INT USR1 USR2

tigan_end() {
    local code=$?
    trap - EXIT
    if [ -z "${TIGAN_READY:-}" ]; then
        echo "error: the environment file (slurm/env_*.sh) ended with exit code $code; correct it" >&2
    fi
    PYTHONPATH="$TIGAN_ROOT${PYTHONPATH:+:$PYTHONPATH}" \
        "$TIGAN_PYTHON" -m pipeline.epilogue "$code"
    exit $?
}
if [ -n "${TIGAN_BATCH:-}${TIGAN_STAGE_DIR:-}" ]; then
    trap tigan_end EXIT
fi
