"""The server: where it listens, how much it takes at once, and clients that harm nobody."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from conftest import refused, serving
from PIL import Image

import utils
import verify

pytest.importorskip('flask')
pytest.importorskip('waitress')
from test_page import fields  # noqa: E402

from verification import page, server  # noqa: E402


@pytest.fixture(scope='module')
def port(matcher, archive):
    """Of a server as verify.py starts it."""
    with serving(page.application(matcher, archive)) as port:
        yield port


class Slow:
    """A matcher that waits to be let go on."""

    def __init__(self, matcher):
        self.matcher, self.go, self.batches, self.started = matcher, threading.Event(), [], 0
        self.decision, self.width, self.info = matcher.decision, matcher.width, matcher.info
        self.aged = matcher.aged

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
    wait, posts = ThreadPoolExecutor(6), []
    for k in range(6):
        data = fields(faces[k], faces[k + 1])
        posts.append(wait.submit(lambda data=data: app.test_client().post('/compare', data=data)))
    # a probe that got a place would wait for ever: it asks when all six are inside
    held, probe = app.extensions['site'].service, app.test_client()
    wait_until(lambda: slow.started and slow.started // 2 + held.queue.qsize() == 6)
    assert probe.post('/compare', data=fields(*faces[:2])).status_code == 503
    assert probe.post('/find', data=fields(faces[0])).status_code == 404  # which takes no place
    busy = probe.post('/', data=fields(*faces[:2]))
    assert busy.status_code == 503 and busy.headers['Retry-After'] == '2'
    assert probe.get('/').status_code == 200  # the page itself is always there
    assert probe.get('/health').status_code == 200
    slow.go.set()
    answers = [post.result(60) for post in posts]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert sum(slow.batches) == 12 and len(slow.batches) == 2  # the first, and those that waited
    for k, answer in enumerate(answers):  # everybody has their own answer
        a, b = matcher.features([np.asarray(Image.open(path)) for path in faces[k : k + 2]])
        want = pytest.approx(float(a.embedding @ b.embedding), abs=1e-5)
        assert answer.json['similarity'] == want
    assert probe.post('/compare', data=fields(*faces[:2])).status_code == 200


def test_an_error_of_the_network_is_everybodys_answer_and_no_end(matcher, faces, monkeypatch):
    client = page.application(matcher).test_client()

    def fail(of):
        raise utils.UserError('not finite')

    monkeypatch.setattr(matcher, 'features', fail)
    answer = client.post('/compare', data=fields(*faces[:2]))
    assert answer.status_code == 400 and answer.json['error'] == 'not finite'
    monkeypatch.undo()
    assert client.post('/compare', data=fields(*faces[:2])).status_code == 200


def body_of(paths):
    """The form of a POST with these images."""
    head = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a.jpg"\r\n\r\n'
    both = zip(('first', 'second'), paths, strict=True)
    parts = [head.format(name).encode() + path.read_bytes() + b'\r\n' for name, path in both]
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
    bodies = [body_of(faces[k : k + 2]) for k in range(8)]
    want = [json.loads(request(port, body)[1])['similarity'] for body in bodies]

    def ask(number):
        status, text = request(port, bodies[number % 8])
        if status == 200:
            similarity = json.loads(text)['similarity']
            assert similarity == pytest.approx(want[number % 8], abs=1e-5)
        return status

    with ThreadPoolExecutor(16) as clients:  # no more than may wait: nobody is refused
        assert set(clients.map(ask, range(64))) == {200}
    with ThreadPoolExecutor(48) as clients:
        statuses = list(clients.map(ask, range(96)))
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 16
    assert ask(0) == 200


def test_clients_that_stop_or_lie_harm_nobody(port, faces):
    body = body_of(faces[:2])
    head = (
        b'POST /compare HTTP/1.1\r\nHost: 127.0.0.1\r\n'
        b'Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n'
    )
    sent = [(len(body), body[:500]), (10**12, body), (len(body), b''), (0, body)]
    sent += 20 * [(len(body), body[:100])]  # more than may wait: bodies are awaited elsewhere
    slow = []
    for length, part in sent:
        connection = socket.create_connection(('127.0.0.1', port), 10)
        connection.sendall(head % length + part)
        slow.append(connection)  # and sends no more
    assert request(port, body)[0] == 200
    for connection in slow:
        connection.close()
    for cut in (body[:-300], body[: len(body) // 3]):  # whole by its length, cut within
        assert request(port, cut)[0] in (400, 422)
    assert request(port, body)[0] == 200


def test_idle_connections_keep_nobody_out(port, faces):
    body = body_of(faces[:2])
    idle = [socket.create_connection(('127.0.0.1', port), 10) for _ in range(450)]
    assert request(port, body)[0] == 200
    for connection in idle:
        connection.close()


def test_it_listens_to_this_machine_alone_unless_told():
    args = verify.arguments(['w.pth', '--serve'])
    assert all(map(server.is_loopback, (args.host, '::1', '[::1]', 'localhost')))
    assert not any(map(server.is_loopback, ('0.0.0.0', '::', 'example', '')))


@pytest.mark.parametrize('host', ['::1', '[::1]'])
def test_an_ipv6_address_stands_in_its_brackets(matcher, faces, host, monkeypatch, capsys):
    if not socket.has_ipv6:
        pytest.skip('no IPv6 here')
    app = page.application(matcher, host=host)
    running = server.create_server(app, host, 0)
    monkeypatch.setattr(server, 'create_server', lambda *_: running)
    thread = threading.Thread(target=server.serve, args=(app, host, running.effective_port))
    thread.daemon = True
    thread.start()
    connection = HTTPConnection('::1', running.effective_port, timeout=60)
    connection.request('GET', '/health', headers={'Host': f'[::1]:{running.effective_port}'})
    assert connection.getresponse().status == 200
    running.close()
    assert f'http://[::1]:{running.effective_port}/ until' in capsys.readouterr().out


def test_an_address_that_cant_be_had_is_one_line(matcher):
    app = page.application(matcher)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        said = f'{port}.*--port or --host names another'
        refused(said, server.serve, app, '127.0.0.1', port)
    for host in ('no.such.host.invalid', '1.2.3', '192.0.2.1', 'a b', ''):
        refused('host', server.serve, app, host, port)
