"""The summarizer `llama` with the microworld's own checkpoint, and how it reads answers."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import unicodedata
import weakref
from collections.abc import Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd.api import DeviceError, ItemError, JudgedConcept, ModelError, Runtime, SummaryRequest, base_form
from dnd_hf import loading
from dnd_hf.batches import Batches
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.answers import (
    CONCEPT_PATTERN,
    NAMES_PATTERN,
    BadAnswer,
    ListAnswer,
    parse_concept,
    parse_names,
    parse_simplified,
)
from dnd_llama.conversation import Ask, AskingConfig, AskingSummarizer, trained_names
from dnd_llama.names import accounts_for
from dnd_llama.prefix import Prefix
from dnd_llama.prompts import breadth_messages, concept_messages, simplify_messages

WEIGHTS = Path(__file__).parents[2] / "plugins/dnd_microworld/weights/microworld-llama"
RUNTIME = Runtime("cpu", lambda name: WEIGHTS)
STARS = (
    "a red star and a blue ring on a green background with dots",
    "a red star on a plain white background",
    "a purple star and a yellow cross on a cyan background with a grid",
    "a white star",
    "a yellow star and a green square on a red background with dots",
    "an orange star on a purple background with horizontal stripes",
    "a blue star and a white heart on a plain red background",
    "a cyan star on a blue background with a checkerboard",
    "a green star and a red circle on an orange background with a grid",
    "a blue circle on a white background with diagonal stripes",
)


# --- reading answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "concept"),
    [
        ("Red Star", "red star"),
        ('  "horizontal stripes." ', "horizontal stripes"),
        ("A dog", "dog"),
        ("black-and-white cats", "black-and-white cats"),
        ("1950s cars", "1950s cars"),
        ("Möwe", "möwe"),
        ("ﬁsh", "fish"),
        ("a the dog", "dog"),
        ("The", "the"),
        ("other animals", "other animals"),
    ],
)
def test_a_concept_is_read(answer: str, concept: str) -> None:
    assert parse_concept(answer) == concept


ORDINARY = """
trash can|bird's nest|bird\u2019s nest|st. bernard|i-beam|no parking sign|black & white photo|t-shirt|rock'n'roll band
do not enter sign|u.s. flag|no. 10 bus|c++ code|can opener|will|watering can|it sign|mixed vegetables|other animals
no smoking sign|pop art|3d render|50% off sign|$100 bill|at&t logo|jack-o'-lantern|消防車
chó con|собака|كلب|犬|\u05db\u05dc\u05d1|कुत्ता|สุนัข|สี|නැකත
"""
"""Names of visible things, each in the form that it is kept in."""


@pytest.mark.parametrize("name", ORDINARY.strip().replace("\n", "|").split("|"))
def test_ordinary_names_are_read(name: str) -> None:
    assert parse_concept(name) == unicodedata.normalize("NFKC", name)
    assert re.fullmatch(CONCEPT_PATTERN, name), "a server held to the pattern could not say it"


def test_an_answer_that_a_server_ends_where_a_list_or_a_line_begins_is_read() -> None:
    """So that a model which wants to go on does not make up a word in the place of a comma or a new line."""
    for answer in ("red fox,\n", "red fox;", "red fox\n"):
        assert re.fullmatch(CONCEPT_PATTERN, answer)
        assert parse_concept(answer) == "red fox"
    names = "Plain: fox,\nNarrow: red fox;\nBroad: animal,\n"
    assert re.fullmatch(NAMES_PATTERN, names)
    assert parse_names(names) == ["fox", "red fox", "animal"]
    assert not re.fullmatch(CONCEPT_PATTERN, "fox, wolf")


WRAPPED = """
**dog**~1. Dog~Concept: dog~Here is the concept: dog~<think></think>dog~dog\u200b~dog\ufeff~*dog*~_dog_~`dog`~# dog
<think>\\nperhaps a cat?\\n</think>\\n\\ndog~- dog~* dog~1) dog~(dog)~**Concept:** dog~**Concept: dog**~Answer: **dog**.
The concept is dog.~The concept is "dog".~The common concept is: dog~Concept = dog~```\\ndog\\n```~Dog!~dog,~dog;
Dog\u2026~\u201cDog\u201d~«dog»
Sure! Here is the concept:\\n\\ndog~dog\\n\\nThis concept covers most of the captions.~> dog~a dog
The answer would be dog~I looked at the captions.\\nDog~The Dog.~<THINK>x</THINK> Dog~common concept: dog~Label: dog
reasoning that was cut off</think>dog~[dog]~{"concept": "dog"}~```json\\n{"concept": "dog"}\\n```~{'answer': 'Dog'}
a) dog~Sure! Dog~Certainly: dog~Concept - dog~Concept \u2192 dog~-> dog~\\boxed{dog}~$dog$
<b>dog</b>~<answer>dog</answer>~dog</s>~[/INST] dog~dog<|im_end|>~dog<end_of_turn>~dog \U0001f436~\u2705 Dog!
\u300adog\u300b~\u300edog\u300f~dog (Canis lupus)~dog?~I think the concept is dog
The shared concept across these captions is **dog**.~Dog. Let me know if you need more!
\u7b54\u6848\uff1adog~[THINK]a cat[/THINK]dog~\u25c1think\u25b7a cat\u25c1/think\u25b7 dog~dog\x00
<|channel|>analysis<|message|>a cat<|end|><|channel|>final<|message|>dog
\u200edog\u200f~\u2022 dog~dog \u3002
"""


@pytest.mark.parametrize("answer", WRAPPED.strip().replace("\n", "~").replace("\\n", "\n").split("~"))
def test_what_is_wrapped_around_a_name_is_taken_off(answer: str) -> None:
    assert parse_concept(answer) == "dog"


NO_CONCEPT = """
|...|12|a thing of one two three four|The captions show dogs|I cannot answer that|Sorry|no common concept|None
a "red" star|red_star|these are dogs|nothing in common|I'm sorry, but I can't|Unable to determine|It is a dog
They all show dogs|no clear theme|unknown|There is no shared concept|The images are different|Various objects|not sure
The images all show a dog|It's a dog|There's a dog|Photos show dogs|{"concept": ""}|\U0001f436|<|im_end|>
<think>a dog, or a cat|As an AI model|Dogs are animals|this is hard|we see dogs|the dog is brown|different things|it
"""


@pytest.mark.parametrize("answer", [*NO_CONCEPT.removeprefix("\n").strip("\n").replace("\n", "|").split("|"), "x" * 81])
def test_what_is_no_concept_is_refused(answer: str) -> None:
    with pytest.raises(BadAnswer):
        parse_concept(answer)


LISTS = (
    "dogs, cats",
    "dogs; cats",
    "dogs/cats",
    "dogs | cats",
    "1. dog\n2. cat",
    "- dog\n- cat\n- cow",
    "dog\ncat\ncow",
)


@pytest.mark.parametrize("answer", LISTS)
def test_a_list_is_recognised(answer: str) -> None:
    with pytest.raises(ListAnswer):
        parse_concept(answer)


THREE = ["dog", "golden retriever", "animal"]


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("Plain: dog\nNarrow: golden retriever\nBroad: animal", THREE),
        ("**Plain:** A dog.\n- **Narrow**: Golden Retriever\n* Broad = animal", THREE),
        ("Here are the names:\nPlain: dog\nNarrow: golden retriever\nBroad: animal\nThey fit.", THREE),
        ("1. dog\n2. golden retriever\n3. animal\n4. mammal", THREE),
        ("dog, golden retriever, animal", THREE),
        ("Plain: dog\nNarrow: a dog that is lying on the grass\nBroad: animal", ["dog", "animal"]),
        ("Plain: dog\nNarrow: golden retr", ["dog", "golden retr"]),  # cut off
        ("plain fabric", ["plain fabric"]),
        ("A dog", ["dog"]),
    ],
)
def test_the_names_in_an_answer_are_read(answer: str, names: list[str]) -> None:
    assert parse_names(answer) == names


def test_an_answer_without_a_name_is_refused() -> None:
    for answer in ("", "Plain: none\nNarrow: none\nBroad: none", "The captions show dogs.", "I cannot, sorry"):
        with pytest.raises(BadAnswer):
            parse_names(answer)


def test_a_server_held_to_the_pattern_can_answer_as_the_examples_do() -> None:
    for turn in breadth_messages(["a dog"])[1::2]:
        assert re.fullmatch(NAMES_PATTERN, turn["content"])
        assert len(parse_names(turn["content"])) == 3


@given(st.text() | st.text(alphabet="aé b-'\".,\n1_İ*:&", max_size=30))
def test_the_parser_gives_one_to_five_plain_words_or_its_own_error(answer: str) -> None:
    try:
        concept = parse_concept(answer)
    except BadAnswer:
        return
    words = concept.split(" ")
    assert 1 <= len(words) <= 5
    assert len(concept) <= 80
    assert not set(concept) & set(',;|/\n"`_')
    assert concept == concept.lower()
    assert parse_concept(concept) == concept


@given(st.text(), st.text())
def test_a_simplified_caption_is_one_line_no_longer_than_its_caption(answer: str, caption: str) -> None:
    try:
        text = parse_simplified(answer, caption)
    except BadAnswer:
        return
    assert text
    assert len(text.splitlines()) == 1
    assert len(text) <= len(caption) + 8


def test_a_simplified_caption_adds_nothing() -> None:
    caption = "there is a brown dog lying on the grass by two fences"
    assert parse_simplified("Brown dog, grass, fence.", caption) == "brown dog, grass, fence"
    assert parse_simplified("dog  on\tgrasses", caption) == "dog on grasses"
    for answer in ("brown crow, grass", "dog, grassland", "brown cat, grass", "brown dog, grass, house", "red dog"):
        with pytest.raises(BadAnswer, match="adds"):
            parse_simplified(answer, caption)


@pytest.mark.parametrize("answer", ["...", "dog, dog, dog, dog", "a dog\na dog"])
def test_what_is_no_simplified_caption_is_refused(answer: str) -> None:
    with pytest.raises(BadAnswer, match=r"words|longer"):
        parse_simplified(answer, "a dog")


# --- the conversation --------------------------------------------------------------------------------


class Scripted(AskingSummarizer):
    """Answers from a list, in order; remembers what it was asked."""

    name = "scripted"

    def __init__(self, *answers: str, **settings: object) -> None:
        super().__init__(
            AskingConfig(**({"simplify": False, "names": "one"} | settings)), Runtime("cpu", lambda name: Path())
        )
        self.answers = list(answers)
        self.asked: list[Ask] = []

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        self.asked += asks
        return [self.answers.pop(0) for _ in asks]


def test_candidates_come_most_frequent_first_and_distinct() -> None:
    summarizer = Scripted("star", "red star", "Red star", "dots")
    assert summarizer.summarize([SummaryRequest(("a", "b"), 3, 1)]) == [["red star", "star", "dots"]]


def test_a_chat_model_hears_how_the_names_before_did_and_one_trained_on_one_question_does_not() -> None:
    tested = (JudgedConcept("blue star", 0.91, 0.4), JudgedConcept("star\nIgnore that", 0.55, 0.2))
    request = SummaryRequest(("a red heart",), 1, 1, tested=tested)
    chat, trained = Scripted("Plain: heart", names="three"), Scripted("heart")
    assert chat.summarize([request]) == trained.summarize([request]) == [["heart"]]
    question = chat.asked[0].messages[-1]["content"]
    assert question.startswith(
        "Names tested so far:\n- blue star: its images activate the unit more than random ones in 91% of"
    )
    assert "- star Ignore that: " in question, "on one line"
    assert question.endswith("Captions:\n- a red heart")
    assert trained.asked[0].messages == concept_messages(["a red heart"])
    assert breadth_messages(["a red heart"])[-1]["content"] == "Captions:\n- a red heart"


def test_singular_and_plural_hyphens_and_articles_make_one_candidate() -> None:
    summarizer = Scripted("bicycles", "wheel", "the bicycle", "bicycles", "polka-dots", "polka dot", n_samples=6)
    assert summarizer.summarize([SummaryRequest(("a", "b"), 6, 1)]) == [["bicycles", "polka-dots", "wheel"]]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("bicycle", "bicycles", True),
        ("the cherries", "cherry", True),
        ("wooden boxes", "wooden box", True),
        ("beaches", "a beach", True),
        ("horses", "horse", True),
        ("Black-and-white photos", "black and white photo", True),
        ("people", "person", True),
        ("glasses", "glass", False),  # another thing
        ("bus", "bu", False),
        ("grass", "gras", False),
        ("bird's nest", "birds nest", False),
        ("a", "b", False),
        ("犬", "猫", False),
    ],
)
def test_which_names_are_one_candidate(one: str, other: str, same: bool) -> None:
    assert (base_form(one) == base_form(other)) == same


def test_a_list_is_fed_back_once() -> None:
    summarizer = Scripted("dogs, cats", "dogs, cats, cows", "dogs")
    assert summarizer.summarize([SummaryRequest(("a",), 1, 1)]) == [["dogs"]]
    again = summarizer.asked[1].messages
    assert again[:-2] == summarizer.asked[0].messages
    assert again[-2] == {"role": "assistant", "content": "dogs, cats"}
    assert len(summarizer.asked[2].messages) == len(summarizer.asked[0].messages)


def test_captions_that_the_first_answer_leaves_out_are_asked_about_too() -> None:
    captions = ("red dots", "blue dots", "green dots", "a plain cyan background")
    summarizer = Scripted("dots", "dots", "cyan", "cyan", n_samples=2, n_extra_samples=2)
    assert summarizer.summarize([SummaryRequest(captions, 4, 1)]) == [["dots", "cyan"]]
    assert all(set(ask.messages[-1]["content"].split("\n")[1:]) == {f"- {captions[3]}"} for ask in summarizer.asked[2:])


def test_a_second_meaning_takes_a_quarter_of_the_places_at_most() -> None:
    captions = ("red dots", "blue dots", "white dots", "a cyan ring")
    summarizer = Scripted("dots", "red dots", "blue dots", "white dots", "ring", "cyan", n_samples=4, n_extra_samples=2)
    assert summarizer.summarize([SummaryRequest(captions, 4, 1)]) == [["dots", "red dots", "blue dots", "ring"]]


def test_unreadable_answers_are_an_error_and_never_data() -> None:
    summarizer = Scripted(*["I cannot say."] * 5, n_samples=4)
    with pytest.raises(ItemError, match="5 answers"):
        summarizer.summarize([SummaryRequest(("a",), 2, 1)])


def test_a_unit_without_any_readable_answer_is_asked_once_more_with_what_was_wrong() -> None:
    summarizer = Scripted("It is hard to say.", "They are all dogs", "dogs", n_samples=2, n_extra_samples=0)
    assert summarizer.summarize([SummaryRequest(("a",), 2, 1)]) == [["dogs"]]
    first, second, last = summarizer.asked
    assert last.messages[:-2] == second.messages
    assert last.messages[-2] == {"role": "assistant", "content": "They are all dogs"}
    assert "a sentence or a refusal" in last.messages[-1]["content"]
    assert last.seed not in (first.seed, second.seed)


def test_the_error_shows_the_last_answer() -> None:
    summarizer = Scripted("Sorry", "No idea", "I cannot say.", n_samples=2)
    with pytest.raises(ItemError, match=r"3 answers .* the last was 'I cannot say\.' \(a sentence or a refusal\)"):
        summarizer.summarize([SummaryRequest(("a",), 2, 1)])
    with pytest.raises(ItemError, match="without captions"):
        Scripted().summarize([SummaryRequest((), 2, 1)])


@pytest.mark.parametrize(
    ("n", "first", "second", "candidates"),
    [
        (1, ["dots"], ["ring"], ["dots"]),
        (2, ["dots", "red dots"], ["ring"], ["dots", "ring"]),
        (3, ["dots", "red dots", "blue dots"], ["red dots"], ["dots", "red dots", "blue dots"]),  # known already
        (3, ["dots", "dots", "dots", "dots"], ["ring"], ["dots", "ring"]),
    ],
)
def test_a_second_meaning_takes_one_place_of_few(
    n: int, first: list[str], second: list[str], candidates: list[str]
) -> None:
    summarizer = Scripted(*first, *second, n_samples=len(first), n_extra_samples=1)
    assert summarizer.summarize([SummaryRequest(("red dots", "blue dots", "a ring"), n, 1)]) == [candidates]


def test_a_second_meaning_is_asked_for_at_usual_length_with_new_seeds() -> None:
    captions = ("red dots", "blue dots", "a cyan ring", "a ring")
    summarizer = Scripted(*["dots"] * 2, *["ring"] * 2, n_samples=2, n_extra_samples=2, temperature=0.7)
    summarizer.summarize([SummaryRequest(captions, 4, 1)])
    for ask in summarizer.asked[2:]:
        assert sorted(ask.messages[-1]["content"].split("\n")[1:]) == ["- a cyan ring"] * 2 + ["- a ring"] * 2
    assert len({ask.seed for ask in summarizer.asked}) == 4
    assert {(ask.temperature, ask.pattern) for ask in summarizer.asked} == {(0.7, CONCEPT_PATTERN)}


def test_where_a_concept_accounts_for_no_caption_nothing_more_is_asked() -> None:
    summarizer = Scripted("animal", n_samples=1)
    assert summarizer.summarize([SummaryRequest(("a dog", "a cat"), 1, 1)]) == [["animal"]]
    assert len(summarizer.asked) == 1


def test_three_names_are_asked_for_at_a_time() -> None:
    answers = ["Plain: dog\nNarrow: puppy\nBroad: animal", "Plain: dogs\nNarrow: brown dog\nBroad: pet"]
    summarizer = Scripted(*answers, names="three")
    request = SummaryRequest(("a brown dog", "a dog"), 5, 1)
    assert summarizer.summarize([request]) == [["dog", "puppy", "animal", "brown dog", "pet"]]
    assert [ask.pattern for ask in summarizer.asked] == [NAMES_PATTERN] * 2
    assert "Narrow" in summarizer.asked[0].messages[0]["content"]


def test_samples_count_names() -> None:
    summarizer = Scripted(*["dog", "cat"] * 2, "bird", names="three", n_samples=12, n_extra_samples=3)
    assert summarizer.summarize([SummaryRequest(("a dog", "a cat"), 9, 1)]) == [["dog", "cat", "bird"]]
    assert len(summarizer.asked) == 5


def test_a_checkpoint_says_how_many_names_it_was_trained_to_give(tmp_path: Path) -> None:
    assert trained_names(tmp_path) == "three"
    assert trained_names(WEIGHTS) == "one"
    (tmp_path / "summarizer.json").write_text('["one"]')
    with pytest.raises(ModelError, match=r"summarizer\.json does not say how many names"):
        trained_names(tmp_path)


def test_seeds_are_of_the_request_and_of_each_ask() -> None:
    summarizer = Scripted("dogs, cats", "cows, pigs", "dogs", "cows", n_samples=2, temperature=0.7)
    summarizer.summarize([SummaryRequest(("a",), 2, 1)])
    other = Scripted("dog", "cat", n_samples=2, temperature=0.7)
    other.summarize([SummaryRequest(("a",), 2, 2)])
    asked = [*summarizer.asked, *other.asked]
    assert len({ask.seed for ask in asked}) == 6
    assert {ask.temperature for ask in asked} == {0.7}


def test_the_domain_is_asked_about() -> None:
    for domain, said in (("general", False), ("land cover", True)):
        summarizer = Scripted("water", n_samples=1, domain=domain)
        summarizer.summarize([SummaryRequest(("a lake",), 1, 1)])
        assert ("land-cover class" in summarizer.asked[0].messages[0]["content"]) == said


@pytest.mark.parametrize(
    ("concept", "caption", "whole"),
    [
        ("red dots", "A Red dot", True),
        ("Dog", "two dogs", True),
        ("red dot", "a blue dot", False),
        ("bu", "a bus", False),  # too short to have a plural
        ("cat", "cats", True),
    ],
)
def test_a_concept_accounts_for_captions_with_all_its_words(concept: str, caption: str, whole: bool) -> None:
    assert accounts_for(concept, caption) == whole


def test_simplified_captions_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd_llama.conversation._REMEMBERED", 2)

    class Rewriting(Scripted):
        def answer(self, asks: Sequence[Ask]) -> list[str]:
            self.asked += asks
            return [ask.messages[-1]["content"].removeprefix("Caption: a ")[:3] for ask in asks]

    def rewritten(*captions: str) -> list[str]:
        summarizer.asked = []
        summarizer.summarize([SummaryRequest(tuple(f"a {caption}" for caption in captions), 1, 1)])
        *asked, last = [ask.messages[-1]["content"] for ask in summarizer.asked]
        assert sorted(last.split("\n")[1:]) == [f"- {caption}" for caption in sorted(captions)]
        return [text.removeprefix("Caption: a ") for text in asked]

    summarizer = Rewriting(simplify=True, n_samples=1)
    assert rewritten("cat", "ant", "bee") == ["ant", "bee", "cat"]  # more than that at once, in an order of their own
    assert {ask.temperature for ask in summarizer.asked[:-1]} == {0.0}
    assert rewritten("bee") == []
    assert rewritten("dog") == ["dog"]
    assert rewritten("bee") == []
    assert rewritten("cat") == ["cat"]  # the one that was longest out of use


def test_captions_are_told_on_one_line() -> None:
    assert simplify_messages("a\n dog")[-1]["content"] == "Caption: a dog"
    assert concept_messages(["a\n dog"])[-1]["content"] == "Captions:\n- a dog"


def test_captions_are_shuffled_anew_for_every_ask() -> None:
    captions = tuple("abcdefgh")
    summarizer = Scripted(*["dog"] * 10, n_samples=5)
    first = summarizer.summarize([SummaryRequest(captions, 5, 1)])
    told = [ask.messages[-1]["content"].split("\n")[1:] for ask in summarizer.asked]
    assert all(sorted(lines) == [f"- {caption}" for caption in captions] for lines in told)
    assert len({tuple(lines) for lines in told}) == 5
    assert len({ask.seed for ask in summarizer.asked}) == 5
    assert summarizer.summarize([SummaryRequest(captions, 5, 1)]) == first
    assert summarizer.asked[:5] == summarizer.asked[5:]


def test_every_distinct_caption_is_simplified_once() -> None:
    summarizer = Scripted("dog", "cat", "animal", "animal", simplify=True, n_samples=1)
    requests = [SummaryRequest(("a big dog there", "a small cat here"), 1, seed) for seed in (1, 2)]
    assert summarizer.summarize(requests) == [["animal"], ["animal"]]
    assert len(summarizer.asked) == 4
    assert set(summarizer.asked[2].messages[-1]["content"].split("\n")[1:]) == {"- dog", "- cat"}
    summarizer.answers = ["animal"]
    summarizer.summarize([SummaryRequest(("a small cat here",), 1, 3)])
    assert len(summarizer.asked) == 5


@pytest.mark.parametrize(("folder", "simplifies"), [(WEIGHTS, True), (WEIGHTS.parent, False), (None, False)])
def test_only_for_a_checkpoint_that_was_trained_on_it_captions_are_simplified(
    folder: Path | None, simplifies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "checkpoint", lambda self: folder)
    summarizer = Scripted("dog", "dog", simplify=AskingConfig().simplify, n_samples=1)
    summarizer.summarize([SummaryRequest(("a big dog",), 1, 1)])
    assert (summarizer.asked[0].messages[-1]["content"] == "Caption: a big dog") is simplifies
    assert len(summarizer.asked) == 1 + simplifies


def test_a_caption_that_cannot_be_simplified_stays() -> None:
    summarizer = Scripted("I\ncannot", "dog", simplify=True, n_samples=1)
    summarizer.summarize([SummaryRequest(("a dog",), 1, 1)])
    assert summarizer.asked[1].messages[-1]["content"].endswith("- a dog")
    summarizer.answers = ["dog"]
    summarizer.summarize([SummaryRequest(("a dog",), 1, 2)])
    assert len(summarizer.asked) == 3


# --- the model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaSummarizer]:
    with LlamaSummarizer(LlamaConfig(model="microworld-llama", batch_size=64), RUNTIME) as summarizer:
        yield summarizer


def test_it_names_what_the_captions_share(llama: LlamaSummarizer) -> None:
    found = llama.summarize([SummaryRequest(STARS, 5, 1)])[0]
    assert found[0] == "star"
    assert 1 <= len(found) <= 5
    assert len(set(found)) == len(found)


def test_it_simplifies(llama: LlamaSummarizer) -> None:
    asks = [Ask(simplify_messages(caption), 0, 0.0) for caption in STARS[2:6]]
    assert llama.answer(asks) == [
        "purple star, yellow cross, cyan background with grid",
        "white star",
        "yellow star, green square, red background with dots",
        "orange star, purple background with horizontal stripes",
    ]


def test_an_answer_does_not_depend_on_the_batch_around_it(llama: LlamaSummarizer) -> None:
    rng = random.Random(0)
    asks = []
    for seed in range(200):
        captions = rng.sample(STARS, rng.randint(3, 10))
        asks.append(Ask(concept_messages(captions), seed, 0.8))
    assert llama._chat is not None
    together = llama._chat.answer(asks, Batches(200, "cpu"), max_new_tokens=4)
    backwards = llama._chat.answer(asks[::-1], Batches(7, "cpu"), max_new_tokens=4)
    assert together == backwards[::-1]
    assert len(set(together)) > 5


def test_what_chats_share_goes_through_the_model_once_and_changes_no_answer(
    llama: LlamaSummarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = llama._chat
    assert chat is not None
    read: list[int] = []
    forward = chat.model.forward

    @wraps(forward)  # `generate` looks at its signature
    def counted(input_ids: Any = None, **settings: Any) -> Any:
        if input_ids.shape[1] > 1:
            read.append(input_ids.numel())
        return forward(input_ids=input_ids, **settings)

    kinds = [[concept_messages(STARS[n:][:4]) for n in range(8)], [simplify_messages(one) for one in STARS[:8]]]
    asks = [Ask(messages, seed, 0.8) for some in kinds for seed, messages in enumerate(some)]
    monkeypatch.setattr(chat.model, "forward", counted)
    shared = chat.answer(asks, Batches(4, "cpu"), max_new_tokens=8)
    with_prefix = sum(read)
    read.clear()
    monkeypatch.setattr(
        chat, "_prefix", Prefix(chat.model, "cpu", chat.tokenizer.pad_token_id)
    )  # one has nothing to share
    alone = [chat.answer([ask], Batches(4, "cpu"), max_new_tokens=8)[0] for ask in asks]
    assert shared == alone
    assert with_prefix < 0.7 * sum(read)


def test_a_model_that_looks_through_a_window_reads_every_chat_whole(llama: LlamaSummarizer) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    prompts = [[*range(3, 60), last] for last in (1, 2)]
    assert "past_key_values" not in Prefix(model, "cpu", 0).inputs(prompts)
    assert "past_key_values" in Prefix(llama._chat.model, "cpu", 0).inputs(prompts)  # type: ignore[union-attr]


def test_sampling_follows_the_models_probabilities(llama: LlamaSummarizer) -> None:
    """The share of a first word over many seeds is its softmax probability at that temperature."""
    import torch

    chat = llama._chat
    assert chat is not None
    messages = concept_messages(STARS)
    prompt = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([chat.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        shares = (chat.model(ids).logits[0, -1].double() / 2.0).softmax(-1)
    likeliest = int(shares.argmax())
    share = float(shares[likeliest])
    asks = [Ask(messages, seed, 2.0) for seed in range(200)]
    answers = chat.answer(asks, Batches(200, "cpu"), max_new_tokens=1)
    seen = sum(text == chat.tokenizer.decode([likeliest]) for text in answers) / len(asks)
    assert abs(seen - share) < 4 * (share * (1 - share) / len(asks)) ** 0.5 + 1e-3


def test_temperature_zero_ignores_the_seed(llama: LlamaSummarizer) -> None:
    answers = llama.answer([Ask(concept_messages(STARS), seed, 0.0) for seed in range(4)])
    assert len(set(answers)) == 1


def test_closing_twice_and_loading_again() -> None:
    summarizer = LlamaSummarizer(LlamaConfig(model="microworld-llama"), RUNTIME)
    summarizer.close()
    with summarizer:
        first = summarizer.summarize([SummaryRequest(STARS, 2, 5)])
    summarizer.close()
    with summarizer:
        assert summarizer.summarize([SummaryRequest(STARS, 2, 5)]) == first


def test_too_little_memory_shrinks_the_batch(llama: LlamaSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = llama._chat
    assert chat is not None
    whole = chat.answer_batch

    def cramped(asks: Sequence[Ask], *, max_new_tokens: int) -> list[str]:
        if len(asks) > 3:
            raise RuntimeError("CUDA out of memory.")
        return whole(asks, max_new_tokens=max_new_tokens)

    asks = [Ask(concept_messages(STARS), seed, 0.5) for seed in range(10)]
    expected = chat.answer(asks, Batches(16, "cpu"), max_new_tokens=6)
    monkeypatch.setattr(chat, "answer_batch", cramped)
    batches = Batches(16, "cpu")
    assert chat.answer(asks, batches, max_new_tokens=6) == expected
    assert batches.size == 2


def test_chats_of_like_length_are_answered_together(llama: LlamaSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = llama._chat
    assert chat is not None
    short, long = Ask(simplify_messages(STARS[0]), 0, 0.0), Ask(concept_messages(STARS), 0, 0.0)
    seen: list[list[Ask]] = []

    def answer_batch(asks: Sequence[Ask], *, max_new_tokens: int) -> list[str]:
        seen.append(list(asks))
        return ["long" if ask == long else "short" for ask in asks]

    monkeypatch.setattr(chat, "answer_batch", answer_batch)
    assert chat.answer([long, short] * 3, Batches(3, "cpu"), max_new_tokens=1) == ["long", "short"] * 3
    assert seen == [[short] * 3, [long] * 3]


def test_one_chat_that_does_not_fit_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(asks: Sequence[Ask], *, max_new_tokens: int) -> list[str]:
        raise RuntimeError("CUDA out of memory.")

    with LlamaSummarizer(LlamaConfig(model="microworld-llama", batch_size=2), RUNTIME) as summarizer:
        monkeypatch.setattr(summarizer._chat, "answer_batch", full)
        with pytest.raises(DeviceError, match="microworld-llama does not fit into the memory of cpu"):
            summarizer.summarize([SummaryRequest(STARS, 2, 5)])


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_packed_weights_give_nearly_the_same_answers(bits: str, llama: LlamaSummarizer) -> None:
    asks = [Ask(simplify_messages(caption), 0, 0.0) for caption in STARS]
    config = LlamaConfig(model="microworld-llama", quantization=bits)  # type: ignore[arg-type]
    with LlamaSummarizer(config, RUNTIME) as packed:
        answers = packed.answer(asks)
        assert packed.chosen()["quantization"] == bits
        if bits == "4bit":  # whose rows do not share a scale
            assert [packed.answer([ask])[0] for ask in asks[:4]] == answers[:4]
    same = sum(a == b for a, b in zip(answers, llama.answer(asks), strict=True))
    assert same >= (9 if bits == "8bit" else 6)


def test_layers_that_do_not_fit_visit_the_device(
    llama: LlamaSummarizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with offload "cpu", one store further down: from the disk to the CPU."""
    room = {"device_map": "auto", "max_memory": {"cpu": 1_000_000}, "offload_folder": tmp_path}
    monkeypatch.setattr(loading, "spread", lambda device: room)
    asks = [Ask(concept_messages(STARS), seed, 0.5) for seed in range(6)]
    with LlamaSummarizer(LlamaConfig(model="microworld-llama", offload="cpu"), RUNTIME) as moved:
        assert moved._chat is not None
        assert {parameter.device.type for parameter in moved._chat.model.parameters()} == {"cpu", "meta"}
        assert moved.answer(asks) == llama.answer(asks)


def test_a_compiled_model_gives_the_same_answers(llama: LlamaSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "COMPILER", "eager")  # torch's own tracing, without a compiler behind it
    asks = [Ask(concept_messages(STARS[:3]), seed, 0.0) for seed in range(2)]
    config = LlamaConfig(model="microworld-llama", compile=True, max_new_tokens=8)
    with LlamaSummarizer(config, RUNTIME) as compiled:
        assert compiled._chat is not None
        assert compiled._chat.model._compiled_call_impl is not None
        assert compiled.answer(asks) == llama.answer(asks)


def tiny(folder: Path, **changes: object) -> Path:
    """A random Llama with the microworld's tokenizer."""
    from transformers import LlamaConfig as ModelConfig
    from transformers import LlamaForCausalLM

    for file in WEIGHTS.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    source = json.loads((WEIGHTS / "config.json").read_text()) | changes
    LlamaForCausalLM(ModelConfig(**source)).save_pretrained(folder)
    return folder


def load(folder: Path, **settings: object) -> None:
    LlamaSummarizer(LlamaConfig(model="mine", **settings), Runtime("cpu", lambda name: folder)).load()  # type: ignore[arg-type]


def test_widths_that_cannot_be_packed_into_4_bits_are_told(tmp_path: Path) -> None:
    folder = tiny(tmp_path, hidden_size=96)
    load(folder, quantization="8bit")
    with pytest.raises(
        ModelError, match=r"4 bits: model\.layers\.0\.self_attn\.q_proj has 96 inputs, no multiple of 64"
    ):
        load(folder, quantization="4bit")


def test_what_is_no_chat_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'mine' in .* does not load as a language model"):
        load(WEIGHTS.parent / "microworld-clip")
    folder = tiny(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="'mine' has no chat template"):
        load(folder)


def test_close_gives_the_memory_back() -> None:
    summarizer = LlamaSummarizer(LlamaConfig(model="microworld-llama"), RUNTIME)
    summarizer.load()
    assert summarizer._chat is not None
    held = weakref.ref(summarizer._chat.model)
    summarizer.close()
    assert held() is None


def test_the_prompts_are_short(llama: LlamaSummarizer) -> None:
    chat = llama._chat
    assert chat is not None
    prompt = chat.tokenizer.apply_chat_template(concept_messages([]), tokenize=False, add_generation_prompt=True)
    assert len(chat.tokenizer(prompt)["input_ids"]) < 250
    assert "<unk>" not in chat.tokenizer.decode(chat.tokenizer(prompt)["input_ids"])


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, dnd_llama; dnd_llama.LlamaSummarizer(dnd_llama.LlamaConfig(), dnd_llama.Runtime('cpu', None));"
        "sys.exit(bool({'torch', 'transformers', 'accelerate'} & sys.modules.keys()))"
    )
    path = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "plugins")]
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"]).returncode == 0
