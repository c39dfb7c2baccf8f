"""How many channels should each site keep? What fewer cost is measured on the network itself, without training."""
