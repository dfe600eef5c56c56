"""The decode loop: one thread in which a language model writes for many songs at once.

A writing is one answer of the model: metadata, lyrics, or the codes of one song. Each has one sequence in the network's cache, or
two with classifier-free guidance: with its prompt, and with its unconditional one. Writings join and leave between steps; each
has its own prompt, grammar, way of sampling and random generator, so it writes the same alone and in company.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import torch

from serve_app import errors
from serve_app.engine.ace_step.device import device_name, is_out_of_memory, release_memory
from serve_app.engine.planner.grammar import Choice, Code, Cursor, Tables, Text
from serve_app.engine.planner.heads import Heads
from serve_app.engine.planner.network import Network
from serve_app.engine.planner.protocol import Sampling
from serve_app.engine.planner.sampling import draw, guided

log = logging.getLogger(__name__)

_CHUNK: Final = 512
"""How many tokens of prompts are read between two steps, so that long prompts do not hold up the other songs."""
_SHORT: Final = 64
"""Up to this many tokens are read at once, for any number of sequences."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A sequence in the cache."""

    unread: list[int]
    """The tokens that the network is to read next."""
    length: int = 0
    """How many tokens it has read."""
    state: torch.Tensor | None = None
    """The hidden state of the last token read."""

    def read(self, count: int, state: torch.Tensor) -> None:
        """Takes the state after `count` of the unread tokens."""
        self.length += count
        self.state = state
        del self.unread[:count]


@dataclass(slots=True, eq=False)
class Writing:
    """One answer that the model is to write."""

    prompt: Sequence[int]
    unconditional: Sequence[int] | None
    """The prompt of the unconditional side, None without guidance."""
    cursor: Cursor
    sampling: Sampling
    seed: int
    stopped: Callable[[], bool]
    """Called between two steps. The writing ends with Stopped soon after it has returned true."""
    on_token: Callable[[int], None] = lambda written: None
    """Called with the number of tokens that have been written."""
    result: Future[list[int]] = field(default_factory=Future)
    """The tokens that were written."""
    lanes: list[_Lane] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)
    """Made on the network's device when the writing begins."""

    @property
    def sequences(self) -> int:
        """How many sequences it needs."""
        return 1 if self.unconditional is None else 2

    @property
    def waits(self) -> bool:
        """Whether all its tokens have been read, so that the model can choose the next."""
        return all(not lane.unread for lane in self.lanes)

    def begin(self, device: torch.device) -> list[_Lane]:
        """Makes its sequences, which have read nothing yet, and returns them."""
        self.generator = torch.Generator(device).manual_seed(self.seed)
        start = self.cursor.start()
        prompts = [self.prompt] if self.unconditional is None else [self.prompt, self.unconditional]
        self.lanes = [_Lane([*prompt, *start]) for prompt in prompts]
        return self.lanes

    def answer(self, token: int) -> None:
        """Takes the token that was drawn, and reports it."""
        following = self.cursor.answer(token)
        for lane in self.lanes:
            lane.unread.extend(following)
        self.on_token(len(self.cursor.written))


class DecodeLoop:
    """Writes with one network. Its methods may be called from any thread."""

    def __init__(self, network: Network, tables: Tables, code_ids: Sequence[int]) -> None:
        """`code_ids` are the tokens of the audio codes."""
        self._network = network
        self._heads = Heads(network, tables, code_ids)
        self._waiting: deque[Writing] = deque()
        self._active: list[Writing] = []
        self._lanes: list[_Lane] = []
        """By their rows in the cache."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._thread.start()

    def submit(self, writing: Writing) -> Future[list[int]]:
        """Queues a writing, and returns the future of its tokens.

        The future raises Stopped if the writing or the loop was stopped, OutOfDeviceMemory, DeviceLost or GenerationError.
        """
        with self._changed:
            if self._closed:
                writing.result.set_exception(errors.Stopped())
            else:
                self._waiting.append(writing)
                self._changed.notify()
        return writing.result

    def close(self) -> None:
        """Ends the thread. Writings that have not finished end with Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = errors.Stopped()
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._turn()
        except BaseException as unexpected:
            log.exception("The planner's loop has ended.")
            error = _translated(unexpected, self._network.device)
        with self._changed:
            self._closed = True
        for writing in [*self._active, *self._waiting]:
            writing.result.set_exception(error)

    def _has_work(self) -> bool:
        """Waits for a writing. Returns false once the loop is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._active)
            return not self._closed

    def _turn(self) -> None:
        """One step of all writings."""
        self._drop_stopped()
        self._admit()
        self._read_prompts()
        try:
            self._step()
            self._choose()
        except Exception as error:
            self._end_all(error)

    def _drop_stopped(self) -> None:
        with self._changed:
            waiting = list(self._waiting)
        for writing in [*self._active, *waiting]:
            try:
                if writing.stopped():
                    self._end(writing, errors.Stopped())
            except Exception as error:
                self._end(writing, error)

    def _admit(self) -> None:
        """Gives rows of the cache to the writings that have waited longest."""
        while True:
            with self._changed:
                free = self._network.rows - len(self._lanes)
                if not self._waiting or self._waiting[0].sequences > free:
                    return
                writing = self._waiting.popleft()
                self._active.append(writing)
            try:
                self._lanes.extend(writing.begin(self._network.device))
            except Exception as error:
                self._end(writing, error)

    def _read_prompts(self) -> None:
        """Reads what is more than one token: all that is short, and pieces of long prompts.

        A prompt is cut into pieces of _CHUNK tokens whatever else is read, so that a song's numbers do not depend on others.
        """
        long_ones = _first_pieces(lane for lane in self._lanes if len(lane.unread) > _SHORT)
        short_ones = [lane for lane in self._lanes if 1 < len(lane.unread) <= _SHORT]
        owners = {id(lane): writing for writing in self._active for lane in writing.lanes}
        for lane in [*long_ones, *short_ones]:
            try:
                self._read(lane)
            except Exception as error:
                self._end(owners[id(lane)], error)

    def _read(self, lane: _Lane) -> None:
        if lane not in self._lanes:  # its writing has failed in this turn
            return
        piece = lane.unread[:_CHUNK]
        lane.read(len(piece), self._network.read(self._row(lane), piece, lane.length))

    def _row(self, lane: _Lane) -> int:
        return next(row for row, other in enumerate(self._lanes) if other is lane)

    def _step(self) -> None:
        """Reads one token of each sequence that has just one to read."""
        ready = [(row, lane) for row, lane in enumerate(self._lanes) if len(lane.unread) == 1]
        if not ready:
            return
        rows = ready[-1][0] + 1
        tokens = [lane.unread[0] if len(lane.unread) == 1 else None for lane in self._lanes[:rows]]
        states = self._network.step(tokens, [lane.length for lane in self._lanes[:rows]])
        for row, lane in ready:
            lane.read(1, states[row])

    def _choose(self) -> None:
        """Draws the next token of each writing that waits for one."""
        ready = [writing for writing in self._active if writing.waits]
        # Grouped before any is answered: an answer brings tokens that must be read before the next question.
        groups = [
            [writing for writing in ready if isinstance(writing.cursor.question, kind)] for kind in (Code, Text, Choice)
        ]
        for group in filter(None, groups):
            for writing, token in zip(group, self._drawn(group), strict=True):
                self._answer(writing, token)
        for writing in ready:
            if writing.cursor.question is None and not writing.result.done():
                self._end(writing)

    def _drawn(self, group: Sequence[Writing]) -> list[int | None]:
        """Returns the token drawn for each of the writings, all of which ask for the same kind of token; None for NaN."""
        head = self._heads.of([writing.cursor.question for writing in group])
        logits = head.logits(_states(writing.lanes[0] for writing in group))
        if any(writing.sequences == 2 for writing in group):
            scales = [writing.sampling.guidance if writing.sequences == 2 else 1.0 for writing in group]
            other = head.logits(_states(writing.lanes[-1] for writing in group))
            logits = guided(logits, other, torch.tensor(scales, device=logits.device))
        ways = [writing.sampling for writing in group]
        generators = [writing.generator for writing in group]
        columns = draw(head.masked(logits), head.widths(), ways, generators)
        tokens = head.tokens([column or 0 for column in columns])
        return [None if column is None else token for token, column in zip(tokens, columns, strict=True)]

    def _answer(self, writing: Writing, token: int | None) -> None:
        try:
            if token is None:
                raise errors.GenerationError(
                    "The planner's language model computed something that is not a number. With bfloat16, try dtype: float32."
                )
            writing.answer(token)
        except Exception as error:
            self._end(writing, error)
            return
        if writing.cursor.question is None:
            self._end(writing)

    def _end(self, writing: Writing, error: BaseException | None = None) -> None:
        """Gives back a writing's rows, then sets its result or its error."""
        for lane in writing.lanes:
            self._release(lane)
        with self._changed:
            for queue in (self._active, self._waiting):
                if writing in queue:
                    queue.remove(writing)
        if error is None:
            writing.result.set_result(writing.cursor.written)
        else:
            writing.result.set_exception(_translated(error, self._network.device))

    def _end_all(self, error: Exception) -> None:
        """Ends every writing that takes part in the steps."""
        log.warning("A step of the planner failed with %s.", type(error).__name__, exc_info=error)
        for writing in list(self._active):
            self._end(writing, error)

    def _release(self, lane: _Lane) -> None:
        """Gives back a row. The sequence in the last row moves there, so that those in use are neighbours."""
        row = self._row(lane)
        last = self._lanes.pop()
        if last is not lane:
            self._network.move(len(self._lanes), row, last.length)
            self._lanes[row] = last


def _first_pieces(lanes: Iterable[_Lane]) -> list[_Lane]:
    """The first sequences whose next pieces have at most _CHUNK tokens together; at least one, if there is any."""
    chosen: list[_Lane] = []
    total = 0
    for lane in lanes:
        total += min(len(lane.unread), _CHUNK)
        if chosen and total > _CHUNK:
            break
        chosen.append(lane)
    return chosen


def _states(lanes: Iterable[_Lane]) -> torch.Tensor:
    """The hidden states of sequences that have read all their tokens: [sequences, hidden]."""
    return torch.stack([lane.state for lane in lanes if lane.state is not None])


def _translated(error: BaseException, device: torch.device) -> BaseException:
    """Returns the error that a writing ends with. Those of torch become Sophia's, and hold no tensors."""
    if isinstance(error, errors.SophiaError | errors.Stopped):
        return error
    if isinstance(error, torch.AcceleratorError):
        return errors.DeviceLost(f"{device_name(device)} failed while it planned: {error}")
    if is_out_of_memory(error):
        release_memory(device)
        return errors.OutOfDeviceMemory(
            f"There is not enough memory on {device_name(device)} to plan a song. Plan fewer songs at once (rows), or allow less "
            "(context)."
        )
    return errors.GenerationError(
        f"Planning failed with {type(error).__name__}: {str(error)[:200]}. The worker's log has more."
    )
