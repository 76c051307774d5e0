"""The figures in README and docs/ are those of the benchmarks' JSON files."""
import json
import re

import pytest
from conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')


def page(name):
    return (ROOT / 'docs' / f'{name}.md').read_text()


def prose(name):
    return ' '.join(page(name).split())


def read(name):
    return json.loads((ROOT / 'benchmarks' / f'{name}.json').read_text())


def cells(table):
    """{row: {column: text}} of a Markdown table."""
    head, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')]
                      for line in table.splitlines()]
    return {name: dict(zip(head[1:], row, strict=True)) for name, *row in rows}


@pytest.mark.parametrize('name', ['demo', 'lfw', *(f'photographs{kind}' for kind in (
    '', '-last-blocks', '-lfw', '-young-old'))])
def test_the_ablation_is_the_scripts(name):
    import ablation
    report = read(f'ablation-{name}')
    assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
    assert f'<!-- benchmarks/ablation.py {name} -->\n{ablation.markdown(report["summary"])}' \
        in page('ablation')


def test_the_first_page_has_the_ablations_figures():
    import ablation
    excerpts = re.findall(r'<!-- benchmarks/ablation.py (.*), excerpt -->\n((?:\|.*\n)+)',
                          (ROOT / 'README.md').read_text())
    assert len(excerpts) == 2
    for name, excerpt in excerpts:
        whole = cells(ablation.markdown(read(f'ablation-{name}')['summary']))
        for row, columns in cells(excerpt).items():
            assert columns == {column: whole[row][column] for column in columns}


def test_speed_is_the_scripts():
    import parts
    import speed
    for script in (parts, speed):
        report = read(f'results/{script.__name__}-2-cores-amd-epyc')
        assert f'<!-- benchmarks/{script.__name__}.py -->\n{script.markdown(report)}' \
            in page('performance')
    report = read('results/speed-2-cores-amd-epyc-mobilefacenet-iresnet50')
    assert f'<!-- benchmarks/speed.py fine-tuning -->\n{speed.markdown(report)}' \
        in page('performance')


def test_scale_is_the_scripts():
    report = read('results/scale-2-cores-amd-epyc')

    def size(mib):
        return f'{mib * 2**20 / 1e6:.0f} MB' if mib < 500 else f'{mib * 2**20 / 1e9:.2g} GB'

    def row(whole, slices):
        figures = [f'{half["seconds"]["median"]:#.2g} | {size(half["memory_mib"]["most"])}'
                   for half in (whole, slices)]
        return f'| {whole["identities"]:,} | {" | ".join(figures)} |'
    rows = [row(*pair) for pair in zip(report['heads'], report['slices'], strict=True)]
    assert '\n'.join(rows) in page('performance')
    million = report['faces'][-1]
    listed, checked = (million['seconds'][name] for name in
                       ('list and parse', 'sizes and times, for the cache'))
    kept, shared = (million['memory_mib'][name] for name in
                    ('listed', 'arrays that a worker shares'))
    text = prose('performance')
    assert f'in {listed:.1f} s, and checked against the cache in {checked:.1f} s more' in text
    assert f'They take {size(kept)}, of which a worker shares {size(shared)}' in text


def test_the_data_path_is_the_scripts():
    report = read('results/speed-2-cores-amd-epyc')
    text, path = prose('performance'), report['data_path_per_core']
    for kind in ('cached and normalised', 'decoded'):
        assert f'{path[kind]["images_per_s"]["median"]:,.0f}' in text
        assert f'{path[kind]["against_pil"]["median"]:.1f} times as many' in text
    ceilings = [report['ceiling_gflops'][f'convolution {kind}']['median'] for kind in
                ('bfloat16', 'float32')]
    assert f'is {ceilings[0] / ceilings[1]:.1f} times as fast' in text
    alone = '64-layer: its convolutions alone, of the convolution bfloat16 ceiling'
    assert f'reach {100 * report["ratios"][alone]["median"]:.0f} % when nothing else' in text


def test_the_detectors_are_the_scripts():
    import detectors
    table = detectors.markdown(read('detectors')['result'])
    assert f'<!-- benchmarks/detectors.py -->\n{table}' in page('data')
