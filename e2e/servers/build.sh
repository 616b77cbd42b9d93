#!/usr/bin/env bash
# Builds etcd, kube-apiserver, kube-controller-manager and kubectl from their Go modules and prints the folder that
# holds them. It is outside the checkout, one folder per pinned set of versions: the second call takes no time.
#
# KUBEBUILDER_ASSETS names a folder that already holds them; then nothing is built.
set -euo pipefail
cd "$(dirname "$0")"
programs=(etcd kube-apiserver kube-controller-manager kubectl)

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  for program in etcd kube-apiserver; do
    if [ ! -x "$KUBEBUILDER_ASSETS/$program" ]; then
      echo "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no program $program" >&2
      exit 1
    fi
  done
  echo "$KUBEBUILDER_ASSETS"
  exit
fi

if ! command -v go >/dev/null; then
  echo "the end-to-end tests need Go 1.26 to build a Kubernetes API server, or KUBEBUILDER_ASSETS with a built one" >&2
  exit 1
fi

pins=$(cat go.mod go.sum build.sh | sha256sum | cut -c1-16)
cache=${PROCSCAN_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/procscan-e2e}/servers-$pins
complete=true
for program in "${programs[@]}"; do [ -x "$cache/$program" ] || complete=false; done
if $complete; then
  echo "$cache"
  exit
fi

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.} minor=${minor%%.*}
stamp=k8s.io/component-base/version
# Without these the programs call themselves v0.0.0, and clients that look at the version refuse them.
flags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor"
mkdir -p "$cache"
for program in "${programs[@]}"; do
  case $program in
    etcd) package=go.etcd.io/etcd/server/v3 ;;
    *) package=k8s.io/kubernetes/cmd/$program ;;
  esac
  echo "building $program (Kubernetes $version; once, some minutes)" >&2
  # Built under another name and renamed: a build that was interrupted leaves nothing that looks whole.
  CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "$flags" -o "$cache/.$program" "$package" >&2
  mv "$cache/.$program" "$cache/$program"
done
echo "$cache"
