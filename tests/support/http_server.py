"""An aiohttp application in a thread, for tests that put a proxy in front of a server or need a fake one."""

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
    """Run an application on a free loopback port; yields its address, without a path.

    Args:
        make_application: creates the application; its argument is a session for requests to other servers.
        tls: context for HTTPS; None: HTTP.
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
