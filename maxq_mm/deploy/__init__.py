"""Detectors as ONNX files. Needs mmdet, onnx and onnxruntime; only the tools import it."""
