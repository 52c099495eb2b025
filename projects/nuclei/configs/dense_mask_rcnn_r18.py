"""Small Mask R-CNN on the nuclei of the 2018 Data Science Bowl (BBBC038), dense, from scratch.

Trains on crops of 128 px and tests on whole images at 256 px. Expects what
projects/nuclei/prepare_nuclei.py writes at data/nuclei, or elsewhere by --data-root.
"""
_base_ = 'maxq_mm::quickstart_dense_mask_rcnn_r18.py'

data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus', ))
image_scale = (256, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_scale)

model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[3])),  # half of the nuclei are below 14 px
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)))  # about 30 nuclei an image
train_dataloader = dict(
    batch_size=4,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
work_dir = 'work_dirs/nuclei_dense'
