"""Parses the command line, picks the recipe and lists the faces: all is checked before anything is
built."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import meta
from dataset import Faces, check_entry
from evaluation.pair_files import is_pair_list
from evaluation.set_checks import check_ages, check_validation
from recognition.weights import load_checkpoint
from storage.vectors import VectorFaces, is_vectors, read_vectors
from training import pretrained
from training.distributed import world_size
from training.recipe import Recipe, recipes
from training.resume import starting_point
from utils import DataError, UserError

# recipe values with a flag of their own
FLAGS = {
    'backbone': str,
    'batch_size': int,
    'accumulate': int,
    'lr': float,
    'workers': int,
    'seed': int,
    'horizon': int,
    'save_every': int,
}


def parse(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of main.py, whose docstring is the description."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    helps = {
        'ctx': 'device: below 0 the CPU, else the ctx-th GPU; under torchrun each process takes '
        'its own GPU',
        'epochs': 'how many epochs to train in this call (with --resume: in total); 0 trains '
        'nothing: one pass takes the age out of the backbone of --init, or out of stored vectors',
        'weights': 'last.pth of a run resumes it exactly; a weights-only file (epoch_*.pth, '
        'best.pth) starts with its weights, and with a new head if the people differ',
        '--resume': 'continue from STATE, by default from last.pth in SAVE if there is one, up to '
        '`epochs` in total and with the recipe in the file: a restarted job is the same command',
        '--dataset': "a data set of meta.py, instead of main.py's `dataset`",
        '--save': "where weights, state, log and curves go, instead of main.py's `save`; with "
        '--dataset NAME it is runs/NAME',
        '--recipe': 'one of training/recipe.py (by default demo for the drawn faces, finetune with '
        '--init, else paper)',
        '--set': "other values for the recipe, as in --set lambda_dal=1. split='(.3,.5)'",
        '--init': 'start from a backbone that knows faces: a published file of its weights, sface, '
        'or a weights file of this repository (docs/finetuning.md)',
        '--validate': 'also validate on lists of pairs: InsightFace .bin files, or text files as '
        'of `evaluate.py … pairs`',
    }
    options: dict[str, dict] = {
        'ctx': {'type': int},
        'epochs': {'type': int},
        'weights': {'nargs': '?'},
        '--resume': {'nargs': '?', 'const': True, 'metavar': 'STATE'},
        '--dataset': {'metavar': 'NAME'},
        '--save': {'metavar': 'DIR'},
        '--recipe': {'choices': recipes},
        '--set': {'nargs': '+', 'action': 'extend', 'default': [], 'metavar': 'KEY=VALUE'},
        '--init': {'metavar': 'FILE'},
        '--validate': {'nargs': '+', 'default': [], 'metavar': 'LIST'},
    }
    for name, how in options.items():
        parser.add_argument(name, help=helps[name], **how)
    for key, kind in FLAGS.items():
        flag = '--' + key.replace('_', '-')
        parser.add_argument(flag, type=kind, help=f'the same as --set {key}=…')
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
    entry = getattr(meta, args.dataset, None) if args.dataset else dataset
    name = args.dataset or next((n for n, value in vars(meta).items() if value is entry), 'dataset')
    if entry is None:
        known = [
            key
            for key, value in vars(meta).items()
            if isinstance(value, dict) and not key.startswith('_')
        ]
        raise UserError(f'--dataset {name}: meta.py has {", ".join(known)}')
    args.save = args.save or (f'runs/{name}' if args.dataset else save)
    folder, weights = starting_point(args)
    recipe, init = chosen_recipe(args, entry is meta.demo, args.init or init, weights)
    if is_vectors(entry['train_root']):
        if args.epochs or init:
            raise UserError(f'{entry["train_root"]}: stored vectors take zero epochs and no --init')
        dim = read_vectors(entry['train_root']).embeddings.shape[1]
        recipe = recipes[args.recipe or 'finetune']
        recipe = recipe.override(pair.partition('=')[::2] for pair in args.set)
        recipe = replace(recipe, backbone='vectors', dim=dim)
    if recipe.batch_size < 2 * world_size() * recipe.accumulate:
        raise UserError(
            f'batch_size is {recipe.batch_size}; that is less than two faces for each '
            f'of {world_size()} process(es) and {recipe.accumulate} micro-batch(es)'
        )
    if args.epochs < 0:
        raise UserError(f'epochs is {args.epochs}; it must be at least 0')
    if not args.epochs and (weights or not (init or is_vectors(entry['train_root']))):
        raise UserError(
            'zero epochs take the age out of a backbone that knows faces: --init FILE names it '
            '(a published file, sface, or weights of this repository)'
        )
    if not args.epochs and recipe.factorization != 'solved':
        raise UserError(
            'zero epochs solve R in closed form: --recipe finetune, or --set factorization=solved'
        )
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
    pretrained.check_name(recipe)
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
        raise DataError(
            f"meta.py, {name}: 'n_cls' is {entry['n_cls']}, but {train.root} has "
            f"{people} identities: set 'n_cls': {people}"
        )
    if people < 2:
        raise DataError(f'{train.root}: one person; to tell people apart it takes two')
    val = None
    if entry['val_root'] and not is_pair_list(entry['val_root']):
        val = _faces(entry, 'val_root')
    kinds = [hasattr(faces, 'vectors') for faces in (train, val) if faces]
    if any(kinds) and not all(kinds):
        raise DataError(f'meta.py, {name}: train_root and val_root must both be stored vectors')
    for notice in [
        *check_ages(train),
        *(check_validation(train, val) if val and not any(kinds) else ()),
    ]:
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
