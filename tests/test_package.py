import subprocess
import sys

import pytest

import maxq_mm


def test_imports_without_mmdet_and_mmcv():
    code = ("import sys; sys.modules.update(mmdet=None, mmcv=None); import maxq_mm; "
            "print(sorted(n for n in sys.modules if n.startswith('maxq_mm.')))")
    result = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True,
                            check=True)
    assert 'maxq_mm.engine.maxq_hook' in result.stdout


def test_imports_no_compiler_and_no_runtime():
    slow = 'torch._dynamo', 'onnx', 'onnxruntime'  # half a second and more
    code = (f"import sys, maxq_mm; assert not set({slow!r}) & set(sys.modules); "
            "assert not [name for name in sys.modules if name.startswith('maxq_mm.runtime')]")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_pure_functions_and_the_import_of_classifiers_need_torch_alone():
    code = ("import sys, types; package = types.ModuleType('maxq_mm'); "
            "package.__path__ = [sys.argv[1]]; "
            "sys.modules.update(maxq_mm=package, mmengine=None, mmdet=None, mmcv=None); "
            "import maxq_mm.functional.decay, maxq_mm.functional.masks, maxq_mm.functional.ramp, "
            "maxq_mm.functional.straight_through, maxq_mm.engine.imagenet")
    subprocess.run([sys.executable, '-c', code, maxq_mm.__path__[0]], check=True)


def test_public_names():
    assert all(hasattr(maxq_mm, name) for name in maxq_mm.__all__)
    assert set(maxq_mm.__all__) == {
        'MaxQConv2d', 'MaxQHook', 'MaxQLinear', 'SparsityHandle', 'accelerate', 'allocate',
        'dense_fraction', 'fold', 'keep_mask', 'load_accelerated', 'load_compact', 'report',
        'satisfies', 'save_accelerated', 'save_compact', 'soft_mask', 'sparsify'}


def test_a_config_finds_what_is_registered_alone():
    from mmengine.registry import HOOKS, OPTIM_WRAPPERS, RUNNERS
    for registry, name in ((HOOKS, 'MaxQHook'), (HOOKS, 'ReseedHook'),
                           (OPTIM_WRAPPERS, 'CPUAmpOptimWrapper'),
                           (RUNNERS, 'WholeCheckpointRunner')):
        assert registry.get(name).__name__ == name


@pytest.mark.parametrize(('name', 'room'), [('allocate', 'maxq_mm.allocation'),
                                            ('accelerate', 'maxq_mm.runtime')])
def test_rooms_beside_training_are_imported_when_they_are_asked_for(name, room):
    code = (f"import sys, maxq_mm; assert {room!r} not in sys.modules; "
            f"maxq_mm.{name}; assert {room!r} in sys.modules")
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'allocat'"):
        maxq_mm.allocat  # noqa: B018


def test_what_runs_on_gpus_alone_finds_what_it_imports():
    from .gpu import processes
    assert callable(processes.main)
