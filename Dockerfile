# The gateway and the servers it can embed, without tools, run by a user without privileges.
#
#     docker build -t tollgate .
#     docker run --init -p 8080:8080 -v tollgate:/var/lib/tollgate tollgate

FROM python:3.13-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/tollgate
COPY requirements.lock .
RUN /opt/tollgate/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY ledger ledger
COPY providers providers
COPY gateway gateway
RUN /opt/tollgate/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim-bookworm
# With a name, which PostgreSQL asks for, and with a folder of its own for ./data.
RUN useradd --uid 10001 --home-dir /var/lib/tollgate --create-home --shell /usr/sbin/nologin tollgate
COPY --from=build /opt/tollgate /opt/tollgate
COPY config.yaml /etc/tollgate/config.yaml
ENV PATH=/opt/tollgate/bin:$PATH PYTHONUNBUFFERED=1 TOLLGATE_CONFIG=/etc/tollgate/config.yaml
# As a number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/tollgate
VOLUME /var/lib/tollgate
EXPOSE 8080
# Metrics and health listen on loopback, where only this check and a sidecar reach them.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/healthz', timeout=2)"]
# SIGTERM drains; give it longer than the longest stream you let end: docker stop --time.
ENTRYPOINT ["tollgate"]
CMD ["serve"]
