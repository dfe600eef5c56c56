"""What Ray leaks in the tests' process fails no test; what we leak fails the test in which it is found.

Python warns of a socket, file or process that nobody closed when it collects it, perhaps in another test than the one that made it.
Warnings are errors here, and this one does not say where the thing was made. So an audit hook (sys.addaudithook) remembers that at
its birth. A thing is Ray's if, among the frames that led there, the innermost one of Ray's is nearer than any of ours.
"""

import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final

_BIRTHS: Final = {"socket.__new__", "open", "subprocess.Popen"}
_OURS: Final = {"serve_app", "tests", "benchmarks", "miniature"}


class Leaks:
    """Records whether our code or Ray opened each socket, file and process.

    A key, such as a file descriptor, can be reused; the newer object then replaces the older one in the record.
    """

    def __init__(self) -> None:
        self._rays: set[tuple[str, Any]] = set()

    def install(self) -> None:
        """Records what is opened from now on, and hides Ray's leaks from pytest. Call it after pytest has set its own hook."""
        sys.addaudithook(self._born)
        heard: Callable[[Any], Any] = sys.unraisablehook
        sys.unraisablehook = lambda failed: None if self.is_rays(failed) else heard(failed)

    def is_rays(self, failed: Any) -> bool:
        """Whether an unraisable error (sys.UnraisableHookArgs) concerns an object of Ray's."""
        if (code := _code(failed.object)) is not None:
            return _is_rays_file(code.co_filename) or self._is_born_of_ray(_self_of(failed))
        return self._is_born_of_ray(failed.object)

    def _is_born_of_ray(self, thing: Any) -> bool:
        """Whether Ray opened this object. An asyncio transport or event loop belongs to the owner of its socket."""
        socket = getattr(thing, "_sock", None) or getattr(thing, "_ssock", None)
        return self._key(socket or thing) in self._rays

    def _born(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _BIRTHS:
            return
        frame = sys._getframe(1)
        key = _birth_key(event, args, frame)
        try:
            (self._rays.add if _is_made_by_ray(frame) else self._rays.discard)(key)
        except TypeError:  # what cannot be a key, such as a path in a bytearray
            return

    @staticmethod
    def _key(thing: Any) -> tuple[str, Any]:
        name = getattr(thing, "name", None)
        return ("open", name) if isinstance(name, str | int) else ("object", id(thing))


def _birth_key(event: str, args: tuple[Any, ...], frame: FrameType) -> tuple[str, Any]:
    if event == "open":
        return "open", args[0]
    return "object", id(args[0] if event == "socket.__new__" else frame.f_locals.get("self"))


def _is_made_by_ray(frame: FrameType | None) -> bool:
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "ray":
            return True
        if package in _OURS:
            return False
        frame = frame.f_back
    return False


def _code(thing: Any) -> CodeType | None:
    """The code of a destructor that failed, or of a coroutine that was never awaited."""
    if inspect.iscoroutine(thing):
        return thing.cr_code
    return getattr(thing, "__code__", None)


def _self_of(failed: Any) -> Any:
    """The object whose destructor failed: the first local name of the frame that raised."""
    traceback = failed.exc_traceback
    return traceback.tb_frame.f_locals.get("self") if traceback is not None else None


def _is_rays_file(name: str) -> bool:
    return "/site-packages/ray/" in name
