"""HTTP: send, request, stream and publish with curl, CloudEvents, and webhooks."""
