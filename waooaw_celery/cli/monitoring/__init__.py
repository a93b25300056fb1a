"""The commands of monitoring: the exporter, its files, `top`, and Flower with safe settings."""
