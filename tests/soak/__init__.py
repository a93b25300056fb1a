"""The soak: agents work for a long time while their processes are killed and their lines are cut at random."""
