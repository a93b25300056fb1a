"""The one way to the broker: a message is completed, checked, recorded and published."""
