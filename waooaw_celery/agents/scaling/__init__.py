"""How many messages an agent's workers handle at once, read and changed by remote control."""
