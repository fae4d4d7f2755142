#!/usr/bin/env bash
# Builds the static binaries, reproducibly.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/build.sh [amd64|arm64]…: builds the static binaries, both without an argument.

  They are target/amd64/tproxy-pod and target/arm64/tproxy-pod; it prints the
  path of each. The bytes do not depend on the directory, the user, the cargo
  home or the environment, unless a config.toml of cargo's own, above this
  directory or in the cargo home, adds flags. It needs rustup, and gcc for this
  machine only.
TEXT
}

declare -A triples=([amd64]=x86_64-unknown-linux-musl [arm64]=aarch64-unknown-linux-musl)
(($#)) || set -- amd64 arm64
for architecture; do
    case $architecture in
        -h | --help) usage; exit 0 ;;
        amd64 | arm64) ;;
        *) echo "scripts/build.sh: \"$architecture\": expected amd64 or arm64" >&2; exit 2 ;;
    esac
done
# Panic messages contain paths of crates, which must not depend on the cargo home.
CARGO_HOME=$(realpath -m "${CARGO_HOME:-${HOME:?where cargo keeps crates, unless CARGO_HOME says it}/.cargo}")
export CARGO_HOME
cd "$(dirname "$0")/.."

# Only Cargo.toml, .cargo and rust-toolchain.toml configure the build.
unset RUSTFLAGS RUSTC RUSTUP_TOOLCHAIN CARGO_ENCODED_RUSTFLAGS "${!CARGO_BUILD_@}" "${!CARGO_PROFILE_@}" \
    "${!CARGO_TARGET_@}"
cargo fetch --quiet --locked
# A panic aborts. Only its backtrace would need the index of the unwind tables: 9 KB less.
flags=("'''-Clink-arg=--no-eh-frame-hdr'''")
for crates in "$CARGO_HOME"/registry/src/*/; do
    flags+=("'''--remap-path-prefix=${crates%/}=crates'''")
done
config="target.'cfg(target_env = \"musl\")'.rustflags=[$(IFS=,; echo "${flags[*]}")]"
for architecture; do
    triple=${triples[$architecture]}
    cargo build --config "$config" --locked --release --target-dir target/static --target "$triple"
    install -D -m 755 "target/static/$triple/release/tproxy-pod" "target/$architecture/tproxy-pod"
    echo "target/$architecture/tproxy-pod"
done
