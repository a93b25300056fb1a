"""What arrives: looked at before anything is unpacked."""
