#!/usr/bin/env bash
# Stop the private Slurm that up.sh started in DIR, with its jobs, or let one node crash.
#
#   down.sh DIR                   stop everything; harmless when nothing runs
#   down.sh DIR --node jwb0002    kill one node: its slurmd and every process of its jobs
set -euo pipefail

usage() {
    sed -n '4,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

# The daemons and client programs of this cluster and of no other. Only Slurm's own programs:
# the shell or the test that uses the cluster has the same SLURM_CONF.
cluster_pids() {
    local file pid
    { grep -lszxF "SLURM_CONF=$dir/slurm.conf" /proc/[0-9]*/environ || true; } |
        while read -r file; do
            pid=${file//[^0-9]/}
            case $(cat "/proc/$pid/comm" 2>/dev/null) in
                unshare | slurm* | munged | mariadbd | srun | sbatch | salloc) echo "$pid" ;;
            esac
        done
}

# The `unshare` above the first process of a node's name space.
node_pid() {
    local pid
    pid=$(cat "$dir/run/$1.pid" 2>/dev/null) || return 0
    # Pids are used again: is it still a process of this cluster?
    cluster_pids | grep -xF "$pid" || true
}

# With the first process of its name space every process of a node ends, and `unshare` ends
# after the last of them: no process is left once all these pids are gone.
kill_and_wait() {
    local pid
    for pid in "$@"; do
        if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == unshare ]] && pkill -KILL -P "$pid"; then
            continue
        fi
        kill -KILL "$pid" 2>/dev/null || true
    done
    for pid in "$@"; do
        while kill -0 "$pid" 2>/dev/null && ! grep -qs '^State:.Z' "/proc/$pid/status"; do
            sleep 0.02
        done
    done
}

main() {
    local node='' pids
    dir=''
    while (($#)); do
        case $1 in
            --node) node=${2?--node needs a value} && shift ;;
            -*) usage ;;
            *) [[ -z $dir ]] || usage && dir=$1 ;;
        esac
        shift
    done
    [[ -n $dir ]] || usage
    dir=$(cd "$dir" 2>/dev/null && pwd -P) || exit 0
    if [[ -n $node ]]; then
        mapfile -t pids < <(node_pid "$node")
        kill_and_wait "${pids[@]}"
        rm -f "$dir/run/$node.pid"
        return
    fi
    mapfile -t pids < <(cluster_pids)
    kill_and_wait "${pids[@]}"
    if [[ -s $dir/run/short ]]; then
        short=$(cat "$dir/run/short")
        rm -f "$short/d"
        rmdir "$short" 2>/dev/null || true
        rm -f "$dir/run/short"
    fi
    rm -f "$dir"/run/*.pid
}

main "$@"
