"""The demo's agents, one module each: together they measure the documents of a folder."""
