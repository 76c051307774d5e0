"""Which file may import which: the order of the house, from the ground up, and no circle; and how
little a command imports before it reads its arguments: `-h` answers as soon as torch is there."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT

ROOMS = 'utils system meta model dal storage backbones recognition dataset synthesis evaluation'
ROOMS = [*ROOMS.split(), 'preparation', 'verification', 'training']
COMMANDS = ['main', 'evaluate', 'prepare', 'verify', 'export', 'synthetic', 'hubconf']
SLOW = 'sklearn scipy matplotlib tensorboard torchvision cv2 onnxruntime facenet_pytorch flask'
SLOW = [*SLOW.split(), 'torch.distributed.checkpoint', 'torch.distributed.fsdp', 'torch._dynamo']
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for room in (*ROOMS, *COMMANDS)
    for path in (*ROOT.glob(f'{room}.py'), *ROOT.glob(f'{room}/*.py'))
}


def imports(name):
    """Our files that the file `name` imports, wherever in it, and by import_module too."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, (name.split('.')[0] * bool(node.level), node.module)))
            parts = [f'{base}.{alias.name}' for alias in node.names]
            found = [part if part in FILES else base for part in parts]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
            found = _strings(node.args[0]) or _strings(ast.parse(FILES[name].read_text()))
        yield from (module for module in found if module in FILES and module != name)


def _strings(tree):
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


@pytest.mark.parametrize('name', FILES)
def test_arrows_go_down(name):
    """A file imports from rooms below its own; commands stand above all, and nobody imports one."""
    order = [*ROOMS, 'a command']
    room = name.split('.')[0]
    for module in imports(name):
        below = module.split('.')[0]
        assert below not in COMMANDS, module
        assert order.index(below) <= order.index(room if room in ROOMS else 'a command'), module


def test_no_circle():
    graph = {name: {module for module in imports(name) if module in FILES} for name in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize('command', COMMANDS[:5])
def test_import_is_light(command):
    code = f'import sys, {command}; print(*sys.modules)'
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    there = found.stdout.split()
    assert command in there and not {*SLOW} & {*there} and not found.stderr
    ours = [name for name in there if name in FILES]
    assert command != 'main' or 10 < len(ours) <= 35
