"""Errors of actors that cross Ray as themselves.

Ray pickles what a method raises. Of one that cannot be pickled it sends two kilobytes about pickling, and one that
cannot be built again at the other end is an error of Ray's own; either hides what went wrong. One whose traceback is
no UTF-8 ends the actor.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ray.exceptions import RayError

from asyncrl.errors import ActorError, UserError
from asyncrl.plugins import encodable, shown

C = TypeVar("C", bound=type)


def crossing(actor: C) -> C:
    """Class decorator, below `ray.remote`: what a public method raises arrives, as ActorError if it cannot itself."""
    for name, method in inspect.getmembers(actor, inspect.isfunction):
        if not name.startswith("_"):
            setattr(actor, name, _crossing(method))
    return actor


def _crossing(method: Callable[..., Any]) -> Callable[..., Any]:
    # The wrappers have the method's attributes, such as its concurrency group, and its signature.
    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return method(*arguments, **keywords)
        except Exception as error:
            _raise(error)

    @functools.wraps(method)
    async def call_async(*arguments: Any, **keywords: Any) -> Any:
        try:
            return await method(*arguments, **keywords)
        except Exception as error:
            _raise(error)

    return call_async if inspect.iscoroutinefunction(method) else call


def _raise(error: Exception) -> NoReturn:
    said = encodable(shown(error))
    told = UserError(said) if isinstance(error, UserError) else ActorError(type(error).__name__, said)
    text = "".join(traceback.format_exception(error))
    if text != encodable(text):
        raise told.with_traceback(error.__traceback__) from None
    if isinstance(error, RayError) or _arrives(error):
        raise error
    raise told from error


def _arrives(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
