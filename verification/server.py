"""The web server: on which address it listens, and how many connections it holds."""

import ipaddress

import waitress
from flask import Flask
from waitress.channel import HTTPChannel

from utils import UserError
from verification.service import WAITING

CONNECTIONS = 200  # that are held: a further one ends the one that has been idle longest
LARGEST_BODY = 2**27  # bytes; what is too large is read to its end, so that a browser sees why


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
    except ValueError:
        known = '127.0.0.1 is this machine alone, 0.0.0.0 all that reach it'
        raise UserError(f'--host {host}: no address of this machine: {known}') from None
    except OSError as error:
        where = f'{host} port {port}: {error.strerror}'
        raise UserError(f'{where}: --port or --host names another') from None
    for one in sockets.values():
        one.channel_class = _Channel
    return server


def serve(app: Flask, host: str, port: int) -> None:
    """Serves until it is interrupted. Raises UserError if the address can't be had."""
    server = create_server(app, host, port)
    name = f'[{host.strip("[]")}]' if ':' in host else host
    warning = '; whoever reaches this machine can use it: there is no password'
    print(f'http://{name}:{port}/ until Ctrl-C{"" if is_loopback(host) else warning}', flush=True)
    server.run()
