"""What is a channel, and what ties it to others? Slots, labels, facts, and the rules that emit them."""
