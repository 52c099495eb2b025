"""The table of detectors in docs/detectors.md: ``python -m tests.detectors.table`` prints it."""

import re
from collections import Counter

from maxq_mm import sparsify
from maxq_mm.nn.sparsify import SparsityHandle

from .zoo import DETECTORS, PATTERN, build

HEADER = '| model | sparse layers | left dense |\n|---|---|---|'
# What the table calls a reason that has this regex; by the first that matches.
KINDS = {
    'frozen': 'frozen',
    'grouped': 'grouped',
    'DeformConv': 'deformable',
    'ConvTranspose': 'transposed',
    'in-projection|NonDynamicallyQuantizableLinear': 'attention projection(s)',
    'Embedding|DETR|DINO': 'embedding(s)',  # the models hold that of their levels themselves
    'WindowMSA': 'position table(s)',
    'without calling': 'read past the layer',
}


def row(name: str, handle: SparsityHandle) -> str:
    """A line of the table: how many layers are sparse, and for what reasons the others are not."""
    channels, kinds = [], Counter()
    for reason in handle.skipped.values():
        if found := re.match(r'(\d+) input channels', reason):
            channels.append(int(found[1]))
        else:
            kinds[next((regex for regex in KINDS if re.search(regex, reason)), reason)] += 1
    dense = []
    if channels:
        different = '/'.join(map(str, sorted(set(channels))))
        dense.append(f'{len(channels)} with {different} input channels')
    for regex in (*KINDS, *sorted(set(kinds) - set(KINDS))):
        if count := kinds[regex]:
            kind = KINDS.get(regex, regex).replace('(s)', '' if count == 1 else 's')
            dense.append(f'{count} {kind}')
    total = len(handle.layers) + len(handle.skipped)
    return f'| {name} | {len(handle.layers)} of {total} | {", ".join(dense) or "none"} |'


def table() -> str:
    return '\n'.join([HEADER, *(row(name, sparsify(build(detector), PATTERN, predictors=True))
                                for name, detector in DETECTORS.items())])


if __name__ == '__main__':
    print(table())
