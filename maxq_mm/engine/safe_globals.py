"""Let torch's safe loader read what mmengine puts into a checkpoint.

A checkpoint of mmengine holds its log history, and torch >= 2.6 refuses classes that it does not
know. They are named here, so that resuming needs no ``weights_only=False``. A history pickles its
statistics methods as calls of ``getattr``; that one is replaced by a look-up that hands out
nothing else, since the real ``getattr`` would let a hostile file reach any code.
"""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ('min', 'max', 'current', 'mean')


def _statistics_method(owner: type, name: str):
    """Stands in for ``getattr`` while a checkpoint is read.

    Raises:
        AttributeError: anything but a statistics method of HistoryBuffer.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise AttributeError(f'a checkpoint may not look up {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def allow_mmengine_checkpoints() -> None:
    """Register mmengine's log history with ``torch.load(weights_only=True)``."""
    if torch.__version__ < '2.6':
        return  # its list takes no names; mmengine's torch.load reads the file without one
    reconstruct = np.array(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')}
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, *dtypes,
        # numpy moved these; a file names the place of the version that wrote it
        (reconstruct, 'numpy.core.multiarray._reconstruct'),
        (reconstruct, 'numpy._core.multiarray._reconstruct'),
        (scalar, 'numpy.core.multiarray.scalar'),
        (scalar, 'numpy._core.multiarray.scalar'),
        (_statistics_method, 'builtins.getattr'),
    ])
