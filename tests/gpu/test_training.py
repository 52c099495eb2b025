"""Runs of a Runner on the GPU: hook, resume, EMA, mixed precision, several processes."""

import os
import subprocess
import sys

import pytest
import torch

from maxq_mm import satisfies
from maxq_mm.utils.files import load_file

from ..engine.runs import Classifier, make_runner
from ..running import ROOT

RAMP = dict(type='linear', begin=0, end=3)
HOOKS = [dict(type='MaxQHook', pattern='2:4', ramp=RAMP, decay=0.05), dict(type='ReseedHook')]
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.2)
CONVS = ('backbone.0.weight', 'backbone.3.weight')


def sgd(wrapper='OptimWrapper', **settings) -> dict:
    return dict(type=wrapper, optimizer=dict(type='SGD', lr=0.1, momentum=0.9, **settings))


def classifier() -> Classifier:
    torch.manual_seed(1)
    return Classifier(dropout=0.)


@pytest.fixture
def exact():
    """Convolutions that give the same bits each time, without TF32."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


def assert_close(a: dict, b: dict, rtol=1e-4, atol=1e-5) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=rtol, atol=atol), key


@pytest.mark.parametrize('ema', [False, True])
def test_training_testing_and_resume(tmp_path, device, exact, ema):
    hooks = [*HOOKS, EMA] if ema else HOOKS
    runner = make_runner(tmp_path / 'a', hooks, model=classifier())
    runner.train()
    assert next(runner.model.parameters()).device.type == device.type
    whole = load_file(tmp_path / 'a/epoch_4.pth')
    for key in CONVS:
        assert whole['state_dict'][key].device.type == 'cpu'
        assert satisfies(whole['state_dict'][key], '2:4')
        assert not satisfies(load_file(tmp_path / 'a/epoch_1.pth')['state_dict'][key], '2:4')
    validated = runner.message_hub.get_scalar('val/total').data[0][-1]
    tester = make_runner(tmp_path / 'test', [], model=Classifier(),
                         load_from=str(tmp_path / 'a/epoch_4.pth'))
    assert tester.test()['total'] == pytest.approx(validated, rel=1e-4, abs=1e-4)
    make_runner(tmp_path / 'b', hooks, model=classifier(), resume=True,
                load_from=str(tmp_path / 'a/epoch_2.pth')).train()
    assert not (tmp_path / 'b/epoch_2.pth').exists(), 'nothing was resumed'
    resumed = load_file(tmp_path / 'b/epoch_4.pth')
    assert_close(resumed['state_dict'], whole['state_dict'])
    assert_close(resumed['maxq']['raw'], whole['maxq']['raw'])


def test_the_gpu_trains_what_the_cpu_does(tmp_path, gpu, exact):
    """Three epochs of one small network; choices may differ where sums do, so only nearly."""
    make_runner(tmp_path / 'gpu', HOOKS, model=classifier()).train()
    code = ('from tests.gpu.test_training import *\n'
            f'make_runner({str(tmp_path / "cpu")!r}, HOOKS, model=classifier()).train()')
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True,
                   env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})
    a, b = (load_file(tmp_path / name / 'epoch_4.pth')['maxq']['raw'] for name in ('gpu', 'cpu'))
    for key in CONVS:
        assert torch.linalg.norm(a[key] - b[key]) < 0.02 * torch.linalg.norm(b[key]), key


def test_mixed_precision_with_a_fused_optimizer(tmp_path, device, exact):
    """Such an optimizer unscales by itself, after the decay was added: that is scaled along."""
    wrapper = 'AmpOptimWrapper' if device.type == 'cuda' else 'CPUAmpOptimWrapper'
    scaled = dict(loss_scale=1024.) if device.type == 'cuda' else {}
    runs = {'full': sgd(), 'plain': dict(sgd(wrapper, foreach=True), **scaled),
            'fused': dict(sgd(wrapper, fused=True), **scaled)}
    found = {}
    for name, settings in runs.items():
        runner = make_runner(tmp_path / name, HOOKS, model=classifier(),
                             optim_wrapper=settings)
        runner.train()
        found[name] = load_file(tmp_path / name / 'epoch_4.pth')
        for key in CONVS:
            assert satisfies(found[name]['state_dict'][key], '2:4')
            assert found[name]['maxq']['raw'][key].dtype == torch.float32
    for key in CONVS:
        full, plain, fused = (found[name]['maxq']['raw'][key] for name in runs)
        assert not torch.equal(full, plain)
        assert torch.linalg.norm(plain - full) < 0.08 * torch.linalg.norm(full), key
        assert torch.linalg.norm(fused - plain) < 0.02 * torch.linalg.norm(plain), key


def test_processes_with_synchronised_batch_norm(tmp_path, gpu):
    """One process a GPU, two at most, over NCCL: equal on all, and equal to one with the batch."""
    processes = min(2, torch.cuda.device_count())
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         f'--nproc_per_node={processes}', '-m', 'tests.gpu.processes', str(tmp_path)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stdout
    ranks = [load_file(tmp_path / f'rank{rank}.pth') for rank in range(processes)]
    assert all(rank['backend'] == 'nccl' and rank['synchronised'] for rank in ranks)
    for rank in ranks:
        assert_close(rank['weights'], ranks[0]['weights'], rtol=0, atol=0)
    runner = make_runner(tmp_path / 'one', HOOKS[:1], model=classifier(), batch_size=4)
    runner.train()
    one = {key: value.cpu() for key, value in runner.model.state_dict().items()}
    assert_close(one, ranks[0]['weights'], rtol=1e-2, atol=1e-3)
    stored = load_file(tmp_path / 'epoch_4.pth')
    for key in CONVS:
        assert satisfies(stored['state_dict'][key], '2:4')
