"""What does the network compute? Its inputs, its capture by torch.export, and where the numbers in a forward come
from."""
