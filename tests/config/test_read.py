"""Run files and overrides become one checked Run, or one message that says all that is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd.api import (
    Captioner,
    Config,
    Generator,
    ModelName,
    ProbingFolder,
    ProbingFolders,
    ProbingSet,
    Scorer,
    Summarizer,
    Target,
    model_names,
)
from dnd.config.read import build_run, read_run
from dnd.config.run import HALF, Run
from dnd.config.tables import RUNFILES, parse_setting, read_tables
from dnd.config.units import parse_units, unit_text
from dnd.errors import PluginError, UsageError
from dnd.plugin.registry import KINDS, Entry, Registry


class Words(Config):
    model: ModelName = "words-small"
    spare: ModelName | None = None
    beams: int = 1
    prompt: str | None = None
    rates: tuple[float, ...] = (0.5, 1.0)


class Sampled(Config):
    renamed: ClassVar[Mapping[str, str]] = {"asks": "n_samples"}
    removed: ClassVar[Mapping[str, str]] = {"magic": "it helped nothing"}
    n_samples: int = 8


class Shows(Config):
    folder: ProbingFolder
    probing: ProbingFolders = ()


class Net(Config):
    depth: int = 3


def entry(kind: str, interface: type, name: str, config: type[Config] = Config) -> Entry:
    cls = type(name, (interface,), {"name": name, "Config": config})
    return Entry(kind, name, cls, "test", "1", "ok")


REGISTRY = Registry(
    [
        entry("captioner", Captioner, "words", Words),
        entry("captioner", Captioner, "plain"),
        entry("summarizer", Summarizer, "joiner"),
        entry("summarizer", Summarizer, "sampler", Sampled),
        entry("generator", Generator, "painter"),
        entry("generator", Generator, "shows", Shows),
        entry("scorer", Scorer, "judge"),
        entry("target", Target, "net", Net),
        entry("probing-set", ProbingSet, "world", Net),
        entry("probing-set", ProbingSet, "other"),
        Entry("captioner", "sick", None, "clinic", "3", "broken", "it coughs"),
    ]
)


def tables(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "target": {"name": "net", "layers": ["a.b"], "units": "0-3", "depth": 5},
        "probing": {"set": "world", "depth": 2},
        "captioner": {"backend": "words", "beams": 4},
        "summarizer": {"backend": "joiner"},
        "generator": {"backend": "painter"},
        "scorer": {"backend": "judge"},
    }
    return base | changes


def complaint(**changes: Any) -> str:
    with pytest.raises((UsageError, PluginError)) as caught:
        build_run(tables(**changes), REGISTRY)
    return f"{caught.value} {caught.value.hint}"


def write(path: Path, run: Run) -> Path:
    path.write_text(run.to_toml())
    return path


def test_a_run_holds_validated_settings_and_defaults() -> None:
    run = build_run(tables(seed=7, exemplars={"k": 4, "pooling": "max"}), REGISTRY)
    assert run.target.layers == ("a.b",)
    assert run.target.config == Net(depth=5)
    assert run.captioner.config == Words(beams=4)
    assert [c.name for c in run.probing] == ["world"]
    assert (run.seed, run.exemplars.k, run.exemplars.pooling, run.exemplars.sample) == (7, 4, "max", 256)
    assert (run.concepts.n, run.images.n, run.batch_size) == (5, 10, 64)
    assert model_names(run.captioner.config) == ["words-small"]
    assert model_names(Words(spare="x")) == ["words-small", "x"]
    with pytest.raises(AttributeError):
        run.target = None  # type: ignore[misc, assignment]


@pytest.mark.parametrize("units", ["all", "0-9,12", [3, 1, 2], 5])
@pytest.mark.parametrize(
    "probing", [{"set": "world", "depth": 2}, {"sets": ["world", "other"], "world": {"depth": 9}}, {"set": "tests"}]
)
def test_a_run_reads_back_from_its_own_toml(tmp_path: Path, units: Any, probing: dict[str, Any]) -> None:
    target = {"name": "net", "layers": ["a", "b"], "units": units}
    run = build_run(tables(target=target, probing=probing, device="cpu", images={"n": 3}), REGISTRY)
    assert read_run(write(tmp_path / "run.toml", run), REGISTRY) == run
    assert read_run(tmp_path, REGISTRY) == run  # a run folder stands for its run.toml


@settings(max_examples=40)
@given(
    k=st.integers(1, 99),
    seed=st.integers(-(2**31), 2**31),
    prompt=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    rates=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
)
def test_any_settings_survive_toml(k: int, seed: int, prompt: str | None, rates: list[float]) -> None:
    captioner = {"backend": "words", "rates": rates} | ({} if prompt is None else {"prompt": prompt})
    run = build_run(tables(seed=seed, exemplars={"k": k}, captioner=captioner), REGISTRY)
    assert build_run(tomllib.loads(run.to_toml()), REGISTRY) == run


def test_folders_become_absolute_and_names_win_over_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "world").mkdir()
    monkeypatch.chdir(tmp_path)
    run = build_run(tables(probing={"sets": ["photos", "world", "./world"]}), REGISTRY)
    assert [(c.kind, c.name) for c in run.probing] == [
        ("folder", str(tmp_path / "photos")),
        ("probing-set", "world"),
        ("folder", str(tmp_path / "world")),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"captioner": {"backend": "words", "beam": 4}}, ["captioner.beam: there is no such setting", "'beams'"]),
        ({"captioner": {"backend": "words", "beams": "many"}}, ["captioner.beams: 'many' does not fit", "integer"]),
        ({"captioner": {"backend": "wrods"}}, ["no captioner named 'wrods'", "'words'"]),
        ({"captioner": {"backend": "sick"}}, ["clinic 3", "it coughs"]),
        ({"captioner": {}}, ["captioner.backend: none chosen", "plain, words"]),
        ({"captioner": 3}, ["captioner: a table of settings is wanted, not 3"]),
        ({"captionr": {"backend": "words"}}, ["captionr: there is no such setting", "'captioner'"]),
        ({"sed": 3}, ["sed: there is no such setting", "'seed'"]),
        ({"seed": "x"}, ["seed: 'x' does not fit; wanted: a valid integer"]),
        ({"device": "gpu"}, ["device: 'gpu' does not fit", "wanted: auto, cpu, cuda"]),
        ({"exemplars": {"k": 0}}, ["exemplars.k: 0 does not fit"]),
        ({"exemplars": {"pooling": "median"}}, ["exemplars.pooling", "'mean', 'max', 'top' or 'centre'"]),
        ({"labels": {"min_auc": float("nan")}}, ["labels.min_auc"]),
        ({"target": {"name": "net", "layers": []}}, ["target.layers: name at least one", "`dnd doctor`"]),
        ({"target": {"layers": ["a"]}}, ["target.name: none chosen", "net"]),
        ({"target": {"name": "nat", "layers": ["a"]}}, ["no target named 'nat'", "'net'"]),
        ({"target": {"name": "mine:", "layers": ["a"]}}, ["not of the form module:function"]),
        (
            {"target": {"name": "net", "layers": ["a"], "units": "9-3"}},
            ["target.units: '9-3' runs backwards", "Write 3-9."],
        ),
        ({"target": {"name": "net", "layers": ["a"], "units": [True]}}, ["target.units"]),
        ({"target": {"name": "mine:net", "layers": ["a"], "depth": 3}}, ["target.depth: there is no such setting"]),
        ({"probing": {}}, ["probing.set: choose a folder", "--probe photos/", "other, world"]),
        ({"probing": {"set": "world", "sets": ["other"]}}, ["probing.set: choose a folder"]),
        ({"probing": {"set": "no/where"}}, ["no/where does not exist", "a folder of images"]),
        ({"probing": {"set": "worlds"}}, ["neither a folder nor a probing set named 'worlds'", "'world'"]),
        ({"probing": {"set": "pyproject.toml/"}}, ["is not a folder"]),
        ({"probing": {"sets": ["world", "other"], "depth": 1}}, ["[probing.NAME]"]),
    ],
)
def test_one_problem_is_one_clear_message(changes: dict[str, Any], words: list[str]) -> None:
    text = complaint(**changes)
    assert "things are wrong" not in text
    for word in words:
        assert word in text


def test_a_backend_can_take_the_probing_folder() -> None:
    """Where the run file names no other; `{probing}` is how those of earlier versions say the same."""
    for named in ({}, {"folder": "{probing}"}):
        generator = {"backend": "shows", **named}
        run = build_run(tables(generator=generator, probing={"set": "tests"}), REGISTRY)
        assert run.generator.config.folder == Path("tests").absolute()
        assert "generator.folder: name a folder, as the run has no folder" in complaint(generator=generator)
        missing = complaint(generator=generator, probing={"set": "no/where"})
        assert missing == "probing.set: no/where does not exist Give --probe a folder of images: --probe photos/."
    run = build_run(tables(generator={"backend": "shows", "folder": "docs"}), REGISTRY)
    assert run.generator.config.folder == Path("docs")


def test_units_belong_to_the_layers_that_they_were_chosen_in(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(tomli_w.dumps(tables(target={"name": "net", "layers": ["a"], "units": "0-3"})).encode())

    def units(**options: Any) -> str:
        return read_run(file, REGISTRY, options={f"target.{key}": value for key, value in options.items()}).target.units

    assert units() == "0-3"
    assert units(layers=["a"]) == "0-3"
    assert units(layers=["b"]) == "all"
    assert units(layers=["b"], units="2") == "2"
    assert units(layers=["b"], units="shown") == "shown"


def test_an_unknown_target_may_be_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Built(Config):
        architecture: str

    registry = Registry((*REGISTRY.entries, entry("target", Target, "zoo", Built)))
    with pytest.raises(UsageError) as caught:
        build_run(tables(target={"name": "resnet50", "layers": ["a"]}), registry)
    assert "--target zoo --set target.architecture=resnet50 --set target.weights=FILE" in caught.value.hint
    assert "--target my_models:net" in caught.value.hint


def test_a_folder_that_the_generator_shows_is_probed_by_half() -> None:
    """Whatever else is probed, and by whatever path; a folder that it does not show is probed whole."""
    shows = {"backend": "shows", "folder": "tests/../tests"}
    run = build_run(tables(generator=shows, probing={"sets": ["tests", "./docs"]}), REGISTRY)
    assert [choice.config == HALF for choice in run.probing] == [True, False]
    assert run.generator.config.probing == (Path("tests").absolute(), Path("docs").absolute())
    again = build_run(tomllib.loads(run.to_toml()), REGISTRY)
    assert again == run
    run = build_run(tables(generator={"backend": "shows", "folder": "docs"}, probing={"set": "tests"}), REGISTRY)
    assert [choice.config == HALF for choice in run.probing] == [False]


def test_all_problems_are_told_at_once() -> None:
    text = complaint(captioner={"backend": "wrods"}, images={"n": 0}, sed=1)
    assert text.startswith("3 things are wrong")
    assert "wrods" in text
    assert "images.n" in text
    assert "'seed'" in text


def test_a_function_of_the_users_own_is_a_target() -> None:
    run = build_run(tables(target={"name": "my.models:resnet", "layers": "fc"}), REGISTRY)
    assert (run.target.kind, run.target.name, run.target.layers) == ("function", "my.models:resnet", ("fc",))


def test_a_live_target_needs_no_name_that_is_known() -> None:
    run = build_run(tables(target={"name": "ResNet", "layers": ["fc"]}), REGISTRY, live_target=True)
    assert run.target.kind == "function"


def test_overrides_win_and_a_new_choice_drops_the_old_ones_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", build_run(tables(), REGISTRY))
    kept = read_run(path, REGISTRY, options={"seed": 3}, settings=["captioner.beams=9", "seed=4"])
    assert (kept.seed, kept.captioner.config) == (4, Words(beams=9))
    same = read_run(path, REGISTRY, options={"captioner.backend": "words", "probing.sets": ["world"]})
    assert same.captioner.config == Words(beams=4)
    assert same.probing[0].config == Net(depth=2)
    other = read_run(path, REGISTRY, options={"captioner.backend": "plain", "probing.sets": ["other"]})
    assert other.captioner.config == Config()
    assert other.probing[0].config == Config()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("captioner.num_beams=5", "captioner.num_beams", 5),
        ("a.b = 0.5", "a.b", 0.5),
        ("a.b=true", "a.b", True),
        ("a.b=[1, 2]", "a.b", [1, 2]),
        ("a.b=plain words", "a.b", "plain words"),
        ('a.b="5"', "a.b", "5"),
        ("a.b=x=y", "a.b", "x=y"),
        ("a.b=", "a.b", ""),
        ("a.b=1\nc = 2", "a.b", "1\nc = 2"),
        ("seed=3", "seed", 3),
    ],
)
def test_a_setting_is_a_toml_value_or_text(text: str, key: str, value: Any) -> None:
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=3", ".=1"])
def test_a_setting_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"section\.setting=value"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "n", "found"),
    [("all", 3, [0, 1, 2]), ("0-2,1", 9, [0, 1, 2]), (" 7 , 3-4 ", 8, [3, 4, 7]), ("0", 1, [0])],
)
def test_units_are_parsed(text: str, n: int, found: list[int]) -> None:
    assert parse_units(text, n) == found


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-", "3-1", "1.5", "٣", "1-2-3"])
def test_what_is_no_choice_of_units_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_units(text, 100)


def test_a_unit_out_of_range_says_the_range() -> None:
    with pytest.raises(UsageError, match="no unit 12: the layer has 10, 0 to 9") as caught:
        parse_units("3,8-12", 10)
    assert caught.value.hint == "Choose within 0-9, or all."


@settings(max_examples=40)
@given(st.lists(st.integers(0, 500), min_size=1))
def test_lists_of_units_become_text_and_come_back(units: list[int]) -> None:
    assert parse_units(unit_text(units), 501) == sorted(set(units))


def test_bundled_run_files_are_found_by_name_and_paths_by_path(tmp_path: Path) -> None:
    run = read_run(None, Registry.load())
    assert (run.target.name, run.captioner.name) == ("microworld", "blip2")
    with pytest.raises(UsageError, match="no run file nope") as caught:
        read_run("nope", REGISTRY)
    assert "default" in caught.value.hint
    (tmp_path / "bad.toml").write_text("a = = 3")
    with pytest.raises(UsageError, match="is not TOML"):
        read_run(tmp_path / "bad.toml", REGISTRY)


def test_every_run_file_of_the_package_is_offered() -> None:
    offered = metadata.distribution("dnd-describe").entry_points.select(group=RUNFILES)
    assert {point.name for point in offered} == {path.stem for path in Path("plugins").glob("*/**/*.toml")}
    for point in offered:
        assert set(read_tables(point.name)) >= {"captioner", "summarizer", "generator", "scorer"}


def test_a_target_or_images_of_ones_own_start_from_the_full_run_file() -> None:
    with pytest.raises(UsageError) as caught:
        read_run(None, Registry.load(), options={"probing.sets": ["."]})
    assert "target.name" in str(caught.value)


@pytest.mark.parametrize("name", ["clip-dissect", "milan", "network-dissection"])
def test_a_method_alone_starts_from_the_run_file_of_its_name(name: str) -> None:
    run, named = (read_run(source, Registry.load(), options={"method.name": name}) for source in (None, name))
    assert run == named
    assert run.target.name == "microworld"


def test_kinds_and_sections_agree() -> None:
    from dnd.config.run import BACKENDS

    assert set(KINDS) == {*BACKENDS, "encoder", "target", "probing-set", "method"}


# --- settings of earlier versions --------------------------------------------------------------------


def sampled(tmp_path: Path, *settings: str, text: str = "") -> Run:
    """A run with the summarizer `sampler`, whose file says `text` of it, over one that says n_samples = 8."""
    base = tables(summarizer={"backend": "sampler", "n_samples": 8})
    (tmp_path / "base.toml").write_text(tomli_w.dumps(base))
    (tmp_path / "mine.toml").write_text(f'base = "base.toml"\n[summarizer]\n{text}')
    return read_run(tmp_path / "mine.toml", REGISTRY, settings=settings)


def test_a_renamed_setting_is_read_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = sampled(tmp_path, text="asks = 3\n")
    assert run.summarizer.config == Sampled(n_samples=3)
    assert caplog.messages == ["summarizer.asks is called n_samples now"]
    caplog.clear()
    assert build_run(run.to_dict(), REGISTRY) == run
    assert caplog.messages == []


def test_of_both_names_the_last_one_counts(tmp_path: Path) -> None:
    def n_samples(*settings: str, text: str = "") -> int:
        config = sampled(tmp_path, *settings, text=text).summarizer.config
        assert isinstance(config, Sampled)
        return config.n_samples

    assert n_samples() == 8
    assert n_samples("summarizer.asks=2") == 2
    assert n_samples("summarizer.n_samples=1", text="asks = 3\n") == 1
    assert n_samples("summarizer.n_samples=1", "summarizer.asks=2") == 2


def test_a_removed_setting_is_passed_over_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = sampled(tmp_path, "concepts.clusters=2", "labels.distinct=0.8", text="magic = 1\n")
    assert run == sampled(tmp_path)
    assert caplog.messages[0] == "summarizer.magic is ignored: it helped nothing"
    assert [message.partition(" made")[0] for message in sorted(caplog.messages[1:])] == [
        "concepts.clusters is ignored: groups of exemplars",
        "labels.distinct is ignored: leaving out near-duplicates",
    ]


def test_a_former_name_is_checked_as_the_present_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"summarizer\.n_samples: 'many' does not fit"):
        sampled(tmp_path, text='asks = "many"\n')


def test_the_names_of_earlier_versions_are_known(tmp_path: Path) -> None:
    text = "[exemplars]\npool = 80\n[labels]\nmin_drive = 0.6\n[summarizer]\nasks = 3\nsecond_asks = 1\n"
    (tmp_path / "old.toml").write_text(f'base = "default"\n{text}[scorer]\nenough_drive = 0.85\n')
    run = read_run(tmp_path / "old.toml", Registry.load()).to_dict()
    assert (run["exemplars"]["shortlist"], run["labels"]["min_auc"], run["scorer"]["enough_auc"]) == (80, 0.6, 0.85)
    assert (run["summarizer"]["n_samples"], run["summarizer"]["n_extra_samples"]) == (3, 1)


def test_true_is_no_number_and_no_text() -> None:
    class Some(Config):
        number: float | None = 1.0
        text: str = ""
        either: bool | int = 0

    assert Some(either=True).either is True
    with pytest.raises(ValueError, match="neither true nor false"):
        Some(number=True)
    with pytest.raises(ValueError, match="valid string"):
        Some(text=True)
