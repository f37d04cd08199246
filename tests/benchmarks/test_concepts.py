"""The sets of captions that a language model names, and how its answers are kept and judged."""

from __future__ import annotations

from pathlib import Path

from benchmarks.concepts.__main__ import candidates_of, figures
from benchmarks.concepts.chats import GridLlama
from benchmarks.concepts.sets import glued, known_words, read_sets
from dnd.api import Runtime
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import concept_messages, simplify_messages

WEIGHTS = Path(__file__).parents[2] / "plugins/dnd_microworld/weights/microworld-llama"
CONFIG = LlamaConfig(model="microworld-llama", n_samples=4, n_extra_samples=2)


def test_every_set_has_ten_captions_and_answers_apart_from_those_with_nothing_in_common() -> None:
    sets = read_sets()
    assert len(sets) == len({one.name for one in sets}) == 37
    assert all(len(set(one.captions)) == 10 for one in sets)
    meanings = {"two meanings": 2, "nothing in common": 0}
    assert all(len(one.answers) == meanings.get(one.kind, 1) for one in sets)
    assert not [one.name for one in sets if any(names & one.near for names in one.answers)]


def test_candidates_are_judged_by_a_persons_answers() -> None:
    sets = {one.name: one for one in read_sets()}
    dogs, two = sets["dogs"], sets["cats-or-cars"]
    assert (dogs.hits(["animal", "Dogs"]), dogs.hits(["animal"])) == (1, 0)
    assert (dogs.is_near(["animals"]), dogs.is_near(["cat"])) == (True, False)
    assert (two.hits(["a cat", "dog"]), two.hits(["car", "kittens"])) == (0.5, 1)
    found = {"dogs": ["animal", "dog", "dogs"], "cats-or-cars": ["car"], "nothing-1": []}
    judged = figures([dogs, two, sets["nothing-1"]], found)
    assert (judged["first"], judged["among"], judged["first_near"], judged["distinct"]) == (0.5, 0.75, 1, 1)


def test_words_without_their_spaces_are_found() -> None:
    known = known_words(read_sets())
    assert glued(["Plain: forest\nNarrow: middle ofaforest", "tree-lined street", "acatona sofa"], known) == [
        "acatona",
        "ofaforest",
    ]


def test_kept_answers_are_the_plugins_own_at_every_temperature(tmp_path: Path) -> None:
    """Whether a batch shares its prompts' head or not; asked once more, no model is needed."""
    captions = ["a red star", "a red ring on a plain blue background", "a red circle"]
    asks = [Ask(concept_messages(captions[:n]), n, t) for n in (1, 2, 3) for t in (0.5, 1.0)]
    asks += [Ask(simplify_messages(caption), 0, 0.0) for caption in captions]
    with LlamaSummarizer(CONFIG, Runtime("cpu", lambda name: WEIGHTS)) as llama:
        expected = llama.answer(asks)
    kept = tmp_path / "kept.jsonl"
    with GridLlama(CONFIG, WEIGHTS, kept, (0.5, 1.0)) as summarizer:
        assert summarizer.answer([*asks[:6:2], *asks[6:]]) == [*expected[:6:2], *expected[6:]]
    assert GridLlama(CONFIG, tmp_path / "nowhere", kept).answer(asks) == expected


def test_a_set_without_a_readable_answer_has_no_candidates(tmp_path: Path) -> None:
    class Silent(GridLlama):
        def answer(self, asks: object) -> list[str]:
            return [""] * len(asks)  # type: ignore[arg-type]

    summarizer = Silent(CONFIG, WEIGHTS, tmp_path / "kept.jsonl")
    assert candidates_of(summarizer, read_sets()[:2]) == {"dogs": [], "clocks": []}
    assert {is_read for _, is_read in summarizer.replies} == {False}
