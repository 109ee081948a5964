"""Files of a server's visitors: a folder for each session, its name a secret, emptied when the session ends. No torch.

A server that serves files by their path (Gradio's cache) cannot ask who wants one, so the path itself is the key: each
session's folder has a name that nobody can guess, and a session may use nothing out of the folder of another. Uploads
arrive beside these folders; those that a session used are removed with it, unless another session uses them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import InputError

_ABORTED_S = 300  # an upload that goes on is written to more often
_ENTRY_BYTES = 8192  # that a file and its folder take beside what is in it
_RECKONED_S = 3600


class NoRoomError(InputError):
    """What somebody sends does not fit beside what is kept; `is_own`: beside what they have sent themselves."""

    def __init__(self, sentence: str, *, is_own: bool) -> None:
        super().__init__(sentence)
        self.is_own = is_own


@dataclasses.dataclass
class _Session:
    folder: Path
    used_s: float
    ended: bool = False
    results: dict[Path, float] = dataclasses.field(default_factory=dict)  # folder of a result: when it was used last
    uploads: dict[Path, int] = dataclasses.field(default_factory=dict)  # in the order of use: size in bytes


class SessionFiles:
    """Folders and uploads of all sessions of one server; may be used from several threads.

    Args:
        root: folder that the server serves files from and puts uploads in, each in a folder of its own; made when
            needed.
        grace_s: seconds that the files of an ended session are kept, for a visitor whose line broke.
        max_idle_s: seconds without use after which a session counts as ended.
        keep_results: results of one session that are kept; the one not used for longest goes first.
        max_bytes: of all results together; beyond it those not used for longest go, whoever they belong to.
        session_bytes: of the uploads that one session uses; beyond it those not used for longest are forgotten.
        sender_bytes: that one address may send within an hour.
        upload_bytes: of all uploads together.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        grace_s: float = 120,
        max_idle_s: float = 3600,
        keep_results: int = 32,
        max_bytes: int = 4 * 2**30,
        session_bytes: int = 512 * 2**20,
        sender_bytes: int = 1 * 2**30,
        upload_bytes: int = 4 * 2**30,
    ) -> None:
        self.root = Path(root).resolve()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._grace_s, self._max_idle_s = grace_s, max_idle_s
        self._keep_results, self._max_bytes = keep_results, max_bytes
        self._session_bytes, self._sender_bytes, self._upload_bytes = session_bytes, sender_bytes, upload_bytes
        self._sent: dict[str, deque[tuple[float, int]]] = {}  # address: when it sent how much
        self._uploaded = 0  # bytes on the disk, as last measured and what came since
        self._sessions: dict[str, _Session] = {}
        self._left: set[Path] = set()  # uploads of sessions that are gone
        self._lock = threading.Lock()
        # Other servers may use the same root, whose folders are not this one's to remove.
        self._prefix = f"session-{secrets.token_hex(4)}-"

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def new_folder(self, session: str | None) -> Path:
        """Make an empty folder for one result.

        Args:
            session: the session's name; None for a caller without one, whose result stays for `max_idle_s`.

        Returns:
            The folder.
        """
        with self._lock:
            visitor = self._visitor(session or secrets.token_hex(16))
            while len(visitor.results) >= self._keep_results:
                self._drop(visitor, min(visitor.results, key=visitor.results.__getitem__))
            folder = visitor.folder / secrets.token_hex(8)
            visitor.folder.mkdir(exist_ok=True, mode=0o700)
            folder.mkdir(mode=0o700)
            visitor.results[folder] = visitor.used_s
            return folder

    def admit(self, session: str | None, path: Path | str) -> None:
        """Check that a session may use a file that it names, and keep the file while the session lasts.

        Args:
            session: the session's name, or None.
            path: an upload, or a file of one of the session's results.

        Raises:
            InputError: the file is gone, lies in another session's folder, or is none of the server's.
        """
        path = Path(path).resolve()
        if self.root not in path.parents:
            raise InputError(f"file {path.name!r} was not uploaded here; upload it.")
        home = self.root / path.relative_to(self.root).parts[0]
        with self._lock:
            visitor = self._sessions.get(session or "")
            if home.name.startswith("session-") and (visitor is None or home != visitor.folder):
                raise InputError(f"file {path.name!r} is of another session; upload it to use it here.")
            if not path.is_file():
                raise InputError(f"file {path.name!r} is no longer kept; choose it again.")
            if home.name.startswith("session-"):
                visitor = self._visitor(session)
                folder = home / path.relative_to(home).parts[0]
                visitor.results[folder] = visitor.used_s
                files = [file for file in folder.rglob("*") if file.is_file()]
            else:
                if session:
                    self._use_upload(self._visitor(session), path)
                files = [path]
            for file in files:  # the server removes by age what it thinks is forgotten
                with contextlib.suppress(FileNotFoundError):
                    os.utime(file)

    def check_room(self, sender: str, size: int = 0) -> None:
        """Check that something more may be sent; nothing is noted.

        Args:
            sender: address that it comes from.
            size: bytes that it is said to have.

        Raises:
            NoRoomError: the sender has sent too much within the hour, or all uploads together would be too much.
        """
        with self._lock:
            sent = sum(bytes_ for _, bytes_ in self._sent_lately(sender))
            if sent + size > self._sender_bytes:
                raise NoRoomError(
                    f"upload must leave the {self._sender_bytes >> 20} MB that one visitor may send within an hour, "
                    f"got {size >> 20} MB after {sent >> 20} MB; come back later.",
                    is_own=True,
                )
            if self._uploaded + size > self._upload_bytes:
                raise NoRoomError(
                    "upload must wait, the server's room for uploads is full; try again in some minutes.", is_own=False
                )

    def note_sent(self, sender: str, size: int, files: int = 0) -> None:
        """Note what an address has sent.

        Args:
            sender: address that it came from.
            size: bytes.
            files: files that were begun with it.
        """
        size += files * _ENTRY_BYTES
        with self._lock:
            sent = self._sent_lately(sender)
            now_s = time.time()
            if sent and now_s - sent[-1][0] < 1:  # a large upload comes in thousands of pieces
                now_s, before = sent.pop()
                sent.append((now_s, before + size))
            else:
                sent.append((now_s, size))
            self._sent[sender] = sent
            self._uploaded += size

    def end(self, session: str | None) -> None:
        """Note that a session is over; its files go with a `sweep` after the grace, unless it comes back."""
        with self._lock:
            if (visitor := self._sessions.get(session or "")) is not None:
                visitor.ended = True
                visitor.used_s = time.time()

    def sweep(self, keep: Collection[str] = ()) -> None:
        """Remove the files of sessions that are over, uploads that none uses, what is too much, and empty folders.

        Args:
            keep: paths of files that the server itself needs, such as examples, which an upload can coincide with.
        """
        now_s = time.time()
        kept = {Path(path).resolve() for path in keep}
        with self._lock:
            for name, visitor in list(self._sessions.items()):
                if now_s - visitor.used_s > (self._grace_s if visitor.ended else self._max_idle_s):
                    shutil.rmtree(visitor.folder, ignore_errors=True)
                    self._left |= set(self._sessions.pop(name).uploads)
            used = kept.union(*(visitor.uploads for visitor in self._sessions.values()))
            self._left -= used
            for path in list(self._left):
                with contextlib.suppress(FileNotFoundError):
                    if now_s - path.stat().st_ctime <= self._grace_s:
                        continue  # uploaded again, perhaps by someone who has not used it yet
                    path.unlink()
                self._left.discard(path)
            self._shrink()
            self._remove_forgotten(used, now_s)
            self._remove_empty(now_s)

    def close(self) -> None:
        """Remove the files of all sessions."""
        with self._lock:
            for visitor in self._sessions.values():
                shutil.rmtree(visitor.folder, ignore_errors=True)
                self._left |= set(visitor.uploads)
            for path in self._left:
                path.unlink(missing_ok=True)
            self._sessions.clear()
            self._left.clear()

    def _visitor(self, session: str) -> _Session:
        now_s = time.time()
        if session not in self._sessions:
            self._sessions[session] = _Session(self.root / f"{self._prefix}{secrets.token_urlsafe(24)}", now_s)
        visitor = self._sessions[session]
        visitor.used_s, visitor.ended = now_s, False
        return visitor

    def _use_upload(self, visitor: _Session, path: Path) -> None:
        """Note a session's use of an upload, and leave to the sweep what is then too much."""
        visitor.uploads.pop(path, None)
        visitor.uploads[path] = path.stat().st_size
        while len(visitor.uploads) > 1 and sum(visitor.uploads.values()) > self._session_bytes:
            oldest = next(iter(visitor.uploads))
            del visitor.uploads[oldest]
            self._left.add(oldest)

    def _sent_lately(self, sender: str) -> deque[tuple[float, int]]:
        sent = self._sent.get(sender, deque())
        while sent and time.time() - sent[0][0] > _RECKONED_S:
            sent.popleft()
        return sent

    def _drop(self, visitor: _Session, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        del visitor.results[folder]

    def _shrink(self) -> None:
        """Drop results until all together are small enough."""
        found = [
            (used_s, visitor, folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
            for visitor in self._sessions.values()
            for folder, used_s in visitor.results.items()
        ]
        total = sum(size for *_, size in found)
        for _, visitor, folder, size in sorted(found, key=lambda entry: entry[0]):
            if total <= self._max_bytes:
                return
            self._drop(visitor, folder)
            total -= size

    def _outside(self) -> Iterator[Path]:
        """Files of no session: uploads, whether whole or aborted, and what the server itself left."""
        for entry in self.root.iterdir():
            if not entry.name.startswith("session-"):
                yield from (path for path in (entry, *entry.rglob("*")) if path.is_file() or path.is_symlink())

    def _remove_forgotten(self, used: Collection[Path], now_s: float) -> None:
        """Remove aborted uploads and what nobody has used for long, and measure the rest."""
        self._uploaded = 0
        for path in self._outside():
            with contextlib.suppress(OSError):
                status = path.lstat()
                idle_s = now_s - max(status.st_mtime, status.st_ctime)
                is_begun = path.parent == self.root and path.name.startswith("tmp")
                if path not in used and idle_s > (min(_ABORTED_S, self._max_idle_s) if is_begun else self._max_idle_s):
                    path.unlink()
                    if path.parent.parent != self.root and path.parent != self.root:
                        path.parent.rmdir()  # folders of the root itself may just be filled again: `_remove_empty`
                else:
                    self._uploaded += status.st_size + _ENTRY_BYTES
        for sender in list(self._sent):
            if not self._sent_lately(sender):
                del self._sent[sender]

    def _remove_empty(self, now_s: float) -> None:
        """Remove folders that uploads left behind, and those that work begun before a session's end made again."""
        known = {visitor.folder for visitor in self._sessions.values()}
        for folder in self.root.iterdir():
            with contextlib.suppress(OSError):  # not empty, or not a folder
                if folder.name.startswith(self._prefix):
                    if folder not in known:
                        shutil.rmtree(folder)
                elif now_s - folder.stat().st_mtime > min(self._grace_s, 60):  # a fresh one may be about to be filled
                    folder.rmdir()
