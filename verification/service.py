"""One network in memory for many clients: a bounded number of requests, embedded in batches; and
the web server, on its address, with a bounded number of connections."""

import contextlib
import ipaddress
import os
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import waitress
from flask import Flask, current_app
from waitress.channel import HTTPChannel
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.local import LocalProxy

from utils import UserError
from verification.index import Index
from verification.matcher import BATCH, Features, Matcher
from verification.portraits import Portrait

WAITING = 16  # requests that are worked on or wait; more are refused
CONNECTIONS = 200  # that are held: a further one ends the one that has been idle longest
LARGEST_BODY = 2**27  # bytes; what is too large is read to its end, so that a browser sees why


class Service:
    """The matcher behind a queue, from which one thread embeds what requests have put there; and
    the archive, whose file is `path` if it has one."""

    def __init__(self, matcher: Matcher, archive: Index | None, path: str | None, waiting: int):
        self.matcher = matcher
        self.places = threading.BoundedSemaphore(waiting)
        self.reading = threading.BoundedSemaphore(os.cpu_count() or 1)  # photographs are large
        self.queue: queue.Queue = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()
        self.archive, self.opening = archive, threading.Lock()
        self.path = path if path and os.path.isfile(path) else ''
        self.stamp = os.path.getmtime(self.path) if self.path else 0.0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds one of the places of requests. Raises ServiceUnavailable if none is free."""
        if not self.places.acquire(blocking=False):
            raise ServiceUnavailable('Too many at once: try again in a moment.')
        try:
            yield
        finally:
            self.places.release()

    def features(self, faces: list[Portrait]) -> list[Features]:
        """Matcher.features, in one batch with those of other requests."""
        future: Future = Future()
        self.queue.put((faces, future))
        return future.result()

    def _work(self):
        while True:
            requests = [self.queue.get()]
            with contextlib.suppress(queue.Empty):
                while sum(len(faces) for faces, _ in requests) < BATCH:
                    requests.append(self.queue.get_nowait())
            try:
                found = self.matcher.features([face for faces, _ in requests for face in faces])
            except BaseException as error:  # every request answers for itself
                for _, future in requests:
                    future.set_exception(error)
                continue
            for faces, future in requests:
                future.set_result(found[: len(faces)])
                found = found[len(faces) :]

    def index(self) -> Index | None:
        """The archive, read again as soon as its file is another. If that can't be used, why is
        said once, and the index before it stays."""
        with self.opening, contextlib.suppress(OSError):  # it may be gone
            stamp = os.path.getmtime(self.path)
            if stamp != self.stamp:
                self.stamp = stamp
                try:
                    self.archive = Index.open(self.path, self.matcher.info.sha256)
                except UserError as error:
                    print(f'not served: {error}', file=sys.stderr, flush=True)
        return self.archive


service: Service = LocalProxy(lambda: current_app.extensions['service'])  # type: ignore[assignment]


class _Channel(HTTPChannel):
    def __init__(self, server, *arguments, **options):
        super().__init__(server, *arguments, **options)
        channels = server.active_channels.values()
        idle = [one for one in channels if one is not self and not one.requests]
        if idle and len(channels) > CONNECTIONS:
            min(idle, key=lambda one: one.last_activity).will_close = True


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches a server on `host`."""
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return host == 'localhost'


def create_server(app: Flask, host: str, port: int):
    """A waitress server. Raises UserError if the address can't be had."""
    sockets: dict = {}
    # more threads than requests may wait, so that those beyond are answered at once
    limits = {'threads': WAITING + 8, 'connection_limit': 2 * CONNECTIONS, 'channel_timeout': 60}
    options = limits | {'ident': None, 'max_request_body_size': LARGEST_BODY}
    try:
        server = waitress.create_server(app, sockets, host=host.strip('[]'), port=port, **options)
    except (OSError, ValueError) as error:
        why = f'--host {host} --port {port}: {getattr(error, "strerror", error)}'
        known = '127.0.0.1 is this machine alone, 0.0.0.0 all that reach it'
        raise UserError(f'{why}: --port or --host names another: {known}') from None
    for one in sockets.values():
        one.channel_class = _Channel
    return server


def serve_app(app: Flask, host: str, port: int) -> None:
    """Serves until it is interrupted. Raises UserError if the address can't be had."""
    server = create_server(app, host, port)
    name = f'[{host.strip("[]")}]' if ':' in host else host
    warning = '; whoever reaches this machine can use it: there is no password'
    print(f'http://{name}:{port}/ until Ctrl-C{"" if is_loopback(host) else warning}', flush=True)
    server.run()
