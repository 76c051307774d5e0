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


@pytest.mark.parametrize('name, where', [
    ('demo', 'ablation'), ('lfw', 'ablation'), ('lag', 'finetuning')])
def test_the_ablation_is_the_scripts(name, where):
    import ablation
    report = read(f'ablation-{name}')
    assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
    assert f'<!-- benchmarks/ablation.py {name} -->\n{ablation.markdown(report["summary"])}' \
        in page(where)


def test_what_fine_tuning_says_is_so():
    rows = read('ablation-lag')['summary']
    before, only, gentle, ours = (rows[arm] for arm in (
        'untouched', 'identity only', 'ours, λ1 0.1, λ2 1', 'ours, λ1 0.1, λ2 2'))
    for sentence in (
            f'AUC rises from {before["auc"][0]:.3f} to {only["auc"][0]:.3f}',
            f'R² falls from {before["r2_id"][0]:.2f} to {ours["r2_id"][0]:.2f}',
            f'where identity alone leaves {only["r2_id"][0]:.2f}',
            f'AUC stays at {ours["auc"][0]:.3f}',
            f'rank-1 is {100 * (only["rank1"][0] - ours["rank1"][0]):.1f} points below',
            f'years {only["auc_over_20"][0] - ours["auc_over_20"][0]:.3f}',
            f'λ2 1 leaves an R² of {gentle["r2_id"][0]:.2f}'):
        assert sentence in prose('finetuning'), sentence


def test_what_the_ablation_says_is_so():
    drawn, lfw = (read(f'ablation-{name}')['summary'] for name in ('demo', 'lfw'))
    only, paper, ours = (drawn[arm] for arm in ('identity only', 'paper', 'ours, λ1 0.1'))
    r2, far = 'r2_id', 'auc_over_20'
    photographs = [lfw[arm] for arm in ('identity only', 'ours', 'ours, λ1 0.1')]
    for sentence in (
            f'adversary reaches {paper["climb"][0]:.0%}'.replace('%', ' %'),
            f'R² {paper[r2][0]:.2f}; with identity alone it is {only[r2][0]:.2f}',
            f'R² falls from {only[r2][0]:.2f} to {ours[r2][0]:.2f}',
            f'rises from {only[far][0]:.3f} to {ours[far][0]:.3f}',
            f'reaches {ours["climb"][0]:.0%}'.replace('%', ' %'),
            f'(held-out ρ₁ {ours["held_out"][0]:.2f})',
            'from {:.2f} to {:.2f} with λ1 0.3, a third; and to {:.2f}'.format(
                *(row[r2][0] for row in photographs)),
            'from {:.1f} % to {:.1f} % and {:.1f} %'.format(
                *(100 * row['rank1'][0] for row in photographs)),
            'from {:.2f} to {:.2f} and {:.2f}'.format(*(row['auc'][0] for row in photographs))):
        assert sentence in prose('ablation'), sentence


def test_the_first_page_has_the_ablations_figures():
    import ablation
    excerpt, = re.findall(r'<!-- benchmarks/ablation.py demo, excerpt -->\n((?:\|.*\n)+)',
                          (ROOT / 'README.md').read_text())
    whole = cells(ablation.markdown(read('ablation-demo')['summary']))
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
