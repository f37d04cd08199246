"""A run: every plugin chosen, every setting typed and frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import pydantic

from dnd.api import Config, Unit, model_names
from dnd.api.settings import model_settings
from dnd.config.calibration import Calibration, CalibrationFile, absolute
from dnd.config.layout import parse_layout
from dnd.config.units import unit_ranges
from dnd.errors import UsageError
from dnd.models import ROLES
from dnd.runtime.devices import PATTERN, find_devices

BACKENDS = ("captioner", "summarizer", "generator", "scorer")
"""Sections with a `backend`; each is also a kind of plugin."""


OWN_METHOD = "dnd"
"""The method that is not a plugin."""


def _ranges(units: str) -> list[tuple[int, int]] | None:
    """Of a choice of units of a layer whose size is not known; None for all. UsageError where it is none."""
    return None if units == "all" else list(unit_ranges(units))


class Refine(Config):
    """Of the method refine."""

    rounds: pydantic.PositiveInt = 2
    """In each, further candidates are sought for the exemplars that a unit's label leaves out; fewer where nothing
    improves."""
    units: str = "all"
    """Whose labels are refined, of each layer, as in `target.units`; the others get those of a plain run."""

    @pydantic.field_validator("units")
    @classmethod
    def _is_a_choice(cls, value: str) -> str:
        try:
            _ranges(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value


OWN_METHODS: dict[str, type[Config]] = {OWN_METHOD: Config, "refine": Refine}
"""Methods that the core has itself, with their settings."""


UNUSED = "none"
"""Name of a backend that the run has no use for, whatever the run file says of it."""


_USELESS = "made no label better where it was measured, so it was removed"


class LayerSettings(Config):
    """Of [target]: how the layers are read."""

    layout: str | tuple[str, ...] = ""
    """What each axis of the layers' output holds, "batch tokens units", where it is not read right by itself: batch,
    units, height, width, tokens, other. A list has one for each layer."""
    call: int = -1
    """Which of its runs in a forward pass counts for a module that is used several times: 0 the first, -1 the last."""
    at: Literal["output", "input"] = "output"
    """Whether a module's output is read, or what it is given: heads before their projection, say."""
    output: int | str | None = None
    """Which tensor where it gives (or gets) several: its place among them, from 0, or its name in a dict."""
    tokens: Literal["patches", "class", "all"] | int = "patches"
    """Of a sequence: the patches, with their map; the class token; all of them, pooled; or the one at that place."""
    heads: pydantic.NonNegativeInt = 0
    """With so many attention heads side by side on the axis of the units: each is a unit, its activation the norm."""
    sign: Literal["positive", "negative", "absolute"] = "positive"
    """What counts as activation: high values, low values (what suppresses a unit), or both."""
    directions: str | None = None
    """A safetensors file with a matrix `directions` (n, features) and perhaps a `bias` (n,): unit i is the projection
    of the layer's features on row i."""
    relu: bool = False
    """Cut projections on directions off below zero."""

    sae: str | None = None
    """A sparse autoencoder of the layer, whose latents are the units: as SAELens, ViT-Prisma, saev or overcomplete
    saves it."""

    @pydantic.field_validator("directions", "sae")
    @classmethod
    def _kept(cls, file: str | None) -> str | None:
        return absolute(file) if file else None

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        if sum(map(bool, (self.heads, self.directions, self.sae))) > 1:
            raise ValueError("heads, directions or sae: a layer's units are one of them")
        if self.relu and not self.directions:
            raise ValueError("relu goes with directions")
        return self

    @pydantic.field_validator("layout")
    @classmethod
    def _spelled(cls, layout: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (layout,) if isinstance(layout, str) else layout:
            if text:
                try:
                    parse_layout(text)
                except UsageError as error:
                    raise ValueError(f"{error}. {error.hint}") from error
        return layout

    def of(self, number: int) -> LayerSettings:
        """For one of the layers alone, by its place among them."""
        return self if isinstance(self.layout, str) else self.model_copy(update={"layout": self.layout[number]})


class Exemplars(Config):
    """Step 1: which images stand for a unit."""

    k: pydantic.PositiveInt = 10
    """Exemplars of a unit."""
    pooling: Literal["mean", "max", "top", "centre"] = "mean"
    """From an activation map to one number per image; top is the mean of the highest tenth of its cells, centre the
    cell in the middle."""
    crops: bool = True
    """Add attention crops of the strongest images."""
    max_crops: pydantic.NonNegativeInt = 4
    """Crops per image at most."""
    shortlist: pydantic.NonNegativeInt = 0
    """With more than k: the k exemplars are chosen for diversity among this many strongest images."""
    sample: pydantic.PositiveInt = 256
    """Random probing images that give a unit's baseline activations."""
    renamed: ClassVar[Mapping[str, str]] = {"pool": "shortlist"}


class Concepts(Config):
    n: pydantic.PositiveInt = 5
    """Candidate concepts per unit at most."""
    removed: ClassVar[Mapping[str, str]] = {"clusters": f"groups of exemplars {_USELESS}"}


class Images(Config):
    n: pydantic.PositiveInt = 10
    """Synthetic images per candidate."""
    early_stopping: Literal["off", "exact", "economy"] = "exact"
    """Which images are not made. exact: those that cannot change a unit's labels or their scores, where the scorer can
    say so. economy: those that cannot change the first label, but for a fifth of those of the second and third; where
    the scorer cannot say so, the weaker half of the candidates gets no more after each round. off: none."""


class Labels(Config):
    min_auc: float = pydantic.Field(0.7, ge=0, le=1)
    """AUC that the best candidate must reach, else the unit is uninterpretable: how well the unit's activations tell
    the candidate's images from random probing images, and from the images of other units' labels; 0.5 is chance."""
    min_score: float | None = None
    """What its score must reach besides: depends on the scorer, so there is none unless a run file says so."""
    calibration: str | None = None
    """A file that turns scores into confidences: a path, or package:NAME/FILE."""
    min_confidence: float = pydantic.Field(0.5, ge=0, le=1)
    """With a calibration: how likely a unit's first label must be right, else the unit is uninterpretable."""
    renamed: ClassVar[Mapping[str, str]] = {"min_drive": "min_auc"}
    removed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("encoder", "distinct"), f"leaving out near-duplicates {_USELESS}"
    )

    @pydantic.field_validator("calibration")
    @classmethod
    def _kept(cls, name: str | None) -> str | None:
        return None if name in (None, "", "none") else absolute(name)

    @property
    def calibrated(self) -> Calibration | None:
        """What gives labels their confidence, if the run has it."""
        return CalibrationFile(self.calibration).content if self.calibration else None


class Verify(Config):
    """Of labels, once all units have theirs, as `dnd verify` does it."""

    n: pydantic.NonNegativeInt = 0
    """Images generated for each name that is tested, at least 3; 0: the labels are not verified."""

    @pydantic.field_validator("n")
    @classmethod
    def _enough(cls, n: int) -> int:
        if n in (1, 2):
            raise ValueError("a verdict needs 3 images of a name, or 0 for none")
        return n


class General(Config):
    """Settings outside any section."""

    seed: int = 0
    """Every random choice derives from it."""
    device: str = "auto"
    """auto, cpu, cuda (every GPU), cuda:1, mps, or several of a kind: cuda:0,cuda:1."""
    timeout: pydantic.PositiveFloat | None = None
    """Seconds a backend may take for a batch, if there is to be a limit; loading is not counted. With one, backends
    run in processes of their own, which can be killed: then only the items that took too long fail."""
    executor: Literal["local", "ray"] = "local"
    """Where backends run: on this machine, or on the nodes of a Ray cluster."""
    address: str = "auto"
    """Of the Ray cluster, host:port; auto is the one that runs on this machine."""
    batch_size: pydantic.PositiveInt = 64
    """Images in one forward pass of the target."""
    workers: pydantic.PositiveInt = 4
    """Threads that read and decode images."""

    @pydantic.field_validator("device")
    @classmethod
    def _spelled(cls, device: str) -> str:
        if not re.fullmatch(PATTERN, device):
            raise ValueError("auto, cpu, cuda, cuda:1, mps, or several of a kind: cuda:0,cuda:1")
        return device


@dataclass(frozen=True)
class Choice:
    """A plugin by name with its settings; or a folder of images, or a function of the user's own, without."""

    kind: str
    """A key of `dnd.plugin.registry.KINDS`, or "folder" or "function", which no plugin offers."""
    name: str
    config: Config


class FolderConfig(Config):
    """Of a folder of probing images; no setting of the user's."""

    half: bool = False
    """Only half of the images are probed with: the generator shows the others (`dnd.api.ImageFolder.halves`)."""


HALF = FolderConfig(half=True)


@dataclass(frozen=True)
class TargetChoice(Choice):
    layers: tuple[str, ...] = ()
    units: str = "all"
    """ "all", "shown" or "0-9,12"; see `dnd.config.units.parse_units`."""
    reads: LayerSettings = field(default_factory=LayerSettings)


@dataclass(frozen=True)
class Run:
    """Everything a run depends on besides the content of images and weights."""

    target: TargetChoice
    probing: tuple[Choice, ...]
    captioner: Choice
    summarizer: Choice
    generator: Choice
    scorer: Choice
    method: Choice
    exemplars: Exemplars
    concepts: Concepts
    images: Images
    labels: Labels
    verify: Verify
    general: General

    @property
    def seed(self) -> int:
        return self.general.seed

    @property
    def batch_size(self) -> int:
        return self.general.batch_size

    @property
    def workers(self) -> int:
        return self.general.workers

    @property
    def rounds(self) -> int:
        """Of refinement."""
        return self.method.config.rounds if isinstance(self.method.config, Refine) else 0

    def refines(self, unit: Unit) -> bool:
        """Whether the unit's label is refined."""
        return self._refined is None or any(low <= unit.index <= high for low, high in self._refined)

    @cached_property
    def _refined(self) -> list[tuple[int, int]] | None:
        """The first and the last of some; None for all."""
        return _ranges(self.method.config.units) if isinstance(self.method.config, Refine) else []

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Where the models go; looking imports torch. UsageError where there is no such device."""
        return find_devices(self.general.device)

    @property
    def device(self) -> str:
        """The first of them."""
        return self.devices[0]

    def choices(self) -> dict[str, Choice]:
        """Every plugin with settings, by the section they are in."""
        named = {f"probing.{c.name}" if len(self.probing) > 1 else "probing": c for c in self.probing}
        method = {} if self.method.name in OWN_METHODS else {"method": self.method}
        backends = {s: c for s in BACKENDS if (c := getattr(self, s)) is None or c.name != UNUSED}
        return {"target": self.target, **named, **method, **backends}

    def models(self) -> dict[str, list[str]]:
        """Every model that is named, and the sections that name it."""
        users: dict[str, list[str]] = {}
        for section, choice in self.choices().items():
            for name in model_names(choice.config) if choice is not None else ():
                users.setdefault(name, []).append(section)
        return users

    def model_uses(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """(model, setting that names it, roles that it may have) of each; no roles where any will do."""
        for section, choice in self.choices().items():
            if choice is None:
                continue
            for key in model_settings(type(choice.config)):
                own = (choice.kind,) if choice.kind in ROLES else ()
                if isinstance(name := getattr(choice.config, key), str):
                    yield name, f"{section}.{key}", choice.config.roles.get(key, own)

    def to_dict(self) -> dict[str, Any]:
        """The tables of a run file, every default written out; what is None is left out."""
        target = {"name": self.target.name, "layers": list(self.target.layers), "units": self.target.units}
        probing: dict[str, Any] = {"sets": [choice.name for choice in self.probing]}
        named = [choice for choice in self.probing if choice.kind == "probing-set"]
        for choice in named:
            settings = dump(choice.config)
            probing |= settings if len(named) == 1 or not settings else {choice.name: settings}
        tables: dict[str, Any] = {
            **dump(self.general),
            "target": target | dump(self.target.reads) | dump(self.target.config),
            "probing": probing,
        }
        if self.method.name != OWN_METHOD:
            tables["method"] = {"name": self.method.name, **dump(self.method.config)}
        for section in BACKENDS:
            choice = getattr(self, section)
            if choice.name != UNUSED:
                tables[section] = {"backend": choice.name, **dump(choice.config)}
        return tables | {section: dump(getattr(self, section)) for section in CORE_SECTIONS}

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(self.to_dict())


CORE_SECTIONS: dict[str, type[Config]] = {
    "exemplars": Exemplars,
    "concepts": Concepts,
    "images": Images,
    "labels": Labels,
    "verify": Verify,
}


def dump(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)
