"""The demo: agents that measure the documents of a folder, and the commands that run them."""
