"""The plan: the graph held against the disk. Reading it changes nothing; `prepare` acts on it."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep import atomic
from data_prep.config import ConfigError
from pipeline import paths, progress, weights
from pipeline.config import RunConfig
from pipeline.dag import root_of, select
from pipeline.done import read_done
from pipeline.frozen import FrozenStage, InputRef, Launch, read_frozen_tree, write_frozen
from pipeline.hashing import pretrained_file, weights_digest
from pipeline.nodes import STAGE_VERSION, STAGES, Graph, Node
from pipeline.profiles import LocalProfile, Profile, find_mpiexec
from pipeline.roots import label_problems, read_roots, selection_warnings
from pipeline.stale import Found, State, decide
from pipeline.sweep import Run


@dataclass
class Plan:
    """What is to be done, and what stands in the way."""

    run_dir: Path
    graph: Graph
    found: Mapping[str, Found]
    states: Mapping[str, State]
    todo: list[str]
    forced: Collection[str] = ()
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(
    run: Run,
    run_dir: Path,
    stage: str,
    profile: Profile,
    forced: Collection[str] = (),
    *,
    compare_weights: bool = True,
) -> Plan:
    """Hold `run` against what lies in `run_dir`.

    `compare_weights`: also whether files of backbone weights fit, which takes some seconds.
    Raises `ConfigError` for a wrong stage name.
    """
    for name in ({stage} - {"all"}) | set(forced):
        if name not in STAGES:
            raise ConfigError(f"no stage {name!r}; there are: {', '.join(STAGES)}")
    roots = read_roots(run.config, run_dir)
    graph = weights.graph_of(run, roots.hashes, _kept_weights(run, run_dir))
    found = {name: look(run_dir, node) for name, node in graph.items()}
    states = decide(graph, found, forced)
    todo = select(graph, {name for name, s in states.items() if s.kind == "done"}, stage)
    plan = Plan(run_dir, graph, found, states, todo, forced)
    for name in forced:
        if not any(graph[n].stage == name for n in todo):
            plan.problems.append(f"--force {name}: --stage {stage} does not run {name}")
    plan.problems += label_problems(graph, todo, roots)
    plan.warnings += selection_warnings(run.config, roots) if todo else []
    for kind, message in roots.trouble.items():
        if f"pack_{kind}" in todo:
            plan.problems.append(message)
        elif states[f"pack_{kind}"].kind == "done" and root_of(run.config, kind) is not None:
            plan.warnings.append(f"{message}; pack_{kind} is done and is kept")
    for path in weights.missing_files(run):
        _note_missing_weights(plan, path)
    misfits, unchecked = weights.check(graph, todo) if compare_weights else ([], [])
    plan.problems += misfits
    plan.warnings += unchecked
    for name in todo:
        found_here = _rank_problems(graph[name], profile)
        plan.problems += [line for line in found_here if line not in plan.problems]
        if states[name].kind == "resume" and graph[name].stage in forced:
            plan.warnings.append(f"{name}: half made, so it goes on; --force is for finished ones")
        if isinstance(profile, LocalProfile) and progress.is_running(run_dir / name):
            plan.warnings.append(f"{name}: {progress.named(run_dir / name)} is at work on it")
    return plan


def look(run_dir: Path, node: Node) -> Found:
    """What lies in the directory of `node`."""
    folder = paths.stage_dir(run_dir, node.name)
    if not any(True for _ in own_entries(folder)):
        return Found()
    record = read_done(folder, str(node.hash))
    if record is not None:  # the usual case: done, and its config.yaml need not be parsed
        return Found(True, {"science_hash": record.science_hash}, record, record.inputs)
    frozen = read_frozen_tree(folder)
    started = folder / paths.STARTED
    return Found(
        has_content=True,
        config=frozen,
        record=read_done(folder, str(frozen.get("science_hash"))),
        started=atomic.read_json(started, must_read=True) if started.is_file() else None,
    )


def own_entries(stage_dir: Path) -> list[Path]:
    """The entries of a stage's directory that are not the directories of its other points."""
    if not stage_dir.is_dir():
        return []
    return [entry for entry in sorted(stage_dir.iterdir()) if not paths.is_point(entry.name)]


def _kept_weights(run: Run, run_dir: Path) -> dict[str, str]:
    """Digests of the files of backbone weights that are gone, as finished segmenters read them."""
    files = [Path(p.config.segmenter.pretrained) for p in run.points]
    gone = {path for path in files if str(path) != "none" and not path.is_file()}
    if not gone:
        return {}
    top = run_dir / "segmenter"
    kept: dict[str, str] = {}
    for folder in (top, *(entry for entry in sorted(top.glob("*")) if paths.is_point(entry.name))):
        frozen = read_frozen_tree(folder)
        path = pretrained_file(frozen.get("science", {}))
        digest = frozen.get("weights")
        if path in gone and digest and read_done(folder, str(frozen.get("science_hash"))):
            kept[str(path)] = str(digest)
    return kept


def _note_missing_weights(plan: Plan, path: str) -> None:
    """A missing file of backbone weights: a problem for segmenters to train, else a warning."""
    users = [n for n, node in plan.graph.items() if pretrained_file(node.science) == Path(path)]
    unmade = [name for name in users if name in plan.todo]
    done = [name for name in users if plan.states[name].kind == "done"]
    message = f"segmenter.pretrained: no file {path}"
    if unmade:
        plan.problems.append(f"{message}; {unmade[0]} is to start from it: correct the path")
    elif done:
        plan.warnings.append(f"{message}; {', '.join(done)}: done, and kept")


def _rank_problems(node: Node, profile: Profile) -> list[str]:
    """Several ranks without an MPI to start them; global batch sizes that they do not divide."""
    ranks = profile.resources(node.stage).ranks
    is_local_pack = node.stage.startswith("pack_") and isinstance(profile, LocalProfile)
    if is_local_pack and ranks > 1 and find_mpiexec() is None:
        return [
            f"{node.stage}: no mpiexec: packing with {ranks} ranks needs MPI; install the extra "
            f"'mpi', or set stages.{node.stage}.ranks of the profile to 1"
        ]
    return [
        f"{key}: {size} images cannot be shared evenly by {ranks} ranks; set {key} to a multiple "
        f"of {ranks}, or give stages.{node.stage} of the profile a divisor of {size} as its ranks"
        for key, size in global_batches(node.config, node.stage).items()
        if size % ranks
    ]


def global_batches(config: RunConfig, stage: str) -> dict[str, int]:
    """Dotted key -> images of each batch of a stage, which its ranks share."""
    f, finetune = config.segmenter, config.finetune
    further, adapted = config.finetune_segmenter, config.adaptsegnet
    batches: dict[str, dict[str, int]] = {
        "segmenter": {"segmenter.batch_size": f.batch_size},
        "oracle": {"segmenter.batch_size": f.batch_size},
        "gan": {"gan.batch_size": config.gan.batch_size},
        "finetune": {
            "finetune.batch_size": finetune.batch_size,
            "finetune.labelled_per_step": finetune.labelled_per_step,
        },
        "finetune_segmenter": (
            {"finetune_segmenter.batch_size": further.batch_size} if further else {}
        ),
        "adaptsegnet": {"adaptsegnet.batch_size": adapted.batch_size} if adapted else {},
    }
    return batches.get(stage, {})


def prepare(plan: Plan) -> list[str]:
    """Move what is stale aside; returns one line for each move."""
    return [
        supersede(plan, plan.graph[name]) for name in plan.todo if plan.states[name].kind == "stale"
    ]


def supersede(plan: Plan, node: Node) -> str:
    """Move a node's directory to `superseded/`; returns the line that says so.

    Directories of other points stay. done.json goes first and config.yaml last: cut off in
    between, the rest is neither taken for finished nor left behind.
    """
    folder = paths.stage_dir(plan.run_dir, node.name)
    short = str(plan.found[node.name].config.get("science_hash", ""))[:8]
    number = 1
    while (kept := paths.superseded(plan.run_dir, node.stage, node.point, short, number)).exists():
        number += 1
    kept.mkdir(parents=True)
    order = {paths.DONE: 0, paths.CONFIG: 2}
    for entry in sorted(own_entries(folder), key=lambda entry: order.get(entry.name, 1)):
        shutil.move(entry, kept / entry.name)
    atomic.fsync_path(folder)
    reason = plan.states[node.name].reason
    return f"{node.name}: {reason}; what was there is kept in {kept}"


def freeze(plan: Plan, node: Node, profile: Profile) -> Path:
    """Write a node's `config.yaml`; returns its directory. Its data and inputs must be known."""
    assert node.hash is not None, f"{node.name}: what it is made from is not there"
    resources = profile.resources(node.stage)
    pretrained = pretrained_file(node.science)
    inputs = {
        role: InputRef(dir=name, hash=str(plan.graph[name].hash))
        for role, name in node.inputs.items()
    }
    if node.raw_hash is not None:
        root = root_of(node.config, str(node.science["kind"]))
        assert root is not None
        inputs["raw"] = InputRef(dir=str(Path(root).resolve()), hash=node.raw_hash)
    folder = paths.stage_dir(plan.run_dir, node.name)
    write_frozen(
        folder,
        FrozenStage(
            stage=node.stage,
            point=node.point,
            swept=dict(node.swept),
            science_hash=node.hash,
            stage_version=STAGE_VERSION[node.stage],
            science=node.science,
            launch=Launch(
                training=node.config.training_of(node.stage),
                ranks=resources.ranks,
                threads=resources.threads,
                processes=resources.processes,
                health_check_s=resources.health_check_s,
                gpu=resources.gpu,
                subset=node.raw_hash is None or node.config.data.subset,
            ),
            inputs=inputs,
            weights=weights_digest(pretrained) if pretrained else None,
        ),
    )
    return folder


def is_finished(plan: Plan, node: Node) -> bool:
    """Whether a node that was started has a valid done.json now.

    A report is made anew in its place, so there its inputs have to be the present ones.
    """
    record = read_done(paths.stage_dir(plan.run_dir, node.name), str(node.hash))
    if record is None or node.stage != "report":
        return record is not None
    inputs = {
        role: read_done(paths.stage_dir(plan.run_dir, name), str(plan.graph[name].hash))
        for role, name in node.inputs.items()
    }
    return record.inputs == {role: r.output_digest if r else None for role, r in inputs.items()}
