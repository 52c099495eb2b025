"""Modules and model surgery: layers, sparsify, fold, report."""
