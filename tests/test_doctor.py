"""The doctor: each of its findings provoked on a small set, and none where all is well."""

import csv
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import meta
import prepare
from dataset import Faces
from model import Backbone, DALModel
from preparation import doctor, summary, survey
from preparation.sharding import write_shards
from preparation.target import TEXT
from synthesis import drawing
from utils import UserError


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
        prepare.main(['--check', 'here', '--out', str(tmp_path / 'out'), *map(str, line)])
        with open(tmp_path / 'out/findings.csv', **TEXT) as file:
            return capsys.readouterr().out, list(csv.DictReader(file))

    return run


def test_nothing_to_do(examine, healthy, tmp_path):
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


def replace(path, change):
    with Image.open(path) as image:
        changed = change(image.convert('RGB'))
    changed.save(path, quality=95)


def swap_red_and_blue(image):
    return Image.fromarray(np.asarray(image)[..., ::-1].copy())


def first(root):
    return root / 'train/train0/000_4.jpg'


def rename_all(root, name):
    """Gives the k-th image of each person in train the name that name(k) returns."""
    for person in sorted((root / 'train').iterdir()):
        for k, path in enumerate(sorted(person.iterdir())):
            path.rename(path.with_name(name(k)))


# what is done to the set at `root`, and what the doctor says of it
FINDINGS = {
    'a size': (
        lambda root: replace(first(root), lambda image: image.resize((100, 112))),
        '1 of 9 images: 112 high × 100 wide: train0/000_4.jpg: align them',
    ),
    'damage': (
        lambda root: first(root).write_bytes(b'x'),
        '1 of 9 images: not readable as an image (not an image of a kind that is read here): '
        'train0/000_4.jpg: copy or download them again',
    ),
    'a name': (
        lambda root: first(root).rename(first(root).with_name('000_x.jpg')),
        "no age in its name: train0/000_x.jpg: rename them, or mend 'pat'",
    ),
    'an empty folder': (
        lambda root: (root / 'train/nobody').mkdir(),
        '1 folders without an image: nobody',
    ),
    'n_cls': (
        lambda root: shutil.copytree(root / 'val/val0', root / 'train/val7'),
        "'n_cls' is 3, the folders in train_root are 4",
    ),
    'a copy': (
        lambda root: shutil.copy(first(root), root / 'train/train0/003_4.jpg'),
        '1 images are twice in the folder of their person',
    ),
    'two names': (
        lambda root: shutil.copy(first(root), root / 'train/train1/003_4.jpg'),
        '1 images are in the folders of different people',
    ),
    'a leak': (
        lambda root: shutil.copy(first(root), root / 'val/val0/003_4.jpg'),
        '1 images are in train_root and in val_root',
    ),
    'an overlap': (
        lambda root: (root / 'val/val0').rename(root / 'val/train1'),
        '1 of the 2 people of val_root are in train_root too: train1',
    ),
    'one image': (
        lambda root: [path.unlink() for path in (root / 'train/train0').glob('00[12]*')],
        '1 of 3 people have one image, train0',
    ),
    'an age group': (lambda root: first(root).unlink(), 'no image of the age group to 12'),
    'grey': (
        lambda root: replace(first(root), lambda image: image.convert('L')),
        '1 of 9 images are grey: train0/000_4.jpg',
    ),
    'one BGR': (
        lambda root: replace(first(root), swap_red_and_blue),
        '1 of 9 images are bluer than skin, train0/000_4.jpg',
    ),
    'all BGR': (
        lambda root: [replace(path, swap_red_and_blue) for path in (root / 'train').rglob('*.jpg')],
        'red and blue are probably exchanged',
    ),
    'val a copy of train': (
        lambda root: (shutil.rmtree(root / 'val'), shutil.copytree(root / 'train', root / 'val')),
        'val: a copy of images of',
    ),
    'val a link to train': (
        lambda root: (shutil.rmtree(root / 'val'), (root / 'val').symlink_to(root / 'train')),
        'val: val_root is train_root',
    ),
    'one person in val': (
        lambda root: shutil.rmtree(root / 'val/val0'),
        'val: one person: telling people apart takes two',
    ),
    'one image each in val': (
        lambda root: [path.unlink() for path in (root / 'val').glob('*/00[12]*')],
        'val: one image of each person',
    ),
    'one age': (
        lambda root: rename_all(root, '{:03d}_30.jpg'.format),
        'train: every face is of age 30',
    ),
    'two spellings': (
        lambda root: [
            shutil.copytree(root / 'val/val0', root / 'train' / unicodedata.normalize(form, 'Zoë'))
            for form in ('NFC', 'NFD')
        ],
        '1 name(s) stand for different people that differ only in how accents are stored',
    ),
    'numbers for ages': (
        lambda root: rename_all(root, lambda k: f'x_{k}.jpg'),
        'is the number of the picture taken for the age?',
    ),
    'nobody at two ages': (
        lambda root: [
            path.rename(path.with_name(f'{path.name[:3]}_2{path.parent.name[-1]}.jpg'))
            for path in sorted((root / 'train').glob('*/*'))
        ],
        'none of the 3 people with several images is seen at two ages',
    ),
}


@pytest.mark.parametrize('case', FINDINGS)
def test_findings(examine, tmp_path, case):
    change, told = FINDINGS[case]
    change(tmp_path)
    printed, _ = examine()
    assert told in printed[printed.index('To do:') :]


def test_the_same_root_twice(examine, healthy):
    printed, _ = examine(val_root=healthy['train_root'])
    assert 'val_root is train_root' in printed and 'images are in train_root and' not in printed


def test_an_unreadable_image_is_no_matter_of_pat(examine, tmp_path):
    first(tmp_path).write_bytes(first(tmp_path).read_bytes()[:900])
    printed, _ = examine()
    assert 'not readable' in printed and "mend 'pat'" not in printed


def test_the_entry_counts_what_training_counts(examine, tmp_path):
    """Folders of the system and files beside the folders are nobody; mend an empty one."""
    for name in ('@eaDir', '__MACOSX', 'lost+found', '.AppleDouble', '$RECYCLE.BIN'):
        shutil.copytree(tmp_path / 'train/train0', tmp_path / 'train' / name)
    shutil.copy(first(tmp_path), tmp_path / 'train/train0/._000_4.jpg')
    (tmp_path / 'train/nobody').mkdir()
    printed, rows = examine()
    assert "'n_cls': 3," in printed and '3 people, 9 images' in printed and rows == []
    assert "'n_cls' is" not in printed
    shutil.rmtree(tmp_path / 'train/nobody')
    assert len(Faces(tmp_path / 'train', r'_|\.', 1).classes) == 3


def test_deeper_folders_and_other_suffixes_count(examine, tmp_path):
    (tmp_path / 'train/train0/deeper').mkdir()
    first(tmp_path).rename(tmp_path / 'train/train0/deeper/000_4.jfif')
    (tmp_path / 'train/train0/notes.txt').write_text('x')
    os.mkfifo(tmp_path / 'train/train0/pipe_30.jpg')
    printed, _ = examine()
    assert '3 people, 9 images' in printed and 'Nothing to do.' in printed
    assert (
        '2 files or folders that training does not read: train0/notes.txt, train0/pipe' in printed
    )


def test_shards(examine, healthy, tmp_path):
    pattern = write_shards(Faces(healthy['train_root'], r'_|\.', 1), tmp_path / 'shards')
    printed, rows = examine(train_root=pattern)
    assert '3 people, 9 images' in printed and 'Nothing to do.' in printed and rows == []
    with pytest.raises(UserError, match='--weights compares image files'):
        examine('--weights', 'any.pth', train_root=pattern)


def test_a_folder_that_is_not_utf8(healthy, tmp_path):
    """Its name is drawn above the picture, and told."""
    odd = tmp_path / os.fsdecode(b'$a_b^$ \xff')
    (tmp_path / 'train').rename(odd)
    entry = healthy | {'train_root': str(odd)}
    report = doctor.examine('here', entry, meta.age_cutoffs, tmp_path / 'out')
    assert 'Nothing to do.' in report and (tmp_path / 'out/ages.png').exists()
    pasted = {}
    exec(report[report.index('here = {') :], pasted)
    assert pasted['here'] == entry


def test_no_validation_set_and_the_entry_to_paste(examine):
    printed, _ = examine(val_root=None, n_cls=7)
    for line in ('val_root is None', "'n_cls': 3,", "'val_root': None,"):
        assert line in printed


def test_files_are_listed_one_by_one(examine, tmp_path):
    (tmp_path / 'train/train0/000_4.jpg').write_bytes(b'x')
    shutil.copy(tmp_path / 'train/train1/000_30.jpg', tmp_path / 'val/val0/003_30.jpg')
    _, rows = examine()
    assert [(row['file'], row['what'], row['other']) for row in rows] == [
        (
            f'{tmp_path}/train/train0/000_4.jpg',
            'not readable as an image (not an image of a kind that is read here)',
            '',
        ),
        (f'{tmp_path}/train/train1/000_30.jpg', 'same pixels', f'{tmp_path}/val/val0/003_30.jpg'),
    ]


class Colours(Backbone):
    """A backbone whose feature is the face itself, shrunk: what looks alike is alike."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, (7, 6)).flatten(1)


def test_features_find_what_pixels_do_not(examine, tmp_path, monkeypatch):
    """A photograph saved anew, a person under two names; the feature is the picture."""
    replace(tmp_path / 'train/train0/000_4.jpg', lambda image: image)
    with Image.open(tmp_path / 'train/train0/000_4.jpg') as image:
        image.save(tmp_path / 'train/train0/003_4.jpg', quality=60)
    shutil.copytree(tmp_path / 'train/train1', tmp_path / 'val/stranger')
    for path in (tmp_path / 'val/stranger').iterdir():
        replace(path, lambda image: image.resize((90, 105)).resize((96, 112)))
    model = DALModel(Colours(), 3)
    torch.nn.init.zeros_(model.factorization.age[2].weight)
    torch.nn.init.zeros_(model.factorization.age[2].bias)
    monkeypatch.setattr(survey, 'load_weights', lambda path: (model.eval(), None))
    printed, rows = examine('--weights', 'any.pth')
    assert {(row['file'], row['other']) for row in rows if row['what'] == 'same photograph'} >= {
        (f'{tmp_path}/train/train0/000_4.jpg', f'{tmp_path}/train/train0/003_4.jpg')
    }
    assert (f'{tmp_path}/train/train1', f'{tmp_path}/val/stranger') in {
        (row['file'], row['other']) for row in rows if row['what'] == 'same person'
    }
    assert 'look like one photograph' in printed and 'may be of one person' in printed


def test_what_is_asked_for_must_be_there(examine, tmp_path):
    with pytest.raises(UserError, match='meta.py has no data set .nowhere.; there are demo'):
        prepare.main(['--check', 'nowhere'])
    with pytest.raises(UserError, match='no such file'):
        examine('--weights', tmp_path / 'none.pth')


@pytest.mark.parametrize(
    'name, identifier',
    [
        ('faces', 'faces'),
        ('my set', 'my_set'),
        ('2024', '_2024'),
        ('class', '_class'),
        ('Zoë', 'Zo_'),
    ],
)
def test_identifiers(name, identifier):
    assert summary.identifier(name) == identifier
    scope = {}
    values = {'train_root': f'/data/{name}', 'val_root': None, 'pat': "a'b", 'pos': 1, 'n_cls': 3}
    exec(summary.entry_text(identifier, values), scope)
    assert scope[identifier] == values
