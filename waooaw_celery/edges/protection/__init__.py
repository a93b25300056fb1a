"""What protects an edge: bounds on what arrives, and on the addresses that it connects to itself."""
