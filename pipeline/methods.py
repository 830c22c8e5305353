"""The graph's part at one point: which stages each method of the table needs, and their names."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline import paths
from pipeline.hashing import weights_digest
from pipeline.nodes import Builder, PointName
from pipeline.sweep import Point
from tigan.config import (
    AdaptSegNetStage,
    EvaluateStage,
    FinetuneConfig,
    FinetuneSegmenterStage,
    FinetuneStage,
    GanStage,
    Method,
    OracleStage,
    SegmenterStage,
)

# They scale or shape the task loss, which is not there at alpha = 0.
_IDLE_AT_ALPHA_0 = ("finetune.gamma", "finetune.alpha_scales")


class _Used(NamedTuple):
    """What a method's images go through, and the keys that its score hangs on."""

    segmenter: str  # name of a node that makes a segmenter
    translator: str | None  # name of a node that makes a translator
    owners: tuple[str, ...]  # stages, or dotted keys


# Owners of what is made with f, with a translator, with the labels, and with these two.
_F, _G = ("segmenter",), ("segmenter", "gan", "finetune")
_LABELS = ("finetune.labels", "finetune.draw", "finetune.seed")
_ON_LABELS, _BOTH = (*_F, "finetune_segmenter", *_LABELS), (*_G, "finetune_segmenter")


class PointNodes:
    """The nodes of one point, made when a method asks for them."""

    def __init__(self, builder: Builder, point: Point, synthetic: str, real: str) -> None:
        self._builder, self._point = builder, point
        self._packs = {"synthetic": synthetic, "real": real}
        self._shared: dict[str, Any] = {
            "selection_fraction": point.config.selection_fraction,
            "classes": point.config.classes,
        }

    def add_method(self, method: Method) -> None:
        """The evaluation of one method, and all that it needs."""
        config = self._point.config
        if method == "task_informed" and config.finetune.alpha == 0:
            method = "cyclegan_matched"  # a sweep over alpha that includes 0
        used = self._used(method)
        inputs = {**self._packs, "segmenter": used.segmenter}
        if used.translator is not None:
            inputs["translator"] = used.translator
        science = EvaluateStage(method=method, **self._shared)
        label = self._label(*used.owners, prefix=method, control=method == "cyclegan_matched")
        self._builder.add("evaluate", label, science, config, inputs)

    def _used(self, method: Method) -> _Used:
        """One literal line for each method."""
        match method:
            case "source_only":
                return _Used(self._segmenter(), None, _F)
            case "cyclegan":
                return _Used(self._segmenter(), self._gan(), ("segmenter", "gan"))
            case "cyclegan_matched":
                return _Used(self._segmenter(), self._finetune(control=True), _G)
            case "task_informed":
                return _Used(self._segmenter(), self._finetune(), _G)
            case "finetuned_segmenter":
                return _Used(self._finetune_segmenter(None, _ON_LABELS), None, _ON_LABELS)
            case "both":
                translator = self._finetune()
                return _Used(self._finetune_segmenter(translator, _BOTH), translator, _BOTH)
            case "adaptsegnet":
                return _Used(self._adaptsegnet(), None, (*_F, "adaptsegnet"))
            case "oracle":
                return _Used(self._oracle(), None, _F)

    def _segmenter(self) -> str:
        config = self._point.config
        science = SegmenterStage(segmenter=config.segmenter, classes=config.classes)
        inputs = {"synthetic": self._packs["synthetic"]}
        return self._builder.add("segmenter", self._label(*_F), science, config, inputs)

    def _gan(self) -> str:
        config = self._point.config
        science = GanStage(gan=config.gan, selection_fraction=config.selection_fraction)
        return self._builder.add("gan", self._label("gan"), science, config, self._packs)

    def _finetune(self, *, control: bool = False) -> str:
        """The finetuning of the point; as `control` the same at alpha = 0."""
        config = self._point.config
        control = control or config.finetune.alpha == 0
        science = FinetuneStage(
            gan=config.gan,
            finetune=_control(config.finetune) if control else config.finetune,
            **self._shared,
        )
        inputs = {**self._packs, "segmenter": self._segmenter(), "gan": self._gan()}
        label = self._label(*_G, control=control)
        return self._builder.add("finetune", label, science, config, inputs)

    def _finetune_segmenter(self, translator: str | None, owners: tuple[str, ...]) -> str:
        """f trained on with the labels: of the images as they are, or translated."""
        config = self._point.config
        assert config.finetune_segmenter is not None, "RunConfig checks it"
        science = FinetuneSegmenterStage(
            finetune_segmenter=config.finetune_segmenter,
            labels=config.finetune.labels,
            draw=config.finetune.draw,
            seed=config.finetune.seed,
            **self._shared,
        )
        inputs = {"real": self._packs["real"], "segmenter": self._segmenter()}
        if translator is not None:
            inputs["translator"] = translator
        label = self._label(*owners, prefix="real" if translator is None else "translated")
        return self._builder.add("finetune_segmenter", label, science, config, inputs)

    def _adaptsegnet(self) -> str:
        config = self._point.config
        assert config.adaptsegnet is not None, "RunConfig checks it"
        science = AdaptSegNetStage(adaptsegnet=config.adaptsegnet, **self._shared)
        inputs = {**self._packs, "segmenter": self._segmenter()}
        label = self._label(*_F, "adaptsegnet")
        return self._builder.add("adaptsegnet", label, science, config, inputs)

    def _oracle(self) -> str:
        config = self._point.config
        science = OracleStage(segmenter=config.segmenter, **self._shared)
        inputs = {"real": self._packs["real"]}
        return self._builder.add("oracle", self._label(*_F), science, config, inputs)

    def _label(self, *owners: str, prefix: str = "", control: bool = False) -> PointName:
        """A node's point: the changed keys that it hangs on, less those idle at alpha = 0."""
        changed = self._point.changed_in(owners)
        if "finetune" in owners and (control or self._point.config.finetune.alpha == 0):
            changed = {k: v for k, v in changed.items() if k not in _IDLE_AT_ALPHA_0}
            changed["finetune.alpha"] = 0.0
        shown = {key: self._shown(key, value) for key, value in changed.items()}
        return PointName(paths.point_label(shown, prefix), shown)

    def _shown(self, key: str, value: Any) -> Any:
        """A swept value as it stands in names: a file of weights by its contents, not its place."""
        if key != "segmenter.pretrained" or value == "none":
            return value
        path, kept = Path(value), self._builder.kept_weights
        is_gone = str(path) in kept and not path.is_file()
        digest = kept[str(path)] if is_gone else weights_digest(path)
        return f"{path.stem}-{digest[:8]}"


def _control(finetune: FinetuneConfig) -> FinetuneConfig:
    """The matched control: alpha = 0, with the defaults of what has no effect there.

    Else a sweep of gamma would train the same control again and again, and count the copies as
    independent.
    """
    fields = FinetuneConfig.model_fields
    idle = [key.removeprefix("finetune.") for key in _IDLE_AT_ALPHA_0]
    defaults = {name: fields[name].default for name in idle}
    return finetune.model_copy(update={"alpha": 0.0, **defaults})
