//! Numbers and lists in the text of selectors.

use std::fmt;

/// Parses a number, decimal or hexadecimal (`0x…`), without sign or space.
///
/// A leading zero is an error: iptables reads such a number as octal.
pub fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => return None,
        None => (text, 10),
    };
    // `from_str_radix` accepts a plus sign.
    let is_signed = digits.starts_with('+');
    u64::from_str_radix(digits, radix)
        .ok()
        .filter(|_| !is_signed)
}

/// Parses a comma-separated list with `parse` for its items.
///
/// # Errors
/// The first invalid item, and what was expected.
pub fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',')
        .map(|item| {
            parse(item).map_err(|expected| match item == text {
                true => expected,
                false => format!("in the list item \"{item}\": {expected}"),
            })
        })
        .collect()
}

/// Formats a comma-separated list.
pub fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}
