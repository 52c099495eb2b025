from maxq_mm.cli import tradeoff


def row(network, runtime, ms, bbox, segm):
    return dict(network=network, runtime=runtime, latency_ms=ms, latency_low_ms=ms - 1,
                latency_high_ms=ms + 2, bbox_mAP=bbox, segm_mAP=segm)


def test_front_is_what_nothing_beats_in_both():
    points = [(30, 0.40), (10, 0.38), (20, 0.37), (10, 0.36), (40, 0.40), (25, 0.39)]
    assert tradeoff.front(points) == [(10, 0.38), (25, 0.39), (30, 0.40)]


def test_a_colour_each_runtime_and_a_marker_each_network():
    rows = [row('dense', 'mmdet', 90, 0.38, 0.39), row('dense', 'maxq_mm int8', 20, 0.37, 0.39),
            row('1:16', 'maxq_mm int8', 15, 0.36, None)]
    picture = tradeoff.draw(rows, ('bbox_mAP', 'segm_mAP'))
    axes, = picture.axes  # segm_mAP is not known of all
    points = [(line.get_color(), line.get_marker())
              for line, _, _ in (container.lines for container in axes.containers)]
    (dense, circle), (fast, same), (also_fast, other) = points
    assert circle == same != other and fast == also_fast != dense
    labels = [text.get_text() for text in picture.legends[0].get_texts()]
    assert labels == ['mmdet', 'maxq_mm int8', 'dense', '1:16']
