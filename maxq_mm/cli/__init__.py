"""What the tools share; only they import it. Needs mmengine; mmdet and mmcv where a tool does."""

from ..utils.errors import InputError, first_line
from .checkpoints import (
    check_classes,
    check_resumable,
    check_start,
    load_model,
    load_weights,
    read_checkpoint,
    trained_classes,
)
from .config import (
    add_config_arguments,
    add_run_arguments,
    build_runner,
    check_settings,
    maxq_hooks,
    merge_options,
    prepare_run,
    read_config,
)
from .data import check_data, datasets, evaluators, use_data_root
from .data_checks import build_data, build_dataset, check_built
from .run import (
    check_device,
    check_outputs,
    is_of_the_disk,
    natural,
    positive,
    run,
    write_checkpoint,
    write_json,
    writing,
)

__all__ = ['InputError', 'add_config_arguments', 'add_run_arguments', 'build_data', 'build_dataset',
           'build_runner', 'check_built', 'check_classes', 'check_data', 'check_device',
           'check_outputs', 'check_resumable', 'check_settings', 'check_start', 'datasets',
           'evaluators', 'first_line', 'is_of_the_disk', 'load_model', 'load_weights', 'maxq_hooks',
           'merge_options', 'natural', 'positive', 'prepare_run', 'read_checkpoint', 'read_config',
           'run', 'trained_classes', 'use_data_root', 'write_checkpoint', 'write_json', 'writing']
