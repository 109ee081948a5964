"""What a server of the page does beside answering: it guards its door and clears up. No torch, no gradio import."""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import functools
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError
from ..tasks.limits import PAGE

logger = logging.getLogger(__name__)

FETCH_S = 30
_MAX_REDIRECTS = 5
_LONGEST_ERROR = 600


def tidy(demo: Any, grace_s: float) -> None:
    """Remove what visitors no longer use, and forget what Gradio would keep of it: paths, states of sessions.

    Args:
        demo: Gradio's page, with its `session_files`.
        grace_s: seconds after its last use that the state of a session stays which has no files.
    """
    files, states = demo.session_files, demo.state_holder
    files.sweep(set().union(*(block.keep_in_cache for block in demo.blocks.values())))
    for paths in demo.temp_file_sets:
        paths -= {path for path in list(paths) if not os.path.lexists(path)}
    now = datetime.datetime.now()
    with states.lock:
        for session, used in list(states.time_last_used.items()):
            if session not in files and (now - used).total_seconds() > grace_s:
                states.session_data.pop(session, None)
                states.time_last_used.pop(session)
    _return_memory()


def _return_memory() -> None:
    """Give the system back what the threads of the work have freed, of which the C library keeps hundreds of MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@asynccontextmanager
async def open_house(
    app: Any, *, demo: Any, guard: Callable[[Callable], Callable], sweep_s: float, grace_s: float
) -> AsyncIterator:
    """The life of a server: every request goes through `guard`, and visitors' files are swept until it ends.

    Args:
        app: the Starlette application, which is just starting.
        demo: as for `tidy`.
        guard: makes the ASGI application that stands around the whole of `app`, its CORS answers included.
        sweep_s: seconds from one sweep to the next.
        grace_s: as for `tidy`.
    """

    async def go_on() -> None:
        while True:
            await asyncio.sleep(sweep_s)
            try:
                await asyncio.to_thread(tidy, demo, grace_s)
            except OSError:
                logger.exception("files of visitors could not be removed")

    app.middleware_stack = guard(app.middleware_stack)
    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        demo.session_files.close()


async def fetch(url: str, cache_dir: Path | str, trusted: Sequence[str] = ()) -> str:
    """Fetch a photo that a visitor names by its address; whole or not at all, and no more than a photo may have.

    Args:
        url: of a host on the public internet.
        cache_dir: the server's folder for uploads.
        trusted: hosts that may have an address inside the server's own network, ``*.`` for those below.

    Returns:
        Path of the file, in a folder of its own.

    Raises:
        InputError: the host is not public, does not answer in time or with anything but the file, or it is too large.
    """
    import httpx

    name = "".join(c for c in Path(urlsplit(url).path).name if c.isalnum() or c in "._-")[-100:] or "file"
    folder = Path(cache_dir) / secrets.token_hex(32)
    part = folder.with_name(f"tmp{folder.name}")
    try:
        async with asyncio.timeout(FETCH_S):
            await _download(url, part, trusted)
        folder.mkdir(mode=0o700)
        return str(part.rename(folder / name))
    except InputError:
        raise
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise InputError(f"file must be on a public host that answers within {FETCH_S} s, got none.") from error
    finally:
        part.unlink(missing_ok=True)


async def _download(url: str, path: Path, trusted: Sequence[str]) -> None:
    """Write what is at an address; each host on the way, that of a redirect too, is checked and then held to."""
    import httpx
    from safehttpx import AsyncSecureTransport, async_validate_url, matches_domain_whitelist

    for _ in range(_MAX_REDIRECTS):
        host, transport = httpx.URL(url).host, None
        if not matches_domain_whitelist(host, list(trusted)):
            transport = AsyncSecureTransport(await async_validate_url(host))
        async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", url) as answer:
            if answer.has_redirect_location:
                url = str(httpx.URL(url).join(answer.headers["location"]))
                continue
            if answer.status_code != 200:
                raise InputError(f"file must be at its address, got status {answer.status_code}.")
            size = 0
            with path.open("wb") as file:
                async for chunk in answer.aiter_bytes():
                    size += len(chunk)
                    if size > PAGE.max_photo_bytes:
                        raise InputError(f"file must have at most {PAGE.max_photo_bytes >> 20} MB, got more.")
                    await asyncio.to_thread(file.write, chunk)
            return
    raise InputError(f"file must be at its address within {_MAX_REDIRECTS} redirects, got more.")


def speak_plainly(demo: Any, refuse: type[Exception]) -> None:
    """Make Gradio say in one short sentence what it does not take, and note less of each request.

    Args:
        demo: Gradio's page with its queue.
        refuse: Gradio's error, which alone comes with its sentence.
    """
    queue = demo._queue
    queue.ANALYTICS_MAX_EVENTS = 1  # of 10,000 it would make a table after each request, for a page that is closed
    send, preprocess = queue.send_message, demo.preprocess_data

    def send_short(event: Any, message: Any) -> None:
        output = getattr(message, "output", None)
        if isinstance(output, dict) and len(str(output.get("error") or "")) > _LONGEST_ERROR:
            message.output = output | {"error": f"{output['error'][:_LONGEST_ERROR]}..."}
        send(event, message)

    @functools.wraps(preprocess)
    async def preprocess_data(*args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess(*args, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError, OSError) as error:
            sentence = "values must be of the kinds that the endpoint names, and files uploaded here, got others."
            raise refuse(sentence, print_exception=False) from error

    queue.send_message, demo.preprocess_data = send_short, preprocess_data
