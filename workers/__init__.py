"""The agents of the demo: they measure the documents of a folder, together. One module each."""
