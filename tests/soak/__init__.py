"""The soak test: agents work for long while their processes are killed and connections cut at random."""
