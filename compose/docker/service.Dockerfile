# Our services: `up` supervises the stages, each in a process of its own, in one container.
FROM python:3.11.13-slim-bookworm
WORKDIR /opt/adsindex
COPY requirements.lock .
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock \
  && useradd --system --home-dir /var/lib/adsindex --create-home adsindex
COPY . .
ENV PYTHONPATH=/opt/adsindex PYTHONUNBUFFERED=1 ADSINDEX_HOME=/var/lib/adsindex
USER adsindex
VOLUME /var/lib/adsindex
# Topics and tables are made here, not by accident; no sample: the ads come from the ads database.
CMD ["/bin/sh", "-c", "python -m cli.main topics apply --log \"$ADSINDEX_LOG\" && python -m cli.main repo apply --repo \"$ADSINDEX_REPO\" && exec python -m cli.main up --sample 0 --port \"$ADSINDEX_PORT\" --ads-db \"$ADSINDEX_ADS_DB\" --log \"$ADSINDEX_LOG\" --repo \"$ADSINDEX_REPO\" --walproxy \"$ADSINDEX_WALPROXY\""]
