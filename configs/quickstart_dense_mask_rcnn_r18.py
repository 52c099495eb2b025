"""Baseline of the quickstart: the same schedule, dense."""
_base_ = './quickstart_mask_rcnn_r18.py'

custom_hooks = [_base_.custom_hooks[1]]  # reseeding alone
work_dir = 'work_dirs/quickstart_dense'
