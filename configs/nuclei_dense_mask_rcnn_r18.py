"""Baseline of the nuclei config: the same schedule, dense."""
_base_ = './nuclei_mask_rcnn_r18.py'

custom_hooks = [_base_.custom_hooks[1]]  # reseeding alone
work_dir = 'work_dirs/nuclei_dense'
