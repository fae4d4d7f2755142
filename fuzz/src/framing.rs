//! A reference for the end of a request, to the letter of RFC 9112. It has the whole stream, reads it line by
//! line, and refuses little: it must accept what the program accepts, with the same end.

/// A complete request.
#[derive(Debug, PartialEq)]
pub struct Request<'a> {
    /// Lines up to the empty one, without CRLF.
    pub lines: Vec<&'a [u8]>,
    /// Content.
    pub content: Vec<u8>,
    /// Length in bytes, with a preceding empty line.
    pub length: usize,
}

/// The first request of a stream; `None` if it is malformed or incomplete.
pub fn first(stream: &[u8]) -> Option<Request<'_>> {
    let mut rest = stream.strip_prefix(b"\r\n").unwrap_or(stream);
    let mut lines = Vec::new();
    loop {
        match take_line(&mut rest)? {
            b"" => break,
            line => lines.push(line),
        }
    }
    let content = match (
        values(&lines, b"transfer-encoding").as_slice(),
        values(&lines, b"content-length").as_slice(),
    ) {
        ([], []) => Vec::new(),
        ([], [length]) => take_content(&mut rest, length)?,
        ([codings], []) if is_chunked(codings) => take_chunks(&mut rest)?,
        _ => return None,
    };
    Some(Request {
        lines,
        content,
        length: stream.len() - rest.len(),
    })
}

/// Takes a line that ends with CRLF and contains neither CR nor LF.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    (!line.contains(&b'\r') && !line.contains(&b'\n')).then_some(line)
}

/// Values of the fields of a name, without surrounding whitespace.
fn values<'a>(lines: &[&'a [u8]], name: &[u8]) -> Vec<&'a [u8]> {
    let field = |line: &&'a [u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon]
            .eq_ignore_ascii_case(name)
            .then(|| line[colon + 1..].trim_ascii())
    };
    lines.iter().skip(1).filter_map(field).collect()
}

/// Whether the list of codings is `chunked` alone. This is stricter than RFC 9110, 5.6.1.2, by which a
/// recipient ignores empty members: if one parser takes `,chunked` for chunked and another does not, a request
/// ends in two places.
fn is_chunked(codings: &[u8]) -> bool {
    codings.eq_ignore_ascii_case(b"chunked")
}

/// Takes a body of this length (RFC 9112, 6.2).
fn take_content(rest: &mut &[u8], length: &[u8]) -> Option<Vec<u8>> {
    let all_digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    let length: usize = str::from_utf8(length).ok()?.parse().ok()?;
    let content = all_digits.then(|| rest.get(..length))??;
    *rest = &rest[length..];
    Some(content.to_vec())
}

/// Takes a chunked body with its trailers (RFC 9112, 7.1).
fn take_chunks(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line = take_line(rest)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let (size, extensions) = line.split_at(digits.count());
        let size = usize::from_str_radix(str::from_utf8(size).ok()?, 16).ok()?;
        if !are_extensions(extensions) {
            return None;
        }
        if size == 0 {
            break;
        }
        content.extend_from_slice(rest.get(..size)?);
        *rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    loop {
        match take_line(rest)? {
            b"" => return Some(content),
            line if !is_trailer(line) => return None,
            _ => {}
        }
    }
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )` (RFC 9112, 7.1.1).
fn are_extensions(text: &[u8]) -> bool {
    text.is_empty() || after_extension(text).is_some_and(are_extensions)
}

/// What follows the first of these extensions.
fn after_extension(text: &[u8]) -> Option<&[u8]> {
    let name = skip(text, is_blank).strip_prefix(b";")?;
    let rest = after_token(skip(name, is_blank))?;
    match skip(rest, is_blank).strip_prefix(b"=") {
        None => Some(rest),
        Some(value) => {
            let value = skip(value, is_blank);
            after_quoted_string(value).or_else(|| after_token(value))
        }
    }
}

fn after_token(text: &[u8]) -> Option<&[u8]> {
    let rest = skip(text, is_token_byte);
    (rest.len() < text.len()).then_some(rest)
}

/// What follows a quoted string (RFC 9110, 5.6.4).
fn after_quoted_string(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', byte, rest @ ..] if is_text(byte) => rest,
            [byte, rest @ ..] if *byte != b'\\' && is_text(byte) => rest,
            _ => return None,
        }
    }
}

fn skip(text: &[u8], class: fn(u8) -> bool) -> &[u8] {
    let end = text.iter().position(|byte| !class(*byte));
    &text[end.unwrap_or(text.len())..]
}

/// HTAB or SP.
fn is_blank(byte: u8) -> bool {
    byte == b'\t' || byte == b' '
}

/// `token ":"` and any text.
fn is_trailer(line: &[u8]) -> bool {
    let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
    let name = &line[..colon];
    !name.is_empty() && name.iter().copied().all(is_token_byte) && line.iter().all(is_text)
}

/// `tchar` (RFC 9110, 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}

/// HTAB, SP, `VCHAR` or `obs-text` (RFC 9110, 5.5).
fn is_text(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

impl Request<'_> {
    /// Whether the request is so simple and small that a server has to accept it.
    pub fn is_plain(&self) -> bool {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let is_field = |line: &&[u8]| {
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
            let (name, value) = line.split_at(colon);
            !name.is_empty()
                && name.iter().all(plain)
                && value.iter().all(|byte| (b' '..=b'~').contains(byte))
        };
        let Some((line, fields)) = self.lines.split_first() else {
            return false;
        };
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, b"HTTP/1.1"] = words.as_slice() else {
            return false;
        };
        let host = values(&self.lines, b"host");
        !method.is_empty()
            && method.iter().all(u8::is_ascii_uppercase)
            && ![&b"CONNECT"[..], b"TRACE"].contains(method)
            && target.starts_with(b"/")
            && target.iter().all(u8::is_ascii_graphic)
            && matches!(host.as_slice(), [host] if host.iter().all(plain))
            && ["expect", "x-echo-status", "x-echo-delay"]
                .iter()
                .all(|name| values(&self.lines, name.as_bytes()).is_empty())
            && fields.iter().all(is_field)
            && self.lines.len() <= 100
            && self.length - self.content.len() < 4096
    }
}
