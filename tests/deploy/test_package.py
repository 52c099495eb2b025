import subprocess
import sys


def test_the_package_itself_does_without():
    code = ("import sys; sys.modules.update(dict.fromkeys("
            "('onnx', 'onnxruntime', 'mmdet', 'mmcv'))); import maxq_mm; "
            "assert not any(name.startswith('maxq_mm.deploy') for name in sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True)
