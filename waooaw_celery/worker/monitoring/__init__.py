"""What a worker serves and sends about itself: its health, its metrics, its traces."""
