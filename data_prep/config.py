"""The strict configuration loader that all three packages use, and the data-prep models.

One YAML document becomes one frozen pydantic model. Every error is a `ConfigError` whose lines
name file, line and key, what was found and what was expected.
"""

import copy
import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

KeyPath = tuple[str | int, ...]
REPO_ROOT = Path(__file__).resolve().parent.parent
CONFIGS = REPO_ROOT / "configs"


class ConfigError(ValueError):
    """A user's configuration is wrong; the message is complete as it stands."""


class StrictModel(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


@dataclass
class Document:
    """A parsed YAML mapping with the place of every key, so that errors can name it."""

    tree: dict[str, Any]
    source: str
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, key: KeyPath) -> str:
        """`file:line` of `key`, or of its nearest parent that stands in the file."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.places:
                return self.places[key[:end]]
        return self.source


# libyaml's parser, where PyYAML was built with it: a sweep reads hundreds of frozen configs.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _CoreLoader(_Parser):
    """PyYAML's safe loader with YAML 1.2 scalars.

    Plain PyYAML follows YAML 1.1: `2e-4` is a string, `24:00:00` a number in base 60, `no` False.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
]:
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )
# An empty value resolves by the empty string, which PyYAML files under ''.
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def _convert(loader: _CoreLoader, node: yaml.Node, key: KeyPath, document: Document) -> Any:
    """Turn a YAML node into plain Python, recording the line of every key."""
    where = f"{document.source}:{node.start_mark.line + 1}"
    document.places.setdefault(key, where)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(loader, item, (*key, i), document) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node)
    result: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = str(name_node.value)
        line = f"{document.source}:{name_node.start_mark.line + 1}"
        if name == "<<":
            raise ConfigError(f"{line}: merge keys ('<<') are not supported; write the keys out")
        if name in result:
            dotted = dotted_key((*key, name))
            first = document.place((*key, name))
            raise ConfigError(f"{line}: {dotted}: the key stands twice (first at {first})")
        document.places[(*key, name)] = line
        result[name] = _convert(loader, value_node, (*key, name), document)
    return result


def _scalar(loader: _CoreLoader, node: yaml.Node) -> Any:
    """The Python value of a scalar node."""
    if node.tag == "tag:yaml.org,2002:int":
        # YAML 1.2: a leading zero is decimal; PyYAML's own constructor would read octal.
        return int(node.value, 0) if "x" in node.value or "o" in node.value else int(node.value)
    return loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]


def parse_yaml(text: str, source: str) -> Document:
    """Parse a YAML mapping; `source` names it in errors. Raises `ConfigError`."""
    document = Document({}, source)
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        tree = {} if node is None else _convert(loader, node, (), document)
        loader.dispose()  # type: ignore[no-untyped-call]
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping of keys, found {type(tree).__name__}")
    document.tree = tree
    return document


def load_yaml(path: Path) -> Document:
    """Read a YAML file. Raises `ConfigError` where it is missing or not valid."""
    try:
        shown = path.relative_to(Path.cwd())
    except ValueError:
        shown = path
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown}: not a text file (UTF-8); expected YAML") from None
    return parse_yaml(text, str(shown))


def named_config(folder: str, name: str) -> Path:
    """`configs/FOLDER/NAME.yaml`; raises `ConfigError` listing the names there are."""
    path = CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml"))
        raise ConfigError(
            f"configs/{folder}: no {name!r} there; there are: {', '.join(names) or 'none'}"
        )
    return path


def set_override(document: Document, assignment: str) -> None:
    """Apply one `--set key.sub=value` to `document`; the value is read as YAML."""
    dotted, equals, text = assignment.partition("=")
    key = tuple(part for part in dotted.strip().split("."))
    if not equals or not all(key):
        raise ConfigError(f"--set {assignment}: expected key=value, such as finetune.alpha=0.5")
    value = parse_yaml(f"value: {text or 'null'}", f"--set {dotted}").tree["value"]
    set_key(document, key, value, f"--set {assignment}")


def set_key(document: Document, key: tuple[str, ...], value: Any, place: str) -> None:
    """Set one nested key; `place` is what errors about it will name."""
    branch = document.tree
    for part in key[:-1]:
        child = branch.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{place}: {part!r} holds {child!r}, not a mapping of keys")
        branch = child
    branch[key[-1]] = value
    document.places = {k: v for k, v in document.places.items() if k[: len(key)] != key}
    document.places[key] = place


def parse_model(model: type[Model], document: Document) -> Model:
    """Validate `document` as `model`. Raises `ConfigError`, one line per wrong key."""
    try:
        return model.model_validate(copy.deepcopy(document.tree))
    except ValidationError as error:
        lines = [_describe(model, document, item) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _describe(model: type[BaseModel], document: Document, error: Mapping[str, Any]) -> str:
    """One line for one pydantic error: place, key, expected, found, what to do."""
    key: KeyPath = error["loc"]
    prefix = f"{document.place(key)}: {dotted_key(key) or 'the whole file'}: "
    if error["type"] == "extra_forbidden":
        valid = sorted(_fields_at(model, key[:-1]))
        near = difflib.get_close_matches(str(key[-1]), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{prefix}unknown key{hint} (valid: {', '.join(valid)})"
    if error["type"] == "missing":
        return f"{prefix}missing; this key must be given"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":  # a cross-field check of ours says all itself
        return f"{prefix}{message}"
    return f"{prefix}{message[:1].lower()}{message[1:]} (found {error['input']!r})"


def _fields_at(model: type[BaseModel], key: KeyPath) -> set[str]:
    """The field names of the model that stands at `key` inside `model`."""
    current: Any = model
    for part in key:
        annotation = (
            current.model_fields[part].annotation
            if isinstance(part, str) and _is_model(current) and part in current.model_fields
            else current
        )
        current = next(iter(_models_in(annotation)), None)
    return set(current.model_fields) if _is_model(current) else set()


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `Model | None` or `dict[str, Model]`."""
    if _is_model(annotation):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [m for part in get_args(annotation) for m in _models_in(part)]
    return []


def dotted_key(key: KeyPath) -> str:
    """`("gan", "batch_size")` as `gan.batch_size`."""
    return ".".join(str(part) for part in key)


class PackConfig(StrictModel):
    """How one source is packed: everything here changes the bytes of the shards."""

    height: int = Field(ge=8, description="rows of the packed images (training resolution)")
    width: int = Field(ge=8, description="columns of the packed images")
    images_per_shard: int = Field(
        default=64, ge=1, description="fixed, so that the bytes do not depend on the ranks"
    )
    val_images: int = Field(
        default=0,
        ge=0,
        description="Synthia only, which has no split of its own: images held out as 'val', "
        "drawn by a fixed seeded permutation",
    )


class MiniCityConfig(StrictModel):
    """The rendered stand-in for both data sets: how many images, how large, which seed."""

    seed: int = Field(default=0, ge=0, description="same seed, same bytes")
    height: int = Field(default=192, ge=32, description="rows of the rendered images")
    width: int = Field(default=256, ge=32, description="columns of the rendered images")
    synthia_images: int = Field(default=680, ge=1, description="Synthia-style images, train + val")
    train_images: int = Field(default=240, ge=1, description="Cityscapes-style train images")
    val_images: int = Field(default=80, ge=1, description="Cityscapes-style val images")


class ClassSet(StrictModel):
    """Which label ids of each source make which class; read from `configs/classes/NAME.yaml`.

    Class c of the network is the c-th entry. A label id that stands nowhere is ignored (255).
    """

    name: str = Field(min_length=1, description="name shown in tables and results.json")
    classes: dict[str, dict[str, list[int]]] = Field(
        description="class name -> source layout ('synthia' | 'cityscapes') -> its label ids"
    )
    colours: dict[str, list[int]] = Field(description="class name -> [R, G, B] for pictures")

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "ClassSet":
        if not 2 <= len(self.classes) <= 254:
            raise ValueError(f"classes: expected 2 to 254 classes, found {len(self.classes)}")
        for source in ("synthia", "cityscapes"):
            seen: dict[int, str] = {}
            for name, ids in self.classes.items():
                for label in ids.get(source, []):
                    if not 0 <= label <= 254:
                        raise ValueError(f"classes.{name}.{source}: id {label} is not in 0..254")
                    if label in seen:
                        raise ValueError(
                            f"classes.{name}.{source}: id {label} already belongs to "
                            f"{seen[label]!r}; give every id to one class only"
                        )
                    seen[label] = name
        for name, ids in self.classes.items():
            unknown = set(ids) - {"synthia", "cityscapes"}
            if unknown:
                raise ValueError(
                    f"classes.{name}: unknown source {sorted(unknown)}; "
                    "expected 'synthia' and 'cityscapes'"
                )
        return self

    @model_validator(mode="after")
    def _every_source_and_colour(self) -> "ClassSet":
        for source in ("synthia", "cityscapes"):
            if not any(ids.get(source) for ids in self.classes.values()):
                raise ValueError(
                    f"classes: none has an id of {source!r}: every pixel of that source would be "
                    f"ignored; give some as classes.NAME.{source}"
                )
        missing = set(self.classes) - set(self.colours)
        if missing:
            raise ValueError(f"colours: no colour for {sorted(missing)}")
        for name, colour in self.colours.items():
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise ValueError(
                    f"colours.{name}: expected [R, G, B] with values 0..255, found {colour}"
                )
        return self


def load_class_set(name: str) -> ClassSet:
    """The class set `configs/classes/NAME.yaml`. Raises `ConfigError`."""
    return parse_model(ClassSet, load_yaml(named_config("classes", name)))
