"""The doctor: each of its findings provoked on a small set, and none where all is well."""
import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import meta
import prepare
import synthetic
from model import Backbone, DALModel
from preparation import doctor, duplicates
from utils import UserError


@pytest.fixture
def healthy(tmp_path):
    """Three people to train on and two others, three faces each, every age group among them."""
    ages = [[4, 15, 22], [30, 40, 50], [60, 70, 80]]
    for root, people in (('train', 3), ('val', 2)):
        for k in range(people):
            synthetic.write_person(tmp_path / root / f'{root}{k}', 10 * k + (root == 'val'),
                                   ages[k])
    return {
        'train_root': str(tmp_path / 'train'),
        'val_root': str(tmp_path / 'val'),
        'pat': r'_|\.',
        'pos': 1,
        'n_cls': 3
    }


@pytest.fixture
def examine(healthy, tmp_path, monkeypatch, capsys):
    """Runs --check on `healthy` with these changes; what it prints, the rows of findings.csv."""
    def run(*line, **changes):
        monkeypatch.setattr(meta, 'here', healthy | changes, raising=False)
        prepare.main(['--check', 'here', '--out', str(tmp_path / 'out'), *map(str, line)])
        with open(tmp_path / 'out' / 'findings.csv', newline='', encoding='utf-8',
                  errors='surrogateescape') as file:
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
    exec(printed[printed.index('here = {'):], pasted)
    assert pasted['here'] == healthy


def replace(path, change):
    with Image.open(path) as image:
        changed = change(image.convert('RGB'))
    changed.save(path, quality=95)


FINDINGS = {
    'a size': (lambda root: replace(root / 'train/train0/000_4.jpg', lambda image: image.resize(
        (112, 112))), '1 of 9 images: 112 high × 100 wide: train0/000_4.jpg'),
    'damage': (lambda root: (root / 'train/train0/000_4.jpg').write_bytes(b'x'),
               '1 of 9 images: not readable as an image'),
    'a name': (lambda root:
               (root / 'train/train0/000_4.jpg').rename(root / 'train/train0/000_x.jpg'),
               "no age in its name: train0/000_x.jpg: rename them, or mend 'pat'"),
    'an empty folder': (lambda root:
                        (root / 'train/nobody').mkdir(), '1 folders without an image: nobody'),
    'n_cls': (lambda root: shutil.copytree(root / 'val/val0', root / 'train/val7'),
              "'n_cls' is 3, the folders in train_root are 4"),
    'a copy': (
        lambda root: shutil.copy(root / 'train/train0/000_4.jpg', root / 'train/train0/003_4.jpg'),
        '1 images are twice in the folder of their person'),
    'two names': (
        lambda root: shutil.copy(root / 'train/train0/000_4.jpg', root / 'train/train1/003_4.jpg'),
        '1 images are in the folders of two people'),
    'a leak': (
        lambda root: shutil.copy(root / 'train/train0/000_4.jpg', root / 'val/val0/003_4.jpg'),
        '1 images are in train_root and in val_root'),
    'an overlap': (lambda root: (root / 'val/val0').rename(root / 'val/train1'),
                   '1 of the 2 people of val_root are in train_root too: train1'),
    'one image': (lambda root: [path.unlink() for path in (root / 'train/train0').glob('00[12]*')],
                  '1 of 3 people have one image, train0'),
    'an age group': (lambda root:
                     (root / 'train/train0/000_4.jpg').unlink(), 'no image of the age group to 12'),
    'grey': (
        lambda root: replace(root / 'train/train0/000_4.jpg', lambda image: image.convert('L')),
        '1 of 9 images are grey: train0/000_4.jpg'),
    'one BGR': (
        lambda root: replace(root / 'train/train0/000_4.jpg', lambda image: Image.fromarray(
            np.asarray(image)[..., ::-1].copy())),
        '1 of 9 images are bluer than skin, train0/000_4.jpg'),
    'all BGR': (lambda root: [
        replace(path, lambda image: Image.fromarray(np.asarray(image)[..., ::-1].copy()))
        for path in (root / 'train').rglob('*.jpg')
    ], 'red and blue are probably exchanged'),
}


@pytest.mark.parametrize('case', FINDINGS)
def test_findings(examine, tmp_path, case):
    change, told = FINDINGS[case]
    change(tmp_path)
    printed, _ = examine()
    assert told in printed[printed.index('To do:'):]


def test_no_validation_set_and_the_entry_to_paste(examine):
    printed, _ = examine(val_root=None, n_cls=7)
    for line in ('val_root is None', "'n_cls': 3,", "'val_root': None,"):
        assert line in printed


def test_files_are_listed_one_by_one(examine, tmp_path):
    (tmp_path / 'train/train0/000_4.jpg').write_bytes(b'x')
    shutil.copy(tmp_path / 'train/train1/000_30.jpg', tmp_path / 'val/val0/003_30.jpg')
    _, rows = examine()
    assert [(row['file'], row['what'], row['other']) for row in rows] == [
        (f'{tmp_path}/train/train0/000_4.jpg', 'not readable as an image (UnidentifiedImageError)',
         ''),
        (f'{tmp_path}/train/train1/000_30.jpg', 'same pixels', f'{tmp_path}/val/val0/003_30.jpg')
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
    monkeypatch.setattr(duplicates, 'load_weights', lambda path: (model.eval(), None))
    printed, rows = examine('--weights', 'any.pth')
    assert {(row['file'], row['other'])
            for row in rows
            if row['what'] == 'same photograph'} >= {(f'{tmp_path}/train/train0/000_4.jpg',
                                                      f'{tmp_path}/train/train0/003_4.jpg')}
    assert (f'{tmp_path}/train/train1',
            f'{tmp_path}/val/stranger') in {(row['file'], row['other'])
                                            for row in rows
                                            if row['what'] == 'same person'}
    assert 'look like one photograph' in printed and 'may be of one person' in printed


def test_what_is_asked_for_must_be_there(examine, tmp_path):
    with pytest.raises(UserError, match='meta.py has no data set .nowhere.; there are demo'):
        prepare.main(['--check', 'nowhere'])
    with pytest.raises(UserError, match='no such file'):
        examine('--weights', tmp_path / 'none.pth')


@pytest.mark.parametrize('name, identifier', [('faces', 'faces'), ('my set', 'my_set'),
                                              ('2024', '_2024'), ('class', '_class'),
                                              ('Zoë', 'Zo_')])
def test_identifiers(name, identifier):
    assert doctor.identifier(name) == identifier
    scope = {}
    exec(doctor.entry(f'/data/{name}', None, "a'b", 1, 3), scope)
    assert scope[identifier] == {
        'train_root': f'/data/{name}',
        'val_root': None,
        'pat': "a'b",
        'pos': 1,
        'n_cls': 3
    }
