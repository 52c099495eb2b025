# make quickstart: train, evaluate and report a small MaxQ Mask R-CNN; make test: all tests.
# Both make the environment in .venv first, if it is not there.
PYTHON := .venv/bin/python
DATA := data/shapes
WORK := work_dirs/quickstart
# mmengine and mmcv import pkg_resources, which warns of itself a hundred times
export PYTHONWARNINGS := ignore:pkg_resources is deprecated:UserWarning
CONFIG := configs/quickstart_mask_rcnn_r18.py

.PHONY: quickstart test test-gpu lint env clean

env:
	@sh tools/make_env.sh .venv

quickstart: env
	$(PYTHON) tools/make_shapes.py $(DATA)
	$(PYTHON) tools/train.py $(CONFIG) --work-dir $(WORK)
	$(PYTHON) tools/fold.py $(WORK)/epoch_7.pth $(WORK)/folded.pth --strict
	$(PYTHON) tools/test.py $(CONFIG) $(WORK)/folded.pth --work-dir $(WORK)/test
	$(PYTHON) tools/report.py $(CONFIG) $(WORK)/folded.pth --size 128 128
	$(PYTHON) tools/draw.py $(CONFIG) $(WORK)/folded.pth $(WORK)/detections.png
	@echo "checkpoint: $(WORK)/folded.pth    picture: $(WORK)/detections.png"
	@grep -hoE '(bbox|segm)_mAP_copypaste: [0-9.]+' "$$(ls -t $(WORK)/test/*/*.log | head -1)"
	$(PYTHON) tools/accelerate.py $(CONFIG) $(WORK)/folded.pth $(WORK)/served.pth --measure --work-dir $(WORK)/accelerated

# JOBS processes at a time, with about 3 GB and a thread each
JOBS := 2
test: env
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -n $(JOBS) --dist loadfile

test-gpu: env
	$(PYTHON) -m pytest tests/gpu

lint: env
	$(PYTHON) -m ruff check .

clean:
	rm -rf $(DATA) work_dirs
