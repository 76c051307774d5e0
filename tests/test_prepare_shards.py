"""prepare.py --shards: an entry of meta.py to tar shards."""

import errno
import os
import tempfile

import pytest
from photographs import photograph

import meta
import prepare
from utils import UserError


def test_shards_where_nothing_can_be_written(tmp_path, monkeypatch):
    """One line with the remedy, before the images are checked."""
    for person in 'AB':
        photograph(tmp_path / 'faces' / person / '0_30.png', size=(96, 112), at=(0, 0), times=1)
    monkeypatch.setattr(
        meta,
        'mine',
        {
            'train_root': str(tmp_path / 'faces'),
            'val_root': None,
            'pat': r'_|\.',
            'pos': 1,
            'n_cls': 2,
        },
        raising=False,
    )
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        UserError,
        match='file: Not a directory: TARGET names shards in a folder '
        'that can be written|File exists: TARGET names',
    ):
        prepare.main(['--shards', 'mine', str(tmp_path / 'file/x')])
    prepare.main(['--shards', 'mine', str(tmp_path / 'new/x')])
    assert (tmp_path / 'new/x-00000.tar').exists()
    (tmp_path / 'new/x-00000.tar').unlink()
    monkeypatch.setattr(tempfile, 'TemporaryFile', read_only)
    with pytest.raises(UserError, match='new: Read-only file system: TARGET names shards in a'):
        prepare.main(['--shards', 'mine', str(tmp_path / 'new/x')])
    assert not (tmp_path / 'new/x-00000.tar').exists()


def read_only(dir):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), f'{dir}/tmpabcd')
