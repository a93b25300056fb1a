"""Messages that arrive: checked before anything is unpacked."""
