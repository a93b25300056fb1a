"""Model Context Protocol (MCP): our methods as tools, and tools of that protocol as methods of an agent."""
