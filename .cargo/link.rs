//! Links the released program without unwind tables: it aborts when it panics, and nothing else
//! reads them. They were 45 KB of 600. Tests do unwind, and keep theirs.

fn main() {
    let set = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo::rerun-if-changed=.cargo/without-unwind-tables.ld");
    if set("PROFILE") == "release" && set("CARGO_CFG_TARGET_ENV") == "musl" {
        let root = set("CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-T{root}/.cargo/without-unwind-tables.ld");
    }
}
