"""Shells around mmengine's Runner: the hooks and what they put into checkpoints."""
