//! Features of the running kernel. Without one, tests assert the limit that docs/captured.md documents.

use std::fs;
use std::path::Path;

use super::Namespace;

/// Whether a table can have an owner (`NFT_TABLE_F_OWNER`, Linux 5.12): only the owner can change it, and the
/// kernel removes it with its owner. Older kernels return `EINVAL`.
pub fn owns_tables() -> bool {
    release() >= (5, 12)
}

/// Whether IPv6 is available; `ipv6.disable=1` or the kernel's configuration disables it.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether the kernel is required to have every feature: scripts/kernels.sh sets `HAS_ALL`.
pub fn has_all() -> bool {
    std::env::var_os("HAS_ALL").is_some()
}

/// Whether devices of a kind, such as `ipvlan`, can be created on another.
pub fn has_device(kind: &str) -> bool {
    let namespace = Namespace::new();
    namespace.batch("link add eth0 type veth peer name peer");
    let added = namespace.try_run(&format!("ip link add link eth0 name tried type {kind}"));
    let stderr = String::from_utf8_lossy(&added.stderr);
    let unknown = stderr.contains("Unknown device type");
    assert!(added.status.success() || unknown, "{stderr}");
    !unknown
}

/// Whether IPVS is available.
pub fn has_ipvs() -> bool {
    let listed = Namespace::new().try_run("ipvsadm -L -n");
    let stderr = String::from_utf8_lossy(&listed.stderr);
    let missing = stderr.contains("Are you sure that IP Virtual Server is built in the kernel");
    assert!(listed.status.success() || missing, "{stderr}");
    listed.status.success()
}

/// Major and minor number of `uname -r`.
fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text
        .split(|it: char| !it.is_ascii_digit())
        .map(|digits| digits.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
