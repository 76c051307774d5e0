"""What the README says is so: its commands, files, names and figures."""
import importlib
import json
import re
import sys

import pytest
from conftest import ROOT

README = (ROOT / 'README.md').read_text()


def test_names_exist():
    for module, name in re.findall(r'`(model|dal|meta|dataset)\.(?!py)(\w+)`', README):
        assert hasattr(importlib.import_module(module), name), f'{module}.{name}'


def test_files_exist():
    for path in re.findall(r'\]\((docs/\S+)\)', README) + re.findall(r'`(benchmarks/\S+?)`', README):
        assert (ROOT / path).exists(), path


def test_flags_exist(monkeypatch, capsys):
    import main
    monkeypatch.setattr(sys, 'argv', ['main.py', '-h'])
    with pytest.raises(SystemExit):
        main.arguments()
    known = capsys.readouterr().out
    for line in re.findall(r'python3 main\.py[^\n`]*', README):
        assert all(flag in known for flag in re.findall(r'--[a-z-]+', line)), line
    for settings in re.findall(r'--set ((?:\w+=[^\s`]+[ ]?)+)', README):
        assert all(pair.split('=')[0] in main.paper for pair in settings.split()), settings


def test_the_script_for_the_backbone_runs(tmp_path, monkeypatch, train):
    save = train(-1, 1, save=tmp_path / 'runs' / 'demo')
    assert (save / 'best.pth').exists()
    script, = re.findall(r'```python\n(import torch\n.*?)```', README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(script, {})


@pytest.mark.parametrize('dataset', ['demo', 'lfw'])
def test_figures_are_the_scripts(dataset, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    import ablation
    report = json.loads((ROOT / 'benchmarks' / f'ablation-{dataset}.json').read_text())
    assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
    assert ablation.markdown(report['summary']) in README


def test_speed_is_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    import parts
    import speed
    for script in (parts, speed):
        assert script.markdown(json.loads((ROOT / 'benchmarks' / 'results' / f'{script.__name__}-2-cores-amd-epyc.json').read_text())) in README
