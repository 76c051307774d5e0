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
    head, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()
    ]
    return {name: dict(zip(head[1:], row, strict=True)) for name, *row in rows}


@pytest.mark.parametrize(
    'name',
    [
        'demo',
        'lfw',
        *(
            f'photographs{kind}'
            for kind in ('', '-last-blocks', '-lfw', '-young-old', '-batch-512', '-64-epochs')
        ),
    ],
)
def test_the_ablation_is_the_scripts(name):
    import ablation

    report = read(f'ablation-{name}')
    assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
    assert (
        f'<!-- benchmarks/ablation.py {name} -->\n{ablation.markdown(report["summary"])}'
        in page('ablation')
    )


def sentences_about(arms, people):
    """What docs/ablation.md says of the photographs, from the figures themselves."""

    def mean(arm, key, digits=2, scale=1):
        return f'{scale * arms[arm][key][0]:.{digits}f}'.replace('-', '−')

    def less(arm, key='rank1'):
        return f'{100 * (arms["identity only"][key][0] - arms[arm][key][0]):.1f} points'

    def over_people(key, digits, scale=1):
        return '{} [{}, {}]'.format(
            *(f'{scale * value:+.{digits}f}'.replace('-', '−') for value in people[closed][key])
        )

    def verification(arm):
        return mean(arm, far, 3), mean(arm, 'rank1', 1, 100)

    def rises(key):
        return (
            f'from {mean("untouched", key, 3)} to {mean("identity only", key, 3)}',
            f'to {mean(closed, key, 3)}',
        )

    closed, kernel, middle, far = 'closed form', 'kernel_r2_id', 'auc_over_20', 'auc_over_30'
    return (
        f'R² falls from {mean("untouched", "r2_id")} in the backbone as it came to '
        f'{mean(closed, "r2_id")}, where identity alone leaves {mean("identity only", "r2_id")}',
        f'reads {mean(closed, kernel)} in place of {mean("identity only", kernel)}',
        f'(ρ₁ {mean(closed, "held_out")} beside {mean(closed, "shuffled")}); with a learned R they '
        'are at {:.2f}'.format(
            min(
                row['held_out'][0]
                for arm, row in arms.items()
                if closed not in arm and arm != 'untouched'
            )
        ),
        'rises {} by identity alone and {} with R in closed form'.format(*rises(middle)),
        'over 30 years {} and {}, and'.format(*rises(far)),
        f'in AUC is {over_people("auc", 3)};',
        f'over 20 years {over_people(middle, 3)}, over 30 years {over_people(far, 3)}.',
        'In rank-1 it is ' + over_people('rank1', 1, 100).replace(' [', ' points ['),
        '30 years is {}, and rank-1 {} %'.format(*verification('closed form, all ages')),
        'they are {} and {} %'.format(*verification('closed form, age alone')),
        f'identity alone**: R² {mean("paper", "r2_id")}, although its adversary reaches '
        f'{100 * arms["paper"]["climb"][0]:.0f} % of',
        f'λ2 1*) it is {mean("paper, λ2 1", "r2_id")}; rank-1 is {less("paper, λ2 1")} below '
        f"identity alone, with the paper's weight {less('paper')}",
        f'a ridge reads {mean("game, λ2 2", "r2_id")}, a kernel {mean("game, λ2 2", kernel)}, and '
        f'rank-1 is {less("game, λ2 2")} below identity alone; with λ2 5 {less("game")}',
        f'Without ramps it is {less("game, no ramps")}, though AUC over 30 years is then '
        f'{mean("game, no ramps", far, 3)}',
    )


def test_what_the_ablation_says_of_photographs_is_so():
    report = read('ablation-photographs-last-blocks')
    for sentence in sentences_about(report['summary'], report['over people']):
        assert sentence in prose('ablation'), sentence
    by = {(row['arm'], row['seed']): row for row in report['runs']}
    for seed in range(5):  # "above in each of the five seeds"
        for key in ('auc', 'auc_to_10', 'auc_over_20', 'auc_over_30'):
            assert by['closed form', seed][key] > by['identity only', seed][key]
    arms = report['summary']
    for sentence in (
        'rises from {:.3f} to {:.3f}'.format(
            *(arms[arm]['auc_over_30'][0] for arm in ('untouched', 'closed form'))
        ),
        'rank-1 from {:.1f} % to {:.1f} %'.format(
            *(100 * arms[arm]['rank1'][0] for arm in ('untouched', 'closed form'))
        ),
        f'falls from {arms["untouched"]["r2_id"][0]:.2f} to nothing',
        f'R² stays at {arms["identity only"]["r2_id"][0]:.2f}, rank-1 is the same, and AUC '
        f'over 30 years is {arms["identity only"]["auc_over_30"][0]:.3f}',
    ):
        assert sentence in prose('finetuning'), sentence


def test_what_the_ablation_says_of_its_other_tables_is_so():
    def mean(table, arm, key, digits=2, scale=1):
        return f'{scale * reports[table]["summary"][arm][key][0]:.{digits}f}'

    def always_above(table, arm, *keys):
        by = {(row['arm'], row['seed']): row for row in reports[table]['runs']}
        return all(
            by[arm, seed][key] > by[only, seed][key]
            for key in keys
            for seed in range(reports[table]['summary'][arm]['n'])
        )

    far, only, closed = 'auc_over_20', 'identity only', 'closed form'
    drawn, whole, many, young, large, long, more = tables = (
        'demo',
        'photographs',
        *(
            f'photographs-{kind}'
            for kind in ('last-blocks', 'young-old', 'batch-512', '64-epochs', 'lfw')
        ),
    )
    reports = {name: read(f'ablation-{name}') for name in tables}
    gain = reports[drawn]['over people']['game'][far]
    small = reports[whole]['over people'][closed]['auc']
    for sentence in (
        f'has AUC {mean(whole, closed, far, 3)} beside {mean(whole, only, far, 3)} at gaps '
        f'over 20 years and {mean(whole, closed, "auc_over_30", 3)} beside '
        f'{mean(whole, only, "auc_over_30", 3)} over 30',
        'R² {} beside {}'.format(
            mean(whole, closed, 'r2_id').replace('-', '−'), mean(whole, only, 'r2_id')
        ),
        'in AUC is {:+.3f} [{:+.3f}, {:+.3f}]. So the last blocks'.format(*small),
        f'with it R² is {mean(young, closed, "r2_id")}, and AUC at gaps over 20 years '
        f'{mean(young, closed, far, 3)}, as with the *age alone* above; the gain from '
        f'{mean(many, closed + ", age alone", far, 3)} to {mean(many, closed, far, 3)}',
        f'The game leaves {mean(young, "game, λ2 2", "r2_id")}.',
        f'without LFW (R² {mean(more, only, "r2_id")}), and the game leaves '
        f'{mean(more, "game, λ2 2", "r2_id")}; R in closed form leaves '
        f'{mean(more, closed, "r2_id")}. At gaps over 20 years its AUC is '
        f'{mean(more, closed, far, 3)} beside {mean(more, only, far, 3)}, over 30 years '
        f'{mean(more, closed, "auc_over_30", 3)} beside {mean(more, only, "auc_over_30", 3)}',
        f'rank-1 {mean(more, closed, "rank1", 1, 100)} % beside '
        f'{mean(more, only, "rank1", 1, 100)} %',
        f'leaves an R² of {mean(large, "paper", "r2_id")} where identity alone leaves '
        f'{mean(large, only, "r2_id")}; its adversary reaches '
        f'{mean(large, "paper", "climb", 0, 100)} % of',
        f'comes to an R² of {mean(long, only, "r2_id")}, the published setting to '
        f'{mean(long, "paper", "r2_id")}:',
        f'R² falls from {mean(drawn, only, "r2_id")} to {mean(drawn, "game", "r2_id")}, and '
        f'AUC at gaps over 20 years rises from {mean(drawn, only, far, 3)} to '
        f'{mean(drawn, "game", far, 3)}, in every seed; over people the difference is '
        '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*gain),
        'Rank-1 falls by {:.1f} points'.format(
            -100 * reports[drawn]['summary']['game']['minus identity only']['rank1'][0]
        ),
        f'with R² {mean(drawn, "game", "kernel_r2_id")}, where identity alone leaves '
        f'{mean(drawn, only, "kernel_r2_id")}',
        'costs {:.1f} points'.format(
            -100 * reports[drawn]['summary']['paper']['minus identity only']['rank1'][0]
        ),
        f'and R² stays at {mean(drawn, closed, "r2_id")}; with the ages as they are it falls '
        f'to {mean(drawn, closed + ", all ages", "r2_id")}',
    ):
        assert sentence in prose('ablation'), sentence
    assert always_above(drawn, 'game', far)
    for table in (whole, more):
        assert always_above(table, closed, far, 'auc_over_30')


def test_what_the_ablation_says_of_lfw_is_so():
    only, game = (read('ablation-lfw')['summary'][arm] for arm in ('identity only', 'game'))
    r2 = [row['r2_id'][0] for row in (only, game)]
    for sentence in (
        'R² falls from {:.2f} to {:.2f} with the game'.format(*r2),
        f'rank-1 falls from {100 * only["rank1"][0]:.1f} % to {100 * game["rank1"][0]:.1f} %',
    ):
        assert sentence in prose('ablation'), sentence


def test_the_first_page_has_the_ablations_figures():
    import ablation

    excerpts = re.findall(
        r'<!-- benchmarks/ablation.py (.*), excerpt -->\n((?:\|.*\n)+)',
        (ROOT / 'README.md').read_text(),
    )
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
        assert f'<!-- benchmarks/{script.__name__}.py -->\n{script.markdown(report)}' in page(
            'performance'
        )
    report = read('results/speed-2-cores-amd-epyc-mobilefacenet-iresnet50')
    assert f'<!-- benchmarks/speed.py fine-tuning -->\n{speed.markdown(report)}' in page(
        'performance'
    )


def test_scale_is_the_scripts():
    report = read('results/scale-2-cores-amd-epyc')

    def size(mib):
        return f'{mib * 2**20 / 1e6:.0f} MB' if mib < 500 else f'{mib * 2**20 / 1e9:.2g} GB'

    def row(whole, slices):
        figures = [
            f'{half["seconds"]["median"]:#.2g} | {size(half["memory_mib"]["most"])}'
            for half in (whole, slices)
        ]
        return f'| {whole["identities"]:,} | {" | ".join(figures)} |'

    rows = [row(*pair) for pair in zip(report['heads'], report['slices'], strict=True)]
    assert '\n'.join(rows) in page('performance')
    million = report['faces'][-1]
    listed, checked = (
        million['seconds'][name] for name in ('list and parse', 'sizes and times, for the cache')
    )
    kept, shared = (
        million['memory_mib'][name] for name in ('listed', 'arrays that a worker shares')
    )
    text = prose('performance')
    assert f'in {listed:.1f} s, and checked against the cache in {checked:.1f} s more' in text
    assert f'They take {size(kept)}, of which a worker shares {size(shared)}' in text


def test_the_data_path_is_the_scripts():
    report = read('results/speed-2-cores-amd-epyc')
    text, path = prose('performance'), report['data_path_per_core']
    for kind in ('cached and normalised', 'decoded'):
        assert f'{path[kind]["images_per_s"]["median"]:,.0f}' in text
        assert f'{path[kind]["against_pil"]["median"]:.1f} times as many' in text
    ceilings = [
        report['ceiling_gflops'][f'convolution {kind}']['median']
        for kind in ('bfloat16', 'float32')
    ]
    assert f'is {ceilings[0] / ceilings[1]:.1f} times as fast' in text
    alone = '64-layer: its convolutions alone, of the convolution bfloat16 ceiling'
    assert f'reach {100 * report["ratios"][alone]["median"]:.0f} % when nothing else' in text


def test_the_detectors_are_the_scripts():
    import detectors

    table = detectors.markdown(read('detectors')['result'])
    assert f'<!-- benchmarks/detectors.py -->\n{table}' in page('data')
