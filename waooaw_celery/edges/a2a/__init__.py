"""Agent2Agent (A2A): our agents for clients of that protocol, and agents of that protocol as agents of ours."""
