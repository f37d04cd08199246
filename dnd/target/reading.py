"""How each layer of a target is to be read, found from a few made-up images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from dnd.api import is_device_lost, is_out_of_memory
from dnd.config.layout import Axes, parse_layout
from dnd.config.run import LayerSettings
from dnd.errors import DeviceError, DndError, UsageError
from dnd.runtime.devices import reason_of
from dnd.target.latents import read_directions
from dnd.target.layout import Reading, units_second
from dnd.target.locality import BOXES, EDGES, changed, response, weigh
from dnd.target.replica import Replica, See
from dnd.target.sae import read_sae

_FEW, _MORE = 2, 3
"""Images in two passes: the axis that grows is the batch."""
_EXTRA_TOKENS = (0, 1, 2, 4, 5, 8, 9)
"""Class, distillation and register tokens beside the patches: SigLIP 0, ViT 1, DeiT 2, DINOv3 5, ..."""
_LIKELIER = 0.02
_LAYOUT = "Say what its axes are, as target.layout"

Frame = tuple[int, int]
Shape = tuple[int, ...]


@dataclass
class _Runs:
    """What a layer gave in the forward passes over a few and over some more images."""

    part: torch.nn.Module
    alone: bool
    """Whether it gave that tensor and nothing else."""
    few: list[Shape] = field(default_factory=list)
    more: list[Shape] = field(default_factory=list)


def read_layers(replica: Replica, image: torch.Tensor) -> dict[str, Reading]:
    """The reading of each layer, found on a made-up image (C, H, W). UsageError where one cannot be read."""
    frame = (image.shape[-2], image.shape[-1])
    seen: dict[str, _Runs] = {}
    for count in (_FEW, _MORE):

        def see(name: str, part: torch.nn.Module, output: torch.Tensor, alone: bool, count: int = count) -> None:
            runs = seen.setdefault(name, _Runs(part, alone))
            (runs.few if count == _FEW else runs.more).append(tuple(output.shape))

        first_pass(replica, image.expand(count, *image.shape), see)
    found = {}
    for name, settings in replica.layers.items():
        if name not in seen:
            raise UsageError(f"layer {name} does not run in a forward pass", "Choose one that does.")
        try:
            found[name] = list(_candidates(seen[name], frame, settings))
        except UsageError as error:
            raise UsageError(f"layer {name}: {error}", error.hint) from None
    return {name: _settled(name, reading) for name, reading in _chosen(replica, image, found).items()}


def _settled(name: str, reading: Reading) -> Reading:
    """The reading with its units counted. UsageError where it has not what its settings ask for."""
    heads, which, count = reading.settings.heads, reading.settings.tokens, reading.n_tokens
    if heads and reading.size % heads:
        raise UsageError(f"layer {name}: {reading.size} features do not divide into {heads} heads")
    if which != "patches" and not count:
        raise UsageError(f"layer {name} has no tokens: {reading}", "Set target.tokens for layers of a transformer.")
    if which == "class" and not reading.extra[1]:
        hint = "Give its place: target.tokens = 0 for the first."
        raise UsageError(f"layer {name}: no class token was found among its {count} tokens", hint)
    if isinstance(which, int) and not -count <= which < count:
        raise UsageError(f"layer {name} has no token {which}: its {count} are 0 to {count - 1}")
    latents = None
    if reading.settings.directions:
        latents = read_directions(reading.settings.directions, reading.settings.relu)
    elif reading.settings.sae:
        latents = read_sae(reading.settings.sae)
    if latents is not None:
        if not len(latents):
            raise UsageError(f"layer {name} has no units: {latents.name}")
        if reading.settings.sign == "negative" and latents.activation == "relu":
            raise UsageError(f"layer {name}: the {latents.name} are never below zero", "Leave target.sign out.")
        width = latents.weight.shape[1]
        if width != reading.size:
            raise UsageError(
                f"layer {name} has {reading.size} features, and the {latents.name} have {width}",
                "They must be of this layer: one value for each of its features.",
            )
        return replace(reading, size=len(latents), latents=latents)
    return replace(reading, size=heads) if heads else reading


def first_pass(replica: Replica, batch: torch.Tensor, see: See) -> None:
    with in_words(replica, batch):
        replica.watch(batch, see)


@contextmanager
def in_words(replica: Replica, batch: torch.Tensor) -> Iterator[None]:
    """What the target makes of its first images is told in a sentence, as UsageError."""
    try:
        yield
    except DndError:
        raise
    except Exception as error:
        if is_device_lost(error):
            raise DeviceError(f"the target cannot run: {reason_of(error)}", "Give the command again.") from error
        if is_out_of_memory(error):
            raise UsageError(f"the target does not fit into {replica.device}", "Choose another --device.") from error
        raise UsageError(
            f"the target cannot take what its preprocess gives, {tuple(batch.shape[1:])}: {reason_of(error)}",
            "`module(preprocess(image)[None])` must work, for any number of images: try it in Python.",
        ) from error


# --- which axes hold what ----------------------------------------------------------------------------


def _candidates(seen: _Runs, frame: Frame, settings: LayerSettings) -> Iterator[Reading]:
    """Readings with a map that are to be checked, then the one without; or one alone, which is settled."""
    runs, call, layout = len(seen.few), settings.call, str(settings.layout)
    run = call if call >= 0 else runs + call
    if not 0 <= run < runs or len(seen.more) != runs:
        raise UsageError(f"it runs {runs} times, and there is no run {call}", f"target.call is {-runs} to {runs - 1}.")
    few, more = seen.few[run], seen.more[run]
    options = [parse_layout(layout)] if layout else _axes(seen, few, _batch_axis(few, more), frame, settings.at)
    first: Reading | None = None
    for axes in options:
        sizes = _sizes(axes, few, more)
        pooled = any("other" in words for words in axes)
        plain = Reading(axes, sizes["units"], run=run, runs=runs, settings=settings)
        tokens = sizes.get("tokens", 0)
        plain = replace(plain, note="" if pooled else _note(sizes), n_tokens=tokens)
        first = first or plain
        if pooled:
            continue
        if layout and sizes.get("height", 0) * sizes.get("width", 0) > 1:
            yield replace(plain, grid=(sizes["height"], sizes["width"]), note="")  # as the user says
            return
        yield from _with_maps(replace(plain, note=""), sizes, frame)
    assert first is not None
    yield first


def _note(sizes: Mapping[str, int]) -> str:
    """What to say of a layer's places where they make no map."""
    if "tokens" in sizes:
        return f"its {sizes['tokens']} tokens do not follow places of the image"
    if sizes.get("height", 1) * sizes.get("width", 1) > 1:
        return f"its {sizes['height']}x{sizes['width']} values do not follow places of the image"
    return ""


def likely_axes(part: torch.nn.Module, output: torch.Tensor, alone: bool, rows: int, frame: Frame) -> Axes:
    """What the axes of a layer's output for `rows` images hold, where nothing else is known of it."""
    batch = output.shape.index(rows) if rows in output.shape else 0
    return _axes(_Runs(part, alone), tuple(output.shape), batch, frame)[0]


def _batch_axis(few: Shape, more: Shape) -> int:
    """The axis that is as long as there are images."""
    grown = [axis for axis, (a, b) in enumerate(zip(few, more, strict=False)) if a != b]
    if len(few) != len(more) or len(grown) != 1:
        raise UsageError(
            f"it gives {few} for {_FEW} images and {more} for {_MORE}",
            "Choose a layer that keeps images apart: the block around it, say.",
        )
    axis = grown[0]
    if (few[axis], more[axis]) == (_FEW, _MORE):
        return axis
    words = ["tokens" if len(few) == 3 else "other"] * len(few)
    words[-1], words[axis] = "units", "(batch other)"
    raise UsageError(
        f"it gives {few[axis]} rows for {_FEW} images",
        "Choose a layer that keeps images apart: the block around it, say. Or, where the rows of each image lie "
        f'together, set target.layout = "{" ".join(words)}".',
    )


def _axes(seen: _Runs, shape: Shape, batch: int, frame: Frame, at: str = "output") -> list[Axes]:
    """What the axes may hold, the likeliest first."""
    rest = [axis for axis in range(len(shape)) if axis != batch]
    if not rest:
        raise UsageError(
            f"its output has shape {shape}; units need (B, C, H, W), (B, N, C) or (B, C)",
            "Choose the layer before or after it.",
        )
    stated = stated_axis(seen.part, shape, batch, at) if seen.alone else None
    if stated is None and len(shape) > 4:
        words = ["other"] * len(shape)
        words[batch], words[rest[0]] = "batch", "units"
        hint = f'{_LAYOUT} = "{" ".join(words)}" does. Or choose the layer before or after it.'
        raise UsageError(f"its output has shape {shape}, and it is not known which axis holds the units", hint)
    likely = (rest[0], rest[-1]) if len(shape) == 4 else (rest[-1], rest[0]) if len(shape) == 3 else (rest[-1],)
    options = [_named(shape, batch, axis) for axis in (likely if stated is None else (stated,))]
    if len(options) == 2 and not _could_tile(options[0], shape, frame) and _could_tile(options[1], shape, frame):
        options.reverse()
    return options


def stated_axis(part: torch.nn.Module, shape: Shape, batch: int = 0, at: str = "output") -> int | None:
    """The axis of an output, or input, that is as wide as its module says; None where it says nothing of it.

    Channels come second in what convolves or normalizes channels, last in what works on features.
    """
    last = len(shape) - 1
    if last < 2:
        return None
    side = "in" if at == "input" else "out"
    widths = (f"{side}_channels", 1), ("num_features", 1), ("num_channels", 1), (f"{side}_features", last)
    for attribute, axis in widths:
        if axis != batch and getattr(part, attribute, None) == shape[axis]:
            return axis
    normalized = getattr(part, "normalized_shape", None)
    if not isinstance(normalized, tuple) or len(normalized) != 1:
        return None
    here = [axis for axis in (1, last) if axis != batch and shape[axis] == normalized[0]]
    if len(here) == 2:
        return 1 if type(part).__name__.endswith("2d") else last  # norms of channels, as timm names them
    return here[0] if here else None


def _named(shape: Shape, batch: int, units: int) -> Axes:
    words = ["other"] * len(shape)
    places = [axis for axis in range(len(shape)) if axis not in (batch, units)]
    for axis, word in zip(places, {1: ("tokens",), 2: ("height", "width")}.get(len(places), ()), strict=False):
        words[axis] = word
    words[batch], words[units] = "batch", "units"
    return tuple((word,) for word in words)


def _could_tile(axes: Axes, shape: Shape, frame: Frame) -> bool:
    places = [shape[axis] for axis, words in enumerate(axes) if words[0] in ("height", "width")]
    return len(places) == 2 and _has_aspect(places[0], places[1], frame)


def _sizes(axes: Axes, few: Shape, more: Shape) -> dict[str, int]:
    """The length of each named axis. UsageError where `axes` do not fit the shapes."""
    layout = " ".join(f"({' '.join(axis)})" if len(axis) > 1 else axis[0] for axis in axes)
    if len(axes) != len(few):
        raise UsageError(f"its output has {len(few)} axes, {few}, and target.layout {len(axes)}: {layout}")
    for axis, words in enumerate(axes):
        for shape, images in ((few, _FEW), (more, _MORE)):
            fits = shape[axis] % images == 0 if len(words) > 1 else shape[axis] == images
            if "batch" in words and not fits:
                raise UsageError(
                    f"its output is {shape} for {images} images: axis {axis} is not the batch of {layout!r}",
                    "The axis that grows with the number of images is the batch.",
                )
    return {words[0]: few[axis] for axis, words in enumerate(axes) if len(words) == 1}


# --- maps --------------------------------------------------------------------------------------------


def _with_maps(plain: Reading, sizes: Mapping[str, int], frame: Frame) -> Iterator[Reading]:
    """The maps that a layer's places might be."""
    if "height" in sizes:
        grid = sizes["height"], sizes["width"]
        if grid != (1, 1) and _has_aspect(*grid, frame):
            yield replace(plain, grid=grid)
    fit = token_grid(sizes["tokens"], frame) if "tokens" in sizes else None
    if fit is not None and fit[1:] != (1, 1):
        extra, rows, columns = fit
        patches = rows * columns
        for start in dict.fromkeys((0, patches, patches // 2)) if extra else (0,):
            yield replace(plain, grid=(rows, columns), extra=(start, extra))


@lru_cache
def token_grid(tokens: int, frame: Frame) -> tuple[int, int, int] | None:
    """(extra tokens, grid height, grid width) of a sequence over an input of (H, W); None if nothing fits.

    First square patches that tile the input exactly, then any grid of its aspect; the fewest extra tokens win.
    """
    height, width = frame
    fits = [
        (extra, rows, (tokens - extra) // rows)
        for extra in _EXTRA_TOKENS
        for rows in range(1, tokens - extra + 1)
        if (tokens - extra) % rows == 0 and _has_aspect(rows, (tokens - extra) // rows, frame)
    ]
    tiles = [g for g in fits if height % g[1] == 0 and width % g[2] == 0 and height * g[2] == width * g[1]]
    return next(iter(tiles + fits), None)


def _has_aspect(rows: int, columns: int, frame: Frame) -> bool:
    """Whether a grid could come from square steps over the frame, sides rounded."""
    height, width = frame
    return rows <= height and columns <= width and abs(columns * height - rows * width) < max(height, width)


# --- which of them follow the image ------------------------------------------------------------------


def _chosen(replica: Replica, image: torch.Tensor, found: Mapping[str, Sequence[Reading]]) -> dict[str, Reading]:
    """Of each layer the reading whose map follows the image best, or else the last, which has none."""
    doubtful = {name: readings[:-1] for name, readings in found.items() if len(readings) > 1}
    chosen = {name: readings[-1] for name, readings in found.items()}
    if not doubtful:
        return chosen
    moved, middles = _responses(replica, image, doubtful)
    for name, readings in doubtful.items():
        found_out = [weigh(_cells(one, moved[name, one.axes]), middles) for one in readings]
        local = [at for at, evidence in enumerate(found_out) if evidence.follows]
        if local:
            # Of two that are as near the likelier one: a token more or less in front hardly shows on a fine grid.
            chosen[name] = readings[min(local, key=lambda at: found_out[at].distance + _LIKELIER * at)]
        elif found_out[0].undecided:
            chosen[name] = _undecided(replica, image, name, readings[0], chosen[name])
    return chosen


def _undecided(replica: Replica, image: torch.Tensor, name: str, likely: Reading, without: Reading) -> Reading:
    """Of a layer whose cells all move alike: channels over a grid are taken for a map; tokens where they are those of
    a module around the layer whose map follows the image, as in attention."""
    if "tokens" not in (word for axis in likely.axes for word in axis):
        return replace(likely, note="by its shape alone: a change of the image shows at no place")
    for at in range(len(name) - 1, 0, -1):
        if name[at] != ".":
            continue
        around = name[:at]
        try:
            with Replica(replica.module, replica.device, {around: LayerSettings()}) as outer:
                found = read_layers(outer, image)[around]
        except UsageError:
            continue
        if found.grid and found.n_tokens == likely.n_tokens:
            return replace(likely, grid=found.grid, extra=found.extra)
    return without


def _responses(
    replica: Replica, image: torch.Tensor, doubtful: Mapping[str, Sequence[Reading]]
) -> tuple[dict[tuple[str, Axes], torch.Tensor], torch.Tensor]:
    """How much each place of the layers moves with each box, (n_boxes, ...) as in `units_second`, and the boxes'
    middles (n_boxes, 2)."""
    parts: dict[tuple[str, Axes], list[torch.Tensor]] = {}
    middles = []
    for edge in EDGES:
        batch, places = changed(image, edge)
        runs: Counter[str] = Counter()

        def see(name: str, part: torch.nn.Module, output: torch.Tensor, alone: bool, runs: Counter[str] = runs) -> None:
            readings = doubtful.get(name, ())
            for axes in {one.axes for one in readings if one.run == runs[name]}:
                parts.setdefault((name, axes), []).append(response(units_second(output, axes, BOXES + 1)))
            runs[name] += 1

        first_pass(replica, batch, see)
        middles.append(places)
    return {key: torch.cat(values) for key, values in parts.items()}, torch.cat(middles)


def _cells(reading: Reading, moved: torch.Tensor) -> torch.Tensor:
    """Places of a layer as the cells of its map, (n, h, w)."""
    return reading.on_grid(moved[:, None])[:, 0]
