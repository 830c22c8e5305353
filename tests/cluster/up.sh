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
name_spaces=(--mount --uts --ipc --pid --mount-proc --fork --kill-child)
# An ordinary user keeps his own id, with the right to mount inside.
((EUID == 0)) || name_spaces+=(--map-current-user --keep-caps)

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
    # bash need not report how it ends.
    disown
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
    tail -n 20 "$dir/log/$2.out" >&2 2>/dev/null || true
    complain "$1; the end of its log is above"
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
            "AccountingStoragePass=$short/munge.sock"
            AccountingStorageTRES=gres/gpu
        )
    fi
    cat >"$dir/slurm.conf" <<CONF
ClusterName=jwb
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$short/munge.sock
StateSaveLocation=$dir/state
SlurmdSpoolDir=$short/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.own.pid
SlurmdPidFile=$dir/run/%n.own.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
$(printf '%s\n' "${storage[@]}")
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true

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
EnforcePartLimits=ALL
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

# Slurm's ports are open to the network, so messages need a key that only this cluster has.
start_munge() {
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    launch munged munged --foreground --force --key-file="$dir/munge.key" \
        --socket="$short/munge.sock" --pid-file="$dir/run/munged.own.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
    wait_for munged munge --socket="$short/munge.sock" --no-input
}

start_database() {
    local user
    user=$(id -un)
    mariadb-install-db --no-defaults --user="$user" --datadir="$dir/mysql" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$user" \
        >"$dir/log/mariadbd.out" 2>&1 </dev/null || fail 'mariadb-install-db failed' mariadbd
    # Root may run it as root: only this user reaches the socket, and there is no port.
    launch mariadbd mariadbd --no-defaults --user="$user" --datadir="$dir/mysql" \
        --socket="$short/mysql.sock" --skip-networking --pid-file="$dir/run/mariadbd.own.pid" \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
    wait_for mariadbd mariadb-admin --no-defaults --socket="$short/mysql.sock" ping

    cat >"$dir/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$short/munge.sock
DbdHost=$(hostname -s)
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
    {
        sacctmgr -i add account demo cluster=jwb
        sacctmgr -i add user "$user" account=demo cluster=jwb DefaultAccount=demo
    } >>"$dir/log/slurmdbd.out"
}

# A node is a slurmd in name spaces of its own: host name, process ids, shared memory and
# /etc/hosts are private, the file system is shared, as on a cluster. The end of the first process
# of the name space is the end of every job process in it, which is how a node crashes.
start_node() {
    local node=$1
    mkdir -p "$dir/spool/$node"
    rm -f "$dir/run/$node.own.pid"
    # shellcheck disable=SC2016
    launch "$node" unshare "${name_spaces[@]}" bash -c '
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

# A node that was started again soon after its crash may still count as up from before; its
# slurmd writes its pid file once it listens.
node_is_up() {
    [[ -s $dir/run/$1.own.pid ]] &&
        [[ $(sinfo -h -N -p booster -n "$1" -o %T) =~ ^(idle|mixed|allocated|completing)$ ]]
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
    unshare "${name_spaces[@]}" mount -t tmpfs tmpfs /dev/shm 2>/dev/null ||
        complain 'this machine refuses name spaces (unshare), which the virtual nodes need'
    umask 022
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd -P)
    [[ $dir =~ ^[[:alnum:]/._+@-]+$ ]] ||
        complain "$dir: slurm.conf takes only letters, digits and ._+@- in a path"
    export SLURM_CONF=$dir/slurm.conf
    if [[ -n $only_node ]]; then
        alive slurmctld || complain "no cluster is running in $dir"
        [[ " ${nodes[*]} " == *" $only_node "* ]] ||
            complain "--node $only_node: expected one of ${nodes[*]}"
        ! alive "$only_node" || complain "$only_node is running already in $dir"
        short=$(cat "$dir/run/short")/d
        trap '"$here/down.sh" "$dir" --node "$only_node"' EXIT
        start_nodes "$only_node"
        trap - EXIT
        return
    fi
    ! alive slurmctld || complain "a cluster is running already in $dir; stop it with down.sh"
    [[ -e $dir/gres.conf || -z $(ls -A "$dir") ]] ||
        complain "$dir is neither empty nor the folder of an earlier cluster; give a new one"
    "$here/down.sh" "$dir"
    trap '"$here/down.sh" "$dir"' EXIT
    rm -rf "$dir"/{log,run,state,spool,mysql}
    mkdir -p "$dir"/{log,run,state,spool,gpu}
    # Paths of sockets are limited to 108 characters, and DIR may be longer.
    mktemp -d /tmp/slurm-XXXXXX >"$dir/run/short"
    short=$(cat "$dir/run/short")/d
    ln -s "$dir" "$short"
    read -ra ports < <(free_ports 6)
    write_slurm_conf
    write_hosts
    start_munge
    [[ $accounting == no ]] || start_database
    launch slurmctld slurmctld -D -f "$dir/slurm.conf"
    wait_for slurmctld timeout 2 sinfo
    start_nodes "${nodes[@]}"
    trap - EXIT
    echo "export SLURM_CONF=$dir/slurm.conf"
}

main "$@"
