"""What can be called by HTTP, as JSON and as an OpenAPI document."""
