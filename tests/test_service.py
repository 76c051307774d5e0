"""The HTTP API: what it answers, what it refuses, how much it takes at once."""

import io
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image
from test_calibration import stored
from test_verify import Stub, photograph_of

import utils
import verify
from evaluation.cells import AgeDecision
from verification import indexing, portraits

pytest.importorskip('flask')
pytest.importorskip('waitress')
from verification import page  # noqa: E402


@pytest.fixture(scope='module')
def archive(matcher, drawn):
    return indexing.read_folder(matcher, str(drawn / 'val'))


@pytest.fixture(scope='module')
def faces(drawn):
    return sorted((drawn / 'val').rglob('*.jpg'))


@pytest.fixture
def client(matcher, archive):
    return page.application(matcher, archive).test_client()


@pytest.fixture(scope='module')
def port(matcher, archive):
    """Of a server as verify.py starts it."""
    server = page.create_server(page.application(matcher, archive), '127.0.0.1', 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.effective_port
    server.close()
    thread.join(10)


def fields(*images, **more):
    files = {
        name: (io.BytesIO(data if isinstance(data, bytes) else data.read_bytes()), 'a.jpg')
        for name, data in zip(('first', 'second'), images, strict=False)
    }
    return files | more


KEYS = {
    'similarity',
    'same',
    'threshold',
    'by',
    'far',
    'probability',
    'ages',
    'caution',
    'pairs_of_two_people',
    'pairs_of_one_person',
    'verdict',
}


def test_compare_is_what_the_command_line_says(client, matcher, faces, weights, capsys):
    answer = client.post('/compare', data=fields(faces[0], faces[1]))
    a, b = matcher.features([np.asarray(Image.open(path)) for path in faces[:2]])
    assert answer.status_code == 200 and answer.json.keys() == KEYS | {'faces'}
    assert answer.json['similarity'] == pytest.approx(float(a.embedding @ b.embedding), abs=1e-6)
    verify.run(verify.arguments([str(weights), str(faces[0]), str(faces[1]), '--json']))
    printed = json.loads(capsys.readouterr().out)
    for key in KEYS - {'similarity'}:
        assert printed[key] == answer.json[key]
    assert [one['age'] for one in printed['faces']] == [one['age'] for one in answer.json['faces']]


def test_find_is_the_index_product(client, matcher, archive, faces):
    answer = client.post('/find', data=fields(faces[7], top='5')).json
    (features,) = matcher.features([np.asarray(Image.open(faces[7]))])
    best = np.sort(archive.embeddings @ features.embedding)[::-1][:5]
    np.testing.assert_allclose([one['similarity'] for one in answer['found']], best, atol=1e-5)
    first = answer['found'][0]
    assert first.keys() == KEYS | {'rank', 'face', 'photograph', 'box', 'person', 'age'}
    assert first['photograph'] == os.path.relpath(faces[7], archive.root) and first['rank'] == 1
    assert answer['searched'] == 36 and first['box'] == [0, 0, 96, 112]
    shown = client.get(f'/face/{first["face"]}.jpg')
    assert Image.open(io.BytesIO(shown.data)).size == (96, 112)
    assert client.get(f'/photograph/{first["face"]}.jpg').mimetype == 'image/jpeg'


def test_ages_and_rates_decide(matcher, archive, faces):
    decision = matcher.decision._replace(ages=AgeDecision(stored()))
    known = type(matcher)(matcher.model, matcher.info, matcher.device, decision)
    client = page.application(known, archive).test_client()
    answer = client.post(
        '/compare', data=fields(faces[0], faces[1], first_age='4', second_age='30', far='0.001')
    ).json
    assert answer['by'] == 'ages' and answer['threshold'] == pytest.approx(0.6)
    assert answer['ages'] == {'first': 4, 'second': 30, 'estimated': False}
    text = client.post('/', data=fields(faces[0], faces[1], first_age='4')).text
    assert 'for the estimated ages 4 and' in text and 'Probability of one person' in text
    found = client.post('/find', data=fields(faces[0], first_age='5', top='1')).json['found'][0]
    assert found['ages']['first'] == 5 and found['by'] == 'ages'


@pytest.mark.parametrize(
    'more, said',
    [
        ({'first_age': 'old'}, 'first_age'),
        ({'second_age': '-3'}, 'second_age'),
        ({'first_age': '1e400'}, 'first_age'),
        ({'far': '7'}, 'far'),
        ({'far': 'x'}, 'far'),
        ({'far': 'nan'}, 'far'),
    ],
)
def test_values_that_mean_nothing(client, faces, more, said):
    answer = client.post('/compare', data=fields(faces[0], faces[1], **more))
    assert answer.status_code == 400 and said in answer.json['error']


@pytest.mark.parametrize('top', ['0', '-1', '101', '٣', '9' * 5000, ''])
def test_how_many_is_bounded(client, faces, top):
    answer = client.post('/find', data=fields(faces[0], top=top))
    assert answer.status_code == 400 and 'top' in answer.json['error']


@pytest.mark.parametrize('path', ['/compare', '/find'])
def test_wrong_types_are_answered_in_json(client, faces, path):
    for options in (
        {'json': {'first': 'x'}},
        {'data': b'\xff' * 999},
        {},
        {'data': faces[0].read_bytes(), 'content_type': 'image/jpeg'},
        {'data': {'first': 'text'}},
        {'data': b'--x\r\n', 'content_type': 'multipart/form-data; boundary=x'},
    ):
        answer = client.post(path, **options)
        assert answer.status_code == 400 and 'multipart/form-data' in answer.json['error']
    assert client.get(path).status_code == 405
    for junk in (b'', b'junk', b'GIF89a' + bytes(30)):
        answer = client.post(path, data=fields(junk, faces[0] if path == '/compare' else b''))
        assert answer.status_code in (400, 422) and answer.json['error']


def test_sizes_are_bounded(client, faces):
    face = faces[0].read_bytes()
    answer = client.post('/find', data=fields(face + bytes(page.LARGEST)))
    assert answer.status_code == 422 and 'larger than 16 MB' in answer.json['error']
    answer = client.post('/compare', data=fields(face + bytes(2 * page.LARGEST + 2**17), face))
    assert answer.status_code == 413 and 'At most two' in answer.json['error']


def test_no_archive_no_faces(matcher, faces):
    client = page.application(matcher).test_client()
    answer = client.post('/find', data=fields(faces[0]))
    assert answer.status_code == 404 and '--serve archive.index' in answer.json['error']
    for path in ('/face/0.jpg', '/photograph/0.jpg'):
        assert client.get(path).status_code == 404


def test_photographs_of_the_archive_alone_are_shown(client, archive, monkeypatch):
    for path in (
        '/face/36.jpg',
        '/face/-1.jpg',
        '/photograph/99999999999999999999.jpg',
        '/photograph/..%2f..%2fetc.jpg',
        '/face/1.png',
    ):
        assert client.get(path).status_code == 404
    answer = client.get('/face/0.jpg', headers={'Sec-Fetch-Site': 'cross-site'})
    assert answer.status_code == 403
    monkeypatch.setattr(archive, 'root', '/gone')
    gone = client.get('/photograph/0.jpg')
    assert gone.status_code == 404 and 'No such file' in gone.text


def test_every_answer_is_guarded(client, faces):
    for answer in (
        client.get('/'),
        client.get('/page.js'),
        client.post('/compare'),
        client.get('/face/0.jpg'),
        client.get('/nothing'),
    ):
        for name, value in page.HEADERS.items():
            assert answer.headers[name] == value
    assert 'unsafe' not in page.POLICY and '*' not in page.POLICY
    face = faces[0]
    for site in ('cross-site', 'same-site'):
        answer = client.post('/find', data=fields(face), headers={'Sec-Fetch-Site': site})
        assert answer.status_code == 403


def test_a_photograph_is_shown_with_its_face_marked(matcher, faces, tmp_path, monkeypatch):
    (tmp_path / 'archive').mkdir()
    points = photograph_of(faces[3], tmp_path / 'archive' / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    archive = indexing.read_folder(matcher, str(tmp_path / 'archive'))
    client = page.application(matcher, archive).test_client()
    photograph = Image.open(io.BytesIO(client.get('/photograph/0.jpg').data))
    x, y = np.round(points[2]).astype(int).tolist()
    red, _, blue = photograph.getpixel((x, y))
    assert photograph.size == (480, 640) and blue < 90 < 200 < red  # the dot on the nose is yellow
    cut = np.asarray(Image.open(io.BytesIO(client.get('/face/0.jpg').data)), float)
    assert np.abs(cut - np.asarray(Image.open(faces[3]), float))[4:-4, 4:-4].mean() < 6


class Slow:
    """A matcher that waits to be let go on."""

    def __init__(self, matcher):
        self.matcher, self.go, self.batches, self.started = matcher, threading.Event(), [], 0
        self.decision, self.width, self.groups = matcher.decision, matcher.width, matcher.groups

    def features(self, faces):
        self.started = self.started or len(faces)
        self.go.wait(60)
        self.batches.append(len(faces))
        return self.matcher.features(faces)


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError('it never came to it')


def test_a_full_queue_refuses_and_waiting_requests_share_batches(matcher, faces):
    slow = Slow(matcher)
    app = page.application(slow, waiting=6)
    wait = ThreadPoolExecutor(6)
    posts = []
    for k in range(6):
        data = fields(faces[k], faces[k + 1])
        posts.append(wait.submit(lambda data=data: app.test_client().post('/compare', data=data)))
    probe = app.test_client()

    def full():
        return probe.post('/compare', data=fields(faces[0], faces[1])).status_code == 503

    # a probe that got a place would wait for ever: it asks when all six are inside
    held = app.extensions['service']
    wait_until(lambda: slow.started and slow.started // 2 + held.queue.qsize() == 6)
    assert full()
    answer = probe.post('/find', data=fields(faces[0]))
    assert answer.status_code == 404  # which takes no place
    busy = probe.post('/', data=fields(faces[0], faces[1]))
    assert busy.status_code == 503 and busy.headers['Retry-After'] == '2'
    assert probe.get('/').status_code == 200  # the page itself is always there
    slow.go.set()
    answers = [post.result(60) for post in posts]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert sum(slow.batches) == 12 and len(slow.batches) == 2  # the first, and those that waited
    for k, answer in enumerate(answers):  # everybody has their own answer
        a, b = matcher.features([np.asarray(Image.open(path)) for path in faces[k : k + 2]])
        want = pytest.approx(float(a.embedding @ b.embedding), abs=1e-5)
        assert answer.json['similarity'] == want
    assert probe.post('/compare', data=fields(faces[0], faces[1])).status_code == 200


def test_an_error_of_the_network_is_everybodys_answer_and_no_end(matcher, faces, monkeypatch):
    client = page.application(matcher).test_client()

    def fail(of):
        raise utils.UserError('not finite')

    monkeypatch.setattr(matcher, 'features', fail)
    answer = client.post('/compare', data=fields(faces[0], faces[1]))
    assert answer.status_code == 400 and answer.json['error'] == 'not finite'
    monkeypatch.undo()
    assert client.post('/compare', data=fields(faces[0], faces[1])).status_code == 200


def multipart(*images):
    head = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a.jpg"\r\n\r\n'
    parts = [
        head.format(name).encode() + image + b'\r\n'
        for name, image in zip(('first', 'second'), images, strict=False)
    ]
    return b''.join(parts) + b'--b--\r\n'


def request(port, body, path='/compare'):
    connection = HTTPConnection('127.0.0.1', port, timeout=60)
    try:
        connection.request('POST', path, body, {'Content-Type': 'multipart/form-data; boundary=b'})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_many_clients_at_once_are_answered_rightly_or_refused(port, faces):
    images = [path.read_bytes() for path in faces]
    want = {
        k: json.loads(request(port, multipart(images[k], images[k + 1]))[1])['similarity']
        for k in range(8)
    }

    def ask(number):
        k = number % 8
        status, text = request(port, multipart(images[k], images[k + 1]))
        if status == 200:
            assert json.loads(text)['similarity'] == pytest.approx(want[k], abs=1e-5)
        return status

    with ThreadPoolExecutor(16) as clients:  # no more than may wait: nobody is refused
        assert set(clients.map(ask, range(64))) == {200}
    with ThreadPoolExecutor(48) as clients:
        statuses = list(clients.map(ask, range(96)))
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 16
    assert ask(0) == 200


def test_clients_that_stop_or_lie_harm_nobody(port, faces):
    images = [path.read_bytes() for path in faces[:2]]
    body = multipart(*images)
    head = (
        b'POST /compare HTTP/1.1\r\nHost: 127.0.0.1\r\n'
        b'Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n'
    )
    slow = []
    for length, sent in ((len(body), body[:500]), (10**12, body), (len(body), b''), (0, body)):
        connection = socket.create_connection(('127.0.0.1', port), 10)
        connection.sendall(head % length + sent)
        slow.append(connection)  # and says no more
    for _ in range(20):  # more of them than requests may wait: bodies are awaited elsewhere
        connection = socket.create_connection(('127.0.0.1', port), 10)
        connection.sendall(head % len(body) + body[:100])
        slow.append(connection)
    assert request(port, body)[0] == 200
    for connection in slow:
        connection.close()
    for cut in (body[:-300], body[: len(body) // 3]):  # whole by its length, cut within
        assert request(port, cut)[0] in (400, 422)
    assert request(port, body)[0] == 200
