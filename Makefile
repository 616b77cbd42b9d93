IMAGE ?= procscan-aggregator
TAG   ?= latest
CONFIG ?= config.yaml

.DEFAULT_GOAL := help
.PHONY: build run demo test e2e fmt lint docker-build docker-push clean help

build: ## Build the release binary
	cargo build --release --locked

run: ## Run the service with config.yaml (CONFIG=... for another one)
	cargo run --release --locked -- run --config $(CONFIG)

demo: ## See it work on this machine
	cargo run --release --locked -- demo

test: ## Run all tests
	cargo test --workspace --locked

e2e: ## Run the service against a real Kubernetes API server (ONLY=name for some; needs Go and iproute2, or KUBEBUILDER_ASSETS)
	e2e/run $(ONLY)

fmt: ## Format the code
	cargo fmt --all

lint: ## Check format, lints, documentation and dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p procscan-e2e --test scenarios --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	cargo deny --locked check bans licenses sources

docker-build: ## Build the container image (IMAGE=..., TAG=...)
	docker build -t $(IMAGE):$(TAG) .

docker-push: ## Push the container image (IMAGE=..., TAG=...)
	docker push $(IMAGE):$(TAG)

clean: ## Remove what was built
	cargo clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
