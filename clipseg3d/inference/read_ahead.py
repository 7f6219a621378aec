"""Read in a thread what is needed next."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Content = TypeVar("Content")


def read_ahead(
    read: Callable[[Item], Content], items: Iterable[Item]
) -> Generator["Future[Content]", None, None]:
    """Yield what is read of each item, in order; the next item is read while one is used.

    Besides the item that is used, at most one is held, if the caller drops each before it asks for
    the next. Closing the generator waits for the item that is being read, and reads no other.

    Args:
        read: reads an item; runs in another thread, one item at a time.
        items: what to read.

    Yields:
        Futures, whose ``result()`` waits until the item has been read, and raises its error.
    """
    ahead: deque[Future[Content]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as reader:
        try:
            for item in items:
                ahead.append(reader.submit(read, item))
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead
        finally:
            for future in ahead:
                future.cancel()
