"""The command line: plan the graph, run what is not done, show how far it is.

python pipeline/run.py --stage all
python pipeline/run.py --stage all --set data.cityscapes_root=PATH --config photos
python pipeline/run.py --status
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts pipeline/ first on the path; the packages lie beside it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

try:
    from pipeline.driver import cancel_run, run_stages, show_status
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: this Python ({sys.executable}) has no package {missing.name!r}: run `make setup` "
        "once and use .venv/bin/python, or install the project into your own environment"
    )


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    p = argparse.ArgumentParser(
        prog="python pipeline/run.py", description="Run the experiment, stage by stage."
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--stage", metavar="NAME", help="'all', or one stage and whatever it needs that is not done"
    )
    what.add_argument("--status", action="store_true", help="show how far the run is")
    what.add_argument("--cancel", action="store_true", help="ask the running stages to save, stop")
    p.add_argument(
        "--partition",
        default="local",
        metavar="NAME",
        help="where to run: configs/partitions/NAME.yaml (default: local, this machine)",
    )
    p.add_argument(
        "--config",
        metavar="FILE",
        help="run config: a file, or a name in configs/runs (default: the partition's)",
    )
    p.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/NAME, by the config")
    p.add_argument("--account", metavar="NAME", help="whom Slurm charges; unused on this machine")
    p.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override keys of the run config, such as gan.images=800; may be given again",
    )
    p.add_argument(
        "--sweep",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files in configs/sweeps or of your own: together they replace the run config's sweep",
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan; start nothing")
    p.add_argument(
        "--follow",
        action="store_true",
        help="with --status, or on Slurm with --stage: show it again and again until all has ended",
    )
    p.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="make a finished stage anew (a half-made one goes on); what it made before is kept",
    )
    return p


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments; ends the process with exit code 2 where they do not fit together."""
    p = parser()
    args = p.parse_args(arguments)
    planning = {"--dry-run": args.dry_run, "--force": args.force, "--sweep": args.sweep}
    given = [flag for flag, value in planning.items() if value]
    if given and args.stage is None:
        what = "--status" if args.status else "--cancel"
        p.error(f"{', '.join(given)}: only with --stage, not with {what}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: all is done (on Slurm: submitted). 1: a stage failed. 2: the command, a config or the data
    are not right.
    130: stopped by Ctrl-C or a signal; the same command goes on from there.
    """
    args = _parse(arguments)
    if args.status:
        return show_status(args)
    if args.cancel:
        return cancel_run(args)
    return run_stages(args)


if __name__ == "__main__":
    sys.exit(main())
