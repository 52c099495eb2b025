"""Errors of torch, onnx and onnxruntime in one line."""


def first_line(error: Exception) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
