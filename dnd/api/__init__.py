"""All that a plugin author imports: `hookimpl`, the interfaces, `Config`, the records, the errors.

A backend is a class with a `name`, a frozen `Config` and one method: a list in, a list of the same length
out, in the same order. Raise `ItemError` for an input that has no valid answer: the core then asks for the
other items one by one, so that only that item fails. Nothing here imports torch.
"""

from __future__ import annotations

from dnd.api.functions import auc, derive_seed, is_device_lost, is_out_of_memory, ranked
from dnd.api.images import ImageFolder, file_digest, read_image
from dnd.api.method import Method, Study
from dnd.api.plugins import (
    API_VERSION,
    Backend,
    Captioner,
    Encoder,
    Generator,
    Plugin,
    ProbingSet,
    Runtime,
    Scorer,
    Summarizer,
    Target,
    hookimpl,
)
from dnd.api.records import (
    FRAME,
    N_LABELS,
    Bound,
    Box,
    Evidence,
    Grade,
    Grading,
    ImageRequest,
    JudgedConcept,
    Label,
    Picture,
    SummaryRequest,
    Unit,
)
from dnd.api.settings import (
    Config,
    ModelFolder,
    ModelName,
    ProbingFolder,
    ProbingFolders,
    all_probing_folders,
    model_folders,
    model_names,
    probing_folders,
)
from dnd.api.truth import Truth, read_truth
from dnd.api.words import base_form
from dnd.errors import DeviceError, DndError, ItemError, ModelError, PluginError, UsageError

__all__ = [
    "API_VERSION",
    "FRAME",
    "N_LABELS",
    "Backend",
    "Bound",
    "Box",
    "Captioner",
    "Config",
    "DeviceError",
    "DndError",
    "Encoder",
    "Evidence",
    "Generator",
    "Grade",
    "Grading",
    "ImageFolder",
    "ImageRequest",
    "ItemError",
    "JudgedConcept",
    "Label",
    "Method",
    "ModelError",
    "ModelFolder",
    "ModelName",
    "Picture",
    "Plugin",
    "PluginError",
    "ProbingFolder",
    "ProbingFolders",
    "ProbingSet",
    "Runtime",
    "Scorer",
    "Study",
    "Summarizer",
    "SummaryRequest",
    "Target",
    "Truth",
    "Unit",
    "UsageError",
    "all_probing_folders",
    "auc",
    "base_form",
    "derive_seed",
    "file_digest",
    "hookimpl",
    "is_device_lost",
    "is_out_of_memory",
    "model_folders",
    "model_names",
    "probing_folders",
    "ranked",
    "read_image",
    "read_truth",
]
