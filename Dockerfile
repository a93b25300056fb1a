# One image for every agent, beat and Flower: docker-compose.yml says which of them a container is.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml setup.cfg README.md LICENSE beat_schedule.py waooaw_formats.py ./
COPY waooaw_celery/ waooaw_celery/
COPY workers/ workers/
RUN /venv/bin/pip install --no-cache-dir ".[flower]"

# The sources and pip's leftovers stay behind in the stage above. Add your own agents here: COPY my_agents/ my_agents/
FROM python:3.12-slim
RUN useradd --no-create-home --uid 10001 waooaw
COPY --from=build /venv /venv
# Unbuffered, so that the last words of a process that dies are in its log.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER waooaw
