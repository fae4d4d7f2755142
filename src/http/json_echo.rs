//! The echo as a JSON object (RFC 8259).
//!
//! The content of the request is appended to the echo as it comes, and encoded at the end, when it is known whether
//! it is UTF-8: in the same memory, from its last byte to its first, because no encoded byte is ahead of its source.

use crate::http::endpoints::Endpoints;
use crate::http::head::Head;
use crate::http::status::Rejection;
use crate::log::buffer::Buffer;
use crate::log::json::{escape_char, push_string};
use crate::log::timestamp::Timestamp;

/// The longest response with an echo, in bytes: as much of the request's content is echoed as fits.
const MAX_JSON: usize = 128 * 1024;

/// The most bytes that follow the content: the end of the object, and the head of the response before it is copied
/// in front of it.
const MAX_END: usize = 512;

const TEXT_KEY: &[u8] = b",\"body\":\"";
const BASE64_KEY: &[u8] = b",\"body_base64\":\"";

/// Begins the echo of a request: all members but those of its content.
pub fn begin(echo: &mut Buffer, head: &Head<'_>, endpoints: &Endpoints, node: Option<&str>) {
    let member = |echo: &mut Buffer, name: &[u8], value: &[u8]| {
        echo.push(name);
        push_string(echo, value, usize::MAX);
    };
    member(echo, b"{\"client\":", endpoints.client.as_bytes());
    member(echo, b",\"destination\":", endpoints.destination.as_bytes());
    if let Some(node) = node {
        member(echo, b",\"node\":", node.as_bytes());
    }
    echo.push(b",\"time\":\"");
    Timestamp::now().push_rfc3339(echo);
    member(echo, b"\",\"method\":", head.method);
    member(echo, b",\"target\":", head.target);
    member(echo, b",\"version\":", head.version);
    member(echo, b",\"host\":", head.host);
    echo.push(b",\"headers\":");
    push_fields(echo, head.lines);
}

/// Writes why a request is refused.
pub fn refusal(content: &mut Buffer, rejection: Rejection) {
    content.push(b"{\"status\":");
    rejection.status.push_code(content);
    content.push(b",\"error\":");
    push_string(content, rejection.reason.as_bytes(), usize::MAX);
    content.push(b"}\n");
}

/// Appends an object of the field names in lower case, each with an array of its values in order.
fn push_fields(echo: &mut Buffer, lines: &[u8]) {
    let hashed = fields(lines).map(|(name, value)| Some((hash(name), name, value)));
    let mut fields: Vec<_> = hashed.collect();
    let mut separator = b"{".as_slice();
    for at in 0..fields.len() {
        let Some((hash, name, value)) = fields[at].take() else {
            continue;
        };
        echo.push(separator);
        push_string(echo, &name.to_ascii_lowercase(), usize::MAX);
        echo.push(b":[");
        push_string(echo, value, usize::MAX);
        for other in &mut fields[at + 1..] {
            let is_same = |other: &mut (u32, &[u8], &[u8])| {
                other.0 == hash && other.1.eq_ignore_ascii_case(name)
            };
            if let Some((_, _, value)) = other.take_if(is_same) {
                echo.push(b",");
                push_string(echo, value, usize::MAX);
            }
        }
        separator = b"],";
    }
    echo.push(if fields.is_empty() { b"{}" } else { b"]}" });
}

/// A number that is the same for the same name in any case, and rarely for two names (FNV-1a).
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    })
}

/// The names and values of valid field lines, up to the empty line.
fn fields(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines.split(|byte| *byte == b'\n').map_while(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// The most bytes of the request's content that may be appended to an echo of this length.
pub fn room(length: usize) -> usize {
    MAX_JSON.saturating_sub(length + BASE64_KEY.len() + MAX_END)
}

/// Ends the echo of a request whose content has `received` bytes. What follows the first `start` bytes of the buffer
/// is the part of it that may be echoed; of that, as much is echoed as fits.
pub fn end(echo: &mut Buffer, start: usize, received: u64) {
    let room = room(start);
    let content = &echo.bytes()[start..];
    let text = match str::from_utf8(content) {
        Ok(text) => Some(text),
        // The first bytes of a character whose others are not echoed.
        Err(error) if error.error_len().is_none() && (content.len() as u64) < received => {
            str::from_utf8(&content[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let (raw, encoded) = match text {
        Some(text) => fitting_text(text, room),
        None => {
            let raw = content.len().min(room / 4 * 3);
            (raw, raw.div_ceil(3) * 4)
        }
    };
    let is_text = text.is_some();
    let key = if is_text { TEXT_KEY } else { BASE64_KEY };
    echo.resize(start + key.len() + encoded);
    let area = &mut echo.bytes()[start..];
    match is_text {
        true => encode_text(area, raw),
        false => encode_base64(area, raw),
    }
    area[..key.len()].copy_from_slice(key);
    echo.push(b"\",\"body_bytes\":");
    echo.push_number(received);
    echo.push(b",\"truncated\":");
    echo.push(if (raw as u64) < received {
        b"true"
    } else {
        b"false"
    });
    echo.push(b"}\n");
}

/// The length of the longest beginning of a text whose encoded form fits into `room`, and the length of that form.
fn fitting_text(text: &str, room: usize) -> (usize, usize) {
    let encoded = text.bytes().map(escaped_length).sum();
    if encoded <= room {
        return (text.len(), encoded);
    }
    let (mut raw, mut encoded) = (0, 0);
    for character in text.chars() {
        let length = character.len_utf8();
        let bytes = &text.as_bytes()[raw..raw + length];
        let more: usize = bytes.iter().copied().map(escaped_length).sum();
        if encoded + more > room {
            break;
        }
        raw += length;
        encoded += more;
    }
    (raw, encoded)
}

/// The length of a byte of a text as [`escape_char`] encodes it; a byte beyond ASCII stays as it is.
fn escaped_length(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..=0x1f | 0x7f => 6,
        _ => 1,
    }
}

/// Encodes the first `raw` bytes of `area`, which are UTF-8, so that they end with it.
fn encode_text(area: &mut [u8], raw: usize) {
    let (mut at, mut end) = (raw, area.len());
    while at > 0 {
        let plain = area[..at].iter().rev();
        let plain = plain.take_while(|byte| escaped_length(**byte) == 1).count();
        area.copy_within(at - plain..at, end - plain);
        (at, end) = (at - plain, end - plain);
        if let Some(before) = at.checked_sub(1) {
            let mut space = [0; 12];
            let escape = escape_char(area[before].into(), &mut space);
            area[end - escape.len()..end].copy_from_slice(escape);
            (at, end) = (before, end - escape.len());
        }
    }
}

/// Encodes the first `raw` bytes of `area` in Base64 (RFC 4648, 4), so that they end with it.
fn encode_base64(area: &mut [u8], raw: usize) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut end = area.len();
    for at in (0..raw).step_by(3).rev() {
        let group = &area[at..raw.min(at + 3)];
        let digits = group.len() + 1;
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |at: usize| DIGITS[(bits >> (18 - 6 * at)) as usize & 63];
        let quantum = [0, 1, 2, 3].map(|at| if at < digits { digit(at) } else { b'=' });
        area[end - 4..end].copy_from_slice(&quantum);
        end -= 4;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The echo of a content after `start` bytes, of which all that may be are appended.
    fn echo(start: usize, content: &[u8]) -> Value {
        let mut echo = Buffer::EMPTY;
        echo.resize(start);
        echo.push(&content[..content.len().min(room(start))]);
        end(&mut echo, start, content.len() as u64);
        assert!(echo.len() <= MAX_JSON, "{}", echo.len());
        let json = [b"{\"x\":0", &echo.bytes()[start..]].concat();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn a_text_is_echoed_as_it_was_sent() {
        for text in [
            "",
            "a",
            "\"\\\n\t\r\u{0}\u{1f}\u{7f}/",
            "é€\u{1f600}",
            &"\u{1}".repeat(1000),
        ] {
            let echo = echo(7, text.as_bytes());
            assert_eq!(echo["body"], *text);
            assert_eq!(echo["body_bytes"], text.len());
            assert_eq!(echo["truncated"], false);
            assert!(echo.get("body_base64").is_none());
        }
    }

    #[test]
    fn other_bytes_are_echoed_in_base64() {
        for (content, base64) in [
            (&b"\xff"[..], "/w=="),
            (b"\xff\x00", "/wA="),
            (b"\xfb\xef\xbe", "++++"),
            (b"caf\xe9 au lait", "Y2Fm6SBhdSBsYWl0"),
        ] {
            let echo = echo(0, content);
            assert_eq!(echo["body_base64"], base64);
            assert_eq!(echo["truncated"], false);
            assert!(echo.get("body").is_none());
        }
    }

    #[test]
    fn each_byte_takes_as_much_as_it_is_counted_for() {
        for byte in 0..0x80 {
            let length = escape_char(byte.into(), &mut [0; 12]).len();
            assert_eq!(escaped_length(byte), length, "{byte}");
        }
    }

    #[test]
    fn fields_are_grouped_by_name_in_any_case() {
        let mut echo = Buffer::EMPTY;
        push_fields(&mut echo, b"A: 1\r\nB:\r\na:  2 \r\nAb: x\r\nb: y\r\n\r\n");
        assert_eq!(echo.bytes(), br#"{"a":["1","2"],"b":["","y"],"ab":["x"]}"#);
        echo.resize(0);
        push_fields(&mut echo, b"\r\n");
        assert_eq!(echo.bytes(), b"{}");
    }

    #[test]
    fn what_does_not_fit_is_cut_behind_a_whole_character() {
        let controls = "\u{1}".repeat(60_000);
        let cut = echo(1000, controls.as_bytes());
        let body = cut["body"].as_str().unwrap();
        assert!(body.len() > 20_000 && controls.starts_with(body));
        assert_eq!(cut["body_bytes"], 60_000);
        assert_eq!(cut["truncated"], true);

        let start = MAX_JSON - MAX_END - 600;
        for text in ["é€\u{1f600}".repeat(1000), "\"é".repeat(1000)] {
            let cut = echo(start, text.as_bytes());
            let body = cut["body"].as_str().unwrap();
            assert!(body.len() > 200 && text.starts_with(body), "{body}");
            assert_eq!(cut["truncated"], true);
        }
        let cut = echo(start, &[0xff; 1000]);
        assert!(cut["body_base64"].as_str().unwrap().len() > 400);
        assert_eq!(cut["truncated"], true);
    }
}
