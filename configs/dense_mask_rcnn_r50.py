"""Baseline: the same schedule, dense."""
_base_ = './maxq_mask_rcnn_r50.py'

custom_hooks = []
