# shellcheck shell=bash
# The environment of jobs on JUWELS Booster and develbooster. Sourced by the batch scripts that the
# driver submits and by the templates beside this file; source it on the login node too, before
# the driver, so that both use the same modules.

module purge
module load Stages/2025 GCC ParaStationMPI Python # your virtual environment must be made with it

# The ranks meet at the first node's InfiniBand address and talk over InfiniBand. The driver's jobs
# have the suffix from the partition profile.
export TIGAN_HOST_SUFFIX="${TIGAN_HOST_SUFFIX-i}"
export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
export CUDA_VISIBLE_DEVICES=0,1,2,3 # every rank takes the one of its number

# Compute nodes have no way to the internet: nothing may wait for it.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
