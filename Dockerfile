# Curation and, with EXTRAS=all, pretraining. Versions come from the same hashed lock as `make`.
FROM python:3.11-slim

ARG EXTRAS=all
WORKDIR /srv
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt \
 && uv pip install --system --no-cache --require-hashes -r requirements/${EXTRAS}.txt
COPY pyproject.toml README.md ./
COPY pipeline pipeline
RUN pip install --no-cache-dir hatchling \
 && pip install --no-cache-dir --no-deps --no-build-isolation .
COPY docs/demo.sh demo.sh

RUN useradd --create-home terrashard && mkdir data && chown terrashard data
USER terrashard
ENTRYPOINT ["terrashard"]
