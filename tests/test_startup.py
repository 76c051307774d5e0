"""What a command imports before it reads its arguments: `-h` answers as soon as torch is there."""

import subprocess
import sys

import pytest
from conftest import ROOT

SLOW = 'sklearn scipy matplotlib tensorboard torchvision cv2 onnxruntime facenet_pytorch flask'
SLOW = [*SLOW.split(), 'torch.distributed.checkpoint', 'torch.distributed.fsdp', 'torch._dynamo']


@pytest.mark.parametrize('command', ['main', 'evaluate', 'prepare', 'verify', 'export'])
def test_import_is_light(command):
    code = f'import sys, {command}; print(*(m for m in {SLOW} if m in sys.modules))'
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert (found.stdout.split(), found.stderr) == ([], '')


def test_main_is_few_files():
    code = 'import sys, main; print(*(getattr(m, "__file__", "") for m in sys.modules.values()))'
    found = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT, text=True).split()
    ours = [file for file in found if file.startswith(f'{ROOT}/') and '/site-packages/' not in file]
    assert 10 < len(ours) <= 35
