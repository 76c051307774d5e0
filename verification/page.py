"""The web page: two photographs, or one and a folder. No script, nothing fetched, nothing kept."""

import base64
import io
import ipaddress
import secrets
import threading
from pathlib import Path

import waitress
from flask import Flask, Response, abort, render_template, request
from werkzeug.exceptions import HTTPException

from utils import DataError, UserError
from verification import portraits
from verification.matcher import jpeg

LARGEST, MOST_PIXELS = 16 * 2**20, 60_000_000  # bytes and pixels of a photograph
SHOWN = 12  # faces of the folder
LOW = -0.4  # where the page's scale of similarities begins


def application(matcher, gallery=None, host='127.0.0.1'):
    """The page as a WSGI application.

    It takes images alone, at most two of LARGEST bytes, and works on one request at a time.
    """
    app = Flask('verify', template_folder=str(Path(__file__).parent), static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=2 * LARGEST + 2**16, MAX_FORM_PARTS=2, MAX_FORM_MEMORY_SIZE=2**17
    )
    if is_loopback(host):
        # else a site could point its own name here, and read what is shown
        app.config['TRUSTED_HOSTS'] = ['127.0.0.1', 'localhost', '[::1]']
    working = threading.Lock()

    def page(status=200, **answer):
        nonce = secrets.token_urlsafe(16)
        text = render_template(
            'page.html',
            nonce=nonce,
            gallery=gallery,
            largest=LARGEST >> 20,
            decision=matcher.decision,
            at=_at,
            **answer,
        )
        response = Response(text, status)
        response.headers['Content-Security-Policy'] = (
            f"default-src 'none'; img-src data:; style-src 'nonce-{nonce}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        response.headers |= {
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
            'Cache-Control': 'no-store',
        }
        return response

    @app.get('/')
    def form():
        return page()

    @app.post('/')
    def compare():
        if request.headers.get('Sec-Fetch-Site', 'none') not in ('same-origin', 'none'):
            abort(403, 'only from this page itself')
        given = [
            (file.filename.replace('\\', '/').rsplit('/')[-1][:60], file.read(LARGEST + 1))
            for place in ('first', 'second')
            for file in request.files.getlist(place)
            if file.filename
        ]
        if len(given) < (1 if gallery else 2):
            return page(
                400, problem='Choose two photographs.' if not gallery else 'Choose a photograph.'
            )
        with working:
            try:
                shown = [_read(name, data) for name, data in given]
            except DataError as error:
                return page(422, problem=str(error))
            looks = matcher.look([portrait.face for portrait in shown])
        answer = {'people': [_person(*both) for both in zip(shown, looks, strict=True)]}
        if len(given) == 2:
            similarity = float(looks[0].embedding @ looks[1].embedding)
            return page(
                similarity=similarity,
                same=matcher.decision.same(similarity),
                verdict=matcher.decision.verdict(similarity),
                meaning=matcher.decision.meaning(similarity),
                **answer,
            )
        found = gallery.nearest(looks[0].embedding, SHOWN)
        return page(
            found=[(one, _data(one.face), matcher.decision.same(one.similarity)) for one in found],
            meaning=matcher.decision.meaning(found[0].similarity),
            **answer,
        )

    @app.errorhandler(HTTPException)
    def refused(error):
        problems = {
            413: f'At most two photographs, of at most {LARGEST >> 20} MB each.',
            403: 'Only from this page itself.',
        }
        return page(error.code, problem=problems.get(error.code, error.description))

    return app


def _read(name, data):
    if len(data) > LARGEST:
        raise DataError(f'{name}: larger than {LARGEST >> 20} MB')
    return portraits.read(data, name, MOST_PIXELS)


def _person(portrait, look):
    """What the page shows of one of its photographs."""
    photograph = None
    if portrait.shown is not None:
        buffer = io.BytesIO()
        portrait.shown.save(buffer, 'JPEG', quality=85)
        photograph = _data(buffer.getvalue())
    return {
        'name': portrait.name,
        'about': portrait.about,
        'age': look.about,
        'face': _data(jpeg(portrait.face)),
        'photograph': photograph,
    }


def _data(image):
    return f'data:image/jpeg;base64,{base64.b64encode(image).decode()}'


def _at(similarity):
    """Where a similarity stands on the page's scale, from 0 to 600."""
    return round(600 * (min(max(similarity, LOW), 1) - LOW) / (1 - LOW), 1)


def is_loopback(host):
    """Whether only this machine itself reaches a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def serve(app, host, port):
    """Serves until it is interrupted. Raises UserError where the address can't be had."""
    try:
        # a request that is too large for the page is still read to its end up to this size,
        # so that the browser sees the page's answer
        server = waitress.create_server(
            app,
            host=host,
            port=port,
            threads=4,
            connection_limit=50,
            channel_timeout=60,
            ident=None,
            max_request_body_size=8 * LARGEST,
        )
    except OSError as error:
        raise UserError(f'{host} port {port}: {error.strerror}: --port names another') from None
    warning = (
        ''
        if is_loopback(host)
        else '; whoever reaches this machine can use it: there is no password'
    )
    print(f'http://{host}:{port}/ until Ctrl-C{warning}', flush=True)
    server.run()
