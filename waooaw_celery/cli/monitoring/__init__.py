"""The commands of monitoring: the exporter, and the files for Prometheus and Grafana."""
