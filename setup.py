"""MaxQ N:M sparsity for MMDetection."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '([^']+)'", (here / 'maxq_mm/__init__.py').read_text())[1]

setup(
    name='maxq_mm',
    version=version,
    description='MaxQ N:M weight sparsity for MMDetection 3.x',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['maxq_mm', 'maxq_mm.*']),
    package_data={'maxq_mm': ['functional/csrc/*.cpp', 'runtime/csrc/*']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.1,<3',
        'mmengine>=0.10.4,<0.11',
        'mmcv>=2.0.0,<2.2.0',
        'mmdet>=3.1,<3.4',
        'numpy',
        'pycocotools>=2.0.6',
        'rich',
        'setuptools<81',  # mmcv and mmengine import pkg_resources
    ],
    extras_require={
        'tests': ['pytest>=8', 'ruff'],
        'export': ['onnx>=1.16,<2', 'onnxruntime>=1.18,<2'],
    },
)
