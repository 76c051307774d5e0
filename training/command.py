"""Parses the command line, picks the recipe and lists the faces: all is checked before anything is
built."""

import argparse
from dataclasses import replace
from pathlib import Path

import backbones
import meta
from dataset import Faces, check_entry
from evaluation.pair_files import is_pair_list
from evaluation.set_checks import check_ages, check_validation
from recognition.weights import load_checkpoint
from storage.vectors import VectorFaces, is_vectors
from training.distributed import world_size
from training.recipe import Recipe, recipes
from training.resume import follow, read_backbone
from utils import DataError, UserError

# recipe values with a flag of their own
WHOLE = 'batch_size', 'accumulate', 'workers', 'seed', 'horizon', 'save_every'
FLAGS: dict[str, type] = {'backbone': str, 'lr': float} | dict.fromkeys(WHOLE, int)


def parse(description: str | None) -> argparse.Namespace:
    """The command line of main.py, whose docstring is the description."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_it_is)
    add = parser.add_argument
    add('ctx', type=int, help='device: below 0 the CPU, else the ctx-th GPU (torchrun: its own)')
    many = 'to train in this call, with --resume in total; 0 only takes the age out of a backbone'
    add('epochs', type=int, help=many)
    start = (
        'last.pth of a run resumes it exactly; epoch_*.pth and best.pth start with their weights'
    )
    add('weights', nargs='?', help=start)
    goes_on = (
        'continue from STATE, by default from last.pth in SAVE if there is one, with its recipe'
    )
    add('--resume', nargs='?', const=True, metavar='STATE', help=goes_on)
    add('--dataset', metavar='NAME', help="a data set of meta.py, instead of main.py's `dataset`")
    add('--save', metavar='DIR', help="folder of the run, instead of main.py's or runs/NAME")
    add('--recipe', choices=recipes, help='by default demo, finetune with --init, or paper')
    other = "other values for the recipe, as in --set lambda_dal=1. split='(.3,.5)'"
    add('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help=other)
    add('--init', metavar='FILE', help='a backbone that knows faces: its weights, or sface')
    lists = 'also validate on lists of pairs: InsightFace .bin, or text as of `evaluate.py … pairs`'
    add('--validate', nargs='+', default=[], metavar='LIST', help=lists)
    for key, kind in FLAGS.items():
        add('--' + key.replace('_', '-'), type=kind, help=f'the same as --set {key}=…')
    return parser.parse_args()


def plan(args: argparse.Namespace, dataset: dict, save: str, init: str | None = None) -> tuple:
    """The command line beside main.py's own `dataset`, `save` and `init`: the folder of the run;
    the data set's name and entry in meta.py; the recipe; the weights or state to start from, or
    None; the backbone's file to start from, or None. Raises UserError."""
    entries = {key: value for key, value in vars(meta).items() if isinstance(value, dict)}
    known = [key for key in entries if not key.startswith('_')]
    entry = entries.get(args.dataset) if args.dataset else dataset
    name = args.dataset or next((key for key in known if entries[key] is entry), 'dataset')
    if not isinstance(entry, dict):
        which = f'--dataset {name}' if args.dataset else f'main.py: dataset is {entry!r:.80}'
        raise UserError(f'{which}: meta.py has {", ".join(known)}')
    entry = check_entry(name, entry, meta.age_cutoffs)
    folder = Path(args.save or (f'runs/{name}' if args.dataset else save))
    weights = _starting_point(args, folder)
    vectors = is_vectors(entry['train_root'])
    args.recipe = args.recipe or ('finetune' if vectors else None)
    recipe, init = chosen_recipe(args, entry == meta.demo, args.init or init, weights)
    if vectors:
        if args.epochs or init:
            raise UserError(f'{entry["train_root"]}: stored vectors take zero epochs and no --init')
        dim = VectorFaces(entry['train_root']).vectors.shape[1]
        recipe = replace(recipe, backbone='vectors', dim=dim)
    if recipe.batch_size < 2 * world_size() * recipe.accumulate:
        less = f'batch_size is {recipe.batch_size}: less than two faces for each of {world_size()}'
        raise UserError(f'{less} process(es) and {recipe.accumulate} micro-batch(es)')
    if args.epochs < 0:
        raise UserError(f'epochs is {args.epochs}; it must be at least 0')
    if not args.epochs and (weights or not (init or vectors)):
        takes_out = 'zero epochs take the age out of a backbone that knows faces'
        raise UserError(f'{takes_out}: --init FILE names it, or --init sface')
    if not args.epochs and recipe.factorization != 'solved':
        raise UserError('zero epochs solve R in closed form: --set factorization=solved')
    return folder, name, entry, recipe, weights, init


def _starting_point(args, folder):
    """The file to start from, or None. Raises UserError rather than overwrite another run."""
    if args.weights and args.resume:
        raise UserError('give either weights or --resume')
    weights, last = args.weights or args.resume, folder / 'last.pth'
    if weights is True:
        weights = last if last.exists() else None
    taken = sorted(path.name for path in folder.glob('*.pth'))
    goes_on = weights and Path(weights).resolve().parent == folder.resolve()
    # zero epochs may be repeated, if no training left the best.pth that is there
    solved = taken == ['best.pth'] and not (folder / 'log.jsonl').exists()
    if taken and not goes_on and not (solved and not args.epochs and not weights):
        remedy = '--resume continues it, --save DIR starts elsewhere'
        raise UserError(f'{folder} holds a run already ({taken[0]}): {remedy}')
    return weights and Path(weights)


def chosen_recipe(
    args: argparse.Namespace, is_demo: bool, init: str | None = None, weights: Path | None = None
) -> tuple[Recipe, str | None]:
    """The recipe of the command line, by default that of a state's run, and the backbone's file to
    start from; a start from `weights` does without. Raises UserError."""
    if args.init and args.weights:
        raise UserError('give either weights or --init')
    pairs = [pair.partition('=')[::2] for pair in args.set]
    pairs += [(key, str(vars(args)[key])) for key in FLAGS if vars(args)[key] is not None]
    stored = load_checkpoint(weights, {'backbone': (dict, type(None))}) if weights else {}
    published = 'name' in (stored.get('backbone') or {})
    other = init is not None or 'backbone' in dict(pairs) or published
    name = args.recipe or ('finetune' if other else 'demo' if is_demo else 'paper')
    resumed = not args.recipe and 'optimizer' in stored
    recipe = (Recipe.of(stored.get('recipe')) if resumed else recipes[name]).override(pairs)
    if weights:
        known = init is not None or published
        return follow(recipe, stored['backbone'], weights) if known else recipe, None
    if init is not None:
        return read_backbone(init, recipe)[0], init
    try:
        if recipe.backbone != 'dal':
            backbones.layout(recipe.backbone)
    except ValueError as error:
        raise UserError(str(error)) from None
    return recipe, None


def open_data(name: str, entry: dict) -> tuple[Faces, Faces | None]:
    """Training and validation faces (or None, also if val_root is a list of pairs), checked except
    for their pixels. Raises DataError."""
    if entry == meta.demo and not Path(entry['train_root']).parent.exists():
        from synthesis import drawing

        drawing.draw_set(Path(entry['train_root']).parent, people=entry['n_cls'], val_people=100)
    train, val = _faces(entry, 'train_root'), None
    people = len(train.classes)
    if entry['n_cls'] not in (people, None):
        there = f"'n_cls' is {entry['n_cls']}, but {train.root} has {people} identities"
        raise DataError(f"meta.py, {name}: {there}: set 'n_cls': {people}")
    if people < 2:
        raise DataError(f'{train.root}: one person; to tell people apart it takes two')
    if entry['val_root'] and not is_pair_list(entry['val_root']):
        val = _faces(entry, 'val_root')
        if isinstance(val, VectorFaces) != isinstance(train, VectorFaces):
            raise DataError(f'meta.py, {name}: train_root and val_root must both be stored vectors')
    notices = check_ages(train)
    if val and isinstance(train, Faces):
        notices += check_validation(train, val)
    for notice in notices:
        print(f'warning: {notice}')
    return train, val


def _faces(entry, key):
    if is_vectors(entry[key]):
        return VectorFaces(entry[key])
    return Faces(entry[key], entry['pat'], entry['pos'])
