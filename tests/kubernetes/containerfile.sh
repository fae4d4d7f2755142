#!/usr/bin/env bash
# Builds the image from the Containerfile, with its first stage, for the other architecture. It needs no
# registry: this machine's toolchain replaces the Rust image. The binary has to equal that of
# scripts/build.sh, in another directory and with another cargo home.
set -euo pipefail
cd "$(dirname "$0")/../.."

case $(uname -m) in
    x86_64) here=amd64 there=arm64 ;;
    aarch64) here=arm64 there=amd64 ;;
esac
rust=$(sed -n 's/^FROM .* \(.*rust:.*\) AS build$/\1/p' Containerfile)
cargo=${CARGO_HOME:-$HOME/.cargo} rustup=${RUSTUP_HOME:-$HOME/.rustup}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

buildah() { command buildah --storage-driver vfs --root "$stage/storage" --runroot "$stage/run" "$@"; }

container=$(buildah from scratch)
root=$(buildah mount "$container")
mkdir -p "$root"/{usr,etc/alternatives,tmp,proc,sys,dev,cargo} "$root$rustup"
for folder in bin lib lib64; do
    [[ ! -L /$folder ]] || cp -P "/$folder" "$root"
done
buildah config --env PATH=/cargo/bin:/usr/bin --env CARGO_HOME=/cargo --env CARGO_NET_OFFLINE=true \
    --env "RUSTUP_HOME=$rustup" --env RUSTUP_AUTO_INSTALL=0 "$container"
buildah commit --quiet --rm "$container" "$rust"

# buildah 1.28, Debian 12's, does not know BUILDPLATFORM by itself.
buildah build --isolation chroot --pull-never --platform "linux/$there" \
    --build-arg "BUILDPLATFORM=linux/$here" --volume /usr:/usr:ro \
    --volume /etc/alternatives:/etc/alternatives:ro --volume "$cargo:/cargo" \
    --volume "$rustup:$rustup:ro" --tag image .
built=$(buildah mount "$(buildah from --arch "$there" image)")
cmp "$built/tproxy-pod" "target/$there/tproxy-pod"
