# The environment of jobs on the test cluster of `make cluster`: nothing to load, the driver's own
# Python does. All 'nodes' are one machine in disguise: gloo talks over the loopback device, and MPI
# must not take ranks with one kernel for ranks that share memory.
export GLOO_SOCKET_IFNAME=lo
export UCX_TLS=tcp,self
