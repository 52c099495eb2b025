"""The ready configs by name, from anywhere: ``_base_ = 'maxq_mm::maxq_mask_rcnn_r50.py'``.

They lie in ``.mim/configs`` of the package, where mmdet's lie in mmdet. mmengine resolves such
names for a fixed list of packages alone, wants a folder in each, and would build what the config
holds in a scope called maxq_mm, where mmdet's modules are not known. So names of this package are
resolved before mmengine sees them, as files that belong to no other scope.
"""

from functools import wraps
from pathlib import Path

from mmengine.config import Config

PREFIX = 'maxq_mm::'
_FOLDER = Path(__file__).parents[1] / '.mim/configs'


def config_path(name: str) -> Path:
    """Where the ready config of this name is, with or without ``maxq_mm::``.

    Raises:
        FileNotFoundError: there is none; the names of those that there are stand in it.
    """
    path = _FOLDER / name.removeprefix(PREFIX)
    if not path.is_file():
        known = ', '.join(sorted(path.name for path in _FOLDER.glob('*.py')))
        raise FileNotFoundError(f'no config {name}; {PREFIX} knows {known or "none"}')
    return path


def resolve_config_names() -> None:
    """Let ``_base_`` of mmengine's configs name the ready ones; once is enough."""
    theirs = Config._get_cfg_path
    if hasattr(theirs, 'resolves_maxq_mm'):
        return

    @wraps(theirs)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return str(config_path(cfg_path)), None
        return theirs(cfg_path, filename)

    get_cfg_path.resolves_maxq_mm = True
    Config._get_cfg_path = staticmethod(get_cfg_path)
