"""What is measured of the network between epochs, and whether its losses are finite."""

from pathlib import Path

import torch

import utils
from dataset import Faces, evaluation_loader
from evaluation import age_calibration, protocols
from evaluation.evidence import people_report
from evaluation.metrics import decision, percentiles, verification
from evaluation.pairs import check_pairs
from evaluation.protocols import Benchmark
from evaluation.rates import cosines
from evaluation.set_checks import check_list, fingerprint
from recognition.embedding import check_finite, extract, extract_files
from system.locks import Interrupted
from training import posthoc
from training.distributed import on_rank_zero, raised_by_all
from training.schedule import settings
from training.state import TrainingState
from utils import DataError, UserError


def refuse_not_finite(training: TrainingState, loader, folder) -> None:
    """Raises UserError, and leaves `nan.json`, if a loss of any step so far was not finite;
    `folder` then holds no such weights."""
    found = training.not_finite.first()
    if not found:
        return
    step, losses = found
    batches, size = loader.batch_sampler, loader.batch_sampler.batch_size
    first = step % len(batches) * size
    files = [loader.dataset.path(index) for index in batches.order()[first : first + size]]
    report = {'step': step, 'phase': 'min', 'losses': losses, **settings(training), 'files': files}
    on_rank_zero(utils.write_json, report, folder / 'nan.json')
    what = f'the loss is not finite ({folder}/nan.json has its parts and images)'
    remedy = 'last.pth is from before: --resume with a lower --lr or clip'
    raise raised_by_all(UserError(f'step {step}: {what}; {remedy}'))


def read_lists(paths: list, train: Faces) -> dict[str, Benchmark]:
    """Lists of pairs to validate on, by the names of their files: InsightFace's .bin, or text as
    protocols.pair_list has it.

    Raises: DataError for what can't be read or says nothing, or was trained on (`train`).
    """
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
    training: TrainingState, val, pair_lists, interrupt, kept_x=None, intervals: bool = False
) -> tuple[dict, dict | None]:
    """One flat dict of what is known of the people of `val` (Faces or None) and of lists of pairs;
    and what the weights file keeps to decide by, metrics.decision: of the people, else of the first
    list. Raises the interrupt's Interrupted where a signal came meanwhile."""
    report: dict = {}
    kept = None
    if val:
        report, kept = validate_people(training, val, interrupt, kept_x, intervals)
    bf16 = training.executor.precision == 'bf16'
    for name, listed in pair_lists.items():
        interrupt.check()
        pairs, to_read = listed.pairs, (listed.sources, training.device, listed.names)
        features, _ = extract_files(training.model, *to_read, bf16=bf16, keep=('embedding',))
        scores = cosines(features['embedding'], pairs.left, pairs.right)
        figures = verification(scores, pairs, listed.thresholds)
        report |= {f'{name}_{key}': figures[key] for key in ('accuracy', 'auc')}
        spread = percentiles(scores, pairs.same)
        kept = kept or decision({'verification': figures, 'percentiles': spread})
    if 'auc' not in report and pair_lists:
        report['auc'] = sum(report[f'{name}_auc'] for name in pair_lists) / len(pair_lists)
    return report, kept


def validate_people(
    training: TrainingState, val, interrupt, kept_x=None, intervals: bool = False
) -> tuple[dict, dict | None]:
    """Verification, rank-1, the age left in x_id, what estimated ages are worth, and closed-set
    accuracy where people are shared; see `validate`. `kept_x` is a folder where x of the faces
    stays; with `intervals` there is 'auc_interval' over people."""

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
        remedy = 'last.pth is from before: --resume with a lower --lr'
        raise UserError(f'step {training.step}: {val.root}: {error}: {remedy}') from None
    from evaluation.leakage import age_r2  # scikit-learn is slow to import

    people = people_report(features['embedding'], val.labels, val.ages, intervals=intervals)
    report = {key: people['verification'][key] for key in ('auc', 'accuracy', 'eer')}
    if intervals:
        report['auc_interval'] = (people['verification'].get('intervals') or {}).get('auc')
    report |= {'rank1': people['rank1']}
    report |= {f'auc_gap_{row["years"]}': row['auc'] for row in people['by_gap']}
    for part in ('id', 'age'):
        report[f'age_r2_{part}'] = age_r2(features[f'x_{part}'], val.labels, val.ages)
    index = {name: label for label, name in enumerate(training.classes)}
    own = torch.tensor([index.get(name, -1) for name in val.classes])[torch.from_numpy(val.labels)]
    if (own >= 0).any() and not training.recipe.shard_head:  # no rank has a sharded head whole
        x_id = torch.from_numpy(features['x_id'])[own >= 0]
        report['closed_set_accuracy'] = closed_set_accuracy(training, x_id, own[own >= 0])
    kept = decision(people)
    if kept:
        pairs = age_calibration.score_pairs(features['embedding'], val.labels, val.ages)
        kept['ages'] = age_calibration.fit(pairs)
        kept['people'] = fingerprint([val.path(index) for index in range(len(val))])
    if model.estimator:
        mixed = torch.from_numpy(features['x']).to(training.device)
        years = model.estimator(mixed).cpu().numpy()
        found = posthoc.age_error(years, val.ages)
        report |= {f'estimated_{name}': value for name, value in found.items()}
        if kept:  # by estimates, wherever they decide
            pairs = age_calibration.score_pairs(features['embedding'], val.labels, years)
            kept['estimated'] = age_calibration.fit(pairs)
    return report, kept


@torch.no_grad()
def closed_set_accuracy(training: TrainingState, x_id, labels) -> float:
    """The share of features (N, D) whose largest cosine is with their own label's centre (N,)."""
    right = 0
    for features, of in zip(x_id.split(1024), labels.split(1024), strict=True):
        nearest = training.model.identity(features.to(training.device)).argmax(1)
        right += int((nearest.cpu() == of).sum())
    return right / len(labels)
