"""What names an item and its answer: digests, seeds and keys that come from content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(value: object) -> str:
    """sha256 of a JSON-able value, key order aside."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(stage: str, version: int, parts: Mapping[str, Any]) -> str:
    """sha256 over all that changes a stage's answers, its items aside. Same key, same results: reuse."""
    return digest_of({"stage": stage, "version": version, **parts})
