//! What this kernel can do: tried, in a namespace of its own.

use super::Namespace;

/// Whether devices of a kind, such as `ipvlan`, can be made on another.
pub fn has_device(kind: &str) -> bool {
    let namespace = Namespace::new();
    namespace.batch("link add eth0 type veth peer name peer");
    let added = namespace.try_run(&format!("ip link add link eth0 name tried type {kind}"));
    let complaint = String::from_utf8_lossy(&added.stderr);
    let unknown = complaint.contains("Unknown device type");
    assert!(added.status.success() || unknown, "{complaint}");
    !unknown
}

/// Whether there is IPVS.
pub fn has_ipvs() -> bool {
    let listed = Namespace::new().try_run("ipvsadm -L -n");
    let complaint = String::from_utf8_lossy(&listed.stderr);
    let missing = complaint.contains("Are you sure that IP Virtual Server is built in the kernel");
    assert!(listed.status.success() || missing, "{complaint}");
    listed.status.success()
}
