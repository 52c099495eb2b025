"""Train a matrix of runs: methods by patterns by seeds, several at a time, resumable.

    python projects/nuclei/sweep.py SPEC --out DIR [--data-root DIR] [--jobs N] [--threads N]
                                    [--known runs.json ...]

What a spec says stands in sweep_runs.py beside it; configs/sweep.py is one. Called again, finished
runs are skipped and a killed one goes on from its last checkpoint. A run that fails leaves
train.log in its folder, and the others go on. Runs that were made elsewhere (--known, what
sweep_report.py and sweep_rates.py write) are left out; their start is trained again where a run
that is left needs its weights.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import sweep_runs
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sweep_scores import read_runs

from maxq_mm import cli
from maxq_mm.utils.files import save_text

TOOLS = Path(__file__).parents[2] / 'tools'
POLL_SECONDS = 2.


@dataclass
class Training:
    """A run that trains in a process of its own; what must be done before, in one before it."""

    run: sweep_runs.Run
    commands: list[list]  # left to do
    slot: int
    since: float
    process: subprocess.Popen | None = None


class Sweep:
    """The runs of a spec on ``jobs`` slots, each with its GPU or its CPU threads."""

    def __init__(self, runs: list[sweep_runs.Run], args: argparse.Namespace, lock: TextIO) -> None:
        self.lock = lock
        self.out: Path = args.out
        self.data_root: Path | None = args.data_root
        self.threads: int = args.threads
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        self.gpus = (visible.split(',') if visible
                     else [str(gpu) for gpu in range(torch.cuda.device_count())])
        self.free = list(range(args.jobs))
        done = [run for run in runs if sweep_runs.is_finished(run, self.out)]
        for run in done:
            sweep_runs.keep_config(run, self.out, self.data_root)
        self.waiting = [run for run in runs if run not in done]
        self.trained = {run.name for run in done}
        self.total = len(runs)
        self.epochs = {run.name: sweep_runs.epochs_of(run) for run in runs}
        self.active: list[Training] = []
        self.failed: list[str] = []
        self.console = Console()

    def go(self) -> None:
        self.console.print(f'{self.total} runs in {self.out}: {len(self.trained)} finished, '
                           f'{len(self.waiting)} to train, {len(self.free)} at a time')
        columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                   TextColumn('epochs'), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress, self._stopping():
            bars = {run.name: progress.add_task(run.name, total=self.epochs[run.name],
                                                visible=False) for run in self.waiting}
            everything = progress.add_task('all', total=sum(self.epochs[name] for name in bars))
            while self.waiting or self.active:
                self._start_ready()
                time.sleep(POLL_SECONDS)
                for training in list(self.active):
                    ended = training.process.poll() is not None
                    if ended and training.commands and not training.process.returncode:
                        self._go_on(training)
                        ended = False
                    name = training.run.name
                    epoch = self.epochs[name] if ended else self._epoch(training.run)
                    progress.update(bars[name], completed=epoch, visible=not ended)
                    if ended:
                        self._finish(training)
                done = sum(task.completed for task in progress.tasks if task.id != everything)
                progress.update(everything, completed=done)

    def _start_ready(self) -> None:
        for run in list(self.waiting):
            if run.start in self.failed:
                self._fail(run, f'{run.start} failed, which it starts from')
                self.waiting.remove(run)
            elif self.free and (run.start is None or run.start in self.trained):
                self.waiting.remove(run)
                self._start(run)

    def _start(self, run: sweep_runs.Run) -> None:
        folder = self.out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        if run.start is not None and sweep_runs.trained_weights(run, self.out) is None:
            self._fail(run, f'{self.out / run.start} has no checkpoint to start from')
            return
        try:
            sweep_runs.keep_config(run, self.out, self.data_root)
        except ValueError as error:
            self._fail(run, str(error))
            return
        try:  # killed between the last validation and here
            self._remember(run, time.monotonic())
            return
        except (ValueError, cli.InputError):
            pass
        training = Training(run, self._commands(run), self.free.pop(0), time.monotonic())
        self._go_on(training)
        self.active.append(training)

    def _commands(self, run: sweep_runs.Run) -> list[list]:
        """What is left to do of a run, in order."""
        folder, config = self.out / run.name, sweep_runs.config_of(run, self.out)
        train = [TOOLS / 'train.py', config, '--work-dir', folder]
        checkpoint = sweep_runs.checkpoint_to_resume(run, self.out)
        if checkpoint is not None:
            return [[*train, '--resume', checkpoint]]
        pruned = sweep_runs.pruned_weights(run, self.out)
        if run.pruned is None or pruned.is_file():
            return [train]
        prune = [TOOLS / 'prune.py', config, sweep_runs.trained_weights(run, self.out), pruned,
                 '--plan', config, '--images', str(run.pruned), '--seed', str(run.seed)]
        return [prune, train]

    def _go_on(self, training: Training) -> None:
        """Start the training's next command."""
        env = {**os.environ, 'OMP_NUM_THREADS': str(self.threads)}
        if self.gpus:
            env['CUDA_VISIBLE_DEVICES'] = self.gpus[training.slot % len(self.gpus)]
        with (self.out / training.run.name / 'train.log').open('a') as log:
            training.process = subprocess.Popen(
                [sys.executable, *training.commands.pop(0)], stdout=log, stderr=subprocess.STDOUT,
                env=env, pass_fds=[self.lock.fileno()])

    def _finish(self, training: Training) -> None:
        run = training.run
        self.active.remove(training)
        self.free.append(training.slot)
        log = self.out / run.name / 'train.log'
        if training.process.returncode:
            self._fail(run, f'exit code {training.process.returncode}, see {log}')
            return
        try:
            self._remember(run, training.since)
        except (ValueError, cli.InputError) as error:
            self._fail(run, str(error))

    def _remember(self, run: sweep_runs.Run, since: float) -> None:
        """Write the result of a run that has finished; ValueError if it has not."""
        result = sweep_runs.result(run, self.out)
        save_text(json.dumps(result), self.out / run.name / 'result.json')
        self.trained.add(run.name)
        scores = ', '.join(f'{key} {value:.3f}' for key, value in result['scores'].items())
        minutes = (time.monotonic() - since) / 60
        self.console.print(f'[{len(self.trained)}/{self.total}] {run.name}: {scores} '
                           f'({minutes:.1f} min)', highlight=False, markup=False)

    def _fail(self, run: sweep_runs.Run, reason: str) -> None:
        self.failed.append(run.name)
        self.console.print(f'{run.name} failed: {reason}', highlight=False, markup=False)

    def _epoch(self, run: sweep_runs.Run) -> int:
        train, _ = sweep_runs.history(self.out / run.name)
        return int(train[-1].get('epoch', 1)) - 1 if train else 0

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Take the trainings along when this process is interrupted or terminated."""
        def stop(*_) -> None:
            raise KeyboardInterrupt

        before = {kind: signal.signal(kind, stop) for kind in (signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            for training in self.active:
                training.process.terminate()
            for training in self.active:
                training.process.wait()


def parse_args() -> argparse.Namespace:
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('spec', type=Path, help='what to train: a file as sweep_runs.py says')
    parser.add_argument('--out', type=Path, required=True, help='folder of the runs')
    parser.add_argument('--data-root', type=Path, help='use this data set in all of them')
    parser.add_argument('--jobs', type=cli.positive, default=max(1, gpus),
                        help='trainings at a time (default: one a GPU, or one)')
    parser.add_argument('--known', type=Path, nargs='+', default=[], metavar='RUNS.json',
                        help='runs made elsewhere, not to be trained again')
    parser.add_argument('--threads', type=cli.positive,
                        help='CPU threads of each (default: all cores, shared)')
    args = parser.parse_args()
    if args.threads is None:
        args.threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    return args


def check(runs: list[sweep_runs.Run], args: argparse.Namespace) -> None:
    """InputError for what would stop a run later, before anything trains."""
    configs = {}
    for run in runs:
        sweep_runs.epochs_of(run)
        cfg = sweep_runs.configure(run, args.out, args.data_root)
        sweep_runs.check_method(run, cfg)
        configs[run.config, str(run.options)] = cfg
    for cfg in configs.values():
        cli.check_data(cfg, 'train', 'val')


@contextmanager
def only_one(out: Path) -> Iterator[TextIO]:
    """InputError if another sweep, or a training that one left behind, works in ``out``."""
    with cli.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / '.lock').open('w')
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise cli.InputError(f'another sweep, or a training of one that was killed, is '
                                 f'working in {out}') from None
        yield lock


def main() -> None:
    args = parse_args()
    runs = sweep_runs.read_spec(args.spec)
    if args.known:
        known, _ = read_runs(args.spec, *args.known)
        runs = sweep_runs.without(runs, {run['name'] for run in known})
    check(runs, args)
    with only_one(args.out) as lock:
        try:
            sweep = Sweep(runs, args, lock)
        except ValueError as error:
            raise cli.InputError(str(error)) from error
        try:
            sweep.go()
        except KeyboardInterrupt:
            print('stopped; the same command goes on', file=sys.stderr)
            sys.exit(130)
    if sweep.failed:
        print(f'{len(sweep.failed)} of {sweep.total} runs failed: {", ".join(sweep.failed)}',
              file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
