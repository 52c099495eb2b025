"""MaxQ N:M sparsity for MMDetection."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '([^']+)'", (here / 'maxq_mm/__init__.py').read_text())[1]
# A package index has none of the README's neighbours: links to them become their text.
readme = re.sub(r'!?\[([^]]*)\]\((?!https?://)[^)]*\)', r'\1',
                (here / 'README.md').read_text(encoding='utf-8'))

setup(
    name='maxq_mm',
    version=version,
    description='MaxQ N:M weight sparsity for MMDetection 3.x',
    long_description=readme,
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['maxq_mm', 'maxq_mm.*']),
    # .mim holds links to the folders of the checkout; a wheel holds what they lead to.
    package_data={'maxq_mm': [
        'functional/csrc/*.cpp', 'runtime/csrc/*',
        '.mim/model-index.yml',
        '.mim/configs/*.yml', '.mim/configs/*.py', '.mim/configs/_base_/*.py',
        '.mim/tools/*.py', '.mim/tools/*.sh',
    ]},
    # They need the tests' reference, and the checkout's environment.
    exclude_package_data={'maxq_mm': ['.mim/tools/benchmark.py', '.mim/tools/make_env.sh']},
    python_requires='>=3.11',
    # The lowest versions are those that all tests ran with; lower ones may do, untried.
    install_requires=[  # what `import maxq_mm` and training a model of your own need
        'torch>=2.13,<3',
        'mmengine>=0.10.7,<0.11',
        'matplotlib',  # the hook's picture
        'numpy',
        'rich',
        'setuptools<81',  # mmengine imports pkg_resources
    ],
    extras_require={
        'mmdet': [  # what configs and tools need; install mmcv with its operators first
            'mmcv>=2.1.0,<2.2.0',
            'mmdet>=3.3.0,<3.4',
            'pycocotools>=2.0.6',
        ],
        'export': ['onnx>=1.23,<2', 'onnxruntime>=1.31,<2'],
        'tests': ['pytest>=8', 'pytest-xdist>=3.8', 'ruff'],
    },
)
