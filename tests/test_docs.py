"""Commands, links, names, tables and code in README, docs/ and the tour are what they say."""

import contextlib
import importlib
import io
import json
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import ablation
import pytest
import tables
import torch
from conftest import ROOT, execute
from torch.distributed.run import get_args_parser

import dataset
import evaluate
import main
import meta
import model
from backbones import own
from recognition.weights import load_weights
from training.command import chosen_recipe
from training.log import read_log

PATHS = [ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'CHANGELOG')]
PAGES = {path.name: path.read_text() for path in (*PATHS, *sorted((ROOT / 'docs').glob('*.md')))}
TOOLS = [f'{name}.py' for name in ('main', 'evaluate', 'prepare', 'verify', 'export', 'synthetic')]
TOOLS += sorted(
    f'benchmarks/{path.name}'
    for path in (ROOT / 'benchmarks').glob('*.py')
    if 'def arguments' in path.read_text()
)


@pytest.fixture(params=PAGES)
def page(request):
    return request.param


def code_blocks(text, language=r'\w*'):
    return re.findall(rf'^ *```{language}\n(.*?)^ *```$', text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Words of every command of ours in code blocks, indented lines and `inline code`."""
    blocks = code_blocks(text) + re.findall(r'^    .*', text, re.MULTILINE)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    inline = re.findall(r'`((?:python3|torchrun) [^`]*)`', text)
    lines += [' '.join(code.split()) for code in inline]
    for command in (part for line in lines for part in line.split('&&')):
        if re.search(r'\bpython3 \S+\.py\b|\btorchrun ', command):
            yield [word.strip('[]') for word in shlex.split(command, comments=True) if word != '…']


def parse(tool, words, monkeypatch):
    """The tool's parser on the words; of main.py the recipe too. Nothing is run."""
    words = [{'ctx': '0', 'epochs': '1'}.get(word, word) for word in words]
    monkeypatch.setattr(sys, 'argv', [tool, *words])
    module = importlib.import_module(Path(tool).stem)
    if tool == 'main.py':
        args = main.arguments()
        args.recipe = args.recipe or ('finetune' if args.init else None)  # the file isn't there
        chosen_recipe(args, args.dataset in (None, 'demo'))
    elif not tool.startswith('benchmarks/'):
        module.arguments(words)
    elif hasattr(module, 'arguments'):
        module.arguments()


def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.setitem(evaluate.READERS, 'folded', None)  # the reader that docs/extending.md adds
    settings = re.findall(r'`(--set [^`]+)`', PAGES[page])
    alone = [['main.py', '0', '1', '--dataset', 'yours', *shlex.split(line)] for line in settings]
    for words in (*commands(PAGES[page]), *alone):
        place = next(index for index, word in enumerate(words) if word.endswith('.py'))
        if 'torchrun' in words:
            get_args_parser().parse_args(words[words.index('torchrun') + 1 :])
        try:
            parse(words[place], words[place + 1 :], monkeypatch)
        except SystemExit as error:
            assert error.code == 0 and '-h' in words, f'{page}: {shlex.join(words)}'
        except ValueError as error:
            pytest.fail(f'{page}: {shlex.join(words)}: {error}')


def test_commands_are_found_and_every_page_and_picture_is_linked():
    """The test above sees what is there: every tool is documented."""
    documented = {word for text in PAGES.values() for words in commands(text) for word in words}
    assert documented.issuperset(TOOLS)
    assert [words[:2] for words in commands('`python3 main.py -1 24` and `python3 x`')] == [
        ['python3', 'main.py']
    ]
    assert not [f for f in (ROOT / 'docs').iterdir() if f.name not in ' '.join(PAGES.values())]


@pytest.fixture(scope='module')
def flags():
    """Every option of every tool, and of torchrun."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        for tool, *kind in [*([tool] for tool in TOOLS), ['export.py', 'embeddings']]:
            with pytest.raises(SystemExit):
                parse(tool, [*kind, '-h'], patch)
    text = out.getvalue() + get_args_parser().format_help()
    return set(re.findall(r'--[a-z][a-z0-9-]*', text))


def test_flags_exist(page, flags):
    text = re.sub('^#SBATCH.*', '', PAGES[page], flags=re.MULTILINE)
    assert flags.issuperset(re.findall(r'(?<![\w!-])--[a-z][a-z0-9-]*', text))


def test_links_pictures_paths_and_names_exist_and_lines_end_by_column_100(page):
    folder = ROOT if (ROOT / page).exists() else ROOT / 'docs'
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', PAGES[page]):
        path, _, anchor = ''.join(link).partition('#')
        if not path.startswith('https:'):
            target = folder / path if path else folder / page
            assert target.exists(), f'{page}: {path}'
            titles = re.findall(r'^#+ (.*)', target.read_text(), re.MULTILINE) if anchor else ()
            slugs = [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]
            assert not anchor or anchor in slugs, f'{page}: {path}#{anchor}'  # as GitHub makes them
    # files and folders of ours in `inline code`, and the requirements that pip is given
    code = re.findall(r'`([^`]+)`', re.sub(r'```.*?```', '', PAGES[page], flags=re.DOTALL))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {'data', 'runs'}
    paths = [
        path
        for path in code
        if re.fullmatch(r'\w+\.py|[\w.-]+/[\w./-]*', path)
        and ('/' not in path or path.split('/')[0] in folders)
    ]
    for path in paths + re.findall(r'pip install -r (\S+\.txt)', PAGES[page]):
        assert (ROOT / path).exists(), f'{page}: {path}'
    # `module.name` of ours in inline code, as far as it goes: `main.Training.max_step`
    rooms = {path.stem for path in ROOT.glob('*.py')}
    rooms |= {path.parent.name for path in ROOT.glob('*/__init__.py')}
    for name in set(re.findall(r'`(\w+(?:\.\w+)+)`', PAGES[page])):
        if name.split('.')[0] in rooms and not name.endswith(('.py', '.pth')):
            pkgutil.resolve_name(name)
    lines = PAGES[page].splitlines()
    long = [line for line in lines if len(line) > 100 and not line.startswith(('|', '<!--'))]
    # one of the first page is to be pasted
    assert [line[:14] for line in long] == ['    python3 -m'] * (page == 'README.md')
    assert page != 'README.md' or len(lines) <= 165


def test_the_script_for_the_backbone_and_the_tour_run(tmp_path, monkeypatch, train, capsys):
    save = train(-1, 1, save=tmp_path / 'runs' / 'demo')
    assert (save / 'best.pth').exists()
    (script,) = re.findall(r'```python\n(import torch\n.*?)```', PAGES['README.md'], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', [])
    cells = json.loads((ROOT / 'docs' / 'tour.ipynb').read_text())['cells']
    assert len(cells) == 10 and not any(cell.get('outputs') for cell in cells)
    names = {}
    for cell in cells:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
    r2 = dict(re.findall(r'^(\w+) +R² (-?[\d.]+)', capsys.readouterr().out, re.MULTILINE))
    assert float(r2['x_id']) < float(r2['x']) - 0.2, r2


def extension(defines):
    """The names that the block of docs/extending.md which defines this one leaves."""
    pattern = rf'^({defines} =|(?:class|def) {defines}\b)'
    blocks = code_blocks(PAGES['extending.md'], 'python')
    (block,) = (block for block in blocks if re.search(pattern, block, re.MULTILINE))
    names = {}
    exec(block, names)
    return names


def test_another_data_set_and_benchmark(monkeypatch, drawn, weights, tmp_path):
    dataset.check_entry('my_faces', extension('my_faces')['my_faces'], meta.age_cutoffs)
    monkeypatch.setitem(evaluate.READERS, 'folded', extension('folded')['folded'])
    people = [sorted(folder.glob('*.jpg')) for folder in sorted((drawn / 'val').iterdir())]
    rows = [
        f'{person // 2} {int(other == person)} {people[person][0]} {people[other][1]}\n'
        for person in range(4)
        for other in (person, 5)
    ]
    (tmp_path / 'list.txt').write_text(''.join(rows))
    line = -1, weights, 'folded', tmp_path / 'list.txt', '--out', tmp_path / 'out'
    execute(evaluate, *line)
    (report,) = json.loads((tmp_path / 'out' / 'results.json').read_text())['models']
    assert report['verification']['genuine'] == report['verification']['impostor'] == 4


def test_another_age_loss(monkeypatch, train):
    head = extension('RegressedAge')['RegressedAge']
    logits, ages = torch.tensor([[3.0], [2.0]]), torch.tensor([31.0, 12.0])
    torch.testing.assert_close(head(4).loss(logits, ages), torch.tensor([0.005, 0.32]))
    assert head(4).years(logits).tolist() == [30, 20]
    assert head(4).correct(logits, ages).tolist() == [True, False]
    monkeypatch.setitem(model.AGE_HEADS, 'groups', head)
    loaded, _ = load_weights(train(-1, 1) / 'epoch_001.pth')
    assert type(loaded.age) is head and loaded.age[4].out_features == 1


def test_another_identity_margin(monkeypatch, train, tmp_path):
    head = extension('ScaledMargin')['ScaledMargin']
    cosine = torch.tensor([-1.0, 0.0, 1.0])
    harder = head(4, 2, m=0.2).margin(cosine, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(harder, torch.tensor([-1.0, -0.1, 0.8]))
    monkeypatch.setitem(model.HEADS, 'cosface', head)
    losses = []
    for sharded in (False, True):
        settings = ['precision=float32', f'shard_head={sharded}']
        save = train(-1, 1, save=tmp_path / str(sharded), settings=settings)
        loaded, _ = load_weights(save / 'epoch_001.pth')
        assert type(loaded.identity) is head
        losses.append(read_log(save / 'log.jsonl')[-1]['loss_id'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_backbone(monkeypatch, train):
    names = extension('Plain')
    monkeypatch.setattr(own, 'make_backbone', names['make_backbone'])
    weights = train(-1, 1) / 'epoch_001.pth'
    faces = torch.zeros(2, 3, 112, 96, dtype=torch.uint8)
    loaded = model.DALModel.load(weights, names['Plain']())
    assert loaded.embed(faces).shape == (2, 256)
    torch.testing.assert_close(load_weights(weights)[0].embed(faces), loaded.embed(faces))


RESULTS = sorted((ROOT / 'benchmarks').rglob('*.json'))


def test_the_tables_are_the_scripts_and_results_stand_on_a_page():
    for page in tables.pages():
        text = page.read_text()
        assert tables.filled(text) == text, f'{page.name}: run python3 benchmarks/tables.py'
        assert len(re.findall('<!-- benchmarks/', text)) == len(tables.MARKED.findall(text)), page
    for path in RESULTS:
        report = json.loads(path.read_text())
        assert path.read_text() == tables.as_text(report)
        assert path.name in ' '.join(PAGES.values())
        if path.stem.startswith('ablation-'):
            assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
