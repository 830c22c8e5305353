# shellcheck shell=bash
# Sourced by every job after end.sh and the environment file: threads, and how the ranks meet.
# Expects TIGAN_ROOT; TIGAN_HOST_SUFFIX is of the partition profile or the environment file.

export PYTHONPATH="$TIGAN_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export HDF5_USE_FILE_LOCKING=FALSE # GPFS: locks are off, or slow
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" MKL_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit sbatch's

# Rendezvous of the ranks. Jobs may share a host, so the port follows from the job's id; a job that
# was requeued takes the next one.
TIGAN_NODES="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')"
export TIGAN_NODES
export MASTER_ADDR="${TIGAN_NODES%% *}${TIGAN_HOST_SUFFIX:-}"
export MASTER_PORT="$((12000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))"

TIGAN_READY=1 # tells end.sh that the environment was no trouble
echo "$(date +%FT%T) job $TIGAN_JOB, start ${SLURM_RESTART_COUNT:-0}, on $TIGAN_NODES"
