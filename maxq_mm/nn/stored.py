"""Which weight a state dict holds: a layer's raw one, unless its metadata says the effective one.

torch keeps metadata beside a state dict, a dict for each module, and hands a module its own when
it loads. So the mark travels with the file, and no tool that knows nothing of it is disturbed. The
raw weights that belong to marked effective ones stand beside the state dict, if anywhere: see
:mod:`maxq_mm.engine.checkpoint`.
"""

from collections.abc import Mapping

_KEY, _EFFECTIVE = 'maxq', 'effective'


def mark_effective(state_dict: Mapping) -> None:
    """Say that ``state_dict``, of ``Module.state_dict``, holds what forward passes use."""
    for metadata in state_dict._metadata.values():
        metadata[_KEY] = _EFFECTIVE


def is_effective(metadata: Mapping) -> bool:
    """Whether a layer finds its effective weight in the state dict that has this metadata of it."""
    return metadata.get(_KEY) == _EFFECTIVE
