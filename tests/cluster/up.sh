#!/usr/bin/env bash
# Start a private Slurm of four virtual JUWELS Booster nodes on this machine, for tests.
#
#   up.sh DIR [--accounting] [--min-job-age S] [--slurmd-timeout S] [--kill-wait S]
#   up.sh DIR --node jwb0002      start one node again after `down.sh DIR --node jwb0002`
#
# Prints `export SLURM_CONF=DIR/slurm.conf` and nothing else on stdout; `down.sh DIR` ends it.
set -euo pipefail

# Debian keeps the daemons in /usr/sbin, which an ordinary user's PATH may lack.
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nodes=(jwb0001 jwb0002 jwb0003 jwb0004)
wait_s=60

complain() {
    echo "up.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

read_arguments() {
    accounting=no min_job_age=300 slurmd_timeout=15 kill_wait=10 only_node='' dir=''
    while (($#)); do
        case $1 in
            --accounting) accounting=yes ;;
            --min-job-age) min_job_age=${2?$1 needs a value} && shift ;;
            --slurmd-timeout) slurmd_timeout=${2?$1 needs a value} && shift ;;
            --kill-wait) kill_wait=${2?$1 needs a value} && shift ;;
            --node) only_node=${2?$1 needs a value} && shift ;;
            -*) usage ;;
            *) [[ -z $dir ]] || usage && dir=$1 ;;
        esac
        shift
    done
    [[ -n $dir ]] || usage
}

# Is this daemon running, and is it still the same process (pids are used again)?
alive() {
    local pid
    pid=$(cat "$dir/run/$1.pid" 2>/dev/null) || return 1
    grep -qszxF "SLURM_CONF=$dir/slurm.conf" "/proc/$pid/environ"
}

# Start a daemon in the foreground of its own session and remember its pid. The environment is
# emptied so that nothing of an outer Slurm job, or of the test, reaches the jobs through it.
launch() {
    local name=$1
    shift
    setsid env -i PATH="$PATH" SLURM_CONF="$dir/slurm.conf" \
        MYSQL_UNIX_PORT="$short/mysql.sock" "$@" \
        </dev/null >>"$dir/log/$name.out" 2>&1 &
    echo $! >"$dir/run/$name.pid"
}

# Wait until a command succeeds; give up at once when the daemon it needs has died.
wait_for() {
    local name=$1 deadline=$((SECONDS + wait_s)) pid
    pid=$(cat "$dir/run/$1.pid")
    shift
    until "$@" >/dev/null 2>&1; do
        kill -0 "$pid" 2>/dev/null || fail "$name ended while it was starting" "$name"
        ((SECONDS < deadline)) || fail "$name was not ready after $wait_s s" "$name"
        sleep 0.05
    done
}

fail() {
    echo "up.sh: $1; the end of its log:" >&2
    tail -n 20 "$dir/log/$2.out" >&2 2>/dev/null || true
    "$here/down.sh" "$dir"
    exit 1
}

# Ports below the range that the kernel hands out by itself, so that none is taken meanwhile.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random
import socket
import sys

held = []
while len(held) < int(sys.argv[1]):
    candidate = socket.socket()
    try:
        candidate.bind(("", random.randrange(12000, 32000)))
    except OSError:
        continue
    held.append(candidate)
print(*(each.getsockname()[1] for each in held))
PYTHON
}

write_slurm_conf() {
    local user port storage
    user=$(id -un)
    storage=(AccountingStorageType=accounting_storage/none)
    if [[ $accounting == yes ]]; then
        storage=(
            AccountingStorageType=accounting_storage/slurmdbd
            AccountingStorageHost=127.0.0.1
            "AccountingStoragePort=${ports[1]}"
            AccountingStorageTRES=gres/gpu
        )
    fi
    cat >"$dir/slurm.conf" <<CONF
ClusterName=jwb
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
# No munged is needed; in return every port is bound to 127.0.0.1 only.
AuthType=auth/none
CredType=cred/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$short/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.own.pid
SlurmdPidFile=$dir/run/%n.own.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
$(printf '%s\n' "${storage[@]}")
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# The nodes have more CPUs and memory than this machine.
SlurmdParameters=config_overrides

SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
InactiveLimit=0
KillWait=$kill_wait
MinJobAge=$min_job_age
SlurmdTimeout=$slurmd_timeout
MaxArraySize=2001
MaxJobCount=10000
# A loaded test machine answers late.
MessageTimeout=30
BatchStartTimeout=60

NodeName=DEFAULT CPUs=48 Sockets=2 CoresPerSocket=24 ThreadsPerCore=1 \
RealMemory=512000 Gres=gpu:a100:4
CONF
    port=2
    for node in "${nodes[@]}"; do
        echo "NodeName=$node NodeHostname=$node NodeAddr=127.0.0.1 Port=${ports[port++]}"
    done >>"$dir/slurm.conf"
    cat >>"$dir/slurm.conf" <<'CONF'
PartitionName=DEFAULT Nodes=jwb[0001-0004] MaxTime=24:00:00 State=UP PriorityTier=1
PartitionName=booster Default=YES OverSubscribe=EXCLUSIVE PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent PriorityTier=20 OverSubscribe=EXCLUSIVE PreemptMode=OFF
PartitionName=devel MaxTime=00:10:00 MaxNodes=2 OverSubscribe=EXCLUSIVE PreemptMode=OFF
PartitionName=shared OverSubscribe=NO PreemptMode=OFF
CONF
    echo "Name=gpu Type=a100 File=$short/gpu/nvidia[0-3]" >"$dir/gres.conf"
    touch "$dir"/gpu/nvidia{0,1,2,3}
}

write_hosts() {
    {
        cat /etc/hosts
        for node in "${nodes[@]}"; do
            echo "127.0.0.1 $node ${node}i"
        done
    } >"$dir/hosts"
}

start_database() {
    local user
    user=$(id -un)
    mariadb-install-db --no-defaults --user="$user" --datadir="$dir/mysql" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$user" \
        >"$dir/log/mariadbd.out" 2>&1 || fail 'mariadb-install-db failed' mariadbd
    # Root may run it as root: only this user reaches the socket, and there is no port.
    launch mariadbd mariadbd --no-defaults --user="$user" --datadir="$dir/mysql" \
        --socket="$short/mysql.sock" --skip-networking --pid-file="$dir/run/mariadbd.own.pid" \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
    wait_for mariadbd mariadb-admin --no-defaults --socket="$short/mysql.sock" ping

    cat >"$dir/slurmdbd.conf" <<CONF
AuthType=auth/none
DbdHost=127.0.0.1
DbdAddr=127.0.0.1
DbdPort=${ports[1]}
SlurmUser=$user
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
StorageLoc=slurm
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.own.pid
CONF
    chmod 600 "$dir/slurmdbd.conf"
    launch slurmdbd slurmdbd -D
    wait_for slurmdbd sacctmgr -n -i add cluster jwb
    sacctmgr -Q -i add account demo cluster=jwb >&2
    sacctmgr -Q -i add user "$user" account=demo cluster=jwb DefaultAccount=demo >&2
}

# A node is a slurmd in name spaces of its own: host name, process ids, shared memory and
# /etc/hosts are private, the file system is shared, as on a cluster. The end of the first process of the
# name space is the end of every job process in it, which is how a node crashes.
# An ordinary user keeps his own id, with the capabilities to mount within.
start_node() {
    local node=$1 as_user=()
    ((EUID == 0)) || as_user=(--map-current-user --keep-caps)
    mkdir -p "$dir/spool/$node"
    # shellcheck disable=SC2016
    launch "$node" unshare "${as_user[@]}" --mount --uts --ipc --pid --mount-proc --fork \
        --kill-child bash -c '
            set -euo pipefail
            mount --bind "$2/hosts" /etc/hosts
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            # Slurm counts a GPU only if its file is a device.
            for gpu in "$2"/gpu/nvidia*; do
                mount --bind /dev/null "$gpu"
            done
            hostname "$1"
            slurmd -D -N "$1" -f "$2/slurm.conf" &
            # The first process of a name space inherits orphans and has to reap them.
            wait $!
        ' "$node" "$node" "$dir"
}

node_is_up() {
    [[ $(sinfo -h -N -p booster -n "$1" -o %T) =~ ^(idle|mixed|allocated|reserved|completing)$ ]]
}

start_nodes() {
    for node in "$@"; do
        start_node "$node"
    done
    for node in "$@"; do
        wait_for "$node" node_is_up "$node"
    done
}

main() {
    read_arguments "$@"
    unshare --mount --uts --ipc --pid --fork true 2>/dev/null ||
        unshare --map-current-user --mount --uts --ipc --pid --fork true 2>/dev/null ||
        complain 'this machine refuses name spaces (unshare), which the virtual nodes need'
    umask 022
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd -P)
    export SLURM_CONF=$dir/slurm.conf
    if [[ -n $only_node ]]; then
        alive slurmctld || complain "no cluster is running in $dir"
        [[ " ${nodes[*]} " == *" $only_node "* ]] ||
            complain "--node $only_node: expected one of ${nodes[*]}"
        ! alive "$only_node" || complain "$only_node is running already in $dir"
        short=$(cat "$dir/run/short")/d
        start_nodes "$only_node"
        return
    fi
    ! alive slurmctld || complain "a cluster is running already in $dir; stop it with down.sh"
    "$here/down.sh" "$dir"
    rm -rf "$dir"/{log,run,state,spool,mysql}
    mkdir -p "$dir"/{log,run,state,spool,gpu}
    # Paths of sockets are limited to 108 characters, and DIR may be longer.
    mktemp -d /tmp/slurm-XXXXXX >"$dir/run/short"
    short=$(cat "$dir/run/short")/d
    ln -s "$dir" "$short"
    read -ra ports < <(free_ports 6)
    write_slurm_conf
    write_hosts
    [[ $accounting == no ]] || start_database
    launch slurmctld slurmctld -D -f "$dir/slurm.conf"
    wait_for slurmctld sinfo
    start_nodes "${nodes[@]}"
    echo "export SLURM_CONF=$dir/slurm.conf"
}

main "$@"
