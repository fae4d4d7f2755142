//! The binaries of scripts/build.sh.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// Architecture of this machine, as in image names.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    "arm64"
};

/// Sources of a binary.
const SOURCES: [&str; 5] = [
    "src",
    ".cargo",
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
];

/// Path of an architecture's binary; fails if the binary is older than its sources.
pub fn binary(architecture: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = root.join("target").join(architecture).join("tproxy-pod");
    let built = fs::metadata(&binary).and_then(|it| it.modified());
    let built = built.unwrap_or(SystemTime::UNIX_EPOCH);
    for source in SOURCES {
        let changed = last_change(&root.join(source));
        let path = binary.display();
        assert!(
            built >= changed,
            "{path} is not of this {source}: scripts/build.sh makes it"
        );
    }
    binary.to_str().unwrap().to_owned()
}

/// Modification time of a file, or the latest one of any file in a directory.
fn last_change(path: &Path) -> SystemTime {
    let changed = fs::metadata(path).unwrap().modified().unwrap();
    if path.is_file() {
        return changed;
    }
    let entries = fs::read_dir(path).unwrap();
    let changes = entries.map(|entry| last_change(&entry.unwrap().path()));
    changes.max().unwrap_or(changed)
}
