"""Slurm's commands: what they print (22.05), how often they are called, with what environment."""

import os

import pytest
from slurm_runs import Commands

from pipeline import slurm
from pipeline.slurm import Ended, Limits, Queued, SlurmError


@pytest.fixture
def commands(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A machine with none of Slurm's commands, as yet."""
    return Commands(tmp_path_factory.mktemp("machine") / "bin", monkeypatch)


def squeue_text(*rows: str) -> str:
    """`squeue --Format` with columns of 200 characters; cells are parted by '|'."""
    return "".join("".join(f"{cell:<200}" for cell in row.split("|")) + "\n" for row in rows)


QUEUE = squeue_text(
    "4711_1|RUNNING|None|0|tigan:0004-gan-01234567",
    "4711_2|COMPLETING|None|1|tigan:0004-gan-01234567",
    "4711_0|PENDING|BeginTime|12|tigan:0004-gan-01234567",
    "4712|PENDING|Dependency|0|tigan:0005-report-01234567",
    "4713|PENDING|ReqNodeNotAvail, UnavailableNodes:jwb0003|0|(null)",
)


def test_queue_is_read_by_columns() -> None:
    gan = "tigan:0004-gan-01234567"
    assert slurm.parse_queue(QUEUE) == {
        "4711_1": Queued("RUNNING", "None", 0, gan),
        "4711_2": Queued("COMPLETING", "None", 1, gan),
        "4711_0": Queued("PENDING", "BeginTime", 12, gan),
        "4712": Queued("PENDING", "Dependency", 0, "tigan:0005-report-01234567"),
        "4713": Queued("PENDING", "ReqNodeNotAvail, UnavailableNodes:jwb0003", 0, "(null)"),
    }


def test_empty_queue_is_no_job() -> None:
    assert slurm.parse_queue("") == {} and slurm.parse_queue("\n") == {}


def test_trailing_blanks_may_be_cut_off() -> None:
    text = "\n".join(line.rstrip() for line in QUEUE.splitlines())
    assert slurm.parse_queue(text) == slurm.parse_queue(QUEUE)
    assert slurm.parse_queue(f"{'12':<200}PENDING") == {"12": Queued("PENDING", "", 0, "")}


@pytest.mark.parametrize(
    ("state", "is_pending"),
    [
        ("PENDING", True),
        ("REQUEUED", True),
        ("REQUEUE_HOLD", True),
        ("SPECIAL_EXIT", True),
        ("CONFIGURING", False),
        ("RUNNING", False),
        ("COMPLETING", False),
        ("SUSPENDED", False),
    ],
)
def test_what_waits(state: str, is_pending: bool) -> None:
    assert Queued(state, "None", 0, "").is_pending is is_pending


def test_queue_is_one_command_for_this_user(commands: Commands) -> None:
    commands.add("squeue", says=QUEUE)
    assert slurm.queue() == slurm.parse_queue(QUEUE)
    (call,) = commands.calls("squeue")
    words = call.split()
    assert words[words.index("--user") + 1] == str(os.getuid())
    assert {"--noheader", "--array"} <= set(words)
    assert words[words.index("--Format") + 1] == (
        "JobArrayID:200,State:200,Reason:200,RestartCnt:200,Comment:200,Name:200"
    )


OUTER = {
    "SLURM_JOB_ID": "1",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SBATCH_PARTITION": "other",
    "SRUN_CPUS_PER_TASK": "1",
    "PMI_RANK": "3",
    "PMIX_RANK": "3",
    "TIGAN_JOB": "1",
}
KEPT = {"SLURM_CONF": "/etc/slurm/slurm.conf", "HOME": "/home/smith1", "MY_SLURM_DIR": "x"}


def test_environment_of_an_outer_job_is_left_out() -> None:
    assert slurm.clean_environment({**OUTER, **KEPT}) == KEPT


def test_commands_run_outside_of_any_job(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**OUTER, **KEPT}.items():
        monkeypatch.setenv(name, value)
    commands.add("squeue")
    slurm.queue()
    seen = commands.environment("squeue")
    assert not set(OUTER) & set(seen) and KEPT.items() <= seen.items()
    assert os.environ["SLURM_JOB_ID"] == "1"


# SQUEUE_STATES=RUNNING, say, hides what waits, which would then be submitted a second time.
def test_users_filters_of_squeue_do_not_count(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    commands.add("squeue")
    slurm.queue()
    assert "SQUEUE_STATES" not in commands.environment("squeue")


def test_own_environment_is_cleaned_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OUTER, **KEPT}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(KeyError), slurm.outside_of_any_job():
        assert not set(OUTER) & set(os.environ) and KEPT.items() <= os.environ.items()
        os.environ["NEW"] = "1"
        raise KeyError
    assert dict(os.environ) == before


def test_missing_command_is_told(commands: Commands) -> None:
    with pytest.raises(SlurmError, match=r"squeue: no such command here; .*--partition local"):
        slurm.queue()


def test_failed_command_is_told_in_its_own_words(commands: Commands) -> None:
    commands.add("squeue", 'echo "slurm_load_jobs error: Unable to contact" >&2; exit 1')
    with pytest.raises(SlurmError) as caught:
        slurm.queue()
    assert str(caught.value) == "squeue: slurm_load_jobs error: Unable to contact"
    commands.add("squeue", "exit 3")
    with pytest.raises(SlurmError, match=r"^squeue: exit code 3$"):
        slurm.queue()


def test_command_that_does_not_answer_is_given_up(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.05)
    commands.add("squeue", "exec sleep 60")
    with pytest.raises(SlurmError, match=r"^squeue --noheader .*: no answer in 0 s$"):
        slurm.queue()


ACCOUNTING = """\
4710|COMPLETED|3600|4
4711_0|REQUEUED|1800|1
4711_1|NODE_FAIL|60|1
4711_0|COMPLETED|1800|1
4711_1|RUNNING|1740|1
4712|CANCELLED by 1000|0|1
4713_[0-3]|PENDING|0|
4714|OUT_OF_MEMORY|36|2
"""


def test_accounting_sums_over_restarts() -> None:
    assert slurm.parse_accounting(ACCOUNTING) == {
        "4710": Ended("COMPLETED", 4.0),
        "4711_0": Ended("COMPLETED", 1.0),
        "4711_1": Ended("RUNNING", 0.5),
        "4712": Ended("CANCELLED", 0.0),
        "4713_[0-3]": Ended("PENDING", 0.0),
        "4714": Ended("OUT_OF_MEMORY", 0.02),
    }
    assert slurm.parse_accounting("") == {}


def test_accounting_is_one_command_for_all_jobs(commands: Commands) -> None:
    commands.add("sacct", says=ACCOUNTING)
    assert slurm.accounting(["4710", "4711"]) == slurm.parse_accounting(ACCOUNTING)
    (call,) = commands.calls("sacct")
    words = call.split()
    assert words[words.index("--jobs") + 1] == "4710,4711"
    assert words[words.index("--format") + 1] == "JobID,State,ElapsedRaw,NNodes"
    assert {"--noheader", "--parsable2", "--allocations", "--duplicates"} <= set(words)


# sacct lists the elements of an array singly by itself; the option --array came later than 22.05.
def test_accounting_works_with_slurm_22_05(commands: Commands) -> None:
    refuse = "sacct: unrecognized option '--array'"
    commands.add(
        "sacct",
        f'case "$*" in *--array*) echo "{refuse}" >&2; exit 1;; esac\necho "4710|COMPLETED|3600|4"',
    )
    assert slurm.accounting(["4710"]) == {"4710": Ended("COMPLETED", 4.0)}


def test_cluster_without_accounting(commands: Commands) -> None:
    assert slurm.accounting(["4710"]) is None
    commands.add("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert slurm.accounting(["4710"]) is None


def test_nothing_is_asked_about_no_job(commands: Commands) -> None:
    commands.add("sacct")
    commands.add("scancel")
    assert slurm.accounting([]) is None
    slurm.cancel([])
    assert commands.calls("sacct") == commands.calls("scancel") == []


def test_cancel_is_one_command(commands: Commands) -> None:
    commands.add("scancel")
    slurm.cancel({"4712": "why", "4711_3": "why"})
    assert commands.calls("scancel") == ["--quiet 4711_3 4712"]
    commands.add("scancel", 'echo "scancel: error: Access/permission denied" >&2; exit 1')
    with pytest.raises(SlurmError, match="permission denied"):
        slurm.cancel(["1"])


PARTITION = (
    "PartitionName=booster AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL "
    "Default=YES QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=15 "
    "Hidden=NO MaxNodes={nodes} MaxTime={time} MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED "
    "Nodes=jwb[0001-0936] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO "
    "OverSubscribe=EXCLUSIVE OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=44928 "
    "TotalNodes=936 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED "
    "MaxMemPerNode=UNLIMITED TRES=cpu=44928,mem=468000G,node=936,billing=44928,gres/gpu=3744\n"
)


@pytest.mark.parametrize(
    ("time", "nodes", "limits"),
    [
        ("1-00:00:00", "384", Limits(1440, 384)),
        ("02:00:00", "UNLIMITED", Limits(120, 936)),
        ("00:10:00", "2000", Limits(10, 936)),
        ("7-12:30:00", "1", Limits(10830, 1)),
        ("UNLIMITED", "UNLIMITED", Limits(None, 936)),
    ],
)
def test_limits_of_a_partition(commands: Commands, time: str, nodes: str, limits: Limits) -> None:
    commands.add("scontrol", says=PARTITION.format(time=time, nodes=nodes))
    assert slurm.partition_limits("booster") == limits
    assert commands.calls("scontrol") == ["--oneliner show partition booster"]


def test_partition_without_limits() -> None:
    assert slurm.parse_limits("PartitionName=x State=UP") == Limits(None, None)


def test_unknown_partition_lists_those_there_are(commands: Commands) -> None:
    names = "".join(f"PartitionName={name} State=UP TotalNodes=2\n" for name in ("gpus", "devel"))
    commands.add(
        "scontrol",
        '[ $# -eq 3 ] && exit 0\necho "Partition booster not found" >&2; exit 1',
        says=names,
    )
    with pytest.raises(SlurmError, match=r"^no partition 'booster' on .*; there are: gpus, devel$"):
        slurm.partition_limits("booster")


def test_unreachable_scheduler_is_no_unknown_partition(commands: Commands) -> None:
    commands.add("scontrol", 'echo "slurm_load_partitions error: Unable to contact" >&2; exit 1')
    with pytest.raises(SlurmError, match=r"^scontrol: slurm_load_partitions error"):
        slurm.partition_limits("booster")
    assert len(commands.calls("scontrol")) == 1


def test_slurm_is_here_only_with_all_its_commands(commands: Commands) -> None:
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        commands.add(name)
    assert not slurm.is_here()
    commands.add("srun")
    assert slurm.is_here()
