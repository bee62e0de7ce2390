"""Speed and memory, each benchmark a command that prints JSON."""
