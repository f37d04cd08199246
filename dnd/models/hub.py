"""The hub: the only module that reaches beyond this machine, and only for `dnd models fetch` and `dnd models lock`.

huggingface_hub does the talking. Its `http_get` resumes a file, which its `hf_hub_download` gave up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dnd.errors import ModelError
from dnd.files import no_follow


@dataclass(frozen=True)
class Revision:
    """A repository of a hub at one commit."""

    repo: str
    """owner/name"""
    commit: str

    @classmethod
    def of(cls, source: str) -> Revision:
        """From a source of models.lock, "hub:owner/name@commit"."""
        repo, _, commit = source.removeprefix("hub:").partition("@")
        return cls(repo, commit)


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file before it is fetched."""

    size: int | None
    etag: str | None
    """Its sha256 (large files) or git's sha1 of it (small ones)."""


@dataclass(frozen=True)
class Listing:
    """A repository's card and files at one commit."""

    revision: Revision
    licence: str
    gated: bool
    files: tuple[str, ...]


class Hub:
    """The Hugging Face hub, or the server that $HF_ENDPOINT names."""

    def __init__(self) -> None:
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read at its import
        try:
            import huggingface_hub
            from huggingface_hub import constants
            from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
        except ImportError as error:
            hint = "Run: pip install 'dnd-describe[hub]'"
            raise ModelError("fetching needs the package huggingface_hub, which is not installed", hint) from error
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it retries: errors are ours to show
        disable_progress_bars()
        self._library = huggingface_hub
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")

    def list(self, repo: str, name: str) -> Listing:
        """The repository `repo` at a commit, branch or tag."""
        with self._errors(f"{repo}@{name}", repo):
            info = self._library.HfApi(endpoint=self.endpoint).model_info(repo, revision=name)
        card = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
        licence = card.get("license_name") or card.get("license") or "undeclared"
        files = tuple(sorted(file.rfilename for file in info.siblings or ()))
        return Listing(Revision(repo, info.sha or ""), str(licence), bool(info.gated), files)

    def look(self, at: Revision, path: str) -> Remote:
        with self._errors(f"{path} of {at.repo}@{at.commit}", at.repo):
            found = self._library.get_hf_file_metadata(self._url(at, path), endpoint=self.endpoint)
        if found.commit_hash != at.commit:
            raise ModelError(
                f"{self.endpoint} gave {path} of {at.repo} at revision {found.commit_hash}, not {at.commit}"
            )
        return Remote(found.size, found.etag)

    def download(self, at: Revision, path: str, remote: Remote, partial: Path, advance: Callable[[int], None]) -> None:
        """Fetch what is missing of the file in `partial`; an interrupt leaves what has come."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        with self._errors(f"{path} of {at.repo}@{at.commit}", at.repo), open(partial, "ab", opener=no_follow) as file:
            begin = file.tell()
            if remote.size is not None and begin > remote.size:
                begin = file.seek(0)
                file.truncate()
            advance(begin)
            counted = cast(BinaryIO, _Counted(file, advance))
            http_get(
                self._url(at, path),
                counted,
                resume_size=begin,
                expected_size=remote.size,
                headers=build_hf_headers(),
            )
            file.flush()
            os.fsync(file.fileno())

    def _url(self, at: Revision, path: str) -> str:
        return self._library.hf_hub_url(at.repo, path, revision=at.commit, endpoint=self.endpoint)

    @contextmanager
    def _errors(self, what: str, repo: str) -> Iterator[None]:
        """What goes wrong at the hub, on the way to it, or on this disk -> a ModelError that says what to do."""
        from huggingface_hub import errors

        gone_on = "What has been fetched is kept: the same command goes on from there."
        try:
            yield
        except errors.OfflineModeIsEnabled as error:
            hint = "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE for this command."
            raise ModelError(f"cannot fetch {what}: the environment says to stay offline", hint) from error
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{repo} is gated: the hub does not give {what} to you",
                f"Accept its licence at {self.endpoint}/{repo}, then set HF_TOKEN to a token of that account, or run"
                " `hf auth login`; then the same command again.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(f"{repo} has no such revision: {what}", "Look at its history at the hub.") from error
        except errors.EntryNotFoundError as error:
            raise ModelError(
                f"there is no {what} at {self.endpoint}", "models.lock lists a file that is not there."
            ) from (error)
        except errors.RepositoryNotFoundError as error:
            hint = "If it is private, set HF_TOKEN or run `hf auth login`."
            raise ModelError(f"{self.endpoint} has no repository {repo}, or keeps it private", hint) from error
        except errors.HfHubHTTPError as error:
            code = error.response.status_code
            denied = "Set HF_TOKEN, or run `hf auth login`: the token in use may be wrong. "
            hint = (denied if code in (401, 403) else "") + gone_on
            raise ModelError(f"{self.endpoint} refuses {what}: HTTP status {code}", hint) from error
        except errors.HTTPError as error:  # type: ignore[attr-defined]
            raise ModelError(
                f"cannot reach {self.endpoint} for {what}: {error}",
                f"{gone_on} On a machine without a network: `dnd models unpack ARCHIVE`, or fetch with --from FOLDER.",
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot fetch {what}: {getattr(error, 'strerror', None) or error}", gone_on) from error


class _Counted:
    """A file that tells how much was written to it, a rewind included."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def write(self, data: bytes) -> int:
        self._advance(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        self._advance(place - self._file.tell())
        return self._file.seek(place)

    def truncate(self) -> int:
        return self._file.truncate()
