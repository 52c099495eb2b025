"""What the tools share; only they import it. Needs mmengine; mmdet and mmcv where a tool does."""

from ..utils.errors import InputError, first_line
from .checkpoints import check_resumable, load_model, load_weights, read_checkpoint
from .config import (
    add_config_arguments,
    add_run_arguments,
    build_runner,
    merge_options,
    prepare_run,
    read_config,
)
from .data import check_data, datasets, use_data_root
from .run import check_not_itself, positive, run, write_checkpoint, write_json, writing

__all__ = ['InputError', 'add_config_arguments', 'add_run_arguments', 'build_runner', 'check_data',
           'check_not_itself', 'check_resumable', 'datasets', 'first_line', 'load_model',
           'load_weights', 'merge_options', 'positive', 'prepare_run', 'read_checkpoint',
           'read_config', 'run', 'use_data_root', 'write_checkpoint', 'write_json', 'writing']
