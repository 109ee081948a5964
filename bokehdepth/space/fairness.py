"""Whose request is next, and who may still ask: nobody stands in another's way by asking much. No torch, no gradio.

`FairQueue` works on a queue of Gradio's, whose events have a group each (its `concurrency_id`), in which so many run
at once. `Turns` shares one processor between the runs that are begun.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

from .gate import SENDER

_REMEMBERED = 4096


@dataclass(frozen=True)
class Room:
    """Events of one group that may wait or run.

    Attributes:
        in_all: everybody's together.
        of_sender: those from one address.
        of_session: those of one session; programs that name none have one for each request.
    """

    in_all: int
    of_sender: int
    of_session: int


class FairQueue:
    """Lets each address have its turn, and no one of them all places.

    Args:
        queue: Gradio's, of which nothing is changed but what `attach` says.
        rooms: of each group.
        other: room of groups that are not named.
    """

    def __init__(self, queue: Any, rooms: Mapping[str, Room], other: Room) -> None:
        self._queue, self._rooms, self._other = queue, rooms, other
        self._served: dict[tuple[str, ...], int] = {}  # who had the latest turn
        self._numbers = itertools.count(1)

    def attach(self) -> None:
        """Make the queue ask here who may come in and who is next."""
        push = self._queue.push

        async def push_fairly(body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
            group = getattr(self._queue.blocks.fns.get(body.fn_index), "concurrency_id", None)
            sentence = self.refusal(group, request.scope.get(SENDER, ""), body.session_hash)
            if sentence is not None:
                return False, sentence, "queue_full"
            return await push(body=body, request=request, username=username)

        self._queue.push, self._queue.get_events = push_fairly, self.next_events

    def refusal(self, group: str | None, sender: str, session: str | None) -> str | None:
        """Why somebody may not ask for more now; None where they may."""
        room = self._rooms.get(group, self._other)
        asked = [event for event in self._events() if self._rooms.get(event.concurrency_id, self._other) is room]
        own = [event for event in asked if _sender(event) == sender]
        of_session = sum(event.session_hash == session for event in own)
        if of_session >= room.of_session:
            return f"request must wait, {of_session} of this session are not done yet."
        if len(own) >= room.of_sender:
            return f"request must wait, {len(own)} from this address are not done yet."
        if len(asked) >= room.in_all:
            return f"request must wait, {len(asked)} of other visitors are not done yet; try again in a minute."
        return None

    def next_events(self) -> tuple[list[Any], bool, str] | None:
        """Take the next event out of the queue, as Gradio's `get_events` does.

        A group's last free place is kept for another address than those at work, and of those that wait the one goes
        first that has had its turn the longest ago, and of its sessions too.
        """
        groups = list(self._queue.event_queue_per_concurrency_id.items())
        random.shuffle(groups)
        for name, group in groups:
            limit = group.concurrency_limit
            if not group.queue or (limit is not None and group.current_concurrency >= limit):
                continue
            at_work = Counter(_sender(event) for event in self._at_work() if event.concurrency_id == name)
            most = max(1, (limit or len(self._queue.active_jobs)) - 1)
            ready = [event for event in group.queue if at_work[_sender(event)] < most]
            if ready:
                event = min(ready, key=self._last_turn)
                group.queue.remove(event)
                self._note_turn(event)
                return [event], False, name
        return None

    def has_left(self, event_id: str | None) -> bool:
        """Whether the visitor who waited for a running event is gone."""
        return any(event._id == event_id and not event.alive for event in self._at_work())

    def _at_work(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(job for job in list(self._queue.active_jobs) if job)

    def _events(self) -> Iterator[Any]:
        for group in self._queue.event_queue_per_concurrency_id.values():
            yield from group.queue
        yield from self._at_work()

    def _last_turn(self, event: Any) -> tuple[int, int]:
        sender, session = _sender(event), event.session_hash
        return self._served.get((sender,), 0), self._served.get((sender, session), 0)

    def _note_turn(self, event: Any) -> None:
        if len(self._served) > _REMEMBERED:
            self._served.clear()
        self._served[(_sender(event),)] = self._served[(_sender(event), event.session_hash)] = next(self._numbers)


def _sender(event: Any) -> str:
    return event.request.scope.get(SENDER, "")


class Turns:
    """One of several threads works at a time; at its steps it lets those that wait go first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()  # the first is at work
        self._process = os.getpid()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it for a block."""
        me = object()
        with self._changed:
            self._line.append(me)
            self._changed.wait_for(lambda: self._line[0] is me)
        try:
            yield
        finally:
            with self._changed:
                self._line.remove(me)
                self._changed.notify_all()

    def taking(self, function: Callable, needs: Callable[..., bool] = lambda *_, **__: True) -> Callable:
        """The function, each call of which is one turn, unless `needs` says of its arguments that it needs none."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.turn() if needs(*args, **kwargs) else nullcontext():
                return function(*args, **kwargs)

        return call

    def offer(self) -> None:
        """Let those that wait go first; for who holds the turn. Does nothing in a process forked off meanwhile."""
        if os.getpid() != self._process:
            return
        with self._changed:
            me = self._line.popleft()
            self._line.append(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._line[0] is me)
