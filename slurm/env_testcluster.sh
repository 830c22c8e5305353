# shellcheck shell=bash
# The environment of jobs on the test cluster of `make cluster`: nothing to load, the driver's own
# Python does. All 'nodes' are one machine in disguise, so the ranks talk over the loopback device:
# gloo, and MPI (whose UCX would take nodes with one kernel for one node with shared memory).
export GLOO_SOCKET_IFNAME=lo
export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp FI_TCP_IFACE=lo
