"""What is measured of the network between epochs, and whether its losses are finite."""

from pathlib import Path
from typing import Any

import torch

import utils
from dataset import Faces, evaluation_loader
from evaluation import age_calibration, protocols
from evaluation.age_calibration import score_pairs
from evaluation.evidence import people_report
from evaluation.metrics import decision, percentiles, verification
from evaluation.pairs import check_pairs
from evaluation.protocols import Benchmark
from evaluation.rates import cosines
from evaluation.set_checks import check_list, fingerprint
from recognition.embedding import check_finite, extract, extract_files
from system.locks import Interrupted
from training import closed_form, posthoc
from training.distributed import on_rank_zero
from training.state import TrainingState
from utils import DataError, UserError

REMEDY = 'last.pth is from before: --resume with a lower --lr'


def refuse_not_finite(training: TrainingState, loader: Any, folder: Path) -> None:
    """Raises UserError, and leaves `nan.json`, if a loss of any step so far was not finite."""
    found = training.not_finite.first()
    if not found:
        return
    step, losses = found
    batches, size = loader.batch_sampler, loader.batch_sampler.batch_size
    first = step % len(batches) * size
    files = [loader.dataset.path(index) for index in batches.order()[first : first + size]]
    report = {'step': step, 'phase': 'min', 'losses': losses, **training.settings(), 'files': files}
    on_rank_zero(utils.write_json, report, folder / 'nan.json')
    what = f'the loss is not finite ({folder}/nan.json has its parts and images)'
    raise UserError(f'step {step}: {what}; {REMEDY} or clip')


def read_lists(paths: list, train: Faces) -> dict[str, Benchmark]:
    """Lists of pairs to validate on, by the names of their files: InsightFace's .bin, or text as of
    protocols.pair_list. Raises DataError for what says nothing, or was trained on."""
    found = {}
    for path in paths:
        listed = protocols.READERS['bin' if str(path).endswith('.bin') else 'pairs'](path)
        notices = check_pairs(listed.pairs, listed.names, path)
        if isinstance(train, Faces):  # stored vectors hold no images
            notices += check_list(train, path, listed.names, listed.sources)
        for notice in notices:
            print(f'warning: {notice}')
        name = Path(path).stem
        if name in found:
            raise DataError(f'{path}: a second list called {name}: rename one of them')
        found[name] = listed
    return found


def validate(
    training: TrainingState,
    val: Any,
    pair_lists: dict[str, Benchmark],
    interrupt: Any,
    kept_x: Path | None = None,
    intervals: bool = False,
) -> tuple[dict, dict | None]:
    """One flat dict of what is known of the people of `val` (Faces or None) and of lists of pairs;
    and what the weights file keeps to decide by, metrics.decision: of the people, else of the first
    list. `kept_x` is a folder where x of the faces stays; with `intervals` there is 'auc_interval'
    over people. Raises the interrupt's Interrupted where a signal came meanwhile."""
    report: dict = {}
    kept = None
    if val:
        features = _features(training, val, interrupt, kept_x)
        report, kept = _of_people(training, val, features, intervals)
    for name, listed in pair_lists.items():
        interrupt.check()
        pairs, bf16 = listed.pairs, training.executor.precision == 'bf16'
        to_read = listed.sources, training.device, listed.names
        features, _ = extract_files(training.model, *to_read, bf16=bf16, keep=('embedding',))
        scores = cosines(features['embedding'], pairs.left, pairs.right)
        figures = verification(scores, pairs, listed.thresholds)
        report |= {f'{name}_{key}': figures[key] for key in ('accuracy', 'auc')}
        spread = percentiles(scores, pairs.same)
        kept = kept or decision({'verification': figures, 'percentiles': spread})
    if 'auc' not in report and pair_lists:
        report['auc'] = sum(report[f'{name}_auc'] for name in pair_lists) / len(pair_lists)
    return report, kept


def _features(training, val, interrupt, kept_x):
    def batches():
        for batch in evaluation_loader(val):
            interrupt.check()
            yield batch

    model = training.model.eval()
    try:
        if kept_x:
            x = posthoc.embed(training, val, kept_x, 'val', interrupt.check)
            features = posthoc.features(model, x, training.device)
        else:
            bf16 = training.executor.precision == 'bf16'
            features = extract(model, batches(), training.device, bf16=bf16)
        check_finite(features['embedding'])
    except (DataError, Interrupted):
        raise
    except ValueError as error:
        raise UserError(f'step {training.step}: {val.root}: {error}: {REMEDY}') from None
    return features


@torch.no_grad()
def _of_people(training, val, features, intervals):
    """Verification, rank-1, the age left in x_id, what estimated ages are worth, and closed-set
    accuracy where people are shared."""
    from evaluation.leakage import age_r2  # scikit-learn is slow to import

    model, embeddings = training.model, features['embedding']
    people = people_report(embeddings, val.labels, val.ages, intervals=intervals)
    report = {key: people['verification'][key] for key in ('auc', 'accuracy', 'eer')}
    if intervals:
        report['auc_interval'] = (people['verification'].get('intervals') or {}).get('auc')
    report |= {'rank1': people['rank1']}
    report |= {f'auc_gap_{row["years"]}': row['auc'] for row in people['by_gap']}
    for part in ('id', 'age'):
        report[f'age_r2_{part}'] = age_r2(features[f'x_{part}'], val.labels, val.ages)
    index = {name: label for label, name in enumerate(training.classes)}
    own = torch.tensor([index.get(name, -1) for name in val.classes])[torch.from_numpy(val.labels)]
    known = own >= 0
    if known.any() and not training.recipe.shard_head:  # no rank has a sharded head whole
        parts = torch.from_numpy(features['x_id'])[known].to(training.device).split(1024)
        nearest = torch.cat([model.identity(part).argmax(1).cpu() for part in parts])
        report['closed_set_accuracy'] = float((nearest == own[known]).double().mean())
    kept = decision(people)
    if kept:
        kept['ages'] = age_calibration.fit_by_age(score_pairs(embeddings, val.labels, val.ages))
        kept['people'] = fingerprint([val.path(index) for index in range(len(val))])
    if model.estimator:
        years = model.estimator(torch.from_numpy(features['x']).to(training.device)).cpu().numpy()
        error = closed_form.age_error(years, val.ages)
        report |= {f'estimated_{name}': value for name, value in error.items()}
        if kept:  # by estimates, wherever they decide
            kept['estimated'] = age_calibration.fit_by_age(
                score_pairs(embeddings, val.labels, years)
            )
    return report, kept
