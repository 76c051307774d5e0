"""synthetic.py where its target can't be written: one line, and nothing is left behind."""

import pytest
from conftest import ROOT, python

SMALL = '--people', 1, '--val-people', 1, '--images', 1, '--val-images', 1


@pytest.mark.parametrize('line', [('file/x', *SMALL), ('--sheet', 'file/x.png')])
def test_a_target_that_cannot_be_written_is_one_line(tmp_path, line):
    (tmp_path / 'file').write_text('mine')
    run = python(tmp_path, ROOT / 'synthetic.py', *line)
    assert run.returncode == 1 and run.stdout == ''
    error = run.stderr.splitlines()[-1]
    assert error.startswith('error: ') and error.endswith('Not a directory')
    assert line[-1 if len(line) == 2 else 0] in error and 'Traceback' not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_folder_that_exists_is_not_written_to_and_a_sheet_is_a_picture(tmp_path):
    run = python(tmp_path, ROOT / 'synthetic.py', tmp_path, *SMALL)
    assert run.returncode == 1 and run.stderr.startswith(f'error: {tmp_path} exists already')
    assert not list(tmp_path.iterdir())
    run = python(tmp_path, ROOT / 'synthetic.py', '--sheet', 'x.foo')
    assert run.returncode == 2 and 'x.foo: not the name of a picture' in run.stderr.splitlines()[-1]
