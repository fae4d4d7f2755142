//! Sysctls of the network, read from `/proc/sys`.

/// The value; `None` where this kernel has none of that name, or it is no number.
pub fn read(name: &str) -> Option<u32> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The higher value of two, for all devices and for new ones, and its name, where `*` stands for
/// `all` or `default`.
pub fn highest(name: &str) -> (String, u32) {
    let [all, new] = ["all", "default"].map(|scope| {
        let name = name.replace('*', scope);
        let value = read(&name).unwrap_or(0);
        (name, value)
    });
    if all.1 > new.1 { all } else { new }
}
