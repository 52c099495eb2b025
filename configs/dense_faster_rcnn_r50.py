"""Baseline: the same schedule, dense."""
_base_ = './maxq_faster_rcnn_r50.py'

custom_hooks = []
