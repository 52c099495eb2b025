import subprocess
import sys

import maxq_mm


def test_imports_without_mmdet_and_mmcv():
    code = ("import sys; sys.modules.update(mmdet=None, mmcv=None); import maxq_mm; "
            "print(sorted(n for n in sys.modules if n.startswith('maxq_mm.')))")
    result = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True,
                            check=True)
    assert 'maxq_mm.engine.maxq_hook' in result.stdout


def test_imports_no_compiler_and_no_runtime():
    slow = 'torch._dynamo', 'onnx', 'onnxruntime'  # half a second and more
    code = f"import sys, maxq_mm; assert not set({slow!r}) & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_pure_functions_need_torch_alone():
    code = ("import sys, types; package = types.ModuleType('maxq_mm'); "
            "package.__path__ = [sys.argv[1]]; "
            "sys.modules.update(maxq_mm=package, mmengine=None, mmdet=None, mmcv=None); "
            "import maxq_mm.functional.decay, maxq_mm.functional.masks, maxq_mm.functional.ramp, "
            "maxq_mm.functional.straight_through")
    subprocess.run([sys.executable, '-c', code, maxq_mm.__path__[0]], check=True)


def test_public_names():
    assert all(hasattr(maxq_mm, name) for name in maxq_mm.__all__)
    assert set(maxq_mm.__all__) == {
        'MaxQConv2d', 'MaxQHook', 'MaxQLinear', 'SparsityHandle', 'dense_fraction', 'fold',
        'keep_mask', 'load_compact', 'report', 'satisfies', 'save_compact', 'soft_mask',
        'sparsify', 'to_semi_structured'}


def test_a_config_finds_what_is_registered_alone():
    from mmengine.registry import HOOKS, OPTIM_WRAPPERS, RUNNERS
    for registry, name in ((HOOKS, 'MaxQHook'), (HOOKS, 'ReseedHook'),
                           (OPTIM_WRAPPERS, 'CPUAmpOptimWrapper'),
                           (RUNNERS, 'WholeCheckpointRunner')):
        assert registry.get(name).__name__ == name


def test_what_runs_on_gpus_alone_finds_what_it_imports():
    from .gpu import processes
    assert callable(processes.main)
