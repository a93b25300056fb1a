"""Entry points of docker-compose.yml: one module for each Celery worker of the demo."""
