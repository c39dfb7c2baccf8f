"""What does the network compute? Inputs, capture by torch.export, and where numbers in a forward come from."""
