"""How much of what a cut costs can be repaired without training? Closed-form least squares, layer by layer."""
