# syntax=docker/dockerfile:1
# Both programs in one small image: `freehold-server` (the default) and the `freehold` command.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# Checked SQL comes from the committed .sqlx: a build needs no database.
ENV SQLX_OFFLINE=true
# The caches are no part of the image, hence the copy out of target within the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --workspace --bins \
    && mkdir /out \
    && cp target/release/freehold-server target/release/freehold /out/

FROM debian:bookworm-slim
# Certificate authorities, for models and databases behind TLS; what the PostgreSQL client programs below need.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libpq5 liblz4-1 libzstd1 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin freehold \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/freehold/backups
# pg_dump and pg_restore, for backups of tenants: as new as the newest database server, with a libpq of the same age.
COPY --from=postgres:18-bookworm /usr/lib/postgresql/18/bin/pg_dump /usr/lib/postgresql/18/bin/pg_restore /usr/local/bin/
COPY --from=postgres:18-bookworm /usr/lib/*-linux-gnu/libpq.so.5* /usr/local/lib/
RUN ldconfig
COPY --from=build /out/ /usr/local/bin/
USER 10001
# Whoever runs the image gives FREEHOLD_PUBLIC_URL, the address that clients reach it by.
ENV FREEHOLD_LISTEN=0.0.0.0:8080 FREEHOLD_LOG_FORMAT=json
EXPOSE 8080
# bash opens the connection itself, so that the image needs no curl.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /api/health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
# Streams under way end when the server is asked to stop, within FREEHOLD_SHUTDOWN_SECONDS.
STOPSIGNAL SIGTERM
ENTRYPOINT ["freehold-server"]
CMD ["serve"]
