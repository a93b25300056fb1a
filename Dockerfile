# One image for all agents, beat, Flower and the exporter. The command in docker-compose.yml decides what a container runs.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY waooaw_celery/ waooaw_celery/
RUN /venv/bin/pip install --no-cache-dir ".[flower,prometheus]"

# The stage above keeps the sources and pip's leftovers.
FROM python:3.12-slim
RUN useradd --no-create-home --uid 10001 waooaw
COPY --from=build /venv /venv
# Unbuffered, so that the log has the last lines of a process that dies.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
# Celery imports the module after -A from the working directory. Add your own agents here: COPY my_agents/ my_agents/
COPY beat_schedule.py ./
COPY workers/ workers/
USER waooaw
