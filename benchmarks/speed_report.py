"""What benchmarks/speed.py measured, as ratios, tables and a picture."""

import itertools
import math
import statistics

from matplotlib.figure import Figure

import utils


def middle(values):
    """Median, smallest and largest."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def ratio(above, below):
    """Of two lists of rates, round by round."""
    return middle([a / b for a, b in zip(above, below, strict=True)])


def summary(rates, operations):
    """images_per_s, ceiling_gflops, and the ratios that are made of both."""
    ceilings = {}
    for kind, dtype in itertools.product(('convolution', 'product'), ('bfloat16', 'float32')):
        names = [name for name in rates if name.startswith(kind) and name.endswith(dtype)]
        best = max(names, key=lambda name: statistics.median(rates[name]))
        ceilings[f'{kind} {dtype}'] = {'which': best, 'rates': rates[best]}
    images = {
        name: values
        for name, values in rates.items()
        if not name.startswith(('convolution', 'product'))
    }
    ratios = {}
    for network, passes in operations.items():
        ours, alone = images[f'{network} train'], images[f'{network} convolutions']
        ratios[f'{network}: training, of the conventional loop'] = ratio(
            ours, images[f'{network} conventional']
        )
        ratios[f'{network}: training, of its convolutions alone'] = ratio(ours, alone)
        embed = [2 * rate for rate in images[f'{network} embed']]  # the face and its mirror
        for kind, ceiling in ceilings.items():
            # a backward pass counts as two passes
            for what, work in (
                ('training', [3 * passes * rate for rate in ours]),
                ('its convolutions alone', [3 * passes * rate for rate in alone]),
                ('embedding', [passes * rate for rate in embed]),
            ):
                ratios[f'{network}: {what}, of the {kind} ceiling'] = ratio(work, ceiling['rates'])
        if f'{network} max step' in images:
            ratios[f'{network}: max step, of embedding, in passes'] = ratio(
                images[f'{network} max step'], embed
            )
    return {
        'images_per_s': {name: middle(values) for name, values in images.items()},
        'ceiling_gflops': {
            kind: {'which': ceiling['which'], **middle([rate / 1e9 for rate in ceiling['rates']])}
            for kind, ceiling in ceilings.items()
        },
        'ratios': ratios,
    }


def table(report):
    """What is printed: every figure, in blocks."""
    sizes = ', '.join(f'{size} ({name})' for name, size in report['batch_sizes'].items())
    lines = [
        f'{report["machine"]}, {report["threads"]} threads, torch {report["torch"]}; '
        f'batches of {sizes}; median of {report["rounds"]} rounds [smallest, largest]'
    ]

    def block(title, values, note=lambda name: ''):
        lines.extend(['', title])
        for name, value in values.items():
            spread = f'{value["median"]:>10.4g} [{value["min"]:.4g}, {value["max"]:.4g}]'
            lines.append(f'  {name:60} {spread}{note(name)}')

    waiting, ceilings = report['waiting_for_data'], report['ceiling_gflops']
    paths = report['data_path_per_core']
    block(
        'images/s',
        report['images_per_s'],
        lambda name: f'  waits for data {waiting[name]["median"]:.1%}' if name in waiting else '',
    )
    block(
        'ceiling, GFLOP/s',
        {f'best {kind}': value for kind, value in ceilings.items()},
        lambda name: f'  {ceilings[name.removeprefix("best ")]["which"]}',
    )
    block('ratios', report['ratios'])
    block(
        'data path, images/s on one core',
        {name: value['images_per_s'] for name, value in paths.items()},
        lambda name: f'  {paths[name]["against_pil"]["median"]:.1f}×',
    )
    lines += ['', 'peak memory, MiB']
    lines += [f'  {name:60} {value["peak"]:>10.0f}' for name, value in report['memory_mib'].items()]
    return '\n'.join(lines)


def markdown(report):
    """The table of docs/performance.md: median [smallest, largest] over the rounds; for waiting and
    memory one number."""
    networks, rates, ratios = (
        list(report['batch_sizes']),
        report['images_per_s'],
        report['ratios'],
    )

    def cell(value, digits):
        return (
            f'{value["median"]:.{digits}f} [{value["min"]:.{digits}f}, {value["max"]:.{digits}f}]'
        )

    def row(title, cells):
        return f'| {title} | {" | ".join(cells)} |'

    def rate(title, what):
        values = [rates[f'{network} {what}'] for network in networks]
        return row(
            title, [cell(value, max(0, 2 - int(math.log10(value['median'])))) for value in values]
        )  # three digits

    def share(title, what):
        values = [ratios.get(f'{network}: {what}') for network in networks]
        return row(title, [cell(value, 2) if value else '' for value in values])

    def waiting(network):
        return f'{100 * report["waiting_for_data"][f"{network} train"]["median"]:.1f} %'

    def memory(network):
        peaks = [
            report['memory_mib'][f'{network} {kind}']['peak'] * 2**20 / 1e9
            for kind in ('train', 'conventional')
        ]
        return '{:.1f} of {:.1f} GB'.format(*peaks)

    ceiling = 'of the convolution bfloat16 ceiling'
    return '\n'.join(
        [
            row('', networks),
            '|---' * (1 + len(networks)) + '|',
            rate('training, images/s', 'train'),
            share('of the conventional loop', 'training, of the conventional loop'),
            share('of the best bf16 convolution, in operations', f'training, {ceiling}'),
            share(
                'of its own convolutions, all else left out', 'training, of its convolutions alone'
            ),
            share('those, of the best bf16 convolution', f'its convolutions alone, {ceiling}'),
            rate('embedding (face and mirror), images/s', 'embed'),
            share('of the best bf16 convolution', f'embedding, {ceiling}'),
            share(
                'a step of the adversary, of embedding, in passes',
                'max step, of embedding, in passes',
            ),
            row('waiting for data', map(waiting, networks)),
            row("peak memory, of the conventional loop's", map(memory, networks)),
        ]
    )


def picture(report, path):
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    left, centre, right = figure.subplots(1, 3)
    networks, images = list(report['batch_sizes']), report['images_per_s']
    for shift, kind, label in (
        (-0.2, 'train', 'this repository'),
        (0.2, 'conventional', 'the conventional loop'),
    ):
        rates = [images[f'{network} {kind}'] for network in networks]
        errors = [
            [value['median'] - value['min'] for value in rates],
            [value['max'] - value['median'] for value in rates],
        ]
        left.bar(
            [index + shift for index in range(len(networks))],
            [value['median'] for value in rates],
            0.4,
            yerr=errors,
            label=label,
        )
    left.set(
        title='training',
        ylabel='images/s',
        yscale='log',
        xticks=range(len(networks)),
        xticklabels=networks,
    )
    left.set_ylim(top=4 * left.get_ylim()[1])
    left.legend(fontsize='small', loc='upper left')
    ceilings, passes = report['ceiling_gflops'], report['operations_per_pass']
    trained = [f'{network} {what}' for network in networks for what in ('train', 'convolutions')]
    gflops = [3e-9 * passes[name.split()[0]] * images[name]['median'] for name in trained]
    centre.barh(
        [*ceilings, *trained],
        [value['median'] for value in ceilings.values()] + gflops,
        color=['C7'] * len(ceilings) + ['C0', 'C9'] * len(networks),
    )
    centre.set(title="training and the machine's ceilings", xlabel='GFLOP/s')
    paths = report['data_path_per_core']
    right.barh(list(paths), [value['images_per_s']['median'] for value in paths.values()])
    right.set(title='data path, one core', xlabel='images/s', xscale='log')
    for axis in (centre, right):
        axis.invert_yaxis()
    figure.suptitle(f'{report["machine"]}, torch {report["torch"]}', fontsize='small')
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))
