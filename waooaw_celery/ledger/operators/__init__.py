"""What people changed in the console: who, what, when and why."""
