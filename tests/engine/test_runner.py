"""What our Runner adds: several CPU processes, and checkpoints that are whole or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from maxq_mm import satisfies
from maxq_mm.engine.runner import WholeCheckpointRunner
from maxq_mm.utils.files import load_file

from .runs import make_runner
from .two_processes import SETTINGS, model, weights

ROOT = Path(__file__).parents[2]


def run_two(*arguments):
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         '-m', 'tests.engine.two_processes', *map(str, arguments)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp('two')
    run_two(out)
    return out


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key], b[key], **tolerance), key


def test_two_processes_agree_and_equal_one(two_processes, tmp_path):
    """Each takes half of the batch that the one process takes whole."""
    ranks = [load_file(two_processes / f'rank{rank}.pth') for rank in (0, 1)]
    assert_close(*ranks, rtol=0, atol=0)
    runner = make_runner(tmp_path, model=model(), batch_size=4, **SETTINGS)
    runner.train()
    one = weights(runner)
    for rank in ranks:
        del rank['validated']
    assert_close(ranks[0], one, rtol=1e-7, atol=1e-9)
    for key in one:
        if key.endswith('.effective'):
            assert torch.equal(one[key] == 0, ranks[0][key] == 0)
            assert satisfies(one[key], '2:4')
    stored = load_file(two_processes / 'epoch_4.pth')
    for name in stored['maxq']['layers']:
        assert torch.equal(stored['state_dict'][f'{name}.weight'], ranks[0][f'{name}.effective'])


def test_two_processes_resume(two_processes, tmp_path):
    """In the middle of the ramp, to the same bits."""
    run_two(tmp_path, two_processes / 'epoch_2.pth')
    assert not (tmp_path / 'epoch_2.pth').exists(), 'nothing was resumed'
    whole = load_file(two_processes / 'rank0.pth')
    for rank in (0, 1):
        assert_close(load_file(tmp_path / f'rank{rank}.pth'), whole, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != 'linux', reason='threads are read from /proc')
def test_no_thread_of_the_process_group_is_left(two_processes):
    """One that asks for an interpreter that ends is aborted, and the run with it."""
    for rank in (0, 1):
        threads = (two_processes / f'threads{rank}.txt').read_text().split()
        assert threads
        assert not [name for name in threads if 'gloo' in name]


def test_other_launchers_need_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '0')
    with pytest.raises(ValueError, match="launcher='slurm' needs GPUs"):
        make_runner(tmp_path, [], runner_type=WholeCheckpointRunner, launcher='slurm')


def test_the_usual_runner_gives_the_same(tmp_path):
    states = []
    for kind in (Runner, WholeCheckpointRunner):
        runner = make_runner(tmp_path / kind.__name__,
                             model=model(), **{**SETTINGS, 'runner_type': kind})
        runner.train()
        states.append(weights(runner))
        assert sorted(path.name for path in (tmp_path / kind.__name__).glob('*.pth')) == [
            f'epoch_{epoch}.pth' for epoch in (1, 2, 3, 4)]
    assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError])
def test_a_failed_save_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch, stop):
    runner = make_runner(tmp_path, model=model(), **SETTINGS)
    runner.train()
    before = (tmp_path / 'epoch_4.pth').read_bytes()

    def fail(checkpoint, path, **_):
        Path(path).write_bytes(b'half a file')
        raise stop('no space left')

    monkeypatch.setattr('mmengine.runner.runner.save_checkpoint', fail)
    with pytest.raises(stop):
        runner.save_checkpoint(str(tmp_path), 'epoch_4.pth')
    assert (tmp_path / 'epoch_4.pth').read_bytes() == before
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('saving', [
    dict(filename_tmpl='sub/epoch_{}.pth'), dict(backend_args=dict(backend='local')),
    dict(save_best='total', rule='greater'), dict(max_keep_ckpts=2)], ids=str)
def test_what_checkpoint_hooks_ask_for(tmp_path, saving):
    (tmp_path / 'sub').mkdir()
    files = []
    for kind in (Runner, WholeCheckpointRunner):
        work_dir = tmp_path / kind.__name__
        (work_dir / 'sub').mkdir(parents=True)
        make_runner(work_dir, model=model(), saving=dict(type='CheckpointHook', **saving),
                    **{**SETTINGS, 'runner_type': kind}).train()
        files.append(sorted(str(path.relative_to(work_dir)) for path in work_dir.rglob('*.pth')))
    assert files[0] == files[1]


def test_save_checkpoint_takes_what_mmengines_takes(tmp_path):
    runner = make_runner(tmp_path, model=model(), **SETTINGS)
    runner.train()
    runner.save_checkpoint(str(tmp_path), 'bare.pth', None, False)
    assert 'optimizer' not in load_file(tmp_path / 'bare.pth')


def test_two_processes_with_trained_batch_norm_save_what_they_validate(tmp_path):
    run_two(tmp_path, '--train-norm')
    ranks = [load_file(tmp_path / f'rank{rank}.pth') for rank in (0, 1)]
    assert_close(*ranks, rtol=0, atol=0)
    tester = make_runner(tmp_path / 'test', [], load_from=str(tmp_path / 'epoch_4.pth'))
    assert abs(tester.test()['total'] - ranks[0]['validated']) < 1e-5
