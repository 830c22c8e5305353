"""What the command line does: run stages, show their state, cancel them."""

import argparse
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_prep.config import ConfigError, parse_yaml
from pipeline import jobs_table, launch, lock, paths, progress, slurm, status, submit
from pipeline.arrange import Batch
from pipeline.batches import BatchRecord, load_batches
from pipeline.config import config_path
from pipeline.display import Display
from pipeline.frozen import load_run_record, write_run_record
from pipeline.local import Outcome, Scheduler
from pipeline.plan import Plan, make_plan, prepare
from pipeline.profiles import LocalProfile, Profile, SlurmProfile, load_profile
from pipeline.sweep import Run, expand, load_run

_FOLLOW_EVERY_S = 5.0
_FOLLOW_SLURM_EVERY_S = 30.0  # every reading asks the scheduler of many
_MOST_SILENT = 20  # readings in a row: a controller may be away for minutes
_FAILED = ("failed", "ended", "blocked")
_LOG_LINES = 15


def run_stages(args: argparse.Namespace) -> int:
    """`--stage NAME`: plan and, unless `--dry-run`, run. Returns the exit code."""
    try:
        profile = load_profile(args.partition)
        run, run_dir = _load(args, profile)
        if args.dry_run:
            plan = make_plan(run, run_dir, args.stage, profile, args.force)
            if isinstance(profile, SlurmProfile):
                return _dry_submit(plan, profile, _account(args, profile))
            return _dry_run(plan, profile)
        with lock.driver_lock(run_dir):
            # Planned under the lock: what another driver has just finished is not begun again.
            plan = make_plan(run, run_dir, args.stage, profile, args.force)
            if isinstance(profile, LocalProfile):
                return _run_plan(plan, run, profile)
            code = _submit(plan, run, profile, _account(args, profile))
    except (ConfigError, lock.LockError, slurm.SlurmError, OSError) as error:
        return _refuse(_told(error))
    return show_status(args) if args.follow and code == 0 else code


def _account(args: argparse.Namespace, profile: SlurmProfile) -> str | None:
    """Whom Slurm charges: the command line, the profile, or the environment."""
    return args.account or profile.account or os.environ.get("SBATCH_ACCOUNT") or None


def _load(args: argparse.Namespace, profile: Profile) -> tuple[Run, Path]:
    """The run as configured on the command line, and its directory. Raises `ConfigError`."""
    path = config_path(args.config or profile.run, "runs")
    run = load_run(path, args.set, [config_path(name, "sweeps") for name in args.sweep])
    return run, args.run_dir or paths.run_dir(run.config.name)


def _refuse(message: str) -> int:
    """Print what is wrong, one line each; the exit code is 2."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def _told(error: Exception) -> str:
    """An error's message; of the system's errors the file, and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        advice = "correct that, or give the command again when the file system answers"
        return f"{error.filename}: {error.strerror}; {advice}"
    return str(error)


def _dry_run(plan: Plan, profile: LocalProfile) -> int:
    """Print the plan; 2 where something stands in its way."""
    _print_lines("", status.plan_table(plan, profile))
    _print_lines("warning: ", plan.warnings)
    done = sum(state.kind == "done" for state in plan.states.values())
    print(f"{plan.run_dir}: {len(plan.todo)} stages to run, {done} done; nothing was started")
    return _refuse("\n".join(plan.problems)) if plan.problems else 0


def _dry_submit(plan: Plan, profile: SlurmProfile, account: str | None) -> int:
    """Print the plan and the sbatch files as they would be; 2 where something is in the way."""
    found = plan.problems + submit.problems(plan, profile, account)
    jobs = submit.Reconciled()
    if slurm.is_here():
        try:
            jobs = submit.reconcile(plan, load_batches(plan.run_dir), slurm.queue())
            found += submit.partition_problems(plan, profile) + jobs.problems
        except slurm.SlurmError as error:
            found.append(str(error))
    else:
        plan.warnings.append("no Slurm on this machine: the partition's limits were not checked")
    _print_lines("", status.plan_table(plan, profile))
    _print_lines("", [f"job {job} would go on: {name}" for name, job in jobs.keep.items()])
    _print_lines("", [f"job {job} would be cancelled: {why}" for job, why in jobs.cancel.items()])
    todo = submit.arranged(plan, profile, jobs.keep)
    _print_sbatch(plan, todo, profile, account)
    _print_lines("", ["", *jobs_table.submission_table(plan, todo, profile)])
    _print_lines("warning: ", plan.warnings)
    done = sum(state.kind == "done" for state in plan.states.values())
    print(f"{plan.run_dir}: {len(plan.todo)} stages to run, {done} done; nothing was submitted")
    return _refuse("\n".join(found)) if found else 0


def _print_sbatch(
    plan: Plan, todo: Sequence[Batch], profile: SlurmProfile, account: str | None
) -> None:
    """The text of every sbatch file; what is only known at submission stands in <>."""
    ids = [f"<{batch.stage}>" for batch in todo]
    for batch in todo:
        after = ",".join(term.text(ids, todo) for term in batch.after)
        record = launch.record_of(plan, batch, profile, f"<token>-{batch.stage}", after)
        text = launch.sbatch_text(record, profile, account, plan.run_dir)
        more = f" and {len(batch.nodes) - 4} more" if len(batch.nodes) > 4 else ""
        _print_lines("", ["", f"# ---- {batch.stage}: {', '.join(batch.nodes[:4])}{more}"])
        _print_lines("  ", text.splitlines())


def _submit(plan: Plan, run: Run, profile: SlurmProfile, account: str | None) -> int:
    """Submit what is neither done nor under way; returns the exit code."""
    if not plan.todo:
        return _nothing_to_do(plan)
    found = plan.problems + submit.problems(plan, profile, account)
    found += submit.partition_problems(plan, profile)
    if not found:
        records, queue = load_batches(plan.run_dir), slurm.queue()
        jobs = submit.reconcile(plan, records, queue)
        found = jobs.problems + submit.strangers(plan, records, queue)
    _print_lines("warning: ", plan.warnings)
    if found:
        return _refuse("\n".join(found))
    write_run_record(plan.run_dir, run.config)
    for job, why in jobs.cancel.items():
        print(f"job {job} is cancelled: {why}", flush=True)
    slurm.cancel(jobs.cancel)
    _print_lines("", prepare(plan))
    todo = submit.arranged(plan, profile, jobs.keep)
    try:
        count = submit.submit_all(
            plan, todo, profile, account, lambda line: _print_lines("", [line])
        )
    except slurm.SlurmError as error:
        raise slurm.SlurmError(
            f"{error}\nwhat was submitted before (if anything) stays and runs; when the cause is "
            "gone, the same command submits the rest; --cancel cancels it"
        ) from None
    kept = f", {len(set(jobs.keep.values()))} under way already" if jobs.keep else ""
    print(f"{plan.run_dir}: {count} jobs submitted{kept}; Slurm runs them from here on")
    print(f"how far they are: {_status_command(plan.run_dir)}")
    return 0


def _status_command(run_dir: Path) -> str:
    return f"python pipeline/run.py --status --run-dir {shlex.quote(str(run_dir))}"


def _nothing_to_do(plan: Plan) -> int:
    _print_results(plan.run_dir)
    done = sum(state.kind == "done" for state in plan.states.values())
    print(f"nothing to do: all {done} stages are done")
    return 0


def _print_lines(prefix: str, lines: list[str]) -> None:
    with suppress(OSError):  # the terminal, or the pipe, may be gone
        for line in lines:
            print(f"{prefix}{line}", flush=True)


def _run_plan(plan: Plan, run: Run, profile: LocalProfile) -> int:
    """Run what the plan says; returns the exit code."""
    plan.problems += _slurm_jobs(plan.run_dir)
    at_work = [name for name in plan.todo if progress.is_running(plan.run_dir / name)]
    plan.problems += [
        f"{name}: a process of an earlier driver is still at work on it "
        f"({progress.named(plan.run_dir / name)}); wait until it ends, or end it (if that machine "
        f"is gone, delete {plan.run_dir / name / paths.STATE})"
        for name in at_work
    ]
    _print_lines("warning: ", plan.warnings if not at_work else [])
    if plan.problems:
        return _refuse("\n".join(plan.problems))
    write_run_record(plan.run_dir, run.config)
    if not plan.todo:
        return _nothing_to_do(plan)
    _print_lines("", prepare(plan))
    print(f"{plan.run_dir}: {len(plan.todo)} stages to run", flush=True)
    display = Display(Console(), len(plan.todo))
    try:
        outcome = Scheduler(plan, profile, display).run()
    finally:
        display.close()
    return _conclude(plan, outcome)


def _slurm_jobs(run_dir: Path) -> list[str]:
    """Jobs of this run that Slurm still has: they and this machine must not do one stage both."""
    if not load_batches(run_dir) or not slurm.is_here():
        return []
    try:
        jobs = submit.jobs_in_queue(run_dir)
    except slurm.SlurmError:  # a machine that has the commands, but no cluster
        return []
    if not jobs:
        return []
    return [
        f"{run_dir}: Slurm has {len(jobs)} jobs of this run, such as {jobs[0]}; wait for them, "
        "cancel them with --cancel, or give the --partition that they were submitted to"
    ]


def _conclude(plan: Plan, outcome: Outcome) -> int:
    """Say how the run ended; returns the exit code."""
    for name, log in outcome.failed.items():
        with log.open(encoding="utf-8", errors="replace") as file:
            _print_lines("  | ", [line.rstrip() for line in deque(file, _LOG_LINES)])
        print(f"{name} failed; the whole log: {log}", flush=True)
    _print_results(plan.run_dir)
    # Given again, --force would make the stages anew that are done by now.
    again = "the same command" + (", without --force," if plan.forced else "")
    if outcome.interrupted:
        print(f"stopped; {again} goes on from there")
        return 130
    if outcome.failed:
        left = len(plan.todo) - len(outcome.done) - len(outcome.failed)
        waiting = f", {left} not started because of that" if left else ""
        print(f"{len(outcome.failed)} failed{waiting}; {again} tries them again")
        return 1
    print(f"done: {len(outcome.done)} stages")
    return 0


def _print_results(run_dir: Path) -> None:
    """The rows of the report, where there is one, and where the page lies."""
    _print_lines("", status.results_table(run_dir))
    page = paths.report_dir(run_dir) / "index.html"
    if page.is_file():
        print(f"report: {page}")


def _known_run(args: argparse.Namespace) -> tuple[Run, Path]:
    """The run that a run directory records; `--config` and `--set` are only asked for its name.

    Raises `ConfigError` where there is none.
    """
    profile = load_profile(args.partition)
    run_dir = args.run_dir or _load(args, profile)[1]
    text = load_run_record(run_dir)
    if text is None:
        raise ConfigError(
            f"{run_dir}: no run here yet; start one with --stage all, or give --run-dir or "
            "--config as when it was started"
        )
    return expand(parse_yaml(text, str(run_dir / paths.RUN_CONFIG))), run_dir


def show_status(args: argparse.Namespace) -> int:
    """`--status`: one table; with `--follow` again and again while anything is at work.

    Returns the exit code: with `--follow` 1 where a stage has failed or can never run.
    """
    silent = 0  # times in a row that Slurm did not answer
    try:
        run, run_dir = _known_run(args)
        while True:
            records = load_batches(run_dir)
            # Slurm before the disk: what ends in between is then done, and not lost.
            seen = _ask(records)
            silent = silent + 1 if records and seen is None else 0
            plan = make_plan(
                run, run_dir, "all", load_profile(args.partition), compare_weights=False
            )
            shown = _show_jobs(plan, records, seen) if seen else _show_processes(plan)
            if not args.follow:
                return 0
            if not shown.is_active and not (slurm.is_here() and 0 < silent <= _MOST_SILENT):
                return int(shown.has_failed)
            time.sleep(_FOLLOW_SLURM_EVERY_S if records else _FOLLOW_EVERY_S)
            print(flush=True)
    except (ConfigError, slurm.SlurmError, OSError) as error:
        return _refuse(_told(error))
    except KeyboardInterrupt:
        return 130


def _ask(records: Sequence[BatchRecord]) -> jobs_table.Seen | None:
    """What Slurm says of the run's jobs; None where there are none, or it cannot be asked."""
    if not records:
        return None
    try:
        return jobs_table.ask(records)
    except slurm.SlurmError as error:
        print(f"warning: {error}; this is what the run directory tells", file=sys.stderr)
        return None


@dataclass(frozen=True)
class _Shown:
    """What a table of the state of a run says of all of it."""

    is_active: bool
    has_failed: bool


def _show_processes(plan: Plan) -> _Shown:
    """The table of a run on this machine, which is active while its driver is at work."""
    _print_lines("", status.status_table(plan.graph, plan.states, plan.run_dir))
    failures = status.failures(plan.graph, plan.states, plan.run_dir)
    _print_lines("", failures)
    driver = lock.holder(plan.run_dir)
    if driver is None:
        print(f"{plan.run_dir}: no driver is at work")
    else:
        print(f"{plan.run_dir}: driver {driver['pid']} on {driver['host']} is at work")
    return _Shown(driver is not None, bool(failures))


def _show_jobs(plan: Plan, records: Sequence[BatchRecord], seen: jobs_table.Seen) -> _Shown:
    """The table of a run on Slurm, active while any of its jobs may still change something."""
    found = jobs_table.rows(plan.graph, plan.states, plan.run_dir, records, seen)
    _print_lines("", jobs_table.status_lines(found, records, seen))
    is_active = jobs_table.is_active(found)
    if not is_active:
        _print_results(plan.run_dir)
    return _Shown(is_active, any(row.state in _FAILED for row in found))


def cancel_run(args: argparse.Namespace) -> int:
    """`--cancel`: cancel a run's jobs; ask the driver of the run directory to stop."""
    elsewhere = ""
    try:
        run_dir = args.run_dir or _load(args, load_profile(args.partition))[1]
        is_on_slurm = bool(load_batches(run_dir))
        if not is_on_slurm or lock.holder(run_dir) is not None:  # a driver may be submitting
            try:
                print(lock.cancel(run_dir))
            except lock.LockError as error:  # its jobs can be cancelled from here all the same
                elsewhere = str(error)
        if is_on_slurm:
            jobs = submit.cancel_run(run_dir)
            print(
                f"{run_dir}: {len(jobs)} jobs cancelled; running ones save if Slurm's KillWait "
                "is long enough"
            )
    except (ConfigError, slurm.SlurmError, OSError) as error:
        return _refuse(_told(error))
    return _refuse(elsewhere) if elsewhere else 0
