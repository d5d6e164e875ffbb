"""An aiohttp application that serves in a thread of its own, for tests that put something before a server."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web


@contextmanager
def serve(
    make_application: Callable[[aiohttp.ClientSession], web.Application], *, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve on a free loopback port; yields the address, without a path.

    Args:
        make_application: is given a session for requests to other servers, within the loop that serves.
        tls: serve HTTPS.
    """
    loop = asyncio.new_event_loop()
    addresses: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession() as session:
            runner = web.AppRunner(make_application(session), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            addresses.append(f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}")
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
