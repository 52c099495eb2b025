"""A matrix of training runs: what a spec asks for, and what a finished run leaves.

A spec is a config file of four settings, with paths relative to it:

    start = 'dense.py'    # config trained once a seed; the other runs start from its last weights
    config = 'maxq.py'    # config of all other runs, with a MaxQHook
    methods = dict(dense=None, MaxQ=dict(), STE=dict(axes=(), ramp=None, decay=0.))
    runs = [dict(methods=['STE', 'MaxQ'], patterns=['2:4', '1:16'], seeds=[0, 1, 2])]

A method is what it changes of the hook's settings, or None for no hook. Each entry of ``runs``
multiplies out; the order is that of running. With ``options``, an entry changes other settings of
the config, as ``--cfg-options`` does: ``{'optim_wrapper.optimizer.lr': 1e-3}``. Its methods need
names of their own. With ``from_scratch=True``, its runs do not begin with the weights of ``start``;
with ``pruned=16``, they begin with these pruned by tools/prune.py, which looks at 16 images.

A run's settings stand in NAME.py; what training writes is in the folder NAME, with result.json
once it is finished.
"""

import copy
import json
import re
from argparse import Namespace
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from maxq_mm import MaxQHook, cli
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.files import save_text

START = 'start'
_ENTRY = ('methods', 'patterns', 'seeds', 'options', 'from_scratch', 'pruned')
SCORES = ('bbox_mAP', 'segm_mAP')


@dataclass(frozen=True)
class Run:
    """One training: a method with a pattern (None: dense) and a seed."""

    method: str
    pattern: str | None
    seed: int
    config: Path
    changes: dict | None = None  # of MaxQHook's settings; None: trains without it
    start: str | None = None  # name of the run whose trained weights it starts from
    options: dict | None = None  # changes of the config other than of MaxQHook
    pruned: int | None = None  # images for pruning the start's weights first; None: as they are

    @property
    def name(self) -> str:
        words = [self.method, (self.pattern or '').replace(':', 'x'), f'seed {self.seed}']
        return re.sub(r'[^a-z0-9]+', '-', ' '.join(words).lower()).strip('-')


def read_spec(path: Path) -> list[Run]:
    """The runs that a spec asks for, each start before those that need it; each once."""
    if not path.is_file():
        raise cli.InputError(f'spec not found: {path}')
    try:
        runs = _multiply(Config.fromfile(path, lazy_import=False).to_dict(), path.parent)
    except Exception as error:  # a spec is code and can fail in any way
        raise cli.InputError(f'not a sweep spec: {path} ({cli.first_line(error)})') from error
    if not runs:
        raise cli.InputError(f'not a sweep spec: {path} asks for no run')
    for config in {run.config for run in runs}:
        if not config.is_file():
            raise cli.InputError(f'{path}: config not found: {config}')
    return runs


def _multiply(spec: dict, folder: Path) -> list[Run]:
    start, config, methods = folder / spec['start'], folder / spec['config'], spec['methods']
    for method, changes in methods.items():
        if method == START or not (changes is None or isinstance(changes, dict)):
            raise ValueError(f'method {method!r}: a name other than {START!r} with a dict of '
                             f'settings or None, got {changes!r}')
    runs: dict[str, Run] = {}
    for entry in spec['runs']:
        _check_entry(entry)
        options, pruned = entry.get('options'), entry.get('pruned')
        for seed in entry['seeds']:
            first = Run(START, None, seed, start)
            runs.setdefault(first.name, first)
            begin = None if entry.get('from_scratch', False) else first.name
            for method in entry['methods']:
                if method not in methods:
                    raise ValueError(f'method {method!r} of runs is not among methods')
                changes = methods[method]
                if changes is None and pruned is not None:
                    raise ValueError(f'method {method!r} has no pattern to be pruned to')
                for pattern in [None] if changes is None else entry['patterns']:
                    text = None if pattern is None else str(Pattern.parse(pattern))
                    run = Run(method, text, seed, config, changes, begin, options, pruned)
                    if runs.setdefault(run.name, run) != run:
                        raise ValueError(f'{method!r} and {runs[run.name].method!r} would both be '
                                         f'trained in {run.name}')
    return list(runs.values())


def without(runs: list[Run], known: set[str]) -> list[Run]:
    """The runs whose names are not ``known``, and the starts whose weights these need."""
    needed = {run.start for run in runs if run.name not in known}
    return [run for run in runs if run.name not in known or run.name in needed]


def _check_entry(entry: dict) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f'runs: an entry is a dict, got {entry!r}')
    unknown = sorted(set(entry) - set(_ENTRY))
    if unknown:
        raise ValueError(f'an entry of runs has no {unknown[0]!r}; it takes {", ".join(_ENTRY)}')
    if not isinstance(options := entry.get('options'), dict | None):
        raise ValueError(f'options {options!r}: a dict of settings')
    pruned = entry.get('pruned')
    if pruned is not None and (type(pruned) is not int or pruned < 1 or entry.get('from_scratch')):
        raise ValueError(f'pruned {pruned!r}: a number of images, of runs not from_scratch')
    for key in ('methods', 'patterns', 'seeds'):
        if not isinstance(entry.get(key), list | tuple):
            raise ValueError(f'{key} of runs: a list, got {entry.get(key)!r}')
    for seed in entry['seeds']:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f'seeds of runs: whole numbers from 0 to 2**32 - 1, got {seed!r}')


@lru_cache
def _read_config(path: Path, data_root: Path | None) -> Config:
    return cli.read_config(Namespace(config=path, data_root=data_root, cfg_options=None))


def _config(run: Run, data_root: Path | None = None) -> Config:
    """The run's config before its hook, seed and folder are set."""
    cfg = copy.deepcopy(_read_config(run.config, data_root))
    if run.options:
        cli.merge_options(cfg, run.options, run.config)
    return cfg


def configure(run: Run, out: Path, data_root: Path | None) -> Config:
    """The whole config of a run, in folder ``out / run.name``."""
    cfg = _config(run, data_root)
    hooks = cfg.get('custom_hooks') or []
    ours = cli.maxq_hooks(cfg)
    if run.changes is None:
        cfg.custom_hooks = [hook for hook in hooks if hook not in ours]
    elif len(ours) == 1:
        ours[0].update(run.changes, pattern=run.pattern)
    else:
        raise cli.InputError(f'{run.config} has {len(ours)} MaxQHooks, and a sweep changes one')
    cfg.setdefault('randomness', {}).update(seed=run.seed)
    cfg.work_dir = str(out / run.name)
    cfg.load_from = (trained_weights(run, out) if run.pruned is None
                     else str(pruned_weights(run, out)))
    return cfg


def pruned_weights(run: Run, out: Path) -> Path:
    """Where the pruned weights are written of a run that starts from such."""
    return out / run.name / 'pruned.pth'


def trained_weights(run: Run, out: Path) -> str | None:
    """The last checkpoint of the run's start; None if there is none, or none yet."""
    if run.start is None or not (out / run.start / 'last_checkpoint').is_file():
        return None
    return find_latest_checkpoint(str(out / run.start))


def epochs_of(run: Run) -> int:
    """How many epochs the run trains."""
    train_cfg = _config(run).get('train_cfg') or {}
    if 'max_epochs' not in train_cfg:
        raise cli.InputError(f'{run.config} trains by iterations; a sweep takes epochs')
    epochs = train_cfg.max_epochs
    if type(epochs) is not int or epochs < 1:
        raise cli.InputError(f'{run.name}: max_epochs must be a whole number of at least 1, got '
                             f'{epochs!r}')
    return epochs


def check_method(run: Run, cfg: Config) -> None:
    """InputError unless MaxQHook takes the settings of the run, whose config is ``cfg``."""
    for hook in cli.maxq_hooks(cfg):
        try:
            MaxQHook(**{key: value for key, value in hook.items() if key != 'type'})
        except cli.InputError as error:
            raise cli.InputError(f'method {run.method!r}: {error}') from error


def config_of(run: Run, out: Path) -> Path:
    """Where all settings of a run are written. Not in its folder: mmengine writes a copy there."""
    return out / f'{run.name}.py'


def keep_config(run: Run, out: Path, data_root: Path | None) -> None:
    """Write the run's config where :func:`config_of` says, unless it is there.

    Raises:
        ValueError: it is there, with other settings.
    """
    path, wanted = config_of(run, out), configure(run, out, data_root)
    if not path.exists():
        save_text(wanted.pretty_text, path)
    elif _settings(Config.fromfile(path)) != _settings(wanted):
        raise ValueError(f'{path} has other settings than the spec now: move it and '
                         f'{out / run.name} away, or give another --out')


def _settings(cfg: Config) -> dict:
    """All but where files are, which can be written in several ways."""
    return {key: value for key, value in cfg.to_dict().items()
            if key not in ('work_dir', 'load_from')}


def is_finished(run: Run, out: Path) -> bool:
    return (out / run.name / 'result.json').is_file()


def history(folder: Path) -> tuple[list[dict], list[dict]]:
    """What a run logged while training and validating, in order; of a resumed run what counts."""
    train, val = {}, {}
    for log in sorted(folder.glob('*/vis_data/scalars.json')):
        lines = [scalars for line in log.read_text(errors='replace').splitlines()
                 if (scalars := _scalars(line)) is not None]
        trained = [scalars for scalars in lines if 'loss' in scalars]
        if trained:  # from here on anew, after a resume
            train = {k: v for k, v in train.items() if k < trained[0]['step']}
            val = {k: v for k, v in val.items() if k < trained[0].get('epoch', 1)}
        for scalars in lines:
            (train if 'loss' in scalars else val)[scalars['step']] = scalars
    return list(train.values()), list(val.values())


def _scalars(line: str) -> dict | None:
    """A line of mmengine's log; None for one that a killed run left, or a damaged one."""
    try:
        scalars = json.loads(line)
    except json.JSONDecodeError:
        return None
    return scalars if isinstance(scalars, dict) and 'step' in scalars else None


def checkpoint_to_resume(run: Run, out: Path) -> Path | None:
    """The last checkpoint of the run, but for one whose validation was cut short."""
    folder, train_cfg = out / run.name, _config(run).train_cfg
    validated = {entry['step'] for entry in history(folder)[1]}
    epochs = {int(path.stem.removeprefix('epoch_')): path for path in folder.glob('epoch_*.pth')}
    whole = [epoch for epoch in epochs if epoch in validated or not (
        epoch % train_cfg.get('val_interval', 1) == 0 or epoch == train_cfg.max_epochs)]
    return epochs[max(whole)] if whole else None


def result(run: Run, out: Path) -> dict:
    """What a finished run is remembered by; ValueError if it is not finished."""
    folder, epochs = out / run.name, epochs_of(run)
    train, val = history(folder)
    if not val or val[-1]['step'] != epochs:
        raise ValueError(f'{folder} has no scores of epoch {epochs}')
    last = folder / f'epoch_{epochs}.pth'
    if not last.is_file():
        raise ValueError(f'{folder} has no checkpoint of epoch {epochs}')
    iterations = cli.read_checkpoint(last)['meta']['iter']
    hook = next(iter(cli.maxq_hooks(Config.fromfile(config_of(run, out)))), None)
    curve = {score: [entry[f'coco/{score}'] for entry in val] for score in SCORES
             if all(f'coco/{score}' in entry for entry in val)}
    if not curve:
        raise ValueError(f'{folder} has neither of the scores {" and ".join(SCORES)}')
    if min(map(min, curve.values())) < 0:  # pycocotools' -1
        raise ValueError(f'{folder} has no scores: its validation set has no objects')
    return dict(
        name=run.name, method=run.method, pattern=run.pattern, seed=run.seed, start=run.start,
        epochs=epochs, iterations=iterations,
        scores={score: values[-1] for score, values in curve.items()},
        curve=dict(epoch=[entry['step'] for entry in val], **curve),
        train=dict(epoch=[round(entry['step'] * epochs / iterations, 3) for entry in train],
                   loss=[round(entry['loss'], 4) for entry in train],
                   dense_fraction=[entry.get('maxq/dense_fraction', 1.) for entry in train]),
        hook=None if hook is None else hook.to_dict(), options=run.options, pruned=run.pruned)
