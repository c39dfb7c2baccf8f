"""Gate values in the affine parameters of layers, around a forward call."""
