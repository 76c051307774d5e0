"""The HTTP API under load: requests a second and latency of POST /compare on loopback.

    python3 benchmarks/serve.py weights image image [--clients 1 16] [--seconds 10] [--out JSON]

verify.py --serve runs in a process of its own; the clients are threads of this one, each with a
connection of its own, which asks again as soon as it is answered.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def form(images):
    """A multipart/form-data body of two image files."""
    head = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a.jpg"\r\n\r\n'
    parts = [
        head.format(name).encode() + Path(image).read_bytes() + b'\r\n'
        for name, image in zip(('first', 'second'), images, strict=True)
    ]
    return b''.join(parts) + b'--b--\r\n'


def client(port, body, end, times, statuses):
    """Asks until `end`; notes the time and status of each answer."""
    connection = HTTPConnection('127.0.0.1', port, timeout=120)
    while time.perf_counter() < end:
        start = time.perf_counter()
        connection.request(
            'POST', '/compare', body, {'Content-Type': 'multipart/form-data; boundary=b'}
        )
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - start)
        statuses.append(answer.status)
    connection.close()


def load(port, body, clients, seconds):
    """Requests a second and latencies in ms with so many clients."""
    times, statuses, start = [], [], time.perf_counter()
    threads = [
        threading.Thread(target=client, args=(port, body, start + seconds, times, statuses))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    milliseconds = 1000 * np.array(times)
    return {
        'clients': clients,
        'requests_per_s': len(times) / took,
        'answers': len(times),
        'refused': sum(status == 503 for status in statuses),
        'failed': sum(status not in (200, 503) for status in statuses),
        'median_ms': float(np.median(milliseconds)),
        'p95_ms': float(np.quantile(milliseconds, 0.95)),
        'most_ms': float(milliseconds.max()),
    }


def run(args):
    line = [sys.executable, '-u', ROOT / 'verify.py', args.weights, '--serve', '--port', args.port]
    server = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        if not re.match('http://', said):
            sys.exit('the server did not start')
        body = form(args.images)
        load(args.port, body, 1, 1)  # to warm up
        rows = [load(args.port, body, clients, args.seconds) for clients in args.clients]
    finally:
        server.terminate()
        server.wait()
    for row in rows:
        print(json.dumps(row))
    if args.out:
        report = {'cores': os.cpu_count(), 'machine': platform.machine(), 'rows': rows}
        args.out.write_text(json.dumps(report, indent=1) + '\n')


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights')
    parser.add_argument('images', nargs=2)
    parser.add_argument('--clients', type=int, nargs='+', default=[1, 16])
    parser.add_argument('--seconds', type=float, default=10)
    parser.add_argument('--port', type=int, default=8765)
    parser.add_argument('--out', type=Path, metavar='JSON')
    return parser.parse_args()


if __name__ == '__main__':
    run(arguments())
