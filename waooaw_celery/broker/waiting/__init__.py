"""The messages that wait in queues: read them, or take those of one sender out."""
