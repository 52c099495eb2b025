"""Pure functions on tensors: patterns, masks, the ramp. They need torch only."""
