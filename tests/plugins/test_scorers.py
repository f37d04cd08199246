"""The bundled scorers: what must hold for any evidence, and what CLIP is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dnd.api import Evidence, Picture, Runtime, Unit, ranked
from dnd_hf.clip import ClipMemory
from dnd_microworld import world
from dnd_scorers.clip import ClipRank, ClipScorerConfig, ImageProduct, combine
from dnd_scorers.coverage import Coverage, CoverageConfig, bounds, coverage, likeness
from dnd_scorers.ranks import MeanActivation, TopKConfig, TopKSquared, topk_squared

WEIGHTS = Path(__file__).parents[2] / "plugins/dnd_microworld/weights/microworld-clip"
RUNTIME = Runtime("cpu", lambda name: WEIGHTS)
tables = st.tuples(st.integers(2, 5), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-20, 20).map(float))
)


def evidence(activations: np.ndarray, images: tuple[tuple[Picture, ...], ...] = (), **parts: object) -> Evidence:
    count = len(activations)
    whole: dict[str, object] = {
        "unit": Unit("concepts", 0),
        "exemplars": (),
        "exemplar_activations": np.zeros(0, np.float32),
        "concepts": tuple(f"concept {i}" for i in range(count)),
        "images": images or ((),) * count,
        "activations": activations,
        "sample": (),
        "sample_activations": np.array([0, 1, 2, 3], np.float32),
    }
    return Evidence(**{**whole, **parts})  # type: ignore[arg-type]


def picture(scene: world.Scene) -> Picture:
    image = Image.fromarray(world.render([scene]).images[0])
    return Picture(repr(scene), lambda: image)


def scenes_with(concept: str, count: int, start: int = 0) -> list[world.Scene]:
    found: list[world.Scene] = []
    while len(found) < count:
        found += [s for s in world.draw_scenes("test", start, 200) if concept in world.concepts(s)]
        start += 200
    return found[:count]


@given(tables, st.integers(1, 8))
def test_topk_squared_follows_the_formula(table, top):
    for row, score in enumerate(topk_squared(table, top)):
        others = np.delete(table, row, axis=0).ravel()
        own = sorted(table[row], reverse=True)[:top]
        rank = [i + (others > v).sum() + (others == v).sum() / 2 for i, v in enumerate(own)]
        assert score == pytest.approx(1 - np.mean(np.square(rank)) / max(1, table.size - 1) ** 2)


@given(tables, st.data())
def test_stronger_images_never_lower_a_candidates_score(table, data):
    row = data.draw(st.integers(0, len(table) - 1))
    better = table.copy()
    better[row] += data.draw(arrays(np.float32, table.shape[1], elements=st.integers(0, 30).map(float)))
    for scorer in (
        TopKSquared(TopKConfig(), RUNTIME),
        MeanActivation(None, RUNTIME),
    ):
        before, after = scorer.score([evidence(table), evidence(better)])
        assert after[row] >= before[row] - 1e-9


@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    for scorer in (
        TopKSquared(TopKConfig(), RUNTIME),
        MeanActivation(None, RUNTIME),
    ):
        straight, shuffled = scorer.score([evidence(table), evidence(table[order])])
        assert shuffled == pytest.approx([straight[i] for i in order])


unit_interval, cosines = st.floats(0, 1), st.floats(-1, 1)


@given(unit_interval, unit_interval, cosines, cosines)
def test_the_combination_rises_with_both_parts(topk, more_topk, product, more_product):
    low = combine(np.array([min(topk, more_topk)]), np.array([min(product, more_product)]))
    high = combine(np.array([max(topk, more_topk)]), np.array([max(product, more_product)]))
    assert high >= low


@given(tables, st.floats(0.1, 100), st.floats(-50, 50))
@settings(max_examples=30)
def test_scores_do_not_change_with_a_units_scale(table, gain, offset):
    sample = np.array([0, 1, 2, 3], np.float32)
    for scorer in (
        TopKSquared(TopKConfig(), RUNTIME),
        MeanActivation(None, RUNTIME),
    ):
        one = evidence(table.astype(np.float64), sample_activations=sample.astype(np.float64))
        other = evidence(table * float(gain) + offset, sample_activations=sample * float(gain) + offset)
        first, second = scorer.score([one, other])
        assert second == pytest.approx(first, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("scorer", [ClipRank, ImageProduct])
def test_a_lone_candidate_costs_no_model(scorer):
    def never(name: str) -> Path:
        raise AssertionError("weights were asked for")

    backend = scorer(ClipScorerConfig(), Runtime("cpu", never))
    assert backend.score([evidence(np.ones((1, 3), np.float32)), evidence(np.ones((0, 3), np.float32))]) == [[1.0], []]


@pytest.fixture(scope="module")
def dots_against_stars() -> Evidence:
    concepts = ("star", "dots", "blue")
    images = tuple(tuple(picture(s) for s in scenes_with(c, 4, 5000)) for c in concepts)
    exemplars = tuple(picture(s) for s in scenes_with("dots", 6))
    activations = np.array([[0.1, 0.0, 0.2, 0.0], [0.9, 0.8, 0.7, 0.9], [0.1, 0.6, 0.0, 0.0]], np.float32)
    return evidence(activations, images, exemplars=exemplars, concepts=concepts)


def test_clip_prefers_what_looks_like_the_exemplars(dots_against_stars):
    for scorer in (ImageProduct, ClipRank):
        with scorer(ClipScorerConfig(model="microworld-clip"), RUNTIME) as backend:
            (scores,) = backend.score([dots_against_stars])
            assert int(np.argmax(scores)) == 1
            assert all(0 <= s <= 1 for s in scores)


def test_a_candidates_strongest_images_are_those_that_are_compared(dots_against_stars):
    star, dots, _ = dots_against_stars.images
    both = evidence(
        np.array([[0.1, 0.9], [0.9, 0.1]], np.float32),
        ((star[0], dots[0]), (star[0], dots[0])),
        exemplars=dots_against_stars.exemplars,
    )
    with ImageProduct(ClipScorerConfig(model="microworld-clip", top=1), RUNTIME) as backend:
        (scores,) = backend.score([both])
        mean = backend.images(both.exemplars).mean(0)
        assert scores == pytest.approx((backend.images([dots[0], star[0]]) @ mean).tolist())
    assert scores[0] > scores[1]


def test_likeness_is_measured_by_the_sample_and_has_an_end():
    found = likeness(np.array([[0.0, 2.0, 0.5, 100.0]]), 2)
    assert np.log(found[0]) == pytest.approx([-1, 1, -0.5, 4])
    assert np.log(likeness(np.array([[0.0, 2.0]]), 0)[0]) == pytest.approx([-1, 1])


def test_each_distinct_image_is_opened_once_within_the_caches_size(dots_against_stars):
    opened: list[str] = []

    def counting(p: Picture) -> Picture:
        def open_() -> Image.Image:
            opened.append(p.digest)
            return p.open()

        return Picture(p.digest, open_)

    pictures = [counting(p) for p in dict.fromkeys(p for row in dots_against_stars.images for p in row)]
    with ImageProduct(ClipScorerConfig(model="microworld-clip", cache=3), RUNTIME) as backend:
        rows = backend.images(pictures + pictures[:2])
        assert len(opened) == len({p.digest for p in pictures})
        assert np.allclose(rows[:2], rows[-2:])
        assert np.allclose(np.linalg.norm(rows, axis=1), 1)
        backend.images(pictures[-3:])
        assert len(opened) == len({p.digest for p in pictures}), "the last three are still known"
        alone = backend.images(pictures[:1])
        assert np.allclose(alone[0], rows[0], atol=1e-5), "an embedding hung on its batch"
    backend.close()
    with pytest.raises(RuntimeError, match="before load"):
        backend.images(pictures[:1])


def test_a_full_memory_forgets_what_was_not_asked_for_longest():
    memory, asked = ClipMemory(2), []

    def embed(keys: list[str]) -> np.ndarray:
        asked.extend(keys)
        return np.array([[float(ord(key))] for key in keys])

    for keys in ("ab", "a", "c", "a", "b"):
        assert memory.get(list(keys), embed)[:, 0].tolist() == [ord(key) for key in keys]
    assert asked == ["a", "b", "c", "b"]


# --- coverage ----------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_coverage_is_a_share_and_the_order_of_candidates_does_not_matter(count, seed, random):
    rng = np.random.default_rng(seed)
    likenesses, activations, weights = rng.random((count, 30)), rng.random(30), rng.random(count)
    scores, _ = coverage(likenesses, activations, weights)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.sum() <= 1 + 1e-9
    order = list(range(count))
    random.shuffle(order)
    shuffled, _ = coverage(likenesses[order], activations, weights[order])
    assert shuffled == pytest.approx(scores[order], abs=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40)
def test_the_best_candidates_score_rises_with_its_drive(seed, less, more):
    rng = np.random.default_rng(seed)
    likenesses, activations = rng.random((1, 30)), rng.random(30)
    low, high = (coverage(likenesses, activations, np.array([w]))[0][0] for w in sorted((less, more)))
    assert high >= low


def test_coverage_docks_the_candidate_that_does_not_drive_the_unit(dots_against_stars):
    order, one = [1, 2, 0], dots_against_stars
    seen = {
        "exemplars": one.exemplars,
        "exemplar_activations": np.full(len(one.exemplars), 5, np.float32),
        "sample": tuple(picture(s) for s in world.draw_scenes("test", 77, 8)),
        "sample_activations": np.arange(8, dtype=np.float32) / 8,
    }
    activations = np.array([[0, 0, 0, 0], [5, 5, 5, 5], [0.5, 0.5, 0.5, 0.5]], np.float32)
    names = tuple(one.concepts[i] for i in order)
    config = CoverageConfig(model="microworld-clip")
    with Coverage(config, RUNTIME) as backend:
        first, second = backend.score(
            [
                evidence(activations, one.images, concepts=one.concepts, **seen),
                evidence(activations[order], tuple(one.images[i] for i in order), concepts=names, **seen),
            ]
        )
    assert [first[i] for i in order] == pytest.approx(second)
    assert first[0] <= config.chance_gain  # its images never drive the unit more than random ones
    assert first[1] > 0


def test_a_candidate_is_seen_on_the_exemplars_that_show_it(clip):
    shown = ("star", "star", "dots", "dots")
    exemplars = tuple(map(picture, (*scenes_with("star", 2), *scenes_with("dots", 2))))
    images = tuple(tuple(map(picture, scenes_with(name, 6, 9000))) for name in ("star", "dots"))
    sample = tuple(map(picture, world.draw_scenes("test", 50_000, 40)))
    one = evidence(
        np.zeros((2, 6), np.float32), images, concepts=("star", "dots"), exemplars=exemplars, sample=sample,
        exemplar_activations=np.ones(4, np.float32), sample_activations=np.zeros(40, np.float32),
    )  # fmt: skip
    (found,) = clip.seen([one])
    for row, concept in zip(found, ("star", "dots"), strict=True):
        assert row[[name == concept for name in shown]].all()
    assert not found[0][2:].all()


def test_a_silent_unit_is_covered_by_nothing():
    assert coverage(np.random.default_rng(0).random((3, 9)), np.ones(9), np.ones(3))[0].tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def clip():
    with Coverage(CoverageConfig(model="microworld-clip"), RUNTIME) as backend:
        yield backend


@pytest.mark.parametrize(
    ("meaning", "candidates"),
    [
        (("dots",), ("red dots", "dots", "purple dots", "purple", "red")),
        (("star",), ("blue star", "cyan star", "star", "dots")),
        (("green",), ("green heart", "green", "green ring", "heart")),
        (("blue square",), ("blue", "square", "blue square", "grid")),
        (("purple dots",), ("dots", "purple", "purple dots", "purple grid")),
        (("dots", "heart"), ("red dots", "blue heart", "dots", "green dots", "heart")),
    ],
)
def test_coverage_names_neither_too_narrow_nor_too_broad(clip, meaning, candidates):
    """A perfect unit of that meaning, and perfect synthetic images: narrow names drive it as well as the right one."""

    def activation(scene: world.Scene) -> float:
        return float(any(m in world.concepts(scene) for m in meaning))

    sample = world.draw_scenes("probing", 0, 256)
    exemplars = [s for m in meaning for s in scenes_with(m, 5)]
    images = [scenes_with(c, 5, 9000) for c in candidates]
    (scores,) = clip.score(
        [
            evidence(
                np.array([[activation(s) for s in row] for row in images], np.float32),
                tuple(tuple(picture(s) for s in row) for row in images),
                concepts=candidates,
                exemplars=tuple(picture(s) for s in exemplars),
                exemplar_activations=np.array([activation(s) for s in exemplars], np.float32),
                sample=tuple(picture(s) for s in sample),
                sample_activations=np.array([activation(s) for s in sample], np.float32),
            )
        ]
    )
    best = sorted(candidates, key=lambda c: -scores[candidates.index(c)])
    assert set(best[: len(meaning)]) == set(meaning), dict(zip(candidates, scores, strict=True))


def test_registering_imports_nothing_heavy():
    heavy = "any(m in sys.modules for m in ('torch', 'transformers'))"
    code = f"import sys, dnd_scorers; dnd_scorers.register_scorers(); sys.exit({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mean_knows_activations_as_large_as_floats_are():
    top = np.finfo(np.float32).max
    given = evidence(np.array([[top, top], [-top, -top]], np.float32), sample_activations=np.array([-top, top]))
    assert MeanActivation(MeanActivation.Config(), RUNTIME).score([given]) == [[pytest.approx(1), pytest.approx(-1)]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whoever_comes_first_by_coverages_bound_and_is_not_open_comes_first(seed: int) -> None:
    """Weights become known one by one; ties, which the cut to the score before makes too, among them."""
    chance = np.random.default_rng(seed)
    n, points, whole = chance.integers(1, 7), chance.integers(4, 9), seed % 2 == 0
    likenesses = chance.integers(0, 3, (n, points)).astype(float) if whole else np.exp(chance.normal(size=(n, points)))
    activations = chance.integers(0, 4, points).astype(float) if whole else chance.normal(size=points)
    weights = chance.integers(1, 5, n) / 4 if seed % 3 else chance.random(n)
    gain = float(chance.choice([0.0, 0.02, 0.2]))
    scores, _ = coverage(likenesses, activations, weights, gain)
    known = np.zeros(n, bool)
    while True:
        most, counts = coverage(likenesses, activations, np.where(known, weights, 1.0), gain)
        found = bounds(most, counts & ~known & (weights < 1))
        first, best = ranked([one.score for one in found])[:3], ranked(scores)
        unsettled = [place for place in first if found[place].open]
        settled = first[: first.index(unsettled[0])] if unsettled else first
        assert best[: len(settled)] == settled
        assert [found[place].score for place in settled] == [scores[place] for place in settled]
        if not unsettled:
            break
        known[unsettled[0]] = True
