"""The model card: what the task-informed generator of a run is, in Markdown.

The report writes it beside its page. It names no machine and no path, and the same run gives the
same bytes.
"""

from typing import Any

import yaml

from data_prep.config import ClassSet
from data_prep.listing import SourceKind
from tigan import report_tables, report_text
from tigan.predict import SEGMENTER_WEIGHTS, TRANSLATOR_WEIGHTS
from tigan.report_nodes import Node
from tigan.report_rows import INFORMED, REAL, SELECTION, Group, headline, headlines

FILE = "model_card.md"

# What a user without our code runs; a test runs it too.
LOAD = """\
import json
import numpy as np
import torch
from PIL import Image

about = json.load(open("programs/export.json"))
translator = torch.export.load("programs/translator.pt2").module()
segmenter = torch.export.load("programs/segmenter.pt2").module()

photo = Image.open("photo.png").convert("RGB")
size = (about["width"], about["height"])  # of the training: by area, to enlarge bicubic
shrinks = photo.width >= size[0] and photo.height >= size[1]
photo = photo.resize(size, Image.BOX if shrinks else Image.BICUBIC)
images = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]
with torch.no_grad():
    translated = (translator(images) * 255).round() / 255  # as an image file would hold it
    classes = segmenter(translated).argmax(1)[0].numpy()  # indices into about["class_names"]
pixels = (translated[0].permute(1, 2, 0) * 255).round().byte().numpy()
Image.fromarray(pixels).save("translated.png")
Image.fromarray(np.array(about["class_colours"], np.uint8)[classes]).save("seen.png")
"""

MINICITY = "MiniCity, street scenes rendered by this project"
_LAYOUTS: dict[str, tuple[str, SourceKind]] = {
    "pack_synthia": ("SYNTHIA-RAND-CITYSCAPES", "synthia"),
    "pack_cityscapes": ("Cityscapes", "cityscapes"),
}
_SYNTHIA = (
    "SYNTHIA-RAND-CITYSCAPES: for non-commercial research, under CC BY-NC-SA 3.0; to be cited as "
    "its authors ask."
)
_CITYSCAPES = (
    "Cityscapes: under its own licence: non-commercial use such as research and teaching; the "
    "data, or what can bring them back, may not be passed on."
)
_LIMITS = """\
It makes photographs of the kind it was trained on look to the segmenter f above like the synthetic
images that f was trained on, so that f segments them better. It was made for research.

- It was trained against this f; what another segmenter gains by it was not measured.
- It was trained at one size. Its InstanceNorm takes statistics over the whole image, so crops and
  other scales give other results; bring images to the size above first.
- It changes what an image shows: objects may vanish or be invented where that lowers the loss. A
  translated image is no evidence of what a camera saw.
- The scores are of the val images below only: other cities, cameras, weather or seasons were not
  tested, and rare classes are seen badly (the report has every class).
- It must not decide where people can come to harm, such as in driving, and was not tested for it.
"""


def text(title: str, classes: ClassSet, nodes: list[Node], groups: list[Group]) -> str:
    """The card, as Markdown, of a run's `nodes` and result `groups` (`group_rows(nodes)`).

    It is of the generator of the headline's first replicate: the task-informed group that the
    report shows. Where none is finished the card says so. Never raises for what is missing.
    """
    found = headline(groups, INFORMED)
    sources = _sources(nodes)
    parts = [f"# {title}: model card", *_data(nodes, classes, sources)]
    if found is None:
        return _joined([*parts, "No task-informed generator is finished in this run yet."])
    member = found.members[0]
    chain = _chain(member.node, nodes)
    parts[1:1] = [_what(member.node, chain)]
    parts += [
        "## Scores",
        _scores(groups, report_text.input_names(nodes), classes),
        "## How it was chosen",
        _choice(found, member.node, groups),
        "## Intended use and limits",
        _LIMITS,
        "## How to load it",
        _loading(member.node),
        "## Licences",
        _licences(sources, chain),
        "## Configuration",
        *(_configuration(node) for node in chain),
    ]
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _chain(evaluated: Node, nodes: list[Node]) -> list[Node]:
    """The stages that lead to the generator, in order: packs, segmenter, gan, finetune."""
    by_name = {node.name: node for node in nodes}
    wanted = {_input(evaluated, "translator")}
    translator = by_name.get(next(iter(wanted)))
    if translator is not None:
        wanted |= {_input(translator, role) for role in _inputs(translator)}
    return [node for node in nodes if node.name in wanted]


def _inputs(node: Node) -> dict[str, Any]:
    found = node.config.get("inputs", {})
    return found if isinstance(found, dict) else {}


def _input(node: Node, role: str) -> str:
    """Name of the node that `node` reads as `role`; '' where its config does not say."""
    return str(_inputs(node).get(role, {}).get("dir", ""))


def _what(evaluated: Node, chain: list[Node]) -> str:
    """What the card is of, in a few lines, with the digests of the weights."""
    files = {"finetune": TRANSLATOR_WEIGHTS, "segmenter": SEGMENTER_WEIGHTS}
    lines = []
    for node in chain:
        if (file := files.get(node.stage)) is not None:
            outputs = (node.done or {}).get("outputs", {})
            digest = outputs.get(file, {}).get("digest", "not recorded")
            lines.append(f"- `{node.name}/{file}`, xxh3-128 {digest}")
    versions = {
        name: (node.done or {}).get("versions", {}).get(name)
        for node in chain
        for name in ("torch", "torchvision")
    }
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        "A generator G_S that translates real photographs into the style of synthetic images, "
        "finetuned with the loss of the frozen segmenter f on a few labelled photographs, and f "
        "itself (Mütze, Rottmann, Gottschalk: A Downstream Task Informed Domain Adaptation GAN for "
        "Semantic Segmentation, arXiv 2208.08815). Scored as "
        f"`{evaluated.name}`.\n\n" + "\n".join(lines) + (f"\n- trained with {made}" if made else "")
    )


def _data(nodes: list[Node], classes: ClassSet, sources: dict[str, str]) -> list[str]:
    """The section on data: every packed split, and the classes."""
    columns = report_tables.data_table(nodes, classes, [])
    lines = ["| data | images | packed at (height × width) |", "|---|---|---|"]
    lines += [f"| {c['title']} | {c['samples']} | {c['size']} |" for c in columns]
    packs = [f"- {name}: {source}" for name, source in sources.items()]
    names = ", ".join(classes.classes)
    return [
        "## Data",
        "\n".join(packs) or "No data set is packed yet.",
        *(["\n".join(lines)] if columns else []),
        f"Class set {classes.name}, {len(classes.classes)} classes: {names}. Pixels of any other "
        "label are ignored.",
    ]


def _sources(nodes: list[Node]) -> dict[str, str]:
    """Name of a pack node -> what it packed: rendered images, a published data set, others."""
    packs = [node for node in nodes if node.stage.startswith("pack_")]
    return {pack.name: _source(pack) for pack in packs}


def _source(pack: Node) -> str:
    if _input(pack, "raw").startswith("render_"):
        return MINICITY
    name, kind = _LAYOUTS[pack.stage]
    # The number of images is what tells the published data set from others in its layout.
    is_other = report_text.holds_other_data(pack, kind)
    return f"other data, in the layout of {name}" if is_other else name


def _scores(groups: list[Group], names: dict[str, str], classes: ClassSet) -> str:
    """mIoU of the group that stands for each method, on each val set."""
    lines = [
        f"mIoU in %, {report_text.convention(classes)}, mean ± standard deviation over n replicates"
        " (seeds and draws of the labelled images); Cityscapes' way of scoring, at the full size of"
        " the ground truth, translated images rounded to 8 bits.",
        "",
        "| images | method | mIoU | n |",
        "|---|---|---|---|",
    ]
    for group in headlines(groups):
        if group.members:
            lines.append(
                f"| {names.get(group.input, group.input)} | {report_text.full_name(group)} | "
                f"{report_text.spread(group.stats)} | {len(group.members)} |"
            )
    return "\n".join(lines)


def _choice(group: Group, evaluated: Node, groups: list[Group]) -> str:
    """What was chosen, on which images; nothing on val."""
    selection = [row for row in evaluated.rows if row["input"] == SELECTION]
    held_out = (
        f"the selection split, labelled images that nothing trains on ({selection[0]['images']})"
        if selection
        else "nothing: this run holds no labelled images out for choices"
    )
    others = sum(len(one.members) for one in groups if one.method == INFORMED and one.input == REAL)
    return (
        "The settings are those with the fewest keys changed from the run config "
        f"({report_text.weights_name(group)}, {group.labels} labelled images), not the best of a "
        "sweep; choices can be made on "
        f"{held_out}, never on val. Of {others} task-informed replicates on val the card is of the "
        f"first at these settings, not of the best; its own mIoU is "
        f"{report_text.percent(group.members[0].miou)} %. Of its training the last checkpoint "
        "counts; none is picked by a score."
    )


def _loading(evaluated: Node) -> str:
    """How to run the networks without this project's code."""
    return (
        "Without any code of this project: write the networks as programs of PyTorch once,\n\n"
        "    python -m tigan.export --run RUN_DIR --programs programs \\\n"
        f"        --evaluate '{evaluated.name}'\n\n"
        "then, anywhere with a PyTorch not older than the one that wrote them:\n\n"
        f"```python\n{LOAD}```\n\n"
        "With this project's code, whole folders:\n\n"
        "    python -m tigan.translate --run RUN_DIR IN_DIR OUT_DIR \\\n"
        f"        --translator '{_input(evaluated, 'translator')}'\n\n"
        f"`{TRANSLATOR_WEIGHTS}` itself is read by `torch.load(path, weights_only=True)`: "
        "`['config']` is the configuration below, `['states']['to_synthetic']` the state dict of "
        "G_S, a `tigan.networks.Generator`."
    )


def _licences(sources: dict[str, str], chain: list[Node]) -> str:
    """What holds for the code, for each data set, and so for the weights."""
    terms = {
        MINICITY: "MiniCity: made by this project, MIT.",
        _LAYOUTS["pack_synthia"][0]: _SYNTHIA,
        _LAYOUTS["pack_cityscapes"][0]: _CITYSCAPES,
    }
    lines = ["- The code is under the MIT licence."]
    for name, source in sources.items():
        other = f"{name}, {source}: the licence they came with counts."
        lines.append(f"- {terms.get(source, other)}")
    for node in chain:
        weights = node.config.get("science", {}).get("segmenter", {}).get("pretrained", "none")
        if node.stage == "segmenter" and weights != "none":
            lines.append("- f started from backbone weights made elsewhere: their licence counts.")
    lines.append(
        "- Weights that were learned from data come under the conditions of those data; whether "
        "and how they may be used or passed on is for you to check."
    )
    return "\n".join(dict.fromkeys(lines))


def _configuration(node: Node) -> str:
    """The frozen science document of a stage."""
    science = dict(node.config.get("science", {}))
    settings = science.get("segmenter")
    if isinstance(settings, dict) and settings.get("pretrained", "none") != "none":
        # A path of the machine it ran on; the file's name says enough.
        name = str(settings["pretrained"]).rpartition("/")[2]
        science["segmenter"] = {**settings, "pretrained": name}
    document = yaml.safe_dump(science, sort_keys=False, allow_unicode=True)
    return f"`{node.name}`:\n\n```yaml\n{document}```"
