"""Parses the command line, picks the recipe and lists the faces: all is checked before anything is
built."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import backbones
import meta
from dataset import Faces, check_entry
from evaluation.pair_files import is_pair_list
from evaluation.set_checks import check_ages, check_validation
from recognition.weights import load_checkpoint
from storage.vectors import VectorFaces, is_vectors
from training import pretrained
from training.distributed import world_size
from training.recipe import Recipe, recipes
from training.resume import starting_point
from utils import DataError, UserError

# recipe values with a flag of their own
WHOLE = 'batch_size', 'accumulate', 'workers', 'seed', 'horizon', 'save_every'
FLAGS: dict[str, type] = {'backbone': str, 'lr': float} | dict.fromkeys(WHOLE, int)


def parse(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of main.py, whose docstring is the description."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_it_is)
    add = parser.add_argument
    device = 'below 0 the CPU, else the ctx-th GPU; under torchrun each process takes its own GPU'
    add('ctx', type=int, help=f'device: {device}')
    many = 'how many epochs to train in this call (with --resume: in total); 0 trains nothing: one '
    many += 'pass takes the age out of the backbone of --init, or out of stored vectors'
    add('epochs', type=int, help=many)
    start = 'last.pth of a run resumes it exactly; a weights-only file (epoch_*.pth, best.pth) '
    start += 'starts with its weights, and with a new head if the people differ'
    add('weights', nargs='?', help=start)
    goes_on = 'continue from STATE, by default from last.pth in SAVE if there is one, up to '
    goes_on += '`epochs` in total and with the recipe in the file: '
    goes_on += 'a restarted job is the same command'
    add('--resume', nargs='?', const=True, metavar='STATE', help=goes_on)
    add('--dataset', metavar='NAME', help="a data set of meta.py, instead of main.py's `dataset`")
    where = "where weights, state, log and curves go, instead of main.py's `save`; with --dataset "
    add('--save', metavar='DIR', help=f'{where}NAME it is runs/NAME')
    which = 'one of training/recipe.py (by default demo for the drawn faces, finetune with --init, '
    add('--recipe', choices=recipes, help=f'{which}else paper)')
    other = "other values for the recipe, as in --set lambda_dal=1. split='(.3,.5)'"
    add('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help=other)
    known = 'start from a backbone that knows faces: a published file of its weights, sface, or a '
    known += 'weights file of this repository (docs/finetuning.md)'
    add('--init', metavar='FILE', help=known)
    lists = 'also validate on lists of pairs: InsightFace .bin files, or text files as of '
    add('--validate', nargs='+', default=[], metavar='LIST', help=f'{lists}`evaluate.py … pairs`')
    for key, kind in FLAGS.items():
        flag = '--' + key.replace('_', '-')
        add(flag, type=kind, help=f'the same as --set {key}=…')
    return parser.parse_args(argv)


class Plan(NamedTuple):
    """The outcome of a command line: the data set and its entry in meta.py, the save folder, the
    file to start from or to resume (or None), a backbone's file to start from (or None)."""

    name: str
    entry: dict
    recipe: Recipe
    folder: Path
    weights: Path | None
    init: str | None


def plan(args: argparse.Namespace, dataset: dict, save: str, init: str | None = None) -> Plan:
    """The command line beside main.py's own `dataset`, `save` and `init`. Raises UserError."""
    entries = {key: value for key, value in vars(meta).items() if isinstance(value, dict)}
    known = [key for key in entries if not key.startswith('_')]
    entry = entries.get(args.dataset) if args.dataset else dataset
    name = args.dataset or next((key for key in known if entries[key] is entry), 'dataset')
    if entry is None:
        raise UserError(f'--dataset {name}: meta.py has {", ".join(known)}')
    args.save = args.save or (f'runs/{name}' if args.dataset else save)
    folder, weights = starting_point(args)
    vectors = is_vectors(entry['train_root'])
    args.recipe = args.recipe or ('finetune' if vectors else None)
    recipe, init = chosen_recipe(args, entry is meta.demo, args.init or init, weights)
    if vectors:
        if args.epochs or init:
            raise UserError(f'{entry["train_root"]}: stored vectors take zero epochs and no --init')
        dim = VectorFaces(entry['train_root']).vectors.shape[1]
        recipe = replace(recipe, backbone='vectors', dim=dim)
    if recipe.batch_size < 2 * world_size() * recipe.accumulate:
        parts = f'{world_size()} process(es) and {recipe.accumulate} micro-batch(es)'
        less = f'batch_size is {recipe.batch_size}; that is less than two faces for each'
        raise UserError(f'{less} of {parts}')
    if args.epochs < 0:
        raise UserError(f'epochs is {args.epochs}; it must be at least 0')
    if not args.epochs and (weights or not (init or vectors)):
        takes_out = 'zero epochs take the age out of a backbone that knows faces: --init FILE names'
        raise UserError(f'{takes_out} it (a published file, sface, or weights of this repository)')
    if not args.epochs and recipe.factorization != 'solved':
        how = '--recipe finetune, or --set factorization=solved'
        raise UserError(f'zero epochs solve R in closed form: {how}')
    return Plan(name, entry, recipe, folder, weights, init)


def chosen_recipe(
    args: argparse.Namespace, is_demo: bool, init: str | None = None, weights: Path | None = None
) -> tuple[Recipe, str | None]:
    """The recipe of the command line, and the backbone's file to start from; a start from `weights`
    does without. A state has its run's recipe, if no --recipe is given. Raises UserError."""
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
        follow = init is not None or published
        return pretrained.follow(recipe, stored['backbone'], weights) if follow else recipe, None
    if init is not None:
        return pretrained.read(init, recipe)[0], init
    if recipe.backbone != 'dal':
        try:
            backbones.layout(recipe.backbone)
        except ValueError as error:
            raise UserError(str(error)) from None
    return recipe, None


def open_data(name: str, entry: dict) -> tuple[Faces, Faces | None]:
    """Training and validation faces (or None, also if val_root is a list of pairs), checked except
    for their pixels. Raises DataError."""
    entry = check_entry(name, entry, meta.age_cutoffs)
    if entry == meta.demo and not Path(entry['train_root']).parent.exists():
        from synthesis import drawing

        drawing.make(Path(entry['train_root']).parent, people=entry['n_cls'], val_people=100)
    train = _faces(entry, 'train_root')
    people = len(train.classes)
    if entry['n_cls'] not in (people, None):
        there = f"'n_cls' is {entry['n_cls']}, but {train.root} has {people} identities"
        raise DataError(f"meta.py, {name}: {there}: set 'n_cls': {people}")
    if people < 2:
        raise DataError(f'{train.root}: one person; to tell people apart it takes two')
    val = None
    if entry['val_root'] and not is_pair_list(entry['val_root']):
        val = _faces(entry, 'val_root')
    kinds = [hasattr(faces, 'vectors') for faces in (train, val) if faces]
    if any(kinds) and not all(kinds):
        raise DataError(f'meta.py, {name}: train_root and val_root must both be stored vectors')
    notices = check_ages(train)
    if val and not any(kinds):
        notices += check_validation(train, val)
    for notice in notices:
        print(f'warning: {notice}')
    return train, val


def _faces(entry, key):
    if is_vectors(entry[key]):
        return VectorFaces(entry[key])
    return Faces(entry[key], entry['pat'], entry['pos'])


def decode_data(faces: list[Faces], width: int, recipe: Recipe) -> None:
    """Every image is read once, as the network will see it. Raises DataError."""
    for part in faces:
        part.width = width
        for notice in part.check(recipe.cache, recipe.skip_corrupt):
            print(notice)
