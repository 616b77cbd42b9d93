# syntax=docker/dockerfile:1
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
# Needed to build zstd and SQLite.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/procscan-aggregator /procscan-aggregator

# glibc, its resolver, and nothing that is ours but one file.
FROM debian:bookworm-slim
COPY --from=build /procscan-aggregator /usr/local/bin/procscan-aggregator
COPY config.yaml /etc/procscan-aggregator/config.yaml
# For `output.mode: directory`: mount a volume there to keep or share the objects.
RUN mkdir -p /var/lib/procscan-aggregator && chown 65532:65532 /var/lib/procscan-aggregator
WORKDIR /var/lib/procscan-aggregator
# Memory that is free is given back at once, and not some time later: a fifth less of it, measured with 10,000 violations.
ENV MIMALLOC_PURGE_DELAY=0
USER 65532:65532
EXPOSE 8090
ENTRYPOINT ["procscan-aggregator"]
CMD ["run", "--config", "/etc/procscan-aggregator/config.yaml"]
