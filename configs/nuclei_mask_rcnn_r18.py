"""The quickstart's model on larger images, for the nuclei of the 2018 Data Science Bowl (BBBC038).

Expects COCO annotations in the quickstart's layout at data/nuclei, or elsewhere by --data-root.
"""
_base_ = './quickstart_mask_rcnn_r18.py'

maxq = _base_.custom_hooks[0]
maxq.update(ramp=dict(type='cubic', begin=0, end=8, by_epoch=True))  # 2:4 in full from epoch 8 on
custom_hooks = [maxq, _base_.custom_hooks[1]]

data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus', ))
image_scale = (192, 192)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=image_scale)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_scale)

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
    train_cfg=dict(  # about 30 objects an image
        rpn_proposal=dict(nms_pre=500, max_per_img=250), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=250)))
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=12, val_interval=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=12, convert_to_iter_based=True),
]
work_dir = 'work_dirs/nuclei'
