# shellcheck shell=bash
# What the templates *.sbatch have in common: the environment file and the Python. Expects
# TIGAN_ROOT; TIGAN_ENV and TIGAN_PYTHON are the user's (see README.md).

TIGAN_ENV="${TIGAN_ENV:-env_booster.sh}"
[[ $TIGAN_ENV == */* ]] || TIGAN_ENV="$TIGAN_ROOT/slurm/$TIGAN_ENV"
# shellcheck source=slurm/env_booster.sh
source "$TIGAN_ENV"

# Not the python of PATH: the modules have just put theirs before that of a virtual environment.
export TIGAN_PYTHON="${TIGAN_PYTHON:-${VIRTUAL_ENV:-${CONDA_PREFIX:-$TIGAN_ROOT/.venv}}/bin/python}"
if ! command -v "$TIGAN_PYTHON" >/dev/null; then
    echo "error: no Python at $TIGAN_PYTHON: make .venv (slurm/README.md), or activate an" \
        "environment, or set TIGAN_PYTHON, before sbatch" >&2
    exit 2
fi
