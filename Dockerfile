# syntax=docker/dockerfile:1
#
# The gateway in a small image. It needs an upstream to protect, and keeps its records in /data:
#     docker build -t onceward .
#     docker run -e ONCEWARD_UPSTREAM=http://api:9000 -p 8080:8080 -v onceward:/data --stop-timeout 80 onceward
# --stop-timeout: on SIGTERM requests that are under way are finished (up to drain_timeout, 75 s by default). Docker
# itself waits for 10 s only, and whatever it kills then is uncertain.

FROM rust:1-slim-bookworm AS build
# jemalloc, the allocator, is built by make.
RUN apt-get update && apt-get install -y --no-install-recommends make
WORKDIR /build
# What the binary is made of, and no more: a change of tests or documentation doesn't build anew. (The documented
# configuration is compiled in.)
COPY Cargo.toml Cargo.lock ./
COPY config config
COPY src src
# The caches stay out of the image, so the binary is copied out of its cache in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --profile dist --locked --bin onceward \
    && cp target/dist/onceward /usr/local/bin/onceward

FROM debian:bookworm-slim
# The certificates of public authorities, for an upstream or a Redis behind TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin onceward \
    && install -d -o onceward -g onceward -m 0700 /data
COPY --from=build /usr/local/bin/onceward /usr/local/bin/onceward

# By number, so that an orchestrator can see that it isn't root.
USER 10001
# Clients come from outside of the container. The admin port stays on the container's loopback, where it needs no token:
# the health check asks there, and an operator gets there by `docker exec`. To reach it from outside (probes, metrics),
# set ONCEWARD_ADMIN=0.0.0.0:8081 and give a configuration with tokens under [admin_auth].
ENV ONCEWARD_LISTEN=0.0.0.0:8080 \
    ONCEWARD_STORE=file:/data
EXPOSE 8080 8081
# The embedded store has to outlive the container: a fresh one would execute old keys again.
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["onceward", "health"]
ENTRYPOINT ["onceward"]
CMD ["run"]
