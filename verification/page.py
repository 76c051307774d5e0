"""The web page and the HTTP API: two photographs, or one and an archive. Nothing is kept."""

import base64
import io
import ipaddress
from pathlib import Path

import waitress
from flask import Flask, Response, abort, jsonify, render_template, request, send_from_directory
from PIL import Image
from werkzeug.exceptions import HTTPException

from utils import DataError, UserError
from verification import answers, forms, portraits
from verification.forms import LARGEST, SHOWN
from verification.index import Index
from verification.matcher import Matcher
from verification.service import WAITING, Busy, Service

LOW = -0.4  # where the page's scale of similarities begins
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    'Content-Security-Policy': POLICY,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}


def application(
    matcher: Matcher,
    archive: Index | None = None,
    host: str = '127.0.0.1',
    far: float | None = None,
    waiting: int = WAITING,
) -> Flask:
    """Page and API as a WSGI application.

    It takes images of at most LARGEST bytes, two a request, and `waiting` requests at a time.
    """
    app = Flask('verify', template_folder=str(HERE), static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=2 * LARGEST + 2**16, MAX_FORM_PARTS=6, MAX_FORM_MEMORY_SIZE=2**17
    )
    if is_loopback(host):
        # else a site could point its own name here, and read what is shown
        app.config['TRUSTED_HOSTS'] = ['127.0.0.1', 'localhost', '[::1]']
    service, decision = Service(matcher, waiting), matcher.decision
    app.extensions['service'] = service

    @app.before_request
    def from_here():
        if request.headers.get('Sec-Fetch-Site', 'none') not in ('same-origin', 'none'):
            followed = request.method == 'GET' and request.path == '/'  # a link from elsewhere
            if not followed:
                abort(403, 'only from this page itself')

    @app.after_request
    def guarded(response):
        response.headers |= HEADERS
        return response

    def page(status=200, **answer):
        text = render_template(
            'page.html', archive=archive, largest=LARGEST >> 20, decision=decision, at=_at, **answer
        )
        return Response(text, status)

    def compared(first, second):
        portrait, features = zip(first[:2], second[:2], strict=True)
        similarity = float(features[0].embedding @ features[1].embedding)
        ages = answers.pair_ages([one.age for one in features], (first[2], second[2]))
        return portrait, features, decision.answer(similarity, ages, forms.rate(far))

    def found(one, most):
        return answers.find(matcher, archive, one[1], most, one[2], forms.rate(far))

    def given(*fields):
        """(Portrait, Features, age or None) of each image that came."""
        images = [
            (field, file)
            for field in fields
            for file in request.files.getlist(field)
            if file.filename
        ]
        ages = [forms.age(f'{field}_age') for field, _ in images]
        people = [service.read(*forms.upload(file)) for _, file in images]
        features = service.features([portrait.face for portrait in people]) if people else []
        return list(zip(people, features, ages, strict=True))

    @app.get('/')
    def form():
        return page()

    @app.post('/')
    def answer():
        with service.admitted():
            people = given('first', 'second')
            if len(people) < (1 if archive else 2):
                return page(400, problem=f'Choose {"a photograph" if archive else "two"}.')
            shown = [_person(portrait, features) for portrait, features, _ in people]
            if len(people) > 1:
                decided = compared(*people[:2])[2]
                return page(answer=decided, details=decided.details(decision), people=shown)
            return page(found=found(people[0], SHOWN), people=shown)

    @app.post('/compare')
    def compare():
        with service.admitted():
            people = given('first', 'second')
            if len(people) != 2:
                abort(400, 'send two images, `first` and `second`, as multipart/form-data')
            portrait, features, decided = compared(*people)
            faces = [answers.face(*both) for both in zip(portrait, features, strict=True)]
            return jsonify(faces=faces, **answers.decision(decided))

    @app.post('/find')
    def find():
        if archive is None:
            abort(404, 'no archive is served: --serve archive.index')
        with service.admitted():
            people = given('first')
            if len(people) != 1:
                abort(400, 'send an image, `first`, as multipart/form-data')
            looked_for = answers.face(*people[0][:2])
            return jsonify(
                looked_for=looked_for,
                archive=archive.root,
                searched=len(archive),
                left_out=len(archive.left_out),
                found=found(people[0], forms.most()),
            )

    @app.get('/face/<int:face>.jpg')
    def face(face):
        image, known = photograph(face)
        with service.reading:
            return _jpeg(portraits.cut(image, known.points))

    @app.get('/photograph/<int:face>.jpg')
    def whole(face):
        image, known = photograph(face)
        return _jpeg(portraits.marked(image, known, 1600))

    def photograph(face):
        if archive is None or face >= len(archive):
            abort(404, 'no such face')
        row = archive.faces[face]
        with service.reading:
            try:
                image = portraits.open_file(archive.path(face), archive.name(face))
            except DataError as error:
                abort(404, str(error))
        return image, portraits.Portrait(archive.name(face), None, row['box'], row['points'])

    @app.get('/<any("page.js", "page.css"):name>')
    def script(name):
        return send_from_directory(HERE, name)

    def refused(status, text):
        if request.path in ('/compare', '/find'):
            return jsonify(error=text), status
        return page(status, problem=text)

    @app.errorhandler(HTTPException)
    def wrong(error):
        large = f'At most two photographs, of at most {LARGEST >> 20} MB each.'
        return refused(error.code, large if error.code == 413 else error.description)

    app.register_error_handler(DataError, lambda error: refused(422, str(error)))
    app.register_error_handler(UserError, lambda error: refused(400, str(error)))

    @app.errorhandler(Busy)
    def busy(error):
        response = app.make_response(refused(503, 'Too many at once: try again in a moment.'))
        response.headers['Retry-After'] = '2'
        return response

    return app


def _person(portrait, features):
    """What the page shows of one of its photographs."""
    shown = None if portrait.shown is None else _data(portrait.shown)
    return {
        'name': portrait.name,
        'about': portrait.about,
        'age': features.about,
        'face': _data(Image.fromarray(portrait.face)),
        'photograph': shown,
    }


def _encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=90)
    return buffer.getvalue()


def _data(image):
    return f'data:image/jpeg;base64,{base64.b64encode(_encoded(image)).decode()}'


def _jpeg(image):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return Response(_encoded(image), mimetype='image/jpeg')


def _at(similarity):
    """Where a similarity stands on the page's scale, from 0 to 600."""
    return round(600 * (min(max(similarity, LOW), 1) - LOW) / (1 - LOW), 1)


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def create_server(app: Flask, host: str, port: int):
    """A waitress server. Raises UserError where the address can't be had."""
    try:
        # more threads than requests may wait, so that those beyond are told so at once; what is too
        # large is read to its end up to 8 × LARGEST, so that the browser sees the page's answer
        return waitress.create_server(
            app,
            host=host,
            port=port,
            threads=WAITING + 8,
            connection_limit=200,
            channel_timeout=60,
            ident=None,
            max_request_body_size=8 * LARGEST,
        )
    except OSError as error:
        raise UserError(f'{host} port {port}: {error.strerror}: --port names another') from None


def serve(app: Flask, host: str, port: int) -> None:
    """Serves until it is interrupted. Raises UserError where the address can't be had."""
    server = create_server(app, host, port)
    open_to_all = '; whoever reaches this machine can use it: there is no password'
    warning = '' if is_loopback(host) else open_to_all
    print(f'http://{host}:{port}/ until Ctrl-C{warning}', flush=True)
    server.run()
