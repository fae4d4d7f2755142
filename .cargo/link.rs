//! Links the released program without unwind tables, and without what would walk the stack by them:
//! it aborts when it panics. They were 45 KB and 54 KB of 600. Tests do unwind, and keep theirs.

/// What the standard library calls to walk the stack: for a backtrace, which RUST_BACKTRACE asks for
/// and which the names of a stripped program would not be in, or to unwind, which never happens.
const UNWINDER: [&str; 10] = [
    "Backtrace",
    "GetDataRelBase",
    "GetIP",
    "GetIPInfo",
    "GetLanguageSpecificData",
    "GetRegionStart",
    "GetTextRelBase",
    "Resume",
    "SetGR",
    "SetIP",
];

fn main() {
    let set = |name: &str| std::env::var(name).unwrap_or_default();
    let link = |argument: &str| println!("cargo::rustc-link-arg-bins={argument}");
    println!("cargo::rerun-if-changed=.cargo/without-unwind-tables.ld");
    if set("PROFILE") == "release" && set("CARGO_CFG_TARGET_ENV") == "musl" {
        let root = set("CARGO_MANIFEST_DIR");
        link("--no-eh-frame-hdr");
        link(&format!("-T{root}/.cargo/without-unwind-tables.ld"));
        for function in UNWINDER {
            link(&format!("--defsym=_Unwind_{function}=abort"));
        }
    }
}
