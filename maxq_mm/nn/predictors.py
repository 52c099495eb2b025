"""Which layers of a detector predict: what they give are classes, boxes or masks themselves.

They hold few weights, and each of their outputs depends on few, so that N:M costs more there than
it gains. mmdet has no mark for them but their names, which are listed here, for all that treat
these layers in their own way.
"""

from collections.abc import Iterator

from torch import nn

# Names of mmdet's modules, of any head. Of a module of several layers, the last one predicts; of a
# list of modules, the last one of each.
PREDICTORS = (
    # two-stage: proposals, boxes, masks
    'rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg', 'fc_reg_cls', 'fc_reg_offset', 'conv_logits',
    'fc_logits', 'fc_mask_iou',
    # at anchors or points
    'conv_cls', 'conv_reg', 'conv_centerness', 'conv_loc', 'conv_shape', 'retina_cls', 'retina_reg',
    'retina_bbox_cls', 'retina_bbox_reg', 'atss_cls', 'atss_reg', 'atss_centerness', 'atss_iou',
    'gfl_cls', 'gfl_reg', 'tood_cls', 'tood_reg', 'cls_prob_module', 'reg_offset_module',
    'vfnet_cls', 'vfnet_reg', 'vfnet_reg_refine', 'rtm_cls', 'rtm_reg', 'rtm_obj', 'cls_score',
    'bbox_pred', 'object_pred', 'convs_pred', 'multi_level_conv_cls', 'multi_level_conv_reg',
    'multi_level_conv_obj', 'reppoints_cls_out', 'reppoints_pts_init_out',
    'reppoints_pts_refine_out',
    # of corners and centres
    'heatmap_head', 'wh_head', 'offset_head', 'tl_heat', 'br_heat', 'tl_off', 'br_off', 'tl_emb',
    'br_emb', 'tl_guiding_shift', 'br_guiding_shift', 'tl_centripetal_shift',
    'br_centripetal_shift',
    # masks of one-stage heads: of places, or the weights and coefficients that make them
    'conv_mask_list', 'conv_mask_list_x', 'conv_mask_list_y', 'conv_kernel', 'rtm_kernel',
    'controller', 'conv_coeff',
    # of queries
    'cls_branches', 'reg_branches', 'aux_cls_branches', 'aux_reg_branches', 'cls_embed',
    'mask_embed', 'reference_points_fc')
# Names that mean something else in other heads, by class.
_OF_CLASS = {'SSDHead': ('cls_convs', 'reg_convs')}


def predicting_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Layers of ``model`` that predict; each with the name of the module that the list names."""
    found = {}
    for path, parent in model.named_modules():
        own = {name for kind in type(parent).__mro__ for name in _OF_CLASS.get(kind.__name__, ())}
        for name, child in parent.named_children():
            if name in PREDICTORS or name in own:
                where = f'{path}.{name}' if path else name
                found |= dict.fromkeys(_last_layers(child), where)
    return found


def _last_layers(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList):
        for child in module:
            yield from _last_layers(child)
        return
    layers = [layer for layer in module.modules()
              if any(p.ndim >= 2 for p in layer.parameters(recurse=False))]
    yield from layers[-1:]
