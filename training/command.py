"""What is asked for: the command line, the recipe that it chooses, and the faces, all checked before anything is built."""
import argparse
from pathlib import Path

import meta
import utils
from dataset import Faces, check_entry
from training import ranks
from training.resume import starting_point
from utils import DataError


def parse(description, recipes):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ctx', type=int, help='device: below 0 the CPU, else the ctx-th GPU; under torchrun each process takes its own GPU')
    parser.add_argument('epochs', type=int, help='how many epochs to train in this call (with --resume: in total)')
    parser.add_argument('weights', nargs='?', help='last.pth of a run resumes it exactly; a weights-only file (epoch_*.pth, best.pth) '
                        'starts with its weights, and with a new head where the people differ')
    parser.add_argument('--resume', nargs='?', const=True, metavar='STATE', help='continue from STATE, by default from last.pth in '
                        'SAVE if there is one, up to `epochs` in total: a restarted job is the same command')
    parser.add_argument('--dataset', metavar='NAME', help="a data set of meta.py, instead of main.py's `dataset`")
    parser.add_argument('--save', metavar='DIR', help="where weights, state, log and curves go, instead of main.py's `save`; with --dataset NAME it is runs/NAME")
    parser.add_argument('--recipe', choices=recipes, help='one of the recipes in main.py (demo for the drawn faces, paper for other data)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help="other values for the recipe, as in --set lambda_dal=1. split='(.3,.5)'")
    for key, kind in (('batch_size', int), ('accumulate', int), ('lr', float), ('workers', int), ('seed', int), ('horizon', int), ('save_every', int)):
        parser.add_argument('--' + key.replace('_', '-'), type=kind, help=f'the same as --set {key}=…')
    return parser.parse_args()


def plan(args, dataset, save, recipes):
    """What the command line comes to, beside main.py's own `dataset` and `save`: the data set's name and entry, the recipe, the save folder,
    the file to start from or None."""
    entry = getattr(meta, args.dataset, None) if args.dataset else dataset
    name = args.dataset or next((name for name, value in vars(meta).items() if value is entry), 'dataset')
    if entry is None:
        known = [key for key, value in vars(meta).items() if isinstance(value, dict) and not key.startswith('_')]
        raise utils.UserError(f'--dataset {name}: meta.py has {", ".join(known)}')
    recipe = chosen_recipe(args, recipes, entry is meta.demo)
    if recipe['batch_size'] < 2 * ranks.count() * recipe['accumulate']:
        raise utils.UserError(f'batch_size is {recipe["batch_size"]}; that is less than two faces for each of {ranks.count()} process(es) '
                              f'and {recipe["accumulate"]} part(s)')
    if args.epochs < 1:
        raise utils.UserError(f'epochs is {args.epochs}; it must be at least 1')
    args.save = args.save or (f'runs/{name}' if args.dataset else save)
    return name, entry, recipe, *starting_point(args)


def chosen_recipe(args, recipes, is_demo):
    """The recipe of the command line. Raises UserError for a key or a value that no recipe can have."""
    pairs = [pair.partition('=')[::2] for pair in args.set]
    pairs += [(key, str(value)) for key, value in vars(args).items() if key in recipes['paper'] and value is not None]
    recipe = utils.override(recipes[args.recipe or ('demo' if is_demo else 'paper')], pairs)
    for key, least in (('batch_size', 2), ('seed', 0), ('horizon', 1), ('lr', 0), ('workers', 0), ('min_steps', 1), ('max_steps', 0),
                       ('dim', 1), ('accumulate', 1), ('save_every', 0), ('skip_corrupt', 0), ('clip', 1e-9)):
        if recipe[key] is not None and not least <= recipe[key] < 2 ** 32:
            raise utils.UserError(f'{key} is {recipe[key]}; it must be at least {least}, and below 2³²')
    for key in ('split', 'game'):
        if len(recipe[key]) != 2 or not 0 <= recipe[key][0] <= recipe[key][1]:
            raise utils.UserError(f'{key} is {recipe[key]}; it must be where its ramp begins and where it ends, as fractions of the training')
    if recipe['variate'] not in ('learned', 'label'):
        raise utils.UserError(f"variate is {recipe['variate']!r}; it must be 'learned' or 'label'")
    if not 0 <= recipe['memory'] < 1 or recipe['memory'] and recipe['variate'] == 'learned':
        raise utils.UserError(f"memory is {recipe['memory']}; it must be from 0 to below 1, and 0 where variate is 'learned'")
    if not 0 < recipe['sample_rate'] <= 1 or recipe['sample_rate'] < 1 and not recipe['shard_head']:
        raise utils.UserError(f'sample_rate is {recipe["sample_rate"]}; it must be above 0 and at most 1, and below 1 needs shard_head=True')
    if not len(recipe['layers']) == len(recipe['widths']) > 0 or min(recipe['layers']) < 0 or min(recipe['widths']) < 1:
        raise utils.UserError(f"layers {recipe['layers']} and widths {recipe['widths']} must name the same stages")
    return recipe


def open_data(name, entry, recipe):
    """Training and validation faces (or None), everything about them checked. Raises DataError."""
    check_entry(name, entry, meta.age_cutoffs)
    if entry == meta.demo and not Path(entry['train_root']).parent.exists():
        import synthetic
        synthetic.make(Path(entry['train_root']).parent, people=entry['n_cls'], val_people=100)
    train = Faces(entry['train_root'], entry['pat'], entry['pos'])
    if len(train.classes) != entry['n_cls']:
        raise DataError(f"meta.py, {name}: 'n_cls' is {entry['n_cls']}, but {train.root} has {len(train.classes)} identities: "
                        f"set 'n_cls': {len(train.classes)}")
    if len(train.classes) < 2:
        raise DataError(f'{train.root}: one person; to tell people apart it takes two')
    val = Faces(entry['val_root'], entry['pat'], entry['pos']) if entry['val_root'] else None
    for faces in filter(None, (train, val)):
        for notice in faces.check(recipe['cache'], recipe['skip_corrupt']):
            print(notice)
    return train, val
