"""How weights are asked for ahead of their use: the strategies, and which of them suits this CPU."""
