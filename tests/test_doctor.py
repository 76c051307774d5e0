"""The doctor: each of its findings provoked on a small set, and none where all is well."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import csv_rows, listed, refused
from PIL import Image

import meta
import prepare
from model import Backbone, DALModel
from preparation import doctor, summary, survey
from preparation.sharding import write_shards
from synthesis import drawing


@pytest.fixture
def healthy(tmp_path):
    """Three people to train on and two others, three faces each, every age group among them."""
    ages = [[4, 15, 22], [30, 40, 50], [60, 70, 80]]
    for root, people in (('train', 3), ('val', 2)):
        for k in range(people):
            drawing.write_person(tmp_path / root / f'{root}{k}', 10 * k + (root == 'val'), ages[k])
    roots = {f'{name}_root': str(tmp_path / name) for name in ('train', 'val')}
    return roots | {'pat': r'_|\.', 'pos': 1, 'n_cls': 3}


@pytest.fixture
def examine(healthy, tmp_path, monkeypatch, capsys):
    """Runs --check on `healthy` with these changes; what it prints, the rows of findings.csv."""

    def run(*line, **changes):
        monkeypatch.setattr(meta, 'here', healthy | changes, raising=False)
        prepare.run(['--check', 'here', '--out', str(tmp_path / 'out'), *map(str, line)])
        return capsys.readouterr().out, csv_rows(tmp_path / 'out/findings.csv')

    return run


def test_nothing_to_do_in_folders_in_shards_and_under_odd_names(examine, healthy, tmp_path):
    printed, rows = examine()
    assert 'Nothing to do.' in printed and rows == []
    assert '3 people, 9 images, 3 to 3 a person' in printed and '2 people, 6 images' in printed
    assert 'ages 4 to 80; a person is seen over 20 years (median), 20 at most' in printed
    assert 'to 12 1, to 18 1, to 25 1, to 35 1, to 45 1, to 55 1, to 65 1, over 65 2' in printed
    with Image.open(tmp_path / 'out' / 'ages.png') as picture:
        assert np.asarray(picture.convert('RGB')).std() > 10
    pasted = {}
    exec(printed[printed.index('here = {') :], pasted)
    assert pasted['here'] == healthy
    pattern = write_shards(listed(healthy['train_root']), tmp_path / 'shards')
    printed, rows = examine(train_root=pattern)
    assert '3 people, 9 images' in printed and 'Nothing to do.' in printed and rows == []
    line = '--weights', 'any.pth'
    refused('--weights compares image files', examine, *line, train_root=pattern)
    names = {'faces': 'faces', 'my set': 'my_set', '2024': '_2024', 'class': '_class', 'Zoë': 'Zo_'}
    assert {name: summary.identifier(name) for name in names} == names
    odd = tmp_path / os.fsdecode(b'$a_b^$ \xff')
    (tmp_path / 'train').rename(odd)
    entry = healthy | {'train_root': str(odd)}
    report = doctor.examine('here', entry, meta.age_cutoffs, tmp_path / 'out')
    assert 'Nothing to do.' in report and (tmp_path / 'out/ages.png').exists()
    pasted = {}
    exec(report[report.index('here = {') :], pasted)
    assert pasted['here'] == entry


def replace(path, change):
    with Image.open(path) as image:
        changed = change(image.convert('RGB'))
    changed.save(path, quality=95)


def swap_red_and_blue(image):
    return Image.fromarray(np.asarray(image)[..., ::-1].copy())


FIRST = 'train/train0/000_4.jpg'


def spoil(change):
    return lambda root: replace(root / FIRST, change)


def copied(place):
    return lambda root: shutil.copy(root / FIRST, root / place)


def ones(pattern):
    """Leaves one image of each person that the pattern names."""
    return lambda root: [path.unlink() for path in root.glob(f'{pattern}/00[12]*')]


def moved(old, new):
    return lambda root: (root / old).rename(root / new)


def named(name):
    """Gives the k-th image of each person in train the name that `name` makes of k."""

    def change(root):
        for person in sorted((root / 'train').iterdir()):
            for k, path in enumerate(sorted(person.iterdir())):
                path.rename(path.with_name(name.format(k)))

    return change


def train_as_val(root, put):
    shutil.rmtree(root / 'val')
    put(root / 'train', root / 'val')


def all_swapped(root):
    for path in root.glob('train/*/*'):
        replace(path, swap_red_and_blue)


def an_age_each(root):
    for path in sorted((root / 'train').glob('*/*')):
        path.rename(path.with_name(f'{path.name[:3]}_2{path.parent.name[-1]}.jpg'))


NO_IMAGE = 'not readable as an image (not an image of a kind that is read here)'
# what is done to the set at `root`, and what the doctor says of it
FINDINGS = [
    (spoil(lambda face: face.resize((100, 112))), '1 of 9 images: 112 high × 100 wide: train0/000'),
    (lambda root: (root / FIRST).write_bytes(b'x'), f'1 of 9 images: {NO_IMAGE}: train0/000_4'),
    (moved(FIRST, 'train/train0/x_x.jpg'), 'no age in its name: train0/x_x.jpg: rename them, or'),
    (lambda root: (root / 'train/nobody').mkdir(), '1 folders without an image: nobody'),
    (moved('val/val0', 'train/val7'), "'n_cls' is 3, the folders in train_root are 4"),
    (copied('train/train0/003_4.jpg'), '1 images are twice in the folder of their person'),
    (copied('train/train1/003_4.jpg'), '1 images are in the folders of different people'),
    (copied('val/val0/003_4.jpg'), '1 images are in train_root and in val_root'),
    (moved('val/val0', 'val/train1'), '1 of the 2 people of val_root are in train_root too'),
    (ones('train/train0'), '1 of 3 people have one image, train0'),
    (lambda root: (root / FIRST).unlink(), 'no image of the age group to 12'),
    (spoil(lambda face: face.convert('L')), '1 of 9 images are grey: train0/000_4.jpg'),
    (spoil(swap_red_and_blue), '1 of 9 images are bluer than skin, train0/000_4.jpg'),
    (all_swapped, 'red and blue are probably exchanged'),
    (lambda root: train_as_val(root, shutil.copytree), 'val: a copy of images of'),
    (lambda root: train_as_val(root, os.symlink), 'val: val_root is train_root'),
    (moved('val/val0', 'elsewhere'), 'val: one person: telling people apart takes two'),
    (ones('val/*'), 'val: one image of each person'),
    (named('{:03d}_30.jpg'), 'train: every face is of age 30'),
    (named('x_{}.jpg'), 'is the number of the picture taken for the age?'),
    (an_age_each, 'none of the 3 people with several images is seen at two ages'),
]


@pytest.mark.parametrize('change, told', FINDINGS, ids=[told[:30] for _, told in FINDINGS])
def test_findings(examine, tmp_path, change, told):
    change(tmp_path)
    printed, _ = examine()
    assert told in printed[printed.index('To do:') :]


def test_the_entry_counts_what_training_counts(examine, tmp_path):
    """Folders of the system and files beside the folders are nobody; mend an empty one."""
    for name in ('@eaDir', '__MACOSX', 'lost+found', '.AppleDouble', '$RECYCLE.BIN'):
        shutil.copytree(tmp_path / 'train/train0', tmp_path / 'train' / name)
    shutil.copy(tmp_path / FIRST, tmp_path / 'train/train0/._000_4.jpg')
    (tmp_path / 'train/nobody').mkdir()
    printed, rows = examine()
    assert "'n_cls': 3," in printed and '3 people, 9 images' in printed and rows == []
    assert "'n_cls' is" not in printed
    (tmp_path / 'train/nobody').rmdir()
    assert len(listed(tmp_path / 'train').classes) == 3
    (tmp_path / 'train/train0/deeper').mkdir()
    (tmp_path / FIRST).rename(tmp_path / 'train/train0/deeper/000_4.jfif')
    (tmp_path / 'train/train0/notes.txt').write_text('x')
    os.mkfifo(tmp_path / 'train/train0/pipe_30.jpg')
    printed, _ = examine()
    assert '3 people, 9 images' in printed and 'Nothing to do.' in printed
    assert (
        '2 files or folders that training does not read: train0/notes.txt, train0/pipe' in printed
    )


def test_what_is_missing_and_files_are_listed_one_by_one(examine, tmp_path):
    printed, _ = examine(val_root=None, n_cls=7)
    for line in ('val_root is None', "'n_cls': 3,", "'val_root': None,"):
        assert line in printed
    said = 'meta.py has no data set .nowhere.; there are demo'
    refused(said, prepare.run, ['--check', 'nowhere'])
    refused('no such file', examine, '--weights', tmp_path / 'none.pth')
    (tmp_path / 'train/train0/000_4.jpg').write_bytes(b'x')
    shutil.copy(tmp_path / 'train/train1/000_30.jpg', tmp_path / 'val/val0/003_30.jpg')
    printed, rows = examine()
    assert 'not readable' in printed and "mend 'pat'" not in printed
    train, val = tmp_path / 'train', tmp_path / 'val'
    assert [(row['file'], row['what'], row['other']) for row in rows] == [
        (f'{train}/train0/000_4.jpg', NO_IMAGE, ''),
        (f'{train}/train1/000_30.jpg', 'same pixels', f'{val}/val0/003_30.jpg'),
    ]


class Colours(Backbone):
    """A backbone whose feature is the face itself, shrunk: what looks alike is alike."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, (7, 6)).flatten(1)


def test_features_find_what_pixels_do_not(examine, tmp_path, monkeypatch):
    """A photograph saved anew, a person under two names; the feature is the picture."""
    train, again = tmp_path / 'train', tmp_path / 'train/train0/003_4.jpg'
    spoil(lambda image: image)(tmp_path)
    with Image.open(tmp_path / FIRST) as image:
        image.save(again, quality=60)
    stranger = shutil.copytree(train / 'train1', tmp_path / 'val/stranger')
    for path in stranger.iterdir():
        replace(path, lambda image: image.resize((90, 105)).resize((96, 112)))
    model = DALModel(Colours(), 3)
    torch.nn.init.zeros_(model.factorization.age[2].weight)
    torch.nn.init.zeros_(model.factorization.age[2].bias)
    monkeypatch.setattr(survey, 'load_weights', lambda path: (model.eval(), None))
    printed, rows = examine('--weights', 'any.pth')
    found = {(row['file'], row['what'], row['other']) for row in rows}
    assert (str(tmp_path / FIRST), 'same photograph', str(again)) in found
    assert (f'{train}/train1', 'same person', str(stranger)) in found
    assert 'look like one photograph' in printed and 'may be of one person' in printed
