"""Commands that watch a running system: `top`, and Flower with safe settings."""
