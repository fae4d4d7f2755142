//! Character classes of RFC 9110 and RFC 3986 that more than one part of a request uses.

/// `tchar` (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of a field value or of a quoted string: HTAB, SP, `VCHAR` or `obs-text` (RFC 9110, 5.5 and
/// 5.6.4).
pub(super) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

/// Splits a value at separators that are not within a quoted string (RFC 9110, 5.6.4).
pub(super) fn split_unquoted(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    value.split(move |byte| match byte {
        _ if is_escaped => {
            is_escaped = false;
            false
        }
        b'\\' if is_quoted => {
            is_escaped = true;
            false
        }
        b'"' => {
            is_quoted = !is_quoted;
            false
        }
        byte => *byte == separator && !is_quoted,
    })
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2; RFC 3986, 3.2.2), empty or not. Only the characters are
/// checked, not whether the host is an address.
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !value.ends_with(b"]") => (&value[..colon], &value[colon + 1..]),
        _ => (value, &b""[..]),
    };
    let is_name_byte = |byte: &u8| {
        // `%`, and of `unreserved` and `sub-delims` what is neither a letter nor a digit.
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'$'..=b'.' | b';' | b'=' | b'_' | b'~')
    };
    let ip_literal = host
        .strip_prefix(b"[")
        .and_then(|host| host.strip_suffix(b"]"));
    let is_valid = match ip_literal {
        Some(literal) => {
            let is_literal_byte = |byte: &u8| *byte == b':' || is_name_byte(byte);
            !literal.is_empty() && literal.iter().all(is_literal_byte)
        }
        None => host.iter().all(is_name_byte),
    };
    is_valid && port.iter().all(u8::is_ascii_digit) && (!host.is_empty() || port.is_empty())
}
